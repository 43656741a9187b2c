//go:build amd64

package rdt_test

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/intel/goresctrl/pkg/monitor"
	goresctrl "github.com/intel/goresctrl/pkg/rdt"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/channel"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// prefixed begins the names of the groups that goresctrl makes in these tests.
const prefixed = "theirs-"

// openGoresctrl has goresctrl look at the mounted resctrl. What it knows is the process's, so there is one at a time.
func openGoresctrl(t *testing.T) {
	t.Helper()
	if err := goresctrl.Initialize(prefixed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := goresctrl.SetConfig(new(goresctrl.Config), true); err != nil { // removes its groups
			t.Error(err)
		}
	})
}

// TestRigGoresctrlAllocation has goresctrl set what its configuration says, and reads it. Our group beside its own stays as it is; it
// sees ours and the threads in it.
func TestRigGoresctrlAllocation(t *testing.T) {
	f, err := rdt.Open(rdt.Dir(guest.Mount(t)))
	if err != nil {
		t.Fatal(err)
	}
	makeGroup(t, f, "ours")
	defer f.Remove("ours")
	if _, _, err := f.SetLimits("ours", []rdt.Line{{"L3", []rdt.Domain{{0, 0x70}}}, {"MB", []rdt.Domain{{0, 40}}}}); err != nil {
		t.Fatal(err)
	}
	pid := sleeper(t)
	if _, err := f.Move("ours", pid); err != nil {
		t.Fatal(err)
	}
	openGoresctrl(t)
	// The four notations for a share of the cache (goresctrl's doc/rdt.md), of eleven ways here.
	for _, c := range []struct {
		cache    string
		mask, mb uint64
	}{{"0x3", 0x3, 20}, {"2-5", 0x3c, 50}, {"50%", 0x3f, 100}, {"20-60%", 0x7c, 10}} {
		config := fmt.Sprintf("partitions: {all: {l3Allocation: 100%%, mbAllocation: [100%%], classes: {batch: {l3Allocation: %q, mbAllocation: [%d%%]}}}}\n", c.cache, c.mb)
		if err := goresctrl.SetConfigFromData([]byte(config), false); err != nil {
			t.Fatalf("%s: %v", config, err)
		}
		s, err := f.Schemata(prefixed + "batch")
		if err != nil {
			t.Fatal(err)
		}
		if mask, mb := s.Values("L3")[0].Value, s.Values("MB")[0].Value; mask != c.mask || mb != c.mb {
			t.Errorf("goresctrl set %s and %d%%, we read the mask %x and %d%%, want %x", c.cache, c.mb, mask, mb, c.mask)
		}
	}
	s, err := f.Schemata("ours")
	if err != nil || s.Values("L3")[0].Value != 0x70 || s.Values("MB")[0].Value != 40 {
		t.Errorf("after goresctrl's work our group has %v, %v", s, err)
	}

	if err := goresctrl.SetResctrlGroupPrefix(""); err != nil { // now it looks at all groups
		t.Fatal(err)
	}
	var names []string
	for _, class := range goresctrl.GetClasses() {
		if class.Name() != goresctrl.RootClassName {
			names = append(names, class.Name())
		}
	}
	if groups, err := f.Groups(); err != nil || !slices.Equal(groups, names) {
		t.Errorf("we see the groups %q, %v, goresctrl %q", groups, err, names)
	}
	ours, ok := goresctrl.GetClass("ours")
	if !ok {
		t.Fatal("goresctrl does not see our group")
	}
	theirs, err := ours.GetPids()
	if err != nil {
		t.Fatal(err)
	}
	tids, err := f.Tasks("ours", nil)
	if err != nil || !slices.Equal(theirs, []string{strconv.Itoa(pid)}) || !slices.Equal(tids, []int{pid}) {
		t.Errorf("threads of our group: we %v, %v, goresctrl %v, want %d", tids, err, theirs, pid)
	}
	if err := goresctrl.SetResctrlGroupPrefix(prefixed); err != nil {
		t.Fatal(err)
	}
}

// TestRigGoresctrlMonitoring has goresctrl's two readers read a group of ours between two readings of our own. The kernel's counters
// only go up, so theirs lies between.
func TestRigGoresctrlMonitoring(t *testing.T) {
	root := guest.Mount(t)
	f, err := rdt.Open(rdt.Dir(root))
	if err != nil {
		t.Fatal(err)
	}
	const key = "pod"
	group := rdt.MonGroup("ours", key)
	makeGroup(t, f, "ours")
	defer f.Remove("ours")
	makeGroup(t, f, group)
	hog := guest.Start(t, guest.Group(t, "qos-agent-test-hogs"), "hog", "-profile", "4000,8192,700,8")
	moveAll(t, f, "ours", hog.PID())
	moveAll(t, f, group, hog.PID())
	counters, err := f.Counters(group)
	if err != nil {
		t.Fatal(err)
	}
	defer counters.Close()
	features, err := monitor.Validate(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"llc_occupancy", "mbm_total_bytes", "mbm_local_bytes"} {
		if !slices.Contains(features, name) {
			t.Errorf("goresctrl finds the counters %q, not %s", features, name)
		}
	}
	m, err := monitor.New(monitor.Options{ResctrlRoot: root})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := m.EnsureGroup(key, "ours"); err != nil || g.Path() != path.Join(root, group) { // adopts what is there
		t.Fatalf("goresctrl's group %v, %v", g, err)
	}
	openGoresctrl(t)
	if err := goresctrl.SetResctrlGroupPrefix(""); err != nil {
		t.Fatal(err)
	}
	defer goresctrl.SetResctrlGroupPrefix(prefixed)
	class, ok := goresctrl.GetClass("ours")
	if !ok {
		t.Fatal("goresctrl does not see our group")
	}
	pod, ok := class.GetMonGroup(key)
	if !ok {
		t.Fatal("goresctrl does not see our monitoring group")
	}
	readers := map[string]func() (map[string]uint64, error){
		"monitor": func() (map[string]uint64, error) {
			readings, err := m.ReadCounters(key)
			values := map[string]uint64{}
			for _, r := range readings {
				if r.Domain == "mon_L3_00" {
					values[r.Name] = uint64(r.Value)
				}
			}
			return values, err
		},
		"rdt": func() (map[string]uint64, error) { return pod.GetMonData().L3[0], nil },
	}
	for name, read := range readers {
		time.Sleep(time.Second)
		before := readOne(t, counters)
		theirs, err := read()
		after := readOne(t, counters)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v between %+v and %+v", name, theirs, before, after)
		if before.Total == 0 || before.Occupancy == 0 {
			t.Errorf("the hog moves nothing: %+v", before)
		}
		for counter, bounds := range map[string][2]uint64{
			"mbm_total_bytes": {before.Total, after.Total}, "mbm_local_bytes": {before.Local, after.Local},
			"llc_occupancy": {min(before.Occupancy, after.Occupancy) / 2, max(before.Occupancy, after.Occupancy) * 2}, // goes up and down
		} {
			if v, ok := theirs[counter]; !ok || v < bounds[0] || v > bounds[1] {
				t.Errorf("%s reads %s as %d, %v, want %d to %d", name, counter, v, ok, bounds[0], bounds[1])
			}
		}
	}

	// What is no number is a state to us, and to goresctrl as if there were no such counter.
	for rmid := range 64 {
		channel.Break(rmid, 500*time.Millisecond, channel.Unavailable)
	}
	readings, err := m.ReadCounters(key)
	if err != nil || len(readings) != 0 {
		t.Errorf("goresctrl reads failing counters as %v, %v", readings, err)
	}
	if r, err := counters.Read(nil); err != nil || len(r) != 1 || r[0].State() != rdt.Unavailable {
		t.Errorf("we read failing counters as %+v, %v", r, err)
	}
	time.Sleep(600 * time.Millisecond)
}
