// Command bpfcost holds the run-queue programs against libbpf-tools' runqlat, which measures the same thing in another way:
//
//   - agreement: the waits of one process under contention, seen by both over the same seconds;
//   - cost: nanoseconds of BPF per sched_switch, by the kernel's own accounting, under the same load;
//   - pipe: how much a pinned `perf bench sched pipe`, the worst case with a switch every microsecond, is slowed down, in
//     interleaved rounds.
//
// It needs root and Debian's packages libbpf-tools, linux-perf and util-linux.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/histogram"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
	"golang.org/x/sys/unix"
)

func main() {
	work.MaybeRun()
	out := flag.String("out", "bench/results/bpfcost.json", "file for the results")
	seconds := flag.Int("seconds", 6, "length of the agreement and cost windows")
	rounds := flag.Int("rounds", 15, "rounds of the pipe bench")
	flag.Parse()
	if err := run(*out, *seconds, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bpfcost:", err)
		os.Exit(1)
	}
}

type result struct {
	Kernel    string    `json:"kernel"`
	CPUs      int       `json:"cpus"`
	Date      string    `json:"date"`
	Agreement agreement `json:"agreement"`
	Cost      []cost    `json:"cost"`
	Pipe      pipe      `json:"pipe"`
}

// agreement is in log2 buckets of microseconds: bucket n holds [2^n, 2^(n+1)) µs, bucket 0 everything below 2 µs.
type agreement struct {
	Ours        quantiles `json:"ours"`
	Runqlat     quantiles `json:"runqlat"`
	Neighbours  bool      `json:"same_or_neighbour"`
	OursWaits   uint64    `json:"ours_waits"`
	RunqlatWait uint64    `json:"runqlat_waits"`
}

type quantiles struct {
	P50 int `json:"p50_log2us"`
	P99 int `json:"p99_log2us"`
}

// cost is nanoseconds of all programs of a tool, divided by the number of switches.
type cost struct {
	Load             string  `json:"load"`
	SwitchesPerSec   float64 `json:"switches_per_second"`
	OursNSPerSwitch  float64 `json:"bpf_ns_per_switch"`
	RunqlatPerSwitch float64 `json:"runqlat_ns_per_switch"`
}

type pipe struct {
	Rounds      int     `json:"rounds"`
	BareUS      summary `json:"bare_us_per_op"`
	OursUS      summary `json:"ours_us_per_op"`
	RunqlatUS   summary `json:"runqlat_us_per_op"`
	OursPct     float64 `json:"ours_slowdown_percent"`
	RunqlatPct  float64 `json:"runqlat_slowdown_percent"`
	OfRunqlat   float64 `json:"ours_of_runqlat"` // our slow-down as a part of runqlat's
	OursTracked bool    `json:"ours_as_victim"`
}

type summary struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// bench is what the three measurements share: a victim's group and a competitor's.
type bench struct {
	tree           *groups.Tree
	h              *cgroup.Hierarchy
	victim, others string
	load           []*work.Process
}

const victimSlot, otherSlot = ebpf.FirstSlot, ebpf.FirstSlot + 1

func run(out string, seconds, rounds int) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root")
	}
	for _, tool := range []string{"runqlat", "perf", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs the command %s (Debian: libbpf-tools, linux-perf, util-linux): %w", tool, err)
		}
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-bench-%d", os.Getpid()))
	if err != nil {
		return err
	}
	b := &bench{tree: tree, h: h}
	defer func() {
		b.stop()
		err = errors.Join(err, tree.Remove())
	}()
	if b.victim, err = tree.Make("victim"); err != nil {
		return err
	}
	if b.others, err = tree.Make("others"); err != nil {
		return err
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty if it cannot be read: then nobody knows the kernel
	r := result{Kernel: strings.TrimSpace(string(release)), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly)}
	window := time.Duration(seconds) * time.Second
	if r.Agreement, err = b.agreement(window); err != nil {
		return fmt.Errorf("agreement: %w", err)
	}
	for _, l := range []string{"contention", "pipe"} {
		c, err := b.cost(l, window)
		if err != nil {
			return fmt.Errorf("cost: %w", err)
		}
		r.Cost = append(r.Cost, c)
	}
	if r.Pipe, err = b.pipe(rounds); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	r.print()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

func (b *bench) start(group string, loads ...work.Load) error {
	for _, l := range loads {
		p, err := work.Start(l)
		if err != nil {
			return err
		}
		b.load = append(b.load, p)
		if err := b.tree.Join(group, p.PID()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) stop() {
	for _, p := range b.load {
		p.Stop()
	}
	b.load = nil
}

// contend makes a victim that works two thirds of the time beside three groups' worth of spinning.
func (b *bench) contend() error {
	if err := b.start(b.victim, work.Pulse(2*time.Millisecond, time.Millisecond).On(0)); err != nil {
		return err
	}
	return b.start(b.others, work.Spin.On(0), work.Spin.On(0), work.Pulse(100*time.Microsecond, 100*time.Microsecond).On(0))
}

// trace loads our programs with both groups tracked.
func (b *bench) trace(stats bool) (*ebpf.Tracer, error) {
	t, err := ebpf.Load(ebpf.Options{RunStats: stats})
	if err != nil {
		return nil, err
	}
	for group, slot := range map[string]ebpf.Slot{b.victim: victimSlot, b.others: otherSlot} {
		id, err := b.h.ID(group)
		if err == nil {
			err = t.Track(id, slot, slot == victimSlot)
		}
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

// attachTime is what runqlat needs to load; its own window begins after that.
const attachTime = 2 * time.Second

func (b *bench) agreement(window time.Duration) (a agreement, err error) {
	if err := b.contend(); err != nil {
		return a, err
	}
	defer b.stop()
	t, err := b.trace(false)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()

	// runqlat begins to count when it is loaded and prints after its interval, so both see all of the middle and differ in moments at the edges.
	var out bytes.Buffer
	cmd := exec.Command("runqlat", "-p", strconv.Itoa(b.load[0].PID()), strconv.Itoa(int(window.Seconds())), "1")
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return a, err
	}
	var before, after ebpf.Wait
	t.Wait(victimSlot, &before)
	if err := cmd.Wait(); err != nil {
		return a, fmt.Errorf("runqlat: %w", err)
	}
	t.Wait(victimSlot, &after)
	var ours histogram.Counts
	for i := range ours {
		ours[i] = after.Hist[i] - before.Hist[i]
	}
	theirs, err := parseRunqlat(out.String())
	if err != nil {
		return a, err
	}
	a.OursWaits, a.Ours = ours.Total(), quantiles{log2us(ours, 0.5), log2us(ours, 0.99)}
	a.Runqlat = quantiles{bucketAt(theirs, 0.5), bucketAt(theirs, 0.99)}
	for _, n := range theirs {
		a.RunqlatWait += n
	}
	a.Neighbours = near(a.Ours.P50, a.Runqlat.P50) && near(a.Ours.P99, a.Runqlat.P99)
	return a, nil
}

func near(a, b int) bool { return a-b <= 1 && b-a <= 1 }

func log2us(c histogram.Counts, q float64) int {
	d, _ := c.Quantile(q)
	return max(0, bits.Len64(uint64(d.Microseconds()))-1)
}

var runqlatLine = regexp.MustCompile(`(?m)^\s*(\d+)\s*->\s*(\d+)\s*:\s*(\d+)`)

// parseRunqlat gives the counts of runqlat's log2 buckets of microseconds.
func parseRunqlat(text string) ([]uint64, error) {
	var out []uint64
	for _, m := range runqlatLine.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseUint(m[3], 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("runqlat printed no histogram: %q", text)
	}
	return out, nil
}

func bucketAt(counts []uint64, q float64) int {
	var total, below uint64
	for _, n := range counts {
		total += n
	}
	for i, n := range counts {
		if below += n; float64(below) >= q*float64(total) {
			return i
		}
	}
	return len(counts) - 1
}

// cost runs one load under ours and then under runqlat, with the kernel's accounting of BPF run time on.
func (b *bench) cost(load string, window time.Duration) (c cost, err error) {
	c.Load = load
	start := b.contend
	if load == "pipe" {
		start = func() error { return b.startPipe() }
	}
	if err := start(); err != nil {
		return c, err
	}
	defer b.stop()
	t, err := b.trace(true)
	if err != nil {
		return c, err
	}
	var before, after ebpf.Stats
	if err := t.Stats(&before); err != nil {
		return c, errors.Join(err, t.Close())
	}
	time.Sleep(window)
	err = errors.Join(t.Stats(&after), t.Close())
	if err != nil {
		return c, err
	}
	var ns, switches uint64
	for i := range after.Programs {
		ns += after.Programs[i].RunNS - before.Programs[i].RunNS
		if strings.Contains(after.Programs[i].Name, "switch") {
			switches += after.Programs[i].Runs - before.Programs[i].Runs
		}
	}
	if switches == 0 {
		return c, fmt.Errorf("no program of a switch ran: %+v", after.Programs)
	}
	c.SwitchesPerSec, c.OursNSPerSwitch = float64(switches)/window.Seconds(), float64(ns)/float64(switches)
	c.RunqlatPerSwitch, err = runqlatCost(window)
	return c, err
}

// runqlatCost is what runqlat's programs take on whatever the machine does now.
func runqlatCost(window time.Duration) (float64, error) {
	on, err := cilium.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, err
	}
	defer on.Close()
	known := map[cilium.ProgramID]bool{}
	if err := programs(func(id cilium.ProgramID, _ *cilium.Program) error { known[id] = true; return nil }); err != nil {
		return 0, err
	}
	cmd, err := startRunqlat()
	if err != nil {
		return 0, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	read := func() (ns, switches uint64, err error) {
		err = programs(func(id cilium.ProgramID, p *cilium.Program) error {
			if known[id] {
				return nil
			}
			info, err := p.Info()
			if err != nil {
				return err
			}
			stats, err := p.Stats()
			if err != nil {
				return err
			}
			ns += uint64(stats.Runtime)
			if strings.Contains(info.Name, "switch") {
				switches += stats.RunCount
			}
			return nil
		})
		return
	}
	ns0, sw0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(window)
	ns1, sw1, err := read()
	if err != nil {
		return 0, err
	}
	if sw1 == sw0 {
		return 0, errors.New("runqlat's program of switches did not run")
	}
	return float64(ns1-ns0) / float64(sw1-sw0), nil
}

// startRunqlat traces everything, as an operator would, until it is killed.
func startRunqlat() (*exec.Cmd, error) {
	cmd := exec.Command("runqlat", "3600", "1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	time.Sleep(attachTime)
	return cmd, nil
}

// programs calls fn for every BPF program of the machine.
func programs(fn func(cilium.ProgramID, *cilium.Program) error) error {
	for id := cilium.ProgramID(0); ; {
		next, err := cilium.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		id = next
		p, err := cilium.NewProgramFromID(id)
		if err != nil {
			continue // it is gone by now
		}
		err = errors.Join(fn(id, p), p.Close())
		if err != nil {
			return err
		}
	}
}

// pipeArgs is the pipe bench on the last CPU, in the victim's group.
func (b *bench) pipeArgs(loops int) []string {
	procs := b.tree.File(cgroup.CPU, b.victim, "cgroup.procs")
	cpu := runtime.NumCPU() - 1
	return []string{"-c", fmt.Sprintf("echo $$ > %s && exec taskset -c %d perf bench -f simple sched pipe -l %d", procs, cpu, loops)}
}

// startPipe runs the pipe bench without end; stop ends it with the rest of the tree's loads.
func (b *bench) startPipe() error {
	cmd := exec.Command("sh", b.pipeArgs(1<<30)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.load = append(b.load, work.Adopt(cmd))
	time.Sleep(300 * time.Millisecond)
	return nil
}

// pipeOnce is the time of one round trip in µs.
func (b *bench) pipeOnce() (float64, error) {
	const loops = 150_000
	out, err := exec.Command("sh", b.pipeArgs(loops)...).Output()
	if err != nil {
		return 0, fmt.Errorf("perf bench: %w", err)
	}
	s, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return s * 1e6 / loops, err
}

// pipe compares bare, ours (with the bench's own group as a tracked victim) and runqlat, in turns that change with each round.
func (b *bench) pipe(rounds int) (p pipe, err error) {
	p.Rounds, p.OursTracked = rounds, true
	var us [3][]float64
	for round := range rounds {
		for k := range 3 {
			k = (k + round) % 3
			v, err := b.under(k)
			if err != nil {
				return p, err
			}
			us[k] = append(us[k], v)
		}
	}
	p.BareUS, p.OursUS, p.RunqlatUS = summarize(us[0]), summarize(us[1]), summarize(us[2])
	p.OursPct = 100 * (p.OursUS.Median/p.BareUS.Median - 1)
	p.RunqlatPct = 100 * (p.RunqlatUS.Median/p.BareUS.Median - 1)
	p.OfRunqlat = p.OursPct / p.RunqlatPct
	return p, nil
}

func (b *bench) under(k int) (us float64, err error) {
	switch k {
	case 1:
		t, err := b.trace(false)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
	case 2:
		cmd, err := startRunqlat()
		if err != nil {
			return 0, err
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	}
	return b.pipeOnce()
}

func summarize(v []float64) summary {
	s := slices.Sorted(slices.Values(v))
	return summary{Min: s[0], Median: s[len(s)/2], Max: s[len(s)-1]}
}

func (r *result) print() {
	a := r.Agreement
	fmt.Printf("kernel %s, %d CPUs, %s\n\n", r.Kernel, r.CPUs, r.Date)
	fmt.Printf("agreement with runqlat (log2 buckets of µs): p50 %d and %d, p99 %d and %d; same or neighbour: %v (%d and %d waits)\n\n",
		a.Ours.P50, a.Runqlat.P50, a.Ours.P99, a.Runqlat.P99, a.Neighbours, a.OursWaits, a.RunqlatWait)
	fmt.Printf("%-12s %12s %18s %18s\n", "load", "switches/s", "ours ns/switch", "runqlat ns/switch")
	for _, c := range r.Cost {
		fmt.Printf("%-12s %12.0f %18.1f %18.1f\n", c.Load, c.SwitchesPerSec, c.OursNSPerSwitch, c.RunqlatPerSwitch)
	}
	p := r.Pipe
	fmt.Printf("\nperf bench sched pipe, µs/op, median (min - max) of %d interleaved rounds\n", p.Rounds)
	for _, row := range []struct {
		name string
		s    summary
	}{{"bare", p.BareUS}, {"ours", p.OursUS}, {"runqlat", p.RunqlatUS}} {
		fmt.Printf("  %-8s %.3f (%.3f - %.3f)\n", row.name, row.s.Median, row.s.Min, row.s.Max)
	}
	fmt.Printf("  slowed down by %.1f %% with ours, %.1f %% with runqlat: %.2f of it\n", p.OursPct, p.RunqlatPct, p.OfRunqlat)
}
