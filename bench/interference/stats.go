package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// interval is an estimate with the bounds between which 95 % of its resamplings lie (percentile bootstrap).
type interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// resamplings of a bootstrap.
const resamplings = 1000

// bootstrap computes what compute makes of all values, and of as many draws from them.
func bootstrap(rng *rand.Rand, compute func(draw func([]float64) []float64) float64) interval {
	value := compute(func(v []float64) []float64 { return v })
	if math.IsNaN(value) {
		return interval{}
	}
	all := make([]float64, 0, resamplings)
	var buf []float64
	for range resamplings {
		x := compute(func(v []float64) []float64 {
			buf = buf[:0]
			for range v {
				buf = append(buf, v[rng.IntN(len(v))])
			}
			return buf
		})
		if !math.IsNaN(x) {
			all = append(all, x)
		}
	}
	slices.Sort(all)
	return interval{Value: value, Low: all[len(all)*25/1000], High: all[min(len(all)-1, len(all)*975/1000)]}
}

// median of values; NaN for none. Those given are left as they are.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	switch n := len(s); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

// geomean of positive values; NaN for none.
func geomean(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sum := 0.0
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}
