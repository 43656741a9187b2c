package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// fixed is a policy that is always the same spec, and takes a pod's class from the label "class".
type fixed struct {
	id   string
	spec *policy.Spec
}

func (f fixed) ID() string                { return f.id }
func (f fixed) At(time.Time) *policy.Spec { return f.spec }
func (f fixed) Classify(s policy.Subject) (policy.Class, string) {
	if c, ok := s.Labels["class"]; ok {
		return policy.Class(c), "label"
	}
	return policy.Unclassified, ""
}

// job is a pod on the plant.
type job struct {
	name   string
	class  policy.Class
	demand float64 // CPUs that it would use
	// hurt is how much wait each CPU that it uses makes for every online pod, in µs; bias is how much the accounting blames it for
	// each CPU that it uses. A guilty pod has both, an innocent one only bias.
	hurt, bias float64
	group      string     // "": one of its own under /kubepods
	allowed    cpuset.Set // where others let it run; empty: anywhere
	noCPUSet   bool       // its group has no cpuset
	more       int        // containers beside the one that works
	limit      int64      // a CPU quota of its own per 100 ms, µs; 0: none
	throttled  uint64     // periods of ten a tick

	// What the plan last applied left it.
	cpus   int
	quota  float64 // CPUs; 0: none
	frozen bool
}

// uses is the CPUs that it gets.
func (j *job) uses() float64 {
	if j.frozen {
		return 0
	}
	u := min(j.demand, float64(j.cpus))
	if j.quota > 0 {
		u = min(u, j.quota)
	}
	return u
}

// plant is a simple node: the wait of online pods is a base plus what offline pods make by the CPUs that they use. What the brain plans
// holds from the next tick on.
type plant struct {
	t       testing.TB
	brain   *State
	pol     fixed
	jobs    []*job
	cpus    []signal.CPU
	caps    signal.Capabilities
	refused []signal.Refusal // at the next tick
	base    float64          // µs
	rate    uint32           // waits a tick of each online pod
	knee    float64          // CPUs that offline pods may use together before they hurt at all
	noise   float64          // how far the wait swings about its mean, as a part of it
	lag     float64          // 0: the wait follows at once; towards 1: the more slowly
	tick    time.Duration

	now     time.Duration
	seq     uint64
	trouble float64 // µs
	swing   float64
	random  uint64
	snap    signal.Snapshot
	last    Decision
	changes int // of the plan
	log     []control.Note
	verbose bool
	deaf    bool          // nothing of the run queue is read any more
	heard   time.Duration // when it last was
	twin    *State        // sees the same, and has to decide the same
	reborn  bool          // the twin is made anew from a checkpoint before each step
}

// home is the job's group.
func (j *job) home() string {
	if j.group != "" {
		return j.group
	}
	return "/kubepods/pod" + j.name
}

func newPlant(t testing.TB, cpus int, jobs ...*job) *plant {
	p := &plant{
		t: t, brain: New(), jobs: jobs, base: 200, rate: 200, tick: 100 * time.Millisecond, now: time.Hour,
		caps: signal.Capabilities{RunQueue: true, CPUIdle: true, CPUBurst: true, CPUQuota: true, CPUSet: true, Freeze: true, GroupPSI: true, NestedLimits: true},
	}
	for i := range cpus {
		p.cpus = append(p.cpus, signal.CPU{ID: i, Core: i})
	}
	for _, j := range jobs {
		j.cpus = cpus
	}
	spec := policy.Default().Spec
	p.pol = fixed{id: "1", spec: &spec}
	return p
}

func (p *plant) spec() *policy.Spec { return p.pol.spec }

// refuse is a kernel that takes none of a job's settings of a kind: it says so once for each time that they are asked for.
func (p *plant) refuse(name string, k knob.Kind) {
	for _, w := range p.last.Plan {
		if w.Pod == "ns/"+name && w.Kind == k {
			p.refused = append(p.refused, signal.Refusal{Cgroup: w.Cgroup, Knob: k.String(), Reason: "invalid argument"})
		}
	}
}

// wait is the p99 that an online pod sees now.
func (p *plant) wait() time.Duration {
	return time.Duration((p.base + p.trouble) * (1 + p.swing) * float64(time.Microsecond))
}

// react moves the wait towards what the jobs make of it.
func (p *plant) react() {
	used, hurt := 0.0, 0.0
	for _, j := range p.jobs {
		if j.class == policy.Offline {
			used += j.uses()
			hurt += j.hurt * j.uses()
		}
	}
	if used <= p.knee {
		hurt = 0
	} else if p.knee > 0 {
		hurt *= (used - p.knee) / used
	}
	p.trouble = p.lag*p.trouble + (1-p.lag)*hurt
	p.random = p.random*6364136223846793005 + 1442695040888963407
	p.swing = p.noise * (float64(p.random>>40)/(1<<23) - 1)
}

// build makes the snapshot of this instant. On ticks it holds the waits of the tick that ends.
func (p *plant) build(trigger signal.Trigger) {
	p.seq++
	p.snap = signal.Snapshot{Seq: p.seq, Trigger: trigger, Now: p.now, Pods: p.snap.Pods[:0], Containers: p.snap.Containers[:0]}
	s := &p.snap
	s.Node = signal.Node{Caps: p.caps, Topology: signal.Topology{CPUs: p.cpus}, CPU: signal.NodeCPUSample{At: p.now, Span: p.tick}}
	wait := p.wait()
	for i, j := range p.jobs {
		group := j.home()
		s.Pods = append(s.Pods, signal.Pod{
			UID: j.name, Namespace: "ns", Name: j.name, Labels: map[string]string{"class": string(j.class)}, Cgroup: group,
			Containers: []signal.Container{{ID: j.name + "-1", Name: "main", Cgroup: group + "/1"}},
		})
		for k := range j.more {
			s.Pods[i].Containers = append(s.Pods[i].Containers, signal.Container{ID: fmt.Sprint(j.name, "-", k+2), Name: fmt.Sprint("more", k), Cgroup: fmt.Sprint(group, "/", k+2)})
		}
		c := signal.ContainerSample{Pod: i, CPUs: j.allowed, NoCPUSet: j.noCPUSet}
		c.CPU = signal.CPUSample{At: p.now, Span: p.tick, UsageNS: uint64(j.uses() * float64(p.tick)), QuotaUS: -1}
		if j.limit > 0 {
			c.CPU.QuotaUS, c.CPU.PeriodUS, c.CPU.Periods, c.CPU.ThrottledPeriods = j.limit, 100_000, 10, j.throttled
		}
		if !p.deaf {
			p.heard = p.now
		}
		c.Wait = signal.WaitSample{At: p.heard, Span: p.tick}
		if j.class == policy.Online && trigger == signal.Tick {
			c.Wait.Buckets = []signal.Bucket{
				{Index: uint16(histogram.Index(uint64(50 * time.Microsecond))), Count: p.rate * 9 / 10},
				{Index: uint16(histogram.Index(uint64(wait))), Count: p.rate / 10},
			}
			if c.Wait.Buckets[0].Index == c.Wait.Buckets[1].Index {
				c.Wait.Buckets = c.Wait.Buckets[:1]
			}
			for k, o := range p.jobs {
				if ns := uint64(o.bias * o.uses() * 1e6); ns > 0 && k != i {
					c.Wait.Blame = append(c.Wait.Blame, signal.Blame{Culprit: signal.Culprit(k), NS: ns})
				}
			}
		}
		s.Containers = append(s.Containers, c)
		for k := range j.more {
			s.Containers = append(s.Containers, signal.ContainerSample{Pod: i, Container: k + 1, CPUs: j.allowed, CPU: signal.CPUSample{At: p.now, Span: p.tick, QuotaUS: -1}})
		}
	}
	if trigger == signal.Tick {
		s.Refused, p.refused = p.refused, nil
	}
}

// event is the single wait that the kernel would report between ticks, if there is one.
func (p *plant) event() (e signal.WaitEvent, ok bool) {
	wait := p.wait()
	if bound := p.spec().Objectives.CPUWaitEvent.D(); bound == 0 || wait < bound || p.deaf {
		return e, false
	}
	e = signal.WaitEvent{At: p.now, Victim: -1, WaitNS: uint64(wait), Culprit: signal.CulpritUnknown}
	total, most := 0.0, 0.0
	for i, j := range p.jobs {
		if j.class == policy.Online && e.Victim < 0 {
			e.Victim = i
		}
		b := j.bias * j.uses()
		total += b
		if b > most {
			most, e.Culprit = b, signal.Culprit(i)
		}
	}
	if e.Victim < 0 || total == 0 {
		return e, false
	}
	e.PartNS = uint64(most / total * float64(wait))
	return e, true
}

// step lets one tick pass: perhaps an event in its middle, then the tick itself.
func (p *plant) step() {
	p.react()
	p.now += p.tick / 2
	if e, ok := p.event(); ok {
		p.build(signal.Event)
		p.snap.Events = append(p.snap.Events, e)
		p.decide()
	}
	p.now += p.tick - p.tick/2
	p.build(signal.Tick)
	p.snap.Elapsed = p.tick
	p.decide()
}

// run lets d pass and counts the changes of the plan in it.
func (p *plant) run(d time.Duration) int {
	before := p.changes
	for end := p.now + d; p.now < end; {
		p.step()
	}
	return p.changes - before
}

// decide takes one step of the brain, checks what must always hold, and applies the plan.
func (p *plant) decide() {
	if p.reborn {
		p.twin = rebirth(p.t, p.brain)
	}
	d := p.brain.Step(&p.snap, p.pol)
	if p.twin != nil {
		p.snap.PodsGen = 1
		if diff := cmp.Diff(d, p.twin.Step(&p.snap, p.pol)); diff != "" {
			p.t.Fatalf("the twin decided otherwise:\n%s", diff)
		}
	}
	p.last = d
	if d.Changed {
		p.changes++
	}
	for _, n := range d.Notes {
		if p.verbose {
			p.t.Logf("%9.2fs wait %v: %s", (p.now - time.Hour).Seconds(), p.wait().Round(time.Microsecond), n)
		}
		p.log = append(p.log, n)
	}
	p.check(d)
	for _, j := range p.jobs {
		j.cpus, j.quota, j.frozen = len(p.cpus), float64(j.limit)/100_000, false
		for _, w := range d.Plan {
			if w.Pod != "ns/"+j.name {
				continue
			}
			switch w.Kind {
			case knob.CPUSet:
				j.cpus = w.Value.CPUs.Len()
				if !j.allowed.Empty() && !w.Value.CPUs.SubsetOf(j.allowed) {
					p.t.Fatalf("mask %s of %s outside %s", w.Value.CPUs, j.name, j.allowed)
				}
			case knob.CPUQuota:
				j.quota = float64(w.Value.N) / float64(w.Value.Period)
				if j.limit > 0 && j.quota > float64(j.limit)/100_000 {
					p.t.Fatalf("%s loosens the limit of %s", w.Value.Format(w.Kind), j.name)
				}
			case knob.Freeze:
				j.frozen = true
			}
		}
	}
}

// check checks what must hold of every decision.
func (p *plant) check(d Decision) {
	online := p.snap.Node.Topology.Set()
	spec := p.spec()
	if spec.Mode == policy.Observe && len(d.Plan) > 0 {
		p.t.Fatalf("a plan in observe mode: %v", d.Plan)
	}
	plan := d.Plan
	if spec.Mode == policy.Observe {
		plan = d.Would
	}
	classes, sharers := make(map[string]policy.Class), make(map[string]int64)
	for _, j := range p.jobs {
		classes[j.home()], sharers[j.home()] = j.class, 1
		for k := range j.more + 1 {
			group := fmt.Sprint(j.home(), "/", k+1)
			classes[group], sharers[group] = j.class, int64(j.more+1)
		}
	}
	for i, w := range plan {
		if i > 0 {
			o := plan[i-1]
			if o.Cgroup > w.Cgroup || o.Cgroup == w.Cgroup && o.Kind >= w.Kind {
				p.t.Fatalf("plan out of order or a target twice: %v, %v", o, w)
			}
		}
		class := classes[w.Cgroup]
		if class != policy.Offline && !(class == policy.Online && w.Kind == knob.CPUBurst) {
			p.t.Fatalf("%s of %q pod: %+v", w.Kind, class, w)
		}
		switch w.Kind {
		case knob.CPUSet:
			if w.Value.CPUs.Empty() || !w.Value.CPUs.SubsetOf(online) {
				p.t.Fatalf("mask %q on CPUs %q", w.Value.CPUs, online)
			}
			if n := w.Value.CPUs.Len(); n < min(spec.CPU.CPUs.Floor, online.Len()) {
				p.t.Fatalf("%d CPUs, floor %d", n, spec.CPU.CPUs.Floor)
			}
		case knob.CPUQuota:
			if w.Value.N < 1000 || sharers[w.Cgroup]*w.Value.N*100 < int64(spec.CPU.Quota.FloorPercent)*w.Value.Period {
				p.t.Fatalf("quota %s below its floor", w.Value.Format(w.Kind))
			}
		}
	}
	masks := make([]cpuset.Set, 0, len(plan))
	for _, w := range plan {
		if w.Kind == knob.CPUSet {
			masks = append(masks, w.Value.CPUs)
		}
	}
	for _, a := range masks {
		for _, b := range masks {
			if !a.SubsetOf(b) && !b.SubsetOf(a) {
				p.t.Fatalf("pods are not packed: %s beside %s", a, b)
			}
		}
	}
}

// grant is what the named pod is held to.
func (p *plant) grant(name string) control.Grant {
	for i, j := range p.jobs {
		if j.name == name {
			return p.last.Grant[i]
		}
	}
	p.t.Fatalf("no pod %s", name)
	return control.Grant{}
}

// noted counts the notes of a rule about a pod.
func (p *plant) noted(rule, name string) int {
	n := 0
	for _, note := range p.log {
		if note.Rule == rule && (name == "" || note.Pod == "ns/"+name) {
			n++
		}
	}
	return n
}

// wants is the value that the plan holds a knob of the named pod at, and "" if it does not.
func (p *plant) wants(name string, k knob.Kind) string {
	for _, w := range p.last.Plan {
		if w.Pod == "ns/"+name && w.Kind == k {
			return w.Value.Format(k)
		}
	}
	return ""
}

// find is the job of that name.
func (p *plant) find(name string) *job {
	for _, j := range p.jobs {
		if j.name == name {
			return j
		}
	}
	p.t.Fatalf("no pod %s", name)
	return nil
}

// respec lets the policy change.
func (p *plant) respec(change func(*policy.Spec)) {
	spec := *p.pol.spec
	change(&spec)
	p.pol = fixed{id: p.pol.id + "+", spec: &spec}
}

// level is the online pod's verdict on the CPU axis.
func (p *plant) level() judge.Level {
	for _, v := range p.last.Verdicts {
		if v.Axis == judge.CPU {
			return v.Level
		}
	}
	p.t.Fatal("no verdict")
	return judge.Unknown
}

// dump shows what happened when a test has failed.
func (p *plant) dump() {
	if p.t.Failed() {
		for _, n := range p.log[:min(len(p.log), 200)] {
			p.t.Log(fmt.Sprintf("%9.2fs", (n.At-time.Hour).Seconds()), n)
		}
	}
}
