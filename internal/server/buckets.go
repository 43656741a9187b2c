package server

import (
	"time"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// bucketExps are the classic buckets of every histogram of ours, as powers of two of a nanosecond: 16 µs to 1.07 s, every
// doubling from 131 µs to 67 ms, where objectives lie, and every fourfold outside. Each is an exact bound of package histogram,
// so counts are moved, never interpolated. A duration of exactly a bound counts in the bucket above it: the kernel side counts
// "less than", Prometheus "less or equal", and on whole nanoseconds that is a difference of one.
var bucketExps = [...]int{14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 30}

// bucketBounds are the upper bounds of the classic buckets in seconds, without +Inf.
func bucketBounds() []float64 {
	out := make([]float64, len(bucketExps))
	for i, e := range bucketExps {
		out[i] = time.Duration(1 << e).Seconds()
	}
	return out
}

// classic turns log-linear counts into the cumulative classic buckets that Prometheus wants; all of them are always present.
func classic(c *histogram.Counts) (buckets map[float64]uint64, count uint64) {
	buckets = make(map[float64]uint64, len(bucketExps))
	next := 0
	for _, e := range bucketExps {
		for bound := histogram.Index(1 << e); next < bound; next++ {
			count += c[next]
		}
		buckets[time.Duration(1<<e).Seconds()] = count
	}
	for ; next < histogram.Buckets; next++ {
		count += c[next]
	}
	return buckets, count
}
