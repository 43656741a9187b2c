//go:build amd64

// Package guest is for tests that run in the rig: it mounts resctrl, starts loads and puts all away again.
package guest

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/test/rig/channel"
)

// Resctrl is where the file system belongs.
const Resctrl = "/sys/fs/resctrl"

// Require skips a test that does not run in the rig.
func Require(t testing.TB) {
	t.Helper()
	if !channel.Present() {
		t.Skip("needs the rig: this machine's CPU has no RDT that tests may use (make rig; go run ./test/runner -layers rig)")
	}
}

// Mount mounts resctrl for the length of the test. The kernel forgets every group when it is unmounted.
func Mount(t testing.TB, options ...string) string {
	t.Helper()
	Require(t)
	if err := unix.Mount("resctrl", Resctrl, "resctrl", 0, strings.Join(options, ",")); err != nil {
		t.Fatalf("mount resctrl: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(Resctrl, 0); err != nil {
			t.Errorf("unmount resctrl: %v", err)
		}
	})
	return Resctrl
}

// Group makes a group of cgroup v2 for the length of the test.
func Group(t testing.TB, path string) string {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Controllers are enabled down to the group's parent, as a kubelet does.
	at := "/sys/fs/cgroup"
	for part := range strings.SplitSeq(filepath.Dir(path), "/") {
		if at = filepath.Join(at, part); at == "/sys/fs/cgroup" {
			continue
		}
		if err := os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+cpu +cpuset +memory"), 0); err != nil {
			t.Fatalf("controllers of %s: %v", at, err)
		}
	}
	t.Cleanup(func() {
		for ; dir != "/sys/fs/cgroup"; dir = filepath.Dir(dir) {
			if err := remove(dir); err != nil {
				return // a parent that others are in
			}
		}
	})
	return dir
}

// remove removes a group, whose last process may be just dying.
func remove(dir string) error {
	err := os.Remove(dir)
	for range 50 {
		if err == nil || !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
		err = os.Remove(dir)
	}
	return err
}

// Load is a running program.
type Load struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
	done  chan struct{}
}

// Start runs the program work (see test/rig/work) in a group, until the end of the test or Stop. It is in the group, and in what
// its parent is in resctrl, from its first instruction.
func Start(t testing.TB, group string, args ...string) *Load {
	t.Helper()
	l := &Load{cmd: exec.Command("/bin/work", args...), done: make(chan struct{})}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: unix.SIGKILL}
	l.cmd.Stderr = os.Stderr
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(l.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			l.mu.Lock()
			l.lines = append(l.lines, s.Text())
			l.mu.Unlock()
		}
	}()
	t.Cleanup(l.Stop)
	return l
}

// PID of the program.
func (l *Load) PID() int { return l.cmd.Process.Pid }

// Lines is what the program has printed so far.
func (l *Load) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// Stop ends the program; a second time is harmless. Processes that it has started end by themselves.
func (l *Load) Stop() {
	_ = l.cmd.Process.Kill() // it may have ended
	<-l.done
	_ = l.cmd.Wait()
}

// ReadNumber reads a file with one number.
func ReadNumber(t testing.TB, name string) uint64 {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
