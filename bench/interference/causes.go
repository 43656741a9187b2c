package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/online"
)

// causesResult tells what the service waits for beside each kind of work, unprotected and under the default policy.
type causesResult struct {
	lab.Machine
	Online  string      `json:"online"`
	Load    string      `json:"load"`
	Seconds float64     `json:"seconds"` // of each view
	Rows    []causesRow `json:"rows"`
	Writing []causesRow `json:"writing"` // ways to write to a disk, at low load
}

// causesRow is one kind of work under one protection. Durations per second are in ms, summed over threads or CPUs.
type causesRow struct {
	Offline    string  `json:"offline"`    // "" for none
	Protection string  `json:"protection"` // none: the agent only watches
	P99US      float64 `json:"p99_us"`     // of requests, while nobody traced
	LateUS     float64 `json:"generator_late_p99_us"`
	TracedUS   float64 `json:"p99_traced_us"`
	Work       float64 `json:"offline_per_second"`

	Agent agentView `json:"agent"`
	Trace traceView `json:"bpftrace"`
}

// agentView is what the agent says.
type agentView struct {
	WaitP99US float64            `json:"wait_p99_us"`
	WaitMS    float64            `json:"wait_ms_per_second"`
	BehindMS  map[string]float64 `json:"behind_ms_per_second"` // of the longer waits: who ran meanwhile
}

// traceView is what causes.bt says of the same seconds.
type traceView struct {
	WaitP99US   float64 `json:"wait_p99_us"` // from a log2 histogram
	WaitMS      float64 `json:"wait_ms_per_second"`
	BlockedMS   float64 `json:"blocked_ms_per_second"` // asleep and not to be interrupted
	LockMS      float64 `json:"lock_ms_per_second"`    // for contended locks
	OtherLockMS float64 `json:"others_lock_ms_per_second"`
	SoftirqMS   float64 `json:"softirq_ms_per_second"`
	SoftirqUS   float64 `json:"softirq_longest_us"`
	HardirqMS   float64 `json:"hardirq_ms_per_second"`
	HardirqUS   float64 `json:"hardirq_longest_us"`
	KworkerMS   float64 `json:"kworker_ms_per_second"` // writeback and block device among it
	DiskP99US   float64 `json:"disk_p99_us"`
	DiskPerSec  float64 `json:"disk_requests_per_second"`
	// LateP99US and LateP999US are how late real-time threads wake up, which wait for the kernel only; HeldMS is for how long, in waits of more than 200
	// us, by who ran and what the kernel did for it. BehindMS is who ran last of such waits of the service.
	LateP99US  float64            `json:"realtime_late_p99_us"`
	LateP999US float64            `json:"realtime_late_p999_us"`
	HeldMS     map[string]float64 `json:"held_ms_per_second"`
	BehindMS   map[string]float64 `json:"long_waits_behind_ms_per_second"`
}

//go:embed causes.bt
var causesProgram string

// causesKinds are those that were seen to get through the posture, and one that does not.
var causesKinds = []string{"cpu", "fork", "mmap", "switch", "hdd", "compile"}

// Run measures. What it does not measure this time stays in the file.
func (c causesCmd) Run(ctx context.Context, o *options) (err error) {
	if err := o.choose(nil, []string{"nginx"}, nil, causesKinds); err != nil {
		return err
	}
	if _, err := online.Find("bpftrace", "bpftrace"); err != nil {
		return err
	}
	bin, remove, err := build()
	if err != nil {
		return err
	}
	defer remove()
	o.services = o.services[:1]
	r, err := newRig(ctx, *o, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	s := r.services[o.services[0].Name]
	if err := s.Connect(o.Seed); err != nil {
		return err
	}
	var out causesResult
	lab.ReadResult(o.Out, "causes.json", &out)
	out.Machine, out.Online, out.Seconds = lab.ThisMachine(), s.Name, causesSeconds
	if c.Part != "writing" {
		l := levels[1]
		out.Load, out.Rows = l.name, nil
		for _, k := range append([]offline{{}}, o.offlines...) {
			for _, p := range []protection{{name: none, agent: true, mode: "observe"}, {name: theAgent, agent: true}} {
				row, err := r.causes(ctx, s, l, cell{k, p})
				if err != nil {
					return fmt.Errorf("%s under %s: %w", k.name, p.name, err)
				}
				out.Rows = append(out.Rows, *row)
			}
		}
	}
	if c.Part != "kinds" {
		if out.Writing, err = r.waysOfWriting(ctx, s, levels[0]); err != nil {
			return err
		}
	}
	out.print(os.Stdout)
	return lab.WriteResult(o.Out, "causes.json", out)
}

// causesSeconds is the length of each of the two views: the service alone watched by nobody but the agent, and by bpftrace too.
const causesSeconds = 3

// causes measures one row.
func (r *rig) causes(ctx context.Context, s *online.Service, l level, c cell) (_ *causesRow, err error) {
	x, err := r.begin(ctx, s, l, c, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.end(ctx)) }()
	row := &causesRow{Offline: c.offline.name, Protection: c.protection.name}
	if err := lab.Sleep(ctx, r.o.Settle); err != nil {
		return nil, err
	}
	if row.P99US, row.LateUS, err = requests(ctx, s, causesSeconds); err != nil {
		return nil, err
	}
	trace, err := startTrace(ctx, causesSeconds)
	if err != nil {
		return nil, err
	}
	defer trace.kill()
	before, err := x.guard.blame(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if _, err := s.Client.Collect(); err != nil {
		return nil, err
	}
	var p99, waits []float64
	for range causesSeconds {
		if err := lab.Sleep(ctx, time.Second); err != nil {
			return nil, err
		}
		st, err := x.guard.agent.State(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range st.Pods {
			for _, k := range p.Containers {
				if w := k.Signals.Wait; p.Cgroup == s.Group && w != nil && w.SpanSeconds > 0 {
					p99, waits = append(p99, w.P99Seconds*1e6), append(waits, w.SumSeconds*1e3/w.SpanSeconds)
				}
			}
		}
	}
	row.Agent = agentView{WaitP99US: load.Median(p99), WaitMS: load.Median(waits), BehindMS: map[string]float64{}}
	after, err := x.guard.blame(ctx)
	if err != nil {
		return nil, err
	}
	for who, seconds := range after {
		if ms := (seconds - before[who]) * 1e3 / time.Since(start).Seconds(); ms > 0 {
			row.Agent.BehindMS[who] = ms
		}
	}
	w, err := s.Client.Collect()
	if err != nil {
		return nil, err
	}
	row.TracedUS = atLeast(w.P99, 0.99, w)
	if row.Trace, err = trace.result(); err != nil {
		return nil, err
	}
	if err := x.guard.lift(ctx); err != nil {
		return nil, err
	}
	row.Work, err = x.work.stop(r.Tree, x.group)
	return row, err
}

// requests is the median over windows of a fifth of a second of their p99, us, and of how late the generator was.
func requests(ctx context.Context, s *online.Service, seconds int) (p99, late float64, err error) {
	if _, err := s.Client.Collect(); err != nil {
		return 0, 0, err
	}
	var all, lates []float64
	for range 5 * seconds {
		if err := lab.Sleep(ctx, 200*time.Millisecond); err != nil {
			return 0, 0, err
		}
		w, err := s.Client.Collect()
		if err != nil {
			return 0, 0, err
		}
		all, lates = append(all, atLeast(w.P99, 0.99, w)), append(lates, w.Self.LateP99)
	}
	return load.Median(all), load.Median(lates), nil
}

// tracing is bpftrace at work.
type tracing struct {
	cmd     *exec.Cmd
	seconds int
	out     *bufio.Scanner
	said    strings.Builder
}

// startTrace returns once the probes are attached. The program ends by itself.
func startTrace(ctx context.Context, seconds int) (*tracing, error) {
	const highest = 99 // a task of this priority in the real-time class has 0 as the kernel counts
	program := strings.NewReplacer("SECONDS", strconv.Itoa(seconds), "RT", strconv.Itoa(highest-stallRT)).Replace(causesProgram)
	t := &tracing{cmd: lab.Bpftrace(program, "-f", "json"), seconds: seconds}
	t.cmd.Stderr = &t.said
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	late := time.AfterFunc(time.Minute, func() { _ = t.cmd.Process.Kill() })
	defer late.Stop()
	t.out = bufio.NewScanner(pipe)
	t.out.Buffer(nil, 1<<20)
	for t.out.Scan() {
		if strings.Contains(t.out.Text(), `"begun"`) {
			return t, ctx.Err()
		}
	}
	t.kill()
	return nil, fmt.Errorf("bpftrace attaches nothing: %s", strings.TrimSpace(t.said.String()))
}

func (t *tracing) kill() {
	_ = t.cmd.Process.Kill() // it may have ended
	_ = t.cmd.Wait()         // says how, or that it was waited for
}

// bucket is one of a histogram of bpftrace's; Max is missing in the last.
type bucket struct {
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	Count float64 `json:"count"`
}

// result reads what the program prints when it ends.
func (t *tracing) result() (v traceView, err error) {
	sums, hists, keyed := map[string]float64{}, map[string][]bucket{}, map[string]map[string]float64{}
	for t.out.Scan() {
		var line struct {
			Type string                     `json:"type"`
			Data map[string]json.RawMessage `json:"data"`
		}
		if json.Unmarshal(t.out.Bytes(), &line) != nil {
			continue // of another shape
		}
		for name, text := range line.Data {
			switch line.Type {
			case "map":
				var n float64
				if json.Unmarshal(text, &n) == nil {
					sums[name] = n
					continue
				}
				var by map[string]float64
				if json.Unmarshal(text, &by) == nil {
					keyed[name] = by
				}
			case "hist":
				var b []bucket
				if err := json.Unmarshal(text, &b); err != nil {
					return v, fmt.Errorf("bpftrace: %s: %w", name, err)
				}
				hists[name] = b
			}
		}
	}
	if err := t.cmd.Wait(); err != nil {
		return v, fmt.Errorf("bpftrace: %w: %s", err, strings.TrimSpace(t.said.String()))
	}
	ms := func(name string) float64 { return sums[name] / 1e6 / float64(t.seconds) }
	by := func(name string, who func(key string) string) map[string]float64 {
		out := map[string]float64{}
		for key, ns := range keyed[name] {
			out[who(key)] += ns / 1e6 / float64(t.seconds)
		}
		return out
	}
	return traceView{
		LateP99US: quantile(hists["@late"], 0.99), LateP999US: quantile(hists["@late"], 0.999), HeldMS: by("@held", holder), BehindMS: by("@behind", task),
		WaitP99US: quantile(hists["@wait"], 0.99), WaitMS: ms("@wait_ns"), BlockedMS: ms("@blocked_ns"), LockMS: ms("@lock_ns"), OtherLockMS: ms("@other_lock_ns"),
		SoftirqMS: ms("@softirq_ns"), SoftirqUS: sums["@softirq_max"] / 1e3, HardirqMS: ms("@hardirq_ns"), HardirqUS: sums["@hardirq_max"] / 1e3,
		KworkerMS: ms("@kworker_ns"), DiskP99US: quantile(hists["@disk"], 0.99), DiskPerSec: count(hists["@disk"]) / float64(t.seconds),
	}, nil
}

// task is the name of a thread without the number by which kernel workers differ.
func task(comm string) string {
	if kind, _, ok := strings.Cut(comm, "/"); ok {
		return kind
	}
	return comm
}

// holder names who was interrupted, and what the kernel did for it: the work of a kernel worker, or the system call. key is the name of the thread
// and its stack in the kernel, innermost first.
func holder(key string) string {
	comm, stack, _ := strings.Cut(key, ",\n")
	inner := ""
	for line := range strings.Lines(stack) {
		f, _, _ := strings.Cut(strings.TrimSpace(line), "+")
		switch f {
		case "process_one_work", "do_syscall_64", "kthread", "do_idle":
			return task(comm) + ": " + strings.TrimPrefix(strings.TrimPrefix(inner, "__x64_sys_"), "ksys_")
		case "asm_exc_page_fault":
			return task(comm) + ": page fault"
		}
		inner = f
	}
	return task(comm)
}

func count(b []bucket) (n float64) {
	for _, v := range b {
		n += v.Count
	}
	return n
}

// quantile interpolates within a bucket.
func quantile(b []bucket, q float64) float64 {
	left := q * count(b)
	for _, v := range b {
		if left -= v.Count; left <= 0 && v.Count > 0 {
			return v.Min + (v.Count+left)/v.Count*max(0, v.Max+1-v.Min)
		}
	}
	return 0
}

func (r *causesResult) print(to io.Writer) {
	printWriting(to, r.Writing)
	fmt.Fprintf(to, "kernel %s, %s at %s load; ms a second, summed over threads or CPUs\n", r.Kernel, r.Online, r.Load)
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "beside\tunder\tp99 of requests (traced)\tagent: wait p99\twait\tbehind\tbpftrace: wait p99\twait\tblocked\tlocks (others)\tsoftirqs (longest)\tirqs (longest)\tkworkers\tdisk p99 (a second)\treal-time threads late: p99, p99.9\tbehind whom")
	for i := range r.Rows {
		c := &r.Rows[i]
		name := c.Offline
		if name == "" {
			name = "nothing"
		}
		a, b := &c.Agent, &c.Trace
		fmt.Fprintf(t, "%s\t%s\t%.1f (%.1f) ms\t%.0f us\t%.0f\t%s\t%.0f us\t%.0f\t%.1f\t%.1f (%.0f)\t%.0f (%.0f us)\t%.0f (%.0f us)\t%.0f\t%.1f ms (%.0f)\t%.0f, %.0f us\t%s\n",
			name, c.Protection, c.P99US/1e3, c.TracedUS/1e3, a.WaitP99US, a.WaitMS, shares(a.BehindMS), b.WaitP99US, b.WaitMS, b.BlockedMS, b.LockMS, b.OtherLockMS,
			b.SoftirqMS, b.SoftirqUS, b.HardirqMS, b.HardirqUS, b.KworkerMS, b.DiskP99US/1e3, b.DiskPerSec, b.LateP99US, b.LateP999US, largest(b.HeldMS))
	}
	t.Flush()
}

// shares is who ran while the service waited, the largest parts first.
func shares(behind map[string]float64) string {
	total := 0.0
	for _, ms := range behind {
		total += ms
	}
	var out []string
	for _, who := range byValue(behind)[:min(len(behind), 3)] {
		out = append(out, fmt.Sprintf("%s %.0f %%", who, 100*behind[who]/total))
	}
	return strings.Join(out, ", ")
}

// byValue is the keys, that of the largest value first.
func byValue(m map[string]float64) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), strings.Compare(a, b)) })
}
