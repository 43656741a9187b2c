// Init is process 1 of a test machine. It mounts what a Linux system has, runs the jobs of its Config one after the other,
// reports on the second serial port and powers the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/test/features"
	"github.com/qos-agent/qos-agent/test/vm/wire"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 && os.Getenv(supervisorEnv) == "" {
		fmt.Fprintln(os.Stderr, "init: this program is process 1 of a test machine; see package vm")
		os.Exit(2)
	}
	if os.Getpid() == 1 {
		reap()
	}
	supervise()
}

const supervisorEnv = "QOS_AGENT_VM_SUPERVISOR"

// reap starts the supervisor, a second process, and buries orphans until it ends: what it does cannot then take process 1, and
// with it the kernel, down.
func reap() {
	if err := mountBasics(); err != nil {
		fmt.Println("init:", err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{supervisorEnv + "=1", "PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Println("init: start supervisor:", err)
	} else {
		for {
			pid, err := unix.Wait4(-1, nil, 0, nil)
			if pid == cmd.Process.Pid || (err != nil && !errors.Is(err, unix.EINTR)) {
				break
			}
		}
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("init: power off:", err)
	}
}

func supervise() {
	port, err := openPort(wire.RecordPort)
	if err != nil {
		fmt.Println("init:", err)
		return
	}
	s := &supervisor{out: json.NewEncoder(port)}
	if err := s.run(); err != nil {
		s.send(wire.Record{Kind: wire.Fatal, Data: []byte(err.Error())})
		return
	}
	s.send(wire.Record{Kind: wire.Done})
}

type supervisor struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (s *supervisor) send(r wire.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.out.Encode(r); err != nil {
		fmt.Println("init: report:", err)
	}
}

func (s *supervisor) run() error {
	text, err := os.ReadFile(wire.ConfigPath)
	if err != nil {
		return err
	}
	var config wire.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", wire.ConfigPath, err)
	}
	if err := mountCgroups(config.Layout); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	go func() {
		for range time.Tick(2 * time.Second) {
			s.send(wire.Record{Kind: wire.Beat})
		}
	}()
	s.send(wire.Record{Kind: wire.Hello, Release: unix.ByteSliceToString(uts.Release[:]), Features: features.Probe()})
	for i, job := range config.Jobs {
		s.runJob(i, job)
	}
	return nil
}

func (s *supervisor) runJob(i int, job wire.Job) {
	s.send(wire.Record{Kind: wire.Start, Job: i})
	before := inventory()
	cmd := exec.Command(job.Path, job.Args...)
	cmd.Dir = job.Dir
	cmd.Env = append(os.Environ(), job.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := &forwarder{s: s, job: i}
	cmd.Stdout, cmd.Stderr = out, out
	// A process that outlives the job must not keep us waiting for the end of its output.
	cmd.WaitDelay = 2 * time.Second

	end := wire.Record{Kind: wire.End, Job: i}
	if err := cmd.Start(); err != nil {
		s.send(wire.Record{Kind: wire.Output, Job: i, Data: []byte("init: " + err.Error() + "\n")})
		end.Exit = 127
		s.send(end)
		return
	}
	var expired sync.Once
	quit := time.AfterFunc(job.Timeout, func() {
		expired.Do(func() { end.Timeout = true })
		_ = cmd.Process.Signal(unix.SIGQUIT) // a Go program prints its stacks
		time.Sleep(10 * time.Second)
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	})
	_ = cmd.Wait() // the state below tells
	quit.Stop()
	expired.Do(func() {}) // end.Timeout does not change any more
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if end.Exit = status.ExitStatus(); status.Signaled() {
		end.Exit = 128 + int(status.Signal())
	}
	end.Left = leftovers(before)
	s.send(end)
}

// forwarder sends what a job writes.
type forwarder struct {
	s   *supervisor
	job int
}

func (f *forwarder) Write(p []byte) (int, error) {
	f.s.send(wire.Record{Kind: wire.Output, Job: f.job, Data: p})
	return len(p), nil
}

// leftovers lists what is there now and was not before. Things that go by themselves get some time for it.
func leftovers(before map[string]bool) []string {
	var left []string
	for range 30 {
		left = left[:0]
		for what := range inventory() {
			if !before[what] {
				left = append(left, what)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return left
}

// inventory is everything that a job could leave behind: processes, control groups, mounts.
func inventory() map[string]bool {
	seen := map[string]bool{}
	procs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range procs {
		// Kernel threads and zombies have no program.
		if program, err := os.Readlink(exe); err == nil {
			seen["process "+filepath.Base(filepath.Dir(exe))+" "+program] = true
		}
	}
	_ = filepath.WalkDir(cgroupRoot, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			seen["group "+name] = true
		}
		return nil // groups may vanish meanwhile
	})
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 {
			seen["mount "+f[1]+" "+f[2]] = true
		}
	}
	return seen
}

const cgroupRoot = "/sys/fs/cgroup"

type mount struct{ source, target, kind, options string }

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, 0, m.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

// ordinaryRoot makes the root a mount like any other. That of the initial file system has nothing above it, and runc's pivot_root
// refuses to leave such a one.
func ordinaryRoot() error {
	const above = "/root"
	for _, step := range []func() error{
		func() error { return os.MkdirAll(above, 0o700) },
		func() error { return unix.Mount("/", above, "", unix.MS_BIND, "") },
		func() error { return unix.Chdir(above) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("an ordinary mount as the root: %w", err)
		}
	}
	return nil
}

func mountBasics() error {
	errs := []error{ordinaryRoot()}
	for _, m := range []mount{
		{"proc", "/proc", "proc", ""},
		{"sys", "/sys", "sysfs", ""},
		{"dev", "/dev", "devtmpfs", ""},
		{"shm", "/dev/shm", "tmpfs", ""},
		{"run", "/run", "tmpfs", "mode=755"},
		{"tmp", "/tmp", "tmpfs", "mode=1777"},
		{"bpf", "/sys/fs/bpf", "bpf", ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""},
		{"debugfs", "/sys/kernel/debug", "debugfs", ""},
	} {
		errs = append(errs, m.do())
	}
	return errors.Join(errs...)
}

// mountCgroups mounts the controllers as systemd would for the layout, and on v2 enables all of them for the first level.
func mountCgroups(layout wire.Layout) error {
	if layout == wire.Unified {
		if err := (mount{"cgroup2", cgroupRoot, "cgroup2", "nsdelegate"}).do(); err != nil {
			return err
		}
		text, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
		if err != nil {
			return err
		}
		for c := range strings.FieldsSeq(string(text)) {
			if err := os.WriteFile(cgroupRoot+"/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
				return fmt.Errorf("enable controller %s: %w", c, err)
			}
		}
		return nil
	}
	if err := (mount{"tmpfs", cgroupRoot, "tmpfs", "mode=755"}).do(); err != nil {
		return err
	}
	for _, c := range []string{"cpu", "cpuacct", "cpuset", "memory", "freezer", "blkio", "pids", "perf_event"} {
		if err := (mount{"cgroup", filepath.Join(cgroupRoot, c), "cgroup", c}).do(); err != nil {
			return err
		}
	}
	if layout == wire.Hybrid {
		return mount{"cgroup2", filepath.Join(cgroupRoot, "unified"), "cgroup2", ""}.do()
	}
	return nil
}

// loopbackUp brings the network interface lo up; it has its addresses by itself then.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// openPort opens a serial port that passes every byte as it is.
func openPort(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}
