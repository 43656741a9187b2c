// Package groups makes real control groups for tests, benches and the demo, in every hierarchy of the machine at once, and
// takes them away again with everything in them.
package groups

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"golang.org/x/sys/unix"
)

// controllers whose groups a Tree makes; those that the machine lacks are left out.
var controllers = []cgroup.Controller{
	cgroup.CPU, cgroup.CPUAcct, cgroup.CPUSet, cgroup.Memory, cgroup.Freezer, cgroup.Blkio, cgroup.PerfEvent,
}

// Tree is a group and the groups below it that belong to the caller.
type Tree struct {
	h    *cgroup.Hierarchy
	name string
}

// New makes an empty top group of the given name ("qos-agent-test-x7") directly under each mount. On cgroup v2 it enables the
// controllers for what will be made below. Stale groups of the same name are removed first.
func New(h *cgroup.Hierarchy, name string) (*Tree, error) {
	t := &Tree{h: h, name: "/" + name}
	if err := t.Remove(); err != nil {
		return nil, err
	}
	if err := t.make(t.name); err != nil {
		return nil, errors.Join(err, t.Remove())
	}
	return t, nil
}

// At is a tree that somebody else has made, to look at.
func At(h *cgroup.Hierarchy, group string) *Tree { return &Tree{h: h, name: path.Join("/", group)} }

// Path is the group's name relative to a controller's mount.
func (t *Tree) Path(sub ...string) string { return path.Join(append([]string{t.name}, sub...)...) }

// Make makes the group sub ("pod1/main") below the top group, with the groups above it, and returns its name relative to a
// controller's mount.
func (t *Tree) Make(sub string) (string, error) {
	at := t.name
	for part := range strings.SplitSeq(sub, "/") {
		at = path.Join(at, part)
		if err := t.make(at); err != nil {
			return "", err
		}
	}
	return at, nil
}

func (t *Tree) make(group string) error {
	for _, dir := range t.dirs(group) {
		if v2 := exists(filepath.Join(dir, "..", "cgroup.controllers")); v2 {
			if err := delegate(filepath.Dir(dir)); err != nil {
				return err
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make group: %w", err)
		}
		if err := inheritCPUs(dir); err != nil {
			return err
		}
	}
	return nil
}

// delegate enables on v2 what the parent has for its children. Controllers that cannot be had (cpu beside real-time tasks)
// are left out; who needs them will say so.
func delegate(parent string) error {
	text, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for c := range strings.FieldsSeq(string(text)) {
		_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}

// inheritCPUs fills a new v1 cpuset, which is empty and takes no task before it has CPUs and memory nodes.
func inheritCPUs(dir string) error {
	if exists(filepath.Join(dir, "cgroup.controllers")) {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || len(bytes.TrimSpace(have)) > 0 {
			continue // another controller, or filled already
		}
		text, err := os.ReadFile(filepath.Join(dir, "..", file))
		if err != nil {
			return fmt.Errorf("read parent's %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0); err != nil {
			return fmt.Errorf("fill %s: %w", file, err)
		}
	}
	return nil
}

// dirs is the group's directory in each hierarchy, each once. The v2 tree of a hybrid machine is left out: it has no
// controllers, and runtimes make no groups in it either.
func (t *Tree) dirs(group string) []string {
	var out []string
	seen := map[string]bool{}
	for _, c := range controllers {
		if t.h.Mode() == cgroup.Hybrid && t.h.V2(c) {
			continue
		}
		if dir, ok := t.h.Dir(c, group); ok && !seen[dir] {
			seen[dir] = true
			out = append(out, dir)
		}
	}
	return out
}

// Join moves a process into a group that Make has made. On cgroup v2 it must have no groups below it.
func (t *Tree) Join(group string, pid int) error {
	for _, dir := range t.dirs(group) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join group: %w", err)
		}
	}
	return nil
}

// Joiner is Join for a group.
func (t *Tree) Joiner(group string) func(pid int) error {
	return func(pid int) error { return t.Join(group, pid) }
}

// File is the path of a group's file for one controller. Where the controller is not mounted it leads nowhere.
func (t *Tree) File(c cgroup.Controller, group, file string) string {
	dir, ok := t.h.Dir(c, group)
	if !ok {
		return filepath.Join("/nonexistent", c.String(), file)
	}
	return filepath.Join(dir, file)
}

// Write sets a file of a group for one controller.
func (t *Tree) Write(c cgroup.Controller, group, file, text string) error {
	if err := os.WriteFile(t.File(c, group, file), []byte(text), 0); err != nil {
		return fmt.Errorf("write group file: %w", err)
	}
	return nil
}

// Read reads a file of a group for one controller, without the line's end.
func (t *Tree) Read(c cgroup.Controller, group, file string) (string, error) {
	text, err := os.ReadFile(t.File(c, group, file))
	return strings.TrimSpace(string(text)), err
}

// SetWeight sets a group's CPU weight, 1 to 10000 with 100 as the default; on v1 as shares in proportion (1024 = 100).
func (t *Tree) SetWeight(group string, weight int) error {
	if t.h.V2(cgroup.CPU) {
		return t.Write(cgroup.CPU, group, "cpu.weight", strconv.Itoa(weight))
	}
	return t.Write(cgroup.CPU, group, "cpu.shares", strconv.Itoa(max(2, weight*1024/100)))
}

// measured are files whose content changes by itself; everything else that can be read is a setting.
var measured = []string{
	".stat", "pressure", ".events", ".usage", "usage_", "cpuacct.", "current", "peak", "procs", "tasks", "threads", "freeze_duration",
	"stat", "failcnt", "max_usage", "numa", "io_service", "io_serviced", "blkio.", "memory.kmem", "rdma", "misc", "hugetlb",
}

// Snapshot is the content of every settings file in the tree, by path: two snapshots that are equal mean that nobody's settings
// have changed in between.
func (t *Tree) Snapshot() (map[string]string, error) {
	out := map[string]string{}
	for _, top := range t.dirs(t.name) {
		err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			for _, m := range measured {
				if strings.Contains(d.Name(), m) {
					return nil
				}
			}
			if text, err := os.ReadFile(name); err == nil { // some files are write-only
				out[name] = string(text)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
	}
	return out, nil
}

// Changed is how the settings of one snapshot differ from those of an earlier one; empty if they do not. On cgroup v2 a group without
// CPUs of its own may come to have all of its parent's: from a group with processes the kernel takes no setting away any more, so that
// this is all that can be put back.
func Changed(before, after map[string]string) string {
	after = maps.Clone(after)
	for name, text := range after {
		above := filepath.Join(filepath.Dir(filepath.Dir(name)), "cpuset.cpus.effective")
		if filepath.Base(name) == "cpuset.cpus" && before[name] == "\n" && text == after[above] {
			after[name] = before[name]
		}
	}
	return cmp.Diff(before, after)
}

// Remove kills what is in the tree and removes it. Groups that are not there are no error.
func (t *Tree) Remove() error {
	var errs []error
	for _, top := range t.dirs(t.name) {
		if exists(top) {
			errs = append(errs, remove(top))
		}
	}
	return errors.Join(errs...)
}

// RemoveGroup kills what is in one group of the tree and removes it.
func (t *Tree) RemoveGroup(sub string) error {
	var errs []error
	for _, dir := range t.dirs(t.Path(sub)) {
		errs = append(errs, remove(dir))
	}
	return errors.Join(errs...)
}

// remove is bounded: a process that has been killed leaves its group within moments unless the kernel is stuck.
func remove(top string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := tryRemove(top)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func tryRemove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove group: %w", err)
	}
	thaw(dir)
	for _, e := range entries {
		if e.IsDir() {
			if err := tryRemove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	killAll(dir)
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove group: %w", err)
	}
	return nil
}

// Empty kills what is in a group of the tree, and leaves the group.
func (t *Tree) Empty(group string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		n := 0
		for _, dir := range t.dirs(group) {
			thaw(dir)
			n += killAll(dir)
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("empty group %s: %d processes do not die", group, n)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// killAll kills the processes of a group and says how many there were.
func killAll(dir string) (n int) {
	text, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // no such group, no such process
	for pid := range strings.FieldsSeq(string(text)) {
		if id, err := strconv.Atoi(pid); err == nil && id > 1 {
			_ = unix.Kill(id, unix.SIGKILL) // it may be gone by now
			n++
		}
	}
	return n
}

// thaw lets killed processes die.
func thaw(dir string) {
	for file, text := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		if name := filepath.Join(dir, file); exists(name) {
			_ = os.WriteFile(name, []byte(text), 0)
		}
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// Stale are the files of dir whose names are prefix and the id of a process that does not run any more, with whatever follows a
// dash.
func Stale(dir, prefix string) (found []string) {
	entries, _ := os.ReadDir(dir) // nothing there, nothing stale
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), prefix)
		text, _, _ := strings.Cut(rest, "-")
		if pid, err := strconv.Atoi(text); ok && err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

// RemoveStale removes the top groups that processes left behind which were killed and could not do it themselves; the groups'
// names are prefix and the process's id. What still runs in them is killed.
func RemoveStale(h *cgroup.Hierarchy, prefix string) error {
	var errs []error
	for _, dir := range (&Tree{h: h}).dirs("/") {
		for _, name := range Stale(dir, prefix) {
			errs = append(errs, remove(name))
		}
	}
	return errors.Join(errs...)
}

// Command is a command that is in the group from its first instruction on, with all its children. It is killed with the process
// that starts it.
func (t *Tree) Command(group, name string, args ...string) *exec.Cmd {
	var join strings.Builder
	for _, dir := range t.dirs(group) {
		fmt.Fprintf(&join, "echo $$ > %s && ", filepath.Join(dir, "cgroup.procs"))
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", join.String() + `exec "$@"`, "sh", name}, args...)...)
	// A process group of its own: Ctrl-C is for who started it, who then stops everything in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// Set sets something on a group of the tree, whatever the files for it are called.
func (t *Tree) Set(group string, s cgroup.Setting, v cgroup.Value) error {
	dir, ok := t.h.Dir(s.Controller(), group)
	if !ok {
		return fmt.Errorf("set %s: controller %s is not mounted", group, s.Controller())
	}
	g, err := cgroup.Kernel.OpenGroup(dir)
	if err != nil {
		return err
	}
	defer g.Close()
	k, err := cgroup.OpenKnob(g, s, t.h.V2(s.Controller()))
	if err != nil {
		return err
	}
	defer k.Close()
	raw, err := k.Read(make([]byte, 512))
	if err != nil {
		return err
	}
	now, err := k.Parse(raw)
	if err != nil {
		return err
	}
	return k.Write(now, v)
}
