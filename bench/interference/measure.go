package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/work"
)

// level is a load as a share of what the service carries alone on this machine. At half of that the service and its clients, who are on
// the machine too, keep about two thirds of it busy; from 60 % on its own queue grew for seconds now and then with nothing beside
// it, and there was no reference to compare with.
type level struct {
	name  string
	share float64
}

var levels = []level{{"low", 0.1}, {"middle", 0.3}, {"high", 0.5}}

// References stand where a protection's name would.
const (
	alone   = "alone"         // no offline work at all
	spinner = "alone-spinner" // a SCHED_IDLE task spins on each CPU: nothing is taken from online, but CPUs need not wake up
)

// cell is what is measured in a phase.
type cell struct {
	offline    offline // name is "" for references
	protection protection
}

// phase is a stretch of time in which one kind of work runs beside one service under one protection, and what was seen in its
// windows.
type phase struct {
	Online     string   `json:"online"`
	Load       string   `json:"load"`
	Offline    string   `json:"offline,omitempty"`
	Protection string   `json:"protection"`
	Round      int      `json:"round"`
	Windows    []window `json:"windows"`
	// Work is what the offline work did a second, in its own unit, over the whole phase.
	Work float64 `json:"work_per_second"`
	// Failed is why the phase does not count.
	Failed string `json:"failed,omitempty"`
	// Held is what the agent held at the end, Rules what it did, in order.
	Held  []string `json:"held,omitempty"`
	Rules []string `json:"rules,omitempty"`
	// Blame is for how long in each second, summed over its threads, the service waited for a CPU while others ran, by who ran, as the agent
	// saw it over the whole phase.
	Blame map[string]float64 `json:"blame,omitempty"`
}

// window is one measurement. CPU times are numbers of CPUs.
type window struct {
	Seconds    float64 `json:"seconds"`
	Offered    int     `json:"offered"`
	Rate       float64 `json:"rate"`
	Errors     int     `json:"errors,omitempty"`
	Unfinished int     `json:"unfinished,omitempty"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
	P999       float64 `json:"p999_us"`
	LateP99    float64 `json:"generator_late_p99_us"`
	OnlineCPU  float64 `json:"online_cpus"`
	OfflineCPU float64 `json:"offline_cpus"`
	LoadCPU    float64 `json:"generator_cpus"`
	Steal      float64 `json:"steal"`
	Foreign    float64 `json:"foreign"`
	Slow       float64 `json:"slow"`     // what a fixed piece of work took, to what it takes at best
	Stall      float64 `json:"stall_ms"` // for which no CPU ran anything
	Noisy      bool    `json:"noisy,omitempty"`
}

// rig is everything that phases need.
type rig struct {
	*lab.Lab
	o         options
	bin       string // the daemon
	materials *materials
	services  map[string]*online.Service
	cpus      int
	phases    int // so far
	speed     *speed
	stalls    *stalls
	failures  int // phases
}

func newRig(ctx context.Context, o options, bin string) (_ *rig, err error) {
	r := &rig{o: o, bin: bin, services: map[string]*online.Service{}, cpus: runtime.NumCPU()}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.Lab, err = lab.Open(); err != nil {
		return r, err
	}
	if r.speed, err = newSpeed(r.cpus); err != nil {
		return r, err
	}
	r.stalls = newStalls(r.cpus)
	if r.materials, err = prepare(r.Dir, r.Disk); err != nil {
		return r, err
	}
	for _, k := range o.offlines {
		if _, err := online.Find(k.program, k.pkg); err != nil {
			return r, err
		}
	}
	for _, s := range o.services {
		if r.services[s.Name], err = online.Start(ctx, s, r.Tree, r.Dir, r.cpus, o.Seed); err != nil {
			return r, err
		}
		fmt.Printf("%-10s carries %.0f requests/s here\n", s.Name, r.services[s.Name].Capacity)
	}
	return r, nil
}

func (r *rig) close() error {
	for _, s := range r.services {
		if s != nil {
			s.Stop()
		}
	}
	if r.Lab == nil {
		return nil
	}
	return r.Lab.Close()
}

// failuresMax is how many phases may fail before the run does.
const failuresMax = 10

// references is how many phases without offline work there are beside so many with.
func references(cells int) int { return max(4, cells/8) }

// block measures all cells of one load of one service in random order, references sprinkled in between. each is called with every phase.
func (r *rig) block(ctx context.Context, s *online.Service, l level, cells []cell, rng *rand.Rand, each func(*phase) error) error {
	if err := s.Connect(r.o.Seed); err != nil {
		return err
	}
	defer s.Disconnect()
	rule, err := r.steady(ctx, s, l)
	if err != nil {
		return err
	}
	for i := range references(len(cells)) {
		name := alone
		if i%4 == 3 {
			name = spinner
		}
		cells = append(cells, cell{protection: protection{name: name}})
	}
	for _, i := range rng.Perm(len(cells)) {
		p, err := r.phase(ctx, s, l, cells[i], rule)
		if err != nil {
			err = fmt.Errorf("%s at %s load, %s under %s: %w", s.Name, l.name, cells[i].offline.name, cells[i].protection.name, err)
			if r.failures++; ctx.Err() != nil || r.failures > failuresMax {
				return err
			}
			fmt.Fprintln(os.Stderr, "does not count:", err)
			p = &phase{Online: s.Name, Load: l.name, Offline: cells[i].offline.name, Protection: cells[i].protection.name, Failed: err.Error()}
		}
		if err := each(p); err != nil {
			return err
		}
	}
	return nil
}

// steady finds out where suppress-1hz stands when nothing but this load has been there for long.
func (r *rig) steady(ctx context.Context, s *online.Service, l level) (*suppressor, error) {
	if err := s.SetLoad(l.share); err != nil {
		return nil, err
	}
	if err := lab.Sleep(ctx, r.o.Settle); err != nil {
		return nil, err
	}
	before, err := readUsage(r.Lab, s.Group, "")
	if err != nil {
		return nil, err
	}
	if err := lab.Sleep(ctx, lab.SuppressEvery); err != nil {
		return nil, err
	}
	now, err := readUsage(r.Lab, s.Group, "")
	if err != nil {
		return nil, err
	}
	pods, system := now.since(before)
	out := newSuppressor(r.cpus, pods, system)
	if counters() {
		out.cpi2, err = learnCPI(ctx, r.Lab, s.Group)
	}
	return out, err
}

// situation is one kind of work beside one service under one protection.
type situation struct {
	rig   *rig
	cell  cell
	sub   string // the group's name below the bench's own
	group string
	guard *guard
	work  besideWork
}

// begin makes a group, puts a protection in force, sets the load and starts the work, in this order. It is over with end.
func (r *rig) begin(ctx context.Context, s *online.Service, l level, c cell, rule *suppressor) (_ *situation, err error) {
	r.phases++
	x := &situation{rig: r, cell: c, sub: fmt.Sprintf("job%05d", r.phases)}
	if x.group, err = r.Tree.Make(x.sub); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.end(ctx))
		}
	}()
	g, err := protect(ctx, r.Lab, c.protection, s, x.group, r.bin, rule)
	if err != nil {
		return nil, err
	}
	x.guard = g
	// What an overloaded window left overdue must not fall on the next one.
	if err := s.SetLoad(l.share); err != nil {
		return nil, err
	}
	work, err := r.beside(c, x.group)
	if err != nil {
		return nil, err
	}
	x.work = work
	return x, nil
}

// end takes away what is still there, also after ctx has ended.
func (x *situation) end(ctx context.Context) error {
	var errs []error
	if x.work != nil {
		x.work.abandon()
	}
	if x.guard != nil {
		errs = append(errs, x.guard.lift(context.WithoutCancel(ctx)))
	}
	errs = append(errs, x.rig.Tree.RemoveGroup(x.sub))
	if x.cell.offline.disk {
		settleDisks(3 * time.Second)
	}
	return errors.Join(errs...)
}

func (r *rig) phase(ctx context.Context, s *online.Service, l level, c cell, rule *suppressor) (_ *phase, err error) {
	p := &phase{Online: s.Name, Load: l.name, Offline: c.offline.name, Protection: c.protection.name}
	x, err := r.begin(ctx, s, l, c, rule)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.end(ctx)) }()
	settle := r.o.Settle
	for range r.o.Windows {
		w, err := r.window(ctx, s, x.group, x.guard, settle)
		if err != nil {
			return nil, err
		}
		// What a disturbance left overdue is still there in the window after it.
		w.Noisy = w.Noisy || len(p.Windows) > 0 && p.Windows[len(p.Windows)-1].Noisy
		p.Windows = append(p.Windows, w)
		settle = 0
	}
	if err := x.guard.ask(ctx, p); err != nil {
		return nil, err
	}
	if err := x.guard.lift(ctx); err != nil {
		return nil, err
	}
	if p.Work, err = x.work.stop(r.Tree, x.group); err != nil {
		p.Failed = err.Error()
		fmt.Fprintf(os.Stderr, "%s %s x %s under %s does not count: %v\n", p.Online, p.Load, p.Offline, p.Protection, err)
		err = nil
	}
	return p, nil
}

// job is what runs beside the service.
type besideWork interface {
	stop(tree tree, group string) (perSecond float64, err error)
	abandon()
}

func (r *rig) beside(c cell, group string) (besideWork, error) {
	switch {
	case c.offline.name != "":
		return startOffline(c.offline, r.materials, r.Tree, group, r.cpus)
	case c.protection.name == spinner:
		return r.spin(group)
	}
	return spinners(nil), nil
}

// spinners are idle-class tasks, one for each CPU.
type spinners []*work.Process

func (r *rig) spin(group string) (spinners, error) {
	if err := r.Tree.Set(group, cgroup.Idle, cgroup.Value{N: 1}); err != nil {
		return nil, err
	}
	var s spinners
	for cpu := range r.cpus {
		p, err := work.Start(work.Spin.On(cpu), r.Tree.Joiner(group))
		if err != nil {
			s.abandon()
			return nil, err
		}
		s = append(s, p)
	}
	return s, nil
}

func (s spinners) stop(tree, string) (float64, error) {
	s.abandon()
	return 0, nil
}

func (s spinners) abandon() {
	for _, p := range s {
		p.Stop()
	}
}

// window measures one window.
func (r *rig) window(ctx context.Context, s *online.Service, group string, g *guard, settle time.Duration) (w window, err error) {
	if err := lab.Sleep(ctx, settle); err != nil {
		return w, err
	}
	own := []int{os.Getpid(), s.Client.PID()}
	if g.agent != nil {
		own = append(own, g.agent.PID())
	}
	slow := r.speed.look()
	if _, err := s.Client.Collect(); err != nil {
		return w, err
	}
	r.stalls.reset()
	ownBefore := helpers(own...)
	before, err := readUsage(r.Lab, s.Group, group)
	if err != nil {
		return w, err
	}
	if err := lab.Sleep(ctx, r.o.Window); err != nil {
		return w, err
	}
	after, err := readUsage(r.Lab, s.Group, group)
	if err != nil {
		return w, err
	}
	ownTime := helpers(own...) - ownBefore
	m, err := s.Client.Collect()
	if err != nil {
		return w, err
	}
	stall := r.stalls.total()
	slow = max(slow, r.speed.look())
	d := after.at.Sub(before.at).Seconds()
	w = window{
		Seconds: m.Seconds, Offered: m.Offered, Rate: m.Rate, Errors: m.Errors, Unfinished: m.Unfinished,
		P50: m.P50, P99: m.P99, P999: m.P999, LateP99: m.Self.LateP99,
		OnlineCPU: (after.online - before.online).Seconds() / d, OfflineCPU: (after.offline - before.offline).Seconds() / d,
		LoadCPU: m.Self.CPU / m.Seconds,
		Steal:   stolen(before, after, r.cpus), Foreign: foreign(before, after, ownTime, r.cpus),
		Slow: slow, Stall: stall.Seconds() * 1e3,
	}
	w.Noisy = w.Steal > stealMax || w.Foreign > foreignMax || w.Slow > slowMax || stall > stallMax
	w.P50, w.P99, w.P999 = atLeast(w.P50, 0.5, m), atLeast(w.P99, 0.99, m), atLeast(w.P999, 0.999, m)
	return w, nil
}

// atLeast is a quantile of a window, us, corrected for requests that are not answered yet: they took at least so long.
func atLeast(us, q float64, w load.Window) float64 {
	if open := float64(w.Unfinished+w.Errors) / float64(max(1, w.Offered)); open >= 1-q-1e-9 {
		return max(us, online.Patience.Seconds()*1e6)
	}
	return us
}
