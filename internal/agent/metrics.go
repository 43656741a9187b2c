package agent

import (
	"context"
	"strings"

	"github.com/qos-agent/qos-agent/internal/collect"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Metrics copies out what /metrics shows. It is part of server.Provider.
func (a *Agent) Metrics(ctx context.Context) (*server.Metrics, error) {
	return ask(ctx, a, func(l *loop) *server.Metrics { return l.lastMetrics.get(l.o.Clock.Now(), l.metrics) })
}

// metrics is built on the loop's thread, between two steps: about 2 µs a container, most of it the histograms.
func (l *loop) metrics() *server.Metrics {
	p := &l.policy
	source := l.o.Source.Status()
	m := &server.Metrics{
		Pods:         map[policy.Class]int{},
		Stale:        map[string]int{},
		KnobsHeld:    map[knob.Kind]int{},
		PodKnobs:     map[server.PodKnob]int{},
		Capabilities: l.o.Capabilities.Probes,
		Lost:         l.lost(),
		Policy: server.PolicyMetrics{
			Mode: l.mode(), ReloadOK: p.reloadOK, Loaded: p.loaded, Reloads: p.reloads, Refusals: p.failures,
		},
		Source: server.SourceMetrics{
			Connected: source.Connected, LastSuccess: source.LastSuccess, Failures: l.disconnects, Unresolved: source.Unresolved,
		},
		Loop: server.LoopMetrics{Realtime: l.guard.Class() == sched.ClassRealtime, Demotions: l.guard.Demotions, LogDropped: l.o.LogDropped()},
	}
	m.Loop.DecisionsDropped, m.Loop.DecisionsUnsaved = l.o.Decisions.Lost()
	if r := l.o.Recorder; r != nil {
		m.Recording = server.RecordingMetrics(r.Stats())
	}
	if p.compiled != nil {
		m.Policy.Name, m.Policy.ID = p.compiled.Name(), p.compiled.ID()
	}
	for kind, results := range l.writes {
		for result, n := range results {
			if n > 0 {
				m.KnobWrites = append(m.KnobWrites, server.KnobWrites{Kind: knob.Kind(kind), Result: knob.Result(result), Count: n})
			}
		}
	}
	for _, h := range l.o.Executor.Held() {
		m.KnobsHeld[h.Kind]++
		if namespace, name, ok := strings.Cut(h.Pod, "/"); ok && !h.Derived {
			m.PodKnobs[server.PodKnob{Namespace: namespace, Pod: name, Kind: h.Kind, Rule: h.Rule, Victim: h.Victim}]++
		}
	}
	l.classMetrics(m)
	if l.snapshot != nil {
		l.podMetrics(m)
	}
	return m
}

func (l *loop) podMetrics(m *server.Metrics) {
	snap := l.snapshot
	classes := make(map[collect.PodRef]policy.Class, len(snap.Pods))
	for i := range snap.Pods {
		p := &snap.Pods[i]
		class, _ := l.class(i)
		m.Pods[class]++
		classes[collect.PodRef{UID: p.UID, Namespace: p.Namespace, Name: p.Name}] = class
	}
	for i := range l.last.Verdicts {
		v := &l.last.Verdicts[i]
		if v.Reason == judge.Unmeasured {
			continue // the node has no such signal
		}
		p := &snap.Pods[v.Pod]
		m.Verdicts = append(m.Verdicts, server.VerdictMetrics{Namespace: p.Namespace, Pod: p.Name, Axis: v.Axis, Level: v.Level})
		if v.Reason == judge.Stale {
			m.Stale[axisSignal[v.Axis]]++
		}
	}
	view := l.o.Collector.View()
	m.ReadErrors = view.ReadErrors
	l.rdtMetrics(m, &view)
	levels := l.cpiLevels()
	for i := range view.Containers {
		c := &view.Containers[i]
		row := server.ContainerMetrics{Namespace: c.Pod.Namespace, Pod: c.Pod.Name, Container: c.Name, Class: classes[c.Pod]}
		if c.Wait != nil {
			row.Wait = &server.WaitTotals{Hist: c.Wait.Hist, SumNS: c.Wait.SumNS, Preempted: c.Wait.Preempted}
		}
		if c.CPU != nil {
			row.CPU = &server.CPUTotals{UsageNS: c.CPU.UsageNS, ThrottledNS: c.CPU.ThrottledNS}
		}
		if c.Memory != nil {
			row.Memory = &server.MemoryLevels{WorkingSetBytes: c.Memory.WorkingSet}
		}
		if n := c.Counters; n != nil {
			row.Counters = &server.CounterTotals{Cycles: n.Cycles, Instructions: n.Instructions, LLCRefs: n.LLCRefs, LLCMisses: n.LLCMisses}
		}
		row.CPI = levels[[2]string{c.Pod.Namespace + "/" + c.Pod.Name, c.Name}]
		m.Containers = append(m.Containers, row)
	}
	m.Blame = blameMetrics(view.Blame)
	for _, p := range view.Tracer.Programs {
		m.Programs = append(m.Programs, server.ProgramMetrics{Name: p.Name, RunNS: p.RunNS, Runs: p.Runs})
	}
}

// axisSignal is the signal that a verdict rests on.
var axisSignal = map[judge.Axis]string{judge.CPU: "wait", judge.Memory: "psi", judge.IO: "psi", judge.Cache: "perf", judge.Bandwidth: "perf"}

// Blame copies out Metrics.Blame alone: it is what the page needs of them. It is part of page.Source.
func (a *Agent) Blame(ctx context.Context) ([]server.BlameMetrics, error) {
	totals, err := ask(ctx, a, func(l *loop) *[]collect.BlameTotal {
		t := l.o.Collector.Blame()
		return &t
	})
	if err != nil {
		return nil, err
	}
	return blameMetrics(*totals), nil
}

func blameMetrics(totals []collect.BlameTotal) []server.BlameMetrics {
	out := make([]server.BlameMetrics, len(totals))
	for i := range totals {
		out[i] = blameMetric(&totals[i])
	}
	return out
}

func blameMetric(b *collect.BlameTotal) server.BlameMetrics {
	out := server.BlameMetrics{VictimNamespace: b.Victim.Namespace, VictimPod: b.Victim.Name, NS: b.NS}
	switch {
	case b.Pseudo != 0:
		out.CulpritPod = pseudoName[b.Pseudo]
	case b.Culprit == b.Victim:
		out.CulpritPod = server.CulpritOwn
	default:
		out.CulpritNamespace, out.CulpritPod = b.Culprit.Namespace, b.Culprit.Name
	}
	return out
}

var pseudoName = map[signal.Culprit]string{
	signal.CulpritUnknown: server.CulpritUnknown,
	signal.CulpritKernel:  server.CulpritKernel,
	signal.CulpritIRQ:     server.CulpritIRQ,
	signal.CulpritSystem:  server.CulpritSystem,
	signal.CulpritIdle:    server.CulpritIdle,
	signal.CulpritQuota:   server.CulpritQuota,
	signal.CulpritGone:    server.CulpritGone,
}
