// Command interference measures what offline work does to online services under several protections, on this machine, side by side:
//
//	full    every service at every load beside every kind of work
//	quick   a part of that, in a few minutes
//	again   the pairs above the target, measured again
//	knobs   each rung of the agent's ladder alone
//	why     by which way each kind of work gets through the posture
//	preempt what a writer of files does under each of the kernel's models of preemption, in an emulated machine
//	table   prints what a run has left, as Markdown
//	hold    one situation, held for other tools to look at
//
// It runs real services and real work in groups of its own, and leaves nothing behind.
package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

// options are what all commands take.
type options struct {
	Out     string        `default:"bench/results" help:"Directory for the results."`
	Seed    uint64        `default:"1" help:"Of arrivals and of the order of phases."`
	Minutes float64       `help:"Budget: as many rounds as fit, and the last one cut short at its end. 0: the command's default."`
	Settle  time.Duration `default:"500ms" help:"From the start of offline work to the first window."`
	Window  time.Duration `default:"200ms" help:"Length of a window."`
	Windows int           `default:"3" help:"Windows of a phase."`
	Online  []string      `help:"Only these services."`
	Load    []string      `help:"Only these loads (low, middle, high)."`
	Offline []string      `help:"Only these kinds of offline work."`
	Protect []string      `help:"Only these protections. Without none, throughput is not compared."`
	Append  bool          `help:"Take what an earlier run of the same command measured into account: measure in several sittings."`

	services    []online.Kind
	levels      []level
	offlines    []offline
	protections []protection
	// only are the pairs that are measured, whatever the protection; nil: all.
	only map[pairKey]bool
}

// pairKey is a service at a load beside a kind of work.
type pairKey struct{ online, load, offline string }

type cli struct {
	options
	Full    fullCmd    `cmd:"" help:"Every service at every load beside every kind of work."`
	Quick   quickCmd   `cmd:"" help:"A part of that."`
	Again   againCmd   `cmd:"" help:"The pairs above the target with the agent, measured again."`
	Knobs   knobsCmd   `cmd:"" help:"Each rung of the ladder alone."`
	Why     whyCmd     `cmd:"" help:"By which way each kind of work gets through the posture."`
	Causes  causesCmd  `cmd:"" help:"What the service waits for beside each kind of work: the agent's eyes and bpftrace's, side by side."`
	Preempt preemptCmd `cmd:"" help:"What a writer of files does to others under each model of preemption, on Debian's kernel in an emulated machine."`
	Guest   guestCmd   `cmd:"" hidden:""`
	Table   tableCmd   `cmd:"" help:"Print what a run has left, as Markdown."`
	Hold    holdCmd    `cmd:"" help:"Set up one situation and hold it, so that other tools can look at it."`
}

type (
	fullCmd   struct{}
	quickCmd  struct{}
	againCmd  struct{}
	knobsCmd  struct{}
	holdCmd   struct{}
	whyCmd    struct{}
	causesCmd struct {
		Part string `enum:"kinds,writing,all" default:"all" help:"Kinds of work at middle load, ways to write to a disk at low load, or both."`
	}
)

func main() {
	load.MaybeRun()
	work.MaybeRun()
	var c cli
	lab.Main("interference", &c, kong.Bind(&c.options))
}

// Run measures everything.
func (fullCmd) Run(ctx context.Context, o *options) error {
	return bench(ctx, o, "interference", 60, compared(), nil, nil, nil)
}

// Run measures a choice of pairs that shows each way in which offline work hurts.
func (quickCmd) Run(ctx context.Context, o *options) error {
	return bench(ctx, o, "quick", 4.5, compared(), []string{"nginx"}, nil, []string{"cpu", "memcpy", "fork", "mmap", "hdd", "compile"})
}

// Run measures the pairs that were above the target with the agent, with it and with the posture alone. What was bad by chance is not when it is measured
// again; what is bad again is so in earnest.
func (againCmd) Run(ctx context.Context, o *options) error {
	text, err := os.ReadFile(filepath.Join(o.Out, "interference.json"))
	if err != nil {
		return fmt.Errorf("nothing to measure again: %w", err)
	}
	var earlier result
	if err := json.Unmarshal(text, &earlier); err != nil {
		return fmt.Errorf("interference.json: %w", err)
	}
	o.only = map[pairKey]bool{}
	for _, p := range earlier.Pairs {
		if p.Protection == theAgent && p.Ratio > targetWorst && !p.TooNoisy {
			o.only[pairKey{p.Online, p.Load, p.Offline}] = true
		}
	}
	if o.Protect == nil {
		o.Protect = []string{"idle", theAgent}
	}
	return bench(ctx, o, "again", 4, compared(), nil, nil, nil)
}

// Run measures single knobs beside nginx.
func (knobsCmd) Run(ctx context.Context, o *options) error {
	return bench(ctx, o, "knobs", 15, rungs, []string{"nginx"}, []string{"low", "middle"}, nil)
}

// Run holds the first of what was asked for.
func (holdCmd) Run(ctx context.Context, o *options) (err error) {
	if err := o.choose(slices.Concat(compared(), rungs), nil, nil, nil); err != nil {
		return err
	}
	bin, remove, err := build()
	if err != nil {
		return err
	}
	defer remove()
	o.services, o.Windows, o.Window = o.services[:1], max(1, int(o.Minutes*60)), time.Second
	r, err := newRig(ctx, *o, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	s, l := r.services[o.services[0].Name], o.levels[0]
	fmt.Printf("%s (%s) at %s load beside %s under %s\n", s.Name, s.Group, l.name, o.offlines[0].name, o.protections[0].name)
	if err := s.Connect(o.Seed); err != nil {
		return err
	}
	rule, err := r.steady(ctx, s, l)
	if err != nil {
		return err
	}
	p, err := r.phase(ctx, s, l, cell{o.offlines[0], o.protections[0]}, rule)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(p)
}

// choose fills in what is measured. services, loads and work are the command's choice; nil is all.
func (o *options) choose(all []protection, services, loads, work []string) (err error) {
	o.services, err = choose("online service", online.Kinds, func(s online.Kind) string { return s.Name }, o.Online, services)
	if err == nil {
		o.levels, err = choose("load", levels, func(l level) string { return l.name }, o.Load, loads)
	}
	if err == nil {
		o.offlines, err = choose("offline work", offlines, func(k offline) string { return k.name }, o.Offline, work)
	}
	if err == nil {
		o.protections, err = choose("protection", all, func(p protection) string { return p.name }, o.Protect, nil)
	}
	return err
}

// build compiles the daemon, to be removed at the end.
func build() (bin string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "qos-agent-bench-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) } // what stays is a file in the temporary directory
	if bin, err = daemon.Build(dir); err != nil {
		remove()
	}
	return bin, remove, err
}

// bench measures and writes results.
func bench(ctx context.Context, o *options, name string, minutes float64, all []protection, services, loads, work []string) (err error) {
	if o.Minutes == 0 {
		o.Minutes = minutes
	}
	if err := o.choose(all, services, loads, work); err != nil {
		return err
	}
	raw := filepath.Join(o.Out, name+"-phases.jsonl.gz")
	var phases []*phase
	if o.Append {
		if phases, err = readPhases(raw); err != nil {
			return err
		}
	}
	before := len(phases)
	begin := time.Now()
	capacity := map[string]float64{}
	if o.Append {
		var earlier result
		text, err := os.ReadFile(filepath.Join(o.Out, name+".json"))
		if err == nil {
			err = json.Unmarshal(text, &earlier)
		}
		if err != nil {
			return fmt.Errorf("nothing to append to: %w", err)
		}
		capacity = earlier.Capacity
	}
	cut, err := measure(ctx, o, &phases, capacity)
	if len(phases) == before {
		return err
	}
	r := gather(*o, phases, capacity, time.Since(begin).Seconds())
	r.CutShort = cut
	if !counters() {
		r.NotRun[cpi2Style] = "this machine offers no hardware counters of cycles and instructions"
	}
	r.print(os.Stdout, *o)
	err = errors.Join(err, lab.WriteResult(o.Out, name+".json", r), writePhases(raw, phases))
	if o.only != nil {
		return err // a plot of a choice of pairs says nothing
	}
	return errors.Join(err, plots(o.Out, name, r, *o))
}

// choose takes the named ones out of all, in their order; nothing named is the default, and without one all.
func choose[T any](what string, all []T, name func(T) string, asked, byDefault []string) (out []T, err error) {
	if len(asked) == 0 {
		asked = byDefault
	}
	var known []string
	for _, v := range all {
		known = append(known, name(v))
		if len(asked) == 0 || slices.Contains(asked, name(v)) {
			out = append(out, v)
		}
	}
	for _, a := range asked {
		if !slices.Contains(known, a) {
			return nil, fmt.Errorf("no %s %q; there are %s", what, a, strings.Join(known, ", "))
		}
	}
	return out, nil
}

// agentStart is about how long the daemon takes to be ready and to leave, and phaseRest what a phase takes besides its windows.
const (
	agentStart = 500 * time.Millisecond
	phaseRest  = 400 * time.Millisecond
	setUp      = 10 * time.Second // building, starting services, calibrating
)

// block is one service at one load, and what is measured beside it.
type block struct {
	service string
	level   level
	cells   []cell
}

// blocks are all that there are.
func (o *options) blocks() (out []block) {
	for _, s := range o.services {
		for _, l := range o.levels {
			b := block{service: s.Name, level: l}
			for _, k := range o.offlines {
				for _, p := range o.protections {
					if o.only == nil || o.only[pairKey{s.Name, l.name, k.name}] {
						b.cells = append(b.cells, cell{k, p})
					}
				}
			}
			if len(b.cells) > 0 {
				out = append(out, b)
			}
		}
	}
	return out
}

// round is about how long one window of everything takes.
func (o *options) round() (sum time.Duration) {
	phase := o.Settle + time.Duration(o.Windows)*o.Window + phaseRest
	for _, b := range o.blocks() {
		sum += 2*time.Second + time.Duration(len(b.cells)+references(len(b.cells)))*phase
		for _, c := range b.cells {
			if c.protection.agent {
				sum += agentStart
			}
		}
	}
	return sum
}

// measure appends what it measures. cut tells that the budget ended inside a round.
func measure(ctx context.Context, o *options, phases *[]*phase, capacity map[string]float64) (cut bool, err error) {
	budget := time.Duration(o.Minutes * float64(time.Minute))
	begin := time.Now()
	rounds := max(1, int((budget-setUp)/o.round()))
	fmt.Printf("%d rounds of about %v; budget %v\n", rounds, o.round().Round(time.Second), budget.Round(time.Second))
	bin, remove, err := build()
	if err != nil {
		return false, err
	}
	defer remove()
	r, err := newRig(ctx, *o, bin)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for name, s := range r.services {
		if earlier, ok := capacity[name]; ok {
			s.Capacity = earlier // the same loads as then
		}
		capacity[name] = s.Capacity
	}
	blocks := o.blocks()
	errBudget := errors.New("over")
	rng := rand.New(rand.NewPCG(o.Seed, 2))
	for round := range rounds {
		for _, i := range rng.Perm(len(blocks)) {
			s, l := r.services[blocks[i].service], blocks[i].level
			fmt.Printf("%6.0f s  round %d/%d  %s at %s load (%.0f requests/s)\n", time.Since(begin).Seconds(), round+1, rounds, s.Name, l.name, s.Capacity*l.share)
			err := r.block(ctx, s, l, slices.Clone(blocks[i].cells), rng, func(p *phase) error {
				p.Round = round
				*phases = append(*phases, p)
				if time.Since(begin) > budget {
					return errBudget
				}
				return nil
			})
			if errors.Is(err, errBudget) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// counters reports whether this machine counts cycles in hardware.
func counters() bool {
	_, err := os.Stat("/sys/bus/event_source/devices/cpu")
	return err == nil
}

func readPhases(name string) (out []*phase, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("nothing to append to: %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for dec := json.NewDecoder(z); ; {
		p := &phase{}
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, p)
	}
}

func writePhases(name string, phases []*phase) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := gzip.NewWriter(f)
	enc := json.NewEncoder(z)
	for _, p := range phases {
		if err := enc.Encode(p); err != nil {
			return err
		}
	}
	return z.Close()
}
