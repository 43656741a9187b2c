package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBoundsMeet(t *testing.T) {
	for i := range Buckets {
		lo, hi := Lower(i), Upper(i)
		if Index(lo) != i || Index(hi-1) != i {
			t.Fatalf("bucket %d = [%d, %d) but Index gives %d and %d", i, lo, hi, Index(lo), Index(hi-1))
		}
		if i > 0 && i < Overflow && float64(hi-lo) > float64(lo)/(1<<SubBits) {
			t.Fatalf("bucket %d = [%d, %d) is wider than an eighth of its lower bound", i, lo, hi)
		}
	}
	if Index(math.MaxUint64) != Overflow {
		t.Fatal("the largest value is not in the overflow")
	}
}

func TestQuantileWithinSixPercent(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		var c Counts
		vals := make([]float64, 5000)
		for i := range vals {
			vals[i] = math.Exp(rng.NormFloat64()*1.5+float64(round%8)) * 2000
			c[Index(uint64(vals[i]))]++
		}
		slices.Sort(vals)
		for _, q := range []float64{0.5, 0.9, 0.99} {
			want := vals[int(math.Ceil(q*float64(len(vals))))-1]
			got, ok := c.Quantile(q)
			if !ok {
				t.Fatal("no quantile of a full histogram")
			}
			if want >= 1<<MinExp && math.Abs(float64(got)-want)/want > 0.13 {
				t.Errorf("round %d q%v = %v, want %v within a bucket", round, q, got, time.Duration(want))
			}
		}
	}
}

func TestQuantileOfNothing(t *testing.T) {
	var c Counts
	if _, ok := c.Quantile(0.99); ok {
		t.Fatal("an empty histogram has no quantile")
	}
	c[Overflow] = 1
	if d, _ := c.Quantile(0.5); d != time.Duration(Lower(Overflow)) {
		t.Fatalf("overflow quantile = %v, want its lower bound", d)
	}
}
