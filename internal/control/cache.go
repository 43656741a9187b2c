package control

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
)

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
	domains := in.Node.RDT.Domains
	if victim.OccupancyBaseline == 0 || len(domains) == 0 || domains[0].WayBytes == 0 {
		return 0
	}
	way := domains[0].WayBytes
	return int((victim.OccupancyBaseline + way - 1) / way)
}

const (
	// ownFor is how long an online pod keeps ways of its own without need, for a start. It doubles each time that this turns out to
	// be premature, up to pauseMax.
	ownFor = time.Minute
)

// owner is an online pod that has, or had, ways of its own.
type owner struct {
	pod  int
	key  string
	n    int // ways; 0: none
	cpi  uint64
	at   time.Duration // when it got them
	need time.Duration // when it was last in want of cache
	keep time.Duration // how long it keeps them without need
	rest time.Duration // not again before
	seen bool          // the effect was looked at
}

// deserve gives the victim of a verdict ways of its own, if offline pods have nothing left to give and it is known how many it needs.
func (c *RDT) deserve(in *Input, v *judge.Verdict) {
	o := c.own[v.Pod]
	if o != nil {
		o.need = in.Now
	}
	// Half of the cache at most: others live here too.
	n := min(needWays(in, &v.CPI), in.Node.RDT.Ways/2)
	if !in.Spec.RDT.Cache.OnlineOwn || !ways.able(in) || n < max(1, in.Node.RDT.MinWays) || in.Now-v.Since < in.Spec.RDT.Verify.After.D() {
		return
	}
	if o == nil {
		o = &owner{pod: v.Pod, key: c.names[v.Pod], keep: ownFor, need: in.Now, rest: never}
		c.own[v.Pod], c.owns[in.PodID[v.Pod]] = o, o
	}
	if o.n > 0 || in.Now < o.rest {
		return
	}
	o.n, o.at, o.cpi, o.seen = n, in.Now, v.CPI.CPI, false
	c.settled = false
	c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCache, Rule: RuleOwnWays, Pod: o.key, To: Grant{Ways: n}, CPI: v.CPI.CPI, CPIFence: v.CPI.CPIFence})
}

// protect looks after those who have ways of their own.
func (c *RDT) protect(in *Input) {
	for _, o := range c.own {
		if o == nil || o.n == 0 {
			continue
		}
		age := in.Now - o.at
		hurt := in.Now-o.need < in.Spec.RDT.Cooldown.D()
		switch {
		case !in.Spec.RDT.Cache.OnlineOwn || !ways.able(in):
			c.disown(in, o, RulePolicy, "policy or machine changed")
		case !o.seen && age >= 2*in.Spec.RDT.Verify.After.D():
			o.seen = true
			if hurt {
				o.rest = in.Now + in.Spec.RDT.Verify.BackoffMax.D()
				c.disown(in, o, RuleOwnEnd, "it did not help")
			}
		case in.Now-max(o.need, o.at) >= o.keep:
			o.keep = min(2*o.keep, max(pauseMax, ownFor))
			c.disown(in, o, RuleOwnEnd, "not needed for long")
		}
	}
}

func (c *RDT) disown(in *Input, o *owner, rule, why string) {
	c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCache, Rule: rule, Pod: o.key, From: Grant{Ways: o.n}, Text: why})
	o.n, c.settled = 0, false
}
