package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

type costCmd struct {
	Containers []int           `default:"10,150" help:"Numbers of containers to measure with."`
	Intervals  []time.Duration `default:"100ms" help:"Tick intervals to measure with."`
	Windows    int             `default:"5" help:"Windows per combination; the median is quoted."`
	Window     time.Duration   `default:"10s" help:"Length of a window."`
	Scrape     time.Duration   `default:"15s" help:"Time between scrapes of /metrics, as Prometheus would do it."`
}

type costResult struct {
	machine
	Windows       int       `json:"windows"`
	WindowSeconds float64   `json:"window_seconds"`
	Scale         []costRow `json:"scale"`
}

type costRow struct {
	Containers    int     `json:"containers"`
	IntervalMS    float64 `json:"interval_ms"`
	CPUPercent    float64 `json:"cpu_percent"` // of one core, median
	CPUPercentMin float64 `json:"cpu_percent_min"`
	CPUPercentMax float64 `json:"cpu_percent_max"`
	RSSMiB        float64 `json:"rss_mib"`
	AllocsPerTick float64 `json:"allocs_per_tick"` // of the whole process, scrapes included
	TickP50US     float64 `json:"tick_p50_us"`
	TickP99US     float64 `json:"tick_p99_us"`
	BPFNSPerEvent float64 `json:"bpf_ns_per_switch,omitempty"`
}

func (c *costCmd) measure(ctx context.Context, s *site) (any, error) {
	r := costResult{machine: thisMachine(), Windows: c.Windows, WindowSeconds: c.Window.Seconds()}
	fmt.Printf("%10s %9s %22s %8s %12s %18s\n", "containers", "tick", "CPU of one core", "RSS", "allocs/tick", "tick p50 / p99")
	for _, n := range c.Containers {
		if err := c.populate(s, n); err != nil {
			return nil, err
		}
		for _, interval := range c.Intervals {
			row, err := c.row(ctx, s, n, interval)
			if err != nil {
				return nil, err
			}
			fmt.Printf("%10d %9v %6.2f %% (%.2f - %.2f) %4.1f MiB %12.1f %7.0f / %.0f us\n", n, interval, row.CPUPercent, row.CPUPercentMin, row.CPUPercentMax,
				row.RSSMiB, row.AllocsPerTick, row.TickP50US, row.TickP99US)
			r.Scale = append(r.Scale, row)
		}
		s.stopAll()
	}
	return r, nil
}

// populate makes n single-container pods, a third of them online, each with a process that wakes 20 times a second.
func (c *costCmd) populate(s *site, n int) error {
	pods := make([]daemon.Pod, n)
	for i := range pods {
		name := fmt.Sprintf("pod%04d", i)
		group, err := s.tree.Make(name)
		if err != nil {
			return err
		}
		class := "offline"
		if i%3 == 0 {
			class = "online"
		}
		pods[i] = daemon.Pod{Namespace: "bench", Name: name, Cgroup: group, Labels: map[string]string{"qos-agent.io/class": class}}
		if _, err := s.start(group, work.Pulse(50*time.Microsecond, 50*time.Millisecond)); err != nil {
			return err
		}
	}
	o, err := s.options("  mode: enforce\n")
	if err != nil {
		return err
	}
	return daemon.WriteStaticPods(o.StaticPods, pods...)
}

func (c *costCmd) row(ctx context.Context, s *site, n int, interval time.Duration) (costRow, error) {
	row := costRow{Containers: n, IntervalMS: interval.Seconds() * 1e3}
	o, err := s.options("  mode: enforce\n")
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
	if err := sleep(ctx, 3*time.Second); err != nil { // start-up is not steady state
		return row, err
	}
	first, err := d.State(ctx)
	if err != nil {
		return row, err
	}
	mallocs, err := metric(ctx, d, "go_memstats_mallocs_total")
	if err != nil {
		return row, err
	}
	var cpu []float64
	nextScrape := time.Now().Add(c.Scrape)
	for range c.Windows {
		before, err := work.ProcessCPU(d.PID())
		if err != nil {
			return row, err
		}
		start := time.Now()
		for time.Since(start) < c.Window {
			if err := sleep(ctx, min(c.Window-time.Since(start), max(0, time.Until(nextScrape)))); err != nil {
				return row, err
			}
			if !time.Now().Before(nextScrape) {
				if _, _, err := d.Get(ctx, "/metrics"); err != nil {
					return row, err
				}
				nextScrape = nextScrape.Add(c.Scrape)
			}
		}
		after, err := work.ProcessCPU(d.PID())
		if err != nil {
			return row, err
		}
		cpu = append(cpu, 100*(after-before).Seconds()/time.Since(start).Seconds())
	}
	last, err := d.State(ctx)
	if err != nil {
		return row, err
	}
	mallocsAfter, err := metric(ctx, d, "go_memstats_mallocs_total")
	if err != nil {
		return row, err
	}
	slices.Sort(cpu)
	row.CPUPercent, row.CPUPercentMin, row.CPUPercentMax = cpu[len(cpu)/2], cpu[0], cpu[len(cpu)-1]
	row.AllocsPerTick = (mallocsAfter - mallocs) / float64(max(1, last.Loop.Ticks-first.Loop.Ticks))
	row.TickP50US, row.TickP99US = last.Loop.Tick.P50Seconds*1e6, last.Loop.Tick.P99Seconds*1e6
	if row.RSSMiB, err = rss(d.PID()); err != nil {
		return row, err
	}
	return row, d.Stop(ctx)
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
