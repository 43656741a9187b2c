//go:build amd64

package classes

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// realBench is an executor on the real resctrl.
func realBench(t *testing.T) (*Executor, *rdt.FS) {
	t.Helper()
	root := guest.Mount(t)
	o, err := realOptions(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, out := range e.RestoreAll() {
			if out.Err != nil {
				t.Error(out.Err)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	fs, err := rdt.Open(rdt.Dir(root))
	if err != nil {
		t.Fatal(err)
	}
	return e, fs
}

var enforce = Policy{Enforce: true, Cache: policy.CacheControl{FloorWays: 1}, FloorPercent: 10}

// outside lists the threads of a pod that are not in a group of resctrl.
func outside(t *testing.T, e *Executor, fs *rdt.FS, cgroup, group string) []int {
	t.Helper()
	threads, err := e.threads(cgroup, nil)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := fs.Tasks(group, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.threads(cgroup, nil) // what has ended meanwhile is not outside
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(threads, func(tid int) bool { return slices.Contains(inside, tid) || !slices.Contains(again, tid) })
}

// TestRigForks has a pod with nested containers start processes and threads all the time: once the pod is in its class, so is
// everything that it starts; and what comes into its group from outside is caught by an audit.
func TestRigForks(t *testing.T) {
	e, fs := realBench(t)
	nested := guest.Group(t, hogGroup[1:]+"/container")
	second := guest.Group(t, hogGroup[1:]+"/other/nested")
	guest.Start(t, nested, "hog", "-profile", "500,4096,700,8", "-churn", "20ms")
	guest.Start(t, second, "hog", "-profile", "500,4096,700,8", "-threads", "4")
	time.Sleep(500 * time.Millisecond)
	hog := limited(knob.Share{Pod: "ns/hog", Cgroup: hogGroup, Role: knob.RoleOffline}, 2, 20)
	for _, o := range e.Apply([]knob.Share{hog}, enforce) {
		if o.Err != nil {
			t.Error(o.Err)
		}
	}
	group := Prefix + "offline"
	// A thread that the kernel was copying while its parent was moved is in the parent's old class, and to be seen only when the copy is
	// done, which on this CPU may be after the last look of Apply. The scan of the next tick finds it.
	time.Sleep(100 * time.Millisecond)
	e.Scan()
	for range 20 {
		// What begins or ends between two readings can seem to be outside once; what escaped stays outside.
		tids := outside(t, e, fs, hogGroup, group)
		if len(tids) > 0 {
			still := outside(t, e, fs, hogGroup, group)
			tids = slices.DeleteFunc(tids, func(tid int) bool { return !slices.Contains(still, tid) })
		}
		if len(tids) > 0 {
			t.Errorf("threads %v of the pod are not in its class", tids)
		}
		time.Sleep(100 * time.Millisecond)
	}
	mon, ok := e.MonitorGroup(hogGroup)
	if !ok {
		t.Fatal("not monitored")
	}
	if tids := outside(t, e, fs, hogGroup, mon); len(tids) > 0 {
		t.Errorf("threads %v of the pod are not in its monitoring group", tids)
	}
	// kubectl exec: a process that was born elsewhere.
	guest.Start(t, second, "hog", "-profile", "500,4096,700,8", "-threads", "2")
	time.Sleep(300 * time.Millisecond)
	if tids := outside(t, e, fs, hogGroup, group); len(tids) == 0 {
		t.Error("the new process is in the class by itself: this test proves nothing")
	}
	e.Scan()
	if tids := outside(t, e, fs, hogGroup, group); len(tids) > 0 {
		t.Errorf("after a scan threads %v are not in the class", tids)
	}
	// Into another class and back, while it forks.
	good := knob.Share{Pod: "ns/good", Cgroup: goodGroup, Role: knob.RoleOffline}
	guest.Start(t, guest.Group(t, goodGroup[1:]), "hog", "-profile", "500,4096,700,8")
	for _, shares := range [][]knob.Share{{good, hog}, {good, limited(hog, 1, 20)}, {limited(good, 3, 50), hog}} {
		e.Apply(shares, enforce)
		for range 3 {
			e.Audit()
			e.Scan()
		}
		for _, c := range e.Plan().Classes {
			for _, p := range c.Pods {
				if tids := outside(t, e, fs, p.Cgroup, Prefix+c.Name); len(tids) > 0 {
					t.Errorf("threads %v of %s are not in %s", tids, p.Pod, c.Name)
				}
			}
		}
	}
}

// TestRigUnmounted has somebody unmount resctrl under the agent, and mount it again: the agent says so, and does its work again.
func TestRigUnmounted(t *testing.T) {
	e, _ := realBench(t)
	hog := limited(knob.Share{Pod: "ns/hog", Cgroup: hogGroup, Role: knob.RoleOffline}, 2, 20)
	guest.Start(t, guest.Group(t, hogGroup[1:]), "hog", "-profile", "100,64,900,10")
	e.Apply([]knob.Share{hog}, enforce)
	if err := rdt.Unmount(rdt.DefaultDir); err != nil {
		t.Fatal(err)
	}
	gone := e.Audit()
	if len(gone) == 0 || gone[0].Result != knob.Gone {
		t.Errorf("an audit says %+v", gone)
	}
	if len(e.Held()) != 0 {
		t.Errorf("still held: %+v", e.Held())
	}
	e.Apply([]knob.Share{hog}, enforce)
	if err := rdt.Mount(rdt.DefaultDir, rdt.MountOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if e.Apply([]knob.Share{hog}, enforce); len(e.Held()) > 0 && e.retryAt.IsZero() {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	held := e.Held()
	if len(held) != 1 || held[0].Schemata != "MB:0=20 L3:0=3" {
		t.Errorf("after it is there again: %+v", held)
	}
}

// TestRigBesidePqos has pqos monitor a pod's process. That takes all classes of service for as long as its groups are there, and puts the
// process into a monitoring group of its own: the agent says so, measures the pod's other process, limits nobody, and does all of its
// work once pqos has left and its groups were removed.
func TestRigBesidePqos(t *testing.T) {
	if _, err := exec.LookPath("pqos"); err != nil {
		t.Skip("needs pqos: ", err)
	}
	e, fs := realBench(t)
	if err := os.MkdirAll("/var/lock", 0o755); err != nil { // for its lock file
		t.Fatal(err)
	}
	dir := guest.Group(t, hogGroup[1:])
	watched := guest.Start(t, dir, "hog", "-profile", "100,64,900,10")
	other := guest.Start(t, dir, "hog", "-profile", "100,64,900,10")
	time.Sleep(300 * time.Millisecond) // their threads start
	pqos := exec.Command("pqos", "-I", "-p", "all:"+strconv.Itoa(watched.PID()), "-t", "600")
	if err := pqos.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = pqos.Process.Signal(os.Interrupt) // it then removes its groups
		_ = pqos.Wait()
	})
	defer stop()
	theirs := func() bool {
		groups, err := fs.MonGroups("")
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(groups, func(g string) bool { return !strings.Contains(g, Prefix) })
	}
	for range 100 {
		if theirs() {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !theirs() {
		t.Fatal("pqos has made no group")
	}
	time.Sleep(500 * time.Millisecond) // it moves threads

	hog := limited(knob.Share{Pod: "ns/hog", Cgroup: hogGroup, Role: knob.RoleOffline}, 2, 20)
	refused := false
	for _, o := range e.Apply([]knob.Share{hog}, enforce) {
		refused = refused || o.Result == knob.Refused
	}
	if !refused {
		t.Error("nothing is said about threads that are somebody else's")
	}
	if notes := e.Notes(); len(notes) != 1 || !strings.Contains(notes[0].Text, "no class of service is left for us") {
		t.Errorf("notes %q", notes)
	}
	if len(e.Held()) > 0 {
		t.Errorf("pqos has all classes, and yet we hold %+v", e.Held())
	}
	mon, ok := e.MonitorGroup(hogGroup)
	if !ok {
		t.Fatal("the pod is not monitored")
	}
	left := outside(t, e, fs, hogGroup, mon)
	if !slices.Contains(left, watched.PID()) || slices.Contains(left, other.PID()) {
		t.Errorf("not monitored by us are %v; pqos has %d, and %d is ours", left, watched.PID(), other.PID())
	}
	stop()
	if theirs() {
		t.Fatal("pqos has left its monitoring group behind")
	}
	groups, err := fs.Groups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups { // it leaves its classes behind
		if strings.HasPrefix(g, "COS") {
			if err := fs.Remove(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	group := Prefix + "offline"
	for range 100 { // ids that were freed are in limbo for a second
		e.Audit()
		e.Apply([]knob.Share{hog}, enforce)
		e.Scan()
		if len(e.Held()) > 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	e.Scan()
	if tids := outside(t, e, fs, hogGroup, group); len(tids) > 0 {
		t.Errorf("after pqos has left, threads %v are not in the class", tids)
	}
}
