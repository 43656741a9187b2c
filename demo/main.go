// Demo shows, in about a minute and on this machine, what qos-agent is for: an online service whose latency is wrecked by
// offline work beside it and brought back, with the culprit named and every setting restored in the end. It needs root, and
// neither a cluster nor a container runtime. It leaves report.json, report.txt, a recording (trace/) and a page about it (report.html) in demo/out, and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
)

func main() {
	load.MaybeRun()
	maybeBatch()
	maybeWeb()
	var o options
	flag.StringVar(&o.out, "out", "demo/out", "directory for the report")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each situation is measured")
	flag.DurationVar(&o.window, "window", 1500*time.Millisecond, "how long each time")
	flag.DurationVar(&o.settle, "settle", 600*time.Millisecond, "time between a change and its measurement")
	flag.IntVar(&o.bursts, "bursts", 5, "bursts of offline work for the reaction time")
	flag.Uint64Var(&o.seed, "seed", 1, "of arrivals and of the order of measurements")
	flag.Parse()

	if o.rounds < 1 || o.bursts < 1 || o.window <= 0 {
		fmt.Fprintln(os.Stderr, "demo: -rounds, -bursts and -window must be positive")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, o)
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything is cleaned up")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type options struct {
	out            string
	rounds, bursts int
	window, settle time.Duration
	seed           uint64
}

// traces is the directory of the recording.
func (o options) traces() string { return filepath.Join(o.out, "trace") }

// run sets the stage, measures, clears up, and judges. The report is written also when the verdict is bad.
func run(ctx context.Context, o options) error {
	s, err := newStage(ctx, o)
	if err != nil {
		return err
	}
	r, err := s.play(ctx)
	err = errors.Join(err, s.close())
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	if err := r.write(o.out); err != nil {
		return err
	}
	if err := writePage(ctx, o.traces(), filepath.Join(o.out, "report.html")); err != nil {
		return fmt.Errorf("page about the recording: %w", err)
	}
	fmt.Printf("recording in %s, page in %s\n", o.traces(), filepath.Join(o.out, "report.html"))
	if len(r.Failures) > 0 {
		return fmt.Errorf("%d of the things that this demo is to show did not happen; see above", len(r.Failures))
	}
	return nil
}
