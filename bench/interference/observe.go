package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/work"
	"golang.org/x/sys/unix"
)

// usage is where CPU time went so far.
type usage struct {
	at              time.Time
	online, offline time.Duration // of the two groups
	busy            time.Duration // of the machine, in steps of 10 ms
	user            time.Duration // thereof in user mode
	steal           time.Duration // what the hypervisor took
	ours            time.Duration // user time of the bench's groups
}

func readUsage(s *lab.Lab, online, offline string) (u usage, err error) {
	u.at = time.Now()
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return u, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return u, err
	}
	t := stat.CPUTotal
	u.user, u.steal = seconds(t.User+t.Nice), seconds(t.Steal)
	u.busy = u.user + seconds(t.System+t.IRQ+t.SoftIRQ)
	for group, into := range map[string]*time.Duration{online: &u.online, offline: &u.offline} {
		if group != "" {
			if *into, err = cpuTime(s, group); err != nil {
				return u, err
			}
		}
	}
	u.ours, err = userTime(s, s.Tree.Path())
	return u, err
}

func cpuTime(s *lab.Lab, group string) (time.Duration, error) {
	r, err := cgroup.OpenCPU(s.H, group)
	if err != nil {
		return 0, err
	}
	var scratch cgroup.Scratch
	var stat cgroup.CPUStat
	err = r.Stat(&scratch, &stat)
	return time.Duration(stat.UsageNS), errors.Join(err, r.Close())
}

// userTime is a group's time in user mode, with that of the groups below it.
func userTime(s *lab.Lab, group string) (time.Duration, error) {
	if !s.H.V2(cgroup.CPU) {
		text, err := s.Tree.Read(cgroup.CPUAcct, group, "cpuacct.usage_user")
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(text, 10, 64)
		return time.Duration(n), err
	}
	text, err := s.Tree.Read(cgroup.CPU, group, "cpu.stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "user_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("cpu.stat of %s has no user_usec", group)
}

// since gives the CPUs that online and everybody else but offline used since before.
func (u usage) since(before usage) (pods, system float64) {
	d := u.at.Sub(before.at).Seconds()
	pods = (u.online - before.online).Seconds() / d
	return pods, max(0, (u.busy-before.busy-(u.online-before.online)-(u.offline-before.offline)).Seconds()/d)
}

// The noise rule, fixed before anything was measured: a window is thrown away if the hypervisor took more than stealMax of the
// machine's CPU time, or if programs that have nothing to do with the bench used more than foreignMax of it in user mode (kernel
// threads work for the offline work, so time in the kernel cannot be held against anybody), or if a fixed piece of arithmetic took
// slowMax times what it takes at best, or if all CPUs were away at once for longer than stallMax, since not every hypervisor says what it
// takes. A pair is too noisy to tell when fewer than
// half of its windows are left, and a run when fewer than four in five are.
const (
	stealMax   = 0.02
	foreignMax = 0.05
	slowMax    = 1.25
)

// helpers are the bench's own processes that are in none of its groups.
func helpers(pids ...int) (user time.Duration) {
	for _, pid := range pids {
		user += userOf(pid)
	}
	return user
}

// userOf is a process's time in user mode; 0 for one that is gone.
func userOf(pid int) time.Duration {
	t, _ := work.ProcessUser(pid)
	return t
}

// foreign is the share of the machine's CPU time that programs of others used in user mode.
func foreign(before, after usage, own time.Duration, cpus int) float64 {
	all := after.at.Sub(before.at).Seconds() * float64(cpus)
	return max(0, (after.user-before.user-(after.ours-before.ours)-own).Seconds()/all)
}

func stolen(before, after usage, cpus int) float64 {
	return (after.steal - before.steal).Seconds() / (after.at.Sub(before.at).Seconds() * float64(cpus))
}

// settleDisks waits until what a phase left to be written is written, or for as long as patience lasts: a disk that still works for
// the last window would be in the next.
func settleDisks(patience time.Duration) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile("/proc/vmstat")
		if err != nil || vmstat(text, "nr_writeback")+vmstat(text, "nr_dirty") < 2000 { // pages
			return
		}
	}
}

func vmstat(text []byte, field string) (n int) {
	for line := range bytes.Lines(text) {
		if v, ok := bytes.CutPrefix(line, []byte(field+" ")); ok {
			n, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	return n
}

// speed finds out how fast the CPUs are just now.
type speed struct {
	ask    chan struct{}
	answer chan time.Duration
	best   time.Duration // that the work has taken so far
}

// newSpeed starts a thread for it in a real-time class. The thread never ends: processes that were started from it would be killed
// with it, as they are to die with the bench.
func newSpeed(cpus int) (*speed, error) {
	s := &speed{ask: make(chan struct{}), answer: make(chan time.Duration)}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := sched.Realtime()
		failed <- err
		for range s.ask {
			s.answer <- measureCPUs(cpus)
		}
	}()
	if err := <-failed; err != nil {
		return nil, err
	}
	for range 20 {
		s.look()
	}
	return s, nil
}

// look gives what the work takes now to what it takes at best.
func (s *speed) look() float64 {
	s.ask <- struct{}{}
	took := <-s.answer
	if s.best == 0 || took < s.best {
		s.best = took
	}
	return took.Seconds() / s.best.Seconds()
}

// measureCPUs does the work on each CPU and gives the sum. Each has a few tries, of which the best counts, as an interrupt may come.
func measureCPUs(cpus int) (sum time.Duration) {
	for cpu := range cpus {
		var set unix.CPUSet
		set.Set(cpu)
		_ = unix.SchedSetaffinity(0, &set) // a CPU that went offline is not looked at
		took := arithmetic()
		for range 3 {
			took = min(took, arithmetic())
		}
		sum += took
	}
	return sum
}

var sink uint64

// arithmetic is work of about a fifth of a millisecond that needs no memory.
func arithmetic() time.Duration {
	start := time.Now()
	x := sink
	for range 200_000 {
		x = x*6364136223846793005 + 1
	}
	sink = x
	return time.Since(start)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
