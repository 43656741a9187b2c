package actuate

import (
	"errors"
	"fmt"
	"os"
	"path"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestKernel(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, newBench(t, cgrouptest.NewReal(t))) })
	}
}

func TestKernelCrash(t *testing.T) {
	w := cgrouptest.NewReal(t)
	testCrash(t, w, "real "+w.Base())
}

// The kernel's files are read by the audit without allocation; the fake's are not.
func TestKernelAuditIsFree(t *testing.T) {
	b := newBench(t, cgrouptest.NewReal(t))
	b.mkdir("pod")
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0))}, b.policy)
	if got := testing.AllocsPerRun(100, func() { b.e.Audit() }); got > 0 {
		t.Errorf("an audit without findings allocates %v times", got)
	}
	b.e.RestoreAll()
}

// Pods come and go under the executor's hands: that is no failure, nothing of it stays open, and the others are restored.
func TestKernelChurn(t *testing.T) {
	b := newBench(t, cgrouptest.NewReal(t))
	b.mkdir("stays", "stays/a")
	before := cgrouptest.Snapshot(b.w)
	openBefore := openFiles(t)

	const pods = 20
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- churn(b.w, pods, stop) }()
	counts := make(results)
	deadline := time.Now().Add(2 * time.Second)
	for round := 0; time.Now().Before(deadline); round++ {
		plan := []knob.Want{b.want("stays", knob.CPUSet, cpus(round%2)), b.want("stays", knob.CPUIdle, n(1))}
		for i := range pods {
			pod := fmt.Sprintf("pod%d", i)
			plan = append(plan, b.want(pod, knob.CPUIdle, n(1)), b.want(pod, knob.CPUSet, cpus((round+i)%2)), b.want(pod, knob.CPUQuota, quota(20000, 100000)))
		}
		b.now = b.now.Add(2 * time.Second)
		for _, out := range [][]knob.Outcome{b.e.Apply(plan, b.policy), b.e.Audit()} {
			for _, o := range out {
				counts[o.Result]++
				// A runtime that copies its parent's CPUs while we narrow them may be in the way for longer than we try.
				if o.Err != nil && !errors.Is(o.Err, unix.EBUSY) && !errors.Is(o.Err, unix.EACCES) {
					t.Errorf("%s %s: %v: %v", o.Cgroup, o.Kind, o.Result, o.Err)
				}
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("outcomes: %v", counts)
	for i := range pods {
		b.rmdir(fmt.Sprintf("pod%d", i))
	}
	b.e.RestoreAll()
	b.unchanged(before)
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
	if now := openFiles(t); now > openBefore {
		t.Errorf("%d files open, %d before", now, openBefore)
	}
}

// churn makes and removes pods with two containers each, in turn, until it is stopped.
func churn(w cgrouptest.World, pods int, stop <-chan struct{}) error {
	for i := 0; ; i = (i + 1) % pods {
		select {
		case <-stop:
			return nil
		default:
		}
		pod := path.Join(w.Base(), fmt.Sprintf("pod%d", i))
		if err := cgrouptest.RemoveAll(w, pod); err != nil {
			return err
		}
		for _, g := range []string{pod, pod + "/a", pod + "/b"} {
			// The runtime's own copy may come too late, and then it is refused.
			if err := cgrouptest.Populate(w, g); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// What a cut of a pod with three containers costs that is held already: the event path.
func BenchmarkKernelCut(b *testing.B) {
	w := cgrouptest.NewReal(b)
	for _, g := range []string{"/pod", "/pod/a", "/pod/b", "/pod/c"} {
		if err := cgrouptest.Populate(w, w.Base()+g); err != nil {
			b.Fatal(err)
		}
	}
	e, err := Open(Options{Hierarchy: w.Hierarchy(), RunDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	defer e.RestoreAll()
	plan := []knob.Want{{Target: knob.Target{Cgroup: w.Base() + "/pod", Kind: knob.CPUSet}, Owner: "cpu"}}
	for i := 0; b.Loop(); i++ {
		plan[0].Value = cpus(i % 2)
		for _, o := range e.Apply(plan, Policy{}) {
			if o.Err != nil {
				b.Fatal(o.Err)
			}
		}
	}
}
