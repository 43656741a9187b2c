package perf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/groups"
)

// stage is a control group below which tests make theirs, and the online CPUs.
func stage(t *testing.T) (*cgroup.Hierarchy, *groups.Tree) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make groups and to count for them")
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-perf-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(); err != nil {
			t.Error(err)
		}
	})
	return h, tree
}

func cpus(t *testing.T) []int {
	t.Helper()
	var out []int
	for cpu := range 1024 {
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology", cpu)); err == nil {
			out = append(out, cpu)
		}
	}
	if len(out) == 0 {
		t.Skip("needs sysfs: no CPUs listed")
	}
	return out
}

// busy burns CPU inside a group for a while.
func busy(t *testing.T, tree *groups.Tree, group string, d time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestBurnHelper$")
	cmd.Env = append(os.Environ(), "PERF_BURN="+d.String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if err := tree.Join(group, cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	_ = in.Close() // go
}

// TestBurnHelper is the program that busy runs.
func TestBurnHelper(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv("PERF_BURN"))
	if err != nil {
		return
	}
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// TestSoftwareEventsShowThePlumbing counts with events that need no PMU: that a group's tasks are counted, those of groups below it too,
// that others are not, and that a group that is gone can still be read.
func TestSoftwareEventsShowThePlumbing(t *testing.T) {
	h, tree := stage(t)
	p := NewPool(Options{CPUs: cpus(t), Events: software()})
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	group, err := tree.Make("pod/main")
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string) *Group {
		dir, ok := h.Dir(cgroup.PerfEvent, name)
		if !ok {
			t.Skip("needs perf_event: the controller is not mounted")
		}
		g, err := p.Open(dir)
		if errors.Is(err, ErrDenied) {
			t.Skipf("needs leave to count: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	other, err := tree.Make("other")
	if err != nil {
		t.Fatal(err)
	}
	pod, own, idle := open(tree.Path("pod")), open(group), open(other)
	const burn = 300 * time.Millisecond
	busy(t, tree, group, burn)

	var c Counts
	for name, g := range map[string]*Group{"the group": own, "the group above": pod} {
		if err := g.Read(&c); err != nil {
			t.Fatal(err)
		}
		// Instructions stands for task-clock, ns. A machine that is busy with others gives the program less than it asks for.
		if clock := time.Duration(c.Instructions); clock < burn/20 || clock > 2*burn {
			t.Errorf("%s: task-clock %v of a program that burns for %v", name, clock, burn)
		}
		if c.Running == 0 || c.Running > c.Enabled {
			t.Errorf("%s: running %v of %v", name, c.Running, c.Enabled)
		}
	}
	if err := idle.Read(&c); err != nil {
		t.Fatal(err)
	}
	if c.Instructions != 0 {
		t.Errorf("a group without tasks has counted %d", c.Instructions)
	}
	before := c
	if err := own.Read(&before); err != nil {
		t.Fatal(err)
	}
	if err := tree.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := own.Read(&c); err != nil || c != before {
		t.Errorf("after the group is gone: %+v, %v; before %+v", c, err, before)
	}
}

// TestHardwareEvents counts in hardware where there is some.
func TestHardwareEvents(t *testing.T) {
	h, tree := stage(t)
	dir, ok := h.Dir(cgroup.PerfEvent, tree.Path())
	if !ok {
		t.Skip("needs perf_event: the controller is not mounted")
	}
	if err := Probe(dir, cpus(t)[0]); err != nil {
		if !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
		t.Skipf("needs pmu: %v", err)
	}
	p := NewPool(Options{CPUs: cpus(t)})
	g, err := p.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	group, err := tree.Make("pod")
	if err != nil {
		t.Fatal(err)
	}
	busy(t, tree, group, 300*time.Millisecond)
	var c Counts
	if err := g.Read(&c); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v: CPI %.2f", c, float64(c.Cycles)/float64(c.Instructions))
	if c.Cycles == 0 || c.Instructions == 0 || c.Running == 0 {
		t.Errorf("a busy group counted %+v", c)
	}
	if c.LLCMisses > c.Instructions {
		t.Errorf("more misses than instructions: %+v", c)
	}
}
