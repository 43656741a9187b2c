package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/histogram"
	"github.com/qos-agent/qos-agent/test/work"
)

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

// slowdown is what a bench takes bare and under each tool.
type slowdown struct {
	Rounds   int                `json:"rounds"`
	Unit     string             `json:"unit"`
	Took     map[string]summary `json:"took"`
	Slowdown map[string]float64 `json:"slowdown"` // 0.05: 5 % slower than bare, by medians
}

type summary struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// bpf is what the measurements share: a victim's group and a competitor's.
type bpf struct {
	*lab.Lab
	tools          []tool
	victim, others string
	load           []*work.Process
}

const victimSlot, otherSlot = ebpf.FirstSlot, ebpf.FirstSlot + 1

// knownTools are the public programs that the agent's are held against: command, and Debian's package.
var knownTools = []tool{
	{"runqlat", "libbpf-tools", []string{"3600", "1"}},
	{"runqlat.bt", "bpftrace", nil},
}

type tool struct {
	name, pkg string
	args      []string
}

// measureBPF does all three, interleaved where they are compared.
func measureBPF(ctx context.Context, l *lab.Lab, seconds, rounds int, r *result) (err error) {
	for _, need := range [][2]string{{"runqlat", "libbpf-tools"}, {"perf", "linux-perf"}, {"taskset", "util-linux"}} {
		if _, err := online.Find(need[0], need[1]); err != nil {
			return err
		}
	}
	b := &bpf{Lab: l}
	defer b.stop()
	// libbpf-tools' is the measure; bpftrace's needs more of a machine and is left out where it does not run.
	r.NotRun = map[string]string{}
	for _, t := range knownTools {
		cmd, err := startTool(t)
		switch {
		case err == nil:
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			b.tools = append(b.tools, t)
		case t.name == "runqlat":
			return err
		default:
			r.NotRun[t.name] = err.Error()
			fmt.Printf("%s is left out: %v\n", t.name, err)
		}
	}
	if b.victim, err = l.Tree.Make("victim"); err != nil {
		return err
	}
	if b.others, err = l.Tree.Make("others"); err != nil {
		return err
	}
	window := time.Duration(seconds) * time.Second
	if r.Agreement, err = b.agreement(window); err != nil {
		return fmt.Errorf("agreement: %w", err)
	}
	if r.Cost, err = b.costs(ctx); err != nil {
		return fmt.Errorf("cost: %w", err)
	}
	if r.Pipe, err = b.slowdown(ctx, rounds, b.pipeOnce); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	if r.Messaging, err = b.slowdown(ctx, rounds, b.messagingOnce); err != nil {
		return fmt.Errorf("messaging: %w", err)
	}
	contention := r.Cost[0].NS
	r.OursNS, r.RunqlatNS, r.PipeSlowdown = contention[ours].Median, contention["runqlat"].Median, r.Pipe.Slowdown[ours]
	return nil
}

func (b *bpf) start(group string, loads ...work.Load) error {
	for _, l := range loads {
		p, err := work.Start(l, b.Tree.Joiner(group))
		if err != nil {
			return err
		}
		b.load = append(b.load, p)
	}
	return nil
}

func (b *bpf) stop() {
	for _, p := range b.load {
		p.Stop()
	}
	b.load = nil
}

// trace loads our programs with both groups tracked.
func (b *bpf) trace(stats bool) (*ebpf.Tracer, error) {
	t, err := ebpf.Load(ebpf.Options{RunStats: stats})
	if err != nil {
		return nil, err
	}
	for group, slot := range map[string]ebpf.Slot{b.victim: victimSlot, b.others: otherSlot} {
		id, err := b.H.ID(group)
		if err == nil {
			err = t.Track(id, slot, slot == victimSlot)
		}
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

// A tool needs attachPatience at most to load its programs, and attachTime from its first one to all of them.
const (
	attachPatience = 20 * time.Second
	attachTime     = 500 * time.Millisecond
)

func (b *bpf) agreement(window time.Duration) (a agreement, err error) {
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

// startTool traces everything, as an operator would, until it is killed. It returns when the tool's programs have been there for a
// moment.
func startTool(t tool) (*exec.Cmd, error) {
	path, err := online.Find(t.name, t.pkg)
	if err != nil {
		return nil, err
	}
	before, err := settledPrograms()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command(path, t.args...)
	if strings.HasSuffix(t.name, ".bt") {
		if cmd, err = bpftrace(path); err != nil {
			return nil, err
		}
	}
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for start := time.Now(); time.Since(start) < attachPatience; time.Sleep(50 * time.Millisecond) {
		n, err := countPrograms()
		if err == nil && n > before {
			time.Sleep(attachTime)
			return cmd, nil
		}
		if syscall.Kill(cmd.Process.Pid, 0) != nil || ended(cmd.Process.Pid) {
			break
		}
	}
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // says that it was killed
	return nil, fmt.Errorf("%s loads no program: %s", t.name, strings.TrimSpace(said.String()))
}

// bpftrace runs a script of bpftrace's. The one thing that runqlat.bt wants of a kernel header, which Debian's bpftrace cannot parse on newer
// kernels, is a constant.
func bpftrace(script string) (*exec.Cmd, error) {
	if _, err := online.Find("bpftrace", "bpftrace"); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(script)
	if err != nil {
		return nil, err
	}
	program := strings.Replace(string(text), "#include <linux/sched.h>", "#define TASK_RUNNING 0", 1)
	return lab.Bpftrace(program), nil
}

// ended reports whether a child has ended and waits to be waited for.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(text, []byte(") Z "))
}

// settledPrograms counts the programs once those of a tool that has just ended are gone, which takes the kernel a moment.
func settledPrograms() (n int, err error) {
	for i, last, same := 0, -1, 0; same < 5 && i < 50; i++ {
		if n, err = countPrograms(); err != nil {
			return n, err
		}
		if n != last {
			last, same = n, 0
		}
		same++
		time.Sleep(100 * time.Millisecond)
	}
	return n, nil
}

func countPrograms() (n int, err error) {
	err = programs(func(cilium.ProgramID, *cilium.Program) error { n++; return nil })
	return n, err
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
func (b *bpf) pipeArgs(loops int) []string {
	procs := b.Tree.File(cgroup.CPU, b.victim, "cgroup.procs")
	cpu := runtime.NumCPU() - 1
	return []string{"-c", fmt.Sprintf("echo $$ > %s && exec taskset -c %d perf bench -f simple sched pipe -l %d", procs, cpu, loops)}
}

// pipeOnce is the time of one round trip in µs.
func (b *bpf) pipeOnce() (float64, error) {
	const loops = 150_000
	out, err := exec.Command("sh", b.pipeArgs(loops)...).Output()
	if err != nil {
		return 0, fmt.Errorf("perf bench: %w", err)
	}
	s, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return s * 1e6 / loops, err
}

// messagingOnce is the time of groups of processes that send each other messages, in ms.
func (b *bpf) messagingOnce() (float64, error) {
	procs := b.Tree.File(cgroup.CPU, b.victim, "cgroup.procs")
	out, err := exec.Command("sh", "-c", fmt.Sprintf("echo $$ > %s && exec perf bench -f simple sched messaging -g 2 -l 400", procs)).Output()
	if err != nil {
		return 0, fmt.Errorf("perf bench: %w", err)
	}
	s, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return s * 1e3, err
}

// slowdown compares bare, the agent's programs (with the bench's own group as a tracked victim) and the tools, in turns that change with
// each round.
func (b *bpf) slowdown(ctx context.Context, rounds int, once func() (float64, error)) (d slowdown, err error) {
	d = slowdown{Rounds: rounds, Unit: "us per operation, or ms of a run", Took: map[string]summary{}, Slowdown: map[string]float64{}}
	took := map[string][]float64{}
	under := []string{"bare", ours}
	for _, t := range b.tools {
		under = append(under, t.name)
	}
	for round := range rounds {
		for k := range under {
			if err := ctx.Err(); err != nil {
				return d, err
			}
			name := under[(k+round)%len(under)]
			v, err := b.under(name, once)
			if err != nil {
				return d, err
			}
			took[name] = append(took[name], v)
		}
	}
	for name, v := range took {
		d.Took[name] = summarize(v)
	}
	for name, s := range d.Took {
		if name != "bare" {
			d.Slowdown[name] = s.Median/d.Took["bare"].Median - 1
		}
	}
	return d, nil
}

func (b *bpf) under(name string, once func() (float64, error)) (v float64, err error) {
	if name == ours {
		t, err := b.trace(false)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		return once()
	}
	for _, t := range b.tools {
		if t.name == name {
			cmd, err := startTool(t)
			if err != nil {
				return 0, err
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		}
	}
	return once()
}

func summarize(v []float64) summary {
	s := slices.Sorted(slices.Values(v))
	return summary{Min: s[0], Median: s[len(s)/2], Max: s[len(s)-1]}
}
