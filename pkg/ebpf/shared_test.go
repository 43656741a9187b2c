package ebpf

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

func TestSlotSumsAddUpAllCopies(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	copies := make([]runqueueQosCounters, 3)
	for i := range copies {
		copies[i].Waits = 1
		for b := range copies[i].Hist {
			copies[i].Hist[b] = rng.Uint32() // some are about to wrap
		}
	}
	var s slotSums
	s.restart(copies)
	var want Wait
	for range 1000 {
		c, b, n := &copies[rng.IntN(len(copies))], rng.IntN(histogram.Buckets), rng.Uint32N(1<<24)
		c.Hist[b] += n
		c.Waits += uint64(n)
		want.Hist[b] += uint64(n)
		want.Count += uint64(n)
		if rng.IntN(5) == 0 {
			s.update(copies)
			if s.total != want {
				t.Fatalf("after %d waits the sums are not those of the copies:\n%v\n%v", want.Count, s.total, want)
			}
		}
	}
}

// BenchmarkSlotSums is a container that has waited since it was read last, by shards.
func BenchmarkSlotSums(b *testing.B) {
	for _, shards := range []int{1, 2, 8} {
		b.Run(fmt.Sprint(shards), func(b *testing.B) {
			copies := make([]runqueueQosCounters, shards)
			var s slotSums
			for i := 0; b.Loop(); i++ {
				copies[i%shards].Waits++
				copies[i%shards].Hist[i%40]++
				s.update(copies)
			}
		})
	}
}
