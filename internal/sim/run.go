package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Result is what became of a scenario.
type Result struct {
	Scenario *Scenario
	Policy   string // its name
	Score    score.Score
	// Online and Offline are lines of one point for each Every, by pod.
	Every           time.Duration
	Online, Offline []Line
	Notes           []Note
	// Reversals counts how often a pod was cut after it had been given something, or the other way round.
	Reversals int
	// CPIRise is how far the CPI of online pods was above that of each alone, in percent.
	CPIRise float64
	// FirstHurt and FirstCut are when an online pod was first beyond its objective, and when something was first cut; -1: never.
	FirstHurt, FirstCut time.Duration
	// LastChange is when a knob last turned, the posture not counted.
	LastChange time.Duration
	// Held names the pods that were below the posture at the end.
	Held []string
	// Broken is what must never happen and did.
	Broken []string
}

// Note is a line of the decision log, with the time since the run began.
type Note struct {
	T time.Duration
	control.Note
}

// Line is a pod over time.
type Line struct {
	Pod string
	// P99 is the true 99th percentile of its waits, µs; online pods. Points at which it was not there are -1.
	P99 []float64
	// Objective is what it was promised, µs.
	Objective []float64
	// Used and Wanted are CPUs; Grant is what it may use, CPUs.
	Used, Wanted, Grant []float64
}

// Run runs a scenario under a policy: its own if pol is nil. The objectives that count for the result are the scenario's own in any case:
// a policy does not get better by promising less.
func Run(sc *Scenario, pol *policy.Compiled) (*Result, error) { return Watch(sc, pol, nil) }

// Watch is Run and shows every step: what the agent saw and what it came to. Both are valid until watch returns.
func Watch(sc *Scenario, pol *policy.Compiled, watch func(*signal.Snapshot, *decide.Decision)) (*Result, error) {
	own, err := sc.Compile()
	if err != nil {
		return nil, err
	}
	if pol == nil {
		pol = own
	}
	r := &runner{
		plant: newPlant(sc), pol: pol, own: own, watch: watch, brain: decide.New(), last: make(map[string]bool), shares: make(map[string][2]int),
		res: &Result{Scenario: sc, Policy: pol.Name(), FirstHurt: -1, FirstCut: -1, LastChange: -1},
	}
	total := sc.Duration.D()
	r.res.Every = max(sc.Tick.D(), (total / 600).Truncate(sc.Tick.D()))
	for i := range sc.Pods {
		l := Line{Pod: sc.Pods[i].Name}
		if sc.Pods[i].Class == policy.Online {
			r.res.Online = append(r.res.Online, l)
		} else {
			r.res.Offline = append(r.res.Offline, l)
		}
	}
	on, off := 0, 0
	for i := range sc.Pods {
		if sc.Pods[i].Class == policy.Online {
			r.lines = append(r.lines, &r.res.Online[on])
			on++
		} else {
			r.lines = append(r.lines, &r.res.Offline[off])
			off++
		}
	}
	r.decide(signal.Tick)
	tick := sc.Tick.D()
	for r.plant.t < total {
		r.plant.advance()
		r.work()
		switch at := r.plant.t; {
		case at%tick < slice:
			r.decide(signal.Tick)
			r.measure(tick)
		case len(r.plant.events) > 0 || r.wake != 0 && origin+at >= r.wake:
			r.decide(signal.Event)
		}
	}
	r.finish()
	return r.res, nil
}

type runner struct {
	plant  *plant
	pol    *policy.Compiled
	own    *policy.Compiled // the scenario's
	watch  func(*signal.Snapshot, *decide.Decision)
	brain  *decide.State
	res    *Result
	lines  []*Line // by index into Scenario.Pods
	plan   []knob.Want
	grant  []control.Grant
	wake   time.Duration
	point  time.Duration
	shares map[string][2]int // ways and bandwidth of each offline pod
	last   map[string]bool   // which way each pod last went
	since  time.Duration     // within the score's window
}

// decide takes a step and makes its plan hold.
func (r *runner) decide(trigger signal.Trigger) {
	p := r.plant
	snap := p.snapshot(trigger)
	d := r.brain.Step(snap, r.pol)
	r.wake = d.Wake
	p.bound = d.Spec.Objectives.CPUWaitEvent.D()
	p.often = d.Spec.Objectives.CPUWaitP99.D()
	p.long = max(r.objective(), time.Millisecond)
	r.check(snap, &d)
	if r.watch != nil {
		r.watch(snap, &d)
	}
	if n := score.Churn(r.plan, d.Plan); n > 0 {
		r.res.Score.Changes += n
		r.res.LastChange = p.t
	}
	r.plan = slices.Clone(d.Plan)
	r.grant = append(r.grant[:0], d.Grant...)
	for i := range d.Notes {
		r.note(&d.Notes[i])
	}
	p.apply(d.Plan)
	if d.Spec.Mode == policy.Enforce {
		r.hold(d.Shares)
	} else {
		p.share(nil)
	}
}

// hold makes the shares of cache and bandwidth hold.
func (r *runner) hold(shares []knob.Share) {
	for i := range shares {
		s := &shares[i]
		if s.Role == knob.RoleOffline && (s.Ways.N > 0 && s.Ways.N < 1 || s.MB.N > 0 && s.MB.N < 10) {
			r.broken("%d ways and %d %% of the bandwidth for %s are less than the machine takes", s.Ways.N, s.MB.N, s.Pod)
		}
		was := r.shares[s.Pod]
		now := [2]int{s.Ways.N, s.MB.N}
		if s.Role == knob.RoleOffline && was != now {
			r.shares[s.Pod] = now
			r.res.Score.Changes++
			r.res.LastChange = r.plant.t
		}
	}
	r.plant.share(shares)
}

// note takes in a line of the decision log.
func (r *runner) note(n *control.Note) {
	p := r.plant
	r.res.Notes = append(r.res.Notes, Note{p.t, *n})
	up := false
	switch {
	case score.IsCut(n):
		if r.res.FirstCut < 0 {
			r.res.FirstCut = p.t
		}
		r.res.Score.Cuts++
		if !r.guilty(n) {
			r.res.Score.FalseCuts++
		}
	case n.From == n.To:
		return
	case n.Rule == control.RuleRegrow, n.Rule == control.RuleTakeBack, n.Rule == control.RuleRelease, n.Rule == control.RuleThaw:
		up = true
	default:
		return
	}
	if was, ok := r.last[n.Pod]; ok && was != up {
		r.res.Reversals++
	}
	r.last[n.Pod] = up
}

// guilty reports whether the pod of a note really hurts its victim.
func (r *runner) guilty(n *control.Note) bool {
	if n.Owner != control.OwnerCPU || n.Rule == control.RulePlea {
		return r.plant.pulls(n.Pod, n.Victim) >= score.Noticeable
	}
	for _, v := range r.plant.present {
		if v.static.Key() != n.Victim {
			continue
		}
		for _, p := range r.plant.parts(v) {
			if p.Pod == n.Pod && p.Of >= score.Noticeable {
				return true
			}
		}
	}
	return false
}

// tail is the part of the waits since the window began that was beyond the objective.
func (b *body) tail() float64 {
	total := b.base
	for _, p := range b.truth {
		total += p
	}
	return total / float64(max(1, b.slices))
}

// parts is how much of a victim's waits beyond its objective offline pods make.
func (p *plant) parts(v *body) []score.Part {
	total := v.base
	for _, us := range v.truth {
		total += us
	}
	var out []score.Part
	for i, us := range v.truth {
		if o := p.bodies[i]; us > 0 && o.Class == policy.Offline {
			out = append(out, score.Part{Pod: o.static.Key(), Of: us / max(total, 1e-9), Held: o.held})
		}
	}
	return out
}

// work adds a slice's work of offline pods.
func (r *runner) work() {
	secs := slice.Seconds()
	r.res.Score.Seconds += secs
	n := float64(len(r.plant.cpus))
	for _, b := range r.plant.present {
		if b.Class == policy.Offline {
			want := min(b.demand, n)
			if b.Limit > 0 {
				want = min(want, b.Limit)
			}
			r.res.Score.WorkSeconds += b.used * b.speed() * secs
			r.res.Score.WantedSeconds += want * secs
		}
	}
}

// objective is what online pods were promised at this time.
func (r *runner) objective() time.Duration {
	return r.own.At(r.plant.wall()).Objectives.CPUWaitP99.D()
}

// measure takes a tick's truth into score and lines.
func (r *runner) measure(tick time.Duration) {
	p := r.plant
	objective := float64(r.objective()) / 1e3
	r.since += tick
	draw := p.t >= r.point
	for _, b := range p.bodies {
		l := r.lines[b.index]
		if !b.present(p.t) {
			if draw {
				l.P99, l.Objective = append(l.P99, -1), append(l.Objective, objective)
				l.Used, l.Wanted, l.Grant = append(l.Used, -1), append(l.Wanted, -1), append(l.Grant, -1)
			}
			continue
		}
		if draw {
			p99 := 0.0
			if b.Class == policy.Online {
				p99 = b.mix.Quantile(0.99)
				if b.quota > 0.01 {
					p99 = max(p99, throttledUS*(1-0.01/b.quota))
				}
			}
			l.P99, l.Objective = append(l.P99, p99), append(l.Objective, objective)
			l.Used, l.Wanted = append(l.Used, b.used), append(l.Wanted, min(b.demand, float64(len(p.cpus))))
			l.Grant = append(l.Grant, b.may())
		}
		if b.Class == policy.Online && r.since >= score.Span {
			violated := objective > 0 && b.tail() > 0.01
			if violated && r.res.FirstHurt < 0 {
				r.res.FirstHurt = p.t - r.since
			}
			r.res.Score.Window(r.since, violated, p.parts(b))
			b.base, b.slices = 0, 0
			clear(b.truth)
		}
	}
	if r.since >= score.Span {
		r.since = 0
	}
	if draw {
		r.point += r.res.Every
	}
}

// may is the CPUs that the pod may use.
func (b *body) may() float64 {
	g := float64(b.mask)
	if b.limit > 0 {
		g = min(g, b.limit)
	}
	if b.frozen {
		g = 0
	}
	return g
}

// finish looks at what is left, and at whether it goes.
func (r *runner) finish() {
	p := r.plant
	r.res.CPIRise = p.rise()
	for i, g := range r.grant {
		if g != (control.Grant{}) && i < len(p.present) {
			r.res.Held = append(r.res.Held, p.present[i].Name)
		}
	}
	snap := p.snapshot(signal.Tick)
	if d := r.brain.Step(snap, r.pol.WithMode(policy.Observe)); len(d.Plan) > 0 {
		r.broken("observe mode left %d knobs held", len(d.Plan))
	}
	p.present, p.gen = nil, p.gen+1
	if d := r.brain.Step(p.snapshot(signal.Tick), r.pol); len(d.Plan) > 0 {
		r.broken("%d knobs held on a node without pods", len(d.Plan))
	}
}

func (r *runner) broken(format string, args ...any) {
	const most = 10
	if len(r.res.Broken) < most {
		r.res.Broken = append(r.res.Broken, fmt.Sprintf("%.2fs: ", r.plant.t.Seconds())+fmt.Sprintf(format, args...))
	}
}

// check checks what must hold of every decision.
func (r *runner) check(snap *signal.Snapshot, d *decide.Decision) {
	if d.Spec.Mode == policy.Observe && len(d.Plan) > 0 {
		r.broken("a plan in observe mode")
	}
	online := snap.Node.Topology.Set()
	for i := range d.Plan {
		w := &d.Plan[i]
		if i > 0 && d.Plan[i-1].Cgroup == w.Cgroup && d.Plan[i-1].Kind == w.Kind {
			r.broken("%s of %s twice", w.Kind, w.Cgroup)
		}
		var b *body
		for _, o := range r.plant.present {
			if w.Cgroup == o.static.Cgroup || strings.HasPrefix(w.Cgroup, o.static.Cgroup+"/") {
				b = o
			}
		}
		if b == nil || b.Class != policy.Offline && !(b.Class == policy.Online && w.Kind == knob.CPUBurst) {
			r.broken("%s of %s, which is no offline pod", w.Kind, w.Cgroup)
			continue
		}
		switch w.Kind {
		case knob.CPUSet:
			allowed := online
			if !b.allowed.Empty() {
				allowed = allowed.And(b.allowed)
			}
			if w.Value.CPUs.Empty() || !w.Value.CPUs.SubsetOf(allowed) {
				r.broken("mask %s of %s outside %s", w.Value.CPUs, b.Name, allowed)
			}
			if w.Value.CPUs.Len() < min(d.Spec.CPU.CPUs.Floor, allowed.Len()) {
				r.broken("%s of %s is below the floor of %d", w.Value.CPUs, b.Name, d.Spec.CPU.CPUs.Floor)
			}
		case knob.CPUQuota:
			if w.Value.N < 1000 || w.Value.N*100 < int64(d.Spec.CPU.Quota.FloorPercent)*w.Value.Period {
				r.broken("quota %s of %s is below the floor", w.Value.Format(w.Kind), b.Name)
			}
			if b.Limit > 0 && float64(w.Value.N)/float64(w.Value.Period) > b.Limit+1e-9 {
				r.broken("quota %s of %s loosens its own limit", w.Value.Format(w.Kind), b.Name)
			}
		}
	}
}
