package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/qos-agent/qos-agent/bench/online"
)

// way is a way to write to a disk. Each lacks something that the plain one has, which tells what it is that hurts.
type way struct {
	name    string
	offline offline
	fixed   []setting
	workers string // the CPUs of the kernel's unbound workers, as a mask; "" leaves them as they are
}

func hdd(more ...string) offline {
	return stressNG("hdd", "ops/s", append([]string{"--hdd", "n", "--hdd-bytes", "256M"}, more...)...).writes()
}

// inMemory writes to a tmpfs: the same system calls and pages, no file system on a disk.
func inMemory(o offline) offline {
	command := o.command
	o.command = func(m *materials, cpus int) []string {
		return command(&materials{dir: m.dir, disk: filepath.Join(m.dir, memoryDir)}, cpus)
	}
	return o
}

// memoryDir is for what writes to memory, in the bench's directory.
const memoryDir = "written"

var writing = []way{
	{name: "nothing"},
	{name: "buffered", offline: hdd()},
	{name: "to a tmpfs", offline: inMemory(hdd())},
	{name: "O_DIRECT", offline: hdd("--hdd-opts", "direct")},
	{name: "in pieces here and there", offline: hdd("--hdd-opts", "wr-rnd")},
	{name: "buffered, on the last CPU", offline: hdd(), fixed: []setting{half()}},
	{name: "buffered, workers on the first CPU", offline: hdd(), workers: "1"},
}

// waysOfWriting measures each way beside the default policy.
func (r *rig) waysOfWriting(ctx context.Context, s *online.Service, l level) (rows []causesRow, err error) {
	dir := filepath.Join(r.Dir, memoryDir)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o1777)); err != nil {
		return nil, err
	}
	for _, w := range writing {
		row, err := r.way(ctx, s, l, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		row.Offline = w.name
		rows = append(rows, *row)
	}
	return rows, nil
}

func (r *rig) way(ctx context.Context, s *online.Service, l level, w way) (_ *causesRow, err error) {
	if w.workers != "" {
		undo, err := r.Change("/sys/devices/virtual/workqueue/cpumask", w.workers, os.Stderr)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, undo()) }()
	}
	return r.causes(ctx, s, l, cell{w.offline, protection{name: theAgent, agent: true, fixed: w.fixed}})
}

func printWriting(to io.Writer, rows []causesRow) {
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ways to write, default policy\tops/s\tp99 of requests (generator late)\tagent: wait p99\tbehind\treal-time threads late: p99\tp99.9\tbehind whom\tservice, waits over 200 us behind")
	for i := range rows {
		c := &rows[i]
		fmt.Fprintf(t, "%s\t%.0f\t%.2f (%.2f) ms\t%.0f us\t%s\t%.0f us\t%.0f us\t%s\t%s\n", c.Offline, c.Work, c.P99US/1e3, c.LateUS/1e3, c.Agent.WaitP99US,
			shares(c.Agent.BehindMS), c.Trace.LateP99US, c.Trace.LateP999US, largest(c.Trace.HeldMS), largest(c.Trace.BehindMS))
	}
	t.Flush()
}

// largest is the largest parts that are not next to nothing, ms a second.
func largest(by map[string]float64) string {
	var out []string
	for _, who := range byValue(by)[:min(3, len(by))] {
		if by[who] >= 0.1 {
			out = append(out, fmt.Sprintf("%s %.1f ms/s", who, by[who]))
		}
	}
	return strings.Join(out, ", ")
}
