// Package server is the operator's face of the agent: metrics, health and the state API, all of them read-only.
//
// It holds no state of the loop. What it shows comes from a Provider, which hands out copies, so that a slow or hostile reader
// can never hold the loop up.
package server

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

// State is the answer to GET /api/v1/state: what the agent sees, thinks and holds at one instant. Field names are part of the
// API: they are lower camelCase and carry their unit (Seconds, Bytes, Cores, Ratio). A measurement that was never made is
// absent, not zero; one that was made carries its age. Lists are never null.
type State struct {
	At        time.Time  `json:"at"` // wall clock of the node
	Agent     Agent      `json:"agent"`
	Node      Node       `json:"node"`
	Policy    Policy     `json:"policy"`
	PodSource PodSource  `json:"podSource"`
	Loop      Loop       `json:"loop"`
	Pods      []Pod      `json:"pods"`     // by namespace, name, UID
	Verdicts  []Verdict  `json:"verdicts"` // worst first, then by namespace, pod, container, axis
	Knobs     []HeldKnob `json:"knobs"`    // by group, then knob
	// Notes is the end of the decision log, newest first; NotesShown at most.
	Notes []decisionlog.Entry `json:"notes"`
}

// NotesShown is how many entries of the decision log the state holds. GET /api/v1/decisions has them all.
const NotesShown = 200

// Agent is the process itself.
type Agent struct {
	Version         string     `json:"version"`
	PID             int        `json:"pid"`
	Started         time.Time  `json:"started"`
	Mode            string     `json:"mode"` // what is in force now: observe or enforce
	IntervalSeconds float64    `json:"intervalSeconds"`
	RunDir          string     `json:"runDir"`
	Scheduling      Scheduling `json:"scheduling"`
}

// Scheduling is how the thread of the loop is scheduled.
type Scheduling struct {
	Class     string `json:"class"`            // realtime, ordinary, demoted (see package sched)
	Demotions uint64 `json:"demotions"`        // times the thread was over its budget
	Detail    string `json:"detail,omitempty"` // why it is not realtime
}

// Node is the machine.
type Node struct {
	Hostname     string             `json:"hostname"`
	Kernel       string             `json:"kernel"`     // release, "6.1.0-25-amd64"
	CgroupMode   string             `json:"cgroupMode"` // legacy, hybrid, unified
	CgroupRoot   string             `json:"cgroupRoot"`
	CPUs         []CPU              `json:"cpus"`
	Capabilities []capability.Probe `json:"capabilities"`
	Signals      NodeSignals        `json:"signals"`
	RDT          *NodeRDT           `json:"rdt,omitempty"` // absent where cache and memory bandwidth are neither controlled nor monitored
}

// CPU is one logical CPU: its physical core, NUMA node and last-level cache, the first and last named by their lowest CPU.
type CPU struct {
	ID   int `json:"id"`
	Core int `json:"core"`
	Node int `json:"node"`
	LLC  int `json:"llc"`
}

// NodeSignals are measurements of the machine as a whole.
type NodeSignals struct {
	CPU      *NodeCPU  `json:"cpu,omitempty"`
	Pressure *Pressure `json:"pressure,omitempty"`
}

// NodeCPU is where the machine's CPU time went; each ratio is of all CPUs' time, 0 to 1.
type NodeCPU struct {
	AgeSeconds   float64 `json:"ageSeconds"`
	BusyRatio    float64 `json:"busyRatio"`
	StealRatio   float64 `json:"stealRatio"`
	SoftirqRatio float64 `json:"softirqRatio"`
	IRQRatio     float64 `json:"irqRatio"`
}

// Policy is the policy in force and what became of the last attempt to load one.
type Policy struct {
	Name   string `json:"name"`
	ID     string `json:"id"`     // hash of the content
	Mode   string `json:"mode"`   // in force, after windows and the command line
	Window string `json:"window"` // name of the time window in force; "" for none
	// Loaded is when the policy in force was read. Reload is the last attempt, which may have failed.
	Loaded time.Time    `json:"loaded"`
	Reload PolicyReload `json:"reload"`
}

// PolicyReload is the outcome of the last attempt to load the policy.
type PolicyReload struct {
	OK     bool      `json:"ok"`
	At     time.Time `json:"at"`
	Errors []string  `json:"errors"` // each with file, line, field and what would be right
}

// PodSource is where pods come from.
type PodSource struct {
	Kind        string    `json:"kind"`              // cri, static
	Source      string    `json:"source"`            // endpoint or file
	Runtime     string    `json:"runtime,omitempty"` // "containerd 1.6.20"
	Connected   bool      `json:"connected"`
	Since       time.Time `json:"since"` // when connected took its value
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	Error       string    `json:"error,omitempty"`    // why it is not connected, and what to do about it
	Degraded    string    `json:"degraded,omitempty"` // why changes are noticed later than usual
	Unresolved  int       `json:"unresolved"`         // running containers, or pods of the file, whose group is not known
}

// Pod is a pod and what is known of it.
type Pod struct {
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	UID        string      `json:"uid"`
	QoSClass   string      `json:"qosClass,omitempty"`
	Class      string      `json:"class"`     // online, offline, unclassified
	ClassRule  string      `json:"classRule"` // the rule or preset that gave the class; "" if nothing matched
	Cgroup     string      `json:"cgroup"`
	Containers []Container `json:"containers"`
	Limits     *Limits     `json:"limits,omitempty"`
}

// Container is a running container.
type Container struct {
	Name    string  `json:"name"`
	ID      string  `json:"id"`
	PID     int     `json:"pid,omitempty"`
	Cgroup  string  `json:"cgroup"`
	Signals Signals `json:"signals"`
}

// Signals are the measurements of a container.
type Signals struct {
	Wait     *Wait     `json:"wait,omitempty"`
	CPU      *CPUUse   `json:"cpu,omitempty"`
	Memory   *Memory   `json:"memory,omitempty"`
	Pressure *Pressure `json:"pressure,omitempty"`
	Perf     *Perf     `json:"perf,omitempty"`
	RDT      *RDT      `json:"rdt,omitempty"` // of the whole pod, at its first container
}

// Perf is what hardware counters say of a container's use of the CPU. CPI and MPKI are 0 when it ran no instruction.
type Perf struct {
	AgeSeconds   float64 `json:"ageSeconds"`
	SpanSeconds  float64 `json:"spanSeconds"`
	CPI          float64 `json:"cpi"`          // cycles per instruction
	MPKI         float64 `json:"mpki"`         // LLC misses per thousand instructions
	RunningRatio float64 `json:"runningRatio"` // of the span in which the counters had hardware to count with, 0 to 1
}

// RDT is a pod's use of the last-level cache and of memory bandwidth, from resctrl.
type RDT struct {
	AgeSeconds              float64     `json:"ageSeconds"`
	State                   string      `json:"state"` // ok, unavailable, unassigned, error; with any but ok the figures are of the domains that could be read
	OccupancyBytes          uint64      `json:"occupancyBytes"`
	BandwidthBytesPerSecond float64     `json:"bandwidthBytesPerSecond"`
	LocalBytesPerSecond     float64     `json:"localBytesPerSecond"` // to memory of the same socket
	Domains                 []RDTDomain `json:"domains"`
}

// Wait is run-queue wait over the judge's window.
type Wait struct {
	AgeSeconds  float64 `json:"ageSeconds"`
	SpanSeconds float64 `json:"spanSeconds"`
	Count       uint64  `json:"count"` // dispatches
	SumSeconds  float64 `json:"sumSeconds"`
	P50Seconds  float64 `json:"p50Seconds"`
	P99Seconds  float64 `json:"p99Seconds"`
	Preempted   uint64  `json:"preempted"` // times a task was put off a CPU while it could still run
}

// CPUUse is CPU time used, and quota.
type CPUUse struct {
	AgeSeconds       float64 `json:"ageSeconds"`
	SpanSeconds      float64 `json:"spanSeconds"`
	UsageCores       float64 `json:"usageCores"`
	QuotaCores       float64 `json:"quotaCores,omitempty"` // absent without a quota
	Periods          uint64  `json:"periods"`
	ThrottledPeriods uint64  `json:"throttledPeriods"`
	ThrottledSeconds float64 `json:"throttledSeconds"`
}

// Memory is memory charged to a container.
type Memory struct {
	AgeSeconds      float64 `json:"ageSeconds"`
	CurrentBytes    uint64  `json:"currentBytes"`
	WorkingSetBytes uint64  `json:"workingSetBytes"`
}

// Pressure is PSI: the share of the span in which some, or all, tasks stalled on a resource, 0 to 1.
type Pressure struct {
	AgeSeconds      float64 `json:"ageSeconds"`
	SpanSeconds     float64 `json:"spanSeconds"`
	CPUSomeRatio    float64 `json:"cpuSomeRatio"`
	CPUFullRatio    float64 `json:"cpuFullRatio"`
	MemorySomeRatio float64 `json:"memorySomeRatio"`
	MemoryFullRatio float64 `json:"memoryFullRatio"`
	IOSomeRatio     float64 `json:"ioSomeRatio"`
	IOFullRatio     float64 `json:"ioFullRatio"`
}

// Verdict is the judge's finding on one axis of one online container.
type Verdict struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
	Axis      string `json:"axis"`  // cpu, memory, io, cache, bandwidth
	Level     string `json:"level"` // ok, watch, violated, unknown
	// SinceSeconds is how long the container has been at this level.
	SinceSeconds float64  `json:"sinceSeconds"`
	Reason       string   `json:"reason,omitempty"` // contention, own-queue, self-throttled, steal ...; see package judge
	Evidence     Evidence `json:"evidence"`
	Blame        []Blame  `json:"blame,omitempty"`    // of the wait over the window; largest share first
	Culprits     []Party  `json:"culprits,omitempty"` // the pods that are named, worst first; most often nobody
	Joint        bool     `json:"joint,omitempty"`    // none of them would be named alone
}

// Evidence is the figures behind a verdict. What does not belong to its axis is absent.
type Evidence struct {
	Samples             uint64  `json:"samples,omitempty"` // waits in the window
	WindowSeconds       float64 `json:"windowSeconds"`
	P99Seconds          float64 `json:"p99Seconds,omitempty"`
	ObjectiveSeconds    float64 `json:"objectiveSeconds,omitempty"`
	StallRatio          float64 `json:"stallRatio,omitempty"` // time in which some task stalled, 0 to 1
	StallObjectiveRatio float64 `json:"stallObjectiveRatio,omitempty"`
	ThrottledRatio      float64 `json:"throttledRatio,omitempty"`    // of the quota periods
	StealRatio          float64 `json:"stealRatio,omitempty"`        // of the node's CPU time
	AttributedSeconds   float64 `json:"attributedSeconds,omitempty"` // the waits that blame is about

	CPI *CPIEvidence `json:"cpi,omitempty"` // cache and bandwidth only
}

// Blame is the part of a victim's wait that somebody caused.
type Blame struct {
	Culprit Party   `json:"culprit"`
	Ratio   float64 `json:"ratio"` // of the victim's attributed wait, 0 to 1
	Seconds float64 `json:"seconds"`
	// BytesPerSecond is what the culprit moves in the victim's memory domains; on the axes cache and bandwidth, where Ratio is its part
	// of the score of all suspects.
	BytesPerSecond float64 `json:"bytesPerSecond,omitempty"`
}

// Party is who ran while a victim waited: a container of a pod, or with only Name set one of the pseudo culprits (see
// PseudoCulprits).
type Party struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"` // of the pod
	Container string `json:"container,omitempty"`
}

// HeldKnob is a setting that the agent has changed and will put back.
type HeldKnob struct {
	Cgroup   string    `json:"cgroup"`
	Knob     string    `json:"knob"`
	Original string    `json:"original"` // text that the file held before the first touch, and will hold again
	Current  string    `json:"current"`
	Owner    string    `json:"owner"` // controller
	Rule     string    `json:"rule"`
	Pod      string    `json:"pod"`              // namespace/name
	Victim   string    `json:"victim,omitempty"` // namespace/name, for whose sake
	Since    time.Time `json:"since"`
}

// Loop counts what the loop did since the agent started.
type Loop struct {
	Ticks    uint64  `json:"ticks"`
	Overruns uint64  `json:"overruns"` // ticks that began late because the one before took too long
	Events   uint64  `json:"events"`   // waits over the bound that the kernel reported
	Lost     Lost    `json:"lost"`
	Tick     Latency `json:"tick"`     // duration of a tick
	Reaction Latency `json:"reaction"` // from the event in the kernel to the completed write
}

// Latency sums up a distribution since the agent started. Quantiles of an empty one are 0.
type Latency struct {
	Count      uint64  `json:"count"`
	P50Seconds float64 `json:"p50Seconds"`
	P99Seconds float64 `json:"p99Seconds"`
}

// Lost is what went missing between kernel and agent, cumulative but for Unmeasured.
type Lost struct {
	Events     uint64 `json:"events"`     // the ring buffer was full
	Suppressed uint64 `json:"suppressed"` // events of a victim that came too soon after the one before
	ShortWalks uint64 `json:"shortWalks"` // nothing that is kept of who ran reached back to the start of a wait
	BadStamps  uint64 `json:"badStamps"`  // waits dropped because the scheduler's stamp was wrong
	QuotaLost  uint64 `json:"quotaLost"`  // throttlings that were not noted because their table was full
	Unmeasured uint64 `json:"unmeasured"` // containers without a slot, now
}
