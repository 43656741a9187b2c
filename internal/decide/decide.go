// Package decide is one step of the agent's brain: snapshot and policy in, verdicts and plan out.
//
// It is pure. The daemon and a replay call the same Step; the same snapshots and policies in the same order give the same decisions,
// byte for byte, on any machine.
package decide

import (
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
	// Changed says that Plan or Would differ from the step before. Where it is false there is nothing new to apply.
	Changed bool
	Notes   []control.Note

	// Wake is when the next step is wanted at the latest even if no tick is due by then (CLOCK_MONOTONIC): a frozen pod is to
	// be thawed. 0: no wish. A snapshot with trigger Event and no events will do.
	Wake time.Duration
}

// State is everything that is remembered between steps.
type State struct{}

// New is a state that remembers nothing.
func New() *State { return &State{} }

// Step takes one step.
func (s *State) Step(snap *signal.Snapshot, pol Policy) Decision { return Decision{} }
