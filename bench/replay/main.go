// Command replay measures recording and replay on a made-up node of many containers (package tracetest): bytes on disk, CPU time of
// recording, and speed and memory of replaying recordings of different lengths, each in a process of its own on one processor. As root it
// also records a real node (package scene) and holds the response model of what-if against the half of it that the model was not fitted
// on.
//
// Speeds are recorded time by CPU time of the whole process, of which other work on the machine takes less than of the clock's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/trace/tracetest"
)

type cli struct {
	Run   runCmd   `cmd:"" default:"withargs" help:"Measure, and write the result."`
	Child childCmd `cmd:"" hidden:""`
}

func main() {
	load.MaybeRun()
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	k := kong.Parse(&c, kong.BindTo(ctx, (*context.Context)(nil)))
	k.FatalIfErrorf(k.Run())
}

type runCmd struct {
	Out        string        `default:"bench/results/replay.json" help:"File of the result; what others have put into it stays."`
	Containers int           `default:"150" help:"Containers of the node."`
	Length     time.Duration `default:"5m" help:"Recorded time of the main measurement."`
	Rounds     int           `default:"3" help:"Times that each replay is measured; the median is quoted."`
	Trace      string        `default:"demo/out/trace" help:"Recording of a real daemon, which is replayed and verified too; make demo leaves one there."`
	HoldOut    time.Duration `default:"80s" help:"How long the real node is recorded for the model's hold-out error; 0: not at all. Needs root."`
}

// result is what is merged into the file.
type result struct {
	Kernel     string  `json:"kernel"`
	CPUs       int     `json:"cpus"`
	Date       string  `json:"date"`
	Containers int     `json:"containers"`
	TickMS     float64 `json:"tick_ms"`
	Minutes    float64 `json:"recorded_minutes"`

	Factor        float64 `json:"realtime_factor"` // decisions made again, one core
	FactorMin     float64 `json:"realtime_factor_min"`
	FactorMax     float64 `json:"realtime_factor_max"`
	FactorVerify  float64 `json:"realtime_factor_verify"` // and compared
	FactorRead    float64 `json:"realtime_factor_read"`   // only read
	RSSMiB        float64 `json:"rss_mib"`
	BytesCtrHour  float64 `json:"bytes_per_container_hour"`
	MiBHour       float64 `json:"mib_per_hour"`
	RecordPercent float64 `json:"record_percent_of_a_core"`

	Lengths []lengthRow `json:"memory_against_length"`
	Loads   []loadRow   `json:"loads"`
	Real    *loadRow    `json:"real_daemon"` // null: there was no recording of one

	Verified []verdict `json:"verified"` // what replay --verify says of each recording

	HoldOutError *float64 `json:"holdout_error,omitempty"` // see holdOut.Relative
	HoldOut      *holdOut `json:"holdout,omitempty"`
}

// verdict is what replay --verify says of a recording.
type verdict struct {
	Trace       string `json:"trace"`
	Verified    bool   `json:"verified"` // decisions were compared, and all came out byte for byte
	Decisions   uint64 `json:"decisions_compared"`
	Same        uint64 `json:"decisions_same"`
	Checkpoints uint64 `json:"checkpoints_compared"`
	Inexact     uint64 `json:"not_comparable"` // after steps that the recorder had dropped
	First       string `json:"first_difference,omitempty"`
}

func (v *verdict) String() string {
	switch {
	case v.First != "":
		return fmt.Sprintf("%s: NOT verified: %d decisions are the same, then one differs:\n%s", v.Trace, v.Same, v.First)
	case !v.Verified:
		return v.Trace + ": NOT verified: nothing could be compared"
	}
	return fmt.Sprintf("%s: verified: %d decisions and %d checkpoints are byte for byte what was recorded, %d decisions after holes could not be compared",
		v.Trace, v.Decisions, v.Checkpoints, v.Inexact)
}

// verified keeps what a replay with --verify has said of a recording.
func (r *result) verified(name string, v *verdict) {
	v.Trace = name
	fmt.Println(v)
	r.Verified = append(r.Verified, *v)
}

type lengthRow struct {
	Minutes float64 `json:"recorded_minutes"`
	MiB     float64 `json:"trace_mib"`
	RSSMiB  float64 `json:"rss_mib"`
}

type loadRow struct {
	Load         string  `json:"load"`
	MiBHour      float64 `json:"mib_per_hour,omitempty"`
	BytesCtrHour float64 `json:"bytes_per_container_hour"`
	Factor       float64 `json:"realtime_factor"`
	FactorVerify float64 `json:"realtime_factor_verify"`
}

func (c *runCmd) Run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "qos-agent-bench-replay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := result{Kernel: lab.Kernel(), CPUs: numCPU(), Date: time.Now().Format(time.DateOnly), Containers: c.Containers, TickMS: 100, Minutes: c.Length.Minutes()}

	main := filepath.Join(dir, "ordinary")
	bytes, percent, err := c.record(main, tracetest.Options{}, c.Length)
	if err != nil {
		return err
	}
	r.RecordPercent = percent
	r.MiBHour = float64(bytes) / (1 << 20) / c.Length.Hours()
	r.BytesCtrHour = float64(bytes) / c.Length.Hours() / float64(c.Containers)
	fmt.Printf("recording %d containers: %.1f MiB an hour, %.0f bytes per container and hour, %.2f %% of a core\n", c.Containers, r.MiBHour, r.BytesCtrHour, percent)
	decided, verified, err := c.both(ctx, &r, main, fmt.Sprintf("%d containers, made up", c.Containers))
	if err != nil {
		return err
	}
	read, err := c.replays(ctx, main, "read")
	if err != nil {
		return err
	}
	r.Factor, r.FactorMin, r.FactorMax, r.RSSMiB = factor(decided), decided[0].Factor, decided[len(decided)-1].Factor, decided[len(decided)/2].RSSMiB
	r.FactorVerify, r.FactorRead = factor(verified), factor(read)
	fmt.Printf("replay on one core: %.0f times real time (%.0f - %.0f), verifying %.0f, only reading %.0f; %.1f MiB resident\n",
		r.Factor, r.FactorMin, r.FactorMax, r.FactorVerify, r.FactorRead, r.RSSMiB)

	for _, part := range []int{10, 2, 1} {
		row, err := c.length(ctx, filepath.Join(dir, fmt.Sprint("length", part)), c.Length*3/time.Duration(part))
		if err != nil {
			return err
		}
		r.Lengths = append(r.Lengths, row)
		fmt.Printf("%6.1f recorded minutes, %7.1f MiB of trace: %.1f MiB resident\n", row.Minutes, row.MiB, row.RSSMiB)
	}
	for _, l := range []struct {
		name string
		o    tracetest.Options
	}{{"all containers busy", tracetest.Options{Idle: -1}}, {"nine of ten idle", tracetest.Options{Idle: 90}}, {"with counters and resctrl", tracetest.Options{Hardware: true}}} {
		row, err := c.load(ctx, &r, filepath.Join(dir, strings.ReplaceAll(l.name, " ", "-")), l.name, l.o)
		if err != nil {
			return err
		}
		r.Loads = append(r.Loads, row)
	}
	switch _, err := os.Stat(c.Trace); {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Printf("%s is not there (make demo leaves a recording): no real daemon's is replayed but that of the hold-out error\n", c.Trace)
	case err != nil:
		return err
	default:
		row, err := c.row(ctx, &r, c.Trace, c.Trace)
		if err != nil {
			return err
		}
		row.Load = "a real daemon's"
		r.Real = &row
		fmt.Printf("%s: %.0f bytes per container and hour, %.0f times real time, verifying %.0f\n", c.Trace, row.BytesCtrHour, row.Factor, row.FactorVerify)
	}
	if err := c.holdOut(ctx, &r); err != nil {
		return err
	}
	if err := merge(c.Out, r); err != nil {
		return err
	}
	for i := range r.Verified {
		if !r.Verified[i].Verified {
			return errors.New("not every recording was verified")
		}
	}
	return nil
}

// record makes a recording as the daemon would, and returns its bytes and what recording took of a core.
func (c *runCmd) record(dir string, o tracetest.Options, length time.Duration) (bytes uint64, percent float64, err error) {
	o.Containers = c.Containers
	without, err := drive(nil, o, length)
	if err != nil {
		return 0, 0, err
	}
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 8 << 30, Wait: true, Info: trace.Info{Agent: "bench", Interval: 100 * time.Millisecond}})
	if err != nil {
		return 0, 0, err
	}
	before := cpuTime()
	if _, err := drive(rec, o, length); err != nil {
		return 0, 0, err
	}
	if err := rec.Close(); err != nil {
		return 0, 0, err
	}
	with := cpuTime() - before
	return rec.Stats().Bytes, 100 * (with - without).Seconds() / length.Seconds(), nil
}

// drive does what the loop does with a node, and returns the CPU time that it took.
func drive(rec *trace.Recorder, o tracetest.Options, length time.Duration) (time.Duration, error) {
	p := policy.Default()
	p.Spec.Mode = policy.Enforce
	pol, err := policy.Compile(&p)
	if err != nil {
		return 0, err
	}
	node, brain := tracetest.New(o), decide.New()
	from := cpuTime()
	for i := range int(length / (100 * time.Millisecond)) {
		if rec.WantsState() {
			rec.State(brain.Checkpoint)
		}
		s := node.Tick()
		d := brain.Step(s, pol)
		rec.Step(s, pol, &d, nil)
		if i%3 == 0 {
			if s := node.Event(); s != nil {
				d := brain.Step(s, pol)
				rec.Step(s, pol, &d, nil)
			}
		}
	}
	return cpuTime() - from, nil
}

func (c *runCmd) length(ctx context.Context, dir string, length time.Duration) (lengthRow, error) {
	bytes, _, err := c.record(dir, tracetest.Options{}, length)
	if err != nil {
		return lengthRow{}, err
	}
	out, err := child(ctx, dir, "verify")
	if err == nil && !out.Verdict.Verified {
		return lengthRow{}, errors.New(out.Verdict.String())
	}
	return lengthRow{length.Minutes(), float64(bytes) / (1 << 20), out.RSSMiB}, err
}

func (c *runCmd) load(ctx context.Context, r *result, dir, name string, o tracetest.Options) (loadRow, error) {
	length := c.Length / 2
	bytes, _, err := c.record(dir, o, length)
	if err != nil {
		return loadRow{}, err
	}
	row, err := c.row(ctx, r, dir, name)
	if err != nil {
		return row, err
	}
	row.MiBHour = float64(bytes) / (1 << 20) / length.Hours()
	fmt.Printf("%s: %.1f MiB an hour, %.0f times real time, verifying %.0f\n", name, row.MiBHour, row.Factor, row.FactorVerify)
	return row, nil
}

// row replays a recording, and verifies it.
func (c *runCmd) row(ctx context.Context, r *result, dir, name string) (loadRow, error) {
	decided, verified, err := c.both(ctx, r, dir, name)
	if err != nil {
		return loadRow{}, err
	}
	return loadRow{Load: name, BytesCtrHour: decided[0].BytesCtrHour, Factor: factor(decided), FactorVerify: factor(verified)}, nil
}

// both replays a recording, and verifies it, several times each.
func (c *runCmd) both(ctx context.Context, r *result, dir, name string) (decided, verified []outcome, err error) {
	if decided, err = c.replays(ctx, dir, "decide"); err != nil {
		return nil, nil, err
	}
	if verified, err = c.replays(ctx, dir, "verify"); err != nil {
		return nil, nil, err
	}
	r.verified(name, &verified[0].Verdict)
	return decided, verified, nil
}

// replays measures several times and returns the outcomes by factor.
func (c *runCmd) replays(ctx context.Context, dir, mode string) ([]outcome, error) {
	var out []outcome
	for range c.Rounds {
		o, err := child(ctx, dir, mode)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b outcome) int { return int(a.Factor - b.Factor) })
	return out, nil
}

func factor(sorted []outcome) float64 { return sorted[len(sorted)/2].Factor }

// outcome is what a child prints.
type outcome struct {
	Factor       float64 `json:"factor"`
	RSSMiB       float64 `json:"rss_mib"`
	BytesCtrHour float64 `json:"bytes_per_container_hour"`
	Verdict      verdict `json:"verdict"` // of mode verify
}

func child(ctx context.Context, dir, mode string) (o outcome, err error) {
	self, err := os.Executable()
	if err != nil {
		return o, err
	}
	cmd := exec.CommandContext(ctx, self, "child", "--mode", mode, dir)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return o, fmt.Errorf("replay of %s: %w", dir, err)
	}
	return o, json.Unmarshal(text, &o)
}

type childCmd struct {
	Mode string `enum:"read,decide,verify" default:"decide"`
	Dir  string `arg:""`
}

// Run replays, and prints what it took.
func (c *childCmd) Run(ctx context.Context) error {
	defer replay.Spare()() // as qos-agent replay does
	files, err := trace.Files(c.Dir)
	if err != nil {
		return err
	}
	all, err := replay.Group(files)
	if err != nil {
		return err
	}
	size, hours, recorded, said := int64(0), 0.0, time.Duration(0), verdict{}
	from := cpuTime()
	for _, s := range all {
		o := replay.Options{Verify: c.Mode == "verify", ReadOnly: c.Mode == "read"}
		o.Each = func(s *trace.Step, _ *decide.Decision) {
			hours += s.Snapshot.Elapsed.Hours() * float64(len(s.Snapshot.Containers))
		}
		res, err := replay.Run(ctx, s, o)
		if err != nil {
			return err
		}
		said.Decisions, said.Same = said.Decisions+res.Compared, said.Same+res.Same
		said.Checkpoints, said.Inexact = said.Checkpoints+res.Checkpoints, said.Inexact+res.Inexact
		if res.FirstDiff != nil && said.First == "" {
			said.First = res.FirstDiff.String()
		}
		recorded += res.Recorded
	}
	took := cpuTime() - from
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return err
		}
		size += st.Size()
	}
	rss, err := peakRSS()
	if err != nil {
		return err
	}
	said.Verified = said.Decisions > 0 && said.First == ""
	return json.NewEncoder(os.Stdout).Encode(outcome{float64(recorded) / float64(took), rss, float64(size) / hours, said})
}

// merge puts r into the file and leaves what others have put there.
func merge(file string, r result) error {
	all := map[string]json.RawMessage{}
	text, err := os.ReadFile(file)
	if err == nil {
		if err := json.Unmarshal(text, &all); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ours, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(ours, &all); err != nil {
		return err
	}
	return lab.WriteResult(filepath.Dir(file), filepath.Base(file), all)
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no reason to fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakRSS is the largest resident size so far, MiB.
func peakRSS() (float64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmHWM")
}

func numCPU() int {
	var s unix.CPUSet
	if err := unix.SchedGetaffinity(0, &s); err != nil {
		return 0
	}
	return s.Count()
}
