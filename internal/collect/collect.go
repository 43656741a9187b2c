// Package collect turns what the kernel shows into snapshots: run-queue waits and blame from package ebpf, CPU, memory and pressure
// from the files of groups, and the state of the node from procfs and sysfs.
//
// Reading everything of 150 containers at each tick would cost more than all the rest of the agent. So waits, which are mapped memory, are read
// at each tick of online containers, and of others seldom; CPU time at each tick where a quota can hurt an online container, else seldom;
// pressure and quotas seldom, and those of containers that are not online, about which nothing is decided by them, more seldom still, as is
// all memory, which is only shown. Seldom readings of different containers fall on different ticks, and every sample says when it was taken
// and what time it covers.
//
// What is kept per container lasts as long as the container is listed. Files are kept open, and once the pods have settled a tick
// allocates nothing.
package collect

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// Tracer is what is needed of *ebpf.Tracer.
type Tracer interface {
	MaxSlots() int
	Track(id uint64, s ebpf.Slot, victim bool) error
	Untrack(id uint64) error
	Reset(s ebpf.Slot)
	Wait(s ebpf.Slot, into *ebpf.Wait) bool
	Blame(victim ebpf.Slot, seen uint64, into []uint64) (walks uint64)
	Stats(into *ebpf.Stats) error
}

// Options are where and how often to look. Hierarchy and Clock are required.
type Options struct {
	Proc, Sys string // mounts; "/proc" and "/sys" if empty
	Hierarchy *cgroup.Hierarchy
	Tracer    Tracer // nil (not a nil pointer in the interface): waits are not measured
	Clock     clock.Clock
	Log       *slog.Logger // must not block; nil for none
	// Caps is what the node was found to be able to do; it is shown in every snapshot.
	Caps signal.Capabilities
	// OriginalCPUs says which CPUs a group had before the agent changed its cpuset, if the agent did. It is called on the
	// collector's goroutine and must be quick. nil: the agent changes no cpuset.
	OriginalCPUs func(group string) (cpus cpuset.Set, held bool)
	// Counters counts in hardware; nil (not a nil pointer in the interface): nothing is.
	Counters Counters
	// Resctrl reads the counters of cache and memory bandwidth; nil: none. RDT is what the machine can do with them.
	Resctrl Resctrl
	RDT     signal.RDT
	// MonitorGroup says which group of resctrl counts for the pod of this group and for nobody else; ok is false if none does. It is called
	// on the collector's goroutine and must be quick.
	MonitorGroup func(podGroup string) (group string, ok bool)

	// The times between two readings. 0 is the default; a reading is never more frequent than ticks.
	PerfEvery        time.Duration // hardware counters of online containers; every tick
	PerfOfflineEvery time.Duration // hardware counters of all others; 200 ms
	RDTEvery         time.Duration // resctrl's counters, of pods and of the machine; 200 ms
	CPUEvery         time.Duration // CPU time of containers that no quota can hurt; 500 ms
	WaitEvery        time.Duration // waits of containers that are not online; 500 ms
	QuotaEvery       time.Duration // 1 s; of containers that are not online, 5 times that
	MemoryEvery      time.Duration // 5 s
	PSIEvery         time.Duration // of groups; 1 s; of containers that are not online, 5 times that
	NodeEvery        time.Duration // everything of the node; 1 s, because /proc/stat counts in steps of 10 ms
	ScanEvery        time.Duration // groups below a container's own, its cpuset, files that were missing; 5 s
}

// Collector makes snapshots. All of its methods belong to one goroutine.
type Collector struct {
	o     Options
	log   *slog.Logger
	every [parts]time.Duration

	pods       []signal.Pod // as given to SetPods
	gen        uint64       // of pods
	podStates  map[PodRef]*pod
	containers map[containerKey]*container
	byGroup    map[string]*container
	owners     map[uint64]*container // which container a group's id is tracked for
	list       []*container          // in the order of snapshots
	born       uint32                // containers so far; gives each its phase

	tracer Tracer
	slots  slots
	row    []uint64 // scratch: one row of the blame matrix
	opens  int      // containers whose files were opened in this tick

	perf      perfs
	perfOpens int // descriptors opened in this tick
	bus       bus
	stats     ebpf.Stats
	noSlot    int

	above   map[string]*cgroup.CPUSetReader // of the groups right above pods; nil where there is no cpuset
	node    *node
	scratch cgroup.Scratch
	nested  []uint64 // scratch: ids of the groups of one container
	rescan  []string // groups to scan at the next tick
	errors  [signals]uint64
	failing uint8 // readings of the node that went wrong the last time, by bit

	// Snapshots. Those of ticks take turns in two frames, and those of events in two others.
	seq      uint64
	ticks    [2]frame
	current  int // index of the last tick's
	ticked   time.Duration
	hasTick  bool
	quiet    [2][]signal.ContainerSample // containers without waits, for events; one for each of ticks
	isQuiet  [2]bool                     // quiet was made since the tick
	events   [2]frame
	curEvent int
	pending  []ebpf.Event
	dropped  uint64
}

// frame is a snapshot and the memory behind it.
type frame struct {
	snap       signal.Snapshot
	containers []signal.ContainerSample
	buckets    []signal.Bucket
	blame      []signal.Blame
	events     []signal.WaitEvent
}

// signalKind is a kind of measurement that can fail.
type signalKind uint8

const (
	signalWait signalKind = iota
	signalCPU
	signalMemory
	signalPSI
	signalNode
	signalPerf
	signalRDT
	signals
)

func (k signalKind) String() string {
	return [signals]string{"wait", "cpu", "memory", "psi", "node", "perf", "rdt"}[k]
}

// New makes a collector and takes the first readings of the node. It fails if the node's CPUs cannot be read.
func New(o Options) (*Collector, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Collector{
		o:          o,
		log:        o.Log,
		tracer:     o.Tracer,
		podStates:  map[PodRef]*pod{},
		containers: map[containerKey]*container{},
		byGroup:    map[string]*container{},
		owners:     map[uint64]*container{},
		above:      map[string]*cgroup.CPUSetReader{},
		pending:    make([]ebpf.Event, 0, maxEvents),
		current:    1,
	}
	c.every = [parts]time.Duration{
		partCPU: or(o.CPUEvery, 500*time.Millisecond), partQuota: or(o.QuotaEvery, time.Second),
		partMemory: or(o.MemoryEvery, 5*time.Second), partPSI: or(o.PSIEvery, time.Second), partScan: or(o.ScanEvery, 5*time.Second),
		partPerf: or(o.PerfOfflineEvery, 200*time.Millisecond), partRDT: or(o.RDTEvery, 200*time.Millisecond),
		partWait: or(o.WaitEvery, 500*time.Millisecond),
	}
	if c.tracer != nil {
		c.slots.init(c.tracer.MaxSlots())
		c.row = make([]uint64, c.tracer.MaxSlots())
	}
	var err error
	if c.node, err = openNode(orText(o.Proc, "/proc"), orText(o.Sys, "/sys"), or(o.NodeEvery, time.Second)); err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	c.node.sample.Caps, c.node.sample.RDT = o.Caps, o.RDT
	c.perf.pool = o.Counters
	c.readNode(o.Clock.Now())
	return c, nil
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Close lets go of all groups and files.
func (c *Collector) Close() error {
	c.SetPods(nil, func(*signal.Pod) bool { return false })
	for _, r := range c.above {
		c.closed(r.Close())
	}
	clear(c.above)
	c.bus.close()
	return c.node.close()
}

// Tick reads what is due and returns the node as it is now. The snapshot stays valid and unchanged until the second next call of
// Tick, so that a step may compare with the one before.
func (c *Collector) Tick() *signal.Snapshot {
	now := c.o.Clock.Now()
	c.applyRescan()

	c.current ^= 1
	f := &c.ticks[c.current]
	c.isQuiet[c.current] = false
	f.containers = resize(f.containers, len(c.list))
	f.buckets, f.blame, f.events = f.buckets[:0], f.blame[:0], f.events[:0]

	// First every container gets its index, then waits are read: blame names containers by index.
	if c.slots.indexGen != c.gen {
		c.slots.forgetIndexes(c.gen)
	}
	c.noSlot, c.opens, c.perfOpens = 0, 0, 0
	c.rank(now)
	c.readBus(now)
	for i, ct := range c.list {
		c.readGroup(now, ct)
		f.containers[i] = ct.sample
		if ct.slot != 0 {
			c.slots.index[ct.slot] = int32(i)
		} else if c.tracer != nil && ct.id != 0 && c.byGroup[ct.group] == ct {
			c.noSlot++
		}
	}
	for i, ct := range c.list {
		if ct.slot == 0 || now <= ct.waitAt {
			continue
		}
		if w := &f.containers[i].Wait; ct.victim || ct.due.due(partWait, now, c.every[partWait], ct.phase) {
			c.readWait(now, ct, f, w)
		} else {
			w.At = ct.waitAt // nothing new
		}
	}
	c.reuseSlots(now)
	lost := c.readNode(now)

	var elapsed time.Duration
	if c.hasTick {
		elapsed = now - c.ticked
	}
	c.ticked, c.hasTick = now, true
	c.seq++
	lost.NoSlot = uint64(c.noSlot)
	f.snap = signal.Snapshot{
		Seq: c.seq, Trigger: signal.Tick, Now: now, Wall: c.o.Clock.Wall(), Elapsed: elapsed,
		Node: c.node.sample, PodsGen: c.gen, Pods: c.pods, Containers: f.containers, Events: c.takeEvents(f, signal.Tick), Lost: lost,
	}
	return &f.snap
}

// resize makes s n long; what is in it does not matter.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n, n+n/4)
	}
	return s[:n]
}

// fail counts a reading that went wrong and logs it once until the same reading works again. A group that vanished is no failure.
func (c *Collector) fail(kind signalKind, ct *container, err error) {
	if errors.Is(err, cgroup.ErrGone) {
		return
	}
	c.errors[kind]++
	failing, group := &c.failing, "" // of the node
	if ct != nil {
		failing, group = &ct.failing, ct.group
	}
	if *failing&(1<<kind) == 0 {
		*failing |= 1 << kind
		c.log.Warn("reading failed; logged again only after it has worked", "signal", kind.String(), "group", group, "error", err)
	}
}

// works ends what fail began.
func (ct *container) works(kind signalKind) { ct.failing &^= 1 << kind }
