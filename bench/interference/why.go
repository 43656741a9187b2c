package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"golang.org/x/sys/unix"
)

// whyResult tells by which way each kind of work gets through the posture. A real-time thread that wakes up every millisecond has to wait
// for nobody but the kernel: how late it is on the CPU where the work runs, as SCHED_IDLE, is how long the kernel does not let
// go of that CPU on behalf of the work (sections that cannot be pre-empted, interrupts, softirqs). How late it is on a CPU that the work
// must not use is what reaches other CPUs (interrupts, the hypervisor).
type whyResult struct {
	lab.Machine
	Seconds float64  `json:"seconds"`
	Preempt string   `json:"preemption"` // model of the kernel, as it said at its start
	Kinds   []whyRow `json:"kinds"`
}

type whyRow struct {
	Offline string   `json:"offline"` // "" for none
	Same    lateness `json:"same_cpu"`
	Other   lateness `json:"other_cpu"`
	// Both is how often both were late by more than 1 ms at the same moment: then no CPU ran, and the cause is outside of this machine.
	Both int `json:"both_over_1ms"`
	// WorkCPU is what the work used of its CPU.
	WorkCPU float64 `json:"offline_cpus"`
}

type lateness struct {
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p999_us"`
	Max  float64 `json:"max_us"`
	Over int     `json:"over_1ms"` // wake-ups that were later than that ...
	N    int     `json:"wakeups"`  // ... of so many
}

// Run measures.
func (whyCmd) Run(ctx context.Context, o *options) (err error) {
	if err := o.choose(nil, nil, nil, nil); err != nil {
		return err
	}
	if runtime.NumCPU() < 2 {
		return errors.New("needs two CPUs: one for the work and one to see what reaches others")
	}
	l, err := lab.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	m, err := prepare(l.Dir, l.Disk)
	if err != nil {
		return err
	}
	length := 4 * time.Second
	if o.Minutes > 0 {
		length = time.Duration(o.Minutes*float64(time.Minute)) / time.Duration(len(o.offlines)+1)
	}
	r := whyResult{Machine: lab.ThisMachine(), Seconds: length.Seconds(), Preempt: preemption()}
	for _, k := range append([]offline{{}}, o.offlines...) {
		row, err := why(ctx, l, m, k, length)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		r.Kinds = append(r.Kinds, row)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "kernel %s, preemption: %s\n", r.Kernel, r.Preempt)
	fmt.Fprintln(t, "a real-time thread wakes up late, us, beside\tsame CPU: p99\tp99.9\tmax\tover 1 ms\tother CPU: p99\tp99.9\tmax\tover 1 ms\tboth\tCPU of the work")
	for _, k := range r.Kinds {
		name := k.Offline
		if name == "" {
			name = "nothing"
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.0f\t%d of %d\t%.0f\t%.0f\t%.0f\t%d of %d\t%d\t%.2f\n", name, k.Same.P99, k.Same.P999, k.Same.Max, k.Same.Over, k.Same.N,
			k.Other.P99, k.Other.P999, k.Other.Max, k.Other.Over, k.Other.N, k.Both, k.WorkCPU)
	}
	t.Flush()
	return lab.WriteResult(o.Out, "why.json", r)
}

// why runs one kind of work as SCHED_IDLE on the first CPU and watches both it and the last.
func why(ctx context.Context, l *lab.Lab, m *materials, k offline, length time.Duration) (row whyRow, err error) {
	row.Offline = k.name
	group, err := l.Tree.Make("work")
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, l.Tree.RemoveGroup("work")) }()
	if err := errors.Join(l.Tree.Set(group, cgroup.Idle, cgroup.Value{N: 1}), l.Tree.Set(group, cgroup.CPUs, cgroup.Value{CPUs: span(0, 1)})); err != nil {
		return row, err
	}
	if k.name != "" {
		work, err := startOffline(k, m, l.Tree, group, 1)
		if err != nil {
			return row, err
		}
		defer work.abandon()
		if err := lab.Sleep(ctx, 500*time.Millisecond); err != nil {
			return row, err
		}
	}
	before, err := cpuTime(l, group)
	if err != nil {
		return row, err
	}
	same, other := make(chan []wakeup, 1), make(chan []wakeup, 1)
	go func() { same <- wakeups(0, length, wakeEvery) }()
	go func() { other <- wakeups(runtime.NumCPU()-1, length, wakeEvery) }()
	a, b := <-same, <-other
	row.Same, row.Other, row.Both = newLateness(a), newLateness(b), together(a, b)
	after, err := cpuTime(l, group)
	row.WorkCPU = (after - before).Seconds() / length.Seconds()
	if k.disk {
		_ = l.Tree.Empty(group) // RemoveGroup reports what stays
		settleDisks(3 * time.Second)
	}
	return row, errors.Join(err, ctx.Err())
}

// wakeups wakes up at intervals on a CPU, in a real-time class, and gives when it was due and by how much it was late. Its thread is left to
// the runtime as it was found: one that ended would take the processes with it that were started from it.
func wakeups(cpu int, length, every time.Duration) (out []wakeup) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	_ = unix.SchedGetaffinity(0, &all) // a failure leaves the thread where it is, which the figures show
	one.Set(cpu)
	_ = unix.SchedSetaffinity(0, &one)
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: stallRT}
	_ = unix.SchedSetAttr(0, &fifo, 0)
	defer func() {
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
		_ = unix.SchedSetaffinity(0, &all)
	}()
	out = make([]wakeup, 0, int(length/every)+1)
	start := int64(clock.System{}.Now())
	end := start + int64(length)
	step := int64(every)
	for due := start + step; due < end; due += step {
		ts := unix.NsecToTimespec(due)
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) // woken early shows as not late
		now := int64(clock.System{}.Now())
		out = append(out, wakeup{due, now})
		if behind := now - due; behind > step {
			due += behind / step * step // the wake-ups that were missed belong to the same stall
		}
	}
	return out
}

// wakeup is when it was due, and when it was, in ns of CLOCK_MONOTONIC.
type wakeup struct{ from, to int64 }

func (w wakeup) late() float64 { return float64(w.to-w.from) / 1e3 }

// together counts the wake-ups of a that were late by more than 1 ms while b was too.
func together(a, b []wakeup) (n int) {
	j := 0
	for _, w := range a {
		if w.late() <= 1000 {
			continue
		}
		for j < len(b) && b[j].to < w.from {
			j++
		}
		for k := j; k < len(b) && b[k].from < w.to; k++ {
			if b[k].late() > 1000 {
				n++
				break
			}
		}
	}
	return n
}

func newLateness(all []wakeup) (l lateness) {
	var us []float64
	for _, w := range all {
		us = append(us, w.late())
	}
	if len(us) == 0 {
		return l
	}
	slices.Sort(us)
	at := func(q float64) float64 { return us[min(len(us)-1, int(q*float64(len(us))))] }
	l = lateness{P99: at(0.99), P999: at(0.999), Max: us[len(us)-1], N: len(us)}
	for _, v := range us {
		if v > 1000 {
			l.Over++
		}
	}
	return l
}

// preemption is the kernel's model, as it said at its start; empty if its log does not say.
func preemption() string {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(buf[:n])) {
		if _, model, ok := strings.Cut(line, "Dynamic Preempt: "); ok {
			return strings.TrimSpace(model)
		}
	}
	return ""
}
