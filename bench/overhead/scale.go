package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

type costRow struct {
	Containers    int     `json:"containers"`
	IntervalMS    float64 `json:"interval_ms"`
	CPUPercent    float64 `json:"cpu_percent"` // of one core, median
	CPUPercentMin float64 `json:"cpu_percent_min"`
	CPUPercentMax float64 `json:"cpu_percent_max"`
	RSSMiB        float64 `json:"rss_mib"`
	AllocsPerTick float64 `json:"allocs_per_tick,omitempty"` // of the whole process, while nobody asks it for anything
	TickP50US     float64 `json:"tick_p50_us"`
	TickP99US     float64 `json:"tick_p99_us"`
}

// scale measures the daemon beside each number of containers at each interval, and how its cost grows with them.
func (c *cli) scale(ctx context.Context, s *lab.Site, r *result) error {
	fmt.Printf("\n%10s %9s %22s %8s %12s %18s\n", "containers", "tick", "CPU of one core", "RSS", "allocs/tick", "tick p50 / p99")
	for _, n := range c.Containers {
		if err := s.Populate(n); err != nil {
			return err
		}
		for _, interval := range c.Intervals {
			row, err := c.row(ctx, s, n, interval)
			if err != nil {
				return fmt.Errorf("%d containers, %v: %w", n, interval, err)
			}
			fmt.Printf("%10d %9v %6.2f %% (%.2f - %.2f) %4.1f MiB %12.1f %7.0f / %.0f us\n", n, interval, row.CPUPercent, row.CPUPercentMin, row.CPUPercentMax,
				row.RSSMiB, row.AllocsPerTick, row.TickP50US, row.TickP99US)
			r.Scale = slices.DeleteFunc(r.Scale, func(old costRow) bool { return old.Containers == n && old.IntervalMS == row.IntervalMS })
			r.Scale = append(r.Scale, row)
		}
		s.StopAll()
	}
	slices.SortFunc(r.Scale, func(a, b costRow) int {
		return cmp.Or(cmp.Compare(a.Containers, b.Containers), cmp.Compare(a.IntervalMS, b.IntervalMS))
	})
	for _, interval := range c.Intervals {
		r.Growth = slices.DeleteFunc(r.Growth, func(old growth) bool { return old.IntervalMS == interval.Seconds()*1e3 })
		if g, ok := grow(r.Scale, interval.Seconds()*1e3); ok {
			r.Growth = append(r.Growth, g)
			fmt.Printf("at %v: %.4f %% of a core and %.1f KiB for each container more, %.2f %% without any; least squares leave %.0f %% of the largest value\n",
				interval, g.CPUPercentPerContainer, g.RSSKiBPerContainer, g.CPUPercentBase, 100*g.Residual)
		}
	}
	return nil
}

// growth is a straight line through the rows of one interval.
type growth struct {
	IntervalMS             float64 `json:"interval_ms"`
	CPUPercentPerContainer float64 `json:"cpu_percent_per_container"`
	CPUPercentBase         float64 `json:"cpu_percent_base"`
	RSSKiBPerContainer     float64 `json:"rss_kib_per_container"`
	Residual               float64 `json:"largest_residual"` // from the line, as a part of the largest value: 0 is perfectly linear
}

func grow(rows []costRow, interval float64) (g growth, ok bool) {
	var n, cpu, mem []float64
	for _, r := range rows {
		if r.IntervalMS == interval {
			n, cpu, mem = append(n, float64(r.Containers)), append(cpu, r.CPUPercent), append(mem, r.RSSMiB*1024)
		}
	}
	if len(n) < 3 {
		return g, false
	}
	g.IntervalMS = interval
	g.CPUPercentBase, g.CPUPercentPerContainer = model.Line(n, cpu)
	_, g.RSSKiBPerContainer = model.Line(n, mem)
	for i := range n {
		g.Residual = max(g.Residual, math.Abs(cpu[i]-g.CPUPercentBase-g.CPUPercentPerContainer*n[i])/slices.Max(cpu))
	}
	return g, true
}

func (c *cli) row(ctx context.Context, s *lab.Site, n int, interval time.Duration) (costRow, error) {
	row := costRow{Containers: n, IntervalMS: interval.Seconds() * 1e3}
	o, err := s.Options("  mode: enforce\n")
	if err != nil {
		return row, err
	}
	o.Interval = interval
	d, err := daemon.Start(o)
	if err != nil {
		return row, err
	}
	defer d.Kill()
	if _, err := d.WaitState(ctx, "all pods", func(st *server.State) bool { return len(st.Pods) == n && st.Loop.Ticks > 20 }); err != nil {
		return row, err
	}
	if err := lab.Sleep(ctx, 3*time.Second); err != nil { // start-up is not steady state
		return row, err
	}
	allocs := &allocations{d: d}
	if err := allocs.begin(ctx); err != nil {
		return row, err
	}
	if err := lab.Sleep(ctx, time.Second); err != nil {
		return row, err
	}
	if err := allocs.ask(ctx); err != nil {
		return row, err
	}
	var cpu []float64
	scrapes, nextScrape := 0, time.Now().Add(c.Scrape)
	for range c.Windows {
		before, err := work.ProcessCPU(d.PID())
		if err != nil {
			return row, err
		}
		start := time.Now()
		for time.Since(start) < c.Window {
			if err := lab.Sleep(ctx, min(c.Window-time.Since(start), max(0, time.Until(nextScrape)))); err != nil {
				return row, err
			}
			if !time.Now().Before(nextScrape) {
				if _, _, err := d.Get(ctx, "/metrics"); err != nil {
					return row, err
				}
				scrapes, nextScrape = scrapes+1, nextScrape.Add(c.Scrape)
			}
		}
		after, err := work.ProcessCPU(d.PID())
		if err != nil {
			return row, err
		}
		cpu = append(cpu, 100*(after-before).Seconds()/time.Since(start).Seconds())
	}
	if err := allocs.ask(ctx); err != nil {
		return row, err
	}
	row.AllocsPerTick = allocs.perSecond(scrapes) * interval.Seconds()
	last, err := d.State(ctx)
	if err != nil {
		return row, err
	}
	slices.Sort(cpu)
	row.CPUPercent, row.CPUPercentMin, row.CPUPercentMax = cpu[len(cpu)/2], cpu[0], cpu[len(cpu)-1]
	row.TickP50US, row.TickP99US = last.Loop.Tick.P50Seconds*1e6, last.Loop.Tick.P99Seconds*1e6
	if row.RSSMiB, err = rss(d.PID()); err != nil {
		return row, err
	}
	return row, d.Stop(ctx)
}

// allocations counts what the process allocates by itself. To ask it allocates too: how much, two questions a second apart tell, as what it
// does once a second is in between as well.
type allocations struct {
	d       *daemon.Daemon
	at      []time.Time
	mallocs []float64
}

// begin asks the first question, after some that do not count: what the server makes once is made by then.
func (a *allocations) begin(ctx context.Context) error {
	for range 3 {
		if _, err := metric(ctx, a.d, "go_memstats_mallocs_total"); err != nil {
			return err
		}
		if err := lab.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return a.ask(ctx)
}

func (a *allocations) ask(ctx context.Context) error {
	n, err := metric(ctx, a.d, "go_memstats_mallocs_total")
	a.at, a.mallocs = append(a.at, time.Now()), append(a.mallocs, n)
	return err
}

// perSecond is for three questions, the second a second after the first, and asked more in between the second and the third.
func (a *allocations) perSecond(asked int) float64 {
	first, rest := a.at[1].Sub(a.at[0]).Seconds(), a.at[2].Sub(a.at[1]).Seconds()
	questions := float64(asked + 1)
	return (a.mallocs[2] - a.mallocs[1] - questions*(a.mallocs[1]-a.mallocs[0])) / (rest - questions*first)
}

// metric reads a metric without labels.
func metric(ctx context.Context, d *daemon.Daemon, name string) (float64, error) {
	_, body, err := d.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("/metrics has no %s", name)
}

// rss is a process's resident memory in MiB.
func rss(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text))
	if len(f) < 2 {
		return 0, fmt.Errorf("statm: %q", text)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	return float64(pages) * float64(os.Getpagesize()) / (1 << 20), err
}
