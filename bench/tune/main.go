// Command tune shows on this machine that tuning on recordings finds a better policy: the daemon runs under a deliberately bad one beside
// a service and spinning batch work, and records; tune searches on that recording; then both policies run in turn, in interleaved
// windows, and the service's p99, seen from outside, and the batch work's CPU time are measured. The second half of the evidence is how far
// what-if was off: it predicts, from the first recording, what a recording of the tuned policy then shows.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/tune"
	"github.com/qos-agent/qos-agent/internal/whatif"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

type cli struct {
	Out     string        `default:"bench/results" help:"Directory for the result."`
	Base    string        `default:"bench/tune/bad.yaml" help:"The bad policy."`
	Space   string        `default:"bench/tune/space.yaml" help:"What is searched."`
	Rate    float64       `default:"30000" help:"Requests a second: enough for the service to use most of a CPU, as a mostly idle one is not hurt by spinning neighbours of equal weight."`
	Record  time.Duration `default:"40s" help:"How long the bad policy is recorded."`
	Windows int           `default:"4" help:"Measured windows of each policy."`
	Window  time.Duration `default:"8s" help:"Length of each."`
	Keep    string        `placeholder:"DIR" help:"Keep recordings and tuned policies there."`
}

// result is bench/results/tune.json.
type result struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Date   string `json:"date"`

	Recorded  string            `json:"recorded"` // how long, under the bad policy
	Tuned     map[string]string `json:"tuned"`    // what the chosen policy sets
	Why       string            `json:"why"`
	Bad       side              `json:"bad"`
	Better    side              `json:"better"`
	P99Ratio  float64           `json:"p99_ratio"`  // bad over tuned
	WorkRatio float64           `json:"work_ratio"` // tuned over bad

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
}

func main() {
	load.MaybeRun()
	work.MaybeRun()
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

// site is the machine made ready.
type site struct {
	dir   string
	bin   string
	tree  *groups.Tree
	o     daemon.Options
	batch []*work.Process
	gen   *load.Client
}

func (c *cli) run(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root: makes control groups and runs the daemon")
	}
	dir, err := os.MkdirTemp("/dev/shm", "qos-agent-tune-")
	if err != nil {
		return err
	}
	s := &site{dir: dir}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if s.bin, err = daemon.Build(dir); err != nil {
		return err
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	if s.tree, err = groups.New(h, fmt.Sprintf("qos-agent-tune-%d", os.Getpid())); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tree.Remove()) }()
	web, err := s.tree.Make("web")
	if err != nil {
		return err
	}
	batch, err := s.tree.Make("batch")
	if err != nil {
		return err
	}

	server, addr, err := load.StartNull(false)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := s.tree.Join(web, server.PID()); err != nil {
		return err
	}
	if s.gen, err = load.Start(load.Options{Addr: addr, Rate: c.Rate, RealTime: true}); err != nil {
		return err
	}
	defer s.gen.Close()
	defer func() {
		for _, p := range s.batch {
			p.Stop()
		}
	}()
	for range 2 * runtime.NumCPU() {
		p, err := work.Start(work.Spin, s.tree.Joiner(batch))
		if err != nil {
			return err
		}
		s.batch = append(s.batch, p)
	}
	s.o = daemon.Options{Binary: s.bin, PolicyDir: filepath.Join(dir, "policy"), StaticPods: filepath.Join(dir, "pods.yaml"), RunDir: filepath.Join(dir, "run")}
	if err := os.MkdirAll(s.o.PolicyDir, 0o755); err != nil {
		return err
	}
	if err := daemon.WriteStaticPods(s.o.StaticPods,
		daemon.Pod{Namespace: "shop", Name: "web", Cgroup: web, Labels: map[string]string{"qos-agent.io/class": "online"}},
		daemon.Pod{Namespace: "jobs", Name: "batch", Cgroup: batch, Labels: map[string]string{"qos-agent.io/class": "offline"}}); err != nil {
		return err
	}
	r, err := c.measure(ctx, s)
	if err != nil {
		return err
	}
	if c.Keep != "" {
		if err := exec.Command("cp", "-r", filepath.Join(dir, "traces"), filepath.Join(dir, "tuned"), c.Keep).Run(); err != nil {
			return fmt.Errorf("keep: %w", err)
		}
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Out, "tune.json"), append(text, '\n'), 0o644)
}

func (c *cli) measure(ctx context.Context, s *site) (*result, error) {
	bad, err := os.ReadFile(c.Base)
	if err != nil {
		return nil, err
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty if it cannot be read: then nobody knows the kernel
	r := &result{Kernel: strings.TrimSpace(string(release)), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly), Recorded: c.Record.String()}

	fmt.Printf("recording %v under the bad policy\n", c.Record)
	traces := filepath.Join(s.dir, "traces", "bad")
	if err := s.under(ctx, string(bad), traces, func() error { return sleep(ctx, c.Record) }); err != nil {
		return nil, err
	}
	recs, err := recordings(ctx, traces)
	if err != nil {
		return nil, err
	}
	space, err := tune.LoadSpace(c.Space)
	if err != nil {
		return nil, err
	}
	search := &tune.Search{
		Base: &tune.Base{File: c.Base, Data: bad}, Space: space, Recordings: recs, Points: 64, Rounds: 2, Out: filepath.Join(s.dir, "tuned"),
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
		return nil, errors.New("the bad policy hurts nobody here, so there is nothing to better: raise --rate")
	}
	best := -1
	for i := range chosen { // the least violation at no less work
		f := &chosen[i].Found
		if f.Score.Work() >= 0.98*base.Score.Work() && (best < 0 || f.Score.Violation() < chosen[best].Score.Violation()) {
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
	if _, err := tune.Write(search.Out, space, base, chosen, []string{recs[0].Name()}); err != nil {
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
			dir := filepath.Join(s.dir, "traces", fmt.Sprintf("%s-%d", policy.name, i))
			err := s.under(ctx, policy.text, dir, func() error { return s.window(c, policy.into) })
			if err != nil {
				return nil, err
			}
			n := len(policy.into.P99Each) - 1
			fmt.Printf("%-6s window %d: p99 %8.0f us, offline %.2f CPUs\n", policy.name, i+1, policy.into.P99Each[n], policy.into.WorkEach[n])
		}
	}
	for _, x := range []*side{&r.Bad, &r.Better} {
		x.P99US, x.WorkCPUs = load.Median(x.P99Each), load.Median(x.WorkEach)
	}
	r.P99Ratio, r.WorkRatio = r.Bad.P99US/r.Better.P99US, r.Better.WorkCPUs/r.Bad.WorkCPUs
	if err := r.seen(ctx, s.dir, pick.Compiled); err != nil {
		return nil, err
	}
	fmt.Printf("p99: bad %.0f us, tuned %.0f us (%.1f times); offline work: bad %.2f, tuned %.2f CPUs\n", r.Bad.P99US, r.Better.P99US, r.P99Ratio, r.Bad.WorkCPUs, r.Better.WorkCPUs)
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
		recs, err := recordings(ctx, dirs...)
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

func recordings(ctx context.Context, dirs ...string) (out []whatif.Recording, err error) {
	files, err := trace.Files(dirs...)
	if err != nil {
		return nil, err
	}
	series, err := replay.Group(files)
	if err != nil {
		return nil, err
	}
	for _, s := range series {
		out = append(out, whatif.Recorded(ctx, s, time.Time{}, time.Time{}))
	}
	return out, nil
}

// under runs the daemon with a policy and records into a directory while do runs.
func (s *site) under(ctx context.Context, policy, record string, do func() error) error {
	if err := daemon.Replace(filepath.Join(s.o.PolicyDir, "policy.yaml"), policy); err != nil {
		return err
	}
	o := s.o
	o.Extra = []string{"--record", record}
	d, err := daemon.Start(o)
	if err != nil {
		return err
	}
	if err := d.WaitReady(ctx); err != nil {
		d.Kill()
		return fmt.Errorf("%w\n%s", err, d.Log())
	}
	if err := do(); err != nil {
		d.Kill()
		return err
	}
	return d.Stop(ctx)
}

// window measures the service and the batch work for a while.
func (s *site) window(c *cli, into *side) error {
	const settle = 3 * time.Second
	time.Sleep(settle)
	before, err := s.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	w, err := s.gen.Measure(0, c.Window)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := s.cpu()
	if err != nil {
		return err
	}
	into.P99Each = append(into.P99Each, w.P99)
	into.WorkEach = append(into.WorkEach, (after-before).Seconds()/took.Seconds())
	return nil
}

// cpu is the batch work's CPU time so far.
func (s *site) cpu() (sum time.Duration, err error) {
	for _, p := range s.batch {
		d, err := p.CPU()
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
