package whatif

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// engine is one policy at work on a recording, with one set of the model's parameters. Without a policy it follows the recording.
type engine struct {
	model  *Model
	pol    *policy.Compiled
	brain  *decide.State
	random *rand.Rand // nil: the parameters as fitted

	plan []knob.Want
	hold []hold
	gen  uint64
	pair map[pairKey]*model.Estimate

	// The world as it would be.
	used    []float64 // CPUs of each pod
	snap    signal.Snapshot
	cont    []signal.ContainerSample
	event   []signal.ContainerSample // the same for events: without waits
	victims map[string]*victim
	at      []*victim // by container of atGen
	atGen   uint64
	claims  []model.Claim
	claimer []int
	shared  []float64
	bins    [histogram.Buckets]float64
	met     [histogram.Buckets]float64 // of the recorded waits, those that met somebody
	seq     uint64

	meter         meter
	ticks         int
	divergedTicks int
}

// victim is what is kept of an online container from tick to tick.
type victim struct {
	key      string // its pod
	carry    [histogram.Buckets]float64
	pending  float64 // waits beyond the bound that no event has told of yet
	kept     map[int]float64
	heard    int     // events of this tick
	total    float64 // waits of the score's window
	beyond   float64
	span     time.Duration
	attr     float64            // attributed ns
	behind   map[string]float64 // of these, by offline pod
	lastPart []score.Part
	gen      uint64
	est      []*model.Estimate // by pod of gen
}

// estimate is the engine's parameters for a pod at index o.
func (v *victim) estimate(e *engine, w *world, o int) *model.Estimate {
	if v.gen != w.gen || w.gen == 0 || len(v.est) != len(w.snap.Pods) {
		v.gen = w.gen
		v.est = append(v.est[:0], make([]*model.Estimate, len(w.snap.Pods))...)
	}
	if v.est[o] == nil {
		v.est[o] = e.estimate(v.key, w.actor[o].key)
	}
	return v.est[o]
}

func newEngine(m *Model, pol *policy.Compiled) *engine {
	return &engine{model: m, pol: pol, brain: decide.New(), pair: make(map[pairKey]*model.Estimate), victims: make(map[string]*victim)}
}

// estimate is the pair's parameters in this engine.
func (e *engine) estimate(victim, culprit string) *model.Estimate {
	k := pairKey{victim, culprit}
	est := e.pair[k]
	if est == nil {
		x := e.model.estimate(victim, culprit)
		if e.random != nil {
			x = x.Draw(e.random)
		}
		est = &x
		e.pair[k] = est
	}
	return est
}

// step takes a step of the recording.
func (e *engine) step(w *world) {
	if e.pol == nil {
		e.follow(w)
		return
	}
	if e.gen != w.snap.PodsGen || w.snap.PodsGen == 0 || len(e.hold) != len(w.snap.Pods) {
		e.gen = w.snap.PodsGen
		e.hold = holds(e.hold, e.plan, w.snap.Pods)
	}
	apart := !slices.Equal(e.hold, w.was)
	switch {
	case w.tick:
		e.tick(w, apart)
	default:
		e.hear(w, apart)
	}
}

// follow measures the recording itself.
func (e *engine) follow(w *world) {
	if w.tick {
		e.used = append(e.used[:0], w.used...)
		e.measure(w, w.snap.Containers, w.was)
	}
	e.take(w, w.step.Plan, w.step.Notes)
}

// take makes a plan hold and its notes count.
func (e *engine) take(w *world, plan []knob.Want, notes []control.Note) {
	s := e.meter.now(w.snap.Now)
	s.Changes += score.Churn(e.plan, plan)
	if !slices.Equal(e.plan, plan) {
		e.plan = append(e.plan[:0], plan...)
		e.hold = holds(e.hold, e.plan, w.snap.Pods)
	}
	for i := range notes {
		if n := &notes[i]; score.IsCut(n) {
			s.Cuts++
			if !e.guilty(n) {
				s.FalseCuts++
			}
		}
	}
}

// guilty reports whether the pod of a note has a noticeable part in what its victim waits.
func (e *engine) guilty(n *control.Note) bool {
	if n.Owner != control.OwnerCPU || n.Rule == control.RulePlea {
		return true // for cache or memory bandwidth: the model cannot tell
	}
	seen := false
	for _, v := range e.victims {
		if v.key != n.Victim {
			continue
		}
		seen = seen || v.attr > 0 || len(v.lastPart) > 0
		if v.attr > 0 && v.behind[n.Pod] >= score.Noticeable*v.attr {
			return true
		}
		for _, p := range v.lastPart {
			if p.Pod == n.Pod && p.Of >= score.Noticeable {
				return true
			}
		}
	}
	return !seen // what cannot be told is not held against the policy
}

// decide lets the policy decide on a snapshot.
func (e *engine) decide(w *world, snap *signal.Snapshot) {
	e.seq++
	snap.Seq = e.seq
	d := e.brain.Step(snap, e.pol)
	e.take(w, d.Plan, d.Notes)
}

// tick changes what the tick measured by what the policy's plan does otherwise than the recorded one, and lets the policy decide on that.
func (e *engine) tick(w *world, apart bool) {
	e.ticks++
	if apart {
		e.divergedTicks++
		e.divide(w)
	} else {
		e.used = append(e.used[:0], w.used...)
	}
	snap := w.snap
	e.cont = append(e.cont[:0], snap.Containers...)
	objectives := &e.pol.At(snap.Wall).Objectives
	bound := objectives.CPUWaitEvent.D()
	late, often := -1, false // who waited beyond the bound, or too often beyond the objective, without an event that said so
	for i := range e.cont {
		c := &e.cont[i]
		switch w.class[c.Pod] {
		case policy.Online:
			v := e.victim(w, i)
			if apart && c.Wait.At != 0 {
				e.change(w, i, v)
			}
			if apart || bound != w.bound {
				if bound > 0 {
					v.pending = max(0, v.pending+beyond(c.Wait.Buckets, bound)-float64(v.heard))
				}
				if v.pending >= 1 && late < 0 {
					late = i
				}
				if apart && bound > 0 && tooMany(c.Wait.Buckets, objectives.CPUWaitP99.D()) && !often {
					late, often = i, true
				}
			} else {
				v.pending = 0
			}
			v.heard = 0
		case policy.Offline:
			if apart {
				e.account(w, c)
			}
		}
	}
	if late >= 0 && len(e.event) == len(e.cont) {
		if often {
			bound = objectives.CPUWaitP99.D()
		}
		e.invent(w, late, bound, often)
	}
	e.snap = *snap
	e.snap.Containers, e.snap.Events = e.cont, e.heard(w, apart)
	e.measure(w, e.cont, e.hold)
	e.decide(w, &e.snap)

	e.event = append(e.event[:0], e.cont...)
	for i := range e.event {
		e.event[i].Wait = signal.WaitSample{At: e.event[i].Wait.At, Span: e.event[i].Wait.Span}
	}
}

// divide works out what pods use under the policy's plan.
func (e *engine) divide(w *world) {
	e.used = append(e.used[:0], w.used...)
	e.claims, e.claimer = e.claims[:0], e.claimer[:0]
	for p := range w.snap.Pods {
		if w.class[p] != policy.Offline {
			continue
		}
		h := &e.hold[p]
		c := model.Claim{Demand: w.want[p], CPUs: w.cpus, Limit: h.limit}
		if h.cpus > 0 {
			c.CPUs = h.cpus
		}
		if h.frozen {
			c.Demand = 0
		}
		e.claims, e.claimer = append(e.claims, c), append(e.claimer, p)
	}
	e.shared = model.Share(e.shared, w.free, e.claims)
	for k, p := range e.claimer {
		// What was used in the recording was possible there; it stays possible under a hold that is no tighter.
		if h, was := &e.hold[p], &w.was[p]; h.caps(w.cpus) >= was.caps(w.cpus) {
			e.used[p] = max(e.shared[k], min(w.used[p], w.want[p]))
		} else {
			e.used[p] = min(e.shared[k], w.want[p])
		}
	}
}

func (e *engine) victim(w *world, i int) *victim {
	if e.atGen != w.gen || w.gen == 0 || len(e.at) != len(w.snap.Containers) {
		e.atGen = w.gen
		e.at = append(e.at[:0], make([]*victim, len(w.snap.Containers))...)
	}
	if e.at[i] == nil {
		e.at[i] = e.meet(w, i)
	}
	return e.at[i]
}

// meet finds or makes what is kept of a container.
func (e *engine) meet(w *world, i int) *victim {
	c := &w.snap.Containers[i]
	pod := &w.snap.Pods[c.Pod]
	id := pod.UID + "/" + pod.Containers[c.Container].ID
	v := e.victims[id]
	if v == nil {
		v = &victim{key: pod.Key(), behind: make(map[string]float64), kept: make(map[int]float64)}
		e.victims[id] = v
	}
	return v
}

// change makes the waits of the container at index i what they would be.
func (e *engine) change(w *world, i int, v *victim) {
	c := &e.cont[i]
	others := w.others[i]
	e.bins = v.carry
	for _, b := range c.Wait.Buckets {
		e.bins[b.Index] += float64(b.Count)
	}
	clear(e.met[:])
	longest(&e.met, &e.bins, others)
	dispatches := float64(count(&c.Wait))
	blame := slices.Clone(c.Wait.Blame)
	for o := range w.snap.Pods {
		if w.class[o] != policy.Offline || e.hold[o] == w.was[o] && e.used[o] == w.used[o] {
			continue
		}
		est := v.estimate(e, w, o)
		from, to := w.share(w.used[o]), w.share(e.used[o])
		often, longer := est.Change(from, w.was[o].standing, to, e.hold[o].standing)
		ns := w.blamed(i, o)
		switch {
		case often*longer < 1:
			if ns > 0 {
				thin(&e.bins, &e.met, ns/others, min(often, 1), min(longer, 1))
				scale(w, blame, o, min(often, 1)*min(longer, 1))
			}
		default:
			more := (est.Wait(to, e.hold[o].standing) - est.Wait(from, w.was[o].standing)) * 1e3 * dispatches
			more = min(more, 0.5*float64(c.Wait.Span)*max(1, dispatches)) // no wait is longer than the time that it had
			if more > 0 {
				e.model.waits(&e.bins, more, e.hold[o].standing)
				blame = add(w, blame, o, uint64(more))
			}
		}
	}
	out := make([]signal.Bucket, 0, len(c.Wait.Buckets)+8)
	n, sum := uint64(0), 0.0
	for k := range e.bins {
		if e.bins[k] <= 0 {
			continue
		}
		if whole := model.Whole(&e.bins[k]); whole > 0 {
			out = append(out, signal.Bucket{Index: uint16(k), Count: whole})
			n += uint64(whole)
			sum += float64(whole) * middle(k)
		}
	}
	v.carry = e.bins
	c.Wait.Buckets, c.Wait.Blame, c.Wait.Count, c.Wait.SumNS = out, blame, n, uint64(sum)
}

// thin changes a part of the waits that met somebody: of these only often still happen, and they are longer times as long. Those that no
// longer happen are dispatches that hardly wait.
func thin(bins, met *[histogram.Buckets]float64, part, often, longer float64) {
	part = min(part, 1)
	down := int(math.Round(-math.Log2(max(longer, 1e-6)) * (1 << histogram.SubBits)))
	for i := firstLong; i < histogram.Buckets; i++ {
		n := min(met[i]*part, bins[i])
		if n <= 0 {
			continue
		}
		bins[i] -= n
		bins[max(0, firstLong-1)] += n * (1 - often)
		bins[max(firstLong-1, i-down)] += n * often
	}
}

// scale multiplies the blame of an offline pod.
func scale(w *world, blame []signal.Blame, pod int, by float64) {
	for k := range blame {
		if c := int(blame[k].Culprit); c >= w.first[pod] && c < w.first[pod+1] {
			blame[k].NS = uint64(float64(blame[k].NS) * by)
		}
	}
}

// add adds to the blame of an offline pod's first container.
func add(w *world, blame []signal.Blame, pod int, ns uint64) []signal.Blame {
	if w.first[pod] == w.first[pod+1] {
		return blame
	}
	culprit := signal.Culprit(w.first[pod])
	at, ok := slices.BinarySearchFunc(blame, culprit, func(b signal.Blame, c signal.Culprit) int { return int(b.Culprit - c) })
	if ok {
		blame[at].NS += ns
		return blame
	}
	return slices.Insert(blame, at, signal.Blame{Culprit: culprit, NS: ns})
}

// account makes an offline container's CPU time what it would be, and its quota what the policy's plan makes it.
func (e *engine) account(w *world, c *signal.ContainerSample) {
	p := c.Pod
	was, now := w.used[p], e.used[p]
	switch {
	case was > 1e-3:
		c.CPU.UsageNS = uint64(float64(c.CPU.UsageNS) * now / was)
	case c.Container == 0:
		c.CPU.UsageNS = uint64(now * float64(c.CPU.Span))
	}
	switch h := &e.hold[p]; {
	case h.limit > 0:
		c.CPU.PeriodUS = 100_000
		c.CPU.QuotaUS = int64(h.limit * 100_000)
	case w.was[p].limit > 0:
		c.CPU.QuotaUS = -1
	}
}

// beyond is how many waits are longer than bound.
func beyond(buckets []signal.Bucket, bound time.Duration) float64 {
	n := 0.0
	for _, b := range buckets {
		lo, hi := float64(histogram.Lower(int(b.Index))), float64(histogram.Upper(int(b.Index)))
		switch at := float64(bound); {
		case lo >= at:
			n += float64(b.Count)
		case hi > at:
			n += float64(b.Count) * (hi - at) / (hi - lo)
		}
	}
	return n
}

// tooMany is what the kernel side's test of whether too many waits are long (bpf/runqueue.bpf.c, which has the figures) comes to over a tick.
func tooMany(buckets []signal.Bucket, objective time.Duration) bool {
	if objective == 0 {
		return false
	}
	total := 0.0
	for _, b := range buckets {
		total += float64(b.Count)
	}
	return 100*beyond(buckets, objective)-total >= 250
}

// hear passes recorded events on, as far as they would still have happened.
func (e *engine) hear(w *world, apart bool) {
	e.snap = *w.snap
	if apart && len(e.event) == len(w.snap.Containers) {
		e.snap.Containers = e.event
	}
	e.snap.Events = e.heard(w, apart)
	if len(e.snap.Events) == 0 && len(w.snap.Events) > 0 {
		return // nothing would have woken the agent
	}
	e.decide(w, &e.snap)
}

// heard is the events of the step that would still have happened.
func (e *engine) heard(w *world, apart bool) []signal.WaitEvent {
	snap := w.snap
	objectives := &e.pol.At(snap.Wall).Objectives
	bound := objectives.CPUWaitEvent.D()
	if !apart && bound <= w.bound {
		return snap.Events
	}
	var events []signal.WaitEvent
	for _, ev := range snap.Events {
		if ev.Victim < 0 || ev.Victim >= len(snap.Containers) {
			continue
		}
		v := e.victim(w, ev.Victim)
		if apart && ev.Culprit >= 0 && int(ev.Culprit) < len(snap.Containers) && !e.persists(w, v, &ev) {
			continue
		}
		if bound == 0 || ev.WaitNS < uint64(bound) && (!ev.Often || ev.WaitNS < uint64(objectives.CPUWaitP99)) {
			continue
		}
		if !ev.Often {
			v.heard++
		}
		events = append(events, ev)
	}
	return events
}

// persists reports whether a long wait would still have happened, and makes it as long as it would have been. What its culprit will use
// in this tick is not known yet: what it used in the last stands for it.
func (e *engine) persists(w *world, v *victim, ev *signal.WaitEvent) bool {
	o := w.snap.Containers[ev.Culprit].Pod
	if w.class[o] != policy.Offline || e.hold[o] == w.was[o] || o >= len(w.used) {
		return true
	}
	est := e.estimate(v.key, w.actor[o].key)
	to := min(w.used[o], e.hold[o].caps(w.cpus))
	often, longer := est.Change(w.share(w.used[o]), w.was[o].standing, w.share(to), e.hold[o].standing)
	ev.WaitNS = uint64(float64(ev.WaitNS) * min(longer, 1))
	ev.PartNS = uint64(float64(ev.PartNS) * min(longer, 1))
	v.kept[o] += min(often, 1)
	if v.kept[o] < 1 {
		return false
	}
	v.kept[o]--
	return true
}

// invent tells the policy of a long wait that the recording has no event of, half a tick before it is measured.
func (e *engine) invent(w *world, i int, bound time.Duration, often bool) {
	c := &e.cont[i]
	e.victim(w, i).pending = 0
	culprit, most, total := signal.CulpritUnknown, uint64(0), uint64(0)
	for _, b := range c.Wait.Blame {
		total += b.NS
		if b.NS > most {
			culprit, most = b.Culprit, b.NS
		}
	}
	if total == 0 {
		return
	}
	wait := uint64(bound) + 1
	for _, b := range c.Wait.Buckets {
		if lo := histogram.Lower(int(b.Index)); lo > wait {
			wait = lo
		}
	}
	e.snap = *w.snap
	e.snap.Trigger, e.snap.Elapsed = signal.Event, 0
	e.snap.Now -= w.snap.Elapsed / 2
	e.snap.Containers = e.event
	e.snap.Events = []signal.WaitEvent{{
		At: e.snap.Now, Victim: i, WaitNS: wait, Culprit: culprit, PartNS: uint64(float64(wait) * float64(most) / float64(total)), Often: often,
	}}
	e.decide(w, &e.snap)
}

// measure takes a tick into the score.
func (e *engine) measure(w *world, cont []signal.ContainerSample, held []hold) {
	s := e.meter.now(w.snap.Now)
	secs := w.snap.Elapsed.Seconds()
	s.Seconds += secs
	for p := range w.snap.Pods {
		if w.class[p] == policy.Offline {
			s.WorkSeconds += e.used[p] * secs
			s.WantedSeconds += max(w.want[p], e.used[p]) * secs
		}
	}
	if w.objective == nil || w.objective.Objectives.CPUWaitP99 == 0 {
		return
	}
	objective := w.objective.Objectives.CPUWaitP99.D()
	for i := range cont {
		c := &cont[i]
		if w.class[c.Pod] != policy.Online || c.Wait.At == 0 {
			continue
		}
		v := e.victim(w, i)
		v.span += w.snap.Elapsed
		for _, b := range c.Wait.Buckets {
			v.total += float64(b.Count)
		}
		v.beyond += beyond(c.Wait.Buckets, objective)
		for _, b := range c.Wait.Blame {
			v.attr += float64(b.NS)
			if b.Culprit >= 0 && int(b.Culprit) < len(w.snap.Containers) {
				if p := w.snap.Containers[b.Culprit].Pod; w.class[p] == policy.Offline {
					v.behind[w.actor[p].key] += float64(b.NS)
				}
			}
		}
		if v.span < score.Span {
			continue
		}
		v.lastPart = v.lastPart[:0]
		for p := range w.snap.Pods {
			if ns := v.behind[w.actor[p].key]; ns > 0 && w.class[p] == policy.Offline {
				v.lastPart = append(v.lastPart, score.Part{Pod: w.actor[p].key, Of: ns / v.attr, Held: held[p].held})
			}
		}
		if v.total >= float64(w.objective.Judge.MinSamples) {
			s.Window(v.span, v.beyond > 0.01*v.total, v.lastPart)
		}
		v.total, v.beyond, v.span, v.attr = 0, 0, 0, 0
		clear(v.behind)
	}
}

// meter keeps scores by block of time.
type meter struct {
	blocks []score.Score
	open   score.Score
	from   time.Duration
	begun  bool
}

// now is the score of the present block.
func (m *meter) now(at time.Duration) *score.Score {
	if !m.begun {
		m.begun, m.from = true, at
	}
	if at-m.from >= Block {
		m.blocks = append(m.blocks, m.open)
		m.open, m.from = score.Score{}, at
	}
	return &m.open
}

// close ends the last block. One that is too short to stand for itself goes to the one before it.
func (m *meter) close() {
	if n := len(m.blocks); n > 0 && m.open.Seconds < Block.Seconds()/2 {
		m.blocks[n-1].Add(m.open)
	} else {
		m.blocks = append(m.blocks, m.open)
	}
}
