package server

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Metrics is the typed value behind a scrape. Counts are cumulative since the agent started. Rows that end up with the same
// labels (two containers of one name during a restart) are added together, so the provider need not care. Labels that are known
// beforehand have a series from the start; a map or list need only hold what is not zero.
type Metrics struct {
	Containers []ContainerMetrics
	Blame      []BlameMetrics
	Verdicts   []VerdictMetrics
	Pods       map[policy.Class]int // running pods by class
	Stale      map[string]int       // containers whose signal is older than the policy allows, by signal; see SignalNames

	KnobWrites []KnobWrites
	KnobsHeld  map[knob.Kind]int
	PodKnobs   map[PodKnob]int // settings held of each pod, without those that only follow others

	Capabilities []capability.Probe
	Programs     []ProgramMetrics // BPF programs
	Lost         Lost
	ReadErrors   map[string]uint64 // failed reads of kernel files, by signal; see SignalNames

	Policy           PolicyMetrics
	PodRDT           []PodRDTMetrics
	Domains          []DomainMetrics
	Classes          []ClassMetrics
	ClassWrites      []ClassWrites
	PerfUncounted    int // containers without hardware counters for want of descriptors
	PerfExtrapolated int // containers whose counters ran less than half of the time

	Source SourceMetrics
	Loop   LoopMetrics

	Recording RecordingMetrics
}

// ContainerMetrics is one container of a pod that the policy classified as online or offline; rows of other classes are ignored.
// What is not measured is nil.
type ContainerMetrics struct {
	Namespace, Pod, Container string
	Class                     policy.Class

	Wait   *WaitTotals
	CPU    *CPUTotals
	Memory *MemoryLevels

	Counters *CounterTotals
	CPI      *CPILevels // online containers only
}

// PodKnob is what is held of a pod, and why.
type PodKnob struct {
	Namespace, Pod string
	Kind           knob.Kind
	Rule           string
	Victim         string // "namespace/name"; empty: for nobody in particular
}

// WaitTotals is run-queue wait.
type WaitTotals struct {
	Hist      histogram.Counts
	SumNS     uint64
	Preempted uint64
}

// CPUTotals is CPU time.
type CPUTotals struct {
	UsageNS, ThrottledNS uint64
}

// MemoryLevels is memory in use.
type MemoryLevels struct {
	WorkingSetBytes uint64
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

// VerdictMetrics is a verdict; of several containers of a pod the worst counts, and unknown ones do not.
type VerdictMetrics struct {
	Namespace, Pod string
	Axis           judge.Axis
	Level          judge.Level
}

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

// PolicyMetrics is the policy in force and the history of loading it.
type PolicyMetrics struct {
	Name, ID string
	Mode     policy.Mode // in force, after windows and the command line
	ReloadOK bool        // the last attempt
	Loaded   time.Time   // when the policy in force was read
	Reloads  uint64      // loads that succeeded
	Refusals uint64      // loads that failed
}

// SourceMetrics is the pod source.
type SourceMetrics struct {
	Connected   bool
	LastSuccess time.Time // of a complete list; zero: never
	Failures    uint64    // times that it stopped being connected
	Unresolved  int       // running containers, or pods of the file, whose group is not known
}

// LoopMetrics is what concerns the loop but is not an instrument.
type LoopMetrics struct {
	Realtime   bool   // its thread is in the real-time class now
	Demotions  uint64 // times that it was over its budget
	LogDropped uint64 // log records that found the queue full

	DecisionsDropped uint64 // entries of the decision log that found its queue full
	DecisionsUnsaved uint64 // entries that are in no file because the disk took nothing
}

// RecordingMetrics is the recording of what the loop saw and did; zero if there is none.
type RecordingMetrics struct {
	Steps, Dropped uint64
	Bytes          uint64 // written
	Failures       uint64 // times that the disk refused
	DiskBytes      int64  // taken by all recordings in the directory
}

// SignalNames are the kinds of measurement that can fail or grow stale; each has a series from the start.
func SignalNames() []string { return []string{"wait", "cpu", "memory", "psi", "node", "perf", "rdt"} }
