package model

import (
	"math"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Mixture is the distribution of an online pod's run-queue waits, in µs: log-normal by itself, and with small probabilities an
// exponential on top of its median for each neighbour that it meets.
type Mixture struct {
	Median float64 // µs, of the waits that meet nobody
	Sigma  float64 // of their logarithm
	Hits   []Hit
}

// Hit is one neighbour.
type Hit struct {
	P    float64 // probability that a dispatch meets it
	Mean float64 // µs, of the wait that this makes
}

// Above is the part of all waits that are longer than us µs.
func (m *Mixture) Above(us float64) float64 {
	calm, p := 1.0, 0.0
	for _, h := range m.Hits {
		calm -= h.P
		p += h.P * math.Exp(-max(0, us-m.Median)/max(h.Mean, 1e-6))
	}
	return p + max(0, calm)*m.calmAbove(us)
}

func (m *Mixture) calmAbove(us float64) float64 {
	if us <= 0 {
		return 1
	}
	if m.Sigma <= 0 {
		if us < m.Median {
			return 1
		}
		return 0
	}
	return math.Erfc(math.Log(us/m.Median)/(m.Sigma*math.Sqrt2)) / 2
}

// Quantile is the wait, in µs, that the part q of all waits stays below.
func (m *Mixture) Quantile(q float64) float64 {
	low, high := 0.0, 2e7
	for range 60 {
		mid := (low + high) / 2
		if m.Above(mid) > 1-q {
			low = mid
		} else {
			high = mid
		}
	}
	return (low + high) / 2
}

// Tally adds n waits of the mixture to bins, in parts: bins hold fractions of waits that Whole turns into whole ones later.
func (m *Mixture) Tally(bins *[histogram.Buckets]float64, n float64) {
	above := 1.0
	for i := range histogram.Buckets {
		next := 0.0
		if i < histogram.Overflow {
			next = m.Above(float64(histogram.Upper(i)) / 1e3)
		}
		bins[i] += n * (above - next)
		if above = next; above < 1e-12 {
			return
		}
	}
}

// Whole takes the whole waits out of a bin and leaves the rest for the next time, so that no wait is lost or invented in the long run.
func Whole(bin *float64) uint32 {
	n := math.Floor(*bin + 1e-9)
	*bin = max(0, *bin-n)
	return uint32(n)
}
