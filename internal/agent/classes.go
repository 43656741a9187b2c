package agent

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/clos"
	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/server"
)

// classify carries out what a decision wants of the hardware that resctrl controls, and reports whether limits were written.
func (l *loop) classify(d *decide.Decision) (wrote bool) {
	x := l.o.Classes
	if x == nil {
		return false
	}
	spec := d.Spec
	outcomes := x.Apply(d.Shares, classes.Policy{
		Enforce: spec.Mode == policy.Enforce, Edits: spec.Safety.ExternalEdits, Cache: spec.RDT.Cache,
		FloorPercent: spec.RDT.Bandwidth.FloorPercent, TotalMBps: spec.RDT.Bandwidth.TotalMBps,
	})
	if outcomes == nil {
		return false
	}
	wrote = l.recordClasses(outcomes, d.Notes...)
	l.noteClasses(x.Notes())
	return wrote
}

// declassify puts everything in resctrl back, because there is no policy.
func (l *loop) declassify() (wrote bool) {
	if l.o.Classes == nil {
		return false
	}
	return l.recordClasses(l.o.Classes.Apply(nil, classes.Policy{}))
}

// scanClasses puts new threads where their pods belong.
func (l *loop) scanClasses() {
	if l.o.Classes != nil {
		l.recordClasses(l.o.Classes.Scan())
	}
}

// auditClasses looks after what is held there.
func (l *loop) auditClasses() {
	if l.o.Classes != nil {
		l.recordClasses(l.o.Classes.Audit())
	}
}

// restoreClasses takes everything of ours out of resctrl.
func (l *loop) restoreClasses() (removed int, errs []error) {
	if l.o.Classes == nil {
		return 0, nil
	}
	outcomes := l.o.Classes.RestoreAll()
	l.recordClasses(outcomes)
	for _, o := range outcomes {
		if o.Err != nil {
			errs = append(errs, fmt.Errorf("put back %s of %s: %w", o.Resource, o.Group, o.Err))
		} else if o.Resource == "group" {
			removed++
		}
	}
	return removed, errs
}

// recordClasses counts outcomes, logs them with what led to them, and reports whether limits were written because of the plan.
func (l *loop) recordClasses(outcomes []knob.ClassOutcome, why ...control.Note) (wrote bool) {
	l.o.Recorder.Classes(outcomes)
	for i := range outcomes {
		o := &outcomes[i]
		l.classWrites[classResource(o.Resource)][o.Result]++
		e := decisionlog.Entry{
			Kind: decisionlog.KindWrite, Owner: o.Owner, Rule: o.Rule, Pod: o.Pod, Victim: o.Victim, Cgroup: o.Group, Knob: "resctrl." + o.Resource,
			Old: o.Old, New: o.New, Result: o.Result.String(),
		}
		for k := range why {
			if n := &why[k]; n.Owner == o.Owner && n.Rule == o.Rule && n.Victim == o.Victim && n.From != n.To {
				e.Inputs = inputs(n)
				break
			}
		}
		switch o.Result {
		case knob.Written:
			wrote = wrote || o.Resource == "L3" || o.Resource == "MB" || o.Resource == "tasks"
		case knob.Gone, knob.Restored:
		default:
			l.o.Log.Warn("resctrl", "group", o.Group, "resource", o.Resource, "pod", o.Pod, "result", o.Result, "old", o.Old, "new", o.New, "error", o.Err)
			if o.Err != nil {
				e.Message = o.Err.Error()
			}
		}
		l.diary(e)
	}
	return wrote
}

// noteClasses tells what the planner could not do as wanted, when that is something new.
func (l *loop) noteClasses(notes []clos.Note) {
	for _, n := range notes {
		if !l.classNotes[n] {
			l.diary(decisionlog.Entry{Kind: decisionlog.KindDecision, Owner: "classes", Rule: control.RuleSkip, Pod: n.Pod, Message: n.Text})
			l.o.Log.Info("classes of service", "pod", n.Pod, "text", n.Text)
		}
	}
	clear(l.classNotes)
	for _, n := range notes {
		l.classNotes[n] = true
	}
}

// heldClasses is the classes of service for the state API.
func (l *loop) heldClasses() []server.RDTClass {
	out := []server.RDTClass{}
	if l.o.Classes == nil {
		return out
	}
	for _, c := range l.o.Classes.Held() {
		why := c.Cache
		if why.Owner == "" {
			why = c.Bandwidth
		}
		out = append(out, server.RDTClass{
			Group: c.Group, Schemata: c.Schemata, Ways: c.Ways, BandwidthPercent: c.MBPercent, Owner: why.Owner, Rule: why.Rule, Victim: why.Victim,
			Pods: c.Pods, AgeSeconds: l.o.Clock.Wall().Sub(c.Since).Seconds(),
		})
	}
	return out
}

func (l *loop) classMetrics(m *server.Metrics) {
	if l.o.Classes == nil {
		return
	}
	for _, c := range l.o.Classes.Held() {
		m.Classes = append(m.Classes, server.ClassMetrics{
			Name: strings.TrimPrefix(c.Group, classes.Prefix), Ways: c.Ways, BandwidthPercent: cmp.Or(c.MBPercent, 100), Pods: len(c.Pods),
		})
	}
	for i, results := range l.classWrites {
		for result, n := range results {
			if n > 0 {
				m.ClassWrites = append(m.ClassWrites, server.ClassWrites{Resource: classResources[i], Result: knob.Result(result), Count: n})
			}
		}
	}
}

// classResources are the kinds of change in resctrl, for metrics.
var classResources = [...]string{"L3", "MB", "limits", "tasks", "group", "mon", "mount"}

// classResource is the index of a resource; what is not known counts as the last.
func classResource(name string) int {
	for i, r := range classResources {
		if r == name {
			return i
		}
	}
	return len(classResources) - 1
}
