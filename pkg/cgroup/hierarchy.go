// Package cgroup finds control groups on cgroup v1, hybrid and v2, understands the names that kubelet and container runtimes
// give them, and reads and writes their files.
//
// A group is named by its path relative to a controller's mount ("/kubepods/burstable/pod1234"); the same name is used on all
// hierarchies. Every function takes the root from a Hierarchy, so that tests run on a temporary directory.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode is how controllers are mounted under a root.
type Mode uint8

const (
	Legacy  Mode = iota + 1 // v1 controllers only
	Hybrid                  // v1 controllers, and an (often empty) v2 tree in the directory "unified"
	Unified                 // v2 only
)

var modeNames = map[Mode]string{Legacy: "legacy", Hybrid: "hybrid", Unified: "unified"}

func (m Mode) String() string {
	if name, ok := modeNames[m]; ok {
		return name
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Controller is what a directory is wanted for.
type Controller uint8

const (
	CPU Controller = iota
	CPUAcct
	CPUSet
	Memory
	Freezer
	Blkio
	PerfEvent
	Pressure // the *.pressure files; they exist on v2 trees only
	controllers
)

// The names of controllers on v1, which are those of their directories, and on v2 as in cgroup.controllers. An empty v2 name
// is a feature that every v2 group has.
var (
	namesV1 = [controllers]string{CPU: "cpu", CPUAcct: "cpuacct", CPUSet: "cpuset", Memory: "memory", Freezer: "freezer", Blkio: "blkio", PerfEvent: "perf_event"}
	namesV2 = [controllers]string{CPU: "cpu", CPUSet: "cpuset", Memory: "memory", Blkio: "io"}
)

func (c Controller) String() string {
	switch {
	case c == Pressure:
		return "pressure"
	case c < controllers:
		return namesV1[c]
	default:
		return fmt.Sprintf("controller(%d)", uint8(c))
	}
}

// RootError says why a directory is no usable cgroup root.
type RootError struct {
	Root   string
	Reason string
	Err    error // may be nil
}

func (e *RootError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("cgroup root %s: %s: %v", e.Root, e.Reason, e.Err)
	}
	return fmt.Sprintf("cgroup root %s: %s", e.Root, e.Reason)
}

func (e *RootError) Unwrap() error { return e.Err }

// Hierarchy is where each controller's groups are. It does not change after Detect and may be used by several goroutines.
type Hierarchy struct {
	root string
	mode Mode
	dirs [controllers]mount
}

type mount struct {
	dir string // "" if the controller is not there
	v2  bool
}

// Detect finds out what is mounted at root, usually /sys/fs/cgroup or the host's seen from a container. It looks at root
// itself and not at the mode of the machine, because the agent may be given another root than its own. The error is a
// *RootError.
func Detect(root string) (*Hierarchy, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, &RootError{Root: root, Reason: "path", Err: err}
	}
	info, err := os.Stat(root)
	switch {
	case err != nil:
		return nil, &RootError{Root: root, Reason: "cannot be read", Err: errors.Unwrap(err)}
	case !info.IsDir():
		return nil, &RootError{Root: root, Reason: "is not a directory"}
	}
	h := &Hierarchy{root: root}
	if isV2(root) {
		h.mode = Unified
		if err := h.addV2(root); err != nil {
			return nil, err
		}
		return h, nil
	}
	if err := h.addV1(); err != nil {
		return nil, err
	}
	h.mode = Legacy
	if unified := filepath.Join(root, "unified"); isV2(unified) {
		h.mode = Hybrid
		if err := h.addV2(unified); err != nil {
			return nil, err
		}
	}
	if h.dirs[CPU].dir == "" {
		return nil, &RootError{Root: root, Reason: "holds neither a cgroup v2 tree nor the v1 controller cpu; is cgroupfs mounted there?"}
	}
	return h, nil
}

// isV2 reports whether dir is in a cgroup v2 tree. The magic number settles it on a kernel; the file does on a test's tree.
func isV2(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return true
	}
	return exists(filepath.Join(dir, "cgroup.controllers"))
}

// addV1 finds the directory of each v1 controller: one of its own, a link to a shared one, or a shared one ("cpu,cpuacct")
// without a link.
func (h *Hierarchy) addV1() error {
	entries, err := os.ReadDir(h.root)
	if err != nil {
		return &RootError{Root: h.root, Reason: "cannot be listed", Err: errors.Unwrap(err)}
	}
	for c, name := range namesV1 {
		if name == "" {
			continue
		}
		for _, e := range entries {
			if !slices.Contains(strings.Split(e.Name(), ","), name) {
				continue
			}
			// One name per directory, so that controllers that share a mount show that they do.
			dir, err := filepath.EvalSymlinks(filepath.Join(h.root, e.Name()))
			if err == nil && exists(filepath.Join(dir, "cgroup.procs")) { // else nothing is mounted there
				h.dirs[c] = mount{dir: dir}
				break
			}
		}
	}
	return nil
}

// addV2 adds what the v2 tree at dir offers and v1 has not taken.
func (h *Hierarchy) addV2(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return &RootError{Root: h.root, Reason: "cgroup v2 without a readable list of controllers", Err: err}
	}
	has := strings.Fields(string(text))
	for c := range h.dirs {
		name := namesV2[c]
		if h.dirs[c].dir == "" && (name == "" || slices.Contains(has, name)) {
			h.dirs[c] = mount{dir: dir, v2: true}
		}
	}
	if h.mode == Unified && h.dirs[CPU].dir == "" {
		return &RootError{Root: h.root, Reason: fmt.Sprintf("the cpu controller is not available (cgroup.controllers: %q)", has)}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// Mode is how controllers are mounted.
func (h *Hierarchy) Mode() Mode { return h.mode }

// Root is the directory that was looked at.
func (h *Hierarchy) Root() string { return h.root }

// Mount is the directory of controller c's root group, and whether its files are those of cgroup v2. On a hybrid machine some
// controllers may be v1 and others v2. ok is false if the controller is not mounted at all.
func (h *Hierarchy) Mount(c Controller) (dir string, v2, ok bool) {
	m := h.dirs[c]
	return m.dir, m.v2, m.dir != ""
}

// V2 reports whether controller c has the files of cgroup v2.
func (h *Hierarchy) V2(c Controller) bool { return h.dirs[c].v2 }

// Dir is the directory of a group for controller c; ok is false if the controller is not mounted. The group need not exist,
// and no group name leads out of the mount.
func (h *Hierarchy) Dir(c Controller, group string) (dir string, ok bool) {
	m := h.dirs[c]
	if m.dir == "" {
		return "", false
	}
	return filepath.Join(m.dir, path.Clean("/"+group)), true
}

// ID is the number by which the kernel side knows a group: the inode of its directory in the hierarchy of the cpu controller.
// It is not used again while the machine runs. The error matches ErrGone if there is no such group.
func (h *Hierarchy) ID(group string) (uint64, error) {
	dir, _ := h.Dir(CPU, group)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fileError("stat", dir, err)
	}
	return st.Ino, nil
}

// Walk calls fn for a group and every group below it, parents first, siblings by name. Groups that vanish meanwhile are left
// out. It ends early with fn's error; fs.SkipDir leaves out what is below the group at hand.
func (h *Hierarchy) Walk(c Controller, group string, fn func(group string) error) error {
	dir, ok := h.Dir(c, group)
	if !ok {
		return fmt.Errorf("controller %s is not mounted under %s", c, h.root)
	}
	if !exists(dir) {
		return nil
	}
	return walk(dir, path.Clean("/"+group), fn)
}

func walk(dir, group string, fn func(string) error) error {
	if err := fn(group); err != nil {
		if errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !Gone(err) {
		return fmt.Errorf("list group: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := walk(filepath.Join(dir, e.Name()), path.Join(group, e.Name()), fn); err != nil {
			return err
		}
	}
	return nil
}
