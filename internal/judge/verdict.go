// Package judge says who is hurt, how badly, why, and by whom. It is pure: the same views in the same order give the same
// verdicts on any machine; all arithmetic that decides is in integers.
//
// On the CPU axis blame is direct accounting, not correlation: the kernel side splits every long wait over whoever ran on that
// CPU meanwhile. (CPI² and its descendants in Rubik and Caelus correlate a suspect's CPU use with the victim's cycles per
// instruction, ten points a window, and cannot see waits in the run queue at all; Netflix's and kguardian's observers charge
// the whole wait to whoever ran last.) Whether the accounting names the right cause is checked in turn by intervention, which
// is package control's part.
package judge

import (
	"fmt"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
)

// Axis is a resource on which pods can hurt each other.
type Axis uint8

const (
	CPU Axis = iota
	Memory
	IO
	Cache
	Bandwidth
	axes
)

var axisNames = [axes]string{"cpu", "memory", "io", "cache", "bandwidth"}

func (a Axis) String() string {
	if a < axes {
		return axisNames[a]
	}
	return fmt.Sprintf("axis(%d)", uint8(a))
}

// MarshalText gives the name.
func (a Axis) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Level is how well a container is.
type Level uint8

const (
	OK       Level = iota // inside the objective
	Watch                 // close to it: nothing is cut and nothing given back
	Violated              // beyond it
	Unknown               // the signal is missing or too old: that is not calm
	levels
)

var levelNames = [levels]string{"ok", "watch", "violated", "unknown"}

func (l Level) String() string {
	if l < levels {
		return levelNames[l]
	}
	return fmt.Sprintf("level(%d)", uint8(l))
}

// MarshalText gives the name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Reason is why a container is not well, or why it cannot be said.
type Reason uint8

const (
	None          Reason = iota // it is well
	Contention                  // other pods ran while it waited, and they are named
	OwnQueue                    // it waited mostly for itself: more runnable threads than CPUs
	SelfThrottled               // it had used up its own CPU quota
	Steal                       // the hypervisor took the CPUs
	Kernel                      // kernel threads and interrupts
	System                      // processes outside every pod
	IdleWakeup                  // nobody ran: the CPU had to wake up
	Scattered                   // other pods, but no few of them can be named
	Unexplained                 // too much of the wait could not be attributed
	Pressure                    // it stalled on memory or IO; nobody is named on these axes yet
	FewSamples                  // too few waits for a percentile to mean anything
	Stale                       // the signal is too old
	Unmeasured                  // there is no signal
	Learning                    // what is normal for this workload is not known yet
	OwnPhase                    // nobody else does more than while it was well: its own program has changed what it does
	reasons
)

var reasonNames = [reasons]string{"", "contention", "own-queue", "self-throttled", "steal", "kernel", "system", "idle-wakeup",
	"scattered", "unexplained", "pressure", "few-samples", "stale", "unmeasured", "learning", "own-phase"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// MarshalText gives the name.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// SelfInflicted reports whether r is something that no other pod on the node can have caused, so that holding back or giving
// back others makes no difference.
func (r Reason) SelfInflicted() bool {
	return r == OwnQueue || r == SelfThrottled || r == Steal || r == IdleWakeup || r == OwnPhase
}

// Part is a kind of time that a wait is made of, apart from other pods.
type Part uint8

const (
	Own        Part = iota // the victim's own pod
	OwnQuota               // its own quota
	Idle                   // an idle CPU on its way back
	KernelTime             // kernel threads
	IRQ                    // interrupts
	SystemTime             // processes outside every pod
	Gone                   // pods that have ended since
	NotKnown               // what the kernel side could not attribute
	Parts                  // how many there are
)

var partNames = [Parts]string{"own", "quota", "idle", "kernel", "irq", "system", "gone", "unknown"}

func (p Part) String() string {
	if p < Parts {
		return partNames[p]
	}
	return fmt.Sprintf("part(%d)", uint8(p))
}

// Share is one other pod's part of a victim's trouble: of its wait, or on the cache and bandwidth axes of the score of suspects.
type Share struct {
	Pod      int          // index into Snapshot.Pods
	Class    policy.Class // of that pod; only offline pods are ever acted upon
	NS       uint64       // CPU: of the window's attributed wait
	MBps     uint64       // cache, bandwidth: what the pod moves in the victim's domains now, MB/s
	Permille int          // of the whole
}

// Evidence is what a verdict rests on.
type Evidence struct {
	Samples uint64        // waits in the window
	Window  time.Duration // the time that they cover
	// P99 is the 99th percentile of the waits; on the memory and IO axes it is 0. Objective is what was promised, 0 there too.
	P99, Objective time.Duration
	// StallPermille is the share of the window in which some task of the group stalled, and StallObjective what was promised,
	// both in thousandths; memory and IO axes only.
	StallPermille, StallObjective int
	// ThrottledPermille is the share of the container's quota periods that were throttled.
	ThrottledPermille int
	// StealPermille is the share of the node's CPU time that the hypervisor took.
	StealPermille int
	// AttributedNS is the sum of the waits that were long enough to be attributed (20 µs by default); shares are of this.
	AttributedNS uint64
	// Parts is what did not go to other pods, in thousandths of AttributedNS, by Part.
	Parts [Parts]int
	// CPI is what the cache and bandwidth axes rest on.
	CPI CPIEvidence
	// Shares is other pods in descending order, ties in the order of Snapshot.Pods. Filled for watch and violated only.
	Shares []Share
}

// CPIEvidence is a container's hardware counters over the window beside what is normal for it. CPI and MPKI are in thousandths.
type CPIEvidence struct {
	CPI, CPIBaseline, CPIFence    uint64
	MPKI, MPKIBaseline, MPKIFence uint64
	MilliCPU                      uint64 // the container's use, thousandths of a CPU
	Bin                           int    // of that use; see Bin
	BaselineSamples               int    // windows that the baseline rests on
	RunningPercent                int    // how much of the time the counters had hardware; see signal.PerfSample
	OccupancyBytes                uint64 // L3 that the container's pod holds; 0: not known
	OccupancyBaseline             uint64 // and held while it was well; 0: not known
	DomainMBps                    uint64 // what all pods together move in the pod's domains
	DomainBaseline                uint64 // and moved while it was well; 0: not known
	BusPercent                    int    // DomainMBps of what the domains can move, as far as that is known
}

// Verdict is one container's state on one axis.
type Verdict struct {
	Sample int // index into Snapshot.Containers
	Pod    int // index into Snapshot.Pods
	Axis   Axis
	Level  Level
	Reason Reason
	// Since is when the container came to this level (CLOCK_MONOTONIC).
	Since time.Duration
	// Named is how many of the first Shares are culprits: none, all that hold CulpritPercent alone, or, with Joint, the
	// fewest that hold JointPercent together.
	Named int
	Joint bool

	Evidence
}

// Culprits is the pods that are to blame, worst first.
func (v *Verdict) Culprits() []Share { return v.Shares[:v.Named] }

// Finding is what is to be said of a long wait, without waiting for the window. Findings of one event follow each other, one for each
// pod that is named.
type Finding struct {
	Event   int // index into Snapshot.Events
	Victim  int // index into Snapshot.Containers
	Culprit int // index into Snapshot.Pods; -1: nobody is named
	// Reason is Contention if and only if Culprit names a pod.
	Reason   Reason
	Often    bool          // about too many waits beyond the objective, not about one that counts alone
	Ongoing  bool          // about one that has not ended
	Joint    bool          // no pod is a culprit alone, but all that findings of this event name are together
	Permille int           // the culprit's share: of the wait, or of all waits that the event accounts for
	Wait     time.Duration // how long it was, or the last of several
	Began    time.Duration // when that began (CLOCK_MONOTONIC)
}
