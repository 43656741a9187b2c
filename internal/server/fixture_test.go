package server

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

var update = flag.Bool("update", false, "rewrite golden files and generated documents")

// golden compares got with a file, or rewrites it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not up to date (go test ./internal/server -update), -want +got:\n%s", path, diff)
	}
}

// fakeProvider answers with fixed values.
type fakeProvider struct {
	state   *State
	metrics *Metrics
	health  Health
	err     error
}

func (p *fakeProvider) State(context.Context) (*State, error)     { return p.state, p.err }
func (p *fakeProvider) Metrics(context.Context) (*Metrics, error) { return p.metrics, p.err }
func (p *fakeProvider) Health() Health                            { return p.health }

// fakeDecisions remembers what it was asked.
type fakeDecisions struct {
	asked   decisionlog.Query
	waited  chan struct{} // Wait was called
	entries []decisionlog.Entry
}

func (d *fakeDecisions) Select(q decisionlog.Query) ([]decisionlog.Entry, uint64, error) {
	d.asked = q
	return d.entries, uint64(len(d.entries)), nil
}

func (d *fakeDecisions) Wait(ctx context.Context, _ uint64) {
	close(d.waited)
	<-ctx.Done()
}

var errHung = errors.New("no answer")

func newTestServer(t *testing.T, p Provider, i *Instruments) *Server {
	t.Helper()
	s, err := New(Options{Provider: p, Decisions: &fakeDecisions{}, Page: http.NotFoundHandler(), Instruments: i, Version: "v1.2.3", Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func waits(ns ...uint64) *WaitTotals {
	w := &WaitTotals{}
	for _, v := range ns {
		w.Hist[histogram.Index(v)]++
		w.SumNS += v
	}
	return w
}

// fixture is a small node: an online pod that two offline pods hurt, a restarted container, and a pod that nothing matches.
func fixture() *fakeProvider {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	web := waits(900, 20_000, 1_500_000, 1_500_000, 40_000_000)
	web.Preempted = 7
	probes := []capability.Probe{
		{Name: "bpf", OK: true, Needed: true, Detail: "run-queue programs loaded and attached"},
		{Name: "resctrl", Detail: "the CPU has none", Lost: "cache and bandwidth partitioning", Fix: "a machine with RDT or QoS extensions"},
	}
	metrics := &Metrics{
		Containers: []ContainerMetrics{
			{Namespace: "shop", Pod: "web", Container: "nginx", Class: policy.Online, Wait: web,
				CPU: &CPUTotals{UsageNS: 2_500_000_000, ThrottledNS: 1_000_000}, Memory: &MemoryLevels{WorkingSetBytes: 64 << 20},
				Counters: &CounterTotals{Cycles: 3_000_000, Instructions: 1_000_000, LLCRefs: 40_000, LLCMisses: 9_000},
				CPI:      &CPILevels{CPI: 3, CPIBaseline: 0.64, CPIFence: 0.704, MPKI: 9, MPKIBaseline: 0.5, MPKIFence: 0.625}},
			// The old and the new instance of one container while it restarts.
			{Namespace: "batch", Pod: "spark", Container: "exec", Class: policy.Offline, Wait: waits(5_000_000), CPU: &CPUTotals{UsageNS: 1e9}, Counters: &CounterTotals{1, 2, 3, 4}},
			{Namespace: "batch", Pod: "spark", Container: "exec", Class: policy.Offline, Wait: waits(5_000_000, 9_000_000), CPU: &CPUTotals{UsageNS: 2e9}, Counters: &CounterTotals{10, 20, 30, 40}, CPI: &CPILevels{CPI: 1}},
			{Namespace: "misc", Pod: "other", Container: "x", Class: policy.Unclassified, Wait: waits(1)},
		},
		Blame: []BlameMetrics{
			{"shop", "web", "batch", "spark", 30_000_000},
			{"shop", "web", "batch", "ffmpeg", 12_000_000},
			{"shop", "web", "", CulpritKernel, 1_000_000},
			{"shop", "web", "", CulpritUnknown, 20_000},
		},
		Verdicts: []VerdictMetrics{
			{"shop", "web", judge.CPU, judge.Violated}, {"shop", "web", judge.CPU, judge.OK}, {"shop", "web", judge.CPU, judge.Unknown},
			{"shop", "web", judge.Memory, judge.Watch}, {"shop", "web", judge.IO, judge.Unknown},
		},
		Pods:  map[policy.Class]int{policy.Online: 1, policy.Offline: 2, policy.Unclassified: 1},
		Stale: map[string]int{"psi": 1},
		KnobWrites: []KnobWrites{
			{knob.CPUIdle, knob.Written, 2}, {knob.CPUSet, knob.Written, 5}, {knob.CPUSet, knob.Gone, 1},
		},
		KnobsHeld: map[knob.Kind]int{knob.CPUIdle: 2, knob.CPUSet: 1},
		PodKnobs: map[PodKnob]int{
			{Namespace: "jobs", Pod: "batch-a", Kind: knob.CPUIdle, Rule: "posture"}:                  1,
			{Namespace: "jobs", Pod: "batch-a", Kind: knob.CPUSet, Rule: "event", Victim: "shop/web"}: 2,
		},
		Capabilities: probes,
		Programs:     []ProgramMetrics{{Name: "sched_switch", RunNS: 65_000_000, Runs: 1_000_000}},
		Lost:         Lost{Events: 1, ShortWalks: 3},
		ReadErrors:   map[string]uint64{"memory": 2},
		Recording:    RecordingMetrics{Steps: 900, Dropped: 3, Bytes: 70000, Failures: 1, DiskBytes: 65536},
		PodRDT: []PodRDTMetrics{
			{Namespace: "shop", Pod: "web", Class: policy.Online, Monitored: true, OccupancyBytes: 2 << 20, Bytes: 1e9, Local: 9e8},
			{Namespace: "batch", Pod: "spark", Class: policy.Offline, Monitored: true, OccupancyBytes: 18 << 20, Bytes: 9e9, Local: 9e9, Ways: 2, MB: 50},
		},
		Classes:     []ClassMetrics{{"offline", 11, 100, 3}, {"offline-2", 2, 50, 1}},
		ClassWrites: []ClassWrites{{"L3", knob.Written, 3}, {"tasks", knob.Written, 4}, {"MB", knob.Failed, 1}},
		Domains:     []DomainMetrics{{0, 11e9}, {1, 0}}, PerfUncounted: 1, PerfExtrapolated: 2,
		Policy: PolicyMetrics{Name: "default", ID: "sha256:0123abcd", Mode: policy.Enforce, ReloadOK: true, Loaded: noon, Reloads: 2, Refusals: 1},
		Source: SourceMetrics{Connected: true, LastSuccess: noon.Add(1500 * time.Millisecond), Failures: 4},
		Loop:   LoopMetrics{Realtime: true, DecisionsDropped: 2, DecisionsUnsaved: 5},
	}
	state := &State{
		At: noon,
		Agent: Agent{Version: "v1.2.3", PID: 42, Started: noon.Add(-time.Hour), Mode: "enforce", IntervalSeconds: 0.1, RunDir: "/run/qos-agent",
			Scheduling: Scheduling{Class: "realtime"}},
		Node: Node{Hostname: "node-1", Kernel: "6.18.44", CgroupMode: "hybrid", CgroupRoot: "/sys/fs/cgroup",
			CPUs: []CPU{{ID: 0}, {ID: 1, Core: 1}}, Capabilities: probes,
			Signals: NodeSignals{CPU: &NodeCPU{AgeSeconds: 0.05, BusyRatio: 0.9, StealRatio: 0.01}}},
		Policy: Policy{Name: "default", ID: "sha256:0123abcd", Mode: "enforce", Loaded: noon,
			Reload: PolicyReload{OK: false, At: noon.Add(time.Minute), Errors: []string{`default.yaml:7: spec.mode: "enforced": want observe or enforce`}}},
		PodSource: PodSource{Kind: "cri", Source: "unix:///run/containerd/containerd.sock", Runtime: "containerd 1.6.20", Connected: true, Since: noon, LastSuccess: noon},
		Loop:      Loop{Ticks: 36000, Overruns: 1, Events: 12, Lost: Lost{Events: 1, ShortWalks: 3}, Tick: Latency{36000, 0.0004, 0.0011}, Reaction: Latency{12, 0.0006, 0.0012}},
		Pods: []Pod{
			{Namespace: "shop", Name: "web", UID: "u1", QoSClass: "Guaranteed", Class: "online", ClassRule: "preset qos-agent", Cgroup: "/kubepods/podu1",
				Containers: []Container{{Name: "nginx", ID: "c1", PID: 100, Cgroup: "/kubepods/podu1/c1", Signals: Signals{
					Wait:     &Wait{AgeSeconds: 0.05, SpanSeconds: 1, Count: 5000, SumSeconds: 3.2, P50Seconds: 0.0001, P99Seconds: 0.0151, Preempted: 7},
					CPU:      &CPUUse{AgeSeconds: 0.05, SpanSeconds: 0.1, UsageCores: 0.8},
					Memory:   &Memory{AgeSeconds: 0.95, CurrentBytes: 80 << 20, WorkingSetBytes: 64 << 20},
					Pressure: &Pressure{AgeSeconds: 0.95, SpanSeconds: 1, CPUSomeRatio: 0.4},
				}}}},
			{Namespace: "batch", Name: "spark", UID: "u2", Class: "offline", ClassRule: "preset qos-agent", Cgroup: "/kubepods/burstable/podu2",
				Limits: &Limits{Ways: 2}},
		},
		Verdicts: []Verdict{{Namespace: "shop", Pod: "web", Container: "nginx", Axis: "cpu", Level: "violated", SinceSeconds: 2.5,
			Reason: "contention", Evidence: Evidence{Samples: 5000, WindowSeconds: 1, P99Seconds: 0.0151, ObjectiveSeconds: 0.005, AttributedSeconds: 3.2},
			Blame:    []Blame{{Culprit: Party{"batch", "spark", "exec"}, Ratio: 0.9, Seconds: 2.9}, {Culprit: Party{Name: CulpritKernel}, Ratio: 0.1, Seconds: 0.3}},
			Culprits: []Party{{"batch", "spark", "exec"}}}},
		Knobs: []HeldKnob{{Cgroup: "/kubepods/burstable/podu2", Knob: "cpu.idle", Original: "0", Current: "1", Owner: "cpu", Rule: "posture", Pod: "batch/spark", Since: noon}},
		Notes: []decisionlog.Entry{{ID: 7, At: noon, Seq: 36000, Kind: "write", Owner: "cpu", Pod: "batch/spark", Victim: "shop/web", Cgroup: "/kubepods/burstable/podu2", Knob: "cpuset.cpus",
			Old: "0-1", New: "0", Rule: "event-cut", Result: "written", Policy: "sha256:0123abcd", Inputs: &decisionlog.Inputs{WaitSeconds: 0.0151, ObjectiveSeconds: 0.005, ShareRatio: 0.9}}},
	}
	health := Health{SinceTick: 50 * time.Millisecond, Interval: 100 * time.Millisecond, Conditions: []Condition{
		{Name: "policy", OK: true, Required: true, Detail: "default"},
		{Name: "pods", OK: true, Required: true, Detail: "listed once"},
		{Name: "psi", OK: false, Detail: "no pressure per group"},
	}}
	return &fakeProvider{state: state, metrics: metrics, health: health}
}

func fixtureInstruments() *Instruments {
	i := &Instruments{}
	for range 99 {
		i.Tick.Observe(400 * time.Microsecond)
	}
	i.Tick.Observe(3 * time.Millisecond)
	i.Reaction.Observe(700 * time.Microsecond)
	i.Ticks.Store(100)
	i.Events.Store(2)
	return i
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
