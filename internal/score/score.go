// Package score puts figures on what a policy did to a node: how long online pods were beyond their objective, how much work offline
// pods got done, how often knobs turned, how many cuts hit the wrong pod and how much harm was left standing. The simulator, what-if and
// tune all use it, so that their figures can be compared.
package score

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/knob"
)

// Span is the time over which one verdict of the score is made.
const Span = time.Second

// Score is a sum over time; scores of parts of a run add up to that of the whole.
type Score struct {
	Seconds          float64 `json:"seconds"`          // of the run
	OnlineSeconds    float64 `json:"onlineSeconds"`    // over all online containers, in windows with enough waits to judge
	ViolationSeconds float64 `json:"violationSeconds"` // of these, beyond the objective
	MissedSeconds    float64 `json:"missedSeconds"`    // of these, with an offline pod to blame that nothing held back
	WorkSeconds      float64 `json:"workSeconds"`      // CPU time of offline pods, at their full speed
	WantedSeconds    float64 `json:"wantedSeconds"`    // what they would have used had nothing held them back
	Changes          int     `json:"changes"`          // knobs that turned, the standing posture not counted
	Cuts             int     `json:"cuts"`             //
	FalseCuts        int     `json:"falseCuts"`        // of pods that had no noticeable part in the victim's wait
}

// Add adds o to s.
func (s *Score) Add(o Score) {
	s.Seconds += o.Seconds
	s.OnlineSeconds += o.OnlineSeconds
	s.ViolationSeconds += o.ViolationSeconds
	s.MissedSeconds += o.MissedSeconds
	s.WorkSeconds += o.WorkSeconds
	s.WantedSeconds += o.WantedSeconds
	s.Changes += o.Changes
	s.Cuts += o.Cuts
	s.FalseCuts += o.FalseCuts
}

// Violation is the part of the online time beyond the objective, in percent.
func (s Score) Violation() float64 { return percent(s.ViolationSeconds, s.OnlineSeconds) }

// Missed is the part of the online time that nobody helped with, in percent.
func (s Score) Missed() float64 { return percent(s.MissedSeconds, s.OnlineSeconds) }

// Work is the CPUs' worth of work that offline pods got done.
func (s Score) Work() float64 { return ratio(s.WorkSeconds, s.Seconds) }

// WorkPercent is the part of what they wanted, in percent; 100 if they wanted nothing.
func (s Score) WorkPercent() float64 {
	if s.WantedSeconds == 0 {
		return 100
	}
	return percent(s.WorkSeconds, s.WantedSeconds)
}

// Churn is knob changes an hour.
func (s Score) Churn() float64 { return ratio(float64(s.Changes)*3600, s.Seconds) }

// FalseCutsPerHour is cuts of innocent pods an hour.
func (s Score) FalseCutsPerHour() float64 { return ratio(float64(s.FalseCuts)*3600, s.Seconds) }

func percent(part, whole float64) float64 { return 100 * ratio(part, whole) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Blame says from which part of a victim's wait a pod counts as having to do with it, and from which as its cause.
const (
	Noticeable = 0.05
	Cause      = 0.4
)

// Part is an offline pod's true part of a victim's wait beyond what it waits by itself.
type Part struct {
	Pod  string
	Of   float64 // 0 to 1
	Held bool    // something holds the pod below the posture
}

// Window adds a window of d of one online container.
func (s *Score) Window(d time.Duration, violated bool, parts []Part) {
	s.OnlineSeconds += d.Seconds()
	if !violated {
		return
	}
	s.ViolationSeconds += d.Seconds()
	cause, held := false, false
	for _, p := range parts {
		if p.Of >= Cause {
			cause = true
			held = held || p.Held
		}
	}
	if cause && !held {
		s.MissedSeconds += d.Seconds()
	}
}

// IsCut reports whether a note is about taking something from a pod.
func IsCut(n *control.Note) bool {
	switch n.Rule {
	case control.RuleEventCut, control.RuleTickCut, control.RuleJointCut, control.RuleWidenCut, control.RuleRegrowUndo, control.RulePlea:
		return n.From != n.To
	}
	return false
}

// Churn counts how many knobs differ between two plans, each sorted by group and kind. Standing postures don't count: they change only
// when pods come and go.
func Churn(before, after []knob.Want) int {
	n, i, j := 0, 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case j == len(after) || i < len(before) && less(&before[i], &after[j]):
			n += counts(&before[i])
			i++
		case i == len(before) || less(&after[j], &before[i]):
			n += counts(&after[j])
			j++
		default:
			if before[i].Value != after[j].Value {
				n += max(counts(&before[i]), counts(&after[j]))
			}
			i++
			j++
		}
	}
	return n
}

func less(a, b *knob.Want) bool {
	if a.Cgroup != b.Cgroup {
		return a.Cgroup < b.Cgroup
	}
	return a.Kind < b.Kind
}

func counts(w *knob.Want) int {
	if w.Rule == control.RulePosture {
		return 0
	}
	return 1
}
