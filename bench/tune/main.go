// Command tune shows on this machine that tuning on recordings finds a better policy: the daemon runs under a deliberately bad one beside
// a real service (nginx) and real batch work (xz, again and again), and records; tune searches on that recording; then both policies run in
// turn, in interleaved windows, and the service's p99, seen from outside, and the batch work's pieces and CPU time are measured. The
// second half of the evidence is how far what-if was off: it predicts, from the first recording, what a recording of the tuned policy then
// shows.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/scene"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/tune"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

type cli struct {
	Out     string        `default:"bench/results" help:"Directory for the result."`
	Base    string        `default:"bench/tune/bad.yaml" help:"The bad policy."`
	Space   string        `default:"bench/tune/space.yaml" help:"What is searched."`
	Load    float64       `default:"0.25" help:"Load of nginx, as a part of what it carries alone. Its load generator is on the machine too: this leaves both enough CPU time even beside neighbours of equal weight, so that waits differ and no queue grows without end."`
	Record  int           `default:"4" help:"Recordings of the bad policy, each as long as a measured window and what comes before it, so that tune sees what is then measured."`
	Windows int           `default:"5" help:"Measured windows of each policy."`
	Window  time.Duration `default:"12s" help:"Length of each."`
	Points  int           `default:"64" help:"Policies that tune tries in its first round."`
	Keep    string        `placeholder:"DIR" help:"Keep recordings and tuned policies there."`
}

// result is bench/results/tune.json.
type result struct {
	lab.Machine

	Load      float64           `json:"load"`     // of the service, of what it carries alone
	Rate      float64           `json:"rate"`     // requests a second
	Recorded  string            `json:"recorded"` // under the bad policy
	Tuned     map[string]string `json:"tuned"`    // what the chosen policy sets
	Why       string            `json:"why"`
	Bad       side              `json:"bad"`
	Better    side              `json:"better"`
	P99Ratio  float64           `json:"p99_ratio"`  // bad over tuned
	WorkRatio float64           `json:"work_ratio"` // pieces, tuned over bad
	Confirmed bool              `json:"confirmed"`  // the median p99 is better, and at least 0.98 of the work is done

	// HoldOut is how far off the model is on the half of the recording that it was not fitted on; Predicted and Seen are of the tuned policy,
	// which the model was not shown: from the bad policy's recording, and in a recording of its own.
	HoldOut        whatif.Error    `json:"holdout"`
	HoldOutError   float64         `json:"holdout_error"`
	Predicted      whatif.Interval `json:"predicted_violation_percent"`
	Seen           float64         `json:"seen_violation_percent"`
	PredictedWork  whatif.Interval `json:"predicted_offline_cpus"`
	SeenWork       float64         `json:"seen_offline_cpus"`
	SeenUnderBad   float64         `json:"seen_violation_percent_bad"`
	SearchedSecond float64         `json:"search_seconds"`
}

// side is one policy, measured.
type side struct {
	P99US    float64   `json:"p99_us"` // median of the windows
	P99Each  []float64 `json:"p99_us_each"`
	WorkCPUs float64   `json:"offline_cpus"` // likewise
	WorkEach []float64 `json:"offline_cpus_each"`
	Pieces   float64   `json:"offline_pieces_per_second"` // likewise
	Done     []float64 `json:"offline_pieces_per_second_each"`
}

func main() {
	load.MaybeRun()
	var c cli
	kong.Parse(&c)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench/tune:", err)
		stop()
		os.Exit(1)
	}
}

func (c *cli) run(ctx context.Context) (err error) {
	s, err := scene.Open(ctx, c.Load)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r, err := c.measure(ctx, s)
	if c.Keep != "" { // of a failure above all
		if e := exec.Command("cp", "-r", filepath.Join(s.Dir, "traces"), c.Keep).Run(); e != nil {
			err = errors.Join(err, fmt.Errorf("keep: %w", e))
		}
	}
	if err != nil {
		return err
	}
	if c.Keep != "" {
		if err := exec.Command("cp", "-r", filepath.Join(s.Dir, "tuned"), c.Keep).Run(); err != nil {
			return fmt.Errorf("keep: %w", err)
		}
	}
	return lab.WriteResult(c.Out, "tune.json", r)
}

func (c *cli) measure(ctx context.Context, s *scene.Scene) (*result, error) {
	bad, err := os.ReadFile(c.Base)
	if err != nil {
		return nil, err
	}
	r := &result{Machine: lab.ThisMachine(), Load: c.Load, Rate: s.Rate, Recorded: fmt.Sprintf("%d times %v", c.Record, settle+c.Window)}

	fmt.Printf("nginx at %.0f requests a second, %.0f %% of what it carries alone; recording %s under the bad policy\n", r.Rate, 100*c.Load, r.Recorded)
	var dirs []string
	for i := range c.Record {
		dir := filepath.Join(s.Dir, "traces", fmt.Sprintf("recorded-%d", i))
		if err := s.Under(ctx, string(bad), dir, func() error { return lab.Sleep(ctx, settle+c.Window) }); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	recs, err := scene.Recordings(ctx, dirs...)
	if err != nil {
		return nil, err
	}
	space, err := tune.LoadSpace(c.Space)
	if err != nil {
		return nil, err
	}
	search := &tune.Search{
		Base: &tune.Base{File: c.Base, Data: bad}, Space: space, Recordings: recs, Points: c.Points, Rounds: 2, Out: filepath.Join(s.Dir, "tuned"),
		Log: func(f string, a ...any) { fmt.Printf("tune: "+f+"\n", a...) },
	}
	began := time.Now()
	found, err := search.Run()
	if err != nil {
		return nil, err
	}
	r.SearchedSecond = time.Since(began).Seconds()
	base, front, chosen := tune.Choose(found)
	fmt.Print(tune.Table(space, base, front))
	if base.Score.ViolationSeconds == 0 {
		return nil, errors.New("the bad policy hurts nobody here, so there is nothing to better: raise --load")
	}
	best := -1
	for i := range chosen { // the least violation at no less work
		f := &chosen[i].Found
		if f.Score.Work() >= base.Score.Work() && (best < 0 || f.Score.Violation() < chosen[best].Score.Violation()) {
			best = i
		}
	}
	if best < 0 {
		return nil, errors.New("tune found no policy that is better at no less work")
	}
	pick := &chosen[best]
	if pick.Outcome, err = search.Estimate(&pick.Found); err != nil {
		return nil, err
	}
	names := make([]string, len(recs))
	for i := range recs {
		names[i] = recs[i].Name()
	}
	if _, err := tune.Write(search.Out, space, base, chosen, names); err != nil {
		return nil, err
	}
	r.Why, r.Tuned = pick.Why, make(map[string]string)
	for i, p := range space.Parameters {
		r.Tuned[p.Path] = pick.Values[i]
	}
	r.Predicted, r.PredictedWork = pick.Outcome.Violation, pick.Outcome.Work
	if err := r.holdOut(recs); err != nil {
		return nil, err
	}

	for i := range c.Windows {
		for _, policy := range []struct {
			name, text string
			into       *side
		}{{"bad", string(bad), &r.Bad}, {"tuned", pick.Text, &r.Better}} {
			dir := filepath.Join(s.Dir, "traces", fmt.Sprintf("%s-%d", policy.name, i))
			err := s.Under(ctx, policy.text, dir, func() error { return c.window(ctx, s, policy.into) })
			if err != nil {
				return nil, err
			}
			n := len(policy.into.P99Each) - 1
			fmt.Printf("%-6s window %d: p99 %8.0f us, offline %.1f pieces/s with %.2f CPUs\n", policy.name, i+1, policy.into.P99Each[n], policy.into.Done[n], policy.into.WorkEach[n])
		}
	}
	for _, x := range []*side{&r.Bad, &r.Better} {
		x.P99US, x.WorkCPUs, x.Pieces = load.Median(x.P99Each), load.Median(x.WorkEach), load.Median(x.Done)
	}
	r.P99Ratio, r.WorkRatio = r.Bad.P99US/r.Better.P99US, r.Better.Pieces/r.Bad.Pieces
	r.Confirmed = r.P99Ratio > 1 && r.WorkRatio >= 0.98
	if err := r.seen(ctx, s.Dir, pick.Compiled); err != nil {
		return nil, err
	}
	verdict := "NOT confirmed: the tuned policy is not better on p99 at no less work"
	if r.Confirmed {
		verdict = "confirmed: the tuned policy is better on p99 at no less work"
	}
	fmt.Printf("p99: bad %.0f us, tuned %.0f us (%.1f times less); offline work: bad %.1f, tuned %.1f pieces/s (%.2f times) with %.2f and %.2f CPUs\n%s\n",
		r.Bad.P99US, r.Better.P99US, r.P99Ratio, r.Bad.Pieces, r.Better.Pieces, r.WorkRatio, r.Bad.WorkCPUs, r.Better.WorkCPUs, verdict)
	fmt.Printf("violation of the tuned policy: predicted %.1f %% [%.1f, %.1f], seen %.1f %%; work: predicted %.2f [%.2f, %.2f], seen %.2f CPUs; hold-out error %.2f\n",
		r.Predicted.Point, r.Predicted.Low, r.Predicted.High, r.Seen, r.PredictedWork.Point, r.PredictedWork.Low, r.PredictedWork.High, r.SeenWork, r.HoldOutError)
	return r, nil
}

// holdOut fits on half of the recording and holds that against the other half.
func (r *result) holdOut(recs []whatif.Recording) error {
	learn, test := whatif.Halves()
	half, err := whatif.Fit(recs, learn)
	if err != nil {
		return err
	}
	r.HoldOut, err = half.Validate(recs, test)
	r.HoldOutError = r.HoldOut.Relative
	return err
}

// seen reads what the recordings of the windows show.
func (r *result) seen(ctx context.Context, dir string, objective *policy.Compiled) error {
	for _, x := range []struct {
		name            string
		violation, work *float64
	}{{"tuned", &r.Seen, &r.SeenWork}, {"bad", &r.SeenUnderBad, new(float64)}} {
		dirs, err := filepath.Glob(filepath.Join(dir, "traces", x.name+"-*"))
		if err != nil {
			return err
		}
		recs, err := scene.Recordings(ctx, dirs...)
		if err != nil {
			return err
		}
		res, err := whatif.RunAll(recs, &whatif.Model{}, nil, whatif.Options{Objective: objective})
		if err != nil {
			return err
		}
		*x.violation, *x.work = res.Recorded.Violation.Point, res.Recorded.Work.Point
	}
	return nil
}

// settle is how long a policy is in force before it is measured.
const settle = 3 * time.Second

// window lets the policy settle, and measures.
func (c *cli) window(ctx context.Context, s *scene.Scene, into *side) error {
	if err := lab.Sleep(ctx, settle); err != nil {
		return err
	}
	w, err := s.Measure(ctx, c.Window)
	if err != nil {
		return err
	}
	into.P99Each, into.WorkEach, into.Done = append(into.P99Each, w.P99), append(into.WorkEach, w.CPUs), append(into.Done, w.Pieces)
	return nil
}
