// Package decide is one step of the agent's brain: snapshot and policy in, verdicts and plan out.
//
// It is pure. The daemon and a replay call the same Step; the same snapshots and policies in the same order give the same decisions,
// byte for byte, on any machine.
package decide

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Policy is what Step needs of a *policy.Compiled.
type Policy interface {
	// ID changes with the content.
	ID() string
	// At is the spec that holds at a local wall-clock time. The caller does not change it.
	At(wall time.Time) *policy.Spec
	// Classify gives the class of a pod and the name of the rule that decided.
	Classify(policy.Subject) (policy.Class, string)
}

// Decision is what a step came to. Its slices, and what they point to, are valid until the next step, which uses them again: whoever
// keeps a decision copies it.
type Decision struct {
	Spec *policy.Spec // the spec that held, windows applied
	// Class and ClassRule are each pod's class and the rule that decided it, by index into Snapshot.Pods.
	Class     []policy.Class
	ClassRule []string
	// Grant is how far each offline pod is held below the posture, by index into Snapshot.Pods.
	Grant []control.Grant

	Verdicts []judge.Verdict // ticks only: nil on events
	Findings []judge.Finding // about the step's events

	// Plan is every knob that should be held, sorted by group and kind, no target twice. In observe mode it is empty, and
	// Would is what it would have been; in enforce mode Would is nil.
	Plan, Would []knob.Want
	// Shares is what every online and offline pod should have of the hardware that resctrl controls; the planner of classes makes
	// classes of service of it. It is the same in both modes.
	Shares []knob.Share
	// Changed says that Plan or Would differ from the step before. Where it is false there is nothing new to apply.
	Changed bool
	Notes   []control.Note

	// Wake is when the next step is wanted at the latest even if no tick is due by then (CLOCK_MONOTONIC): a frozen pod is to
	// be thawed. 0: no wish. A snapshot with trigger Event and no events will do.
	Wake time.Duration
}

// State is everything that is remembered between steps. It holds no clock, file or pointer into a snapshot (but the label maps of
// pods, which nobody changes).
type State struct {
	roster roster
	judge  judge.State
	cpu    control.CPU
	burst  control.Burst
	rdt    control.RDT

	shares []knob.Share
	mode   policy.Mode
	wants  [2]wants     // of the controllers of CPU and burst
	plan   []knob.Want  // all of them, sorted, no target twice
	sorted []*knob.Want `wire:"-"` // scratch of merge
	notes  []control.Note
	grant  []control.Grant
	view   judge.View
	input  control.Input
}

// New is a state that remembers nothing.
func New() *State { return &State{} }

// Baselines copies out what was learned of workloads; SetBaselines takes over what an earlier run has learned. A replay that is to give
// the same decisions has to begin with the same.
func (s *State) Baselines() judge.Baselines { return s.judge.Baselines() }

// SetBaselines fails, and changes nothing, on what no run can have written.
func (s *State) SetBaselines(b *judge.Baselines) error { return s.judge.SetBaselines(b) }

// Step takes one step.
func (s *State) Step(snap *signal.Snapshot, pol Policy) Decision {
	spec := pol.At(snap.Wall)
	turned := spec.Mode != s.mode
	if turned {
		// What was only thought so far has taught nothing about what acting does, and the other way round: begin at the posture.
		s.cpu, s.burst, s.rdt, s.mode = control.CPU{}, control.Burst{}, control.RDT{}, spec.Mode
	}
	changed := s.roster.update(snap, pol)
	s.view = s.roster.view(snap, spec, changed || turned)
	verdicts, findings := s.judge.Step(&s.view)

	s.input = control.Input{View: &s.view, Judge: &s.judge, Verdicts: verdicts, Findings: findings, Acting: spec.Mode == policy.Enforce}
	s.input.CPU = &s.cpu
	s.rdt.Step(&s.input)
	s.input.Pleas = s.rdt.Pleas()
	s.cpu.Step(&s.input)
	s.burst.Step(&s.input)
	s.notes = append(append(append(s.notes[:0], s.cpu.Notes()...), s.burst.Notes()...), s.rdt.Notes()...)

	cpu, rdt := !s.cpu.Settled(&s.input), !s.rdt.Settled(&s.input)
	if cpu || rdt {
		s.grants(len(snap.Pods))
	}
	if rdt {
		s.shares = s.rdt.Shares(&s.input, s.shares[:0])
	}
	d := Decision{
		Spec: spec, Class: s.roster.class, ClassRule: s.roster.rule, Grant: s.grant, Shares: s.shares,
		Verdicts: verdicts, Findings: findings, Wake: s.cpu.Wake(),
	}
	d.Changed = s.merge(snap, cpu) || turned
	d.Notes = s.notes
	if spec.Mode == policy.Enforce {
		d.Plan = s.plan
	} else {
		d.Would = s.plan
		d.Wake = 0 // nothing is really frozen
	}
	s.view, s.input = judge.View{}, control.Input{} // keep nothing of the snapshot
	return d
}

// wants is what a controller wants, in its order, now and before.
type wants struct{ now, before []knob.Want }

func (s *State) grants(pods int) {
	s.grant = s.grant[:0]
	for i := range pods {
		g := s.cpu.Grant(i)
		g.Ways, g.MB = s.rdt.Limits(i)
		s.grant = append(s.grant, g)
	}
}

// merge makes one plan of what the controllers want and reports whether it differs from the step before. cpu says that what the CPU controller
// wants may have changed.
func (s *State) merge(snap *signal.Snapshot, cpu bool) (changed bool) {
	if w := &s.wants[0]; cpu {
		w.now, w.before = s.cpu.Wants(&s.input, w.before[:0]), w.now
		changed = !slices.Equal(w.now, w.before)
	}
	if w := &s.wants[1]; !s.burst.Settled(&s.input) {
		w.now, w.before = s.burst.Wants(&s.input, w.before[:0]), w.now
		changed = changed || !slices.Equal(w.now, w.before)
	}
	if !changed {
		return false
	}
	// Wants are large, so only pointers to them are sorted.
	s.sorted = s.sorted[:0]
	for k := range s.wants {
		for i := range s.wants[k].now {
			s.sorted = append(s.sorted, &s.wants[k].now[i])
		}
	}
	slices.SortStableFunc(s.sorted, func(a, b *knob.Want) int {
		if c := strings.Compare(a.Cgroup, b.Cgroup); c != 0 {
			return c
		}
		return cmp.Compare(a.Kind, b.Kind)
	})
	s.plan = s.plan[:0]
	for _, w := range s.sorted {
		if n := len(s.plan); n > 0 && s.plan[n-1].Target == w.Target {
			first := &s.plan[n-1]
			s.notes = append(s.notes, control.Note{At: snap.Now, Owner: w.Owner, Rule: control.RuleSkip, Pod: w.Pod,
				Text: first.Kind.String() + " of " + first.Cgroup + " is " + first.Pod + "'s already"})
			continue
		}
		s.plan = append(s.plan, *w)
	}
	return true
}
