package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

// A surge: out of calm, in which nobody asks for anything and offline work has the machine, requests come at surgeLoad of what the
// service carries alone. koordlet's rule looks at what online uses, so it has to be online that changes for it to react at all.
const (
	surgeLoad = 0.5
	slot      = 50 * time.Millisecond // over which the p99 is taken
	// steady is for how long slots must be well for the service to count as recovered.
	steady = 4 * slot
)

// surgeLengths and how many of each, as a part of --short.
var surgeLengths = []struct {
	length time.Duration
	part   int
}{{50 * time.Millisecond, 1}, {200 * time.Millisecond, 1}, {time.Second, 1}, {3 * time.Second, 4}, {10 * time.Second, 12}}

// surgeRow is one protection.
type surgeRow struct {
	What string `json:"what"`
	// FirstCutMS is from the first request due to the first write that takes something from offline work. A standing posture takes
	// it before there is a surge.
	FirstCutMS quantiles `json:"first_cut_ms"`
	Standing   bool      `json:"standing"`
	// RecoveredMS is until the p99 of 50 ms is, and stays for 200 ms, at most twice what it is alone; of the surges of which that can be
	// said.
	RecoveredMS quantiles     `json:"recovered_ms"`
	Surges      int           `json:"surges"`
	Uncut       int           `json:"uncut"` // ended before anything was cut
	Lengths     []surgeLength `json:"lengths"`

	cuts, recoveries []float64
}

// plan is what changes: the load of the service beside steady offline work, or the offline work beside a steady service.
type plan struct {
	what, group string
	steady      bool // the service is
	into        map[string]*surgeRow
	alone       map[time.Duration]float64 // p99 of as long a time without offline work, us
}

type surgeLength struct {
	LengthMS     float64 `json:"length_ms"`
	Surges       int     `json:"surges"`
	Uncut        int     `json:"uncut"`
	Unrecovered  int     `json:"unrecovered"` // not well again before it ended
	P99US        float64 `json:"p99_us"`      // of all requests of a surge, median over surges
	P99AloneUS   float64 `json:"p99_alone_us"`
	RecoveredP50 float64 `json:"recovered_ms_p50"`
}

// guarding is how a protection is told of surges.
type guarding interface {
	// calm prepares a group for the next surge.
	calm(ctx context.Context, group string) error
	// surge begins; it returns when the first cut was made, once done is closed. ok is false for none.
	surge(done <-chan struct{}, group string) (cut time.Duration, ok bool, err error)
	end(ctx context.Context) error
}

// surges measures all protections, each with the same surges.
func (c *cli) surges(ctx context.Context, s *lab.Site, r *result) error {
	var kind online.Kind
	for _, k := range online.Kinds {
		if k.Name == "nginx" {
			kind = k
		}
	}
	web, err := online.Start(ctx, kind, s.Tree, s.Dir, runtime.NumCPU(), c.Seed)
	if err != nil {
		return err
	}
	defer web.Stop()
	if err := web.Connect(c.Seed); err != nil {
		return err
	}
	defer web.Disconnect()
	fmt.Printf("%s carries %.0f requests/s here; a surge has %.0f %% of that\n", web.Name, web.Capacity, 100*surgeLoad)
	var spinners []*work.Process
	parked, err := s.Tree.Make("parked")
	if err != nil {
		return err
	}
	for range 2 * runtime.NumCPU() {
		p, err := s.Start(parked, work.Spin)
		if err != nil {
			return err
		}
		spinners = append(spinners, p)
	}
	defer s.StopAll()
	if err := each(spinners, (*work.Process).Pause); err != nil {
		return err
	}
	if c.Part != "bursts" {
		if err := c.plan(ctx, s, web, spinners, plan{what: "online surge", group: "surge", into: r.Protections}); err != nil {
			return err
		}
		best := min(r.Protections["suppress-1hz-cpuset"].FirstCutMS.P50, r.Protections["suppress-1hz-quota"].FirstCutMS.P50)
		if own := r.Protections["qos-agent-without-posture"].FirstCutMS.P50; own > 0 {
			r.Faster = best / own
			fmt.Printf("the agent's ladder cuts %.0f times as fast as the better form of suppress-1hz (median; target 20)\n", r.Faster)
		} else {
			fmt.Println("how much faster the agent's ladder is cannot be told: one of the two cut nothing in any surge (is the machine busy with other things?)")
		}
	}
	if c.Part == "surges" {
		return nil
	}
	return c.plan(ctx, s, web, spinners, plan{what: "offline burst", group: "burst", steady: true, into: r.OfflineBursts})
}

// plan measures all protections.
func (c *cli) plan(ctx context.Context, s *lab.Site, web *online.Service, spinners []*work.Process, what plan) (err error) {
	if what.steady {
		if err := web.SetLoad(surgeLoad); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, web.SetLoad(0)) }()
	}
	what.alone = map[time.Duration]float64{}
	for _, l := range surgeLengths {
		if what.alone[l.length], err = what.aloneP99(ctx, web, l.length, max(1, c.Short/l.part)); err != nil {
			return err
		}
	}
	var groups []string
	for i, p := range []struct {
		name, what string
		standing   bool
		start      func() (guarding, error)
	}{
		{"none", "nothing is done", false, func() (guarding, error) { return nothing{}, nil }},
		{"suppress-1hz-cpuset", "koordlet's rule by cpuset, and the least weight", false, func() (guarding, error) { return newRule(s, web, "cpuset", what.steady), nil }},
		{"suppress-1hz-quota", "koordlet's rule by quota, and the least weight", false, func() (guarding, error) { return newRule(s, web, "quota", what.steady), nil }},
		{"qos-agent-without-posture", "the agent with a ladder alone, to see it react", false, func() (guarding, error) { return startAgent(ctx, s, web, groups, reactionPolicy, "cpu.idle") }},
		{"qos-agent", "the agent with its default policy, whose posture is there before the surge", true, func() (guarding, error) { return startAgent(ctx, s, web, groups, "  mode: enforce\n", "") }},
	} {
		if groups, err = c.surgeGroups(s, what.group, i); err != nil {
			return err
		}
		g, err := p.start()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		row, err := c.protected(ctx, s, web, g, groups, spinners, what)
		err = errors.Join(err, g.end(context.WithoutCancel(ctx)))
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		row.What, row.Standing = p.what, p.standing
		what.into[p.name] = row
	}
	what.print()
	return nil
}

// surgeGroups makes a group for each surge of a protection: the agent remembers what a pod has done, and would hold it back longer each time,
// and koordlet's rule leaves weights and limits behind.
func (c *cli) surgeGroups(s *lab.Site, name string, protection int) (out []string, err error) {
	n := 0
	for _, l := range surgeLengths {
		n += max(1, c.Short/l.part)
	}
	for i := range n {
		group, err := s.Tree.Make(fmt.Sprintf("%s%d-%04d", name, protection, i))
		if err != nil {
			return nil, err
		}
		out = append(out, group)
	}
	return out, nil
}

// aloneP99 is the median p99 of surges beside nothing.
func (w *plan) aloneP99(ctx context.Context, web *online.Service, length time.Duration, n int) (float64, error) {
	var all []float64
	for range max(1, min(3, n)) {
		slots, err := w.run(ctx, web, length)
		if err != nil {
			return 0, err
		}
		all = append(all, slots.p99())
	}
	return load.Median(all), nil
}

// protected runs all surges under one protection.
func (c *cli) protected(ctx context.Context, s *lab.Site, web *online.Service, g guarding, groups []string, spinners []*work.Process, what plan) (*surgeRow, error) {
	row := &surgeRow{}
	rng := rand.New(rand.NewPCG(c.Seed, 5))
	defer func() { _ = each(spinners, (*work.Process).Pause) }()
	for _, l := range surgeLengths {
		out := surgeLength{LengthMS: l.length.Seconds() * 1e3, P99AloneUS: what.alone[l.length]}
		var p99, recovered []float64
		for range max(1, c.Short/l.part) {
			group := groups[row.Surges]
			if err := each(spinners, func(p *work.Process) error { return s.Tree.Join(group, p.PID()) }); err != nil {
				return nil, err
			}
			if err := g.calm(ctx, group); err != nil {
				return nil, err
			}
			// Steady offline work is there before the surge.
			resume := func() error { return each(spinners, (*work.Process).Resume) }
			if !what.steady {
				if err := resume(); err != nil {
					return nil, err
				}
			}
			if err := lab.Sleep(ctx, time.Duration(200+rng.IntN(300))*time.Millisecond); err != nil {
				return nil, err
			}
			start := clock.System{}.Now()
			done, result := make(chan struct{}), make(chan cutResult, 1)
			go func() {
				at, ok, err := g.surge(done, group)
				result <- cutResult{at, ok, err}
			}()
			var resumed error
			if what.steady {
				resumed = resume()
			}
			slots, err := what.run(ctx, web, l.length)
			close(done)
			cut := <-result
			if err := errors.Join(resumed, err, cut.err, each(spinners, (*work.Process).Pause)); err != nil {
				return nil, err
			}
			row.Surges++
			out.Surges++
			if cut.ok && cut.at-start <= l.length {
				row.cuts = append(row.cuts, (cut.at-start).Seconds()*1e3)
			} else {
				out.Uncut++
				row.Uncut++
			}
			p99 = append(p99, slots.p99())
			if at, ok := slots.recovered(2 * what.alone[l.length]); ok {
				recovered = append(recovered, at.Seconds()*1e3)
			} else {
				out.Unrecovered++
			}
		}
		out.P99US, out.RecoveredP50 = load.Median(p99), load.Median(recovered)
		row.recoveries = append(row.recoveries, recovered...)
		row.Lengths = append(row.Lengths, out)
	}
	row.FirstCutMS, row.RecoveredMS = newQuantiles(row.cuts), newQuantiles(row.recoveries)
	return row, nil
}

type cutResult struct {
	at  time.Duration
	ok  bool
	err error
}

// slots are the windows of a surge.
type slots []slotOf

type slotOf struct {
	begin, end time.Duration // since its start
	w          load.Window
}

// run watches for length; a surge asks for so long and then for nothing.
func (w *plan) run(ctx context.Context, web *online.Service, length time.Duration) (out slots, err error) {
	if _, err := web.Client.Collect(); err != nil {
		return nil, err
	}
	start := time.Now()
	if !w.steady {
		if err := web.SetLoad(surgeLoad); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, web.SetLoad(0)) }()
	}
	for at := time.Duration(0); at < length; {
		if err := lab.Sleep(ctx, min(slot, length-at)); err != nil {
			return nil, err
		}
		end := time.Since(start)
		seen, err := web.Client.Collect()
		if err != nil {
			return nil, err
		}
		out = append(out, slotOf{at, end, seen})
		at = end
	}
	return out, nil
}

// p99 is the 99th percentile over all requests, µs, from those of the slots: the value below which 99 % of the requests lie if each slot's
// requests lie at its quantiles.
func (s slots) p99() float64 {
	type part struct {
		at    float64
		share float64
	}
	var parts []part
	total := 0.0
	for _, v := range s {
		n := float64(v.w.Completed)
		total += n
		for _, p := range []part{{v.w.P50, 0.5}, {v.w.P90, 0.4}, {v.w.P99, 0.09}, {v.w.Max, 0.01}} {
			parts = append(parts, part{p.at, p.share * n})
		}
	}
	if total == 0 {
		return 0
	}
	// From the worst on, until a hundredth of all is passed.
	left := total / 100
	for {
		worst := -1
		for i := range parts {
			if worst < 0 || parts[i].at > parts[worst].at {
				worst = i
			}
		}
		if left -= parts[worst].share; left <= 0 {
			return parts[worst].at
		}
		parts = append(parts[:worst], parts[worst+1:]...)
	}
}

// recovered is when the first of the slots began from which on the p99 was within the bound for long enough, or until the end.
func (s slots) recovered(bound float64) (at time.Duration, ok bool) {
	from := -1
	for i, v := range s {
		switch {
		case v.w.P99 > bound:
			from = -1
		case from < 0:
			from = i
		}
		if from >= 0 && v.end-s[from].begin >= steady {
			return s[from].begin, true
		}
	}
	if from < 0 {
		return 0, false
	}
	return s[from].begin, true
}

// nothing does nothing.
type nothing struct{}

func (nothing) calm(context.Context, string) error { return nil }
func (nothing) end(context.Context) error          { return nil }
func (nothing) surge(done <-chan struct{}, _ string) (time.Duration, bool, error) {
	<-done
	return 0, false, nil
}

// rule is koordlet's, in one of its forms. Each surge finds it as a long calm has left it, with its clock anywhere in its second.
type rule struct {
	s      *lab.Site
	web    *online.Service
	form   string
	steady bool // the service has its load also in the calm
	rng    *rand.Rand
	now    *lab.Suppress
	cpus   int // as last allowed
	quota  int64
}

func newRule(s *lab.Site, web *online.Service, form string, steady bool) *rule {
	return &rule{s: s, web: web, form: form, steady: steady, rng: rand.New(rand.NewPCG(9, 9))}
}

func (r *rule) end(context.Context) error { return nil }

// calmFor is how long use is looked at in a calm in which there is some.
const calmFor = 300 * time.Millisecond

func (r *rule) calm(ctx context.Context, group string) error {
	r.now = lab.NewSuppress(runtime.NumCPU())
	if err := r.s.Tree.Set(group, cgroup.Weight, cgroup.Value{N: 2}); err != nil {
		return err
	}
	pods, system := 0.0, 0.0
	if r.steady {
		before, err := r.used()
		if err != nil {
			return err
		}
		if err := lab.Sleep(ctx, calmFor); err != nil {
			return err
		}
		after, err := r.used()
		if err != nil {
			return err
		}
		pods, system = (after[0]-before[0]).Seconds()/calmFor.Seconds(), (after[1]-before[1]).Seconds()/calmFor.Seconds()
	}
	r.cpus, r.quota = r.now.Step(pods, system)
	return r.write(group, r.cpus, r.quota)
}

func (r *rule) write(group string, cpus int, quota int64) error {
	if r.form == "quota" {
		return r.s.Tree.Set(group, cgroup.Quota, cgroup.Value{N: quota, Period: 100_000})
	}
	var set cpuset.Set
	for cpu := runtime.NumCPU() - cpus; cpu < runtime.NumCPU(); cpu++ {
		set.Add(cpu)
	}
	return r.s.Tree.Set(group, cgroup.CPUs, cgroup.Value{CPUs: set})
}

func (r *rule) surge(done <-chan struct{}, group string) (cut time.Duration, ok bool, err error) {
	now := r.now
	cpus, quota := r.cpus, r.quota
	// The second in which the surge begins had begun earlier, without use; with the same use as then if that is steady.
	early := time.Duration(r.rng.Int64N(int64(lab.SuppressEvery)))
	before, err := r.used()
	if err != nil {
		return 0, false, err
	}
	wait, span := lab.SuppressEvery-early, lab.SuppressEvery
	if r.steady {
		span = wait
	}
	for ; ; wait, span = lab.SuppressEvery, lab.SuppressEvery {
		select {
		case <-done:
			return cut, ok, nil
		case <-time.After(wait):
		}
		after, err := r.used()
		if err != nil {
			return 0, false, err
		}
		n, q := now.Step((after[0]-before[0]).Seconds()/span.Seconds(), (after[1]-before[1]).Seconds()/span.Seconds())
		before = after
		if err := r.write(group, n, q); err != nil {
			return 0, false, err
		}
		if !ok && (r.form == "quota" && q < quota || r.form == "cpuset" && n < cpus) {
			cut, ok = clock.System{}.Now(), true
		}
		cpus, quota = n, q
	}
}

// used is CPU time of the service, and of the system: the load generator.
func (r *rule) used() (t [2]time.Duration, err error) {
	reader, err := cgroup.OpenCPU(r.s.H, r.web.Group)
	if err != nil {
		return t, err
	}
	var scratch cgroup.Scratch
	var stat cgroup.CPUStat
	if err := errors.Join(reader.Stat(&scratch, &stat), reader.Close()); err != nil {
		return t, err
	}
	t[0] = time.Duration(stat.UsageNS)
	t[1], err = work.ProcessCPU(r.web.Client.PID())
	return t, err
}

// agent is the daemon.
type agent struct {
	s    *lab.Site
	d    *daemon.Daemon
	file string // whose first write is the cut; "": nothing is waited for
}

func startAgent(ctx context.Context, s *lab.Site, web *online.Service, groups []string, spec, file string) (guarding, error) {
	o, err := s.Options(spec)
	if err != nil {
		return nil, err
	}
	pods := []daemon.Pod{{Namespace: "shop", Name: "web", Cgroup: web.Group, Labels: map[string]string{"qos-agent.io/class": "online"}}}
	for i, group := range groups {
		pods = append(pods, daemon.Pod{Namespace: "jobs", Name: "surge" + strconv.Itoa(i), Cgroup: group, Labels: map[string]string{"qos-agent.io/class": "offline"}})
	}
	if err := daemon.WriteStaticPods(o.StaticPods, pods...); err != nil {
		return nil, err
	}
	d, err := daemon.Start(o)
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := d.WaitState(ready, "all pods", func(st *server.State) bool { return len(st.Pods) == len(pods) && st.Loop.Ticks > 10 }); err != nil {
		d.Kill()
		return nil, err
	}
	return &agent{s, d, file}, nil
}

func (a *agent) calm(context.Context, string) error { return nil }

func (a *agent) surge(done <-chan struct{}, group string) (time.Duration, bool, error) {
	if a.file == "" {
		<-done
		return 0, false, nil
	}
	w, err := watch(a.s.Tree.File(cgroup.CPU, group, a.file))
	if err != nil {
		return 0, false, err
	}
	defer w.close()
	for {
		if at, ok := w.next(5 * time.Millisecond); ok {
			<-done
			return at, true, nil
		}
		select {
		case <-done:
			return 0, false, nil
		default:
		}
	}
}

func (a *agent) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return a.d.Stop(ctx)
}

func (w *plan) print() {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%s\tfirst cut p50 / p99\tuncut\trecovered p50 / p99", w.what)
	lengths := w.into["none"].Lengths
	for _, l := range lengths {
		fmt.Fprintf(t, "\tp99 of %v (alone %.1f ms)", time.Duration(l.LengthMS*1e6), l.P99AloneUS/1e3)
	}
	fmt.Fprintln(t)
	for _, name := range []string{"none", "suppress-1hz-cpuset", "suppress-1hz-quota", "qos-agent-without-posture", "qos-agent"} {
		p := w.into[name]
		cut := fmt.Sprintf("%.1f / %.1f ms", p.FirstCutMS.P50, p.FirstCutMS.P99)
		if p.Standing {
			cut = "stands before"
		} else if len(p.cuts) == 0 {
			cut = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%d of %d\t%.0f / %.0f ms", name, cut, p.Uncut, p.Surges, p.RecoveredMS.P50, p.RecoveredMS.P99)
		for _, l := range p.Lengths {
			mark := ""
			if l.Unrecovered > 0 {
				mark = fmt.Sprintf(" (%d of %d not recovered)", l.Unrecovered, l.Surges)
			}
			fmt.Fprintf(t, "\t%.1f ms%s", l.P99US/1e3, mark)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}
