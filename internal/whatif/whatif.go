// Package whatif asks what a recording would have been like under another policy.
//
// An exact replay (package replay) can only show what would have been decided on what was recorded. But a changed action changes what
// comes next, so what-if closes the loop: the policy's decisions act on a response model (package model) that was fitted from
// recordings, and the model changes the recorded snapshots accordingly before the next step sees them. As long as a policy does what
// was done in the recording, it sees the recording itself, untouched: the model only speaks about differences.
//
// Everything that it gives is an estimate and has an interval: parameters are drawn from their posterior, and blocks of
// time are resampled (Künsch's block bootstrap, Annals of Statistics 17, 1989). The intervals do not contain what the model cannot
// express; hold-out validation (Validate) shows how far off it is altogether.
package whatif

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Step is one step of a recording. It is valid until the next one.
type Step struct {
	Snapshot *signal.Snapshot
	Policy   *policy.Compiled // nil: none was in force
	Plan     []knob.Want      // what it came to
	Notes    []control.Note
}

// Recording is steps in the order of time. Steps may be called any number of times, each from the beginning.
type Recording interface {
	Name() string
	Steps(func(*Step) error) error
}

// Options of Run. The zero value is good.
type Options struct {
	Draws     int              // of the model's parameters, for intervals; 0: 8, negative: none
	Resamples int              // of blocks of time; 0: 200
	Seed      uint64           //
	Objective *policy.Compiled // whose objectives count; nil: those in force in the recording
}

// Block is the time over which scores are kept apart, to be resampled.
const Block = 10 * time.Second

// Interval is an estimate and the range in which it lies nine times in ten.
type Interval struct {
	Point float64 `json:"point"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Figures is what is said of a policy on a recording.
type Figures struct {
	Violation Interval `json:"violationPercent"` // part of the online time beyond the objective
	Work      Interval `json:"offlineCPUs"`      // work that offline pods got done, CPUs
	Churn     Interval `json:"changesPerHour"`   // knobs turned
	False     Interval `json:"falseCutsPerHour"` // cuts of pods without a part in the victim's wait
	Missed    Interval `json:"missedPercent"`    // part of the online time beyond the objective with nobody held for it
}

// Outcome is a policy and what the model says of it.
type Outcome struct {
	Policy string `json:"policy"`
	// Figures of the policy, and of how it differs from what was recorded, pair by pair of blocks.
	Figures
	Difference Figures       `json:"difference"`
	Blocks     []score.Score `json:"-"` // of the point estimate
	// Diverged is the part of the time in which its plan was not the recorded one: so much of the result rests on the model.
	Diverged float64 `json:"divergedPercent"`
}

// Result is what a run says.
type Result struct {
	Recorded Outcome   `json:"recorded"` // what was measured: no model in it
	Policies []Outcome `json:"policies"`
	// Assumed are offline pods that were never seen without a limit for long enough: where they use up what they have they are taken to
	// want all of the node, so that the work of a looser policy is an upper bound.
	Assumed []string `json:"assumedDemand,omitempty"`
}

// Run lets the policies act on a recording as the model says.
func Run(rec Recording, m *Model, pols []*policy.Compiled, o Options) (*Result, error) {
	return RunAll([]Recording{rec}, m, pols, o)
}

// RunAll is Run on several recordings, of which the figures are those of all their time together. Each begins with a policy that
// remembers nothing.
func RunAll(recs []Recording, m *Model, pols []*policy.Compiled, o Options) (*Result, error) {
	if o.Draws == 0 {
		o.Draws = 8
	}
	if o.Resamples == 0 {
		o.Resamples = 200
	}
	draws := max(0, o.Draws) + 1 // the first is the point estimate
	var base []score.Score
	var assumed []string
	blocks := make([][][]score.Score, len(pols)) // by policy, draw
	ticks, diverged := make([]int, len(pols)), make([]int, len(pols))
	for i := range pols {
		blocks[i] = make([][]score.Score, draws)
	}
	for _, rec := range recs {
		w := newWorld(m)
		follow := newEngine(m, nil)
		all := []*engine{follow}
		for _, pol := range pols {
			for d := range draws {
				e := newEngine(m, pol)
				if d > 0 { // the same draws for each policy, so that differences are of policies
					e.random = rand.New(rand.NewPCG(o.Seed, uint64(d)))
				}
				all = append(all, e)
			}
		}
		err := rec.Steps(func(s *Step) error {
			w.observe(s, o.Objective)
			for _, e := range all {
				e.step(w)
			}
			w.after(s)
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, a := range w.known {
			if a.guess && !slices.Contains(assumed, a.key) {
				assumed = append(assumed, a.key)
			}
		}
		for _, e := range all {
			e.meter.close()
		}
		base = append(base, follow.meter.blocks...)
		for i := range pols {
			of := all[1+i*draws:]
			for d := range draws {
				blocks[i][d] = append(blocks[i][d], of[d].meter.blocks...)
			}
			ticks[i] += of[0].ticks
			diverged[i] += of[0].divergedTicks
		}
	}
	slices.Sort(assumed)
	res := &Result{Recorded: outcome("recorded", [][]score.Score{base}, base, o), Assumed: assumed}
	for i, pol := range pols {
		out := outcome(pol.Name(), blocks[i], base, o)
		if ticks[i] > 0 {
			out.Diverged = 100 * float64(diverged[i]) / float64(ticks[i])
		}
		res.Policies = append(res.Policies, out)
	}
	return res, nil
}

// outcome makes figures of the blocks of the point estimate and of the draws.
func outcome(name string, draws [][]score.Score, base []score.Score, o Options) Outcome {
	out := Outcome{Policy: name, Blocks: draws[0]}
	point, was := total(draws[0]), total(base)
	values, differences := make([][]float64, len(measures)), make([][]float64, len(measures))
	random := rand.New(rand.NewPCG(o.Seed, 0xb007))
	for range max(0, o.Resamples) {
		d := draws[0]
		if len(draws) > 1 {
			d = draws[1+random.IntN(len(draws)-1)]
		}
		var s, b score.Score
		for range d {
			k := random.IntN(len(d))
			s.Add(d[k])
			if k < len(base) {
				b.Add(base[k])
			}
		}
		for i, measure := range measures {
			values[i] = append(values[i], measure(s))
			differences[i] = append(differences[i], measure(s)-measure(b))
		}
	}
	for i, measure := range measures {
		*out.Figures.at(i) = interval(measure(point), values[i])
		*out.Difference.at(i) = interval(measure(point)-measure(was), differences[i])
	}
	return out
}

var measures = [...]func(score.Score) float64{
	score.Score.Violation, score.Score.Work, score.Score.Churn, score.Score.FalseCutsPerHour, score.Score.Missed,
}

func (f *Figures) at(i int) *Interval {
	return [...]*Interval{&f.Violation, &f.Work, &f.Churn, &f.False, &f.Missed}[i]
}

func total(blocks []score.Score) (s score.Score) {
	for _, b := range blocks {
		s.Add(b)
	}
	return s
}

// interval is the middle nine tenths of the values; the point lies in it by definition.
func interval(point float64, values []float64) Interval {
	if len(values) == 0 {
		return Interval{point, point, point}
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(math.Round(q*float64(len(values)-1)))] }
	return Interval{point, min(point, at(0.05)), max(point, at(0.95))}
}
