package judge

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

const tick = 100 * time.Millisecond

// world is a node of one online pod "web" with two containers, offline pods "a" to "e", an online pod "shop" and an unclassified pod
// "misc", each of these with one container. Containers are 0, 1: web; 2 to 6: a to e; 7: misc; 8: shop.
type world struct {
	state State
	spec  policy.Spec
	now   time.Duration
	snap  signal.Snapshot
	view  View
}

const (
	web   = 0
	a     = 2
	b     = 3
	other = 7 // misc
	shop  = 8
)

func newWorld() *world {
	w := &world{spec: policy.Default().Spec, now: time.Hour}
	w.spec.Objectives.CPUWaitP99 = policy.Duration(2 * time.Millisecond)
	w.spec.Objectives.CPUWaitEvent = policy.Duration(4 * time.Millisecond)
	w.snap.Node.Caps = signal.Capabilities{RunQueue: true, GroupPSI: true}
	w.snap.Node.Topology.CPUs = []signal.CPU{{ID: 0}, {ID: 1, Core: 1}}
	w.add("web", policy.Online, 2)
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		w.add(n, policy.Offline, 1)
	}
	w.add("misc", policy.Unclassified, 1)
	w.add("shop", policy.Online, 1)
	w.view.Changed = true
	return w
}

func (w *world) add(name string, class policy.Class, containers int) {
	pod := len(w.snap.Pods)
	p := signal.Pod{UID: name, Namespace: "ns", Name: name, Cgroup: "/" + name}
	w.view.First = append(w.view.First, len(w.snap.Containers))
	for c := range containers {
		p.Containers = append(p.Containers, signal.Container{ID: name + string(rune('0'+c)), Name: "c"})
		w.snap.Containers = append(w.snap.Containers, signal.ContainerSample{Pod: pod, Container: c})
		w.view.ContainerID = append(w.view.ContainerID, uint32(len(w.snap.Containers)))
	}
	w.snap.Pods = append(w.snap.Pods, p)
	w.view.Class = append(w.view.Class, class)
	w.view.PodID = append(w.view.PodID, uint32(len(w.snap.Pods)))
}

// waits sets container i's waits of the coming tick: n of d each.
func (w *world) waits(i int, d time.Duration, n uint32, blame ...signal.Blame) {
	s := &w.snap.Containers[i].Wait
	s.Buckets = []signal.Bucket{{Index: uint16(histogram.Index(uint64(d))), Count: n}}
	s.Count, s.Blame = uint64(n), blame
}

// step takes a tick in which everything was read.
func (w *world) step(events ...signal.WaitEvent) ([]Verdict, []Finding) {
	w.now += tick
	for i := range w.snap.Containers {
		c := &w.snap.Containers[i]
		c.Wait.At, c.Wait.Span = w.now, tick
		c.CPU.At, c.CPU.Span = w.now, tick
		c.PSI.At, c.PSI.Span = w.now, tick
	}
	w.snap.Node.CPU.At, w.snap.Node.CPU.Span = w.now, tick
	return w.again(signal.Tick, events...)
}

// again takes a step in which nothing was read.
func (w *world) again(trigger signal.Trigger, events ...signal.WaitEvent) ([]Verdict, []Finding) {
	w.snap.Now, w.snap.Trigger, w.snap.Events = w.now, trigger, events
	w.view.Snapshot, w.view.Spec = &w.snap, &w.spec
	v, f := w.state.Step(&w.view)
	w.view.Changed = false
	return v, f
}

// verdict finds a container's verdict on an axis.
func verdict(t testing.TB, vs []Verdict, sample int, axis Axis) Verdict {
	t.Helper()
	for _, v := range vs {
		if v.Sample == sample && v.Axis == axis {
			return v
		}
	}
	t.Fatalf("no %s verdict for container %d", axis, sample)
	return Verdict{}
}

// names are pods.
type names []string

func ns(c signal.Culprit, n uint64) signal.Blame { return signal.Blame{Culprit: c, NS: n} }

func TestReasonAndCulprits(t *testing.T) {
	tests := map[string]struct {
		blame     []signal.Blame
		throttled uint64 // of 100 periods
		steal     int    // percent
		reason    Reason
		culprits  names
		joint     bool
	}{
		"one pod":                        {blame: []signal.Blame{ns(a, 70), ns(b, 30)}, reason: Contention, culprits: names{"a"}},
		"just enough":                    {blame: []signal.Blame{ns(a, 40), ns(b, 5), ns(signal.CulpritUnknown, 35), ns(web, 20)}, reason: Contention, culprits: names{"a"}},
		"two pods, each enough":          {blame: []signal.Blame{ns(a, 45), ns(b, 55)}, reason: Contention, culprits: names{"b", "a"}},
		"a tie is by key":                {blame: []signal.Blame{ns(a, 50), ns(b, 50)}, reason: Contention, culprits: names{"a", "b"}},
		"jointly":                        {blame: []signal.Blame{ns(a, 35), ns(b, 30), ns(4, 20), ns(web, 15)}, reason: Contention, culprits: names{"a", "b"}, joint: true},
		"jointly, not enough":            {blame: []signal.Blame{ns(a, 30), ns(b, 29), ns(web, 41)}, reason: Scattered},
		"jointly, rest negligible":       {blame: []signal.Blame{ns(a, 39), ns(b, 17), ns(4, 4), ns(web, 30), ns(signal.CulpritUnknown, 10)}, reason: Scattered},
		"equals, none negligible":        {blame: []signal.Blame{ns(a, 12), ns(b, 12), ns(4, 12), ns(5, 12), ns(6, 12), ns(signal.CulpritUnknown, 39)}, reason: Contention, culprits: names{"a", "b", "c", "d", "e"}, joint: true},
		"another online pod":             {blame: []signal.Blame{ns(shop, 80), ns(a, 20)}, reason: Contention, culprits: names{"shop"}},
		"an unclassified pod":            {blame: []signal.Blame{ns(other, 80), ns(a, 20)}, reason: Contention, culprits: names{"misc"}},
		"itself":                         {blame: []signal.Blame{ns(web, 60), ns(a, 40)}, reason: OwnQueue},
		"its pod's other container":      {blame: []signal.Blame{ns(1, 60), ns(a, 40)}, reason: OwnQueue},
		"itself, but others more":        {blame: []signal.Blame{ns(web, 45), ns(a, 55)}, reason: Contention, culprits: names{"a"}},
		"its quota, by attribution":      {blame: []signal.Blame{ns(signal.CulpritQuota, 70), ns(a, 30)}, reason: SelfThrottled},
		"its quota, by throttling":       {blame: []signal.Blame{ns(a, 100)}, throttled: 10, reason: SelfThrottled},
		"throttled a little":             {blame: []signal.Blame{ns(a, 100)}, throttled: 9, reason: Contention, culprits: names{"a"}},
		"steal":                          {blame: []signal.Blame{ns(a, 100)}, steal: 5, reason: Steal},
		"steal, a little":                {blame: []signal.Blame{ns(a, 100)}, steal: 4, reason: Contention, culprits: names{"a"}},
		"unknown":                        {blame: []signal.Blame{ns(signal.CulpritUnknown, 40), ns(a, 60)}, reason: Unexplained},
		"nothing attributed":             {reason: Unexplained},
		"kernel threads":                 {blame: []signal.Blame{ns(signal.CulpritKernel, 40), ns(signal.CulpritIRQ, 20), ns(a, 40)}, reason: Kernel},
		"system":                         {blame: []signal.Blame{ns(signal.CulpritSystem, 70), ns(a, 30)}, reason: System},
		"idle CPUs":                      {blame: []signal.Blame{ns(signal.CulpritIdle, 70), ns(a, 30)}, reason: IdleWakeup},
		"pods that are gone":             {blame: []signal.Blame{ns(signal.CulpritGone, 70), ns(a, 30)}, reason: Scattered},
		"no such container":              {blame: []signal.Blame{ns(99, 70), ns(a, 30)}, reason: Unexplained},
		"no such constant":               {blame: []signal.Blame{ns(-99, 70), ns(a, 30)}, reason: Unexplained},
		"own, quota, idle, each a third": {blame: []signal.Blame{ns(web, 33), ns(signal.CulpritQuota, 33), ns(signal.CulpritIdle, 33)}, reason: Scattered},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.waits(web, 10*time.Millisecond, 50, tt.blame...)
			w.snap.Containers[web].CPU.Periods, w.snap.Containers[web].CPU.ThrottledPeriods = 100, tt.throttled
			w.snap.Node.CPU.StealNS = uint64(tt.steal) * uint64(2*tick) / 100
			vs, _ := w.step()
			v := verdict(t, vs, web, CPU)
			if v.Level != Violated || v.Reason != tt.reason || v.Joint != tt.joint {
				t.Errorf("verdict %s %s joint %v, want violated %s joint %v", v.Level, v.Reason, v.Joint, tt.reason, tt.joint)
			}
			var got names
			for _, s := range v.Culprits() {
				got = append(got, w.snap.Pods[s.Pod].Name)
			}
			if diff := cmp.Diff(tt.culprits, got); diff != "" {
				t.Errorf("culprits (-want +got):\n%s", diff)
			}
			sum := 0
			for _, s := range v.Shares {
				sum += s.Permille
			}
			for _, p := range v.Parts {
				sum += p
			}
			if len(tt.blame) > 0 && (sum < 990 || sum > 1000) {
				t.Errorf("parts and shares add up to %d permille", sum)
			}
		})
	}
}

func TestLevels(t *testing.T) {
	tests := map[string]struct {
		wait   time.Duration
		n      uint32
		level  Level
		reason Reason
	}{
		"well":                       {wait: time.Millisecond, n: 50, level: OK},
		"close":                      {wait: 1900 * time.Microsecond, n: 50, level: Watch, reason: Contention},
		"beyond":                     {wait: 3 * time.Millisecond, n: 50, level: Violated, reason: Contention},
		"few, all short":             {wait: time.Millisecond, n: 19, level: OK, reason: FewSamples},
		"few, some long":             {wait: 30 * time.Millisecond, n: 19, level: Watch, reason: FewSamples},
		"nothing waited":             {n: 0, level: OK, reason: FewSamples},
		"beyond every finite bucket": {wait: 30 * time.Second, n: 50, level: Violated, reason: Contention},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.waits(web, tt.wait, tt.n, ns(a, 1000))
			vs, _ := w.step()
			if v := verdict(t, vs, web, CPU); v.Level != tt.level || v.Reason != tt.reason {
				t.Errorf("%s %s, want %s %s", v.Level, v.Reason, tt.level, tt.reason)
			}
		})
	}
}

func TestOnlyOnlineContainersAreJudgedAndOnlyOnObjectives(t *testing.T) {
	w := newWorld()
	vs, _ := w.step()
	var got []int
	for _, v := range vs {
		if v.Axis == CPU {
			got = append(got, v.Sample)
		}
	}
	if diff := cmp.Diff([]int{0, 1, shop}, got); diff != "" {
		t.Errorf("judged containers (-want +got):\n%s", diff)
	}
	w.spec.Objectives = policy.Objectives{}
	if vs, _ := w.step(); len(vs) != 0 {
		t.Errorf("%d verdicts without objectives", len(vs))
	}
}

func TestStaleIsNotCalm(t *testing.T) {
	w := newWorld()
	w.waits(web, 100*time.Microsecond, 50)
	w.step()
	w.now += w.spec.Safety.StaleAfter.D()
	vs, _ := w.again(signal.Tick)
	if v := verdict(t, vs, web, CPU); v.Level != OK {
		t.Errorf("%s at the age limit, want ok", v.Level)
	}
	w.now++
	for _, axis := range []Axis{CPU, Memory, IO} {
		vs, _ = w.again(signal.Tick)
		if v := verdict(t, vs, web, axis); v.Level != Unknown || v.Reason != Stale {
			t.Errorf("%s: %s %s past the age limit, want unknown stale", axis, v.Level, v.Reason)
		}
	}
	since := w.now
	w.now += time.Second
	vs, _ = w.again(signal.Tick)
	if v := verdict(t, vs, web, CPU); v.Since != since {
		t.Errorf("since %s, want %s", v.Since, since)
	}
}

func TestUnmeasuredIsUnknown(t *testing.T) {
	w := newWorld()
	w.now += tick
	vs, _ := w.again(signal.Tick)
	if v := verdict(t, vs, web, CPU); v.Level != Unknown || v.Reason != Unmeasured {
		t.Errorf("never read: %s %s", v.Level, v.Reason)
	}
	w.waits(web, time.Millisecond, 50)
	w.snap.Node.Caps.RunQueue = false
	vs, _ = w.step()
	if v := verdict(t, vs, web, CPU); v.Level != Unknown || v.Reason != Unmeasured {
		t.Errorf("without eBPF: %s %s", v.Level, v.Reason)
	}
}

func TestPressure(t *testing.T) {
	w := newWorld()
	w.spec.Objectives.MemoryStallPercent, w.spec.Objectives.IOStallPercent = 10, 20
	w.snap.Containers[web].PSI.Memory.SomeUS = 15_000 // of 100 ms
	w.snap.Containers[web].PSI.IO.SomeUS = 15_000
	vs, _ := w.step()
	if v := verdict(t, vs, web, Memory); v.Level != Violated || v.Reason != Pressure || v.StallPermille != 150 {
		t.Errorf("memory: %s %s %d", v.Level, v.Reason, v.StallPermille)
	}
	if v := verdict(t, vs, web, IO); v.Level != Watch {
		t.Errorf("io: %s", v.Level)
	}
	w.snap.Node.Caps.GroupPSI = false
	vs, _ = w.step()
	for _, v := range vs {
		if v.Axis != CPU {
			t.Errorf("%s verdict without group PSI", v.Axis)
		}
	}
}

func TestWindowForgetsBetweenHalfAndWhole(t *testing.T) {
	w := newWorld()
	w.waits(web, 10*time.Millisecond, 50, ns(a, 1000))
	w.step()
	w.waits(web, 10*time.Microsecond, 50)
	bad := time.Duration(0)
	for {
		vs, _ := w.step()
		bad += tick
		v := verdict(t, vs, web, CPU)
		if v.Window > w.spec.Judge.Window.D()+tick {
			t.Fatalf("window of %s", v.Window)
		}
		if v.Level == OK {
			break
		}
	}
	if half := w.spec.Judge.Window.D() / 2; bad < half || bad > 2*half+tick {
		t.Errorf("a bad tick was remembered for %s", bad)
	}
}

func TestSpan(t *testing.T) {
	const width = time.Second
	at := func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }
	s := span{}
	steps := []struct {
		at, d   time.Duration
		want    move
		covered time.Duration
	}{
		{at(1000), at(100), reset, at(100)},
		{at(1000), at(100), repeat, at(100)},
		{at(1100), at(100), grow, at(200)},
		{at(1500), at(400), grow, at(600)},
		{at(1600), at(100), turn, at(700)},
		{at(2000), at(400), grow, at(1100)},
		{at(2100), at(100), turn, at(600)},
		{at(2700), at(100), grow, at(700)},    // half a window was not seen: just tolerable
		{at(3400), at(100), reset, at(100)},   // more than that is not
		{at(3300), at(100), reset, at(100)},   // the clock ran backwards
		{at(5300), at(2000), reset, at(2000)}, // one sample is more than a window
		{at(5400), at(100), turn, at(2100)},
	}
	for i, st := range steps {
		if got := s.next(st.at, st.d, width); got != st.want || s.covered != st.covered {
			t.Errorf("step %d: move %d covering %s, want %d covering %s", i, got, s.covered, st.want, st.covered)
		}
	}
}

func TestEvents(t *testing.T) {
	event := func(c signal.Culprit, part uint64) signal.WaitEvent {
		return signal.WaitEvent{At: time.Hour, Victim: web, WaitNS: 10_000_000, Culprit: c, PartNS: part * 100_000}
	}
	tests := map[string]struct {
		event   signal.WaitEvent
		prepare func(*world)
		none    bool
		reason  Reason
		culprit string
	}{
		"one pod": {event: event(a, 61), reason: Contention, culprit: "a"},
		// The rest may be 40 % of unknown, with which nobody is to be named.
		"the rest may be unknown": {event: event(a, 60), reason: Unexplained},
		"too small a part":        {event: event(a, 39), reason: Scattered},
		"itself":                  {event: event(1, 60), reason: OwnQueue},
		"its quota":               {event: event(signal.CulpritQuota, 60), reason: SelfThrottled},
		"kernel":                  {event: event(signal.CulpritIRQ, 60), reason: Kernel},
		"unknown":                 {event: event(signal.CulpritUnknown, 60), reason: Unexplained},
		"another online":          {event: event(shop, 61), reason: Contention, culprit: "shop"},
		"short": {event: event(a, 60), none: true, prepare: func(w *world) {
			w.spec.Objectives.CPUWaitEvent = policy.Duration(11 * time.Millisecond)
		}},
		"off": {event: event(a, 60), none: true, prepare: func(w *world) { w.spec.Objectives.CPUWaitEvent = 0 }},
		"old": {event: event(a, 60), none: true, prepare: func(w *world) { w.now += time.Minute }},
		"throttled": {event: event(a, 60), reason: SelfThrottled, prepare: func(w *world) {
			w.snap.Containers[web].CPU.Periods, w.snap.Containers[web].CPU.ThrottledPeriods = 10, 5
		}},
		"steal":                     {event: event(a, 60), reason: Steal, prepare: func(w *world) { w.snap.Node.CPU.StealNS = uint64(tick) }},
		"not online":                {event: signal.WaitEvent{At: time.Hour, Victim: a, WaitNS: 1e9, Culprit: b, PartNS: 1e9}, none: true},
		"out of range":              {event: signal.WaitEvent{At: time.Hour, Victim: 999, WaitNS: 1e9, Culprit: b, PartNS: 1e9}, none: true},
		"part larger than the wait": {event: event(a, 600), reason: Contention, culprit: "a"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			if tt.prepare != nil {
				tt.prepare(w)
			}
			w.step()
			vs, fs := w.again(signal.Event, tt.event)
			if vs != nil {
				t.Error("verdicts on an event")
			}
			if tt.none {
				if len(fs) != 0 {
					t.Fatalf("finding %+v, want none", fs[0])
				}
				return
			}
			if len(fs) != 1 {
				t.Fatalf("%d findings, want 1", len(fs))
			}
			name := ""
			if fs[0].Culprit >= 0 {
				name = w.snap.Pods[fs[0].Culprit].Name
			}
			if fs[0].Reason != tt.reason || name != tt.culprit {
				t.Errorf("%s %q, want %s %q", fs[0].Reason, name, tt.reason, tt.culprit)
			}
			if fs[0].Began != time.Hour-10*time.Millisecond {
				t.Errorf("began at %s", fs[0].Began)
			}
			if r, ok := w.state.Read(web); !ok || r.Events != 1 {
				t.Errorf("events counted: %d", r.Events)
			}
		})
	}
}

// TestEventsWithBlame looks at events that say where all of the victim's waits of the last milliseconds went.
func TestEventsWithBlame(t *testing.T) {
	single := signal.WaitEvent{At: time.Hour, Victim: web, WaitNS: 10_000_000, Culprit: a, PartNS: 5_000_000}
	often := signal.WaitEvent{At: time.Hour, Victim: web, WaitNS: 3_000_000, Culprit: a, PartNS: 3_000_000, Often: true}
	with := func(e signal.WaitEvent, blame ...signal.Blame) signal.WaitEvent {
		e.Blame = blame
		return e
	}
	ownWait := single
	ownWait.Culprit = web
	tests := map[string]struct {
		event    signal.WaitEvent
		reason   Reason
		culprits names
		joint    bool
		prepare  func(*world)
	}{
		"one culprit, in all not enough unknown":  {event: with(single, ns(a, 50), ns(signal.CulpritUnknown, 30), ns(web, 20)), reason: Contention, culprits: names{"a"}},
		"too much unknown":                        {event: with(single, ns(a, 60), ns(signal.CulpritUnknown, 40)), reason: Unexplained},
		"a wait that was its own":                 {event: with(ownWait, ns(a, 50), ns(web, 50)), reason: OwnQueue},
		"often, one culprit":                      {event: with(often, ns(a, 50), ns(web, 45)), reason: Contention, culprits: names{"a"}},
		"often, another one than the last wait's": {event: with(often, ns(b, 70), ns(a, 30)), reason: Contention, culprits: names{"b"}},
		"often, two culprits":                     {event: with(often, ns(a, 45), ns(b, 55)), reason: Contention, culprits: names{"b", "a"}},
		"often, jointly":                          {event: with(often, ns(a, 35), ns(b, 30), ns(web, 30)), reason: Contention, culprits: names{"a", "b"}, joint: true},
		"often, mostly itself":                    {event: with(often, ns(a, 30), ns(web, 70)), reason: OwnQueue},
		"often, the system":                       {event: with(often, ns(a, 30), ns(signal.CulpritSystem, 70)), reason: System},
		"often, nothing known but the last one":   {event: often, reason: Contention, culprits: names{"a"}},
		"often, without an objective":             {event: with(often, ns(a, 100)), prepare: func(w *world) { w.spec.Objectives.CPUWaitP99 = 0 }},
		"often, with events turned off":           {event: with(often, ns(a, 100)), prepare: func(w *world) { w.spec.Objectives.CPUWaitEvent = 0 }},
		"often, throttled": {event: with(often, ns(a, 100)), reason: SelfThrottled, prepare: func(w *world) {
			w.snap.Containers[web].CPU.Periods, w.snap.Containers[web].CPU.ThrottledPeriods = 10, 5
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			if tt.prepare != nil {
				tt.prepare(w)
			}
			w.step()
			_, fs := w.again(signal.Event, tt.event)
			if tt.reason == None {
				if len(fs) != 0 {
					t.Fatalf("findings %+v, want none", fs)
				}
				return
			}
			var got names
			for _, f := range fs {
				if f.Reason != tt.reason || f.Joint != tt.joint || f.Often != tt.event.Often || (f.Culprit >= 0) != (tt.reason == Contention) {
					t.Errorf("finding %+v", f)
				}
				if f.Culprit >= 0 {
					got = append(got, w.snap.Pods[f.Culprit].Name)
				}
			}
			if len(fs) == 0 || !slices.Equal(got, tt.culprits) {
				t.Errorf("%d findings, culprits %v, want %v", len(fs), got, tt.culprits)
			}
			// What counts only together with others is no single long wait.
			want := uint64(1)
			if tt.event.Often {
				want = 0
			}
			if r, ok := w.state.Read(web); !ok || r.Events != want {
				t.Errorf("events counted: %d", r.Events)
			}
		})
	}
}

func TestBlameFollowsPodsThatMove(t *testing.T) {
	w := newWorld()
	w.waits(web, 10*time.Millisecond, 50, ns(a, 30), ns(b, 70))
	w.step()

	// Pod a goes; everything behind it moves up by one.
	w.waits(web, 10*time.Millisecond, 50)
	w.snap.Pods = append(w.snap.Pods[:1], w.snap.Pods[2:]...)
	w.view.Class = append(w.view.Class[:1], w.view.Class[2:]...)
	w.view.PodID = append(w.view.PodID[:1], w.view.PodID[2:]...)
	w.snap.Containers = append(w.snap.Containers[:2], w.snap.Containers[3:]...)
	w.view.ContainerID = append(w.view.ContainerID[:2], w.view.ContainerID[3:]...)
	for i := 2; i < len(w.snap.Containers); i++ {
		w.snap.Containers[i].Pod--
	}
	w.view.Changed = true
	vs, _ := w.step()
	v := verdict(t, vs, web, CPU)
	if len(v.Shares) != 1 || w.snap.Pods[v.Shares[0].Pod].Name != "b" || v.Shares[0].Permille != 700 || v.Parts[Gone] != 300 {
		t.Errorf("shares %+v, gone %d", v.Shares, v.Parts[Gone])
	}
	if i, ok := w.state.Index(shop + 1); !ok || i != shop-1 {
		t.Errorf("shop's container at %d, want %d", i, shop-1)
	}
}

func TestP99AgreesWithTheHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tally Tally
		var full histogram.Counts
		n := rapid.IntRange(1, 40).Draw(t, "buckets")
		for range n {
			b := signal.Bucket{
				Index: uint16(rapid.IntRange(0, histogram.Overflow).Draw(t, "index")),
				Count: uint32(rapid.IntRange(1, 5000).Draw(t, "count")),
			}
			tally.Add([]signal.Bucket{b})
			full[b.Index] += uint64(b.Count)
		}
		want, _ := full.Quantile(0.99)
		got := tally.P99()
		// The rank is rounded up to a whole wait here, so the two may differ by that wait's width inside the bucket, or at
		// its edge by a bucket.
		if h := histogram.Index(uint64(want)); tally.total >= 100 && histogram.Index(uint64(got)) < h {
			t.Fatalf("p99 %s, histogram says %s", got, want)
		}
		if got < want-time.Nanosecond {
			t.Fatalf("p99 %s below %s", got, want)
		}
		tally.Reset()
		if tally != (Tally{}) {
			t.Fatal("reset left something")
		}
	})
}

// TestSharesAreOrderedAndCulpritsJustified checks the rules on arbitrary blame.
func TestSharesAreOrderedAndCulpritsJustified(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		var blame []signal.Blame
		for c := signal.CulpritGone; c <= shop; c++ {
			if n := rapid.Uint64Range(0, 1e9).Draw(t, "ns"); n > 0 && rapid.Bool().Draw(t, "ran") {
				blame = append(blame, ns(c, n))
			}
		}
		w.waits(web, 10*time.Millisecond, 50, blame...)
		vs, _ := w.step()
		var v Verdict
		for _, v = range vs {
			if v.Sample == web && v.Axis == CPU {
				break
			}
		}
		sum := uint64(0)
		for i, s := range v.Shares {
			if i > 0 && (s.NS > v.Shares[i-1].NS || s.NS == v.Shares[i-1].NS && s.Pod < v.Shares[i-1].Pod) {
				t.Fatalf("shares out of order: %+v", v.Shares)
			}
			if i < v.Named {
				sum += s.NS
			}
		}
		if (v.Named > 0) != (v.Reason == Contention) {
			t.Fatalf("%d culprits with reason %s", v.Named, v.Reason)
		}
		if v.Joint && sum*100 < v.AttributedNS*60 {
			t.Fatalf("joint culprits hold %d of %d", sum, v.AttributedNS)
		}
		if !v.Joint && v.Named > 0 && v.Shares[v.Named-1].NS*100 < v.AttributedNS*40 {
			t.Fatalf("culprit with %d of %d", v.Shares[v.Named-1].NS, v.AttributedNS)
		}
		if v.Parts[NotKnown] >= 400 && v.Named > 0 {
			t.Fatalf("culprits named with %d permille unknown", v.Parts[NotKnown])
		}
	})
}

func BenchmarkTick(b *testing.B) {
	w := newWorld()
	for range 70 {
		w.add("online", policy.Online, 1)
		w.add("offline", policy.Offline, 1)
	}
	for i := range w.snap.Containers {
		w.view.ContainerID[i], w.snap.Pods[w.snap.Containers[i].Pod].UID = uint32(i+1), "x"
		s := &w.snap.Containers[i].Wait
		for k := range 25 {
			s.Buckets = append(s.Buckets, signal.Bucket{Index: uint16(10 + 4*k), Count: 5})
		}
		for k := a; k < len(w.snap.Containers); k += 8 {
			s.Blame = append(s.Blame, ns(signal.Culprit(k), 1000))
		}
	}
	b.ReportAllocs()
	for range 20 {
		w.step()
	}
	b.ResetTimer()
	for range b.N {
		w.step()
	}
}

// TestKeptVerdictsAreThoseOfJudgingAgain lets two states see the same: one keeps what it can, the other judges everything anew.
func TestKeptVerdictsAreThoseOfJudgingAgain(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	w := newWorld()
	var fresh State
	kept := 0
	for n := range 600 {
		w.now += tick
		c := w.snap.Containers
		for i := range c {
			c[i].Wait = signal.WaitSample{At: w.now, Span: tick}
			if rng.IntN(3) > 0 {
				w.waits(i, time.Duration(rng.Int64N(int64(5*time.Millisecond))), uint32(1+rng.IntN(20)), ns(signal.Culprit(rng.IntN(len(c))), 1000), ns(signal.CulpritKernel, 10))
			}
			if n%10 == i%10 && n%200 < 150 { // for a while nothing is read
				c[i].PSI = signal.PSISample{At: w.now, Span: time.Second, Memory: signal.Pressure{SomeUS: rng.Uint64N(300_000)}, IO: signal.Pressure{SomeUS: rng.Uint64N(300_000)}}
			}
			if n%5 == i%5 {
				c[i].CPU = signal.CPUSample{At: w.now, Span: 5 * tick, Periods: 5, ThrottledPeriods: rng.Uint64N(3)}
			}
		}
		switch rng.IntN(40) {
		case 0:
			w.view.Changed = true
		case 1:
			spec := w.spec
			spec.Objectives.MemoryStallPercent = float64(rng.IntN(3) * 5)
			w.spec = spec
			w.state.slots, fresh.slots = slots{}, slots{} // a policy that changes is another spec
		case 2:
			w.snap.Node.Caps.GroupPSI = !w.snap.Node.Caps.GroupPSI
		}
		trigger := signal.Tick
		if rng.IntN(10) == 0 {
			trigger = signal.Event
		}
		changed := w.view.Changed
		got, _ := w.again(trigger)
		fresh.slots = slots{}
		for _, tr := range fresh.tracks {
			if tr != nil {
				tr.waits.tally.known, tr.waits.at = false, nil
			}
		}
		w.view.Changed = changed
		want, _ := fresh.Step(&w.view)
		w.view.Changed = false
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("step %d (-anew +kept):\n%s", n, diff)
		}
		kept += len(got)
	}
	if kept < 1000 {
		t.Errorf("only %d verdicts", kept)
	}
}
