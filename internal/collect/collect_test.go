package collect

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// settle ticks until everything has been read at least twice, and slots that were freed have rested.
func (w *world) settle() *signal.Snapshot {
	var s *signal.Snapshot
	for range slotRest/tick + 5 {
		s = w.tick(tick)
	}
	return s
}

func TestFileSignals(t *testing.T) {
	for _, layout := range []string{"v1", "v2"} {
		t.Run(layout, func(t *testing.T) {
			w := newWorld(t, layout, 16)
			w.group("/pods/web", use{})
			w.group("/pods/web/main", use{cpu: time.Second, memory: 1000, inactive: 300, cpus: "0-1"})
			w.c.SetPods([]signal.Pod{podOf("web", "main")}, online("web"))

			before := *w.settle()
			from := before.Containers[0].CPU.At
			w.group("/pods/web/main", use{cpu: 3 * time.Second, memory: 5000, inactive: 6000, stalled: time.Millisecond, cpus: "1"})
			w.node(30, 2)
			cpu := from
			var usage uint64
			var s *signal.Snapshot
			for range 60 {
				s = w.tick(tick)
				if at := s.Containers[0].CPU.At; at != cpu {
					cpu = at
					usage += s.Containers[0].CPU.UsageNS
					if s.Containers[0].CPU.Span != at-from {
						t.Errorf("span %v, but the reading before was %v ago", s.Containers[0].CPU.Span, at-from)
					}
					from = at
				}
				if psi := s.Containers[0].PSI; w.v2 && psi.IO.SomeUS != 0 && (psi.Span != time.Second || psi.CPU.SomeUS != 1000 || psi.IO.FullUS != 0) {
					t.Errorf("pressure = %+v", psi)
				}
			}
			got := s.Containers[0]
			if usage != 2e9 {
				t.Errorf("usage adds up to %d ns, want 2 s", usage)
			}
			if got.CPU.Span != 500*time.Millisecond || s.Now-got.CPU.At >= 500*time.Millisecond {
				t.Errorf("CPU read at %v over %v, now is %v", got.CPU.At, got.CPU.Span, s.Now)
			}
			if got.CPU.QuotaUS != -1 {
				t.Errorf("quota %d, want none", got.CPU.QuotaUS)
			}
			if got.Memory.Current != 5000 || got.Memory.WorkingSet != 0 || s.Now-got.Memory.At >= 5*time.Second {
				t.Errorf("memory = %+v at %v", got.Memory, s.Now)
			}
			if has := got.PSI.At != 0; has != w.v2 {
				t.Errorf("pressure was read: %v", has)
			}
			if got.CPUs != cpuset.Of(1) {
				t.Errorf("CPUs = %v", got.CPUs)
			}
			if s.Elapsed != tick || s.Trigger != signal.Tick || s.Seq != before.Seq+60 || !s.Node.Caps.RunQueue {
				t.Errorf("snapshot = %+v", s)
			}
			if len(s.Node.Topology.CPUs) != 2 {
				t.Errorf("%d CPUs, want 2", len(s.Node.Topology.CPUs))
			}
			if s.Node.CPU.Span != time.Second || s.Node.PSI.Span != time.Second {
				t.Errorf("node = %+v", s.Node)
			}
		})
	}
}

func TestNodeCPU(t *testing.T) {
	w := newWorld(t, "v2", 0)
	if s := w.tick(tick); s.Node.CPU.At != 0 || s.Elapsed != 0 {
		t.Errorf("first tick: %+v, elapsed %v", s.Node.CPU, s.Elapsed)
	}
	w.node(30, 2)
	s := w.tick(time.Second)
	want := signal.NodeCPUSample{At: s.Now, Span: 1100 * time.Millisecond, BusyNS: 320e6, StealNS: 20e6}
	if diff := cmp.Diff(want, s.Node.CPU); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	w.write(filepath.Join(w.proc, "stat"), "garbage\n")
	w.write(filepath.Join(w.sys, "devices/system/cpu/online"), "0-3\n")
	s = w.tick(time.Second)
	if s.Node.CPU != want {
		t.Errorf("after garbage: %+v, want the old sample", s.Node.CPU)
	}
	if len(s.Node.Topology.CPUs) != 4 {
		t.Errorf("%d CPUs after two have come", len(s.Node.Topology.CPUs))
	}
	if n := w.c.View().ReadErrors["node"]; n != 1 {
		t.Errorf("%d read errors, want 1", n)
	}
}

func TestThrottling(t *testing.T) {
	for _, layout := range []string{"v1", "v2"} {
		t.Run(layout, func(t *testing.T) {
			w := newWorld(t, layout, 16)
			w.group("/pods/web", use{quota: 150 * time.Millisecond})
			w.group("/pods/web/main", use{quota: 200 * time.Millisecond})
			w.group("/pods/web/side", use{})
			w.group("/pods/batch", use{quota: 50 * time.Millisecond})
			w.group("/pods/batch/job", use{})
			pods := []signal.Pod{podOf("batch", "job"), podOf("web", "main", "side")}
			w.c.SetPods(pods, online("web"))
			s := w.settle()
			for i, want := range []int64{50000, 150000, 150000} {
				if got := s.Containers[i].CPU; got.QuotaUS != want || got.PeriodUS != 100000 {
					t.Errorf("container %d: quota %d per %d, want %d", i, got.QuotaUS, got.PeriodUS, want)
				}
			}

			// The pod is throttled more often than its container.
			w.group("/pods/web", use{quota: 150 * time.Millisecond, periods: 10, throttled: 7, throttledFor: 3 * time.Millisecond})
			w.group("/pods/web/main", use{quota: 200 * time.Millisecond, periods: 9, throttled: 2, throttledFor: time.Millisecond})
			s = w.tick(tick)
			want := signal.CPUSample{
				At: s.Now, Span: tick, Periods: 10, ThrottledPeriods: 7, ThrottledNS: 3e6, QuotaUS: 150000, PeriodUS: 100000,
			}
			for i := 1; i <= 2; i++ {
				if diff := cmp.Diff(want, s.Containers[i].CPU); diff != "" {
					t.Errorf("container %d: -want +got:\n%s", i, diff)
				}
			}
			// The container alone.
			w.group("/pods/web/main", use{quota: 200 * time.Millisecond, periods: 19, throttled: 5, throttledFor: 2 * time.Millisecond})
			s = w.tick(tick)
			if got := s.Containers[1].CPU; got.Periods != 10 || got.ThrottledPeriods != 3 || got.ThrottledNS != 1e6 || got.Span != tick {
				t.Errorf("CPU = %+v", got)
			}
			if got := s.Containers[2].CPU; got.ThrottledPeriods != 0 || got.At != s.Now {
				t.Errorf("CPU of the other container = %+v", got)
			}
			// An offline container is read seldom whatever its quota.
			if span := s.Containers[0].CPU.Span; span != 500*time.Millisecond {
				t.Errorf("offline container read over %v", span)
			}
			// A quota that is lifted shows, and ends the frequent readings.
			w.group("/pods/web", use{})
			w.group("/pods/web/main", use{})
			s = w.settle()
			if got := s.Containers[1].CPU; got.QuotaUS != -1 || got.Span != 500*time.Millisecond {
				t.Errorf("without a quota: %+v", got)
			}
		})
	}
}

// Nothing is decided by the pressure of who is not online, so it is read more seldom. Who becomes online is read at once.
func TestBystandersAreReadSeldom(t *testing.T) {
	w := newWorld(t, "v2", 16)
	for _, name := range []string{"batch", "web"} {
		w.group("/pods/"+name+"/x", use{})
	}
	pods := []signal.Pod{podOf("batch", "x"), podOf("web", "x")}
	w.c.SetPods(pods, online("web"))
	w.settle()
	var reads [2]int
	var at [2]time.Duration
	for range 100 {
		s := w.tick(tick)
		for i := range reads {
			if now := s.Containers[i].PSI.At; now != at[i] {
				reads[i], at[i] = reads[i]+1, now
			}
		}
	}
	if reads[0] < 2 || reads[0] > 3 || reads[1] < 10 || reads[1] > 11 {
		t.Errorf("in 10 s pressure was read %d times of the offline and %d times of the online container", reads[0], reads[1])
	}
	w.c.SetPods(pods, online("web", "batch"))
	if s := w.tick(tick); s.Containers[0].PSI.At != s.Now {
		t.Errorf("pressure of a container that has become online is %v old", s.Now-s.Containers[0].PSI.At)
	}
}

func TestReadingsAreSpread(t *testing.T) {
	w := newWorld(t, "v2", 0)
	const n = 100
	var pods []signal.Pod
	for i := range n {
		p := podOf(fmt.Sprintf("p%03d", i), "c")
		w.group(p.Containers[0].Cgroup, use{})
		pods = append(pods, p)
	}
	w.c.SetPods(pods, online())
	w.settle()
	for range 20 {
		s := w.tick(tick)
		var cpu, memory int
		for i := range s.Containers {
			if s.Containers[i].CPU.At == s.Now {
				cpu++
			}
			if s.Containers[i].Memory.At == s.Now {
				memory++
			}
		}
		if cpu < n/5-5 || cpu > n/5+5 || memory < n/50-2 || memory > n/50+2 {
			t.Errorf("at %v %d containers' CPU and %d containers' memory were read, want about %d and %d", s.Now, cpu, memory, n/5, n/50)
		}
	}
}

func TestWaitsAndBlame(t *testing.T) {
	w := newWorld(t, "v2", 16)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x", "y"), podOf("c", "x")}
	for _, p := range pods {
		for _, c := range p.Containers {
			w.group(c.Cgroup, use{})
		}
	}
	w.c.SetPods(pods, online("b"))
	s := w.tick(tick)
	if s.Containers[0].Wait.At != s.Now || s.Containers[0].Wait.Span != tick || s.Containers[0].Wait.Count != 0 {
		t.Errorf("first sample = %+v", s.Containers[0].Wait)
	}

	victim, other, sibling := w.id("/pods/b/x"), w.id("/pods/c/x"), w.id("/pods/b/y")
	w.tracer.dispatch(victim, 3*time.Millisecond, w.tracer.slotOf(other))
	w.tracer.dispatch(victim, 2*time.Microsecond, w.tracer.slotOf(victim))
	w.tracer.dispatch(victim, 3*time.Millisecond, w.tracer.slotOf(w.id("/pods/a/x")))
	w.tracer.dispatch(victim, time.Millisecond, w.tracer.slotOf(sibling))
	for slot := ebpf.SlotUnknown; slot <= ebpf.SlotQuota; slot++ {
		w.tracer.dispatch(victim, 10*time.Microsecond, slot)
	}
	w.tracer.dispatch(other, time.Second, ebpf.SlotKernel)
	s = w.tick(tick)
	us := uint64(1000)
	want := signal.WaitSample{
		At: s.Now, Span: tick, Count: 10, SumNS: 7062 * us, Preempted: 10,
		Buckets: []signal.Bucket{
			{Index: uint16(histogram.Index(2000)), Count: 1}, {Index: uint16(histogram.Index(10000)), Count: 6},
			{Index: uint16(histogram.Index(1e6)), Count: 1}, {Index: uint16(histogram.Index(3e6)), Count: 2},
		},
		Blame: []signal.Blame{
			{Culprit: signal.CulpritQuota, NS: 10 * us}, {Culprit: signal.CulpritIdle, NS: 10 * us}, {Culprit: signal.CulpritSystem, NS: 10 * us},
			{Culprit: signal.CulpritIRQ, NS: 10 * us}, {Culprit: signal.CulpritKernel, NS: 10 * us}, {Culprit: signal.CulpritUnknown, NS: 10 * us},
			{Culprit: 0, NS: 3000 * us}, {Culprit: 1, NS: 2 * us}, {Culprit: 2, NS: 1000 * us}, {Culprit: 3, NS: 3000 * us},
		},
	}
	if diff := cmp.Diff(want, s.Containers[1].Wait); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// Others are read some ticks later: by their waits nothing is decided.
	read := s.Containers[3].Wait
	for n := 0; read.Count == 0 && n < 5; n++ {
		if read.At == 0 || read.At == s.Now || read.Span != 0 || len(read.Buckets) > 0 {
			t.Errorf("waits of a container that was not read = %+v", read)
		}
		s = w.tick(tick)
		read = s.Containers[3].Wait
	}
	if read.Count != 1 || read.SumNS != 1e9 || read.Blame != nil || read.Span < tick {
		t.Errorf("waits of a container that is no victim = %+v", read)
	}
	if s = w.tick(tick); s.Containers[1].Wait.Count != 0 || s.Containers[1].Wait.Blame != nil && len(s.Containers[1].Wait.Blame) != 0 {
		t.Errorf("a tick later: %+v", s.Containers[1].Wait)
	}

	// Two culprits end; the victim's next wait still names their slots.
	slots := []ebpf.Slot{w.tracer.slotOf(other), w.tracer.slotOf(w.id("/pods/a/x"))}
	w.c.SetPods(pods[1:2], online("b"))
	for _, slot := range slots {
		w.tracer.dispatch(victim, time.Millisecond, slot)
	}
	s = w.tick(tick)
	if diff := cmp.Diff([]signal.Blame{{Culprit: signal.CulpritGone, NS: 2e6}}, s.Containers[0].Wait.Blame); diff != "" {
		t.Errorf("blame on what is gone: -want +got:\n%s", diff)
	}
}

func TestSnapshotOutlivesTheNextTick(t *testing.T) {
	w := newWorld(t, "v2", 16)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x")}
	for _, p := range pods {
		w.group(p.Containers[0].Cgroup, use{})
	}
	w.c.SetPods(pods, online("a", "b"))
	a, b := w.id("/pods/a/x"), w.id("/pods/b/x")
	var last *signal.Snapshot
	var copied signal.Snapshot
	for i := range 30 {
		for j := range i % 5 {
			w.tracer.dispatch(a, time.Duration(i*j)*time.Microsecond, w.tracer.slotOf(b))
			w.tracer.dispatch(b, time.Duration(i+j)*time.Millisecond, w.tracer.slotOf(a))
			w.c.AddEvent(&ebpf.Event{Victim: w.tracer.slotOf(a), WaitNS: uint64(i*100 + j)})
		}
		if i == 20 {
			w.c.SetPods(pods[:1], online("a"))
		}
		var s *signal.Snapshot
		if i%7 == 6 {
			s = w.c.Event()
		} else {
			s = w.tick(tick)
		}
		if last != nil {
			if diff := cmp.Diff(copied, *last); diff != "" {
				t.Fatalf("step %d changed the snapshot before it:\n%s", i, diff)
			}
		}
		last, copied = s, deepCopy(s)
	}
}

// deepCopy copies all that a snapshot could share with the collector.
func deepCopy(s *signal.Snapshot) signal.Snapshot {
	c := *s
	c.Containers = append([]signal.ContainerSample(nil), s.Containers...)
	for i := range c.Containers {
		w := &c.Containers[i].Wait
		w.Buckets = append([]signal.Bucket(nil), w.Buckets...)
		w.Blame = append([]signal.Blame(nil), w.Blame...)
		if len(s.Containers[i].Wait.Buckets) == 0 {
			w.Buckets = s.Containers[i].Wait.Buckets
		}
		if len(s.Containers[i].Wait.Blame) == 0 {
			w.Blame = s.Containers[i].Wait.Blame
		}
	}
	if len(s.Events) > 0 {
		c.Events = append([]signal.WaitEvent(nil), s.Events...)
	}
	return c
}

func TestEvents(t *testing.T) {
	w := newWorld(t, "v2", 16)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x")}
	for _, p := range pods {
		w.group(p.Containers[0].Cgroup, use{})
	}
	if s := w.c.Event(); len(s.Containers) != 0 || s.Trigger != signal.Event || s.Seq != 1 {
		t.Errorf("before the first tick: %+v", s)
	}
	w.c.SetPods(pods[1:], online("b"))
	b := w.tracer.slotOf(w.id("/pods/b/x"))
	tickSnap := w.tick(tick)
	w.tracer.dispatch(w.id("/pods/b/x"), time.Millisecond, ebpf.SlotKernel)
	tickSnap = w.tick(tick)

	w.clock.Step(time.Millisecond)
	w.c.AddEvent(&ebpf.Event{At: 5, Victim: b, PID: 7, CPU: 1, WaitNS: 9, Culprit: ebpf.SlotKernel, PartNS: 8})
	w.c.AddEvent(&ebpf.Event{Victim: b + 1}) // never given out
	w.c.AddEvent(&ebpf.Event{Victim: ebpf.SlotSystem})
	w.c.AddEvent(&ebpf.Event{Victim: 1 << 30})
	w.c.AddEvent(&ebpf.Event{At: 6, Victim: b, Culprit: b + 1})
	s := w.c.Event()
	want := []signal.WaitEvent{
		{At: 5, Victim: 0, PID: 7, CPU: 1, WaitNS: 9, Culprit: signal.CulpritKernel, PartNS: 8},
		{At: 6, Victim: 0, Culprit: signal.CulpritGone},
	}
	if diff := cmp.Diff(want, s.Events); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if s.Seq != tickSnap.Seq+1 || s.Trigger != signal.Event || s.Elapsed != 0 || s.Now != tickSnap.Now+time.Millisecond {
		t.Errorf("snapshot = %+v", s)
	}
	if got := s.Containers[0]; got.Wait.At != 0 || got.Wait.Buckets != nil || got.CPU != tickSnap.Containers[0].CPU {
		t.Errorf("containers of an event = %+v", got)
	}
	if tickSnap.Containers[0].Wait.Count != 1 {
		t.Error("the event's snapshot has emptied the tick's")
	}
	if n := w.c.View().EventsDropped; n != 3 {
		t.Errorf("%d events dropped, want 3", n)
	}

	// New pods show at the next tick only, and events in between are about the old ones.
	w.c.SetPods(pods, online("a", "b"))
	w.c.AddEvent(&ebpf.Event{At: 7, Victim: b})
	w.c.AddEvent(&ebpf.Event{At: 8, Victim: w.tracer.slotOf(w.id("/pods/a/x"))})
	if s = w.c.Event(); len(s.Events) != 1 || s.Events[0].Victim != 0 || len(s.Pods) != 1 {
		t.Errorf("between SetPods and Tick: %+v of %d pods", s.Events, len(s.Pods))
	}
	w.c.AddEvent(&ebpf.Event{At: 9, Victim: b})
	if s = w.tick(tick); len(s.Events) != 1 || s.Events[0].Victim != 1 || len(s.Pods) != 2 {
		t.Errorf("after the tick: %+v of %d pods", s.Events, len(s.Pods))
	}
	for range 2 * maxEvents {
		w.c.AddEvent(&ebpf.Event{Victim: b})
	}
	if s = w.c.Event(); len(s.Events) != maxEvents {
		t.Errorf("%d events, want at most %d", len(s.Events), maxEvents)
	}
}

// An event tells where all of the victim's waits went since the tick or the event before, whatever else it was woken for.
func TestEventsTellWhereWaitsWent(t *testing.T) {
	w := newWorld(t, "v2", 16)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x")}
	for _, p := range pods {
		w.group(p.Containers[0].Cgroup, use{})
	}
	w.c.SetPods(pods, online("b"))
	w.tick(tick)
	victim := w.id("/pods/b/x")
	a, b := w.tracer.slotOf(w.id("/pods/a/x")), w.tracer.slotOf(victim)
	wait := func(d time.Duration, culprit ebpf.Slot) { w.tracer.dispatch(victim, d, culprit) }
	event := func(e ebpf.Event) []signal.Blame {
		t.Helper()
		w.clock.Step(time.Millisecond)
		e.Victim = b
		w.c.AddEvent(&e)
		s := w.c.Event()
		if len(s.Events) != 1 || s.Events[0].Often != e.Often || s.Events[0].Ongoing != e.Ongoing {
			t.Fatalf("events %+v", s.Events)
		}
		return s.Events[0].Blame
	}
	blame := func(what string, got []signal.Blame, want ...signal.Blame) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	of := func(c signal.Culprit, d time.Duration) signal.Blame { return signal.Blame{Culprit: c, NS: uint64(d)} }

	wait(2*time.Millisecond, ebpf.SlotKernel)
	wait(3*time.Millisecond, a)
	blame("since the tick", event(ebpf.Event{Often: true}), of(signal.CulpritKernel, 2*time.Millisecond), of(0, 3*time.Millisecond))
	wait(time.Millisecond, a)
	blame("since the event", event(ebpf.Event{}), of(0, time.Millisecond))
	blame("nothing since", event(ebpf.Event{}))
	blame("what has not ended", event(ebpf.Event{Ongoing: true, Parts: []ebpf.Part{{Slot: a, NS: 7000}, {Slot: b, NS: 2900}, {Slot: ebpf.SlotIRQ, NS: 1000}}}),
		of(signal.CulpritIRQ, time.Microsecond), of(0, 7*time.Microsecond), of(1, 2*time.Microsecond))
	// The tick has all of it, whatever events have told.
	w.clock.Step(time.Millisecond)
	w.c.AddEvent(&ebpf.Event{Victim: b})
	s := w.tick(tick)
	blame("the tick's sample", s.Containers[1].Wait.Blame, of(signal.CulpritKernel, 2*time.Millisecond), of(0, 4*time.Millisecond))
	blame("an event of a tick", s.Events[0].Blame, s.Containers[1].Wait.Blame...)
	wait(5*time.Millisecond, ebpf.SlotKernel)
	blame("since the next tick", event(ebpf.Event{}), of(signal.CulpritKernel, 5*time.Millisecond))
}

// Samples are in whole microseconds, and what is left over comes with the next.
func TestNoNanosecondIsLost(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.group("/pods/a/x", use{})
	w.c.SetPods([]signal.Pod{podOf("a", "x")}, online("a"))
	w.tick(tick)
	victim := w.id("/pods/a/x")
	var sum, blamed []uint64
	for range 4 {
		w.tracer.dispatch(victim, 700, ebpf.SlotKernel)
		s := &w.tick(tick).Containers[0].Wait
		sum = append(sum, s.SumNS)
		for _, b := range s.Blame {
			blamed = append(blamed, b.NS)
		}
	}
	if want := []uint64{0, 1000, 1000, 0}; !slices.Equal(sum, want) {
		t.Errorf("sums %v, want %v", sum, want)
	}
	if want := []uint64{1000, 1000}; !slices.Equal(blamed, want) {
		t.Errorf("blame %v, want %v", blamed, want)
	}
}

func TestPodsComeAndGo(t *testing.T) {
	w := newWorld(t, "v2", 16)
	a, b := podOf("a", "x"), podOf("b", "x")
	w.group("/pods/a/x", use{})
	w.c.SetPods([]signal.Pod{a, b}, online("a"))
	s := w.tick(tick)
	gen := s.PodsGen
	if s.Containers[0].Wait.At == 0 || s.Containers[1].Wait.At != 0 || s.Lost.NoSlot != 0 {
		t.Errorf("waits = %+v", s.Containers)
	}

	// b's group comes later and is found without anybody asking for it.
	w.group("/pods/b/x", use{memory: 7})
	s = w.settle()
	if s.Containers[1].Wait.At != s.Now || s.Containers[1].Memory.Current != 7 || s.PodsGen != gen {
		t.Errorf("b = %+v", s.Containers[1])
	}
	if g := w.tracer.groups[w.id("/pods/b/x")]; g.victim {
		t.Error("b is a victim")
	}

	// A change of class changes no file and no slot.
	cpu, slot := w.c.list[1].cpu, w.c.list[1].slot
	w.c.SetPods([]signal.Pod{a, b}, online("b"))
	if w.c.list[1].cpu != cpu || w.c.list[1].slot != slot {
		t.Error("a change of class has opened b again")
	}
	if g := w.tracer.groups[w.id("/pods/b/x")]; !g.victim || g.slot != slot {
		t.Errorf("b is tracked as %+v", g)
	}
	if g := w.tracer.groups[w.id("/pods/a/x")]; g.victim {
		t.Errorf("a is tracked as %+v", g)
	}

	// Another container of the same name.
	b2 := podOf("b", "x")
	b2.Containers[0].ID, b2.Containers[0].Cgroup = "other", "/pods/b/other"
	w.group("/pods/b/other", use{})
	w.c.SetPods([]signal.Pod{b2}, online("b"))
	s = w.tick(tick)
	if s.PodsGen == gen || len(s.Pods) != 1 || s.Containers[0].Wait.At != s.Now || s.Containers[0].Memory.Current != 0 {
		t.Errorf("snapshot = %+v", s)
	}
	want := map[uint64]fakeGroup{w.id("/pods/b/other"): {w.c.list[0].slot, true}}
	if !maps.Equal(want, w.tracer.groups) {
		t.Errorf("tracked groups = %v, want %v", w.tracer.groups, want)
	}
}

func TestNestedGroups(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.group("/vm", use{})
	w.group("/vm/init.scope", use{})
	w.group("/vm/system.slice/db.service", use{})
	vm := signal.Pod{Name: "vm", Cgroup: "/vm", Containers: []signal.Container{{ID: "vm", Cgroup: "/vm"}}}
	tracked := func() map[string]fakeGroup {
		got := map[string]fakeGroup{}
		for _, g := range []string{"/vm", "/vm/init.scope", "/vm/system.slice", "/vm/system.slice/db.service", "/vm/late"} {
			if id, err := w.c.o.Hierarchy.ID(g); err == nil {
				if fake, ok := w.tracer.groups[id]; ok {
					got[g] = fake
				}
			}
		}
		if len(got) != len(w.tracer.groups) {
			t.Errorf("%d groups are tracked, %d of them exist", len(w.tracer.groups), len(got))
		}
		return got
	}
	check := func(what string, want map[string]fakeGroup) {
		t.Helper()
		if got := tracked(); !maps.Equal(want, got) {
			t.Errorf("%s: tracked %v, want %v", what, got, want)
		}
	}

	w.c.SetPods([]signal.Pod{vm}, online("vm"))
	first := fakeGroup{w.c.list[0].slot, true}
	want := map[string]fakeGroup{"/vm": first, "/vm/init.scope": first, "/vm/system.slice": first, "/vm/system.slice/db.service": first}
	check("at discovery", want)

	w.group("/vm/late", use{})
	w.tick(tick)
	w.c.Rescan("/vm")
	w.tick(tick)
	want["/vm/late"] = first
	check("after Rescan", want)

	w.removeGroup("/vm/init.scope")
	delete(want, "/vm/init.scope")
	for range 60 {
		w.tick(tick)
	}
	check("after a while", want)

	// A group below that is a pod of its own is left to it, and taken back when that pod ends.
	db := signal.Pod{Name: "vm-db", Cgroup: "/vm/system.slice/db.service", Containers: []signal.Container{{ID: "db", Cgroup: "/vm/system.slice/db.service"}}}
	w.c.SetPods([]signal.Pod{vm, db}, online("vm"))
	want["/vm/system.slice/db.service"] = fakeGroup{w.c.list[1].slot, false}
	check("with a pod below", want)
	w.c.SetPods([]signal.Pod{vm}, online("vm"))
	delete(want, "/vm/system.slice/db.service")
	check("when the pod below has ended", want)
	w.c.Rescan("/")
	w.tick(tick)
	want["/vm/system.slice/db.service"] = first
	check("after Rescan", want)

	w.c.SetPods([]signal.Pod{vm}, online())
	for g := range want {
		want[g] = fakeGroup{first.slot, false}
	}
	check("as no victim", want)
	w.c.SetPods(nil, online())
	check("at the end", map[string]fakeGroup{})
}

func TestTwoContainersInOneGroup(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.group("/shared", use{memory: 5})
	pods := []signal.Pod{
		{Name: "a", Cgroup: "/shared", Containers: []signal.Container{{ID: "a", Cgroup: "/shared"}}},
		{Name: "b", Cgroup: "/shared", Containers: []signal.Container{{ID: "b", Cgroup: "/shared"}}},
	}
	w.c.SetPods(pods, online())
	s := w.settle()
	if s.Containers[0].Wait.At == 0 || s.Containers[1].Wait.At != 0 || s.Lost.NoSlot != 0 || s.Containers[1].Memory.Current != 5 {
		t.Errorf("containers = %+v", s.Containers)
	}
	w.c.SetPods(pods[1:], online())
	if s = w.settle(); s.Containers[0].Wait.At == 0 || s.Now-s.Containers[0].Wait.At > 500*time.Millisecond {
		t.Errorf("what stays is not measured: %+v", s.Containers[0].Wait)
	}
}

func TestSlots(t *testing.T) {
	const places = 4
	w := newWorld(t, "v2", int(ebpf.FirstSlot)+places)
	var pods []signal.Pod
	for i := range places + 2 {
		p := podOf(fmt.Sprint(i), "c")
		w.group(p.Containers[0].Cgroup, use{})
		pods = append(pods, p)
	}
	w.c.SetPods(pods, online())
	s := w.tick(tick)
	if s.Lost.NoSlot != 2 || s.Containers[places].Wait.At != 0 {
		t.Errorf("%d containers without a slot, want 2", s.Lost.NoSlot)
	}

	// A slot that is given back rests; nobody gets it before it has been reset.
	freed := w.c.list[0].slot
	w.tracer.dispatch(w.id("/pods/0/c"), time.Second, ebpf.SlotKernel)
	w.c.SetPods(pods[1:], online())
	start := w.clock.Now()
	for w.clock.Now() < start+slotRest {
		if s = w.c.Tick(); s.Lost.NoSlot != 2 || len(w.tracer.resets) != 0 {
			t.Fatalf("after %v: %d without a slot, resets %v", w.clock.Now()-start, s.Lost.NoSlot, w.tracer.resets)
		}
		w.clock.Step(tick)
	}
	w.tick(tick)
	s = w.tick(tick)
	if s.Lost.NoSlot != 1 || len(w.tracer.resets) != 1 || w.tracer.resets[0] != freed {
		t.Errorf("%d without a slot, resets %v, want 1 and slot %d", s.Lost.NoSlot, w.tracer.resets, freed)
	}
	s = w.tick(tick)
	if got := s.Containers[places-1].Wait; got.At != s.Now || got.Count != 0 {
		t.Errorf("waits of the new one = %+v", got)
	}
	if w.c.list[places-1].slot != freed {
		t.Errorf("slot %d, want %d", w.c.list[places-1].slot, freed)
	}
}

func TestBlameOfAReusedSlot(t *testing.T) {
	w := newWorld(t, "v2", int(ebpf.FirstSlot)+2)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x"), podOf("c", "x")}
	for _, p := range pods {
		w.group(p.Containers[0].Cgroup, use{})
	}
	w.c.SetPods(pods[:2], online("a"))
	victim := w.id("/pods/a/x")
	first := w.tracer.slotOf(w.id("/pods/b/x"))
	w.tracer.dispatch(victim, time.Second, first)
	w.tick(tick)
	w.c.SetPods(pods[:1], online("a"))
	w.settle()
	w.c.SetPods([]signal.Pod{pods[0], pods[2]}, online("a"))
	w.tick(tick)
	if second := w.tracer.slotOf(w.id("/pods/c/x")); second != first {
		t.Fatalf("slot %d, want %d again", second, first)
	}
	w.tracer.dispatch(victim, time.Millisecond, first)
	s := w.tick(tick)
	if diff := cmp.Diff([]signal.Blame{{Culprit: 1, NS: 1e6}}, s.Containers[0].Wait.Blame); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What a victim has waited for shows at the next tick also if it is no victim any more: the slots in it may be cleared then.
func TestBlameOfAFormerVictim(t *testing.T) {
	w := newWorld(t, "v2", 16)
	pods := []signal.Pod{podOf("a", "x"), podOf("b", "x")}
	for _, p := range pods {
		w.group(p.Containers[0].Cgroup, use{})
	}
	w.c.SetPods(pods, online("a"))
	w.settle()
	for range 10 { // wherever in the interval of who is no victim this falls
		w.c.SetPods(pods, online("a"))
		w.tick(tick)
		w.tracer.dispatch(w.id("/pods/a/x"), time.Millisecond, w.tracer.slotOf(w.id("/pods/b/x")))
		w.c.SetPods(pods, online())
		s := w.tick(tick)
		if diff := cmp.Diff([]signal.Blame{{Culprit: 1, NS: 1e6}}, s.Containers[0].Wait.Blame); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
	}
}

func TestTrackIsRefused(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.group("/pods/a/x", use{})
	w.tracer.trackOK = func(uint64) error { return errRefused }
	w.c.SetPods([]signal.Pod{podOf("a", "x")}, online("a"))
	w.tick(tick)
	if n := w.c.View().ReadErrors["wait"]; n == 0 {
		t.Error("the refusal was not counted")
	}
	w.tracer.trackOK = nil
	w.c.Rescan("/pods/a")
	w.tick(tick)
	if len(w.tracer.groups) != 1 {
		t.Error("it was not tried again")
	}
}

func TestWithoutTracer(t *testing.T) {
	w := newWorld(t, "v2", 0)
	w.group("/pods/a/x", use{memory: 3})
	w.c.SetPods([]signal.Pod{podOf("a", "x")}, online("a"))
	w.c.AddEvent(&ebpf.Event{Victim: ebpf.FirstSlot})
	s := w.settle()
	if got := s.Containers[0]; got.Wait.At != 0 || got.Memory.Current != 3 || s.Lost.NoSlot != 0 {
		t.Errorf("container = %+v, lost %+v", got, s.Lost)
	}
	if v := w.c.View(); len(v.Containers) != 1 || v.Containers[0].Wait != nil || v.Containers[0].CPU == nil {
		t.Errorf("view = %+v", v)
	}
}

func TestBadReadingsKeepTheOldSample(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.group("/pods/a/x", use{cpu: time.Second, memory: 100})
	w.c.SetPods([]signal.Pod{podOf("a", "x")}, online())
	before := w.settle().Containers[0]
	for _, name := range []string{"cpu.stat", "memory.current", "io.pressure"} {
		w.write(filepath.Join(w.root, "pods/a/x", name), "garbage\n")
	}
	for range 60 {
		w.tick(tick)
	}
	s := w.tick(tick)
	got := s.Containers[0]
	if got.Memory != before.Memory && got.Memory.Current != 100 || s.Now-got.Memory.At < time.Second || s.Now-got.CPU.At < time.Second || s.Now-got.PSI.At < time.Second {
		t.Errorf("at %v: %+v", s.Now, got)
	}
	for kind, n := range w.c.View().ReadErrors {
		if want := kind == "cpu" || kind == "memory" || kind == "psi"; want != (n > 0) {
			t.Errorf("%d errors of %s", n, kind)
		}
	}
	w.group("/pods/a/x", use{cpu: 3 * time.Second, memory: 200})
	for range 60 {
		s = w.tick(tick)
	}
	if s.Containers[0].Memory.Current != 200 {
		t.Errorf("it does not recover: %+v", s.Containers[0])
	}
}

func TestOriginalCPUs(t *testing.T) {
	held := map[string]cpuset.Set{}
	w := newWorld(t, "v1", 0, func(o *Options) {
		o.OriginalCPUs = func(group string) (cpuset.Set, bool) { s, ok := held[group]; return s, ok }
	})
	w.group("/pods/a/x", use{cpus: "0-1"})
	w.c.SetPods([]signal.Pod{podOf("a", "x")}, online())
	if s := w.tick(tick); s.Containers[0].CPUs != cpuset.Of(0, 1) {
		t.Errorf("CPUs = %v", s.Containers[0].CPUs)
	}
	held["/pods/a/x"] = cpuset.Of(0, 1)
	w.group("/pods/a/x", use{cpus: "1"})
	for range 60 {
		w.tick(tick)
	}
	if s := w.tick(tick); s.Containers[0].CPUs != cpuset.Of(0, 1) {
		t.Errorf("CPUs = %v, want what they were before the agent's own cut", s.Containers[0].CPUs)
	}
}

// On v2 a group does not show in its own setting that the groups above it have fewer CPUs.
func TestCPUsOfTheGroupsAbove(t *testing.T) {
	for _, c := range []struct {
		own, above string
		want       cpuset.Set
	}{
		{"", "0-1", cpuset.Set{}}, {"", "1", cpuset.Of(1)}, {"0-1", "1", cpuset.Of(1)}, {"0", "1", cpuset.Of(1)}, {"0", "0-1", cpuset.Of(0)},
	} {
		w := newWorld(t, "v2", 0)
		w.group("/pods/a/x", use{cpus: c.own})
		above := filepath.Join(w.root, "pods/cpuset.cpus.effective")
		w.write(above, c.above+"\n")
		w.c.SetPods([]signal.Pod{podOf("a", "x")}, online())
		if got := w.tick(tick).Containers[0].CPUs; got != c.want {
			t.Errorf("%q below %q: CPUs = %q, want %q", c.own, c.above, got, c.want)
		}
		w.write(above, "0-1\n")
		for range 60 {
			w.tick(tick)
		}
		if got, want := w.tick(tick).Containers[0].CPUs.String(), c.own; got != want {
			t.Errorf("below all CPUs: %q, want %q", got, want)
		}
	}
}

func TestLost(t *testing.T) {
	w := newWorld(t, "v2", 16)
	w.tracer.stats = ebpf.Stats{EventsLost: 3, ShortWalks: 5}
	var lost signal.Lost
	for range 30 {
		s := w.tick(tick)
		lost.Events += s.Lost.Events
		lost.LogShort += s.Lost.LogShort
	}
	if lost != (signal.Lost{Events: 3, LogShort: 5}) {
		t.Errorf("lost = %+v", lost)
	}
}

func TestView(t *testing.T) {
	w := newWorld(t, "v2", 16)
	a, b := podOf("a", "x"), podOf("b", "x")
	w.group("/pods/a/x", use{memory: 10})
	w.group("/pods/b/x", use{memory: 20})
	w.c.SetPods([]signal.Pod{a, b}, online("a"))
	w.settle()
	idA, idB := w.id("/pods/a/x"), w.id("/pods/b/x")
	w.tracer.dispatch(idA, time.Millisecond, w.tracer.slotOf(idB))
	w.tracer.dispatch(idA, 2*time.Millisecond, w.tracer.slotOf(idA))
	w.tracer.dispatch(idA, 3*time.Millisecond, ebpf.SlotKernel)
	w.group("/pods/a/x", use{cpu: time.Second, memory: 10})
	w.settle()
	w.tracer.dispatch(idA, time.Second, w.tracer.slotOf(idB)) // counted although its container ends before the next tick

	refA, refB := refOf(&a), refOf(&b)
	a2 := podOf("a", "x")
	a2.Containers[0].ID, a2.Containers[0].Cgroup = "again", "/pods/a/again"
	w.group("/pods/a/again", use{memory: 11})
	w.c.SetPods([]signal.Pod{a2, b}, online("a"))
	w.settle()
	idA2 := w.id("/pods/a/again")
	w.tracer.dispatch(idA2, 4*time.Millisecond, w.tracer.slotOf(idB))
	w.settle()

	v := w.c.View()
	if len(v.Containers) != 2 {
		t.Fatalf("%d rows, want 2: %+v", len(v.Containers), v.Containers)
	}
	row := v.Containers[0]
	if row.Pod != refA || row.Name != "x" || row.Wait.Count != 5 || row.Wait.SumNS != 1010e6 || row.Wait.Hist.Total() != 5 || row.CPU.UsageNS != 1e9 || row.Memory.Current != 11 {
		t.Errorf("a = %+v, %+v, %+v, %+v", row.Pod, row.Wait.Count, row.CPU, row.Memory)
	}
	want := []BlameTotal{
		{Victim: refA, Culprit: PodRef{}, Pseudo: signal.CulpritKernel, NS: 3e6},
		{Victim: refA, Culprit: refA, NS: 2e6},
		{Victim: refA, Culprit: refB, NS: 1005e6},
	}
	inOrder := cmpopts.SortSlices(func(a, b BlameTotal) int { return a.Culprit.compare(b.Culprit) })
	if diff := cmp.Diff(want, v.Blame, inOrder); diff != "" {
		t.Errorf("blame: -want +got:\n%s", diff)
	}

	w.c.SetPods([]signal.Pod{a2}, online("a"))
	w.tick(tick)
	v = w.c.View()
	if len(v.Containers) != 1 || len(v.Blame) != 2 {
		t.Errorf("b is gone and still there: %+v", v)
	}
	w.c.SetPods(nil, online("a"))
	w.tick(tick)
	if v = w.c.View(); len(v.Containers) != 0 || len(v.Blame) != 0 {
		t.Errorf("everything is gone and still there: %+v", v)
	}
}

func TestNewRefusesANodeWithoutCPUs(t *testing.T) {
	h := newWorld(t, "v2", 0).c.o.Hierarchy
	if _, err := New(Options{Proc: t.TempDir(), Sys: t.TempDir(), Hierarchy: h, Clock: newWorld(t, "v2", 0).clock}); err == nil {
		t.Error("no error")
	}
}

func TestWithin(t *testing.T) {
	for _, tc := range []struct {
		group, top string
		want       bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/a", "/", true}, {"/a", "/b", false}} {
		if got := within(tc.group, tc.top); got != tc.want {
			t.Errorf("within(%q, %q) = %v", tc.group, tc.top, got)
		}
	}
}

func FuzzParseProcStat(f *testing.F) {
	f.Add("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n")
	f.Add("cpu 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		st, ok := parseProcStat([]byte(text))
		if !ok && st != (nodeCPU{}) {
			t.Errorf("%q: %+v together with failure", text, st)
		}
		var v [8]uint64
		if n, _ := fmt.Sscanf(text, "cpu %d %d %d %d %d %d %d %d", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]); ok && n == 8 && st.steal != v[7] {
			t.Errorf("%q: steal %d, want %d", text, st.steal, v[7])
		}
	})
}

// busy makes a world with pods, half of them online and with a quota.
func busy(t testing.TB, pods int) (*world, func()) {
	w := newWorld(t, "v2", 1024)
	var list []signal.Pod
	var victims []string
	for i := range pods {
		p := podOf(fmt.Sprintf("p%04d", i), "c")
		u := use{memory: 1 << 20}
		if i%2 == 0 {
			victims = append(victims, p.Name)
			u.quota = 200 * time.Millisecond
		}
		w.group(p.Containers[0].Cgroup, u)
		w.group(p.Cgroup, u)
		list = append(list, p)
	}
	isVictim := map[string]bool{}
	for _, name := range victims {
		isVictim[name] = true
	}
	w.c.SetPods(list, func(p *signal.Pod) bool { return isVictim[p.Name] })
	ids := make([]uint64, pods)
	for i := range ids {
		ids[i] = w.id(list[i].Containers[0].Cgroup)
	}
	n := 0
	load := func() {
		for i, id := range ids {
			w.tracer.dispatch(id, time.Duration(1+(n*7+i*13)%5000)*time.Microsecond, w.tracer.slotOf(ids[(i+1)%len(ids)]))
			n++
		}
	}
	for range 60 {
		load()
		w.tick(tick)
		w.c.AddEvent(&ebpf.Event{Victim: w.c.list[0].slot})
		w.c.Event()
	}
	return w, load
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	w, load := busy(t, 50)
	w.c.AddEvent(&ebpf.Event{Victim: w.c.list[0].slot})
	if n := testing.AllocsPerRun(100, func() {
		load()
		w.tick(tick)
		w.c.AddEvent(&ebpf.Event{Victim: w.c.list[0].slot})
		w.c.Event()
	}); n != 0 {
		t.Errorf("a tick and an event allocate %v times", n)
	}
}

func BenchmarkTick(b *testing.B) {
	w, load := busy(b, 150)
	b.ReportAllocs()
	for b.Loop() {
		load()
		w.tick(tick)
	}
}

func BenchmarkEvent(b *testing.B) {
	w, _ := busy(b, 150)
	e := ebpf.Event{Victim: w.c.list[0].slot, Culprit: ebpf.SlotKernel}
	b.Run("same tick", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.c.AddEvent(&e)
			w.c.Event()
		}
	})
	b.Run("first after a tick", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.c.isQuiet = [2]bool{}
			w.c.AddEvent(&e)
			w.c.Event()
		}
	})
}

func BenchmarkView(b *testing.B) {
	w, _ := busy(b, 150)
	b.ReportAllocs()
	for b.Loop() {
		w.c.View()
	}
}

var _ Tracer = (*ebpf.Tracer)(nil)
