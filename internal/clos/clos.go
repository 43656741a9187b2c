// Package clos plans classes of service: it maps what the controllers want for each pod to the few classes (CLOSIDs) that the
// machine has. It is pure: the same limits and shares in the same order give the same plan, and where nothing changed nothing is
// allocated.
package clos

// Limits are what the machine and its other users leave to us. They change rarely.
type Limits struct {
	// CLOSIDs is how many control groups we may make: those of the machine, less the default group and those of others.
	CLOSIDs int
	// RMIDs is how many monitoring groups we may make beside our control groups.
	RMIDs int
	// L3 are the domains of the last-level cache by id; empty without cache allocation.
	L3 []int
	// FullMask is the mask with all ways, MinBits the least number of bits in one.
	FullMask uint64
	MinBits  int
	// Sparse says that masks may have gaps.
	Sparse bool
	// Shareable are ways that other agents of the machine, such as devices, fill too: no pod has them for itself.
	Shareable uint64
	// Foreign are ways that groups of others have for themselves (exclusive mode): the kernel refuses masks over them.
	Foreign uint64
	// Taken are ways that groups of others are limited to: our limited classes keep out of them.
	Taken uint64
	// MB are the domains of memory bandwidth by id; empty without bandwidth allocation.
	MB []int
	// MBMin, MBGran and MBFull are the least value, the step and the value that means no limit, in the machine's unit. With
	// MBPercent the unit is percent; else percents are converted by MBTotal, the bandwidth of a domain in that unit (0: not
	// known, then bandwidth is left alone).
	MBMin, MBGran, MBFull uint64
	MBPercent             bool
	MBTotal               uint64
	// OfflineFloor is the least number of ways that classes of offline pods keep, MBFloor the least percent.
	OfflineFloor, MBFloor int
}
