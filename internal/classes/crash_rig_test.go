//go:build amd64

package classes

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/crash"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// envRunDir is where the process that gets killed keeps its journal.
const envRunDir = "CLASSES_CRASH_RUN_DIR"

func TestMain(m *testing.M) { crash.Main(m, victim) }

// Groups of the three pods.
const (
	webGroup  = "/qos-agent-test/web"
	hogGroup  = "/qos-agent-test/hog"
	goodGroup = "/qos-agent-test/good"
)

func realOptions(runDir string) (Options, error) {
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		return Options{}, err
	}
	return Options{RunDir: runDir, Threads: h.Threads, MayMount: true}, nil
}

// plans are the stages of an agent's life.
func plans() [][]knob.Share {
	web := knob.Share{Pod: "ns/web", Cgroup: webGroup, Role: knob.RoleOnline}
	hog := knob.Share{Pod: "ns/hog", Cgroup: hogGroup, Role: knob.RoleOffline}
	good := knob.Share{Pod: "ns/good", Cgroup: goodGroup, Role: knob.RoleOffline}
	own := web
	own.Own, own.Ways = true, knob.Part{N: 4, Owner: "cache", Rule: "own"}
	return [][]knob.Share{
		{web, hog, good}, {web, limited(hog, 2, 0), good}, {own, limited(hog, 1, 20), good}, {web, hog}, {own, good}, {web, limited(good, 3, 0)},
	}
}

// victim is the agent that gets killed: it carries out plan after plan.
func victim(hook func(string), round func()) error {
	o, err := realOptions(os.Getenv(envRunDir))
	if err != nil {
		return err
	}
	o.crash = hook
	for {
		e, err := Open(o)
		if err != nil {
			return err
		}
		for _, shares := range plans() {
			for _, out := range e.Apply(shares, Policy{Enforce: true, Cache: policy.CacheControl{FloorWays: 1}, FloorPercent: 10}) {
				// 6.12 gives a freed id out again only after a second. A thread is in a group of somebody else.
				if out.Err != nil && !errors.Is(out.Err, rdt.ErrLimbo) && out.Result != knob.Refused {
					return out.Err
				}
			}
			e.Audit()
			e.Scan()
		}
		e.RestoreAll()
		if err := e.Close(); err != nil {
			return err
		}
		round()
	}
}

// tree is every file of resctrl but those that change by themselves: counters, and the kernel's word about the last request. Threads
// are there if they are among ours.
func tree(t *testing.T, root string, tids []int) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		switch {
		case d.IsDir():
			out[rel+"/"] = ""
			return nil
		case strings.Contains(rel, "mon_data/") || rel == "info/last_cmd_status":
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			text = []byte(err.Error()) // some cannot be read in every mode
		}
		if filepath.Base(name) == "tasks" {
			var mine []string
			for line := range bytes.Lines(text) {
				if tid, err := strconv.Atoi(strings.TrimSpace(string(line))); err == nil && slices.Contains(tids, tid) {
					mine = append(mine, strconv.Itoa(tid))
				}
			}
			slices.Sort(mine)
			text = []byte(strings.Join(mine, " "))
		}
		out[rel] = string(text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRigCrash kills an agent at every point of its life, and at random instants, on the real resctrl. Each time a restore, or the
// next agent, leaves every file as it was.
func TestRigCrash(t *testing.T) {
	root := guest.Mount(t)
	var tids []int
	for _, group := range []string{webGroup, hogGroup, goodGroup} {
		dir := guest.Group(t, group[1:])
		for range 2 {
			tids = append(tids, guest.Start(t, dir, "hog", "-profile", "100,64,900,10").PID())
		}
	}
	// A group of somebody else, with a thread in it.
	if err := os.Mkdir(filepath.Join(root, "theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"schemata": "L3:0=600\nMB:0=70\n", "tasks": strconv.Itoa(tids[1]) + "\n"} {
		if err := os.WriteFile(filepath.Join(root, "theirs", name), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, root, tids)
	runDir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(runDir, 0o755); err != nil {
		t.Fatal(err)
	}
	o, err := realOptions(runDir)
	if err != nil {
		t.Fatal(err)
	}
	restore := func(after string) {
		t.Helper()
		sum, err := Restore(o)
		if err != nil || len(sum.Failed) > 0 {
			t.Fatalf("killed %s: restore: %+v, %v", after, sum, err)
		}
		if diff := cmp.Diff(before, tree(t, root, tids)); diff != "" {
			t.Fatalf("killed %s: tree (-before +after):\n%s", after, diff)
		}
	}
	c := crash.Test{
		Env: []string{envRunDir + "=" + runDir}, Step: 1, Least: 20, Random: 10, Within: 400 * time.Millisecond, Restore: restore,
	}
	c.Run(t)
}

// TestRigMounts has the agent mount resctrl, be killed, and restore unmount it.
func TestRigMounts(t *testing.T) {
	guest.Require(t)
	dir := guest.Group(t, hogGroup[1:])
	guest.Start(t, dir, "hog", "-profile", "100,64,900,10")
	runDir := t.TempDir()
	for _, point := range []int{1, 2, 3, 4, 8} {
		if out, err := crash.Command(point, envRunDir+"="+runDir).CombinedOutput(); !crash.Killed(err) {
			t.Fatalf("victim at point %d: %v: %s", point, err, out)
		}
		o, err := realOptions(runDir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(o); err != nil {
			t.Fatal(err)
		}
		if options, on, err := rdt.Mounted("/proc", rdt.DefaultDir); on || err != nil {
			t.Fatalf("killed at point %d, restored, and still mounted (%s), %v", point, options, err)
		}
	}
	o, err := realOptions(runDir)
	if err != nil {
		t.Fatal(err)
	}
	o.MayMount = false
	if _, err := Open(o); !errors.Is(err, rdt.ErrNotMounted) {
		t.Errorf("without leave to mount: %v", err)
	}
	o.MayMount = true
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	// Others make a group meanwhile: it must survive us.
	theirs := filepath.Join(guest.Resctrl, "theirs")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	e.RestoreAll()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("a group of others is gone with our mount: %v", err)
	}
	if err := unix.Unmount(guest.Resctrl, 0); err != nil {
		t.Error(err)
	}
}
