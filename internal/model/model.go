// Package model is a response model of a node: what offline pods get of it under a grant, and what that does to online pods.
//
// It is a model and no measurement. An open-loop replay can show what would have been decided on a recorded snapshot, but not what
// the node would have shown next; the simulator, replay --what-if and tune need an answer to that, and this package is the one place
// that gives it. Its parts:
//
//   - CPU time: max-min fair sharing of the capacity that online pods leave, under nested masks and quotas (Share).
//   - Run-queue wait: a mixture. A dispatch meets an offline task on its CPU with a probability that grows with that pod's share of
//     the node's CPU time (Poisson arrivals see time averages), and then waits for an exponential time whose mean depends on
//     how the scheduler ranks the two (Mixture); its own queue follows Sakasegawa's approximation of M/M/c (OwnQueue).
//   - Bandwidth: latency grows with utilisation as in a saturating queue (Stretch).
//   - Cache: misses follow a power law of the ways (Hartstein et al., On the nature of cache miss behavior, JILP 2008: the square
//     root rule) (Misses, CPI).
//
// Fit finds the parameters of pairs of pods in a recording, from priors that are stated in it.
//
// Everything is a pure function of its arguments, without clock or global state.
package model

import (
	"math"
	"slices"
)

// Standing is how the scheduler ranks an offline pod against online ones.
type Standing uint8

const (
	Equal  Standing = iota // weight as requested
	Weight                 // least weight
	Idle                   // SCHED_IDLE
	// Standings is how many there are.
	Standings
)

var standingNames = [Standings]string{"equal", "weight", "idle"}

func (s Standing) String() string { return standingNames[s] }

// Claim is what a pod would like to use of the CPUs.
type Claim struct {
	Demand float64 // CPUs that it would use if nothing held it back
	CPUs   int     // of how many CPUs it may use any; masks of all claims are nested
	Limit  float64 // most CPU time, in CPUs; 0: no limit
}

// want is the demand under mask and limit.
func (c Claim) want() float64 {
	w := min(c.Demand, float64(c.CPUs))
	if c.Limit > 0 {
		w = min(w, c.Limit)
	}
	return max(w, 0)
}

// Share divides the CPU time that is left per CPU (0 to 1) among the claims, max-min fair: all get the same until they have what
// they want, or until their mask is full. What each gets is appended to dst[:0].
//
// What matters of a mask is how much is used by all claims that fit into it, so that is worked out once for each mask: there are a hundred
// claims on a busy node, but few masks.
func Share(dst []float64, free float64, claims []Claim) []float64 {
	dst = dst[:0]
	var masks []int // the sizes that there are
	for _, c := range claims {
		dst = append(dst, 0)
		if !slices.Contains(masks, c.CPUs) {
			masks = append(masks, c.CPUs)
		}
	}
	const most = 1e-9
	fixed := make([]bool, len(claims))
	for {
		// The most by which all open claims can still grow together.
		step, open := math.Inf(1), 0
		for i, c := range claims {
			if !fixed[i] {
				open++
				step = min(step, c.want()-dst[i])
			}
		}
		if open == 0 {
			return dst
		}
		// Masks of claims that have what they want bound those inside them as well.
		for _, m := range masks {
			used, sharers := 0.0, 0
			for j, o := range claims { // all that fit into this mask
				if o.CPUs <= m {
					used += dst[j]
					if !fixed[j] {
						sharers++
					}
				}
			}
			if sharers > 0 {
				step = min(step, max(0, free*float64(m)-used)/float64(sharers))
			}
		}
		for i := range claims {
			if !fixed[i] {
				dst[i] += step
			}
		}
		full := 0 // the largest mask that is full, which none inside it can outgrow
		for _, m := range masks {
			used := 0.0
			for j, o := range claims {
				if o.CPUs <= m {
					used += dst[j]
				}
			}
			if used >= free*float64(m)-most {
				full = max(full, m)
			}
		}
		for i, c := range claims {
			fixed[i] = fixed[i] || c.CPUs <= full || dst[i] >= c.want()-most
		}
	}
}

// OwnQueue is the mean wait of an online pod's tasks for each other, in units of their mean service time, at utilisation rho
// (0 to below 1) of cpus CPUs: Sakasegawa's approximation of M/M/c. It is bounded, as every recording and every queue is.
func OwnQueue(cpus int, rho float64) float64 {
	const longest = 1000
	c := float64(max(cpus, 1))
	switch {
	case rho <= 0:
		return 0
	case rho >= 1:
		return longest
	}
	return min(math.Pow(rho, math.Sqrt(2*(c+1))-1)/(c*(1-rho)), longest)
}

// Stretch is the factor by which memory takes longer when util (0 to 1) of the bandwidth is used. Below the knee it is
// flat; above, it grows as a queue does, and ends at ten: a memory controller pushes back rather than queue for ever.
func Stretch(util float64) float64 {
	const knee, worst = 0.5, 10
	if util <= knee {
		return 1
	}
	over := min((util-knee)/(1-knee), 1)
	if over == 1 {
		return worst
	}
	return min(1+over*over/(1-over), worst)
}

// Misses is misses per thousand instructions with ways of the cache, of a pod that has mpki with all of them. exponent is 0.5 for
// the square root rule, 0 for streaming work that never hits anyway.
func Misses(mpki, ways, all, exponent float64) float64 {
	if ways <= 0 || all <= 0 {
		return mpki
	}
	return mpki * math.Pow(all/ways, exponent)
}

// CPI is cycles per instruction: what the core needs by itself and what it waits for memory, of which one miss costs miss cycles when
// nobody else uses the bus.
func CPI(core, mpki, miss, stretch float64) float64 { return core + mpki/1000*miss*stretch }
