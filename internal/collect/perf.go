package collect

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// Hardware counters. A reading is a system call for each CPU of each container, and on CPUs where the group runs an interrupt, about
// 1.5 µs in all; so online containers are read at each tick, offline ones less often, and on large machines everything less often,
// so that readings take no more than a fiftieth of one CPU's time.
const (
	perfReadCost  = 1500 * time.Nanosecond
	perfReadShare = 50
	// perfOpensATick bounds how many descriptors are opened in one tick; each takes some µs and makes the kernel wait for its other CPUs
	// when it is the first of its kind.
	perfOpensATick = 128
	// perfKeep is by how much an offline container that is not counted must use more CPU than one that is, in percent, to take its
	// place.
	perfKeep = 150
)

// Counters is what is needed of *perf.Pool.
type Counters interface {
	Capacity() int
	FDs() int
	Open(dir string) (*perf.Group, error)
	SetCPUs(cpus []int) error
}

// perfs is the state of hardware counting as a whole.
type perfs struct {
	pool     Counters
	ranked   []*container // scratch of rank
	stale    bool         // who is to be counted has to be worked out again
	next     time.Duration
	cpus     []int
	counted  int // containers with counters open
	refused  bool
	lastFail time.Duration
}

// counting is the hardware counters of one container.
type counting struct {
	group  *perf.Group
	want   bool // it is among those that are worth their descriptors
	retry  backoff
	at     time.Duration // of counts; 0: none
	counts perf.Counts
	scarce bool // its counters ran less than half of the time at the last reading
	said   bool // that was said
}

// rankEvery is the time between two choices of who is counted when there are too many.
const rankEvery = 5 * time.Second

// rank decides who is counted: all, or if that takes too many descriptors the online containers and then the offline ones that use the
// most CPU, in which case one that is counted already is not put aside for one that is only a little larger.
func (c *Collector) rank(now time.Duration) {
	p := &c.perf
	if p.pool == nil || !p.stale && now < p.next {
		return
	}
	p.stale, p.next = false, now+rankEvery
	c.followCPUs()
	p.ranked = append(p.ranked[:0], c.list...)
	capacity := p.pool.Capacity()
	if len(p.ranked) > capacity {
		slices.SortStableFunc(p.ranked, func(a, b *container) int {
			if a.victim != b.victim {
				return cmp.Compare(rankOf(a.victim), rankOf(b.victim))
			}
			return cmp.Compare(b.worth(), a.worth())
		})
	}
	for i, ct := range p.ranked {
		ct.perf.want = i < capacity && c.measures(ct)
		if !ct.perf.want {
			c.closePerf(ct)
		}
	}
}

func rankOf(victim bool) int {
	if victim {
		return 0
	}
	return 1
}

// worth is the container's CPU use, larger if it is counted already.
func (ct *container) worth() uint64 {
	s := &ct.sample.CPU
	if s.Span <= 0 {
		return 0
	}
	use := s.UsageNS * 1000 / uint64(s.Span)
	if ct.perf.group != nil {
		use = use * perfKeep / 100
	}
	return use
}

// followCPUs opens and closes counters as CPUs come and go.
func (c *Collector) followCPUs() {
	p := &c.perf
	p.cpus = p.cpus[:0]
	for _, cpu := range c.node.sample.Topology.CPUs {
		p.cpus = append(p.cpus, cpu.ID)
	}
	if err := p.pool.SetCPUs(p.cpus); err != nil {
		c.fail(signalPerf, nil, err)
		return
	}
	c.failing &^= 1 << signalPerf
}

// perfEvery is the time between two readings of a container.
func (c *Collector) perfEvery(victim bool) time.Duration {
	every := c.o.PerfEvery
	if !victim {
		every = c.every[partPerf]
	}
	cost := time.Duration(c.perf.counted*len(c.perf.cpus)) * perfReadCost * perfReadShare
	return max(every, cost)
}

// readPerf reads the counters when they are due, and opens them when there is room.
func (c *Collector) readPerf(now time.Duration, ct *container) {
	p := &ct.perf
	if !p.want {
		return
	}
	if p.group == nil {
		if p.retry.next != 0 && !p.retry.due(now) || c.perfOpens >= perfOpensATick {
			return
		}
		c.openPerf(now, ct)
		return
	}
	if now < p.at+c.perfEvery(ct.victim) && p.at != 0 {
		return
	}
	before := p.counts
	if err := p.group.Read(&p.counts); err != nil {
		c.fail(signalPerf, ct, err)
		return
	}
	ct.works(signalPerf)
	if p.at != 0 {
		ct.sample.Perf = perfSample(now, p.at, &p.counts, &before)
		ct.totals.count(&p.counts, &before)
		c.sayScarce(ct)
	}
	p.at = now
}

func (c *Collector) openPerf(now time.Duration, ct *container) {
	p := &ct.perf
	dir, ok := c.o.Hierarchy.Dir(cgroup.PerfEvent, ct.group)
	if !ok {
		return
	}
	before := c.perf.pool.FDs()
	group, err := c.perf.pool.Open(dir)
	c.perfOpens += perf.EventsPerCPU + max(0, c.perf.pool.FDs()-before)
	if err != nil {
		p.retry.fail(now, retryMax)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, perf.ErrFull) { // the first is a group that is not there (yet), the second is policy
			c.fail(signalPerf, ct, err)
		}
		return
	}
	c.perf.counted++
	p.group, p.retry, p.at, p.counts = group, backoff{}, now, perf.Counts{}
	if err := group.Read(&p.counts); err != nil {
		c.fail(signalPerf, ct, err)
	}
}

func (c *Collector) closePerf(ct *container) {
	p := &ct.perf
	if p.group == nil {
		return
	}
	c.closed(p.group.Close())
	c.perf.counted--
	p.group, p.at = nil, 0
	ct.sample.Perf = signal.PerfSample{}
}

func perfSample(now, since time.Duration, n, before *perf.Counts) signal.PerfSample {
	s := signal.PerfSample{
		At: now, Span: now - since,
		Cycles: n.Cycles - before.Cycles, Instructions: n.Instructions - before.Instructions,
		LLCRefs: n.LLCRefs - before.LLCRefs, LLCMisses: n.LLCMisses - before.LLCMisses,
		BusyNS: uint64(n.Enabled - before.Enabled), RunningPercent: 100,
	}
	if enabled := n.Enabled - before.Enabled; enabled > 0 {
		s.RunningPercent = uint8(min(100, (n.Running-before.Running)*100/enabled))
	}
	return s
}

func (t *totals) count(n, before *perf.Counts) {
	t.counted = true
	t.counters.Cycles += n.Cycles - before.Cycles
	t.counters.Instructions += n.Instructions - before.Instructions
	t.counters.LLCRefs += n.LLCRefs - before.LLCRefs
	t.counters.LLCMisses += n.LLCMisses - before.LLCMisses
}

// sayScarce says once of a container that its counts are more extrapolated than counted.
func (c *Collector) sayScarce(ct *container) {
	scarce := ct.sample.Perf.RunningPercent < 50
	if scarce && !ct.perf.said {
		ct.perf.said = true // once; how many there are now is a metric
		c.log.Warn("hardware counters are shared with others and run less than half of the time; counts are extrapolated",
			"group", ct.group, "percent", ct.sample.Perf.RunningPercent)
	}
	ct.perf.scarce = scarce
}
