// Package perf counts cycles, instructions and last-level cache references and misses of control groups by perf_event_open with
// PERF_FLAG_PID_CGROUP. The kernel then counts for every task of the group and of the groups below it, on one CPU an event, and
// switches counters with the tasks; nothing runs on the scheduler's path but the kernel's own code.
//
// The four counters of a CPU are one perf group, so that they count over the same time and are read with one system call: opened one
// by one, their windows differ, and ratios such as CPI are wrong by the difference. Where the kernel shares hardware counters among
// users, counts are scaled by enabled over running time for each CPU and each reading.
//
// Descriptors are expensive (four for each CPU and group), so a Pool has a budget; which groups are worth it is its caller's
// decision.
package perf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// EventsPerCPU is how many descriptors a group costs on each CPU.
const EventsPerCPU = 4

var (
	// ErrUnsupported matches errors that say that the machine has no such counters.
	ErrUnsupported = errors.New("the CPU offers no such hardware counter")
	// ErrFull is what Open says when the budget of descriptors, or the process's limit, is used up.
	ErrFull = errors.New("no descriptors left for hardware counters")
	// ErrDenied matches errors that say that the process may not count.
	ErrDenied = errors.New("counting is not permitted")
)

// EventError is a counter that could not be opened or read.
type EventError struct {
	Op    string // "open", "read"
	Event string // "cycles"
	CPU   int
	Err   error
}

func (e *EventError) Error() string {
	return fmt.Sprintf("perf event %s on CPU %d: %s: %v", e.Event, e.CPU, e.Op, e.Err)
}

func (e *EventError) Unwrap() error { return e.Err }

// Is matches ErrUnsupported, ErrDenied and ErrFull by errno.
func (e *EventError) Is(target error) bool {
	switch target {
	case ErrUnsupported:
		return errors.Is(e.Err, unix.ENOENT) || errors.Is(e.Err, unix.EOPNOTSUPP) || errors.Is(e.Err, unix.ENOSYS)
	case ErrDenied:
		return errors.Is(e.Err, unix.EACCES) || errors.Is(e.Err, unix.EPERM)
	case ErrFull:
		return errors.Is(e.Err, unix.EMFILE) || errors.Is(e.Err, unix.ENFILE)
	}
	return false
}

// Event is what one of the four counters counts.
type Event struct {
	Name   string
	Type   uint32 // PERF_TYPE_*
	Config uint64
}

// Hardware are the kernel's generic events. LLC events mean the last-level cache on Intel; on AMD the kernel maps them to the L2's
// traffic to the level beyond, which is what is there to count without uncore events.
func Hardware() [EventsPerCPU]Event {
	return [EventsPerCPU]Event{
		{"cycles", unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES},
		{"instructions", unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_INSTRUCTIONS},
		{"cache-references", unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CACHE_REFERENCES},
		{"cache-misses", unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CACHE_MISSES},
	}
}

// Counts are totals since a group was opened. Each is the sum over CPUs, scaled to the time in which the group ran.
type Counts struct {
	Cycles, Instructions, LLCRefs, LLCMisses uint64
	// Enabled is for how long, summed over CPUs, the group's tasks ran with the counters wanted; Running is the part of it in which the
	// kernel had hardware for them. 0 of both: no task of the group ran.
	Enabled, Running time.Duration
}

// kernel is the system calls, as a test replaces them.
type kernel interface {
	open(attr *unix.PerfEventAttr, group, cpu, leader int) (int, error)
	read(fd int, p []byte) (int, error)
	close(fd int) error
}

type system struct{}

func (system) open(attr *unix.PerfEventAttr, group, cpu, leader int) (int, error) {
	return unix.PerfEventOpen(attr, group, cpu, leader, unix.PERF_FLAG_PID_CGROUP|unix.PERF_FLAG_FD_CLOEXEC)
}
func (system) read(fd int, p []byte) (int, error) { return unix.Read(fd, p) }
func (system) close(fd int) error                 { return unix.Close(fd) }

// Options shape a Pool.
type Options struct {
	// CPUs are the online CPUs.
	CPUs []int
	// MaxFDs bounds the descriptors; 0 is half of what the process may have open.
	MaxFDs int
	// Events to count instead of Hardware, in the order of Counts; for machines without a PMU that want to see the plumbing.
	Events *[EventsPerCPU]Event
}

// Pool opens groups within a budget. It is not safe for use by several goroutines.
type Pool struct {
	events [EventsPerCPU]Event
	cpus   []int
	max    int
	fds    int
	groups []*Group
	sys    kernel
}

// NewPool makes an empty pool.
func NewPool(o Options) *Pool {
	p := &Pool{events: Hardware(), cpus: slices.Clone(o.CPUs), max: o.MaxFDs, sys: system{}}
	if o.Events != nil {
		p.events = *o.Events
	}
	if p.max == 0 {
		p.max = 1024
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
			p.max = int(min(lim.Cur/2, 1<<20))
		}
	}
	return p
}

// Room is how many more groups fit into the budget.
func (p *Pool) Room() int { return max(0, p.max-p.fds) / p.cost() }

// Capacity is how many groups fit into the budget in all.
func (p *Pool) Capacity() int { return p.max / p.cost() }

// FDs is how many descriptors are open.
func (p *Pool) FDs() int { return p.fds }

func (p *Pool) cost() int { return max(1, EventsPerCPU*len(p.cpus)) }

// Group is the counters of one control group. A group that was removed from the file system can still be read: what it counted stays.
type Group struct {
	pool   *Pool
	dir    *os.File
	cpus   []cpuCounters // ascending CPU
	totals Counts
	buf    [8 * (3 + EventsPerCPU)]byte
}

// cpuCounters is the perf group of one CPU.
type cpuCounters struct {
	cpu              int
	fd               [EventsPerCPU]int // the leader first
	value            [EventsPerCPU]uint64
	enabled, running uint64 // ns
}

// Open begins to count for the group whose directory (of the perf_event hierarchy, or of cgroup v2) is dir. It fails as a whole: with
// ErrFull if the group does not fit, with an *EventError if the kernel refuses, or with an error that matches fs.ErrNotExist if there
// is no such group.
func (p *Pool) Open(dir string) (*Group, error) {
	if p.Room() == 0 {
		return nil, ErrFull
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	g := &Group{pool: p, dir: f}
	if err := g.openCPUs(p.cpus); err != nil {
		return nil, errors.Join(err, g.release())
	}
	p.groups = append(p.groups, g)
	return g, nil
}

// openCPUs adds the counters of CPUs. A CPU that has gone offline meanwhile is left out.
func (g *Group) openCPUs(cpus []int) error {
	for _, cpu := range cpus {
		c, err := g.openCPU(cpu)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return err
		}
		at, _ := slices.BinarySearchFunc(g.cpus, cpu, func(c cpuCounters, cpu int) int { return c.cpu - cpu })
		g.cpus = slices.Insert(g.cpus, at, c)
		g.pool.fds += EventsPerCPU
	}
	return nil
}

func (g *Group) openCPU(cpu int) (cpuCounters, error) {
	c := cpuCounters{cpu: cpu}
	for i, e := range g.pool.events {
		attr := unix.PerfEventAttr{Type: e.Type, Config: e.Config, Size: unix.PERF_ATTR_SIZE_VER5}
		attr.Read_format = unix.PERF_FORMAT_GROUP | unix.PERF_FORMAT_TOTAL_TIME_ENABLED | unix.PERF_FORMAT_TOTAL_TIME_RUNNING
		leader := -1
		if i > 0 {
			leader = c.fd[0]
		}
		fd, err := g.pool.sys.open(&attr, int(g.dir.Fd()), cpu, leader)
		if err != nil {
			err = &EventError{Op: "open", Event: e.Name, CPU: cpu, Err: err}
			return cpuCounters{}, errors.Join(err, g.closeFDs(c.fd[:i]))
		}
		c.fd[i] = fd
	}
	return c, nil
}

// Read brings the totals up to date. It does not allocate. On an error the totals hold what could be read.
func (g *Group) Read(into *Counts) error {
	var failed error
	for i := range g.cpus {
		if err := g.readCPU(&g.cpus[i]); err != nil && failed == nil {
			failed = err
		}
	}
	*into = g.totals
	return failed
}

func (g *Group) readCPU(c *cpuCounters) error {
	n, err := g.pool.sys.read(c.fd[0], g.buf[:])
	if err == nil && n != len(g.buf) {
		err = fmt.Errorf("%d bytes, want %d", n, len(g.buf))
	}
	if err != nil {
		return &EventError{Op: "read", Event: g.pool.events[0].Name, CPU: c.cpu, Err: err}
	}
	var word [3 + EventsPerCPU]uint64 // how many, enabled, running, values
	for i := range word {
		word[i] = binary.NativeEndian.Uint64(g.buf[8*i:])
	}
	if word[0] != EventsPerCPU {
		return &EventError{Op: "read", Event: g.pool.events[0].Name, CPU: c.cpu, Err: fmt.Errorf("%d values, want %d", word[0], EventsPerCPU)}
	}
	enabled, running := since(word[1], c.enabled), since(word[2], c.running)
	c.enabled, c.running = word[1], word[2]
	g.totals.Enabled += time.Duration(enabled)
	g.totals.Running += time.Duration(running)
	sum := [EventsPerCPU]*uint64{&g.totals.Cycles, &g.totals.Instructions, &g.totals.LLCRefs, &g.totals.LLCMisses}
	for i, v := range word[3:] {
		*sum[i] += scale(since(v, c.value[i]), enabled, running)
		c.value[i] = v
	}
	return nil
}

// since is how far a counter of 64 bits has come, around its end too. One that went backwards, which only a broken one does, has not
// come far.
func since(now, before uint64) uint64 {
	d := now - before
	if d >= 1<<63 {
		return 0
	}
	return d
}

// scale is n × enabled / running: what would have been counted with hardware all the time.
func scale(n, enabled, running uint64) uint64 {
	if running == 0 || running >= enabled {
		return n
	}
	hi, lo := bits.Mul64(n, enabled)
	if hi >= running {
		return n // more than 64 bits: cannot be a real count
	}
	q, _ := bits.Div64(hi, lo, running)
	return q
}

// SetCPUs tells which CPUs are online now. Counters of CPUs that are gone are closed, after a last reading; what they counted stays in
// the totals. Those of new CPUs are opened, within the budget. The error says which groups are not counted everywhere.
func (p *Pool) SetCPUs(cpus []int) error {
	if slices.Equal(cpus, p.cpus) {
		return nil
	}
	p.cpus = append(p.cpus[:0], cpus...)
	var errs []error
	for _, g := range p.groups {
		kept := g.cpus[:0]
		var missing []int
		for _, c := range g.cpus {
			if slices.Contains(cpus, c.cpu) {
				kept = append(kept, c)
				continue
			}
			_ = g.readCPU(&c) // the CPU is gone; what it had is a gift
			errs = append(errs, g.closeFDs(c.fd[:]))
			p.fds -= EventsPerCPU
		}
		g.cpus = kept
		for _, cpu := range cpus {
			if !slices.ContainsFunc(g.cpus, func(c cpuCounters) bool { return c.cpu == cpu }) {
				missing = append(missing, cpu)
			}
		}
		if room := max(0, p.max-p.fds) / EventsPerCPU; len(missing) > room {
			errs = append(errs, fmt.Errorf("group %s: not counted on CPUs %v: %w", g.dir.Name(), missing[room:], ErrFull))
			missing = missing[:room]
		}
		errs = append(errs, g.openCPUs(missing))
	}
	return errors.Join(errs...)
}

// Close ends the counting of a group.
func (g *Group) Close() error {
	if g == nil || g.pool == nil {
		return nil
	}
	g.pool.groups = slices.DeleteFunc(g.pool.groups, func(o *Group) bool { return o == g })
	return g.release()
}

func (g *Group) release() error {
	var errs []error
	for i := range g.cpus {
		errs = append(errs, g.closeFDs(g.cpus[i].fd[:]))
		g.pool.fds -= EventsPerCPU
	}
	g.cpus = nil
	errs = append(errs, g.dir.Close())
	return errors.Join(errs...)
}

// closeFDs closes members before their leader: the other way round, the kernel would make each of them a leader for a moment.
func (g *Group) closeFDs(fds []int) error {
	var errs []error
	for _, fd := range slices.Backward(fds) {
		errs = append(errs, g.pool.sys.close(fd))
	}
	return errors.Join(errs...)
}

// Close ends the counting of all groups.
func (p *Pool) Close() error {
	var errs []error
	for len(p.groups) > 0 {
		errs = append(errs, p.groups[len(p.groups)-1].Close())
	}
	return errors.Join(errs...)
}

// Probe counts a group on one CPU for a moment, to find out whether the machine can.
func Probe(dir string, cpu int) error {
	p := NewPool(Options{CPUs: []int{cpu}, MaxFDs: EventsPerCPU})
	g, err := p.Open(dir)
	if err != nil {
		return err
	}
	var c Counts
	return errors.Join(g.Read(&c), p.Close())
}
