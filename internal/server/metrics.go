package server

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Metrics is the typed value behind a scrape. Counts are cumulative since the agent started. Rows that end up with the same
// labels (two containers of one name during a restart) are added together, so the provider need not care.
type Metrics struct {
	Containers []ContainerMetrics
	Blame      []BlameMetrics
	Verdicts   []VerdictMetrics

	Pods       map[policy.Class]int // running pods by class; classes that are missing are 0
	KnobWrites []KnobWrites
	KnobsHeld  map[knob.Kind]int

	Capabilities []capability.Probe
	Programs     []ProgramMetrics // BPF programs
	Lost         Lost
	ReadErrors   map[string]uint64 // failed reads of kernel files by kind of signal; see ReadKinds
	Dropped      map[string]uint64 // anything else that was given up, by reason

	Policy PolicyMetrics
	Source SourceMetrics
	Node   NodeMetrics

	Enforcing bool // mode in force
}

// ContainerMetrics is one container of a pod that the policy classified as online or offline; rows of other classes are ignored.
type ContainerMetrics struct {
	Namespace, Pod, Container string
	Class                     policy.Class
	// Wait is nil when run-queue wait is not measured.
	Wait      *histogram.Counts
	WaitSumNS uint64
	Preempted uint64

	UsageNS          uint64
	ThrottledNS      uint64
	Periods          uint64
	ThrottledPeriods uint64
	WorkingSetBytes  uint64
}

// BlameMetrics is how long victim waited while culprit ran. A pseudo culprit has an empty namespace.
type BlameMetrics struct {
	VictimNamespace, VictimPod   string
	CulpritNamespace, CulpritPod string
	NS                           uint64
}

// The pseudo culprits: who ran when it was no other pod.
const (
	CulpritOwn     = "own"     // the victim's own tasks
	CulpritKernel  = "kernel"  // kernel threads
	CulpritIRQ     = "irq"     // interrupts
	CulpritSystem  = "system"  // processes outside every known pod
	CulpritIdle    = "idle"    // nobody: the CPU had to wake up
	CulpritQuota   = "quota"   // nobody: the victim had used up its CPU quota
	CulpritUnknown = "unknown" // the kernel side could not tell
	CulpritGone    = "gone"    // containers that have ended since
)

// PseudoCulprits lists them; every online pod has a blame series of each from the start.
func PseudoCulprits() []string {
	return []string{CulpritOwn, CulpritKernel, CulpritIRQ, CulpritSystem, CulpritIdle, CulpritQuota, CulpritUnknown, CulpritGone}
}

// VerdictMetrics is a verdict; of several containers of a pod the worst counts.
type VerdictMetrics struct {
	Namespace, Pod, Axis string
	Level                Level
}

// Level is how bad a verdict is.
type Level int

const (
	LevelOK Level = iota
	LevelWatch
	LevelViolated
)

// KnobWrites counts outcomes of the executor.
type KnobWrites struct {
	Kind   knob.Kind
	Result knob.Result
	Count  uint64
}

// ProgramMetrics is what the kernel's BPF statistics say of one program. Both are 0 while the statistics are off.
type ProgramMetrics struct {
	Name  string
	RunNS uint64
	Runs  uint64
}

// PolicyMetrics is the policy in force.
type PolicyMetrics struct {
	Name, ID   string
	ReloadOK   bool
	ReloadedAt time.Time // when the policy in force was loaded
	Reloads    uint64    // successful loads
	Failures   uint64    // loads that failed
}

// SourceMetrics is the pod source.
type SourceMetrics struct {
	Kind        string // cri, static
	Connected   bool
	LastSuccess time.Time
	Failures    uint64 // lists, connections and inspections that failed
}

// NodeMetrics is the machine's CPU time by mode, cumulative.
type NodeMetrics struct {
	BusyNS, StealNS, SoftirqNS, IRQNS uint64
}

// ReadKinds are the kinds of ReadErrors that have a series from the start.
func ReadKinds() []string { return []string{"cpu", "memory", "psi", "node"} }
