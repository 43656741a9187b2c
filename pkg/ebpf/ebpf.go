// Package ebpf measures, in the kernel, how long tasks wait for a CPU and who ran meanwhile.
//
// One program on the sched_switch tracepoint reads the stamp that the scheduler itself puts on every enqueue, so there is no
// hook on wakeups, no map entry per wakeup and nothing that goes stale when a task exits. Counters live in arrays that are
// mapped into this process: reading them takes no system call.
//
// A container is known here by a [Slot], a small index that the caller hands out. The kernel side finds the slot of a task by
// its group in the cpu controller's hierarchy, whatever the layout is (v1, hybrid, v2).
//
// Waits are attributed for victims only: when a victim's task is dispatched after more than the walk threshold, the CPU's log
// of dispatches is walked back and every nanosecond of the wait is charged to one slot. Nothing is dropped: what the log does
// not know goes to [SlotUnknown].
//
// Floors: Linux 5.14 with BTF (CONFIG_DEBUG_INFO_BTF), CONFIG_FAIR_GROUP_SCHED and CONFIG_SCHED_INFO; CAP_BPF and CAP_PERFMON.
package ebpf

import (
	"time"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Slot is the index of a measured container. Several groups may share a slot (a container with groups below its own).
type Slot uint32

// Slots below FirstSlot are not containers.
const (
	SlotUnknown Slot = 0 // the log did not reach back, or the wait passed on a CPU that was not seen
	SlotKernel  Slot = 1 // kernel threads, ksoftirqd included
	SlotIRQ     Slot = 2 // interrupts and, in a virtual machine, time stolen by the hypervisor: as far as the kernel tells
	SlotSystem  Slot = 3 // tasks of groups that are not tracked
	SlotIdle    Slot = 4 // the CPU was idle
	SlotQuota   Slot = 5 // the victim's own group, or one above it, had used up its CPU quota

	FirstSlot Slot = 8
)

// Defaults of [Options].
const (
	DefaultMaxSlots      = 1024
	DefaultMaxVictims    = 512
	DefaultEventBytes    = 256 << 10
	DefaultWalkThreshold = 20 * time.Microsecond
	DefaultEventGap      = time.Millisecond
)

// Options says how much to measure. The zero value is a good one.
type Options struct {
	// MaxSlots is the number of slots, pseudo slots included (FirstSlot < MaxSlots <= 65536).
	MaxSlots int
	// MaxVictims bounds how many slots can be victims at a time; the blame matrix takes 8 bytes x MaxVictims x MaxSlots.
	MaxVictims int
	// EventBytes is the size of the ring buffer of events, rounded up to a power of two of pages.
	EventBytes int
	// WalkThreshold is the wait from which a victim's wait is attributed. Shorter waits are counted but blamed on nobody.
	WalkThreshold time.Duration
	// EventGap is the shortest time between two events of one victim.
	EventGap time.Duration
	// RunStats turns the kernel's accounting of BPF run time on (it costs some 20 ns per run of every program on the machine).
	RunStats bool
}

// Wait is what a slot's tasks have waited since the slot was last reset. All fields only grow. A wait is from the moment that a
// task could run until it ran, on whatever CPUs, and includes time in which its group had no quota left.
type Wait struct {
	Count     uint64           // dispatches
	SumNS     uint64           // total wait, ns
	Preempted uint64           // times a task left a CPU while it could still run
	Hist      histogram.Counts // waits by duration
}

// Event is one wait of a victim that exceeded a bound (see [Tracer.SetBounds]).
type Event struct {
	At      time.Duration // CLOCK_MONOTONIC, when the task was dispatched at last
	Victim  Slot
	PID     int32 // of the thread, in the host's numbering
	CPU     int32
	WaitNS  uint64
	Culprit Slot   // the slot with the largest part of the wait; may be the victim itself or a pseudo slot
	PartNS  uint64 // that part
	// Often: it is not so long that it counts alone, but it is one of too many that exceed the lower bound. After such an event
	// it takes as many long waits again until the next.
	Often bool
	// GoesOn: somebody is waiting and has not been dispatched yet (see [Tracer.Watch]). The event says no more than that: ask
	// [Tracer.Waiting].
	GoesOn bool
	// Ongoing: the task is still waiting (see [Tracer.Waiting]), and Parts are what every slot has had of its wait so far.
	Ongoing bool
	Parts   []Part
}

// Stats tells how well the kernel side is doing. All counters only grow.
type Stats struct {
	EventsLost       uint64 // the ring buffer was full
	EventsSuppressed uint64 // a victim's events came faster than EventGap
	ShortWalks       uint64 // neither the log nor its digests reached back to the start of a wait
	BadStamps        uint64 // waits dropped because the scheduler's stamp was wrong (a clock that went back, a sleeping task that was moved)
	LateNS           uint64 // part of all waits that is not in the kernel's own account, because its clock was not read
	QuotaLost        uint64 // throttlings that were not noted because their table was full
	Programs         []ProgramStats
}

// ProgramStats is a BPF program's cost; zero unless run-time statistics are on (see Options.RunStats), but for qos_watch_look, which runs in
// a timer and takes its own time.
type ProgramStats struct {
	Name  string
	RunNS uint64
	Runs  uint64
}
