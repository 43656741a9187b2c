package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// State copies out what the loop knows. It is part of server.Provider.
func (a *Agent) State(ctx context.Context) (*server.State, error) {
	s, err := ask(ctx, a, func(l *loop) *server.State { return l.lastState.get(l.o.Clock.Now(), l.state) })
	if err != nil {
		return nil, err
	}
	out := *s // others have got the same
	out.Notes = a.o.Decisions.Newest(server.NotesShown)
	return &out, nil
}

// state is built on the loop's thread, between two steps: about 2 µs a container.
func (l *loop) state() *server.State {
	l.asked = l.o.Clock.Now()
	s := &server.State{
		At:        l.o.Clock.Wall(),
		Agent:     l.agentState(),
		Policy:    l.policyState(),
		PodSource: l.sourceState(),
		Loop:      l.o.Instruments.Loop(),
		Node: server.Node{
			Hostname: l.o.Hostname, Kernel: l.o.Kernel, Capabilities: l.o.Capabilities.Probes,
			CgroupMode: l.o.Hierarchy.Mode().String(), CgroupRoot: l.o.Hierarchy.Root(),
		},
	}
	s.Loop.Lost = l.lost()
	s.Knobs = l.heldKnobs()
	if l.snapshot != nil {
		l.nodeState(&s.Node)
		l.podStates(s)
		l.verdictStates(s)
	}
	return s
}

func (l *loop) heldKnobs() []server.HeldKnob {
	held := l.o.Executor.Held()
	knobs := make([]server.HeldKnob, len(held))
	for i := range held {
		h := &held[i]
		knobs[i] = server.HeldKnob{
			Cgroup: h.Cgroup, Knob: h.Kind.String(), Original: h.Original, Current: h.Current, Owner: h.Owner, Rule: h.Rule,
			Pod: h.Pod, Victim: h.Victim, Since: h.Since,
		}
	}
	return knobs
}

func (l *loop) agentState() server.Agent {
	out := server.Agent{
		Version: l.o.Version, PID: os.Getpid(), Started: l.started, Mode: string(l.mode()), IntervalSeconds: l.o.Interval.Seconds(),
		RunDir:     l.o.RunDir,
		Scheduling: server.Scheduling{Class: string(l.guard.Class()), Demotions: l.guard.Demotions},
	}
	if l.rtError != nil {
		out.Scheduling.Detail = l.rtError.Error()
	}
	return out
}

// mode is what is in force now. Without a policy nothing is written: that is to observe.
func (l *loop) mode() policy.Mode {
	if l.policy.compiled == nil {
		return policy.Observe
	}
	return l.policy.compiled.At(l.o.Clock.Wall()).Mode
}

func (l *loop) policyState() server.Policy {
	p := &l.policy
	out := server.Policy{
		Mode: string(l.mode()), Loaded: p.loaded,
		Reload: server.PolicyReload{OK: p.reloadOK, At: p.reloadAt, Errors: p.errors},
	}
	if c := p.compiled; c != nil {
		out.Name, out.ID, out.Window = c.Name(), c.ID(), c.Window(l.o.Clock.Wall())
	}
	return out
}

func (l *loop) sourceState() server.PodSource {
	s := l.o.Source.Status()
	return server.PodSource{
		Kind: l.o.SourceKind, Source: s.Source, Runtime: s.Runtime, Connected: s.Connected, Since: s.Since, LastSuccess: s.LastSuccess,
		Error: s.Error, Degraded: s.Degraded, Unresolved: s.Unresolved,
	}
}

// lost adds up what went missing between kernel and agent.
func (l *loop) lost() server.Lost {
	out := server.Lost{Unmeasured: l.unmeasured()}
	if l.o.Tracer == nil {
		return out
	}
	var s ebpf.Stats
	if err := l.o.Tracer.Stats(&s); err != nil {
		l.o.Log.Warn("read BPF statistics", "error", err)
		return out
	}
	out.Events, out.Suppressed, out.ShortWalks, out.BadStamps, out.QuotaLost = s.EventsLost, s.EventsSuppressed, s.ShortWalks, s.BadStamps, s.QuotaLost
	return out
}

func (l *loop) unmeasured() uint64 {
	if l.snapshot == nil {
		return 0
	}
	return l.snapshot.Lost.NoSlot
}

func (l *loop) nodeState(n *server.Node) {
	s := &l.snapshot.Node
	for _, c := range s.Topology.CPUs {
		n.CPUs = append(n.CPUs, server.CPU{ID: c.ID, Core: c.Core, Node: c.Node, LLC: c.LLC})
	}
	if total := s.CPU.Span.Seconds() * float64(len(s.Topology.CPUs)); s.CPU.At != 0 && total > 0 {
		n.Signals.CPU = &server.NodeCPU{
			AgeSeconds: l.age(s.CPU.At), BusyRatio: seconds(s.CPU.BusyNS) / total, StealRatio: seconds(s.CPU.StealNS) / total,
			SoftirqRatio: seconds(s.CPU.SoftirqNS) / total, IRQRatio: seconds(s.CPU.IRQNS) / total,
		}
	}
	n.Signals.Pressure = l.pressure(&s.PSI)
	n.RDT = l.nodeRDT(s)
}

// podStates adds every pod with its containers' signals.
func (l *loop) podStates(s *server.State) {
	snap := l.snapshot
	s.Pods = make([]server.Pod, len(snap.Pods))
	for i := range snap.Pods {
		p := &snap.Pods[i]
		class, rule := l.class(i)
		s.Pods[i] = server.Pod{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, QoSClass: string(p.QoS), Class: string(class), ClassRule: rule, Cgroup: p.Cgroup,
			Limits: l.limits(i),
		}
	}
	room := newSignalRoom(len(snap.Containers))
	for i := range snap.Containers {
		c := &snap.Containers[i]
		id := &snap.Pods[c.Pod].Containers[c.Container]
		s.Pods[c.Pod].Containers = append(s.Pods[c.Pod].Containers, server.Container{
			Name: id.Name, ID: id.ID, PID: id.PID, Cgroup: id.Cgroup, Signals: l.signals(i, c, &room),
		})
	}
}

// signalRoom is where the signals of a state lie: one allocation for each kind instead of one for each container.
type signalRoom struct {
	waits    []server.Wait
	cpus     []server.CPUUse
	memories []server.Memory
}

func newSignalRoom(containers int) signalRoom {
	return signalRoom{make([]server.Wait, 0, containers), make([]server.CPUUse, 0, containers), make([]server.Memory, 0, containers)}
}

// put appends v and tells where it lies.
func put[T any](to *[]T, v T) *T {
	*to = append(*to, v)
	return &(*to)[len(*to)-1]
}

// class is a pod's class as the last tick saw it.
func (l *loop) class(pod int) (policy.Class, string) {
	if pod >= len(l.last.Class) {
		return policy.Unclassified, "" // there is no policy
	}
	return l.last.Class[pod], l.last.ClassRule[pod]
}

func (l *loop) signals(i int, c *signal.ContainerSample, room *signalRoom) server.Signals {
	var out server.Signals
	if c.Wait.At != 0 {
		w := l.windows.at(i)
		p50, _ := w.hist.Quantile(0.5)
		p99, _ := w.hist.Quantile(0.99)
		out.Wait = put(&room.waits, server.Wait{
			AgeSeconds: l.age(c.Wait.At), SpanSeconds: w.span.Seconds(), Count: w.hist.Total(), SumSeconds: seconds(w.sumNS),
			P50Seconds: p50.Seconds(), P99Seconds: p99.Seconds(), Preempted: w.preempted,
		})
	}
	if c.CPU.At != 0 && c.CPU.Span > 0 {
		out.CPU = put(&room.cpus, server.CPUUse{
			AgeSeconds: l.age(c.CPU.At), SpanSeconds: c.CPU.Span.Seconds(), UsageCores: seconds(c.CPU.UsageNS) / c.CPU.Span.Seconds(),
			Periods: c.CPU.Periods, ThrottledPeriods: c.CPU.ThrottledPeriods, ThrottledSeconds: seconds(c.CPU.ThrottledNS),
		})
		if c.CPU.QuotaUS >= 0 && c.CPU.PeriodUS > 0 {
			out.CPU.QuotaCores = float64(c.CPU.QuotaUS) / float64(c.CPU.PeriodUS)
		}
	}
	if c.Memory.At != 0 {
		out.Memory = put(&room.memories, server.Memory{AgeSeconds: l.age(c.Memory.At), CurrentBytes: c.Memory.Current, WorkingSetBytes: c.Memory.WorkingSet})
	}
	out.Pressure = l.pressure(&c.PSI)
	if p := &c.Perf; p.At != 0 && p.RunningPercent > 0 {
		cpi, _ := p.CPI()
		mpki, _ := p.MPKI()
		out.Perf = &server.Perf{AgeSeconds: l.age(p.At), SpanSeconds: p.Span.Seconds(), CPI: cpi, MPKI: mpki, RunningRatio: float64(p.RunningPercent) / 100}
	}
	out.RDT = l.rdtState(&c.RDT)
	return out
}

// pressure is nil where nothing was measured.
func (l *loop) pressure(p *signal.PSISample) *server.Pressure {
	span := p.Span.Seconds() * 1e6
	if p.At == 0 || span <= 0 {
		return nil
	}
	return &server.Pressure{
		AgeSeconds: l.age(p.At), SpanSeconds: p.Span.Seconds(),
		CPUSomeRatio: float64(p.CPU.SomeUS) / span, CPUFullRatio: float64(p.CPU.FullUS) / span,
		MemorySomeRatio: float64(p.Memory.SomeUS) / span, MemoryFullRatio: float64(p.Memory.FullUS) / span,
		IOSomeRatio: float64(p.IO.SomeUS) / span, IOFullRatio: float64(p.IO.FullUS) / span,
	}
}

// verdictStates adds the last tick's verdicts, worst first.
func (l *loop) verdictStates(s *server.State) {
	snap := l.snapshot
	for i := range l.last.Verdicts {
		v := &l.last.Verdicts[i]
		if v.Reason == judge.Unmeasured {
			continue // the node has no such signal: that is said once, by its capabilities
		}
		p := &snap.Pods[v.Pod]
		out := server.Verdict{
			Namespace: p.Namespace, Pod: p.Name, Container: p.Containers[snap.Containers[v.Sample].Container].Name,
			Axis: v.Axis.String(), Level: v.Level.String(), SinceSeconds: (snap.Now - v.Since).Seconds(), Reason: v.Reason.String(), Joint: v.Joint,
			Evidence: server.Evidence{
				Samples: v.Samples, WindowSeconds: v.Window.Seconds(), P99Seconds: v.P99.Seconds(), ObjectiveSeconds: v.Objective.Seconds(),
				CPI:        cpiEvidence(v),
				StallRatio: permille(v.StallPermille), StallObjectiveRatio: permille(v.StallObjective),
				ThrottledRatio: permille(v.ThrottledPermille), StealRatio: permille(v.StealPermille), AttributedSeconds: seconds(v.AttributedNS),
			},
			Blame: l.blame(v),
		}
		for _, c := range v.Culprits() {
			out.Culprits = append(out.Culprits, party(&snap.Pods[c.Pod]))
		}
		s.Verdicts = append(s.Verdicts, out)
	}
	slices.SortStableFunc(s.Verdicts, func(a, b server.Verdict) int { return badness(b.Level) - badness(a.Level) })
}

// blame is other pods' parts of the wait and those that are nobody's, largest first.
func (l *loop) blame(v *judge.Verdict) []server.Blame {
	var out []server.Blame
	for _, share := range v.Shares {
		out = append(out, server.Blame{Culprit: party(&l.snapshot.Pods[share.Pod]), Ratio: permille(share.Permille), Seconds: seconds(share.NS), BytesPerSecond: float64(share.MBps) * 1e6})
	}
	for part, share := range v.Parts {
		if share > 0 {
			out = append(out, server.Blame{
				Culprit: server.Party{Name: judge.Part(part).String()}, Ratio: permille(share), Seconds: permille(share) * seconds(v.AttributedNS),
			})
		}
	}
	slices.SortStableFunc(out, func(a, b server.Blame) int {
		switch {
		case a.Ratio > b.Ratio:
			return -1
		case a.Ratio < b.Ratio:
			return 1
		default:
			return strings.Compare(a.Culprit.Namespace+"/"+a.Culprit.Name, b.Culprit.Namespace+"/"+b.Culprit.Name)
		}
	})
	return out
}

func party(p *signal.Pod) server.Party { return server.Party{Namespace: p.Namespace, Name: p.Name} }

func badness(level string) int {
	return slices.Index([]string{judge.OK.String(), judge.Unknown.String(), judge.Watch.String(), judge.Violated.String()}, level)
}

// age is how old a measurement is in the state that is being made.
func (l *loop) age(at time.Duration) float64 { return (l.asked - at).Seconds() }

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

func permille(n int) float64 { return float64(n) / 1000 }

// report publishes what the loop thinks of itself for Health, which must not wait for the loop.
func (l *loop) report() {
	source := l.o.Source.Status()
	p := &l.policy
	var next server.Health
	add := func(name string, ok, required bool, detail string) {
		next.Conditions = append(next.Conditions, server.Condition{Name: name, OK: ok, Required: required, Detail: detail})
	}
	switch {
	case p.compiled == nil:
		add("policy", false, true, "there is none: nothing is judged or written; "+strings.Join(p.errors, "; "))
	case !p.reloadOK:
		add("policy", false, false, "the last good one is in force, a newer one was refused: "+strings.Join(p.errors, "; "))
	default:
		add("policy", true, true, p.compiled.Name()+" "+p.compiled.ID())
	}
	switch {
	case !l.listed:
		add("pods", false, true, "never listed: "+source.Error)
	case !source.Connected:
		add("pods", false, false, "going on with those that are known: "+source.Error)
	default:
		add("pods", true, true, source.Source)
	}
	// The agent is of use without eBPF (it takes the posture), but not for its main job.
	add("ebpf", l.o.Tracer != nil, false, l.capability(capability.RunQueue))
	add("realtime", l.guard.Class() == sched.ClassRealtime, false, l.scheduling())
	l.health.Store(&next)
}

func (l *loop) scheduling() string {
	text := fmt.Sprintf("the loop's thread is %s", l.guard.Class())
	switch {
	case l.guard.Class() == sched.ClassDemoted:
		text += fmt.Sprintf(" for %v: it has used more than its budget", budgetPenalty)
	case l.rtError != nil:
		text += ": " + l.rtError.Error()
	}
	return text
}

func (l *loop) capability(name string) string {
	for _, p := range l.o.Capabilities.Probes {
		if p.Name == name {
			return p.Detail
		}
	}
	return ""
}
