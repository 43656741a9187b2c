package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/test/daemon"
)

// protection is what is done about offline work.
type protection struct {
	name  string
	what  string
	fixed []setting
	agent bool
	mode  string // of the agent; "" is the policy's
	// suppress is the form of koordlet's rule, "cpuset" or "quota"; "" for none.
	suppress string
	cpi2     bool // the rule of CPI²
	// frozen of every dutyPeriod the work stands still.
	frozen time.Duration
}

// setting is a static setting of the offline group.
type setting struct {
	s  cgroup.Setting
	to func(cpus int) cgroup.Value
}

func weight2() setting {
	return setting{cgroup.Weight, func(int) cgroup.Value { return cgroup.Value{N: 2} }}
}

func idle() setting {
	return setting{cgroup.Idle, func(int) cgroup.Value { return cgroup.Value{N: 1} }}
}

// half of the CPUs, the upper one.
func half() setting {
	return setting{cgroup.CPUs, func(cpus int) cgroup.Value { return cgroup.Value{CPUs: span(cpus-max(1, cpus/2), cpus)} }}
}

// quota of a share of the machine, by a period.
func quota(share float64, period time.Duration) setting {
	return setting{cgroup.Quota, func(cpus int) cgroup.Value {
		us := period.Microseconds()
		return cgroup.Value{N: int64(share * float64(cpus) * float64(us)), Period: us}
	}}
}

// span is the CPUs from first to end, end not included.
func span(first, end int) (s cpuset.Set) {
	for cpu := first; cpu < end; cpu++ {
		s.Add(cpu)
	}
	return s
}

const (
	dutyPeriod = 20 * time.Millisecond
	none       = "none"
	theAgent   = "qos-agent"
	cpi2Style  = "cpi2-style"
)

// protections are compared by the interference bench.
var protections = []protection{
	{name: none, what: "offline has the same weight as online, as batch pods with CPU requests have"},
	{name: "kubernetes", what: "the least weight, as BestEffort pods have", fixed: []setting{weight2()}},
	{name: "idle", what: "cpu.idle=1, nothing else", fixed: []setting{idle()}},
	{name: "suppress-1hz-cpuset", what: "koordlet's CPU suppress by cpuset, and the least weight", fixed: []setting{weight2()}, suppress: "cpuset"},
	{name: "suppress-1hz-quota", what: "koordlet's CPU suppress by quota, and the least weight", fixed: []setting{weight2()}, suppress: "quota"},
	{name: theAgent, what: "the daemon with its default policy", agent: true},
}

// compared are the protections that this machine can have.
func compared() []protection {
	out := slices.Clone(protections)
	if counters() {
		out = slices.Insert(out, len(out)-1, protection{name: cpi2Style, what: "the rule of CPI², 600 times as fast as published, and no other protection", cpi2: true})
	}
	return out
}

// rungs are single knobs and pairs of them, for the bench of knobs.
var rungs = []protection{
	{name: none, what: "same weight"},
	{name: "weight", what: "the least weight", fixed: []setting{weight2()}},
	{name: "idle", what: "cpu.idle=1", fixed: []setting{idle()}},
	{name: "cpuset", what: "half of the CPUs, same weight", fixed: []setting{half()}},
	{name: "idle+cpuset", what: "cpu.idle=1 and half of the CPUs", fixed: []setting{idle(), half()}},
	{name: "idle+quota50/100ms", what: "cpu.idle=1 and half of the CPU time by 100 ms", fixed: []setting{idle(), quota(0.5, 100*time.Millisecond)}},
	{name: "idle+quota50/20ms", what: "the same by 20 ms", fixed: []setting{idle(), quota(0.5, 20*time.Millisecond)}},
	{name: "idle+quota50/5ms", what: "the same by 5 ms", fixed: []setting{idle(), quota(0.5, 5*time.Millisecond)}},
	{name: "idle+quota25/20ms", what: "a quarter of the CPU time by 20 ms", fixed: []setting{idle(), quota(0.25, 20*time.Millisecond)}},
	{name: "idle+freeze50/20ms", what: "frozen for 10 of every 20 ms", fixed: []setting{idle()}, frozen: dutyPeriod / 2},
}

// guard is a protection in force on a group.
type guard struct {
	p     protection
	site  *lab.Lab
	group string
	agent *daemon.Daemon
	stop  func() error // of what goes on beside; nil: nothing
}

// protect puts a protection in force, before the work begins. rule is the running state of suppress-1hz for this load.
func protect(ctx context.Context, s *lab.Lab, p protection, o *online.Service, group, bin string, rule *suppressor) (_ *guard, err error) {
	g := &guard{p: p, site: s, group: group}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", p.name, err), g.lift(context.WithoutCancel(ctx)))
		}
	}()
	for _, f := range p.fixed {
		if err := s.Tree.Set(group, f.s, f.to(runtime.NumCPU())); err != nil {
			return g, err
		}
	}
	switch {
	case p.agent:
		return g, g.startAgent(ctx, o, bin)
	case p.suppress != "":
		if err := rule.write(s, p.suppress, group); err != nil {
			return g, err
		}
		g.stop = background(func(done <-chan struct{}) error { return rule.run(done, s, p.suppress, o.Group, group) })
	case p.cpi2:
		g.stop = background(func(done <-chan struct{}) error { return rule.cpi2.run(done, s, o.Group, group) })
	case p.frozen > 0:
		g.stop = background(func(done <-chan struct{}) error { return duty(done, s, group, p.frozen) })
	}
	return g, nil
}

// background runs fn until the returned function is called, which gives its error.
func background(fn func(done <-chan struct{}) error) func() error {
	done, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- fn(done) }()
	return func() error {
		close(done)
		return <-result
	}
}

// duty freezes a group for a part of every period.
func duty(done <-chan struct{}, s *lab.Lab, group string, frozen time.Duration) error {
	for {
		for n, d := range map[int64]time.Duration{1: frozen, 0: dutyPeriod - frozen} {
			if err := s.Tree.Set(group, cgroup.Freeze, cgroup.Value{N: n}); err != nil {
				return err
			}
			select {
			case <-done:
				return s.Tree.Set(group, cgroup.Freeze, cgroup.Value{})
			case <-time.After(d):
			}
		}
	}
}

// startAgent starts the daemon that ships, with the default policy, as on a node where it has been before the work comes.
func (g *guard) startAgent(ctx context.Context, o *online.Service, bin string) error {
	opt := daemon.Options{
		Binary: bin, Mode: g.p.mode, PolicyDir: filepath.Join(g.site.Dir, "policy"), StaticPods: filepath.Join(g.site.Dir, "pods.yaml"), RunDir: filepath.Join(g.site.Dir, "run"),
	}
	if err := os.MkdirAll(opt.PolicyDir, 0o755); err != nil {
		return err
	}
	const nothing = "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: default}\n" // all the rest is the default
	if err := daemon.Replace(filepath.Join(opt.PolicyDir, "policy.yaml"), nothing); err != nil {
		return err
	}
	pods := []daemon.Pod{
		{Namespace: "online", Name: o.Name, Cgroup: o.Group, Labels: map[string]string{"qos-agent.io/class": "online"}},
		{Namespace: "offline", Name: "job", Cgroup: g.group, Labels: map[string]string{"qos-agent.io/class": "offline"}},
	}
	if err := daemon.WriteStaticPods(opt.StaticPods, pods...); err != nil {
		return err
	}
	var err error
	if g.agent, err = daemon.Start(opt); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err = g.agent.WaitState(ctx, "both pods", func(st *server.State) bool {
		return len(st.Pods) == len(pods) && (len(st.Knobs) > 0 || st.Agent.Mode == "observe")
	})
	return err
}

// ask asks the agent what it holds, what it did and what it saw.
func (g *guard) ask(ctx context.Context, p *phase) error {
	if g.agent == nil {
		return nil
	}
	st, err := g.agent.State(ctx)
	if err != nil {
		return err
	}
	for _, k := range st.Knobs {
		p.Held = append(p.Held, fmt.Sprintf("%s=%s", k.Knob, k.Current))
	}
	for i := len(st.Notes) - 1; i >= 0; i-- {
		if n := &st.Notes[i]; n.Rule != "" {
			p.Rules = append(p.Rules, fmt.Sprintf("%.2f %s: %s", n.At.Sub(st.Agent.Started).Seconds(), n.Rule, n.Message))
		}
	}
	blame, err := g.blame(ctx)
	p.Blame = map[string]float64{}
	for who, seconds := range blame {
		p.Blame[who] = seconds / st.At.Sub(st.Agent.Started).Seconds()
	}
	return err
}

// blame is for how many seconds, summed over its threads, the service has waited while others ran, by who ran.
func (g *guard) blame(ctx context.Context) (map[string]float64, error) {
	_, text, err := g.agent.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, m := range blameLine.FindAllStringSubmatch(text, -1) {
		if seconds, err := strconv.ParseFloat(m[2], 64); err == nil && seconds > 0 {
			out[m[1]] += seconds
		}
	}
	return out, nil
}

// blameLine is a line of the metric by culprit; there is only one victim.
var blameLine = regexp.MustCompile(`(?m)^qosagent_cpu_wait_blame_seconds_total\{.*culprit_pod="([^"]*)".*\} (\S+)$`)

// lift takes the protection away, so that the work can end quickly.
func (g *guard) lift(ctx context.Context) error {
	var errs []error
	if g.stop != nil {
		errs = append(errs, g.stop())
		g.stop = nil
	}
	if g.agent != nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		errs = append(errs, g.agent.Stop(ctx))
		g.agent = nil
	}
	set := func(s cgroup.Setting, v cgroup.Value) { errs = append(errs, g.site.Tree.Set(g.group, s, v)) }
	for _, f := range g.p.fixed {
		switch f.s {
		case cgroup.Idle:
			set(cgroup.Idle, cgroup.Value{})
		case cgroup.Weight:
			set(cgroup.Weight, cgroup.Value{N: cgroup.DefaultWeight(g.site.H.V2(cgroup.CPU))})
		case cgroup.Quota:
			set(cgroup.Quota, cgroup.Value{N: -1, Period: 100_000})
		case cgroup.CPUs:
			set(cgroup.CPUs, cgroup.Value{CPUs: span(0, runtime.NumCPU())})
		}
	}
	if g.p.suppress != "" || g.p.cpi2 {
		set(cgroup.Quota, cgroup.Value{N: -1, Period: 100_000})
		set(cgroup.CPUs, cgroup.Value{CPUs: span(0, runtime.NumCPU())})
	}
	return errors.Join(errs...)
}

// suppressor keeps the state of suppress-1hz for one load of one service: its phases follow each other as if nothing had been in
// between, so that each begins in the steady state.
type suppressor struct {
	rule  map[string]*lab.Suppress
	cpus  map[string]int
	quota map[string]int64
	cpi2  *cpiRule // nil without hardware counters
}

// newSuppressor begins with what the service and the system use without offline work.
func newSuppressor(cpus int, pods, system float64) *suppressor {
	s := &suppressor{rule: map[string]*lab.Suppress{}, cpus: map[string]int{}, quota: map[string]int64{}}
	for _, form := range []string{"cpuset", "quota"} {
		s.rule[form] = lab.NewSuppress(cpus)
		s.cpus[form], s.quota[form] = s.rule[form].Step(pods, system)
	}
	return s
}

func (s *suppressor) write(site *lab.Lab, form, group string) error {
	if form == "quota" {
		return site.Tree.Set(group, cgroup.Quota, cgroup.Value{N: s.quota[form], Period: 100_000})
	}
	n := runtime.NumCPU()
	return site.Tree.Set(group, cgroup.CPUs, cgroup.Value{CPUs: span(n-s.cpus[form], n)})
}

func (s *suppressor) run(done <-chan struct{}, site *lab.Lab, form, online, offline string) error {
	return each(done, lab.SuppressEvery, site, online, offline, func(before, now usage) error {
		pods, system := now.since(before)
		s.cpus[form], s.quota[form] = s.rule[form].Step(pods, system)
		return s.write(site, form, offline)
	})
}

// each calls fn at intervals with what was used up to the last one and up to now, until done is closed or something fails.
func each(done <-chan struct{}, interval time.Duration, site *lab.Lab, online, offline string, fn func(before, now usage) error) error {
	before, err := readUsage(site, online, offline)
	if err != nil {
		return err
	}
	for {
		select {
		case <-done:
			return nil
		case <-time.After(interval):
		}
		now, err := readUsage(site, online, offline)
		if err != nil {
			return err
		}
		if err := fn(before, now); err != nil {
			return err
		}
		before = now
	}
}
