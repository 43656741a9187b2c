// Package histogram is the log-linear latency histogram that the BPF programs and Go share.
//
// Bucket 0 holds everything below 1.024 µs (2^10 ns). From there every power of two is cut into eight equal parts up to
// 2^34 ns (17.2 s), so a bucket is at most 12.5 % as wide as its lower bound and a quantile read at a bucket's middle is at
// most 6 % off. The last bucket is the overflow: it has no upper bound and is never folded into a finite one.
// The scheme is that of HdrHistogram (Gil Tene) with three significant bits; bpf/histogram.bpf.h is its twin in C.
package histogram

import (
	"math"
	"math/bits"
	"time"
)

const (
	// SubBits is the number of bits that cut a power of two into equal parts.
	SubBits = 3
	// MinExp and MaxExp bound the log-linear range: [2^MinExp, 2^MaxExp) nanoseconds.
	MinExp = 10
	MaxExp = 34
	// Buckets counts all buckets, the one below the range and the overflow included.
	Buckets = 1 + (MaxExp-MinExp)<<SubBits + 1
	// Overflow is the index of the bucket without an upper bound.
	Overflow = Buckets - 1
)

// Index gives the bucket of a duration in nanoseconds.
func Index(ns uint64) int {
	if ns < 1<<MinExp {
		return 0
	}
	e := bits.Len64(ns) - 1
	if e >= MaxExp {
		return Overflow
	}
	sub := int(ns>>(e-SubBits)) & (1<<SubBits - 1)
	return 1 + (e-MinExp)<<SubBits + sub
}

// Lower gives the smallest duration in nanoseconds that bucket i holds; i is below Buckets.
func Lower(i int) uint64 { return lowers[max(i, 0)] }

var lowers = func() (l [Buckets]uint64) {
	for i := 1; i < Buckets; i++ {
		e, sub := MinExp+(i-1)>>SubBits, uint64(i-1)&(1<<SubBits-1)
		l[i] = 1<<e + sub<<(e-SubBits)
	}
	return l
}()

// Upper gives the bound in nanoseconds below which all of bucket i lies; math.MaxUint64 for the overflow.
func Upper(i int) uint64 {
	if i >= Overflow {
		return math.MaxUint64
	}
	return Lower(i + 1)
}

// Counts is a full histogram.
type Counts [Buckets]uint64

// Total is the number of values in the histogram.
func (c *Counts) Total() uint64 {
	var n uint64
	for _, v := range c {
		n += v
	}
	return n
}

// Quantile gives the q-quantile (0 < q <= 1), interpolated inside its bucket. ok is false for an empty histogram.
// A quantile that falls into the overflow is reported as the overflow's lower bound, which is then a lower bound too.
func (c *Counts) Quantile(q float64) (d time.Duration, ok bool) {
	total := c.Total()
	if total == 0 {
		return 0, false
	}
	rank := q * float64(total)
	var below uint64
	for i, n := range c {
		if n == 0 {
			continue
		}
		if float64(below+n) >= rank {
			if i == Overflow {
				return time.Duration(Lower(i)), true
			}
			frac := (rank - float64(below)) / float64(n)
			lo, hi := float64(Lower(i)), float64(Upper(i))
			return time.Duration(lo + frac*(hi-lo)), true
		}
		below += n
	}
	return time.Duration(Lower(Overflow)), true
}
