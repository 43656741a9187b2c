package sched

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// MonitorSlack is by how much the Go runtime's monitor thread may be woken late.
const MonitorSlack = 5 * time.Millisecond

// RelaxMonitor gives the Go runtime's monitor thread, sysmon, a timer slack.
//
// Whenever a thread comes back from a system call for which the runtime had given up its processor, and the loop's does at every tick, the runtime
// wakes sysmon, which then looks every 20 us for a millisecond, and ever more seldom, until there is nothing to watch any more: some sixty
// wake-ups for one, which took half of the daemon's CPU time. What it looks for (processors to take from threads in system calls, goroutines that
// run for more than 10 ms, the network poller when nobody else polls) can be some milliseconds late. With a slack the kernel wakes it together
// with whatever timer expires next on that CPU, or at the end of the slack.
//
// The thread is the first that the runtime starts. Should that ever be another one, its timers are late by no more than the slack; the
// loop's thread is not concerned, since real-time threads have none.
func RelaxMonitor(slack time.Duration) error {
	tid, err := firstThread()
	if err != nil {
		return fmt.Errorf("timer slack of the runtime's monitor: %w", err)
	}
	file := fmt.Sprintf("/proc/%d/timerslack_ns", tid)
	if err := os.WriteFile(file, strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0); err != nil {
		return fmt.Errorf("timer slack of the runtime's monitor: %w", err)
	}
	return nil
}

// firstThread is the oldest thread besides the process's first: numbers count up from the process's, and begin anew at the top.
func firstThread() (int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	pid, first := os.Getpid(), 0
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil || tid == pid {
			continue
		}
		if first == 0 || uint32(tid-pid) < uint32(first-pid) {
			first = tid
		}
	}
	if first == 0 {
		return 0, errors.New("the process has one thread")
	}
	return first, nil
}
