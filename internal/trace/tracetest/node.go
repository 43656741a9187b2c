// Package tracetest makes up a node that is busy in a believable way: for tests and benchmarks of recording and replay, which want long
// runs of many containers that no test can afford to really run.
package tracetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Options say what the node is like. Containers is required.
type Options struct {
	Containers int
	CPUs       int // 64
	Seed       uint64
	Interval   time.Duration // between ticks; 100 ms
	// Idle is the share of containers that hardly ever run, in percent; 0 is the default of 40, -1 is none.
	Idle int
	// Hardware adds counters and resctrl monitoring once a second.
	Hardware bool
	// Start is the wall-clock time of the first tick.
	Start time.Time
}

// Node is a made-up node. Half of its containers are online and half offline, each in a pod of its own. Most of the time all is well; about a tenth
// of the time one offline pod hurts some online ones.
type Node struct {
	o      Options
	rng    *rand.Rand
	snap   signal.Snapshot
	quiet  []signal.ContainerSample
	rate   []float64 // dispatches a tick
	median []float64 // of waits, ns
	next   int
	gen    uint64
	ticks  int

	bully   int // index of the offline container that hurts; -1: none
	until   time.Duration
	victims []int
	buckets [histogram.Buckets]uint32
}

// New makes a node.
func New(o Options) *Node {
	if o.CPUs == 0 {
		o.CPUs = 64
	}
	if o.Interval == 0 {
		o.Interval = 100 * time.Millisecond
	}
	switch o.Idle {
	case 0:
		o.Idle = 40
	case -1:
		o.Idle = 0
	}
	if o.Start.IsZero() {
		o.Start = time.Date(2026, 11, 26, 9, 0, 0, 0, time.FixedZone("CET", 3600))
	}
	n := &Node{o: o, rng: rand.New(rand.NewPCG(o.Seed, 77)), bully: -1}
	s := &n.snap
	s.Now, s.Wall, s.PodsGen = time.Hour, o.Start, 1
	for i := range o.CPUs {
		s.Node.Topology.CPUs = append(s.Node.Topology.CPUs, signal.CPU{ID: i, Core: i / 2 * 2, Node: i * 2 / o.CPUs})
	}
	s.Node.Caps = signal.Capabilities{RunQueue: true, CPUIdle: true, CPUBurst: true, CPUQuota: true, CPUSet: true, Freeze: true, GroupPSI: true}
	for range o.Containers {
		n.add()
	}
	return n
}

func (n *Node) add() {
	s := &n.snap
	n.next++
	online := n.next%2 == 0
	class, qos := "offline", signal.QoSBestEffort
	if online {
		class, qos = "online", signal.QoSBurstable
	}
	uid := fmt.Sprintf("%08x-aaaa-bbbb-cccc-%012x", n.rng.Uint32(), n.rng.Uint64()&0xffffffffffff)
	p := signal.Pod{
		UID: uid, Namespace: class + "-ns", Name: fmt.Sprintf("%s-%06d", class, n.next), QoS: qos, Cgroup: "/kubepods/" + class + "/pod" + uid,
		Labels: map[string]string{"qos-agent.io/class": class, "app": fmt.Sprintf("app-%d", n.next%20), "pod-template-hash": fmt.Sprintf("%08x", n.rng.Uint32())},
	}
	id := fmt.Sprintf("%016x%016x%016x%016x", n.rng.Uint64(), n.rng.Uint64(), n.rng.Uint64(), n.rng.Uint64())
	p.Containers = []signal.Container{{ID: id, Name: "main", PID: 1000 + n.next, Cgroup: p.Cgroup + "/" + id}}
	s.Pods = append(s.Pods, p)
	c := signal.ContainerSample{Pod: len(s.Pods) - 1}
	c.Memory.Current = n.rng.Uint64N(8 << 30)
	s.Containers = append(s.Containers, c)
	rate := 40 * math.Exp(1.2*n.rng.NormFloat64())
	if n.rng.IntN(100) < n.o.Idle {
		rate = 0.3
	}
	n.rate = append(n.rate, min(rate, 3000))
	n.median = append(n.median, 3000*math.Exp(0.5*n.rng.NormFloat64()))
}

// Churn replaces the pod at index i by a new one, and makes new lists, as whoever has the old ones keeps them.
func (n *Node) Churn(i int) {
	s := &n.snap
	s.Pods = slices.Delete(slices.Clone(s.Pods), i, i+1)
	s.Containers = slices.Delete(s.Containers, i, i+1)
	n.rate, n.median = slices.Delete(n.rate, i, i+1), slices.Delete(n.median, i, i+1)
	for k := range s.Containers {
		s.Containers[k].Pod = k
	}
	n.add()
	n.bully = -1
	s.PodsGen++
}

// Tick lets an interval pass. The snapshot is valid until the next step.
func (n *Node) Tick() *signal.Snapshot {
	s := &n.snap
	jitter := time.Duration(n.rng.IntN(60_000))
	passed := n.o.Interval + jitter - 30*time.Microsecond
	s.Trigger, s.Seq, s.Events, s.Lost = signal.Tick, s.Seq+1, nil, signal.Lost{}
	s.Now, s.Wall, s.Elapsed = s.Now+passed, s.Wall.Add(passed), passed
	if n.ticks == 0 {
		s.Elapsed = 0
	}
	n.ticks++
	n.trouble()
	for i := range s.Containers {
		n.measure(i, n.ticks > 1)
	}
	if n.ticks%10 == 1 {
		s.Node.CPU = signal.NodeCPUSample{At: s.Now, Span: time.Second, BusyNS: uint64(n.o.CPUs) * (4e8 + 1e7*n.rng.Uint64N(10)), SoftirqNS: 1e7 * n.rng.Uint64N(5)}
		s.Node.PSI = signal.PSISample{At: s.Now, Span: time.Second, CPU: signal.Pressure{SomeUS: n.rng.Uint64N(200_000)}}
	}
	return s
}

// Event is a step for long waits of a victim between two ticks, or nil if nobody is in trouble.
func (n *Node) Event() *signal.Snapshot {
	if n.bully < 0 {
		return nil
	}
	s := &n.snap
	passed := time.Duration(n.rng.IntN(int(n.o.Interval / 2)))
	n.quiet = append(n.quiet[:0], s.Containers...)
	for i := range n.quiet {
		n.quiet[i].Wait = signal.WaitSample{}
	}
	out := *s
	out.Trigger, out.Seq, out.Elapsed, out.Lost = signal.Event, s.Seq+1, 0, signal.Lost{}
	out.Now, out.Wall, out.Containers = s.Now+passed, s.Wall.Add(passed), n.quiet
	s.Seq++
	wait := 5e6 + n.rng.Uint64N(2e7)
	out.Events = []signal.WaitEvent{{
		At: out.Now - time.Duration(n.rng.IntN(300_000)), Victim: n.victims[n.rng.IntN(len(n.victims))], PID: int32(1000 + n.rng.IntN(30000)),
		CPU: int32(n.rng.IntN(n.o.CPUs)), WaitNS: wait, Culprit: signal.Culprit(n.bully), PartNS: wait * 9 / 10,
	}}
	return &out
}

// trouble begins and ends.
func (n *Node) trouble() {
	s := &n.snap
	if s.Now < n.until {
		return
	}
	if n.bully >= 0 || n.ticks == 1 {
		n.bully, n.until = -1, s.Now+time.Duration(20+n.rng.IntN(180))*time.Second
		return
	}
	var online, offline []int
	for i := range s.Containers {
		switch {
		case n.rate[i] <= 1:
		case s.Pods[i].QoS == signal.QoSBestEffort:
			offline = append(offline, i)
		default:
			online = append(online, i)
		}
	}
	if len(online) == 0 || len(offline) == 0 {
		return
	}
	n.bully, n.until = offline[n.rng.IntN(len(offline))], s.Now+time.Duration(3+n.rng.IntN(20))*time.Second
	n.victims = n.victims[:0]
	for range 1 + n.rng.IntN(5) {
		n.victims = append(n.victims, online[n.rng.IntN(len(online))])
	}
}

func (n *Node) measure(i int, waits bool) {
	s := &n.snap
	c := &s.Containers[i]
	online := s.Pods[i].QoS != signal.QoSBestEffort
	buckets, blame := c.Wait.Buckets[:0], c.Wait.Blame[:0]
	due := func(every int) bool { return (n.ticks+i)%every == 0 }
	was := c.Wait.At
	c.Wait = signal.WaitSample{}
	switch {
	case !waits:
	case online:
		c.Wait = signal.WaitSample{At: s.Now, Span: s.Elapsed}
		n.wait(i, 1, online, &c.Wait, buckets, blame)
	case due(5) || was == 0: // as the collector does with those by whose waits nothing is decided
		c.Wait = signal.WaitSample{At: s.Now, Span: s.Now - was}
		if was == 0 {
			c.Wait.Span = s.Elapsed
		}
		n.wait(i, max(1, int(c.Wait.Span/n.o.Interval)), online, &c.Wait, buckets, blame)
	default:
		c.Wait.At = was
	}
	used := uint64(n.rate[i]*100*(0.8+0.4*n.rng.Float64())) * 1000
	if due(5) {
		span := s.Now - c.CPU.At
		c.CPU = signal.CPUSample{At: s.Now, Span: span, UsageNS: used * 5, QuotaUS: -1}
		if online && i%4 == 0 {
			c.CPU.QuotaUS, c.CPU.PeriodUS, c.CPU.Periods = 400_000, 100_000, 5
		}
	}
	if due(10) {
		c.Memory.At = s.Now
		c.Memory.Current += uint64(n.rng.IntN(3)) << 12
		c.Memory.WorkingSet = c.Memory.Current * 3 / 4
		c.PSI = signal.PSISample{At: s.Now, Span: s.Now - c.PSI.At}
		if n.rate[i] > 1 {
			c.PSI.CPU.SomeUS = n.rng.Uint64N(20_000)
			c.PSI.IO.SomeUS = n.rng.Uint64N(500)
			c.PSI.IO.FullUS = c.PSI.IO.SomeUS / 2
		}
		if n.o.Hardware {
			ins := used * 10 * uint64(1000+n.rng.IntN(300)) / 500
			c.Perf = signal.PerfSample{At: s.Now, Span: s.Now - c.Perf.At, Cycles: used * 25, Instructions: ins, LLCRefs: ins / 50, LLCMisses: ins / 900, RunningPercent: 100}
			domains := append(c.RDT.Domains[:0], signal.RDTDomainSample{OccupancyBytes: n.rng.Uint64N(30) << 16, TotalBytes: ins / 9, LocalBytes: ins / 10})
			c.RDT = signal.RDTSample{
				At: s.Now, Span: s.Now - c.RDT.At, State: signal.RDTOK, OccupancyBytes: domains[0].OccupancyBytes, TotalBytes: ins / 9, LocalBytes: ins / 10, Domains: domains,
			}
		}
	}
}

// wait makes up the waits of so many ticks: as many as the container runs often, mostly of microseconds, with a tail.
func (n *Node) wait(i, ticks int, online bool, w *signal.WaitSample, buckets []signal.Bucket, blame []signal.Blame) {
	count := n.poisson(n.rate[i] * float64(ticks))
	if count == 0 {
		return
	}
	median := n.median[i]
	hurt := n.bully >= 0 && slices.Contains(n.victims, i)
	long := uint64(0)
	sampled := 48 * ticks
	each := uint64(1)
	if count > sampled {
		each = uint64(count / sampled)
		count = sampled
	}
	top := 0
	low := histogram.Buckets
	for range count {
		ns := median * math.Exp(0.9*n.rng.NormFloat64())
		if hurt && n.rng.IntN(4) == 0 {
			ns = 5e6 * math.Exp(0.8*n.rng.NormFloat64())
		}
		b := histogram.Index(uint64(ns))
		n.buckets[b] += uint32(each)
		low, top = min(low, b), max(top, b)
		w.Count += each
		w.SumNS += uint64(ns) * each
		if ns > 20_000 {
			long += uint64(ns) * each
		}
	}
	for b := low; b <= top; b++ {
		if n.buckets[b] > 0 {
			buckets = append(buckets, signal.Bucket{Index: uint16(b), Count: n.buckets[b]})
			n.buckets[b] = 0
		}
	}
	w.Buckets, w.SumNS = buckets, w.SumNS/1000*1000 // as the collector does
	w.Preempted = uint64(n.rng.IntN(1 + count/8))
	if !online || long == 0 {
		return
	}
	rest := long
	if hurt {
		rest -= long * 9 / 10
	}
	part := func(c signal.Culprit, ns uint64) {
		if ns /= 1000; ns > 0 {
			blame = append(blame, signal.Blame{Culprit: c, NS: ns * 1000})
		}
	}
	part(signal.CulpritSystem, rest/5)
	part(signal.CulpritKernel, rest/7)
	a, b := n.rng.IntN(len(n.rate)), n.rng.IntN(len(n.rate))
	part(signal.Culprit(a), rest/3)
	part(signal.Culprit(b), rest/4)
	if hurt {
		part(signal.Culprit(n.bully), long*9/10)
	}
	slices.SortFunc(blame, func(x, y signal.Blame) int { return int(x.Culprit) - int(y.Culprit) })
	k := 0
	for j, x := range blame {
		if j > 0 && blame[k-1].Culprit == x.Culprit {
			blame[k-1].NS += x.NS
			continue
		}
		blame[k] = x
		k++
	}
	w.Blame = blame[:k]
}

func (n *Node) poisson(mean float64) int {
	if mean > 30 {
		return max(0, int(mean+math.Sqrt(mean)*n.rng.NormFloat64()+0.5))
	}
	limit, p, k := math.Exp(-mean), 1.0, 0
	for {
		p *= n.rng.Float64()
		if p <= limit {
			return k
		}
		k++
	}
}
