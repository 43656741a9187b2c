// Package channel is how a program in the rig tells the emulated CPU what it does, and learns how fast that goes. It consists of
// CPUID leaves that user programs may execute; on other CPUs they do nothing.
package channel

import "time"

// Profile is what a piece of work is to the memory system.
type Profile struct {
	MBps       uint32 // memory bandwidth that it would use alone with a cold cache, MB/s
	WorkingSet uint32 // KiB
	CPIMilli   uint32 // cycles per instruction without misses, thousandths
	Penalty    uint32 // cycles lost by a miss while the memory is idle
}

// State is how the work goes.
type State struct {
	CPIMilli  uint32 // cycles per instruction now, thousandths
	MBps      uint32 // memory bandwidth now, MB/s
	MissPPM   uint32 // misses per million references
	Occupancy uint32 // of the last-level cache, KiB
}

// MHz is the clock of the emulated CPU.
const MHz = 2600

const (
	leafWork  = 0x40f00000
	leafInfo  = 0x40f00001
	leafFault = 0x40f00002

	signature = 0x71544452 // "RDTq"
)

// registers are what CPUID takes and gives; the order is known to the assembly.
type registers struct{ ax, bx, cx, dx, si, di uint32 }

//go:noescape
func cpuid(r *registers)

// Present reports whether this is the rig.
func Present() bool {
	r := registers{ax: leafInfo}
	cpuid(&r)
	return r.bx == signature
}

// Load is the use of the socket's memory bandwidth in thousandths, and the factor by which that makes a miss longer, in
// thousandths.
func Load() (permille, latency uint32) {
	r := registers{ax: leafInfo}
	cpuid(&r)
	return r.cx, r.dx
}

// Work spends d, at most some milliseconds, with work of this profile: the guest's CPU is busy, the host's is not. The profile holds
// until the next task switch, so call it in a loop, from a goroutine that is locked to its thread.
func Work(p Profile, d time.Duration) State {
	r := registers{ax: leafWork, bx: p.WorkingSet, cx: p.MBps, dx: p.CPIMilli, si: p.Penalty, di: uint32(d.Microseconds())}
	cpuid(&r)
	return State{CPIMilli: r.ax, MBps: r.bx, MissPPM: r.cx, Occupancy: r.dx}
}

// Fault is how a counter fails.
type Fault uint32

const (
	Unavailable Fault = 1
	Error       Fault = 2
)

// Break makes the monitoring counters of an RMID fail for d.
func Break(rmid int, d time.Duration, f Fault) {
	cpuid(&registers{ax: leafFault, bx: uint32(d.Milliseconds()), cx: uint32(rmid), dx: uint32(f)})
}
