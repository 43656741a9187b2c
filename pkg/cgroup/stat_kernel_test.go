package cgroup_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

// TestMain starts the load of the kernel tests, which is this binary again.
func TestMain(m *testing.M) {
	work.MaybeRun()
	os.Exit(m.Run())
}

// kernelTree makes groups on the machine's own mounts.
func kernelTree(t testing.TB) (*cgroup.Hierarchy, *groups.Tree) {
	t.Helper()
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skip("needs cgroups:", err)
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-test-%08x", rand.Uint32()))
	if err != nil {
		t.Skip("needs to make groups:", err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(); err != nil {
			t.Error(err)
		}
	})
	return h, tree
}

// TestReadersOnTheKernel runs a spinner under a quota and sees it in every reader, and then sees the group go.
func TestReadersOnTheKernel(t *testing.T) {
	h, tree := kernelTree(t)
	group, err := tree.Make("reader")
	if err != nil {
		t.Fatal(err)
	}
	quota := func() error { return tree.Write(cgroup.CPU, group, "cpu.cfs_quota_us", "20000") }
	if h.V2(cgroup.CPU) {
		quota = func() error { return tree.Write(cgroup.CPU, group, "cpu.max", "20000 100000") }
	}
	if err := quota(); err != nil {
		t.Skip("needs CPU quotas:", err)
	}

	var s cgroup.Scratch
	cpu, err := cgroup.OpenCPU(h, group)
	if err != nil {
		t.Fatal(err)
	}
	defer cpu.Close()
	memory, err := cgroup.OpenMemory(h, group)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	psi, psiErr := cgroup.OpenPSI(h, group)
	defer psi.Close()
	if psiErr != nil && !errors.Is(psiErr, cgroup.ErrUnsupported) && !errors.Is(psiErr, cgroup.ErrGone) {
		t.Fatal(psiErr)
	}
	if h.Mode() == cgroup.Unified && psiErr != nil {
		t.Error("no pressure of a group on cgroup v2:", psiErr)
	}

	load, err := work.Start(work.Spin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	if err := tree.Join(group, load.PID()); err != nil {
		t.Fatal(err)
	}

	var q cgroup.CPUQuota
	if err := cpu.Quota(&s, &q); err != nil || q != (cgroup.CPUQuota{QuotaUS: 20000, PeriodUS: 100000}) {
		t.Errorf("quota = %+v, %v", q, err)
	}
	var st cgroup.CPUStat
	var mem cgroup.MemoryStat
	var pressure cgroup.PSIStat
	eventually(t, "usage, throttling, memory and pressure", func() (bool, string) {
		if err := errors.Join(cpu.Stat(&s, &st), memory.Stat(&s, &mem)); err != nil {
			t.Fatal(err)
		}
		if psiErr == nil {
			if err := psi.Stat(&s, &pressure); err != nil {
				t.Fatal(err)
			}
		}
		done := st.UsageNS > 0 && st.Periods > 0 && st.ThrottledPeriods > 0 && st.ThrottledNS > 0 &&
			(psiErr != nil || pressure.CPU.SomeUS > 0)
		return done, fmt.Sprintf("%+v %+v %+v", st, mem, pressure)
	})
	if st.ThrottledPeriods > st.Periods {
		t.Errorf("throttled in %d of %d periods", st.ThrottledPeriods, st.Periods)
	}

	load.Stop()
	if err := tree.Remove(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"cpu": cpu.Stat(&s, &st), "quota": cpu.Quota(&s, &q), "memory": memory.Stat(&s, &mem),
	} {
		if !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("%s of a removed group: %v, want ErrGone", name, err)
		}
	}
	if psiErr == nil {
		if err := psi.Stat(&s, &pressure); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("pressure of a removed group: %v, want ErrGone", err)
		}
	}
}

func TestNodePressureOnTheKernel(t *testing.T) {
	r, err := cgroup.OpenNodePSI("/proc")
	if errors.Is(err, cgroup.ErrUnsupported) {
		t.Skip("needs PSI:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var s cgroup.Scratch
	var first, second cgroup.PSIStat
	if err := errors.Join(r.Stat(&s, &first), r.Stat(&s, &second)); err != nil {
		t.Fatal(err)
	}
	if second.CPU.SomeUS < first.CPU.SomeUS || second.Memory.SomeUS < first.Memory.SomeUS || second.IO.SomeUS < first.IO.SomeUS {
		t.Errorf("totals fell from %+v to %+v", first, second)
	}
}

func BenchmarkReadersOnTheKernel(b *testing.B) {
	h, tree := kernelTree(b)
	group, err := tree.Make("bench")
	if err != nil {
		b.Fatal(err)
	}
	cpu, err := cgroup.OpenCPU(h, group)
	if err != nil {
		b.Fatal(err)
	}
	defer cpu.Close()
	memory, err := cgroup.OpenMemory(h, group)
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	psi, err := cgroup.OpenNodePSI("/proc")
	if err != nil {
		b.Fatal(err)
	}
	defer psi.Close()
	var s cgroup.Scratch
	for name, read := range map[string]func() error{
		"cpu":     func() error { return cpu.Stat(&s, new(cgroup.CPUStat)) },
		"quota":   func() error { return cpu.Quota(&s, new(cgroup.CPUQuota)) },
		"memory":  func() error { return memory.Stat(&s, new(cgroup.MemoryStat)) },
		"nodePSI": func() error { return psi.Stat(&s, new(cgroup.PSIStat)) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// eventually waits for the kernel to have done something; the time is generous because virtual machines are slow.
func eventually(t *testing.T, what string, done func() (ok bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ok, state := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %s", what, state)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
