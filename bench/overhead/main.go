// Command overhead measures what the agent costs, on this machine's kernel:
//
//   - agreement: the waits of one process under contention, seen by the agent's programs and by runqlat over the same seconds;
//   - cost: nanoseconds of BPF per sched_switch, by the kernel's own accounting, beside a program that does nothing and libbpf-tools'
//     and bpftrace's runqlat;
//   - slow-down: of `perf bench sched pipe`, pinned, the worst case with a switch every microsecond, and of messaging;
//   - scale: CPU time, memory and allocations of the daemon beside many containers, at several intervals.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/test/work"
)

type cli struct {
	Out        string          `default:"bench/results" help:"Directory for the results."`
	Part       string          `default:"all" enum:"all,bpf,scale" help:"Measure only the programs in the kernel, or only the daemon (${enum})."`
	Seconds    int             `default:"5" help:"Length of the window of agreement."`
	Rounds     int             `default:"9" help:"Rounds of the slow-down."`
	Containers []int           `default:"10,100,150,500,1000" help:"Numbers of containers to measure with."`
	Intervals  []time.Duration `default:"10ms,100ms,1s" help:"Tick intervals to measure with."`
	Windows    int             `default:"3" help:"Windows of the daemon per combination; the median is quoted."`
	Window     time.Duration   `default:"3s" help:"Length of one."`
	Scrape     time.Duration   `default:"15s" help:"Time between scrapes of /metrics, as Prometheus would do it."`
}

// result is what others read.
type result struct {
	lab.Machine
	OursNS       float64 `json:"bpf_ns_per_switch"` // under contention
	RunqlatNS    float64 `json:"runqlat_ns_per_switch"`
	PipeSlowdown float64 `json:"pipe_slowdown"` // 0.05: 5 % slower than bare

	Agreement agreement `json:"agreement"`
	Cost      []cost    `json:"cost"`
	Pipe      slowdown  `json:"pipe"`
	Messaging slowdown  `json:"messaging"`
	// NotRun is tools that did not run here, and why.
	NotRun map[string]string `json:"not_run,omitempty"`

	Windows       int       `json:"windows"`
	WindowSeconds float64   `json:"window_seconds"`
	Scale         []costRow `json:"scale"`
	Growth        []growth  `json:"growth"`
}

func main() {
	work.MaybeRun()
	load.MaybeRun()
	var c cli
	lab.Main("overhead", &c)
}

// Run measures and writes the result. A part that is not measured keeps what the file has of it, and so do rows of the daemon.
func (c *cli) Run(ctx context.Context) (err error) {
	s, err := lab.OpenSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	r := &result{}
	if c.Part != "all" {
		lab.ReadResult(c.Out, "overhead.json", r)
	}
	r.Machine = lab.ThisMachine()
	if c.Part != "scale" {
		r.Cost = nil
		if err := measureBPF(ctx, s.Lab, c.Seconds, c.Rounds, r); err != nil {
			return err
		}
		r.print()
	}
	if c.Part != "bpf" {
		r.Windows, r.WindowSeconds = c.Windows, c.Window.Seconds()
		if err := c.scale(ctx, s, r); err != nil {
			return err
		}
	}
	return lab.WriteResult(c.Out, "overhead.json", r)
}

func (r *result) print() {
	a := r.Agreement
	fmt.Printf("kernel %s, %d CPUs, %s\n\n", r.Kernel, r.CPUs, r.Date)
	fmt.Printf("agreement with runqlat (log2 buckets of µs): p50 %d and %d, p99 %d and %d; same or neighbour: %v (%d and %d waits)\n\n",
		a.Ours.P50, a.Runqlat.P50, a.Ours.P99, a.Runqlat.P99, a.Neighbours, a.OursWaits, a.RunqlatWait)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	names := []string{"bare", ours}
	for _, tool := range knownTools {
		names = append(names, tool.name)
	}
	fmt.Fprintf(t, "ns of BPF per switch: median (min - max) of %d\tswitches/s\ta program that does nothing", costRounds)
	for _, n := range names[1:] {
		fmt.Fprint(t, "\t"+n)
	}
	fmt.Fprintln(t)
	for _, c := range r.Cost {
		fmt.Fprintf(t, "%s\t%.0f\t%s", c.Load, c.SwitchesPerSec, c.NS[empty])
		for _, n := range names[1:] {
			if ns, ok := c.NS[n]; ok {
				fmt.Fprintf(t, "\t%s", ns)
			} else {
				fmt.Fprint(t, "\tdid not run")
			}
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "under contention %.0f ns, of which the accounting itself %.0f; target %d: %s\n", r.OursNS, r.Cost[0].NS[empty].Median, targetNS, met(r.OursNS < targetNS))
	for name, d := range map[string]slowdown{"perf bench sched pipe, us per operation": r.Pipe, "perf bench sched messaging, ms": r.Messaging} {
		fmt.Fprintf(t, "\n%s\tmedian (min - max) of %d\tslower by\n", name, d.Rounds)
		for _, n := range names {
			s, ok := d.Took[n]
			if !ok {
				continue
			}
			fmt.Fprintf(t, "%s\t%.3f (%.3f - %.3f)\t%.1f %%\n", n, s.Median, s.Min, s.Max, 100*d.Slowdown[n])
		}
	}
	t.Flush()
}
