package control

import (
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
)

// The cache: ways of the last-level cache that an offline pod may fill. After Heracles (Lo et al., ISCA 2015), which grows the best-effort
// part of the cache while the latency-critical one does not suffer and takes it back at once when it does; here it is the victim's
// own misses that decide, not a model of bandwidth.

// division is how policy and machine divide the ways of a cache.
type division struct {
	all     int    // that pods may fill
	offline int    // of these, offline pods
	alone   int    // of these, no others
	floor   int    // that an offline pod keeps, 1 at least
	misfit  string // why nothing of what the policy says of ways holds on this machine; "": it holds
}

// divide gives nothing to anybody where what the policy says does not fit the machine.
func divide(in *Input) division {
	r, c := &in.Node.RDT, &in.Spec.RDT.Cache
	d := division{all: r.Ways, offline: r.Ways, floor: max(1, c.FloorWays, r.MinWays)}
	if c.Ways|c.OnlineWays|c.OfflineWays == 0 {
		return d
	}
	m := policy.Machine{Ways: policy.FullWays(r.Ways), MinWays: r.MinWays, Sparse: r.SparseMasks, CLOSIDs: r.CLOSIDs}
	if misfit, bad := c.Misfit(&m); bad {
		return division{floor: d.floor, misfit: misfit.Error()}
	}
	all := c.All(m.Ways)
	d.all, d.offline, d.alone = all.Len(), (all &^ c.OnlineWays).Len(), c.OfflineWays.Len()
	d.floor = max(d.floor, d.alone) // fewer would help nobody
	return d
}

// fit is a number of ways inside the floor; all of them is no limit.
func (d *division) fit(n int) int {
	if n = max(n, d.floor); n >= d.offline {
		return 0
	}
	return n
}

// lower is the next step down from now: CutPercent of the ways, or as many as the victim held while it was well, if that is more.
func (d *division) lower(in *Input, now int, victim *judge.CPIEvidence) int {
	if now == 0 {
		now = d.offline
	}
	to := now - max(1, ceil(now*in.Spec.RDT.Cache.CutPercent, 100))
	if need := needWays(in, victim); need > 0 {
		to = min(to, d.all-need)
	}
	return d.fit(to)
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
