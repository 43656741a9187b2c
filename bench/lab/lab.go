// Package lab is what the benches share: a lock so that only one measures at a time, groups and a directory of their own that
// are gone at the end, also after a bench that was killed, and results with the machine that they come from.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/groups"
	"golang.org/x/sys/unix"
)

// prefix of groups and directories. A process id follows.
const prefix = "qos-agent-bench-"

// lockFile is held by the bench that runs.
const lockFile = "/run/lock/qos-agent-bench.lock"

// Lab is a bench's place on the machine.
type Lab struct {
	// Dir is a directory for whatever the bench writes, on a tmpfs: on a node the agent's run directory is below /run, which is
	// one, so that the journal waits for no disk. Not every machine that builds has that, but /dev/shm is one everywhere.
	Dir string
	// Disk is a directory on a disk, which anybody may write to.
	Disk string
	H    *cgroup.Hierarchy
	Tree *groups.Tree
	lock *os.File
}

// Open takes the lock, clears up after benches that were killed, and makes the directory and the top group. What a killed bench had changed of the
// machine's settings it puts back, and says so on stderr.
func Open() (*Lab, error) { return open(lockFile, settingFile) }

func open(lock, record string) (_ *Lab, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("needs root: makes control groups and loads BPF programs")
	}
	l := &Lab{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.lock, err = takeLock(lock); err != nil {
		return l, err
	}
	s, err := putBack(record)
	if err != nil {
		return l, err
	}
	if s.File != "" {
		fmt.Fprintf(os.Stderr, "put back %s, which a bench that was killed had changed: %s\n", s.File, s.Was)
	}
	if l.H, err = cgroup.Detect("/sys/fs/cgroup"); err != nil {
		return l, err
	}
	if err := groups.RemoveStale(l.H, prefix); err != nil {
		return l, fmt.Errorf("clear up after a bench that was killed: %w", err)
	}
	own := prefix + strconv.Itoa(os.Getpid())
	for top, dir := range map[string]*string{"/dev/shm": &l.Dir, "/var/tmp": &l.Disk} {
		for _, left := range groups.Stale(top, prefix) {
			if err := os.RemoveAll(left); err != nil {
				return l, err
			}
		}
		*dir = filepath.Join(top, own)
		if err := os.Mkdir(*dir, 0o755); err != nil {
			return l, err
		}
	}
	if err := os.Chmod(l.Disk, 0o1777); err != nil {
		return l, err
	}
	l.Tree, err = groups.New(l.H, own)
	return l, err
}

func takeLock(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		text, _ := os.ReadFile(name) // only to say more
		f.Close()
		return nil, fmt.Errorf("another bench is running (process %s holds %s): two would measure each other", strings.TrimSpace(string(text)), name)
	}
	if err := errors.Join(f.Truncate(0), pwrite(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func pwrite(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// Close kills what is in the groups, removes groups and directory, and gives the lock back. It copes with a half-made Lab.
func (l *Lab) Close() error {
	var errs []error
	if l.Tree != nil {
		errs = append(errs, l.Tree.Remove())
	}
	for _, dir := range []string{l.Dir, l.Disk} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

// Machine says where figures come from.
type Machine struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Date   string `json:"date"`
}

// Kernel is the release of the one at hand; empty if nobody knows it.
func Kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(release))
}

// ThisMachine is the machine at hand, today.
func ThisMachine() Machine {
	return Machine{Kernel: Kernel(), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly)}
}

// WriteResult writes a result as JSON.
func WriteResult(dir, file string, result any) error {
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), append(text, '\n'), 0o644)
}

// ReadResult reads what an earlier run wrote, as far as there is something to read.
func ReadResult(dir, file string, into any) {
	if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
		_ = json.Unmarshal(text, into) // what cannot be read is measured anew sooner or later
	}
}

// Sleep sleeps for d, or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
