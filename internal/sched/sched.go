// Package sched gives the loop's thread the CPU in time.
//
// On a saturated node an ordinary thread waits for its turn like everybody else, and inside a pod its nice value counts only
// against its own pod: the group's weight decides. A real-time policy is the one thing that gets a thread past that, so the
// loop's one thread (not the whole process) runs as SCHED_RR at the lowest real-time priority. Three things keep that safe:
//
//   - Budget: the loop counts its own CPU time; over its budget the thread goes back to the ordinary class for a while.
//   - RLIMIT_RTTIME: when a thread runs without ever blocking, the process gets SIGXCPU from the kernel after 200 ms, on which
//     Guard.Interrupt takes the thread out of the class, and is killed after 2 s if that has not happened.
//   - The kernel's own throttle (sched_rt_runtime_us, 95 %) is left alone.
//
// SCHED_RESET_ON_FORK keeps threads and children from inheriting the policy.
package sched

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Limits that the kernel enforces on a real-time thread that does not block.
const (
	softRTLimit = 200 * time.Millisecond
	hardRTLimit = 2 * time.Second
)

// Realtime makes the calling thread SCHED_RR with the lowest priority; the caller must have locked its goroutine to it.
// It fails with EPERM without CAP_SYS_NICE, and where the kernel has RT_GROUP_SCHED and the thread's group has no real-time
// runtime. Nothing has changed then.
func Realtime() error {
	limit := unix.Rlimit{Cur: uint64(softRTLimit.Microseconds()), Max: uint64(hardRTLimit.Microseconds())}
	if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &limit); err != nil {
		return fmt.Errorf("limit real-time CPU time: %w", err)
	}
	attr := unix.SchedAttr{
		Size:     unix.SizeofSchedAttr,
		Policy:   unix.SCHED_RR,
		Flags:    unix.SCHED_FLAG_RESET_ON_FORK,
		Priority: 1,
	}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("SCHED_RR: %w (needs CAP_SYS_NICE, and with RT_GROUP_SCHED real-time runtime in the thread's cpu group)", err)
		}
		return fmt.Errorf("SCHED_RR: %w", err)
	}
	return nil
}

// Ordinary puts a thread (0: the calling one) back to SCHED_OTHER with the given nice value.
func Ordinary(tid, nice int) error {
	attr := unix.SchedAttr{
		Size:   unix.SizeofSchedAttr,
		Policy: unix.SCHED_NORMAL,
		Flags:  unix.SCHED_FLAG_RESET_ON_FORK, // taking the flag away again would need CAP_SYS_NICE
		Nice:   int32(nice),
	}
	if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
		return fmt.Errorf("SCHED_OTHER: %w", err)
	}
	return nil
}

// OwnNice is the agent's nice value. It counts where the agent shares a cpu group with others, as under systemd's root slice; in a
// pod it has its group for itself.
const OwnNice = -10

// NiceProcess sets the nice value of all threads of this process; threads that they start inherit it. It counts against
// others only where the process shares a cpu group with them, as on a machine without Kubernetes.
func NiceProcess(nice int) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list own threads: %w", err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("nice %d: %w", nice, err)
		}
	}
	return nil
}

// ThreadCPU is the CPU time that the calling thread has used.
func ThreadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail: the clock exists on every kernel we run on
	return time.Duration(ts.Nano())
}

// Class is how the loop's thread is scheduled.
type Class string

const (
	ClassRealtime Class = "realtime" // SCHED_RR, priority 1
	ClassOrdinary Class = "ordinary" // SCHED_OTHER: real-time was refused or is not wanted
	ClassDemoted  Class = "demoted"  // SCHED_OTHER for a while: the budget was used up
)

// Guard keeps a real-time thread inside its budget. It belongs to that thread, but for Interrupt; the functions it calls are
// fields so that tests need no privilege.
type Guard struct {
	Budget  float64       // share of one CPU that the thread may use over Period, 0 to 1
	Period  time.Duration // over which the budget is counted
	Penalty time.Duration // spent in the ordinary class after an overrun

	Promote func() error         // of the thread that calls
	Demote  func() error         // of the guard's thread, whichever calls
	CPU     func() time.Duration // that the guard's thread has used

	interrupted atomic.Bool

	class     Class
	since     time.Duration // start of the current period, or of the penalty
	used      time.Duration // thread CPU time at since
	Demotions uint64
}

// Start promotes the thread. A refusal is not fatal: the thread stays ordinary and the reason is returned for the log.
func (g *Guard) Start(now time.Duration) error {
	g.since, g.used = now, g.CPU()
	if err := g.Promote(); err != nil {
		g.class = ClassOrdinary
		return err
	}
	g.class = ClassRealtime
	return nil
}

// Class is how the thread is scheduled now.
func (g *Guard) Class() Class { return g.class }

// Interrupt demotes the thread while it runs, and may be called by others: it is the answer to SIGXCPU. What the thread does is
// not disturbed. The penalty begins with the next Check.
func (g *Guard) Interrupt() error {
	err := g.Demote()
	g.interrupted.Store(true)
	return err
}

// Leave demotes the thread for good, before work that is long and in no hurry.
func (g *Guard) Leave() error {
	if g.class != ClassRealtime {
		return nil
	}
	g.class = ClassOrdinary
	return g.Demote()
}

// Check is to be called at every step: it demotes a thread that is over its budget, and promotes it again after the penalty.
// It costs next to nothing when there is nothing to do.
func (g *Guard) Check(now time.Duration) error {
	if g.interrupted.Load() && g.interrupted.Swap(false) && g.class == ClassRealtime {
		g.class, g.since = ClassDemoted, now
		g.Demotions++
		return g.Demote() // again: the thread may have been promoted meanwhile
	}
	switch g.class {
	case ClassRealtime:
		elapsed := now - g.since
		if elapsed < g.Period {
			return nil
		}
		used := g.CPU()
		over := float64(used-g.used) > g.Budget*float64(elapsed)
		g.since, g.used = now, used
		if !over {
			return nil
		}
		g.class = ClassDemoted
		g.Demotions++
		return g.Demote()
	case ClassDemoted:
		if now-g.since < g.Penalty {
			return nil
		}
		return g.Start(now)
	}
	return nil
}
