package page

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/server"
)

// node is a Source: a busy node whose figures move every time it is asked.
type node struct {
	online, offline int

	mu    sync.Mutex
	asked int
	hung  bool
	notes []decisionlog.Entry // newest first
	full  bool                // the machine has everything: PMU, resctrl, PSI of groups
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func (n *node) hang(v bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = v
}

func (n *node) State(context.Context) (*server.State, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hung {
		return nil, errors.New("no answer")
	}
	n.asked++
	at := noon.Add(time.Duration(n.asked) * time.Second)
	s := &server.State{
		At:    at,
		Agent: server.Agent{Version: "v1.0.0", PID: 7, Started: noon.Add(-26 * time.Hour), Mode: "enforce", IntervalSeconds: 0.1, RunDir: "/run/qos-agent", Scheduling: server.Scheduling{Class: "realtime"}},
		Node: server.Node{Hostname: "worker-17.eu-west", Kernel: "6.18.44", CgroupMode: "unified", CgroupRoot: "/sys/fs/cgroup",
			Capabilities: []capability.Probe{
				{Name: "bpf", OK: true, Needed: true, Detail: "run-queue programs loaded and attached"},
				{Name: "cgroup", OK: true, Needed: true, Detail: "unified, /sys/fs/cgroup"},
				{Name: "cpu_idle", OK: true, Detail: "cpu.idle"},
				{Name: "psi_group", OK: n.full, Detail: "no *.pressure in groups of cgroup v1", Lost: "memory and io stalls of pods are not judged", Fix: "boot with unified cgroup v2 (systemd.unified_cgroup_hierarchy=1)"},
				{Name: "perf", OK: n.full, Detail: "no PMU: perf_event_open: no such file or directory", Lost: "cycles and cache misses of pods are not seen", Fix: "a machine, or a virtual machine with a PMU"},
				{Name: "resctrl", OK: n.full, Detail: "the CPU has neither RDT nor QoS extensions", Lost: "cache and memory bandwidth are neither seen nor partitioned", Fix: "a CPU with RDT (Intel) or QoS extensions (AMD), and a kernel with resctrl"},
			},
			Signals: server.NodeSignals{
				CPU:      &server.NodeCPU{AgeSeconds: 0.05, BusyRatio: 0.62 + 0.3*wave(n.asked, 0), StealRatio: 0.01, SoftirqRatio: 0.02},
				Pressure: &server.Pressure{SpanSeconds: 1, CPUSomeRatio: 0.35 + 0.3*wave(n.asked, 1), MemorySomeRatio: 0.01, IOSomeRatio: 0.04, IOFullRatio: 0.01},
			}},
		Policy:    server.Policy{Name: "colocation-default", ID: "sha256:8c1f6a2e9b7d4f00", Mode: "enforce", Loaded: noon, Reload: server.PolicyReload{OK: true, At: noon}},
		PodSource: server.PodSource{Kind: "cri", Source: "unix:///run/containerd/containerd.sock", Runtime: "containerd 1.7.2", Connected: true, Since: noon},
		Loop:      server.Loop{Ticks: uint64(n.asked * 10), Overruns: 1, Events: 80, Tick: server.Latency{Count: 1, P50Seconds: 0.0011, P99Seconds: 0.0031}, Reaction: server.Latency{Count: 41, P50Seconds: 0.00035, P99Seconds: 0.00052}},
		Notes:     n.notes,
	}
	if n.full {
		s.Node.RDT = &server.NodeRDT{AgeSeconds: 0.1, Classes: []server.RDTClass{
			{Group: "qos-agent.offline", Schemata: "L3:0=ff;1=ff", Ways: 8, AgeSeconds: 60, Rule: "posture", Pods: []string{"batch/spark-exec-1", "batch/spark-exec-2"}},
			{Group: "qos-agent.cut-1", Schemata: "L3:0=3;1=3 MB:0=30;1=30", Ways: 2, BandwidthPercent: 30, AgeSeconds: 5, Rule: "tick-cut", Victim: "shop/checkout-0", Pods: []string{"batch/spark-exec-0"}},
		}}
	}
	for i := range 32 {
		s.Node.CPUs = append(s.Node.CPUs, server.CPU{ID: i, Core: i / 2})
	}
	for i := range n.online + n.offline {
		name, ns, class := fmt.Sprintf("checkout-%d", i), "shop", "online"
		if i >= n.online {
			name, ns, class = fmt.Sprintf("spark-exec-%d", i-n.online), "batch", "offline"
		}
		w := wave(n.asked, i)
		c := server.Container{Name: "main", ID: fmt.Sprint(i), Cgroup: fmt.Sprintf("/kubepods/pod%d/c", i), Signals: server.Signals{
			Wait:   &server.Wait{AgeSeconds: 0.05, SpanSeconds: 1, Count: 4000, SumSeconds: 0.3 * w, P50Seconds: 0.00005, P99Seconds: 0.0004 + 0.012*w*w*w},
			CPU:    &server.CPUUse{AgeSeconds: 0.05, SpanSeconds: 1, UsageCores: 0.2 + 2*w},
			Memory: &server.Memory{CurrentBytes: 1 << 30, WorkingSetBytes: uint64(100+i*7) << 20},
		}}
		if n.full {
			c.Signals.Pressure = &server.Pressure{SpanSeconds: 1, CPUSomeRatio: w / 2, MemorySomeRatio: w / 50, IOSomeRatio: w / 20}
			c.Signals.Perf = &server.Perf{SpanSeconds: 1, CPI: 0.8 + w, MPKI: 3 * w, RunningRatio: 1}
			c.Signals.RDT = &server.RDT{State: "ok", OccupancyBytes: uint64(w * 8e6), BandwidthBytesPerSecond: w * 2e9}
		}
		s.Pods = append(s.Pods, server.Pod{Namespace: ns, Name: name, UID: fmt.Sprint("u", i), Class: class, ClassRule: "preset qos-agent", QoSClass: "Burstable", Containers: []server.Container{c}})
		if class == "offline" {
			s.Knobs = append(s.Knobs, server.HeldKnob{Cgroup: fmt.Sprintf("/kubepods/pod%d", i), Knob: "cpu.idle", Original: "0", Current: "1", Owner: "cpu", Rule: "posture", Pod: ns + "/" + name, Since: noon})
			if i%9 == 0 {
				s.Knobs = append(s.Knobs, server.HeldKnob{Cgroup: fmt.Sprintf("/kubepods/pod%d", i), Knob: "cpuset.cpus", Original: "0-31", Current: "0-15", Owner: "cpu", Rule: "event-cut", Pod: ns + "/" + name, Victim: "shop/checkout-0", Since: noon})
			}
			continue
		}
		v := server.Verdict{Namespace: ns, Pod: name, Container: "main", Axis: "cpu", Level: "ok", SinceSeconds: 40, Evidence: server.Evidence{Samples: 4000, WindowSeconds: 1, P99Seconds: c.Signals.Wait.P99Seconds, ObjectiveSeconds: 0.005}}
		switch {
		case i == 0:
			v.Level, v.Reason, v.SinceSeconds, v.Evidence.P99Seconds = "violated", "contention", 3, 0.0213
			v.Blame = []server.Blame{{Culprit: server.Party{Namespace: "batch", Name: "spark-exec-0"}, Ratio: 0.62}, {Culprit: server.Party{Name: "system"}, Ratio: 0.2}, {Culprit: server.Party{Name: "own"}, Ratio: 0.11}, {Culprit: server.Party{Namespace: "batch", Name: "spark-exec-1"}, Ratio: 0.05}}
			v.Culprits = []server.Party{{Namespace: "batch", Name: "spark-exec-0"}}
		case i%13 == 1:
			v.Level, v.Reason = "watch", "own-queue"
			v.Blame = []server.Blame{{Culprit: server.Party{Name: "own"}, Ratio: 0.8}}
		case i%40 == 2:
			v.Level, v.Reason = "unknown", "few-samples"
		}
		s.Verdicts = append(s.Verdicts, v)
	}
	return s, nil
}

func (n *node) Blame(context.Context) ([]server.BlameMetrics, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []server.BlameMetrics
	for i := range n.online {
		for j := range n.offline {
			out = append(out, server.BlameMetrics{VictimNamespace: "shop", VictimPod: fmt.Sprintf("checkout-%d", i),
				CulpritNamespace: "batch", CulpritPod: fmt.Sprintf("spark-exec-%d", j), NS: uint64(n.asked) * uint64(4e8/(1+i*7+j*j*3))})
		}
		out = append(out, server.BlameMetrics{VictimNamespace: "shop", VictimPod: fmt.Sprintf("checkout-%d", i), CulpritPod: "own", NS: uint64(n.asked) * 3e7})
		out = append(out, server.BlameMetrics{VictimNamespace: "shop", VictimPod: fmt.Sprintf("checkout-%d", i), CulpritPod: "kernel", NS: uint64(n.asked) * 5e6})
	}
	return out, nil
}

// note adds an entry to the decision log.
func (n *node) note(e decisionlog.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.ID = uint64(len(n.notes) + 1)
	if e.At.IsZero() {
		e.At = noon.Add(time.Duration(n.asked) * time.Second)
	}
	n.notes = append([]decisionlog.Entry{e}, n.notes...)
}

// wave moves between 0 and 1, differently for each i.
func wave(t, i int) float64 { return 0.5 + 0.5*math.Sin(float64(t)/7+float64(i)*1.7) }

// busy is a node with some decisions taken.
func busy(online, offline int, full bool) *node {
	n := &node{online: online, offline: offline, full: full}
	n.note(decisionlog.Entry{Kind: "agent", Message: "the agent v1.0.0 begins, mode enforce"})
	n.note(decisionlog.Entry{Kind: "policy", New: "sha256:8c1f6a2e9b7d4f00", Message: "policy colocation-default is in force"})
	n.note(decisionlog.Entry{Kind: "write", Owner: "cpu", Rule: "posture", Pod: "batch/spark-exec-0", Knob: "cpu.idle", Cgroup: "/kubepods/pod3", Old: "0", New: "1", Result: "written"})
	n.note(decisionlog.Entry{Kind: "write", Owner: "cpu", Rule: "event-cut", Pod: "batch/spark-exec-0", Victim: "shop/checkout-0", Knob: "cpuset.cpus", Cgroup: "/kubepods/pod3", Old: "0-31", New: "0-15", Result: "written", Inputs: &decisionlog.Inputs{WaitSeconds: 0.0213, ObjectiveSeconds: 0.005, ShareRatio: 0.62}})
	n.note(decisionlog.Entry{Kind: "decision", Owner: "cpu", Rule: "event-cut", Pod: "batch/spark-exec-0", Victim: "shop/checkout-0", Old: "posture", New: "cores 8", Inputs: &decisionlog.Inputs{WaitSeconds: 0.0213, ObjectiveSeconds: 0.005, ShareRatio: 0.62}})
	n.note(decisionlog.Entry{Kind: "decision", Owner: "cpu", Rule: "proven", Pod: "batch/spark-exec-0", Victim: "shop/checkout-0", Inputs: &decisionlog.Inputs{WaitSeconds: 0.0031, BeforeSeconds: 0.0213, ObjectiveSeconds: 0.005, Belief: 60}})
	n.note(decisionlog.Entry{Kind: "write", Owner: "cpu", Rule: "posture", Pod: "batch/spark-exec-1", Knob: "cpu.weight", Cgroup: "/kubepods/pod4", Old: "100", New: "1", Result: "failed", Message: "permission denied"})
	return n
}
