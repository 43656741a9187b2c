package model

import (
	"math"
	"math/rand/v2"
	"testing"
)

// observe draws windows of a pair whose terms are known.
func observe(p *Pair, random *rand.Rand, terms [terms]float64, shares []float64, standings []Standing, n int) {
	truth := Estimate{Terms: terms}
	for range n {
		share, st := shares[random.IntN(len(shares))], standings[random.IntN(len(standings))]
		mean := truth.Wait(share, st) * 200
		p.Observe(200, mean*random.ExpFloat64(), share, st) // as noisy as waits are
	}
}

func TestFitFindsWhatVaried(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var p Pair
	truth := [terms]float64{math.Log(300), 1.6, 3, 0}
	observe(&p, random, truth, []float64{0.1, 0.25, 0.5, 0.9}, []Standing{Equal, Idle}, 1000)
	if !p.Varied() || p.Windows() != 1000 {
		t.Errorf("varied %v, %d windows", p.Varied(), p.Windows())
	}
	e := p.Fit()
	for i, slack := range []float64{0.2, 0.2, 0.2} {
		if math.Abs(e.Terms[i]-truth[i]) > slack {
			t.Errorf("term %d is %.3f, want %.3f", i, e.Terms[i], truth[i])
		}
	}
	if math.Abs(e.Terms[3]-Prior.Mean[3]) > 1e-6 {
		t.Errorf("the term that nothing was seen of moved to %v", e.Terms[3])
	}
}

func TestFitKeepsToPriorsWhereNothingVaried(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var p Pair
	observe(&p, random, [terms]float64{math.Log(300), 2, 0, 0}, []float64{0.5}, []Standing{Idle}, 500)
	e := p.Fit()
	if p.Varied() {
		t.Error("varied")
	}
	// The level at that share is known, how it would change with the share is not.
	if got, want := e.Wait(0.5, Idle), 300*0.25; math.Abs(got-want) > want*0.2 {
		t.Errorf("waits %v at what was seen, want %v", got, want)
	}
	if math.Abs(e.Terms[1]-1) > 0.1 {
		t.Errorf("knee %v, want the prior's 1", e.Terms[1])
	}
	spread := 0.0
	for range 200 {
		d := e.Draw(random)
		spread += (d.Terms[2] - e.Terms[2]) * (d.Terms[2] - e.Terms[2])
	}
	if sd := math.Sqrt(spread / 200); sd < 1 || sd > 2 {
		t.Errorf("draws of an unseen rank spread by %v, want the prior's 1.5", sd)
	}
}

func TestFitOfNothingAndOfSilence(t *testing.T) {
	var p Pair
	if e := p.Fit(); e.Terms != Prior.Mean {
		t.Errorf("nothing seen: %v", e.Terms)
	}
	for range 100 {
		p.Observe(100, 0, 0.5, Idle)
	}
	e := p.Fit()
	if w := e.Wait(0.5, Idle); w > 1 || math.IsNaN(w) {
		t.Errorf("a pod that never hurt is expected to make %v µs", w)
	}
	p.Observe(0, 5, 0.5, Idle)
	p.Observe(5, 5, 0, Idle)
	if p.Windows() != 100 {
		t.Error("windows without dispatches or use count")
	}
}

func TestChange(t *testing.T) {
	e := Estimate{Terms: [terms]float64{5, 1, math.Log(10), 0}}
	if often, long := e.Change(0.5, Equal, 0.25, Idle); math.Abs(often-0.5) > 1e-9 || math.Abs(long-0.1) > 1e-9 {
		t.Errorf("%v %v", often, long)
	}
	if often, _ := e.Change(0.5, Idle, 0, Idle); often != 0 {
		t.Errorf("a pod that does not run is met %v times as often", often)
	}
	if often, long := e.Change(0.3, Idle, 0.3, Idle); often != 1 || long != 1 {
		t.Error("no change changes something")
	}
	e.Terms[1] = -2
	if often, _ := e.Change(0.5, Idle, 0.9, Idle); often != 1 {
		t.Error("more work hurts less")
	}
}

func TestMergeIsTheSameAsSeeingAll(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 3))
	var a, b, all Pair
	for i := range 200 {
		share, wait := 0.1+random.Float64()/2, random.ExpFloat64()*1e4
		all.Observe(100, wait, share, Idle)
		if i%2 == 0 {
			a.Observe(100, wait, share, Idle)
		} else {
			b.Observe(100, wait, share, Idle)
		}
	}
	a.Merge(&b)
	for i, x := range a.Fit().Terms {
		if math.Abs(x-all.Fit().Terms[i]) > 1e-6 {
			t.Errorf("term %d: %v, want %v", i, x, all.Fit().Terms[i])
		}
	}
}
