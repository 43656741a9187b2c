// Package work is the load that tests and benches put on a machine: processes that spin, or that wake up, work a little and
// sleep again. They are the test's own binary started again, so that they run wherever that binary does, on a bare virtual
// machine too.
package work

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const env = "QOS_AGENT_TEST_WORK"

// Load is what one process does, in one thread.
type Load struct {
	Busy  time.Duration // CPU time of one piece of work; 0 with Sleep 0 spins forever
	Sleep time.Duration // between two pieces
	CPU   int           // pinned to this CPU if Pin is set
	Pin   bool
}

// Spin uses a CPU without end.
var Spin = Load{}

// Pulse works for busy and sleeps for sleep, again and again.
func Pulse(busy, sleep time.Duration) Load { return Load{Busy: busy, Sleep: sleep} }

// On pins the load to a CPU.
func (l Load) On(cpu int) Load {
	l.CPU, l.Pin = cpu, true
	return l
}

// MaybeRun has to be the first call of TestMain or main: in a process that Start has started it works until it is killed, and
// does not return.
func MaybeRun() {
	text, ok := os.LookupEnv(env)
	if !ok {
		return
	}
	l, err := parse(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		os.Exit(2)
	}
	l.run()
}

func parse(text string) (Load, error) {
	f := strings.Fields(text)
	if len(f) != 4 {
		return Load{}, fmt.Errorf("%s=%q has %d fields, want 4", env, text, len(f))
	}
	var n [4]int64
	for i := range f {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return Load{}, fmt.Errorf("%s=%q: %w", env, text, err)
		}
		n[i] = v
	}
	return Load{Busy: time.Duration(n[0]), Sleep: time.Duration(n[1]), CPU: int(n[2]), Pin: n[3] != 0}, nil
}

func (l Load) text() string {
	pin := 0
	if l.Pin {
		pin = 1
	}
	return fmt.Sprintf("%d %d %d %d", l.Busy, l.Sleep, l.CPU, pin)
}

// run prepares the load and turns the process over to it.
func (l Load) run() {
	runtime.LockOSThread()
	_, _ = io.Copy(io.Discard, os.Stdin) // Start ends it when this process is in its group
	if l.Pin {
		var set unix.CPUSet
		set.Set(l.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			fmt.Fprintln(os.Stderr, "work: pin:", err)
			os.Exit(2)
		}
	}
	_ = os.Stdout.Close() // tells Start
	work(int64(l.Busy), unix.NsecToTimespec(int64(l.Sleep)))
}

// work works for busy ns of CPU time, or without end if that is 0, and sleeps. To the Go runtime it is in a system call all the time: the runtime
// gives its one processor up for idle, and its monitor thread goes to sleep. Otherwise that would wake up a hundred times a second at least, and
// every 20 us for a while after each sleep, and most of what the load is seen to wait would be for a thread of its own. Nothing in here may
// need a stack, or the runtime.
//
//go:nosplit
//go:norace
func work(busy int64, nap unix.Timespec) {
	var at unix.Timespec
	entersyscall()
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&at)), 0) // cannot fail
		for start := at.Sec*1e9 + at.Nsec; busy == 0 || at.Sec*1e9+at.Nsec-start < busy; {
			for range 2000 {
				sink++
			}
			_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&at)), 0)
		}
		if nap.Sec != 0 || nap.Nsec != 0 {
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&nap)), 0, 0) // woken early is fine
		}
	}
}

// entersyscall is what the runtime calls before each system call that may take long.
//
//go:linkname entersyscall runtime.entersyscall
func entersyscall()

var sink uint64

// Process is a load that runs.
type Process struct{ cmd *exec.Cmd }

// Start starts a load, and returns when it is where it is to run and about to work: on an emulated CPU it may take seconds to get
// there, in which it would be seen to wait on other CPUs. join, if not nil, puts the process into its control group; the load pins itself
// after that, because before 6.2 a group with a cpuset forgets what its new tasks were pinned to. The load ends with Stop, or with
// the process that started it.
func Start(l Load, join func(pid int) error) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("work: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), env+"="+l.text(), "GOMAXPROCS=1", "GOGC=off")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("work: %w", err)
	}
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("work: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("work: %w", err)
	}
	p := &Process{cmd}
	if join != nil {
		err = join(p.PID())
	}
	if err == nil {
		err = begin.Close()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, ready)
	}
	if err != nil {
		p.Stop()
		return nil, fmt.Errorf("work: %w", err)
	}
	return p, nil
}

// Adopt makes a load of a command that somebody else has started.
func Adopt(cmd *exec.Cmd) *Process { return &Process{cmd} }

// PID is the load's process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Pause and Resume stop the load and let it go on.
func (p *Process) Pause() error  { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// CPU is the CPU time that the load has used, in steps of 10 ms.
func (p *Process) CPU() (time.Duration, error) { return ProcessCPU(p.PID()) }

// Stop kills the load and waits for its end.
func (p *Process) Stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// ProcessCPU is the user and system time of a process, in steps of 10 ms.
func ProcessCPU(pid int) (time.Duration, error) {
	user, system, err := processTimes(pid)
	return user + system, err
}

// ProcessUser is the user time of a process, in steps of 10 ms.
func ProcessUser(pid int) (time.Duration, error) {
	user, _, err := processTimes(pid)
	return user, err
}

func processTimes(pid int) (user, system time.Duration, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command's name is in parentheses and may hold anything; fields are counted from behind it.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: too few fields", pid)
	}
	for i, into := range []*time.Duration{&user, &system} {
		n, err := strconv.ParseInt(f[11+i], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		*into = time.Duration(n) * 10 * time.Millisecond
	}
	return user, system, nil
}
