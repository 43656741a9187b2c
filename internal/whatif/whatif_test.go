package whatif

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/sim"
)

// simulated is a recording of a simulated node, made anew each time that it is read.
type simulated struct {
	sc  *sim.Scenario
	pol *policy.Compiled
}

func (s simulated) Name() string { return s.sc.Name }

func (s simulated) Steps(give func(*Step) error) error {
	var failed error
	_, err := sim.Watch(s.sc, s.pol, func(snap *signal.Snapshot, d *decide.Decision) {
		if failed == nil {
			failed = give(&Step{Snapshot: snap, Policy: s.pol, Plan: d.Plan, Notes: d.Notes})
		}
	})
	if err != nil {
		return err
	}
	return failed
}

// compile makes a policy from the default one.
func compile(t *testing.T, name string, change func(*policy.Spec)) *policy.Compiled {
	t.Helper()
	p := policy.Default()
	p.Metadata.Name = name
	if change != nil {
		change(&p.Spec)
	}
	c, err := policy.Compile(&p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func scenario(t *testing.T, name string, d time.Duration) *sim.Scenario {
	t.Helper()
	sc, err := sim.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	sc.Duration = policy.Duration(d)
	return sc
}

func noAction(s *policy.Spec) { s.CPU.Posture, s.CPU.Ladder = policy.PostureNone, []policy.Rung{} }

func postureOnly(s *policy.Spec) { s.CPU.Ladder = []policy.Rung{} }

// coresOnly stops at one core: milder than the default.
func coresOnly(s *policy.Spec) { s.CPU.Ladder = []policy.Rung{policy.RungCPUs} }

// TestSamePolicySeesTheRecordingItself: where nothing differs the model has no say.
func TestSamePolicySeesTheRecordingItself(t *testing.T) {
	for _, name := range []string{"antagonist-arrives", "bursts", "pods-come-and-go", "cpus-go-offline", "sensor-stays-blind"} {
		sc := scenario(t, name, time.Minute)
		pol := compile(t, "default", nil)
		rec := simulated{sc, pol}
		m, err := Fit([]Recording{rec}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(rec, m, []*policy.Compiled{pol}, Options{Draws: -1})
		if err != nil {
			t.Fatal(err)
		}
		o := r.Policies[0]
		if o.Diverged != 0 {
			t.Errorf("%s: the recorded policy differs from the recording in %.1f %% of the time", name, o.Diverged)
		}
		if d := cmp.Diff(total(r.Recorded.Blocks), total(o.Blocks)); d != "" {
			t.Errorf("%s: (-recorded +what-if)\n%s", name, d)
		}
	}
}

// TestWhatIfAgainstTheTruth lets a simulated node run under one policy, asks what another would have done, and then lets the same node
// run under that one. The simulator's plant and what-if share the mixture's form but no parameter: those are fitted from waits as the
// kernel would show them.
func TestWhatIfAgainstTheTruth(t *testing.T) {
	for _, tt := range []struct {
		name, scenario   string
		recorded, asked  func(*policy.Spec)
		violation, works float64 // how far off they may be: percentage points, CPUs
	}{
		{"from the default to no action", "antagonist-arrives", nil, noAction, 12, 0.5},
		// What offline work does from the idle posture, and on fewer cores, was never seen: the priors guess it, and how much work the
		// default leaves follows from that. The interval has to hold the truth.
		{"from no action to the default", "antagonist-arrives", noAction, nil, 6, math.Inf(1)},
		{"from the default to the posture", "antagonist-arrives", nil, postureOnly, 12, 0.5},
		{"from the posture to the default", "constant-harm-rests", postureOnly, nil, 6, 0.5},
		{"from the posture to cores only", "constant-harm-rests", postureOnly, coresOnly, 10, 0.5},
		{"calm, no action", "calm", nil, noAction, 15, 0.5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sc := scenario(t, tt.scenario, 90*time.Second)
			was, asked := compile(t, "was", tt.recorded), compile(t, "asked", tt.asked)
			rec := simulated{sc, was}
			m, err := Fit([]Recording{rec}, nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Run(rec, m, []*policy.Compiled{asked}, Options{Objective: was})
			if err != nil {
				t.Fatal(err)
			}
			truth, err := sim.Run(sc, asked)
			if err != nil {
				t.Fatal(err)
			}
			got := r.Policies[0]
			t.Logf("recorded: violation %.1f %%, work %.2f; what-if: violation %.1f %% [%.1f, %.1f], work %.2f [%.2f, %.2f], churn %.0f, false %.1f, missed %.1f %%; truth: violation %.1f %%, work %.2f, churn %.0f",
				r.Recorded.Violation.Point, r.Recorded.Work.Point, got.Violation.Point, got.Violation.Low, got.Violation.High,
				got.Work.Point, got.Work.Low, got.Work.High, got.Churn.Point, got.False.Point, got.Missed.Point,
				truth.Score.Violation(), truth.Score.Work(), truth.Score.Churn())
			if d := math.Abs(got.Violation.Point - truth.Score.Violation()); d > tt.violation {
				t.Errorf("violation %.1f %%, in truth %.1f %%", got.Violation.Point, truth.Score.Violation())
			}
			if d := math.Abs(got.Work.Point - truth.Score.Work()); d > tt.works {
				t.Errorf("work %.2f CPUs, in truth %.2f", got.Work.Point, truth.Score.Work())
			}
			if w := truth.Score.Work(); w < got.Work.Low-0.1 || w > got.Work.High+0.1 {
				t.Errorf("work [%.2f, %.2f] CPUs, in truth %.2f", got.Work.Low, got.Work.High, w)
			}
			if got.Violation.Low > got.Violation.Point || got.Violation.Point > got.Violation.High {
				t.Errorf("interval %+v", got.Violation)
			}
		})
	}
}

func TestHoldOut(t *testing.T) {
	pol := compile(t, "default", nil)
	rec := []Recording{simulated{scenario(t, "bursts", 3*time.Minute), pol}}
	learn, test := Halves()
	m, err := Fit(rec, learn)
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.Validate(rec, test)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Validate(rec, learn)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v; on what was learned from: %+v", e, again)
	if e.Blocks < 5 || math.IsNaN(e.Relative) || e.Relative <= 0 {
		t.Errorf("%+v", e)
	}
}

func TestRecordedScoreIsWhatWasMeasured(t *testing.T) {
	pol := compile(t, "default", nil)
	sc := scenario(t, "antagonist-arrives", time.Minute)
	r, err := Run(simulated{sc, pol}, &Model{}, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	truth, err := sim.Run(sc, pol)
	if err != nil {
		t.Fatal(err)
	}
	got := total(r.Recorded.Blocks)
	if got.Changes != truth.Score.Changes || got.Cuts != truth.Score.Cuts || math.Abs(got.WorkSeconds-truth.Score.WorkSeconds) > 0.02*truth.Score.WorkSeconds {
		t.Errorf("got %+v, in truth %+v", got, truth.Score)
	}
}

func TestIntervalsOfNothing(t *testing.T) {
	o := outcome("x", [][]score.Score{nil}, nil, Options{Resamples: 3})
	if o.Violation != (Interval{}) || o.Work != (Interval{}) {
		t.Errorf("%+v", o)
	}
}
