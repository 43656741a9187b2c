package judge

import (
	"math"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// State is what the judge remembers between steps: a sliding window for each online container. The zero value is ready.
type State struct {
	tracks []*track          // by index into Containers; nil for what is not online
	byID   map[uint32]*track // by ContainerID
	podAt  map[uint32]int    // PodID -> index into Pods
	steal  sums              // node: stolen, total CPU time
	// stolen is what steal comes to, in thousandths, at this step.
	stolen int   `wire:"-"`
	slots  slots `wire:"-"`

	baselines map[string]*baseline // by Workload
	uses      uint64               // of baselines, to know the oldest
	traffic   traffic

	verdicts []Verdict // reused
	shares   []Share   // backs the verdicts' shares; reused
	findings []Finding // reused
	// accounted is what one event's waits went to; reused.
	accounted []Share
	scratch   [binSamples]uint32
}

// slots is what decides which verdict is about which container and axis, and by what it is judged: while it stays the same, the verdict
// of the tick before lies where the next one will.
type slots struct {
	spec      *policy.Spec
	psi, perf bool // capabilities
}

// track is one online container's windows. What every tick looks at comes first.
type track struct {
	sample int  // index into Containers; -1 while sync has not met it
	memory sums // stalled µs, µs
	quota  sums // throttled periods, periods
	levels [axes]standing
	waits  waits
	io     sums // as memory
	cpi    cpiTrack
	base   *baseline
}

// standing is a level and when it was reached.
type standing struct {
	known bool
	level Level
	since time.Duration
}

// reach notes the level of this step and returns since when it has held.
func (s *standing) reach(l Level, now time.Duration) time.Duration {
	if !s.known || s.level != l {
		*s = standing{known: true, level: l, since: now}
	}
	return s.since
}

// Step judges one step. Findings are about the view's events, in their order; verdicts exist for ticks only, in the order of
// Containers, then of axes, which are the same for all. Both are valid until the next step.
func (s *State) Step(v *View) ([]Verdict, []Finding) {
	if v.Changed {
		s.sync(v)
		s.slots = slots{}
	}
	s.findings = s.findings[:0]
	for i := range v.Events {
		s.find(v, i)
	}
	if v.Trigger != signal.Tick {
		return nil, s.findings
	}

	s.verdicts, s.shares = s.verdicts[:0], s.shares[:0]
	w := v.Spec.Judge.Window.D()
	n := &v.Node.CPU
	if n.At != 0 {
		total := uint64(n.Span) * uint64(len(v.Node.Topology.CPUs))
		s.steal.add(n.At, n.Span, w, n.StealNS, total)
	}
	s.stolen = permille(s.steal.all[0], s.steal.all[1])
	s.survey(v)
	now := slots{v.Spec, v.Node.Caps.GroupPSI, v.Node.Caps.Perf}
	same := now == s.slots
	s.slots = now
	for i, t := range s.tracks {
		if t == nil {
			continue
		}
		pressed := s.fold(v, i, t, w)
		s.judge(v, i, t, same && !pressed)
	}
	return s.verdicts, s.findings
}

// Reading is the present window of an online container, for whoever wants to compare it with a later one.
type Reading struct {
	P99     time.Duration
	Samples uint64
	Events  uint64        // single waits beyond the bound
	Window  time.Duration // the time covered; 0: nothing yet
}

// Read gives the present window of the container at index i; ok is false for one that is not online.
func (s *State) Read(i int) (r Reading, ok bool) {
	if i < 0 || i >= len(s.tracks) || s.tracks[i] == nil {
		return Reading{}, false
	}
	w := &s.tracks[i].waits
	return Reading{P99: w.tally.p99(), Samples: w.tally.total(), Events: w.events[0], Window: w.covered}, true
}

// Judges reports whether the container at index i is online, as of the last step.
func (s *State) Judges(i int) bool { return i < len(s.tracks) && s.tracks[i] != nil }

// Index finds an online container by its ContainerID.
func (s *State) Index(id uint32) (i int, ok bool) {
	t, ok := s.byID[id]
	if !ok {
		return -1, false
	}
	return t.sample, true
}

// PodIndex finds a pod of the present view by its PodID.
func (s *State) PodIndex(id uint32) (i int, ok bool) {
	i, ok = s.podAt[id]
	return i, ok
}

// sync follows containers and pods to their new indexes, and forgets those that are gone or no longer online.
func (s *State) sync(v *View) {
	if s.byID == nil {
		s.byID, s.podAt = make(map[uint32]*track), make(map[uint32]int)
	}
	clear(s.podAt)
	for i, id := range v.PodID {
		s.podAt[id] = i
	}
	for _, t := range s.byID {
		t.sample = -1
	}
	s.tracks = s.tracks[:0]
	for i := range v.Containers {
		var t *track
		if v.Online(i) {
			t = s.byID[v.ContainerID[i]]
			if t == nil {
				t = &track{}
				s.byID[v.ContainerID[i]] = t
			}
			t.sample = i
			t.waits.follow(s.podAt)
			t.cpi.follow(s.podAt)
			if t.base == nil {
				p := &v.Pods[v.Containers[i].Pod]
				t.base = s.baselineOf(Workload(p, p.Containers[v.Containers[i].Container].Name))
			}
		}
		s.tracks = append(s.tracks, t)
	}
	for id, t := range s.byID {
		if t.sample < 0 {
			delete(s.byID, id)
		}
	}
}

// fold takes what is new of a container into its windows. pressed: its pressure is.
func (s *State) fold(v *View, i int, t *track, w time.Duration) (pressed bool) {
	c := &v.Containers[i]
	if c.Wait.At != 0 {
		t.waits.add(v, i, w)
	}
	if c.CPU.At != 0 && c.CPU.At != t.quota.at {
		t.quota.add(c.CPU.At, c.CPU.Span, w, c.CPU.ThrottledPeriods, c.CPU.Periods)
	}
	if p := &c.PSI; p.At != 0 && p.At != t.memory.at { // the window of io has the same readings
		us := uint64(p.Span / time.Microsecond)
		t.memory.add(p.At, p.Span, w, p.Memory.SomeUS, us)
		t.io.add(p.At, p.Span, w, p.IO.SomeUS, us)
		return true
	}
	return false
}

// judge appends the container's verdicts, one for each axis that has an objective. steady: there is nothing new about its pressure, nor about where
// its verdicts lie.
func (s *State) judge(v *View, i int, t *track, steady bool) {
	o, c := &v.Spec.Objectives, &v.Containers[i]
	if o.CPUWaitP99 > 0 {
		vd := s.next(v, i, CPU)
		s.cpu(v, i, t, vd)
		settle(v, t, vd)
	}
	if v.Node.Caps.GroupPSI {
		fresh := steady && freshness(v, c.PSI.At) == None
		if o.MemoryStallPercent > 0 && !(fresh && s.again(t, Memory)) {
			vd := s.next(v, i, Memory)
			stall(v, vd, c.PSI.At, &t.memory, o.MemoryStallPercent)
			settle(v, t, vd)
		}
		if o.IOStallPercent > 0 && !(fresh && s.again(t, IO)) {
			vd := s.next(v, i, IO)
			stall(v, vd, c.PSI.At, &t.io, o.IOStallPercent)
			settle(v, t, vd)
		}
	}
	if v.Node.Caps.Perf && o.CPIRisePercent > 0 {
		s.judgeCPI(v, i, t)
	}
}

// next appends a verdict that says that all is well, to be filled in where it lies. It is valid until the next one is appended.
//
// Verdicts are large, there are hundreds of them a tick, and most say what the one in their place said a tick before, so that is not wiped out
// first: whoever fills in a verdict that is OK sets all that he ever sets in one that is OK, and unknown clears it.
func (s *State) next(v *View, i int, axis Axis) *Verdict {
	n := len(s.verdicts)
	if n == cap(s.verdicts) {
		s.verdicts = slices.Grow(s.verdicts, max(1, int(Cache)*len(s.byID)-n)) // without counters there is none on the cache
	}
	s.verdicts = s.verdicts[:n+1]
	vd := &s.verdicts[n]
	if vd.Axis != axis || vd.Level != OK {
		*vd = Verdict{Axis: axis}
	}
	vd.Sample, vd.Pod, vd.Reason = i, v.Containers[i].Pod, None
	return vd
}

// again appends the verdict of the tick before, which is where it was, unless that was that nothing is known. Pressure is read once a second,
// and so at most ticks there is nothing new to say of it.
func (s *State) again(t *track, axis Axis) bool {
	if l := &t.levels[axis]; !l.known || l.level == Unknown {
		return false
	}
	s.verdicts = s.verdicts[:len(s.verdicts)+1]
	return true
}

// unknown makes the verdict one of which nothing can be said.
func (vd *Verdict) unknown(r Reason) {
	*vd = Verdict{Sample: vd.Sample, Pod: vd.Pod, Axis: vd.Axis, Level: Unknown, Reason: r, Evidence: Evidence{Objective: vd.Objective}}
}

// settle notes since when the verdict's level has held.
func settle(v *View, t *track, vd *Verdict) { vd.Since = t.levels[vd.Axis].reach(vd.Level, v.Now) }

func (s *State) append(v *View, i int, t *track, vd Verdict) {
	vd.Sample, vd.Pod = i, v.Containers[i].Pod
	settle(v, t, &vd)
	s.verdicts = append(s.verdicts, vd)
}

// freshness says whether a signal read at at may be judged.
func freshness(v *View, at time.Duration) Reason {
	switch {
	case at == 0:
		return Unmeasured
	case v.Now-at > v.Spec.Safety.StaleAfter.D():
		return Stale
	}
	return None
}

// grade compares a value with its objective.
func grade(value, objective int64, j *policy.Judge) Level {
	switch {
	case value > objective:
		return Violated
	case value*100 > objective*int64(j.WatchPercent):
		return Watch
	}
	return OK
}

// stall judges a PSI total. Nobody is named: pressure does not say whose it is.
func stall(v *View, vd *Verdict, at time.Duration, w *sums, percent float64) {
	if r := freshness(v, at); r != None {
		vd.unknown(r)
		return
	}
	vd.Window = w.covered
	vd.StallPermille = permille(w.all[0], w.all[1])
	vd.StallObjective = int(math.Round(percent * 10))
	vd.Level = grade(int64(vd.StallPermille), int64(vd.StallObjective), &v.Spec.Judge)
	if vd.Level != OK {
		vd.Reason = Pressure
	}
}
