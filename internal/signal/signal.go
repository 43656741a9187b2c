// Package signal is the vocabulary of the loop: a Snapshot is everything that the agent knows of the node at one instant,
// and it is all that the judge and the controllers may look at.
//
// A snapshot holds no pointer into live state, no clock and no file; the same snapshots in the same order give the same
// decisions on any machine. The package imports nothing of ours but the leaf packages cpuset and histogram.
package signal

import (
	"time"

	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Trigger says what made the loop take a step.
type Trigger uint8

const (
	// Tick is the regular step; every signal is looked at and read again when it is due.
	Tick Trigger = iota
	// Event is a step between ticks because an online task waited too long. Only Now, Wall and Events are new;
	// containers carry what the last tick saw.
	Event
)

// Snapshot is the node at one instant.
type Snapshot struct {
	Seq     uint64        // counts the steps of this run, from 1
	Trigger Trigger       //
	Now     time.Duration // CLOCK_MONOTONIC
	Wall    time.Time     // local wall-clock time; for time windows of a policy and for people, never for intervals
	Elapsed time.Duration // since the last tick; 0 on the first tick and on events

	Node Node
	// PodsGen changes whenever Pods, or the identity or order of Containers, may differ from the step before: whoever keeps
	// something by pod or container needs to look again only then. 0: not known, look every time.
	PodsGen    uint64
	Pods       []Pod             // sorted by namespace, name, UID
	Containers []ContainerSample // grouped by pod in the order of Pods, then by name and ID
	Events     []WaitEvent       // in the order in which the kernel reported them
	// Refused is what the kernel would not take since the last tick; ticks only.
	Refused []Refusal
	// Lost counts, since the last step, what the kernel side could not deliver: events, map entries, walks of the log.
	Lost Lost
}

// Refusal is a setting of a group that could not be made.
type Refusal struct {
	Cgroup string // relative to a controller's mount
	Knob   string // its name in metrics and journal, "cpuset.cpus"; or KnobResctrl
	Reason string
}

// KnobResctrl stands for all that resctrl limits for a pod. Such a refusal is repeated in each tick as long as it is so.
const KnobResctrl = "resctrl"

// Lost is what went missing between kernel and agent since the last step.
type Lost struct {
	Events   uint64 // the ring buffer was full
	LogShort uint64 // neither the switch log nor its digests reached back to the start of a wait: its rest went to CulpritUnknown
	NoSlot   uint64 // containers that are not measured because every slot is taken (a level, not a delta)
}

// QoSClass is the Kubernetes QoS class of a pod, derived from its group's path.
type QoSClass string

const (
	QoSGuaranteed QoSClass = "Guaranteed"
	QoSBurstable  QoSClass = "Burstable"
	QoSBestEffort QoSClass = "BestEffort"
	QoSUnknown    QoSClass = "" // not a pod of Kubernetes
)

// Pod is a pod as its source describes it. It does not change during its life, apart from labels, annotations and containers,
// and a changed pod is a new value: whoever holds a Pod may keep it.
type Pod struct {
	UID         string
	Namespace   string
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	QoS         QoSClass
	// Cgroup is the pod's own group, relative to a controller's mount ("/kubepods/burstable/pod1234"). For a static pod
	// it is its one group, which is the container's too.
	Cgroup     string
	Containers []Container
}

// Key is the name by which people and policies know the pod.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// Container is one running container.
type Container struct {
	ID     string // unique on the node
	Name   string
	PID    int    // of its first process, in the host's numbering; 0 if not known
	Cgroup string // relative to a controller's mount
}

// ContainerSample is what was measured of one container. A part whose At is zero was never read; whether a part is fresh is
// to be judged by Snapshot.Now - At.
type ContainerSample struct {
	Pod       int // index into Snapshot.Pods
	Container int // index into that pod's Containers

	// What every step looks at comes first, side by side: there are hundreds of these, and they do not all stay in the fastest cache.
	Wait   WaitSample
	CPU    CPUSample
	PSI    PSISample
	Memory MemorySample
	Perf   PerfSample
	RDT    RDTSample

	// CPUs is where the container may run by the will of others (a static CPU manager, an operator), whatever the agent has
	// made of it since. Empty: not known, taken as all. Without it a cut by cpuset could push a pod onto CPUs that
	// belong to somebody else alone.
	CPUs cpuset.Set
	// NoCPUSet says that the container's group has no cpuset to set: cgroup v2, and the controller is not enabled there.
	NoCPUSet bool
}

// WaitSample is the run-queue wait of a container's tasks since it was last read: of an online container at the last tick, of others some ticks
// ago, as nothing is decided by theirs. Where nothing was read at this tick, At is when it was, and the rest is empty. On events all is.
type WaitSample struct {
	At        time.Duration // when read; 0: not measured (no eBPF, or no slot)
	Span      time.Duration // the time that the counts below cover
	Count     uint64        // dispatches
	SumNS     uint64        // total wait, ns; in whole µs, what is left over counts in the next sample
	Preempted uint64        // times a task was put off a CPU while it could still run
	Buckets   []Bucket      // non-empty buckets of package histogram, ascending
	Blame     []Blame       // where the longer waits (over the walk threshold) went; online containers only; ascending culprit
}

// Bucket is one non-empty bucket of a wait histogram.
type Bucket struct {
	Index uint16 // see package histogram
	Count uint32
}

// Culprit names who ran while a victim waited: a container by its index in Snapshot.Containers, or one of the constants below.
type Culprit int32

const (
	CulpritUnknown Culprit = -1 // nothing that is kept of who ran reached back, or the wait began on another CPU
	CulpritKernel  Culprit = -2 // kernel threads
	CulpritIRQ     Culprit = -3 // hard and soft interrupts, where the kernel lets us tell
	CulpritSystem  Culprit = -4 // processes outside every pod that we know
	CulpritIdle    Culprit = -5 // nobody: the CPU was idle and had to wake up
	CulpritQuota   Culprit = -6 // nobody ran it because its own group had used up its CPU quota
	CulpritGone    Culprit = -7 // a container that has ended since
)

// Own reports whether culprit c, blamed by the container at index victim, is the victim itself.
func (c Culprit) Own(victim int) bool { return int(c) == victim }

// Blame is the part of a container's wait during which culprit ran, in whole µs as WaitSample.SumNS.
type Blame struct {
	Culprit Culprit
	NS      uint64
}

// WaitEvent is a single wait of an online task that exceeded the policy's bound, or the last of too many that exceeded its objective.
type WaitEvent struct {
	At      time.Duration // CLOCK_MONOTONIC, when the task was dispatched at last
	Victim  int           // index into Snapshot.Containers
	PID     int32         // host numbering
	CPU     int32         //
	WaitNS  uint64        //
	Culprit Culprit       // the group with the largest part of the wait
	PartNS  uint64        // that part
	// Often: the wait counts only together with others: more than a hundredth of the victim's waits of the last milliseconds
	// exceeded the objective for other containers' sake.
	Often bool
	// Ongoing: the wait has not ended. At is when it was looked at, WaitNS what it has lasted so far.
	Ongoing bool
	// Blame is where all that the victim has waited went since the tick or the event before, or, while it goes on, what the wait itself is
	// made of; in the order of WaitSample.Blame. Empty: not known.
	Blame []Blame
}

// CPUSample is a container's CPU accounting over Span.
type CPUSample struct {
	At, Span         time.Duration
	UsageNS          uint64 // CPU time used
	Periods          uint64 // quota periods that began with runnable tasks; 0 without a quota
	ThrottledPeriods uint64
	ThrottledNS      uint64
	QuotaUS          int64 // CPU quota of the container (the tighter of its own and its pod's) per PeriodUS; -1: none
	PeriodUS         int64
}

// MemorySample is a container's memory, in bytes.
type MemorySample struct {
	At         time.Duration
	Current    uint64 // all memory charged to the group
	WorkingSet uint64 // Current less inactive file pages: what the kubelet calls the working set
}

// PSISample is the pressure of a group over Span, from the totals of its *.pressure files.
type PSISample struct {
	At, Span        time.Duration
	CPU, Memory, IO Pressure
}

// Pressure is stalled time.
type Pressure struct {
	SomeUS uint64 // at least one task stalled, µs
	FullUS uint64 // all tasks stalled, µs
}

// Node is what concerns the machine as a whole.
type Node struct {
	CPU      NodeCPUSample
	PSI      PSISample
	Topology Topology
	Caps     Capabilities
	RDT      RDT
	// Bandwidth is what all of the machine moved over its memory buses, by cache domain, ascending; foreign groups
	// and the system's own processes are in it. Empty: not measured.
	Bandwidth []DomainBandwidth
}

// NodeCPUSample is the machine's CPU time over Span, summed over CPUs, from /proc/stat (unit there: 10 ms).
type NodeCPUSample struct {
	At, Span  time.Duration
	BusyNS    uint64 // everything but idle and iowait
	StealNS   uint64 // the hypervisor ran someone else
	SoftirqNS uint64
	IRQNS     uint64
}

// Topology is the machine's CPUs as sysfs shows them. Only online CPUs are listed.
type Topology struct {
	CPUs []CPU // ascending ID
}

// CPU is one logical CPU.
type CPU struct {
	ID   int
	Core int // lowest logical CPU of the same physical core
	Node int // NUMA node
	LLC  int // lowest logical CPU that shares the last-level cache
}

// Set is all CPUs of the machine.
func (t *Topology) Set() cpuset.Set {
	var s cpuset.Set
	for _, c := range t.CPUs {
		s.Add(c.ID)
	}
	return s
}

// Capabilities are the kernel features that decisions depend on; each was probed by using it.
type Capabilities struct {
	RunQueue bool // run-queue wait by eBPF
	CPUIdle  bool // cpu.idle
	CPUBurst bool // cpu.max.burst or cpu.cfs_burst_us
	CPUQuota bool // bandwidth control
	CPUSet   bool // cpuset controller usable
	Freeze   bool // freezer
	GroupPSI bool // *.pressure per group
	// NestedLimits: a group's CPUs and quota may be less than those of the groups in it (cgroup v2). Where they may not, a limit of a
	// pod keeps containers with limits of their own from being started or changed.
	NestedLimits bool

	Perf                bool // cycles, instructions, LLC references and misses per group by perf_event
	CacheAllocation     bool // resctrl: masks of L3 ways (CAT)
	BandwidthAllocation bool // resctrl: memory bandwidth limits (MBA)
	CacheMonitoring     bool // resctrl: L3 occupancy by group (CMT)
	BandwidthMonitoring bool // resctrl: memory bandwidth by group (MBM)
}

// Hist adds the sample's buckets to c.
func (w *WaitSample) Hist(c *histogram.Counts) {
	for _, b := range w.Buckets {
		c[b.Index] += uint64(b.Count)
	}
}
