package model

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

func TestShare(t *testing.T) {
	for name, tt := range map[string]struct {
		free   float64
		claims []Claim
		want   []float64
	}{
		"alone":                {1, []Claim{{Demand: 8, CPUs: 4}}, []float64{4}},
		"wants less":           {1, []Claim{{Demand: 1, CPUs: 4}, {Demand: 9, CPUs: 4}}, []float64{1, 3}},
		"equal":                {0.5, []Claim{{Demand: 9, CPUs: 4}, {Demand: 9, CPUs: 4}}, []float64{1, 1}},
		"limit":                {1, []Claim{{Demand: 9, CPUs: 4, Limit: 0.5}}, []float64{0.5}},
		"packed on one":        {1, []Claim{{Demand: 9, CPUs: 1}, {Demand: 9, CPUs: 1}}, []float64{0.5, 0.5}},
		"one free, one masked": {1, []Claim{{Demand: 9, CPUs: 1}, {Demand: 9, CPUs: 4}}, []float64{1, 3}},
		"nothing":              {1, nil, nil},
	} {
		got := Share(nil, tt.free, tt.claims)
		for i := range tt.want {
			if math.Abs(got[i]-tt.want[i]) > 1e-6 {
				t.Errorf("%s: got %v, want %v", name, got, tt.want)
				break
			}
		}
	}
}

func TestShareIsFeasibleAndTakesNothingFromOthers(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		free := rapid.Float64Range(0, 1).Draw(r, "free")
		var claims []Claim
		for range rapid.IntRange(1, 6).Draw(r, "n") {
			claims = append(claims, Claim{
				Demand: rapid.Float64Range(0, 20).Draw(r, "demand"), CPUs: rapid.IntRange(1, 16).Draw(r, "cpus"),
				Limit: rapid.SampledFrom([]float64{0, 0.5, 3}).Draw(r, "limit"),
			})
		}
		got := Share(nil, free, claims)
		for i, c := range claims {
			if got[i] < 0 || got[i] > c.want()+1e-6 {
				t.Fatalf("%v got %v", claims, got)
			}
			used := 0.0
			for j, o := range claims {
				if o.CPUs <= c.CPUs {
					used += got[j]
				}
			}
			if used > free*float64(c.CPUs)+1e-6 {
				t.Fatalf("%d CPUs, %v free of each, give %v: %v", c.CPUs, free, used, claims)
			}
		}
	})
}

func TestMixture(t *testing.T) {
	calm := Mixture{Median: 60, Sigma: 0.5}
	if q := calm.Quantile(0.5); math.Abs(q-60) > 0.1 {
		t.Errorf("median %v, want 60", q)
	}
	hurt := Mixture{Median: 60, Sigma: 0.5, Hits: []Hit{{P: 0.05, Mean: 5000}}}
	// One in twenty meets it; of these one in five is beyond the 99th percentile of all: 60 + 5000 ln 5.
	if q, want := hurt.Quantile(0.99), 60+5000*math.Log(5); math.Abs(q-want) > 10 {
		t.Errorf("p99 %v, want %v", q, want)
	}
	var bins [histogram.Buckets]float64
	hurt.Tally(&bins, 1000)
	sum := 0.0
	for _, b := range bins {
		sum += b
	}
	if math.Abs(sum-1000) > 1e-6 {
		t.Errorf("%v waits of 1000", sum)
	}
}

func TestWholeLosesNothing(t *testing.T) {
	bin, sum := 0.0, uint32(0)
	for range 1000 {
		bin += 0.3
		sum += Whole(&bin)
	}
	if sum < 299 || sum > 300 {
		t.Errorf("%d of 300", sum)
	}
}

func TestCurvesGrow(t *testing.T) {
	if OwnQueue(8, 0) != 0 || OwnQueue(8, 0.5) >= OwnQueue(8, 0.9) || OwnQueue(1, 0.5) <= OwnQueue(8, 0.5) || OwnQueue(2, 1.5) != OwnQueue(2, 1) {
		t.Error("own queue")
	}
	// M/M/1: rho/(1-rho), which the approximation gives exactly.
	if got := OwnQueue(1, 0.8); math.Abs(got-4) > 1e-9 {
		t.Errorf("M/M/1 at 0.8 waits %v services, want 4", got)
	}
	if Stretch(0.4) != 1 || Stretch(0.8) <= Stretch(0.7) || Stretch(1) != 10 || Stretch(3) != 10 {
		t.Error("stretch")
	}
	if Misses(2, 3, 12, 0.5) != 4 || Misses(2, 3, 12, 0) != 2 || Misses(2, 0, 12, 0.5) != 2 {
		t.Error("misses")
	}
	if CPI(1, 10, 100, 2) != 3 {
		t.Error("CPI")
	}
}

// TestShareIsThatOfAskingEachForEach compares with what looks at every claim for every other, to the last bit.
func TestShareIsThatOfAskingEachForEach(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var claims []Claim
		for range rapid.IntRange(0, 12).Draw(r, "claims") {
			claims = append(claims, Claim{
				Demand: rapid.Float64Range(0, 20).Draw(r, "demand"), CPUs: rapid.IntRange(0, 6).Draw(r, "cpus"), Limit: rapid.SampledFrom([]float64{0, 0.5, 3}).Draw(r, "limit"),
			})
		}
		free := rapid.Float64Range(0, 1).Draw(r, "free")
		want, got := shareOneByOne(nil, free, claims), Share(nil, free, claims)
		if !slices.Equal(want, got) {
			r.Fatalf("%v, want %v", got, want)
		}
	})
}

func shareOneByOne(dst []float64, free float64, claims []Claim) []float64 {
	dst = dst[:0]
	for range claims {
		dst = append(dst, 0)
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
			// Masks of claims that have what they want bound those inside them as well.
			used, sharers := 0.0, 0
			for j, o := range claims { // all that fit into this claim's mask
				if o.CPUs <= c.CPUs {
					used += dst[j]
					if !fixed[j] {
						sharers++
					}
				}
			}
			if sharers > 0 {
				step = min(step, max(0, free*float64(c.CPUs)-used)/float64(sharers))
			}
		}
		if open == 0 {
			return dst
		}
		for i := range claims {
			if !fixed[i] {
				dst[i] += step
			}
		}
		for i, c := range claims {
			if fixed[i] {
				continue
			}
			full := false
			for _, k := range claims { // any mask around it that is full
				if k.CPUs < c.CPUs {
					continue
				}
				used := 0.0
				for j, o := range claims {
					if o.CPUs <= k.CPUs {
						used += dst[j]
					}
				}
				full = full || used >= free*float64(k.CPUs)-most
			}
			fixed[i] = full || dst[i] >= c.want()-most
		}
	}
}
