package signal

import (
	"math"
	"math/bits"
	"time"
)

// CacheLine is the bytes that a miss of the last-level cache moves.
const CacheLine = 64

// BytesPerSecond is a rate in whole bytes a second, rounded down; 0 over no time, and the largest number where the rate does not fit.
func BytesPerSecond(n uint64, over time.Duration) uint64 {
	if over <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(n, uint64(time.Second))
	if hi >= uint64(over) {
		return math.MaxUint64
	}
	rate, _ := bits.Div64(hi, lo, uint64(over))
	return rate
}

// PerfSample is what the hardware counters of a container's group counted over Span. Counts are scaled to the whole span
// when the kernel had to share the hardware counters among several users.
type PerfSample struct {
	At, Span     time.Duration
	Cycles       uint64 // CPU cycles not halted
	Instructions uint64 // retired
	LLCRefs      uint64 // last-level cache references
	LLCMisses    uint64 // last-level cache misses
	BusyNS       uint64 // CPU time of the group, summed over CPUs, in which the counters were wanted, ns
	// RunningPercent is the part of the time in which the counters had hardware to count with, 0 to 100. Below 50 the
	// counts above are more extrapolated than counted; at 0 nothing was counted and they are zero.
	RunningPercent uint8
}

// CPI is cycles per instruction. It is false for a sample that counted no instructions.
func (p *PerfSample) CPI() (float64, bool) {
	if p.Instructions == 0 {
		return 0, false
	}
	return float64(p.Cycles) / float64(p.Instructions), true
}

// MPKI is LLC misses per thousand instructions. It is false for a sample that counted no instructions.
func (p *PerfSample) MPKI() (float64, bool) {
	if p.Instructions == 0 {
		return 0, false
	}
	return float64(p.LLCMisses) * 1000 / float64(p.Instructions), true
}

// RDTState says what a reading of a resctrl monitoring file is worth. States are ordered: of several readings the worst one is the
// state of their sum.
type RDTState uint8

const (
	// RDTNone: there is no monitoring group: no such hardware, no resctrl, or no RMID left for this pod.
	RDTNone RDTState = iota
	// RDTOK: the counter was read.
	RDTOK
	// RDTUnavailable: the hardware had no data; it may have some at the next reading ("Unavailable").
	RDTUnavailable
	// RDTUnassigned: the machine has fewer counters than groups and this group has none ("Unassigned", AMD ABMC).
	RDTUnassigned
	// RDTError: the hardware refused to tell ("Error"), or the file could not be read.
	RDTError
)

// RDTSample is what resctrl's monitoring shows of a whole pod. It is carried by the pod's first container; the other containers
// have State RDTNone, so that sums over containers are right.
//
// A part is valid if its state is RDTOK and its At is not zero; with any other state its numbers are the sums over the domains that
// could be read.
type RDTSample struct {
	At, Span       time.Duration // Span is what TotalBytes and LocalBytes cover; 0 on a first reading, which has no bytes
	State          RDTState      // of occupancy and bandwidth alike: the worst of all domains
	OccupancyBytes uint64        // L3 now held by lines that carry the pod's RMID
	TotalBytes     uint64        // moved between L3 and memory over Span
	LocalBytes     uint64        // of these, to the memory of the own socket; 0 where it is not counted
	Domains        []RDTDomainSample
}

// RDTDomainSample is a pod's part in one cache domain.
type RDTDomainSample struct {
	ID             int // cache id; may be sparse
	OccupancyBytes uint64
	TotalBytes     uint64
	LocalBytes     uint64
}

// DomainBandwidth is what one cache domain moved over Span.
type DomainBandwidth struct {
	ID         int // cache id
	At, Span   time.Duration
	State      RDTState
	TotalBytes uint64
}

// RDT is what the machine's cache and bandwidth allocation can do, from resctrl's info directory. It does not change while
// the agent runs. Zero: resctrl is not usable.
type RDT struct {
	Domains []RDTDomain // ascending ID

	// CLOSIDs is how many control groups resctrl allows, the default group among them: the smallest num_closids of all
	// resources. RMIDs is the same for groups that are monitored, 0 without monitoring.
	CLOSIDs int
	RMIDs   int

	Ways         int    // bits of a full L3 mask; 0 without cache allocation
	MinWays      int    // fewest bits of a mask that the kernel takes
	ShareableWay uint64 // mask of ways that other hardware (I/O) uses too
	SparseMasks  bool   // masks may have holes

	MB MBUnits
}

// RDTDomain is one L3 cache, and the memory bandwidth behind it.
type RDTDomain struct {
	ID       int    // cache id; may be sparse
	CPUs     string // its CPUs in list format ("0-3,8-11")
	WayBytes uint64 // size of one way; 0 if not known
}

// MBUnits is the kernel's scale of memory bandwidth limits. Zero: no bandwidth allocation.
type MBUnits struct {
	Unit MBUnit
	Min  int // smallest limit
	Gran int // step
	Max  int // no limit: 100 in percent
}

// MBUnit is what a number in an MB line of schemata means.
type MBUnit uint8

const (
	// MBNone: no bandwidth allocation.
	MBNone MBUnit = iota
	// MBPercent: percent of a core's bandwidth, a coarse throttle of each core by itself (Intel).
	MBPercent
	// MBMiBps: MiB/s of the group, kept by the kernel's own feedback loop (mount option mba_MBps).
	MBMiBps
	// MBEighthGBps: steps of 1/8 GB/s of the group (AMD).
	MBEighthGBps
)
