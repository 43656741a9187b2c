package control

import "github.com/qos-agent/qos-agent/internal/judge"

// The cache: ways of the last-level cache that an offline pod may fill. After Heracles (Lo et al., ISCA 2015), which grows the best-effort
// part of the cache while the latency-critical one does not suffer and takes it back at once when it does; here it is the victim's
// own misses that decide, not a model of bandwidth.

// floorWays is the least number of ways that a pod keeps.
func floorWays(in *Input) int { return max(1, in.Spec.RDT.Cache.FloorWays, in.Node.RDT.MinWays) }

// fitWays is a number of ways inside the floor; all of them is no limit.
func fitWays(in *Input, n int) int {
	if n = max(n, floorWays(in)); n >= in.Node.RDT.Ways {
		return 0
	}
	return n
}

// lowerWays is the next step down from now: CutPercent of the ways, or as many as the victim held while it was well, if that is more.
func lowerWays(in *Input, now int, victim *judge.CPIEvidence) int {
	all := in.Node.RDT.Ways
	if now == 0 {
		now = all
	}
	to := now - max(1, ceil(now*in.Spec.RDT.Cache.CutPercent, 100))
	if need := needWays(in, victim); need > 0 {
		to = min(to, all-need)
	}
	return fitWays(in, to)
}

// needWays is how many ways hold what the victim's pod held while it was well; 0: not known.
func needWays(in *Input, victim *judge.CPIEvidence) int {
	return ceilWays(in, victim.OccupancyBaseline)
}

// ceilWays is how many ways hold so many bytes; 0: not known.
func ceilWays(in *Input, bytes uint64) int {
	domains := in.Node.RDT.Domains
	if bytes == 0 || len(domains) == 0 || domains[0].WayBytes == 0 {
		return 0
	}
	way := domains[0].WayBytes
	return int((bytes + way - 1) / way)
}
