package model

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Pair is how one offline pod makes one online pod wait: the wait, in µs a dispatch, is
//
//	exp(level) * share^knee * exp(rank of its standing)
//
// where share is the part of the node's CPU time that the offline pod uses. Windows of a recording in which actions varied tell
// level, knee and rank apart; where they did not, the priors below decide.
//
// It is a quasi-Poisson regression with a log link and a normal prior (maximum a posteriori by iteratively reweighted least squares;
// McCullagh and Nelder, Generalized Linear Models, 2nd ed., sections 2.5 and 6.2), since waits are never negative, often zero, and
// noisier the larger they are. The zero value has seen nothing.
type Pair struct {
	cells map[cell]*sum
	fit   Estimate
	fresh bool
}

// cell is a class of windows that the regression cannot tell apart.
type cell struct {
	standing Standing
	octave   int8 // of the share, in quarters
}

type sum struct {
	n          int
	dispatches float64
	wait       float64 // µs
	logShare   float64 // weighted by dispatches
	square     float64 // of the wait a dispatch, weighted by dispatches
}

// terms are level, knee, and what equal or least weight adds to SCHED_IDLE.
const terms = 4

// Prior is what is believed before anything was seen: means and standard deviations of the terms. The level is that of a pod that makes a
// dispatch wait 100 µs on average when it has all of the node as SCHED_IDLE, within a factor of 20 or so; the knee that of tasks which wake
// anywhere; the ranks come from one node (field readings of nginx beside stress-ng, kernel 6.18: equal weight hurts between one and a
// hundred times as much as SCHED_IDLE, depending on what the offline pod does), so they are wide.
var Prior = struct{ Mean, Deviation [terms]float64 }{
	Mean:      [terms]float64{math.Log(100), 1, 2, 0.5},
	Deviation: [terms]float64{3, 0.5, 1.5, 1},
}

// minShare is the share below which a pod is taken to be still.
const minShare = 1e-4

// Observe adds a window: the online pod was dispatched so often, and waited so many µs in all behind the offline pod.
func (p *Pair) Observe(dispatches, waitUS, share float64, st Standing) {
	if dispatches <= 0 || share < minShare {
		return
	}
	if p.cells == nil {
		p.cells = make(map[cell]*sum)
	}
	p.fresh = false
	k := cell{st, int8(math.Round(math.Log2(share) * 4))}
	s := p.cells[k]
	if s == nil {
		s = &sum{}
		p.cells[k] = s
	}
	y := waitUS / dispatches
	s.n++
	s.dispatches += dispatches
	s.wait += waitUS
	s.logShare += math.Log(min(share, 1)) * dispatches
	s.square += y * y * dispatches
}

// Merge adds what o has seen.
func (p *Pair) Merge(o *Pair) {
	if p.cells == nil {
		p.cells = make(map[cell]*sum)
	}
	p.fresh = false
	for k, c := range o.cells {
		s := p.cells[k]
		if s == nil {
			s = &sum{}
			p.cells[k] = s
		}
		s.n += c.n
		s.dispatches += c.dispatches
		s.wait += c.wait
		s.logShare += c.logShare
		s.square += c.square
	}
}

// Windows is how many were seen.
func (p *Pair) Windows() int {
	n := 0
	for _, s := range p.cells {
		n += s.n
	}
	return n
}

// Varied reports whether the pod's share or standing varied enough (by a factor of two, or between standings) for its effect to be
// seen rather than assumed.
func (p *Pair) Varied() bool {
	low, high := math.Inf(1), math.Inf(-1)
	standings := 0
	for k, s := range p.cells {
		if s.n < 3 {
			continue
		}
		low, high = min(low, float64(k.octave)), max(high, float64(k.octave))
		standings |= 1 << k.standing
	}
	return high-low >= 4 || standings&(standings-1) != 0
}

// Estimate is a fitted pair: the terms, and a square root of their covariance for draws.
type Estimate struct {
	Terms [terms]float64
	root  [terms][terms]float64
}

// Fit gives the estimate. It is cheap to ask again while nothing new is observed.
func (p *Pair) Fit() Estimate {
	if !p.fresh {
		p.fit, p.fresh = p.regress(), true
	}
	return p.fit
}

type row struct {
	x       [terms]float64
	y, w, n float64 // µs a dispatch; dispatches; windows
	square  float64
}

// rows is the cells in a fixed order, so that sums come out the same everywhere.
func (p *Pair) rows() []row {
	keys := make([]cell, 0, len(p.cells))
	for k := range p.cells {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b cell) int {
		if a.standing != b.standing {
			return int(a.standing) - int(b.standing)
		}
		return int(a.octave) - int(b.octave)
	})
	out := make([]row, 0, len(keys))
	for _, k := range keys {
		s := p.cells[k]
		r := row{x: [terms]float64{1, s.logShare / s.dispatches, 0, 0}, y: s.wait / s.dispatches, w: s.dispatches, n: float64(s.n), square: s.square}
		switch k.standing {
		case Equal:
			r.x[2] = 1
		case Weight:
			r.x[3] = 1
		}
		out = append(out, r)
	}
	return out
}

func (p *Pair) regress() Estimate {
	e := Estimate{Terms: Prior.Mean}
	rows := p.rows()
	// Begin at the level that explains the sum.
	seen, expected := 0.0, 0.0
	for _, r := range rows {
		seen += r.y * r.w
		expected += r.w * math.Exp(dot(e.Terms, r.x))
	}
	if seen > 0 {
		e.Terms[0] += math.Log(seen / expected)
	}
	dispersion := 1.0
	var precision [terms][terms]float64
	for range 50 {
		// How much noisier windows are than counts of the same mean; weights of cells follow from it.
		num, den := 0.0, 0.0
		for _, r := range rows {
			mu := max(math.Exp(dot(e.Terms, r.x)), 1e-9)
			num += (r.square/r.w - 2*mu*r.y + mu*mu) * r.n / mu
			den += r.n
		}
		if den > 0 {
			dispersion = max(num/den, 1e-6)
		}
		precision = [terms][terms]float64{}
		var right [terms]float64
		for i := range terms {
			w := 1 / (Prior.Deviation[i] * Prior.Deviation[i])
			precision[i][i] = w
			right[i] = w * Prior.Mean[i]
		}
		for _, r := range rows {
			eta := dot(e.Terms, r.x)
			mu := max(math.Exp(eta), 1e-9)
			w := r.n * mu / dispersion
			z := eta + max(-3, min(3, (r.y-mu)/mu)) // a step of a few e-folds at most
			for i := range terms {
				right[i] += w * r.x[i] * z
				for j := range terms {
					precision[i][j] += w * r.x[i] * r.x[j]
				}
			}
		}
		next := solve(precision, right)
		moved := 0.0
		for i := range terms {
			moved = max(moved, math.Abs(next[i]-e.Terms[i]))
		}
		e.Terms = next
		if moved < 1e-6 {
			break
		}
	}
	e.root = inverseRoot(precision)
	return e
}

// Draw is the estimate with terms as they might as well be.
func (e Estimate) Draw(random *rand.Rand) Estimate {
	var z [terms]float64
	for i := range z {
		z[i] = random.NormFloat64()
	}
	for i := range terms {
		for j := range terms {
			e.Terms[i] += e.root[i][j] * z[j]
		}
	}
	return e
}

// knee is never negative: more offline work does not hurt less.
func (e *Estimate) knee() float64 { return max(0, e.Terms[1]) }

func (e *Estimate) rank(st Standing) float64 {
	switch st {
	case Equal:
		return e.Terms[2]
	case Weight:
		return e.Terms[3]
	}
	return 0
}

// Wait is the wait, in µs a dispatch, behind the offline pod.
func (e *Estimate) Wait(share float64, st Standing) float64 {
	if share < minShare {
		return 0
	}
	return math.Exp(e.Terms[0] + e.knee()*math.Log(min(share, 1)) + e.rank(st))
}

// Change is what a changed share and standing do: how many times as often the online pod meets the offline one, and how many times as
// long it waits then. Fewer CPUs and less time make meetings rarer; rank makes them shorter.
func (e *Estimate) Change(share float64, st Standing, toShare float64, toSt Standing) (often, long float64) {
	long = math.Exp(e.rank(toSt) - e.rank(st))
	switch {
	case toShare < minShare:
		return 0, long
	case share < minShare:
		return 1, long
	}
	return math.Pow(toShare/share, e.knee()), long
}

func dot(a, b [terms]float64) float64 {
	s := 0.0
	for i := range terms {
		s += a[i] * b[i]
	}
	return s
}

// cholesky is the lower triangle L with L Lᵀ = a, for a symmetric and positive definite.
func cholesky(a [terms][terms]float64) (l [terms][terms]float64) {
	for i := range terms {
		for j := range i + 1 {
			s := a[i][j]
			for k := range j {
				s -= l[i][k] * l[j][k]
			}
			if i == j {
				l[i][i] = math.Sqrt(max(s, 1e-12))
			} else {
				l[i][j] = s / l[j][j]
			}
		}
	}
	return l
}

func solve(a [terms][terms]float64, b [terms]float64) (x [terms]float64) {
	l := cholesky(a)
	var y [terms]float64
	for i := range terms {
		s := b[i]
		for k := range i {
			s -= l[i][k] * y[k]
		}
		y[i] = s / l[i][i]
	}
	for i := terms - 1; i >= 0; i-- {
		s := y[i]
		for k := i + 1; k < terms; k++ {
			s -= l[k][i] * x[k]
		}
		x[i] = s / l[i][i]
	}
	return x
}

// inverseRoot is R with R Rᵀ = the inverse of a.
func inverseRoot(a [terms][terms]float64) (r [terms][terms]float64) {
	l := cholesky(a)
	for c := range terms { // column c solves Lᵀ x = e_c
		for i := terms - 1; i >= 0; i-- {
			s := 0.0
			if i == c {
				s = 1
			}
			for k := i + 1; k < terms; k++ {
				s -= l[k][i] * r[k][c]
			}
			r[i][c] = s / l[i][i]
		}
	}
	return r
}

// Line is the least squares line y = base + slope x through points; slope is 0 if x does not vary.
func Line(x, y []float64) (base, slope float64) {
	n, sx, sy := float64(len(x)), 0.0, 0.0
	for i := range x {
		sx, sy = sx+x[i], sy+y[i]
	}
	sxx, sxy := 0.0, 0.0
	for i := range x {
		d := x[i] - sx/n
		sxx += d * d
		sxy += d * (y[i] - sy/n)
	}
	if sxx > 0 {
		slope = sxy / sxx
	}
	return sy/n - slope*sx/n, slope
}
