// Command rdt tells the stories of cache and memory bandwidth (test/rdt) in the rig, with all the time that they want, and gathers their
// figures: an online service alone, beside offline work that nobody holds back, and with the daemon between them.
//
// The machine is emulated, and how long a pod waits for memory comes from a model (test/rig/README.md). What the figures show is the
// loop on a real kernel's resctrl and perf_event: what it sees, whom it blames, what it writes, how soon.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// results is what the file has.
type results struct {
	Date      string         `json:"date"`
	Passed    bool           `json:"passed"`               // every story came out as its test wants it
	Scenarios []lab.Story    `json:"scenarios"`            // by name and kernel
	Costs     []lab.TickCost `json:"tick_costs,omitempty"` // by kernel
	Rounds    []lab.Rounds   `json:"rounds,omitempty"`     // by story and kernel
}

func main() {
	out := flag.String("out", "bench/results/rdt.json", "`file` for the figures")
	kernels := flag.String("kernels", "6.12", "series of Debian's kernels, comma-separated")
	match := flag.String("run", "", "only stories whose test's name matches this `regexp`; the file keeps the figures of the others")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *kernels, *match); err != nil {
		fmt.Fprintln(os.Stderr, "rdt:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, kernels, match string) error {
	cmd := exec.CommandContext(ctx, "go", "run", "./test/runner", "-layers", "rig", "-kernels", kernels, "-only", "test/rdt$", "-run", match, "-long", "-keep", lab.StoryPrefix)
	// go run does not pass signals on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := results{Date: time.Now().UTC().Format(time.RFC3339)}
	fmt.Printf("%-22s %7s %12s %7s %10s %9s %14s\n", "story", "alone", "unprotected", "agent", "recovered", "over", "offline GB/s")
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		line, ok, err := lab.ParseStoryLine(lines.Bytes())
		if err != nil {
			return err
		}
		if !ok {
			fmt.Println(lines.Text())
			continue
		}
		r.add(&line)
	}
	waitErr := cmd.Wait()
	r.Passed = waitErr == nil
	if len(r.Scenarios)+len(r.Costs)+len(r.Rounds) == 0 {
		return fmt.Errorf("no story has told its figures: %w", waitErr)
	}
	if match != "" {
		if err := r.keep(out); err != nil {
			return err
		}
	}
	if err := lab.WriteResult(filepath.Dir(out), filepath.Base(out), r); err != nil {
		return err
	}
	fmt.Println("\nwritten:", out)
	return waitErr
}

// add takes in the figures of a line, and prints them.
func (r *results) add(line *lab.StoryLine) {
	if s := line.Story; s != nil {
		s.Date = r.Date
		r.Scenarios = append(r.Scenarios, *s)
		fmt.Println(s)
	}
	if c := line.Cost; c != nil {
		c.Date = r.Date
		r.Costs = append(r.Costs, *c)
		fmt.Println(c)
	}
	if n := line.Rounds; n != nil {
		n.Date = r.Date
		r.Rounds = append(r.Rounds, *n)
		fmt.Println(n)
	}
}

// keep adds what the file has of stories that were not told this time.
func (r *results) keep(file string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var old results
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.Passed = r.Passed && old.Passed
	r.Scenarios = with(r.Scenarios, old.Scenarios, func(a, b lab.Story) bool { return a.Scenario == b.Scenario && a.Kernel == b.Kernel })
	r.Costs = with(r.Costs, old.Costs, func(a, b lab.TickCost) bool { return a.Kernel == b.Kernel })
	r.Rounds = with(r.Rounds, old.Rounds, func(a, b lab.Rounds) bool { return a.Scenario == b.Scenario && a.Kernel == b.Kernel })
	return nil
}

// with is what there is now, and of what there was all that is of something else.
func with[T any](now, old []T, same func(a, b T) bool) []T {
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n T) bool { return same(n, o) }) {
			now = append(now, o)
		}
	}
	return now
}
