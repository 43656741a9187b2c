package perf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// stage is a new group of the perf_event hierarchy (or of cgroup v2) below which a test makes its own.
func stage(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make groups and to count for them")
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	dir, ok := h.Dir(cgroup.PerfEvent, fmt.Sprintf("/qos-agent-perf-%d", os.Getpid()))
	if !ok {
		t.Skip("needs perf_event: the controller is not mounted")
	}
	makeGroup(t, dir)
	return dir
}

func makeGroup(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
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
func busy(t *testing.T, group string, d time.Duration) {
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
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
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
	top := stage(t)
	p := NewPool(Options{CPUs: cpus(t), Events: software()})
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	open := func(dir string) *Group {
		g, err := p.Open(dir)
		if errors.Is(err, ErrDenied) {
			t.Skipf("needs leave to count: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	podDir := makeGroup(t, filepath.Join(top, "pod"))
	group := makeGroup(t, filepath.Join(podDir, "main"))
	pod, own, idle := open(podDir), open(group), open(makeGroup(t, filepath.Join(top, "other")))
	const burn = 300 * time.Millisecond
	busy(t, group, burn)

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
	if err := os.Remove(group); err != nil {
		t.Fatal(err)
	}
	if err := own.Read(&c); err != nil || c != before {
		t.Errorf("after the group is gone: %+v, %v; before %+v", c, err, before)
	}
}

// TestHardwareEvents counts in hardware where there is some.
func TestHardwareEvents(t *testing.T) {
	dir := stage(t)
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
	group := makeGroup(t, filepath.Join(dir, "pod"))
	busy(t, group, 300*time.Millisecond)
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

// BenchmarkRead is a reading of an idle group and of one that runs on another CPU, with software events: on that CPU the kernel has to
// interrupt either kind.
func BenchmarkRead(b *testing.B) {
	for _, name := range []string{"idle", "busy"} {
		b.Run(name, func(b *testing.B) {
			h, err := cgroup.Detect("/sys/fs/cgroup")
			if err != nil || os.Geteuid() != 0 {
				b.Skipf("needs root: to make groups and to count for them (%v)", err)
			}
			dir, ok := h.Dir(cgroup.PerfEvent, fmt.Sprintf("/qos-agent-perf-%d", os.Getpid()))
			if !ok {
				b.Skip("needs perf_event: the controller is not mounted")
			}
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			defer os.Remove(dir)
			p := NewPool(Options{CPUs: []int{0}, Events: software()})
			defer p.Close()
			g, err := p.Open(dir)
			if err != nil {
				b.Fatal(err)
			}
			if name == "busy" {
				cmd := exec.Command(os.Args[0], "-test.run=^TestBurnHelper$")
				cmd.Env = append(os.Environ(), "PERF_BURN=1h")
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				defer func() {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
					time.Sleep(50 * time.Millisecond)
				}()
				if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
					b.Fatal(err)
				}
			}
			var c Counts
			b.ReportAllocs()
			for b.Loop() {
				if err := g.Read(&c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
