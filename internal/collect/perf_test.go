package collect

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// fullPool has no descriptors, and room for so many groups in its plans.
type fullPool struct{ capacity int }

func (p fullPool) Capacity() int                  { return p.capacity }
func (fullPool) FDs() int                         { return 0 }
func (fullPool) SetCPUs([]int) error              { return nil }
func (fullPool) Open(string) (*perf.Group, error) { return nil, perf.ErrFull }

// TestOnlineIsCountedFirstThenTheLargest: with too few descriptors, online containers have them and then those that use the most CPU.
func TestOnlineIsCountedFirstThenTheLargest(t *testing.T) {
	w := newWorld(t, "v2", 0, func(o *Options) { o.Counters = fullPool{3} })
	var pods []signal.Pod
	for i := range 5 {
		name := fmt.Sprintf("p%d", i)
		w.group("/pods/"+name+"/main", use{})
		pods = append(pods, podOf(name, "main"))
	}
	w.c.SetPods(pods, online("p4"))
	w.settle()
	use_ := []time.Duration{1, 9, 3, 5, 0} // p1 and p3 are the largest
	for step := range 80 {
		for i, u := range use_ {
			w.group(fmt.Sprintf("/pods/p%d/main", i), use{cpu: time.Duration(step+1) * u * 10 * time.Millisecond})
		}
		w.tick(100 * time.Millisecond)
	}
	counted := func() (out []string) {
		for _, ct := range w.c.list {
			if ct.perf.want {
				out = append(out, ct.key.pod.Name)
			}
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff([]string{"p1", "p3", "p4"}, counted()); diff != "" {
		t.Error(diff)
	}
	if n := w.c.View().Uncounted; n != 2 {
		t.Errorf("%d containers are not counted, want 2", n)
	}
}

func TestPerfSample(t *testing.T) {
	before := perf.Counts{Cycles: 100, Instructions: 50, LLCRefs: 10, LLCMisses: 5, Enabled: 1000, Running: 1000}
	now := perf.Counts{Cycles: 300, Instructions: 150, LLCRefs: 30, LLCMisses: 6, Enabled: 3000, Running: 1800}
	got := perfSample(5*time.Second, 4*time.Second, &now, &before)
	want := signal.PerfSample{At: 5 * time.Second, Span: time.Second, Cycles: 200, Instructions: 100, LLCRefs: 20, LLCMisses: 1, BusyNS: 2000, RunningPercent: 40}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if idle := perfSample(2, 1, &now, &now); idle.RunningPercent != 100 || idle.Cycles != 0 {
		t.Errorf("a container that did not run: %+v", idle)
	}
}

// TestReadingsGetRarerOnLargeNodes: however many CPUs and containers, readings take a fiftieth of a CPU at most.
func TestReadingsGetRarerOnLargeNodes(t *testing.T) {
	w := newWorld(t, "v2", 0, func(o *Options) { o.Counters = fullPool{1000} })
	w.c.perf.counted, w.c.perf.cpus = 10, make([]int, 4)
	if every := w.c.perfEvery(true); every > 10*time.Millisecond {
		t.Errorf("10 containers on 4 CPUs: every %v, want each tick", every)
	}
	w.c.perf.counted, w.c.perf.cpus = 150, make([]int, 64)
	for _, victim := range []bool{true, false} {
		if every := w.c.perfEvery(victim); every != 720*time.Millisecond {
			t.Errorf("150 containers on 64 CPUs: every %v, want 720ms", every)
		}
	}
}
