package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// What Track may answer besides errors of the kernel.
var (
	// ErrTooManyVictims: every row of the blame matrix is taken. The group is tracked all the same, as no victim.
	ErrTooManyVictims = errors.New("no row of the blame matrix is free")
	// ErrTooManyGroups: the kernel's table of groups is full.
	ErrTooManyGroups = errors.New("the table of groups is full")
)

const (
	maxShards     = 8 // copies of a slot's counters; more would cost memory and reading, fewer would make CPUs wait for each other
	groupsPerSlot = 4 // a container may have groups below its own
	noRow         = ^uint32(0)
)

// Tracer is the loaded kernel side. Its methods are safe for concurrent use.
type Tracer struct {
	coll     *ebpf.Collection
	links    []link.Link
	runStats io.Closer

	runStatsErr error

	slots  int
	shards int

	groups   groupTable
	counters shared[runqueueQosCounters] // [slot * shards + shard]
	cpus     shared[runqueueQosCpu]
	rows     shared[runqueueQosRow]
	blame    shared[uint64] // [row * slots + slot]
	bounds   shared[bounds] // the one variable that is set at run time
	looker   looker

	mu       sync.Mutex
	epoch    uint32      // of the last tracking
	sums     []*slotSums // by slot; nil until a slot is used
	rowOf    []uint32    // by slot
	freeRows []uint32    //
	top      int         // one past the highest slot in use
	events   *ringbuf.Reader
	record   ringbuf.Record
}

// Load loads and attaches the programs. If the kernel or the process lacks something, the error is an [*UnsupportedError].
// What costs most, reading the kernel's BTF, takes some 100 ms and is freed again.
func Load(o Options) (*Tracer, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	t, err := load(o)
	if err != nil {
		return nil, explain(err)
	}
	return t, nil
}

func (o *Options) setDefaults() error {
	o.MaxSlots = cmpOr(o.MaxSlots, DefaultMaxSlots)
	o.MaxVictims = cmpOr(o.MaxVictims, DefaultMaxVictims)
	o.EventBytes = cmpOr(o.EventBytes, DefaultEventBytes)
	o.WalkThreshold = cmpOr(o.WalkThreshold, DefaultWalkThreshold)
	o.EventGap = cmpOr(o.EventGap, DefaultEventGap)
	switch {
	case o.MaxSlots <= int(FirstSlot) || o.MaxSlots > 1<<16:
		return fmt.Errorf("eBPF options: %d slots, want %d to 65536", o.MaxSlots, FirstSlot+1)
	case o.MaxVictims < 0 || o.MaxVictims > o.MaxSlots:
		return fmt.Errorf("eBPF options: %d victims, want 1 to %d, the number of slots", o.MaxVictims, o.MaxSlots)
	case o.EventBytes < 0 || o.EventBytes > 1<<30:
		return fmt.Errorf("eBPF options: %d bytes of events, want 1 to 1 GiB", o.EventBytes)
	case o.WalkThreshold < 0 || o.EventGap < 0:
		return errors.New("eBPF options: a duration is negative")
	}
	return nil
}

func cmpOr[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func load(o Options) (*Tracer, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	t := &Tracer{
		slots:  o.MaxSlots,
		shards: min(ceilPow2(cpus), maxShards),
		sums:   make([]*slotSums, o.MaxSlots),
		rowOf:  slices.Repeat([]uint32{noRow}, o.MaxSlots),
		top:    int(FirstSlot),
	}
	for row := o.MaxVictims; row > 0; row-- {
		t.freeRows = append(t.freeRows, uint32(row-1))
	}

	t.groups.bits = bits.Len(uint(o.MaxSlots*groupsPerSlot*2 - 1)) // at most half full

	spec, err := t.spec(o, cpus)
	if err != nil {
		return nil, err
	}
	if t.coll, err = ebpf.NewCollection(spec.Copy()); err != nil {
		// Timers came with 5.15; what has none can do the rest.
		delete(spec.Programs, runqueueProgQosWatchStart)
		delete(spec.Maps, runqueueMapQosWatches)
		if t.coll, err = ebpf.NewCollection(spec); err != nil {
			return nil, err
		}
	}
	if err := t.open(o); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// spec is the object file with all sizes and constants set.
func (t *Tracer) spec(o Options, cpus int) (*ebpf.CollectionSpec, error) {
	spec, err := loadRunqueue()
	if err != nil {
		return nil, err
	}
	for name, n := range map[string]int{
		runqueueMapQosGroups:       1 << t.groups.bits,
		runqueueMapQosSlotCounters: o.MaxSlots * t.shards,
		runqueueMapQosCpus:         cpus,
		runqueueMapQosRows:         o.MaxVictims,
		runqueueMapQosBlame:        o.MaxVictims * o.MaxSlots,
		runqueueMapQosSums:         cpus * o.MaxSlots,
		// An LRU map deals its entries out to the CPUs by the hundred.
		runqueueMapQosQuotas: max(1024, min(256*cpus, 16384)),
		runqueueMapQosEvents: max(ceilPow2(o.EventBytes), os.Getpagesize()),
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	for name, v := range map[string]any{
		runqueueVarQosGroupBits: uint32(t.groups.bits),
		runqueueVarQosCpuCount:  uint32(cpus),
		runqueueVarQosSlots:     uint32(o.MaxSlots),
		runqueueVarQosShards:    uint32(t.shards),
		runqueueVarQosShared:    flag(cpus > t.shards),
		runqueueVarQosWalkFrom:  uint64(o.WalkThreshold),
		runqueueVarQosEventGap:  uint64(o.EventGap),
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func ceilPow2(n int) int { return 1 << bits.Len(uint(n-1)) }

// open maps the counters and attaches the programs; nothing is counted before that.
func (t *Tracer) open(o Options) error {
	var err error
	if t.groups.shared, err = mapShared[runqueueQosGroup](t.coll.Maps[runqueueMapQosGroups], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if t.counters, err = mapShared[runqueueQosCounters](t.coll.Maps[runqueueMapQosSlotCounters], unix.PROT_READ); err != nil {
		return err
	}
	if t.cpus, err = mapShared[runqueueQosCpu](t.coll.Maps[runqueueMapQosCpus], unix.PROT_READ); err != nil {
		return err
	}
	if t.rows, err = mapShared[runqueueQosRow](t.coll.Maps[runqueueMapQosRows], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if t.blame, err = mapShared[uint64](t.coll.Maps[runqueueMapQosBlame], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if t.bounds, err = mapShared[bounds](t.coll.Maps[".bss"], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	if err = t.looker.open(t.coll); err != nil {
		return err
	}
	if t.events, err = ringbuf.NewReader(t.coll.Maps[runqueueMapQosEvents]); err != nil {
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	t.events.SetDeadline(time.Unix(0, 1)) // reads never block
	if o.RunStats {
		if t.runStats, err = ebpf.EnableStats(unix.BPF_STATS_RUN_TIME); err != nil {
			t.runStats, t.runStatsErr = nil, fmt.Errorf("turn BPF statistics on: %w", err)
		}
	}

	for _, name := range programNames {
		l, err := link.AttachTracing(link.TracingOptions{Program: t.coll.Programs[name]})
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		t.links = append(t.links, l)
	}
	return nil
}

// programNames in the order in which they are attached and listed.
var programNames = []string{runqueueProgQosSchedMigrate, runqueueProgQosSchedSwitch}

// RunStatsErr is why run-time statistics were asked for and are not to be had: they take CAP_SYS_ADMIN, which nothing else here
// does. Whatever else measures goes on without them.
func (t *Tracer) RunStatsErr() error { return t.runStatsErr }

// MaxSlots is the number of slots, pseudo slots included.
func (t *Tracer) MaxSlots() int { return t.slots }

// Track makes tasks of the group with the given id count for slot s. The id is the inode number of the group's directory in
// the cpu controller's hierarchy. A victim's waits are attributed too. Tracking a group again changes its slot and role.
//
// A group below a tracked one must be tracked by itself. With [ErrTooManyVictims] the group is tracked, but as no victim.
func (t *Tracer) Track(id uint64, s Slot, victim bool) error {
	if s < FirstSlot || int(s) >= t.slots {
		return fmt.Errorf("track group %d: slot %d is not in %d to %d", id, s, FirstSlot, t.slots-1)
	}
	if !isGroup(id) {
		return fmt.Errorf("track group %d: %w", id, errNotGroup)
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.sums[s] == nil {
		t.sums[s] = new(slotSums)
	}
	t.top = max(t.top, int(s)+1)
	t.epoch++
	g := runqueueQosGroup{Id: id, Slot: uint32(s), Epoch: t.epoch}
	var full error
	if victim {
		if row := t.takeRow(s); row != noRow {
			g.Row = row + 1
		} else {
			full = fmt.Errorf("track group %d as a victim: %w", id, ErrTooManyVictims)
		}
	}
	if !t.groups.put(g) {
		return fmt.Errorf("track group %d: %w", id, ErrTooManyGroups)
	}
	return full
}

func (t *Tracer) takeRow(s Slot) uint32 {
	if t.rowOf[s] == noRow && len(t.freeRows) > 0 {
		last := len(t.freeRows) - 1
		t.rowOf[s], t.freeRows = t.freeRows[last], t.freeRows[:last]
	}
	return t.rowOf[s]
}

// Untrack makes tasks of the group count for [SlotSystem] again. A group that is not tracked is no error.
func (t *Tracer) Untrack(id uint64) error {
	if !isGroup(id) {
		return fmt.Errorf("untrack group %d: %w", id, errNotGroup)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.groups.remove(id)
	return nil
}

// Reset forgets what slot s has counted, as victim and as culprit, and gives back its row of the matrix. Call it when all groups
// of the slot are untracked and before another container gets the slot.
func (t *Tracer) Reset(s Slot) {
	if s < FirstSlot || int(s) >= t.slots {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	if sums := t.sums[s]; sums != nil {
		sums.restart(t.copies(s))
	}
	for row := range t.rows.at {
		atomic.StoreUint64(&t.blame.at[row*t.slots+int(s)], 0)
	}
	row := t.rowOf[s]
	if row == noRow {
		return
	}
	for i := range t.slots {
		atomic.StoreUint64(&t.blame.at[int(row)*t.slots+i], 0)
	}
	r := &t.rows.at[row]
	atomic.StoreUint64(&r.Walks, 0)
	atomic.StoreUint64(&r.WalkedNs, 0)
	atomic.StoreUint64(&r.LastEvent, 0)
	atomic.StoreUint64(&r.LastLong, 0)
	atomic.StoreUint64(&r.Waits, 0)
	atomic.StoreUint64(&r.Level, 0)
	t.rowOf[s] = noRow
	t.freeRows = append(t.freeRows, row)
}

// bounds is qos_bounds of the kernel side.
type bounds struct{ event, often, watch uint64 }

// SetBounds sets what a victim gives events for: a single wait above event, and waits of which more than a hundredth are above often for
// other containers' sake. 0 turns either off. It takes effect at once, without a system call. A bound below the walk threshold
// acts as that threshold.
func (t *Tracer) SetBounds(event, often time.Duration) {
	b := &t.bounds.at[0]
	atomic.StoreUint64(&b.event, uint64(max(event, 0)))
	atomic.StoreUint64(&b.often, uint64(max(often, 0)))
}

// Wait brings into up to date and reports whether it changed. into must be zero or hold what an earlier call for the same slot
// left there. It neither allocates nor enters the kernel; an unchanged slot costs a few loads.
func (t *Tracer) Wait(s Slot, into *Wait) bool {
	if s < FirstSlot || int(s) >= t.slots {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	sums := t.sums[s]
	if sums == nil {
		return false
	}
	sums.update(t.copies(s))
	if into.Count == sums.total.Count && into.Preempted == sums.total.Preempted {
		return false
	}
	*into = sums.total
	return true
}

// copies is the slot's counters, one element a shard.
func (t *Tracer) copies(s Slot) []runqueueQosCounters {
	return t.counters.at[int(s)*t.shards:][:t.shards]
}

// Blame copies the nanoseconds that victim has waited by culprit slot, as many as into holds (up to MaxSlots), and returns
// the number of waits attributed so far. If that number is seen, which an earlier call returned, nothing is copied.
// It neither allocates nor enters the kernel.
func (t *Tracer) Blame(victim Slot, seen uint64, into []uint64) (walks uint64) {
	if int(victim) >= t.slots {
		return seen
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	row := t.rowOf[victim]
	if row == noRow {
		return seen
	}
	walks = atomic.LoadUint64(&t.rows.at[row].Walks)
	if walks == seen {
		return seen
	}
	cells := t.blame.at[int(row)*t.slots:][:t.slots]
	n := min(len(into), len(cells))
	for i := range min(n, t.top) {
		into[i] = atomic.LoadUint64(&cells[i])
	}
	if n > t.top {
		clear(into[t.top:n])
	}
	return walks
}

// EventFD is a descriptor that polls readable while events are waiting. It is closed by Close.
func (t *Tracer) EventFD() int { return t.coll.Maps[runqueueMapQosEvents].FD() }

// eventBytes is the size of struct qos_event.
const eventBytes = 48

// What an event is: QOS_EVENT_OFTEN and QOS_EVENT_GOES_ON.
const (
	eventOften  = 1
	eventGoesOn = 2
)

// ReadEvent takes the next event, if there is one. It does not block and does not allocate.
func (t *Tracer) ReadEvent(into *Event) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()

	if t.events.AvailableBytes() == 0 {
		return false, nil
	}
	err := t.events.ReadInto(&t.record)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read event: %w", err)
	}
	b := t.record.RawSample
	if len(b) < eventBytes {
		return false, fmt.Errorf("read event: %d bytes, want %d", len(b), eventBytes)
	}
	le := binary.LittleEndian
	kind := le.Uint32(b[40:])
	*into = Event{
		At:      time.Duration(le.Uint64(b[0:])),
		WaitNS:  le.Uint64(b[8:]),
		PartNS:  le.Uint64(b[16:]),
		Victim:  Slot(le.Uint32(b[24:])),
		Culprit: Slot(le.Uint32(b[28:])),
		PID:     int32(le.Uint32(b[32:])),
		CPU:     int32(le.Uint32(b[36:])),
		Often:   kind == eventOften,
		GoesOn:  kind == eventGoesOn,
	}
	return true, nil
}

// Stats fills into, reusing its Programs slice. It makes a system call for each program.
func (t *Tracer) Stats(into *Stats) error {
	programs := into.Programs[:0]
	*into = Stats{}
	for i := range t.cpus.at {
		c := &t.cpus.at[i]
		into.EventsLost += atomic.LoadUint64(&c.EventsLost)
		into.EventsSuppressed += atomic.LoadUint64(&c.EventsSuppressed)
		into.ShortWalks += atomic.LoadUint64(&c.ShortWalks)
		into.BadStamps += atomic.LoadUint64(&c.BadStamps)
		into.QuotaLost += atomic.LoadUint64(&c.QuotaLost)
		into.LateNS += atomic.LoadUint64(&c.LateNs)
	}
	for _, name := range programNames {
		s, err := t.coll.Programs[name].Stats()
		if err != nil {
			into.Programs = programs
			return fmt.Errorf("statistics of %s: %w", name, err)
		}
		programs = append(programs, ProgramStats{Name: name, RunNS: uint64(s.Runtime), Runs: s.RunCount})
	}
	if t.looker.watch != nil {
		watched := &t.looker.found.at[waitsWatched]
		programs = append(programs, ProgramStats{Name: "qos_watch_look", RunNS: atomic.LoadUint64(&watched.LookNs), Runs: atomic.LoadUint64(&watched.Looks)})
	}
	into.Programs = programs
	return nil
}

// Close detaches the programs and frees everything. The Tracer must not be used afterwards.
func (t *Tracer) Close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	if t.runStats != nil {
		errs = append(errs, t.runStats.Close())
	}
	if t.events != nil {
		errs = append(errs, t.events.Close())
	}
	errs = append(errs, t.groups.unmap(), t.counters.unmap(), t.cpus.unmap(), t.rows.unmap(), t.blame.unmap(), t.bounds.unmap(), t.looker.found.unmap())
	t.coll.Close()
	return errors.Join(errs...)
}
