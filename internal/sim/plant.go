package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// slice is the step of the plant: what a plan changes shows after it.
const slice = 10 * time.Millisecond

// walkFrom is the wait from which the kernel side looks for culprits.
const walkFrom = 20 // µs

// origin is where CLOCK_MONOTONIC stands when a run begins.
const origin = time.Hour

// plant is the node.
type plant struct {
	sc     *Scenario
	t      time.Duration // since the run began
	random *rand.Rand

	cpus    []signal.CPU // online
	present []*body      // as in the snapshot
	bodies  []*body      // by index into Scenario.Pods
	gen     uint64
	fault   map[string]*Fault // by kind, those that hold now
	bound   time.Duration     // from which a wait is an event; the agent's policy says
	often   time.Duration     // beyond which too many waits are an event, likewise
	long    time.Duration     // from which a wait is too long; the scenario says

	moved  uint64  // bytes between cache and memory since the last tick
	softNS float64 // taken by the hypervisor since the last tick, ns
	busyNS float64
	events []signal.WaitEvent
	snap   signal.Snapshot
	seq    uint64
	last   time.Duration // of the last tick
}

// body is a pod on the plant.
type body struct {
	*Pod
	index   int
	allowed cpuset.Set
	demand  float64 // CPUs
	used    float64 // CPUs, of this slice

	// What the plan leaves it.
	mask     int
	limit    float64 // 0: none
	standing model.Standing
	frozen   bool
	burst    float64 // CPUs
	held     bool    // below the posture
	many     many
	mem      memory

	// Of this tick.
	mix       model.Mixture
	quota     float64 // the probability to find the own quota used up
	buckets   [histogram.Buckets]uint32
	count     uint64
	sumNS     float64
	blame     map[signal.Culprit]float64 // by index into bodies, or a constant
	usage     float64                    // ns
	throttled float64                    // periods
	carried   float64
	read      time.Duration // when its waits were last read
	readCPU   time.Duration
	truth     []float64 // the part of its waits that is too long because of each body, by index into bodies; summed over slices
	base      float64   // that is too long for another reason, likewise
	slices    int

	snapshotIndex int
	static        signal.Pod
}

func newPlant(sc *Scenario) *plant {
	p := &plant{sc: sc, random: rand.New(rand.NewPCG(uint64(sc.Seed), 0x5eed)), fault: make(map[string]*Fault)}
	for i := range sc.Pods {
		b := &body{Pod: &sc.Pods[i], index: i, blame: make(map[signal.Culprit]float64), truth: make([]float64, len(sc.Pods))}
		b.allowed, _ = cpuset.Parse(b.Allowed)
		group := b.Group
		if group == "" {
			group = "/kubepods/burstable/pod-" + b.Name
		}
		uid := b.Name
		if b.Arrives > 0 {
			uid += "-" + b.Arrives.String()
		}
		b.static = signal.Pod{
			UID: uid, Namespace: string(b.Class), Name: b.Name, QoS: signal.QoSBurstable, Cgroup: group,
			Labels:     map[string]string{"qos-agent.io/class": string(b.Class)},
			Containers: []signal.Container{{ID: uid + "-main", Name: "main", PID: 1000 + i, Cgroup: group + "/main"}},
		}
		if b.Class == policy.Unclassified {
			b.static.Labels = nil
		}
		p.bodies = append(p.bodies, b)
	}
	p.arrange()
	p.lift()
	return p
}

// arrange works out which pods, CPUs and faults there are now.
func (p *plant) arrange() {
	clear(p.fault)
	for i := range p.sc.Faults {
		f := &p.sc.Faults[i]
		if p.t >= f.At.D() && (f.For == 0 || p.t < f.At.D()+f.For.D()) {
			p.fault[f.Kind] = f
		}
	}
	n := p.sc.Node.CPUs
	if f := p.fault["offline-cpus"]; f != nil {
		n = f.CPUs
	}
	if n != len(p.cpus) {
		p.cpus = topology(p.sc.Node, n)
	}
	var now []*body
	for _, b := range p.bodies {
		if b.present(p.t) {
			now = append(now, b)
		}
	}
	slices.SortStableFunc(now, func(a, b *body) int {
		if a.static.Namespace != b.static.Namespace {
			if a.static.Namespace < b.static.Namespace {
				return -1
			}
			return 1
		}
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	if !slices.Equal(now, p.present) || p.gen == 0 {
		p.present = now
		p.gen++
	}
}

// topology is the first n CPUs of a machine. Siblings are numbered as on most machines: all first threads, then all second ones.
func topology(node Node, n int) []signal.CPU {
	cores := node.CPUs / node.Threads
	each := max(1, cores/node.Sockets)
	var out []signal.CPU
	for id := range n {
		core := id % cores
		socket := min(core/each, node.Sockets-1)
		out = append(out, signal.CPU{ID: id, Core: core, Node: socket, LLC: socket * each})
	}
	return out
}

// apply makes the plan hold.
func (p *plant) apply(plan []knob.Want) {
	if p.fault["refused"] != nil {
		return
	}
	p.lift()
	for i := range plan {
		w := &plan[i]
		for _, b := range p.bodies {
			if w.Cgroup != b.static.Cgroup && w.Cgroup != b.static.Containers[0].Cgroup || !b.present(p.t) {
				continue
			}
			b.held = b.held || w.Rule != "posture" && w.Kind != knob.CPUBurst
			switch w.Kind {
			case knob.CPUIdle:
				b.standing = model.Idle
			case knob.CPUWeight:
				b.standing = model.Weight
			case knob.CPUSet:
				b.mask = w.Value.CPUs.Len()
			case knob.CPUQuota:
				l := float64(w.Value.N) / float64(w.Value.Period)
				if b.limit == 0 || l < b.limit {
					b.limit = l
				}
			case knob.CPUBurst:
				b.burst = float64(w.Value.N) / quotaPeriodUS
			case knob.Freeze:
				b.frozen = true
			}
		}
	}
}

// lift is the node without a plan.
func (p *plant) lift() {
	for _, b := range p.bodies {
		b.mask, b.limit, b.standing, b.frozen, b.burst, b.held = len(p.cpus), b.Limit, model.Equal, false, 0, false
		if !b.allowed.Empty() {
			b.mask = p.set().And(b.allowed).Len()
		}
	}
}

const quotaPeriodUS = 100_000

func (p *plant) set() cpuset.Set {
	t := signal.Topology{CPUs: p.cpus}
	return t.Set()
}

// advance lets one slice pass under the plan that holds.
func (p *plant) advance() {
	p.t += slice
	p.arrange()
	p.divide()
	p.remember()
	secs := slice.Seconds()
	for _, b := range p.present {
		b.usage += b.used * float64(slice)
		p.busyNS += b.used * float64(slice)
	}
	if f := p.fault["steal"]; f != nil {
		p.softNS += f.Percent / 100 * float64(slice) * float64(len(p.cpus))
	}
	for _, b := range p.present {
		if b.Class == policy.Online {
			p.mix(b)
			p.wait(b, secs)
		}
	}
}

// divide gives every pod its CPU time of this slice: online pods first, then what is left to the others.
func (p *plant) divide() {
	n := float64(len(p.cpus))
	online := 0.0
	var others []*body
	var claims []model.Claim
	for _, b := range p.present {
		b.demand = b.Pod.demand(p.t)
		if b.Class == policy.Online {
			b.used = min(b.demand, n)
			if b.limit > 0 {
				b.used = min(b.used, b.limit)
			}
			online += b.used
			continue
		}
		d := b.demand
		if b.frozen {
			d = 0
		}
		others = append(others, b)
		claims = append(claims, model.Claim{Demand: d, CPUs: b.mask, Limit: b.limit})
	}
	free := max(0.02, 1-online/n)
	if f := p.fault["steal"]; f != nil {
		free *= 1 - f.Percent/100
	}
	for i, used := range model.Share(nil, free, claims) {
		others[i].used = used
	}
}

// mix works out what the waits of an online pod are like now.
func (p *plant) mix(v *body) {
	n := float64(len(p.cpus))
	online := 0.0
	for _, b := range p.present {
		if b.Class == policy.Online {
			online += b.used
		}
	}
	m := model.Mixture{Median: float64(v.Wait.D()) / 1e3, Sigma: v.Spread, Hits: v.mix.Hits[:0]}
	m.Median += model.OwnQueue(len(p.cpus), online/n) * float64(v.Service.D()) / 1e3
	if f := p.fault["slow"]; f != nil {
		m.Median += float64(f.Wait.D()) / 1e3
	}
	if f := p.fault["steal"]; f != nil {
		m.Median += f.Percent / 100 * 10_000
	}
	long := float64(p.long) / 1e3
	for _, o := range p.present {
		h := model.Hit{}
		if o != v && o.used > 0 && o.Harm.Hits > 0 {
			tail := [...]policy.Duration{o.Harm.Equal, o.Harm.Weight, o.Harm.Idle}
			standing := o.standing
			if o.Class != policy.Offline {
				standing = model.Equal
			}
			h.P = o.Harm.Hits * math.Pow(min(o.used/n, 1), o.Harm.Knee)
			h.Mean = v.Sensitivity * float64(tail[standing].D()) / 1e3
			v.truth[o.index] += h.P * math.Exp(-max(0, long-m.Median)/max(h.Mean, 1e-6))
		}
		m.Hits = append(m.Hits, h)
	}
	// Its own quota: a pod whose load comes in lumps half as high again as its mean uses the limit up in some periods.
	v.quota = 0
	if v.limit > 0 {
		peak := 1.5 * v.demand
		v.quota = min(1, max(0, peak-(v.limit+v.burst), v.demand-v.limit)/max(peak, 1e-9))
		v.throttled += v.quota * slice.Seconds() * 1e6 / quotaPeriodUS
	}
	v.mix = m
	calm := model.Mixture{Median: m.Median, Sigma: m.Sigma}
	v.base += calm.Above(long) + v.quota*max(0, 1-long/throttledUS)
	v.slices++
}

// throttledUS is the longest wait for the next period of a quota, µs.
const throttledUS = 20_000

// wait draws the waits of a slice, and reports the long ones as events.
func (p *plant) wait(v *body, secs float64) {
	v.carried += v.Wakeups * v.demand * secs
	n := int(v.carried)
	v.carried -= float64(n)
	for range n {
		us, culprit := v.mix.Median*math.Exp(v.mix.Sigma*p.random.NormFloat64()), signal.CulpritIdle
		roll := p.random.Float64()
		met := -1
		for k, h := range v.mix.Hits {
			if roll -= h.P; roll < 0 {
				met = k
				break
			}
		}
		switch {
		case met >= 0:
			us = v.mix.Median + v.mix.Hits[met].Mean*p.random.ExpFloat64()
			culprit = signal.Culprit(p.present[met].index)
		case p.random.Float64() < v.quota:
			us = throttledUS * p.random.Float64()
			culprit = signal.CulpritQuota
		case v.mix.Median > float64(v.Wait.D())/1e3*1.5 && p.fault["slow"] == nil && p.fault["steal"] == nil:
			culprit = signal.Culprit(v.index) // its own queue
		}
		if met < 0 && culprit != signal.CulpritQuota {
			for _, o := range p.present {
				if o.Harm.Accused > 0 && o.used > 0.01 && p.random.Float64() < o.Harm.Accused {
					culprit = signal.Culprit(o.index)
				}
			}
		}
		if p.fault["unattributed"] != nil {
			culprit = signal.CulpritUnknown
		}
		ns := us * 1e3
		v.buckets[histogram.Index(uint64(ns))]++
		v.count++
		v.sumNS += ns
		if us >= walkFrom {
			v.blame[culprit] += ns
		}
		v.many.waits++
		if p.bound == 0 || p.fault["mute"] != nil || p.fault["stale"] != nil || p.fault["blind"] != nil {
			continue
		}
		single, often := ns >= float64(p.bound), met >= 0 && p.often > 0 && ns > float64(p.often) && v.many.long(p.t)
		if (single || often) && len(p.events) < 64 {
			p.events = append(p.events, signal.WaitEvent{
				At: origin + p.t, Victim: v.index, PID: int32(v.index), WaitNS: uint64(ns), Culprit: culprit, PartNS: uint64(ns), Often: !single,
			})
		}
	}
}

// many is the kernel side's test of whether too many waits are long; bpf/runqueue.bpf.c explains it and has the same figures.
type many struct {
	waits, level uint64 // since the last long one, and what speaks for too many
	last         time.Duration
}

// long takes in a long wait, and reports whether there are too many.
func (m *many) long(now time.Duration) bool {
	const weight, enough, within = 100, 250, 50 * time.Millisecond
	if now-m.last > within || m.waits >= m.level {
		m.level = 0
	} else {
		m.level -= m.waits
	}
	m.level += weight
	m.waits, m.last = 0, now
	if m.level < enough {
		return false
	}
	m.level = 0
	return true
}

// snapshot builds the node as the agent sees it.
func (p *plant) snapshot(trigger signal.Trigger) *signal.Snapshot {
	p.seq++
	s := &p.snap
	*s = signal.Snapshot{
		Seq: p.seq, Trigger: trigger, Now: origin + p.t, Wall: p.wall(), PodsGen: p.gen,
		Pods: s.Pods[:0], Containers: s.Containers[:0], Events: s.Events[:0],
	}
	span := p.t - p.last
	if trigger == signal.Tick {
		s.Elapsed = span
		p.last = p.t
	}
	s.Node.Topology.CPUs = p.cpus
	s.Node.Caps = p.caps()
	p.hardware(&s.Node)
	s.Node.CPU = signal.NodeCPUSample{At: s.Now, Span: span, BusyNS: uint64(p.busyNS), StealNS: uint64(p.softNS)}
	for i, b := range p.present {
		b.snapshotIndex = i
		s.Pods = append(s.Pods, b.static)
	}
	for i, b := range p.present {
		s.Containers = append(s.Containers, p.sample(i, b, trigger, span))
	}
	if p.sc.Node.Ways > 0 && trigger == signal.Tick {
		s.Node.Bandwidth = []signal.DomainBandwidth{{At: s.Now, Span: span, State: signal.RDTOK, TotalBytes: p.moved}}
		p.moved = 0
	}
	for _, e := range p.events {
		v := p.bodies[e.Victim]
		if !v.present(p.t) || p.present[v.snapshotIndex] != v {
			continue
		}
		e.Victim, e.Culprit = v.snapshotIndex, p.translate(e.Culprit)
		s.Events = append(s.Events, e)
	}
	p.events = p.events[:0]
	if trigger == signal.Tick {
		p.busyNS, p.softNS = 0, 0
	}
	return s
}

// wall is the wall-clock time, of a Monday.
func (p *plant) wall() time.Time {
	start, _ := time.Parse("15:04", p.sc.Starts)
	return time.Date(2026, 1, 5, start.Hour(), start.Minute(), 0, 0, time.UTC).Add(p.t)
}

// translate turns a culprit by index into bodies into one by index into the snapshot.
func (p *plant) translate(c signal.Culprit) signal.Culprit {
	if c < 0 {
		return c
	}
	if b := p.bodies[c]; b.present(p.t) {
		return signal.Culprit(b.snapshotIndex)
	}
	return signal.CulpritGone
}

// sample is what is measured of a pod's container; on ticks what was counted begins anew.
func (p *plant) sample(i int, b *body, trigger signal.Trigger, span time.Duration) signal.ContainerSample {
	c := signal.ContainerSample{Pod: i, CPUs: b.allowed}
	if trigger == signal.Tick {
		b.readCPU = origin + p.t
	}
	c.CPU = signal.CPUSample{At: b.readCPU, Span: span, UsageNS: uint64(b.usage), QuotaUS: -1}
	if b.limit > 0 {
		c.CPU.QuotaUS, c.CPU.PeriodUS = int64(b.limit*quotaPeriodUS), quotaPeriodUS
		c.CPU.Periods = uint64(max(1, span/(quotaPeriodUS*time.Microsecond)))
		c.CPU.ThrottledPeriods = uint64(b.throttled)
	}
	if p.fault["blind"] != nil {
		return p.rest(b, c, trigger)
	}
	if p.fault["stale"] == nil && trigger == signal.Tick {
		b.read = origin + p.t
	}
	c.Wait.At, c.Wait.Span = b.read, span
	if trigger == signal.Tick && b.Class == policy.Online && b.read == origin+p.t {
		c.Wait.Count, c.Wait.SumNS = b.count, uint64(b.sumNS)
		for k, n := range b.buckets {
			if n > 0 {
				c.Wait.Buckets = append(c.Wait.Buckets, signal.Bucket{Index: uint16(k), Count: n})
			}
		}
		for culprit, ns := range b.blame {
			c.Wait.Blame = append(c.Wait.Blame, signal.Blame{Culprit: p.translate(culprit), NS: uint64(ns)})
		}
		slices.SortFunc(c.Wait.Blame, func(a, b signal.Blame) int { return int(a.Culprit - b.Culprit) })
		c.Wait.Blame = slices.CompactFunc(c.Wait.Blame, func(a, b signal.Blame) bool { return a.Culprit == b.Culprit })
	}
	return p.rest(b, c, trigger)
}

// rest ends a tick's counts.
func (p *plant) rest(b *body, c signal.ContainerSample, trigger signal.Trigger) signal.ContainerSample {
	if trigger == signal.Tick {
		p.counters(b, &c)
		b.mem.cycles, b.mem.instructions, b.mem.misses = 0, 0, 0
		clear(b.buckets[:])
		clear(b.blame)
		b.count, b.sumNS, b.usage = 0, 0, 0
		b.throttled -= math.Floor(b.throttled)
	}
	return c
}

func (p *plant) caps() signal.Capabilities {
	c := signal.Capabilities{RunQueue: true, CPUIdle: true, CPUBurst: true, CPUQuota: true, CPUSet: true, Freeze: true, GroupPSI: true, NestedLimits: true}
	for _, m := range p.sc.Node.Missing {
		switch m {
		case "cpuIdle":
			c.CPUIdle = false
		case "cpuBurst":
			c.CPUBurst = false
		case "cpuQuota":
			c.CPUQuota = false
		case "cpuSet":
			c.CPUSet = false
		case "freeze":
			c.Freeze = false
		case "groupPSI":
			c.GroupPSI, c.NestedLimits = false, false
		case "runQueue":
			c.RunQueue = false
		}
	}
	if p.fault["blind"] != nil {
		c.RunQueue = false
	}
	return c
}
