// Package vm runs test programs on another kernel: it boots a machine under QEMU's emulation (no KVM, so it works wherever
// QEMU does), with an initial file system that holds nothing but our own init and the programs, and reports what they print
// and how they end. A kernel that panics, hangs or runs out of memory, and whatever a program leaves behind, is an error.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/test/vm/wire"
)

// Machine describes the computer. The zero value of a field other than Kernel and Init means its default.
type Machine struct {
	Kernel string      // bzImage
	Init   string      // test/vm/init, built for the guest (static)
	Layout wire.Layout // cgroup layout; default unified

	QEMU     string   // program; default qemu-system-x86_64 from PATH
	QEMUArgs []string // more arguments, such as -L DIR
	// Accel is for -accel; default tcg,thread=single: all CPUs of the guest take turns on one thread of the host. With a thread
	// for each, QEMU 7.2 now and then goes on executing what the guest's kernel has just patched, as Linux does whenever a BPF
	// program is attached to the scheduler; the guest then hangs or dies.
	Accel    string
	CPU      string   // of -cpu; default max
	SMP      string   // of -smp; default 2
	MemoryMB int      // default 1024
	Append   []string // more kernel parameters

	Files  map[string]string // more files in the guest: absolute guest path -> host path; permissions are kept
	Trees  map[string]string // directories, in the same way
	Silent time.Duration     // once up, without any sign of life for this long the machine hangs; default bootTime
}

// Job is a program of the host to run in the guest.
type Job struct {
	Name    string
	Binary  string // static program on the host
	Args    []string
	Env     []string
	Data    string        // directory on the host that is copied below the job's working directory under its own name; may be empty
	Timeout time.Duration // default 5 minutes
}

// Error is a machine that did not end well. Console holds the last lines of its kernel.
type Error struct {
	What    string
	Console string
}

func (e *Error) Error() string {
	if e.Console == "" {
		return e.What
	}
	return e.What + "; the console's last lines:\n" + e.Console
}

// bootTime is patience for a machine that boots: a few seconds when the host has nothing else to do.
const bootTime = 2 * time.Minute

// Run boots the machine, runs the jobs one after the other and powers it off. on is called, from one goroutine, with every
// record of the guest in order. A job that fails is no error of Run: it is in its End record.
func (m *Machine) Run(ctx context.Context, jobs []Job, on func(wire.Record)) error {
	dir, err := os.MkdirTemp("", "qos-agent-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initramfs")
	if err := m.writeInitramfs(initrd, jobs); err != nil {
		return fmt.Errorf("initial file system: %w", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	records, port, err := os.Pipe()
	if err != nil {
		return err
	}
	defer records.Close()
	var console tail
	cmd := exec.CommandContext(ctx, orDefault(m.QEMU, "qemu-system-x86_64"), m.args(initrd)...)
	cmd.Stdout, cmd.Stderr = &console, &console
	cmd.ExtraFiles = []*os.File{port} // becomes descriptor 3, see args
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		port.Close()
		return fmt.Errorf("start QEMU: %w", err)
	}
	port.Close()

	silent := m.Silent
	if silent == 0 {
		silent = bootTime
	}
	hang := time.AfterFunc(bootTime, func() { cancel(errors.New("no sign of life for too long")) })
	defer hang.Stop()
	done, readErr := follow(records, func(r wire.Record) {
		hang.Reset(silent)
		on(r)
	})
	waitErr := cmd.Wait()

	switch {
	case context.Cause(ctx) != nil:
		return &Error{context.Cause(ctx).Error(), console.String()}
	case console.fault() != "":
		return &Error{console.fault(), console.String()}
	case readErr != nil:
		return &Error{readErr.Error(), console.String()}
	case !done:
		return &Error{fmt.Sprintf("the machine ended before its jobs did (QEMU: %v)", cmd.ProcessState), console.String()}
	case waitErr != nil:
		return &Error{fmt.Sprintf("QEMU: %v", waitErr), console.String()}
	}
	return nil
}

func (m *Machine) args(initrd string) []string {
	memory := m.MemoryMB
	if memory == 0 {
		memory = 1024
	}
	// A panic ends QEMU (-no-reboot with panic=-1). Mitigations only cost time under emulation. The log level lets warnings and
	// worse on the console, with their stacks.
	params := append([]string{"console=ttyS0", "loglevel=5", "panic=-1", "mitigations=off", "nmi_watchdog=0"}, m.Append...)
	return append([]string{
		"-M", "pc", "-accel", orDefault(m.Accel, "tcg,thread=single"), "-cpu", orDefault(m.CPU, "max"), "-smp", orDefault(m.SMP, "2"),
		"-m", strconv.Itoa(memory), "-nodefaults", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "file,id=records,path=/dev/fd/3", "-serial", "chardev:records",
		"-kernel", m.Kernel, "-initrd", initrd, "-append", strings.Join(params, " "),
	}, m.QEMUArgs...)
}

func (m *Machine) writeInitramfs(name string, jobs []Job) error {
	img := newImage()
	img.addHost("/init", m.Init, 0o755)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		img.addDir(dir)
	}
	addBusybox(img)
	// A container runtime copies these into its pods.
	img.addData("/etc/hosts", []byte("127.0.0.1 localhost\n"))
	img.addData("/etc/resolv.conf", nil)
	for guest, host := range m.Files {
		info, err := os.Stat(host)
		if err != nil {
			return err
		}
		img.addHost(guest, host, uint32(info.Mode().Perm()))
	}
	for guest, host := range m.Trees {
		if err := img.addTree(guest, host); err != nil {
			return err
		}
	}
	config := wire.Config{Layout: m.Layout}
	if config.Layout == "" {
		config.Layout = wire.Unified
	}
	for i, job := range jobs {
		dir := fmt.Sprintf("/jobs/%d", i)
		program := dir + "/" + filepath.Base(job.Binary)
		img.addHost(program, job.Binary, 0o755)
		if job.Data != "" {
			if err := img.addTree(dir+"/"+filepath.Base(job.Data), job.Data); err != nil {
				return err
			}
		}
		timeout := job.Timeout
		if timeout == 0 {
			timeout = 5 * time.Minute
		}
		config.Jobs = append(config.Jobs, wire.Job{
			Name: job.Name, Path: program, Args: job.Args, Env: job.Env, Dir: dir, Timeout: timeout,
		})
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	img.addData(wire.ConfigPath, text)

	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(img.writeTo(w), w.Flush(), f.Close())
}

// addBusybox gives the guest the few programs that tests start, if the host has a static busybox.
func addBusybox(img *image) {
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		return
	}
	img.addHost(busybox, busybox, 0o755)
	for _, name := range []string{"sh", "sleep", "cat", "true", "false", "yes", "dd", "taskset", "nice", "kill", "ps", "ls", "mount", "umount"} {
		img.addLink("/bin/"+name, "busybox")
	}
}

// follow decodes records until the guest's port is closed. done tells whether the guest said that it is done.
func follow(r io.Reader, on func(wire.Record)) (done bool, err error) {
	lines := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var rec wire.Record
			if err := json.Unmarshal(line, &rec); err != nil {
				return false, fmt.Errorf("record of the guest %.80q: %w", line, err)
			}
			on(rec)
			switch rec.Kind {
			case wire.Done:
				done = true
			case wire.Fatal:
				return false, fmt.Errorf("init: %s", rec.Data)
			}
		}
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// tail keeps the last part of what is written to it, and remembers the first line that tells of a fault of the kernel.
type tail struct {
	mu    sync.Mutex
	buf   []byte
	line  int // where in buf the line begins that is not complete yet
	first []byte
}

const tailBytes = 1 << 14

// faults are lines that the kernel prints when it is broken. A memory limit of a group that kills is not among them ("Memory
// cgroup out of memory"): tests do that on purpose.
var faults = regexp.MustCompile(`Kernel panic|\bOops\b|\bBUG: |\bOut of memory: |blocked for more than|soft lockup`)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	for {
		n := bytes.IndexByte(t.buf[t.line:], '\n')
		if n < 0 {
			break
		}
		if line := t.buf[t.line : t.line+n]; t.first == nil && faults.Match(line) {
			t.first = bytes.Clone(bytes.TrimSpace(line))
		}
		t.line += n + 1
	}
	if cut := min(len(t.buf)-tailBytes, t.line); cut > tailBytes {
		t.buf = append(t.buf[:0], t.buf[cut:]...)
		t.line -= cut
	}
	return len(p), nil
}

func (t *tail) fault() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.first)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(strings.ReplaceAll(string(t.buf), "\r", ""))
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
