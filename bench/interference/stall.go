package main

import (
	"runtime"
	"sync"
	"time"

	"github.com/qos-agent/qos-agent/internal/clock"
	"golang.org/x/sys/unix"
)

// stalls finds moments in which no CPU of the machine ran anything. A real-time thread on each CPU wakes up every millisecond; one that is
// late had to wait for the kernel, perhaps in a section that offline work has led it into. When all of them are late at the same moment,
// nothing in this machine can have been the cause: a hypervisor took all CPUs away, whether it reports that or not.
type stalls struct {
	mu    sync.Mutex
	byCPU [][]stallOf // late wake-ups of each CPU's thread since the last reset
}

type stallOf struct{ from, to int64 } // CLOCK_MONOTONIC, ns

const (
	wakeEvery = time.Millisecond
	// stallMin is what a wake-up must be late to count, and stallMax for how long all CPUs may be away within a window.
	stallMin = 400 * time.Microsecond
	stallMax = 500 * time.Microsecond
	stallRT  = 90 // priority of the threads, above that of the load generator
)

// newStalls starts the threads, which never end: processes that were started from one would be killed with it.
func newStalls(cpus int) *stalls {
	s := &stalls{byCPU: make([][]stallOf, cpus)}
	for cpu := range cpus {
		go s.watch(cpu)
	}
	return s
}

func (s *stalls) watch(cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	_ = unix.SchedSetaffinity(0, &set) // without its CPU it sees fewer stalls, and windows count that should not
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: stallRT}
	_ = unix.SchedSetAttr(0, &fifo, 0)
	for due := int64(clock.System{}.Now()) + int64(wakeEvery); ; due += int64(wakeEvery) {
		ts := unix.NsecToTimespec(due)
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) // woken early is not late
		now := int64(clock.System{}.Now())
		if now-due >= int64(stallMin) {
			s.mu.Lock()
			s.byCPU[cpu] = append(s.byCPU[cpu], stallOf{due, now})
			s.mu.Unlock()
			due = now
		}
	}
}

// reset begins a window.
func (s *stalls) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.byCPU {
		s.byCPU[i] = s.byCPU[i][:0]
	}
}

// total is for how long all CPUs were away at once since the reset.
func (s *stalls) total() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return overlap(s.byCPU)
}

// overlap sums up the moments that lie in a stall of every CPU. Those of one CPU do not overlap and are in order.
func overlap(byCPU [][]stallOf) (sum time.Duration) {
	common := byCPU[0]
	for _, other := range byCPU[1:] {
		var next []stallOf
		for i, j := 0, 0; i < len(common) && j < len(other); {
			from, to := max(common[i].from, other[j].from), min(common[i].to, other[j].to)
			if from < to {
				next = append(next, stallOf{from, to})
			}
			if common[i].to < other[j].to {
				i++
			} else {
				j++
			}
		}
		common = next
	}
	for _, s := range common {
		sum += time.Duration(s.to - s.from)
	}
	return sum
}
