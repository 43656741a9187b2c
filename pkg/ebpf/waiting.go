package ebpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Part is what one slot has of a wait.
type Part struct {
	Slot Slot
	NS   uint64
}

// looker asks the kernel side who is waiting. The system call is made by hand because the library's allocates.
type looker struct {
	prog  *ebpf.Program
	watch *ebpf.Program // nil: the kernel has no timers for programs
	every time.Duration // between two looks of the kernel's own
	found shared[runqueueQosWaiters]
	args  runqueueQosLookArgs
	parts []Part
}

// testRun is the part of union bpf_attr that BPF_PROG_TEST_RUN uses.
type testRun struct {
	fd, retval                uint32
	sizeIn, sizeOut           uint32
	dataIn, dataOut           uint64
	repeat, duration          uint32
	ctxSizeIn, ctxSizeOut     uint32
	ctxIn, ctxOut             uint64
	flags, cpu, batch, unused uint32
}

const progTestRun = 10 // BPF_PROG_TEST_RUN

// Whose look it was: elements of qos_waits.
const (
	waitsAsked = iota
	waitsWatched
)

func (l *looker) open(coll *ebpf.Collection) (err error) {
	l.prog, l.watch = coll.Programs[runqueueProgQosLook], coll.Programs[runqueueProgQosWatchStart]
	l.found, err = mapShared[runqueueQosWaiters](coll.Maps[runqueueMapQosWaits], unix.PROT_READ)
	return err
}

// look fills found with the waits of victims that are longer than bound and have not ended.
func (l *looker) look(bound time.Duration) error {
	l.args.Bound = uint64(bound)
	attr := testRun{fd: uint32(l.prog.FD()), ctxSizeIn: uint32(unsafe.Sizeof(l.args)), ctxIn: uint64(uintptr(unsafe.Pointer(&l.args)))}
	if err := attr.run(); err != nil {
		return fmt.Errorf("look who waits: %w", err)
	}
	return nil
}

// run does not allocate.
func (attr *testRun) run() error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch {
		case errno == 0:
			return nil
		case !errors.Is(errno, unix.EINTR) && !errors.Is(errno, unix.EAGAIN):
			return errno
		}
	}
}

// Watch makes the kernel look for itself, every so often, whether a victim's task has waited for longer than the bound of single waits
// (see [Tracer.SetBounds]) and goes on waiting, and give an event with GoesOn if there is one. 0 ends that. It reports whether the kernel
// does it: before 5.15 none can, and the caller has to ask [Tracer.Waiting] in time. What does not change costs nothing.
func (t *Tracer) Watch(every time.Duration) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &t.looker
	if l.watch == nil || every == l.every {
		return l.watch != nil, nil
	}
	atomic.StoreUint64(&t.bounds.at[0].watch, uint64(max(every, 0)))
	if every > 0 {
		attr := testRun{fd: uint32(l.watch.FD())}
		if err := attr.run(); err != nil {
			return false, fmt.Errorf("start to watch who waits: %w", err)
		}
		if attr.retval != 0 {
			return false, fmt.Errorf("start to watch who waits: the kernel refuses its timer (step %d)", attr.retval)
		}
	}
	l.every = every
	return true, nil
}

// Waiting appends an event for each victim's task that has waited for longer than bound by now and goes on waiting. Their Parts are good
// until the next call. It takes one system call and does not allocate once into has room.
//
// It reads run queues from outside and without their locks, so a wait may be missed or have ended in the meantime.
func (t *Tracer) Waiting(bound time.Duration, into []Event) ([]Event, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &t.looker
	if err := l.look(bound); err != nil {
		return into, err
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return into, fmt.Errorf("clock: %w", err)
	}
	l.parts = l.parts[:0]
	found := &l.found.at[waitsAsked]
	for i := range min(found.N, uint64(len(found.At))) {
		w := &found.At[i]
		if w.Now <= w.Queued || int(w.Cpu) >= len(t.cpus.at) {
			continue
		}
		e := Event{At: time.Duration(ts.Nano()), Victim: Slot(w.Slot), PID: w.Pid, CPU: int32(w.Cpu), WaitNS: w.Now - w.Queued, Ongoing: true}
		from := len(l.parts)
		l.parts = attribute(&t.cpus.at[w.Cpu], w.Queued, w.Now, w.Lost, l.parts)
		e.Parts = l.parts[from:len(l.parts):len(l.parts)]
		for _, p := range e.Parts {
			if p.NS > e.PartNS {
				e.Culprit, e.PartNS = p.Slot, p.NS
			}
		}
		into = append(into, e)
	}
	return into, nil
}

// attribute appends who ran on a CPU between from and to (rq clock), when lost was what interrupts and the hypervisor had taken so far. The
// log may be written meanwhile: an entry that does not fit ends the walk, and the rest is unknown.
func attribute(c *runqueueQosCpu, from, to, lost uint64, parts []Part) []Part {
	s := shares{parts: parts, first: len(parts)}
	head, end, endLost := atomic.LoadUint32(&c.Head), to, lost
	first := logFirst(head)
	for at := head - 1; at != first-1; at-- {
		r := &c.Runs[at%logEntries]
		start, slotLost := atomic.LoadUint64(&r.Start), atomic.LoadUint64(&r.SlotLost)
		if start == 0 {
			break
		}
		if start >= end { // it began after the look
			continue
		}
		ran := end - max(start, from)
		taken := (endLost - slotLost) & nsMask
		if ran < end-start {
			taken = uint64(float64(taken) * float64(ran) / float64(end-start))
		}
		taken = min(taken, ran)
		s.add(SlotIRQ, taken)
		s.add(Slot(slotLost>>nsBits), ran-taken)
		if end, endLost = max(start, from), slotLost&nsMask; end == from {
			return s.parts
		}
	}
	for i := range digests {
		d := &c.Digests[(first/digestRuns-1-i)%digests]
		start := atomic.LoadUint64(&d.Start)
		if atomic.LoadUint64(&d.End) != end || start >= end {
			break
		}
		s.addDigest(d, max(start, from), start, end)
		end = start
		if end <= from {
			return s.parts
		}
	}
	s.add(SlotUnknown, end-from)
	return s.parts
}

// What bpf/switchlog.bpf.h has of a CPU.
const (
	nsBits      = 48
	nsMask      = 1<<nsBits - 1
	logEntries  = uint32(len(runqueueQosCpu{}.Runs))
	digests     = uint32(len(runqueueQosCpu{}.Digests))
	digestRuns  = 64
	digestParts = len(runqueueQosDigest{}.Parts)
)

// logFirst is the entry of a log of so many with which a walk back through it ends. What is older is in digests.
func logFirst(head uint32) uint32 { return (head - logEntries + digestRuns - 1) &^ (digestRuns - 1) }

// shares is how a wait is shared out.
type shares struct {
	parts []Part
	first int // of this wait
}

func (s *shares) add(slot Slot, ns uint64) {
	if ns == 0 {
		return
	}
	for i := s.first; i < len(s.parts); i++ {
		if s.parts[i].Slot == slot {
			s.parts[i].NS += ns
			return
		}
	}
	s.parts = append(s.parts, Part{slot, ns})
}

// addDigest adds what lies between from and end of a digest, which is of the time from start to end. What is read while it is
// written does not add up to more than that.
func (s *shares) addDigest(d *runqueueQosDigest, from, start, end uint64) {
	rest := end - from
	share := float64(rest) / float64(end-start)
	take := func(slot Slot, ns uint64) {
		ns = min(uint64(float64(ns)*share), rest)
		rest -= ns
		s.add(slot, ns)
	}
	take(SlotIRQ, atomic.LoadUint64(&d.Taken))
	for i := range d.Parts {
		part := atomic.LoadUint64(&d.Parts[i])
		if part == 0 {
			break
		}
		take(Slot(part>>nsBits), part&nsMask)
	}
	s.add(SlotUnknown, rest)
}
