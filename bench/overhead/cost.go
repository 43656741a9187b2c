package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/bench/scene"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/test/work"
	"golang.org/x/sys/unix"
)

const (
	costRounds = 5
	costWindow = 2 * time.Second
	targetNS   = 120 // per switch, attribution included

	ours  = "qos-agent"
	empty = "empty" // what the accounting itself takes
)

// cost is nanoseconds of all programs of a tool, divided by the number of switches.
type cost struct {
	Load           string             `json:"load"`
	SwitchesPerSec float64            `json:"switches_per_second"`
	NS             map[string]summary `json:"ns_per_switch"`
}

func (s summary) String() string { return fmt.Sprintf("%.0f (%.0f - %.0f)", s.Median, s.Min, s.Max) }

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

// costs measures under three loads: a victim whose waits are attributed, where switches are rare and all caches cold; the pipe bench,
// where they are as many as can be; and a service beside batch work of equal weight.
func (b *bpf) costs(ctx context.Context) (out []cost, err error) {
	for _, load := range []struct {
		name  string
		start func() (stop func(), err error)
	}{
		{"contention", func() (func(), error) { return b.stop, b.contend() }},
		{"pipe", func() (func(), error) { return b.stop, b.startPipe() }},
		{"nginx beside xz", func() (func(), error) { return b.startService(ctx) }},
	} {
		stop, err := load.start()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", load.name, err), b.Tree.Empty(b.others))
		}
		c, err := b.cost(ctx, load.name)
		stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", load.name, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// cost measures under the load that runs now, with the kernel's accounting of BPF run time on, in interleaved windows.
func (b *bpf) cost(ctx context.Context, load string) (cost, error) {
	seen := map[string][]float64{}
	var rate []float64
	for range costRounds {
		if err := ctx.Err(); err != nil {
			return cost{}, err
		}
		ns, switches, err := b.oursCost()
		if err != nil {
			return cost{}, err
		}
		seen[ours], rate = append(seen[ours], ns), append(rate, switches/costWindow.Seconds())
		if ns, err = emptyCost(); err != nil {
			return cost{}, err
		}
		seen[empty] = append(seen[empty], ns)
		for _, t := range b.tools {
			if ns, err = toolCost(t); err != nil {
				return cost{}, err
			}
			seen[t.name] = append(seen[t.name], ns)
		}
	}
	c := cost{Load: load, SwitchesPerSec: summarize(rate).Median, NS: map[string]summary{}}
	for name := range maps.Keys(seen) {
		c.NS[name] = summarize(seen[name])
	}
	return c, nil
}

func (b *bpf) oursCost() (perSwitch, switches float64, err error) {
	t, err := b.trace(true)
	if err != nil {
		return 0, 0, err
	}
	var before, after ebpf.Stats
	if err := t.Stats(&before); err != nil {
		return 0, 0, errors.Join(err, t.Close())
	}
	time.Sleep(costWindow)
	if err := errors.Join(t.Stats(&after), t.Close()); err != nil {
		return 0, 0, err
	}
	var ns, n uint64
	for i := range after.Programs {
		ns += after.Programs[i].RunNS - before.Programs[i].RunNS
		if strings.Contains(after.Programs[i].Name, "switch") {
			n += after.Programs[i].Runs - before.Programs[i].Runs
		}
	}
	if n == 0 {
		return 0, 0, fmt.Errorf("no program of a switch ran: %+v", after.Programs)
	}
	return float64(ns) / float64(n), float64(n), nil
}

// emptyCost is what a program that does nothing takes: the kernel reads its clock before and after each run, and counts half of that in.
func emptyCost() (perSwitch float64, err error) {
	on, err := cilium.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, err
	}
	defer on.Close()
	p, err := cilium.NewProgram(&cilium.ProgramSpec{
		Name: "empty_switch", Type: cilium.Tracing, AttachType: cilium.AttachTraceRawTp, AttachTo: "sched_switch", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	before, err := p.Stats()
	if err != nil {
		return 0, err
	}
	time.Sleep(costWindow)
	after, err := p.Stats()
	if err != nil {
		return 0, err
	}
	n := after.RunCount - before.RunCount
	if n == 0 {
		return 0, errors.New("a program at sched_switch did not run")
	}
	return float64(after.Runtime-before.Runtime) / float64(n), nil
}

// toolCost is what a tool's programs take on whatever the machine does now.
func toolCost(t tool) (float64, error) {
	on, err := cilium.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, err
	}
	defer on.Close()
	known := map[cilium.ProgramID]bool{}
	if err := programs(func(id cilium.ProgramID, _ *cilium.Program) error { known[id] = true; return nil }); err != nil {
		return 0, err
	}
	cmd, err := startTool(t)
	if err != nil {
		return 0, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	read := func() (ns, switches uint64, err error) {
		most := uint64(0)
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
			// bpftrace names no program; that of switches runs at least as often as those of wakeups.
			if strings.Contains(info.Name, "switch") {
				switches += stats.RunCount
			}
			most = max(most, stats.RunCount)
			return nil
		})
		if switches == 0 {
			switches = most
		}
		return
	}
	ns0, sw0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(costWindow)
	ns1, sw1, err := read()
	if err != nil {
		return 0, err
	}
	if sw1 == sw0 {
		return 0, fmt.Errorf("%s's program of switches did not run", t.name)
	}
	return float64(ns1-ns0) / float64(sw1-sw0), nil
}

// contend makes a victim that works two thirds of the time beside three groups' worth of spinning.
func (b *bpf) contend() error {
	if err := b.start(b.victim, work.Pulse(2*time.Millisecond, time.Millisecond).On(0)); err != nil {
		return err
	}
	return b.start(b.others, work.Spin.On(0), work.Spin.On(0), work.Pulse(100*time.Microsecond, 100*time.Microsecond).On(0))
}

// startPipe runs the pipe bench without end; stop ends it with the rest of the tree's loads.
func (b *bpf) startPipe() error {
	cmd := exec.Command("sh", b.pipeArgs(1<<30)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.load = append(b.load, work.Adopt(cmd))
	time.Sleep(300 * time.Millisecond)
	return nil
}

// startService makes nginx at half of what it carries the victim, beside xz at equal weight.
func (b *bpf) startService(ctx context.Context) (stop func(), err error) {
	web, err := online.Start(ctx, online.Kinds[0], b.Tree, b.Dir, runtime.NumCPU(), 1)
	if err != nil {
		return nil, err
	}
	if err = web.Connect(2); err == nil {
		err = web.SetLoad(0.5)
	}
	var batch *exec.Cmd
	if err == nil {
		batch, err = scene.Batch(b.Tree, b.others, b.Dir)
	}
	if err == nil {
		err = batch.Start()
	}
	if err != nil {
		web.Stop()
		return nil, err
	}
	victim := b.victim
	b.victim = web.Group
	return func() {
		b.victim = victim
		_ = b.Tree.Empty(b.others) // Remove, at the end, tries again and says why not
		_ = batch.Wait()           // says that it was killed
		web.Stop()
	}, nil
}
