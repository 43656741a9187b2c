package cgrouptest

import (
	"crypto/rand"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// Real is the kernel's tree: groups below a directory of the test's own.
type Real struct {
	h    *cgroup.Hierarchy
	base string
}

// NewReal makes a directory for the test in the machine's hierarchies and removes it afterwards. It skips the test, with the
// reason, where that cannot be done.
func NewReal(t testing.TB) *Real {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: groups of the machine are made")
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	for _, c := range []cgroup.Controller{cgroup.CPU, cgroup.CPUSet, cgroup.Freezer} {
		if _, _, ok := h.Mount(c); !ok {
			t.Skipf("needs the controller %v: not mounted under %s", c, h.Root())
		}
	}
	r := &Real{h: h, base: "/qos-agent-test-" + strings.ToLower(rand.Text()[:8])}
	t.Cleanup(func() {
		// A process that was just killed may keep its group busy for a moment.
		for range 200 {
			if err = RemoveAll(r, r.base); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("groups of the test remain: %v", err)
		}
	})
	if err := r.Mkdir(r.base); err != nil {
		t.Skipf("needs groups of its own: %v", err)
	}
	if !h.V2(cgroup.CPUSet) {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := r.Read("/", file)
			if err == nil {
				err = r.Write(r.base, file, text)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// OpenReal is the directory that NewReal made, seen from another process.
func OpenReal(base string) (*Real, error) {
	h, err := cgroup.Detect("/sys/fs/cgroup")
	return &Real{h: h, base: base}, err
}

// Hierarchy is the machine's.
func (r *Real) Hierarchy() *cgroup.Hierarchy { return r.h }

// FS is the kernel's.
func (r *Real) FS() cgroup.FS { return cgroup.Kernel }

// Base is the test's own directory.
func (r *Real) Base() string { return r.base }

// Mkdir makes a group. On v2 it gives the parent's controllers to its children first.
func (r *Real) Mkdir(group string) error {
	for _, c := range controllersOf(r.h) {
		dir, _ := r.h.Dir(c, group)
		if r.h.V2(c) && r.h.Mode() == cgroup.Unified {
			for _, name := range []string{"+cpu", "+cpuset", "+memory"} {
				control := filepath.Join(path.Dir(dir), "cgroup.subtree_control")
				if err := os.WriteFile(control, []byte(name), 0); err != nil {
					return err
				}
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Rmdir removes a group. It goes on where a hierarchy does not have it.
func (r *Real) Rmdir(group string) error {
	var found error = &cgroup.FileError{Op: "remove", Path: group, Err: unix.ENOENT}
	for _, c := range controllersOf(r.h) {
		dir, _ := r.h.Dir(c, group)
		switch err := unix.Rmdir(dir); {
		case err == nil:
			found = nil
		case !cgroup.Gone(err):
			return &cgroup.FileError{Op: "remove", Path: dir, Err: err}
		}
	}
	return found
}

// Read reads a file.
func (r *Real) Read(group, file string) (string, error) {
	dir, ok := r.h.Dir(controllerOf(file), group)
	if !ok {
		return "", missing(r.h, file)
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	return string(text), err
}

// Write writes a file.
func (r *Real) Write(group, file, text string) error {
	dir, ok := r.h.Dir(controllerOf(file), group)
	if !ok {
		return missing(r.h, file)
	}
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
