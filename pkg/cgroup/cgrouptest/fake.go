package cgrouptest

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// FakeCPUs is how many CPUs a fake tree has.
const FakeCPUs = 8

// Fake is a tree of groups on a directory. Its state is in plain files, one atomic rename a write, so that it outlives a
// process that is killed; the rules are in Write. What a reader of the plain files sees is what was set last, which differs
// from what the kernel would show for the weight of an idle group and the freezer of v1: read those through the Fake.
type Fake struct {
	root string
	gone string // where removed groups go, so that their inodes are not used again
	h    *cgroup.Hierarchy

	// Fault, if set, is asked before each write through FS; an error that it returns is the write's.
	Fault func(group, file, text string) error

	mu sync.Mutex
}

// NewFake makes a fake tree in a temporary directory of the test. Files of features that the kernel shall not have ("cpu.idle")
// can be left out.
func NewFake(t testing.TB, mode cgroup.Mode, without ...string) *Fake {
	t.Helper()
	f, err := MakeFake(t.TempDir(), mode, without...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// MakeFake makes a fake tree in dir.
func MakeFake(dir string, mode cgroup.Mode, without ...string) (*Fake, error) {
	root := filepath.Join(dir, "cgroup")
	var mounts []string
	switch mode {
	case cgroup.Unified:
		mounts = []string{root}
	case cgroup.Hybrid, cgroup.Legacy:
		for _, name := range []string{"cpu,cpuacct", "cpuset", "memory", "freezer", "blkio"} {
			mounts = append(mounts, filepath.Join(root, name))
		}
		if mode == cgroup.Hybrid {
			mounts = append(mounts, filepath.Join(root, "unified"))
		}
	}
	for _, mount := range mounts {
		if err := os.MkdirAll(mount, 0o755); err != nil {
			return nil, err
		}
		for name, text := range files(filepath.Base(mount), mode) {
			if slices.Contains(without, name) {
				continue
			}
			switch name {
			case "cpuset.cpus":
				text = fmt.Sprintf("0-%d\n", FakeCPUs-1)
			case "cpuset.mems":
				text = "0\n"
			}
			if err := os.WriteFile(filepath.Join(mount, name), []byte(text), 0o644); err != nil {
				return nil, err
			}
		}
	}
	if mode != cgroup.Unified {
		for _, name := range []string{"cpu", "cpuacct"} {
			if err := os.Symlink("cpu,cpuacct", filepath.Join(root, name)); err != nil {
				return nil, err
			}
		}
	}
	f, err := OpenFake(dir)
	if err != nil {
		return nil, err
	}
	return f, os.Mkdir(f.gone, 0o755)
}

// OpenFake opens the fake tree that MakeFake made in dir, perhaps in another process.
func OpenFake(dir string) (*Fake, error) {
	root := filepath.Join(dir, "cgroup")
	h, err := cgroup.Detect(root)
	if err != nil {
		return nil, err
	}
	return &Fake{root: h.Root(), gone: filepath.Join(dir, "gone"), h: h}, nil
}

// files is what a new group has in the mount of that name.
func files(mount string, mode cgroup.Mode) map[string]string {
	const psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
	v2 := map[string]string{
		"cgroup.procs": "", "cgroup.freeze": "0\n", "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.controllers": "\n",
		"cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n", "cpu.pressure": psi, "memory.pressure": psi, "io.pressure": psi,
	}
	switch {
	case mode == cgroup.Unified:
		for name, text := range map[string]string{
			"cgroup.controllers": "cpuset cpu io memory pids\n",
			"cpu.idle":           "0\n", "cpu.weight": "100\n", "cpu.max": "max 100000\n", "cpu.max.burst": "0\n",
			"cpu.stat":    "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\nnr_bursts 0\nburst_usec 0\n",
			"cpuset.cpus": "\n", "cpuset.mems": "\n",
			"memory.current": "0\n", "memory.stat": "anon 0\nfile 0\ninactive_file 0\n", "io.stat": "",
		} {
			v2[name] = text
		}
		return v2
	case mount == "unified":
		return v2
	}
	v1 := map[string]string{"cgroup.procs": "", "tasks": ""}
	for name, text := range map[string]map[string]string{
		"cpu,cpuacct": {
			"cpu.idle": "0\n", "cpu.shares": "1024\n", "cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n", "cpu.cfs_burst_us": "0\n",
			"cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\nnr_bursts 0\nburst_time 0\n", "cpuacct.usage": "0\n",
		},
		"cpuset":  {"cpuset.cpus": "\n", "cpuset.mems": "\n"},
		"memory":  {"memory.usage_in_bytes": "0\n", "memory.stat": "cache 0\nrss 0\ninactive_file 0\ntotal_inactive_file 0\n"},
		"freezer": {"freezer.state": "THAWED\n", "freezer.self_freezing": "0\n", "freezer.parent_freezing": "0\n"},
	}[mount] {
		v1[name] = text
	}
	return v1
}

// Hierarchy is what cgroup.Detect makes of the tree.
func (f *Fake) Hierarchy() *cgroup.Hierarchy { return f.h }

// Base is the root: the whole tree is the test's.
func (f *Fake) Base() string { return "/" }

// Mkdir makes a group.
func (f *Fake) Mkdir(group string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, mount := range f.mounts() {
		dir := filepath.Join(mount, group)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for name, text := range files(filepath.Base(mount), f.h.Mode()) {
			if _, err := os.Stat(filepath.Join(mount, name)); err != nil {
				continue // a feature that this kernel lacks
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// Rmdir removes a group.
func (f *Fake) Rmdir(group string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, mount := range f.mounts() {
		dir := filepath.Join(mount, group)
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return &cgroup.FileError{Op: "remove", Path: dir, Err: unix.ENOENT}
		}
		if len(procs) > 0 || len(children(dir)) > 0 {
			return &cgroup.FileError{Op: "remove", Path: dir, Err: unix.EBUSY}
		}
		grave, err := os.MkdirTemp(f.gone, "")
		if err != nil {
			return err
		}
		if err := os.Rename(dir, filepath.Join(grave, "group")); err != nil {
			return err
		}
	}
	return nil
}

// mounts is every directory that holds a root group.
func (f *Fake) mounts() []string {
	if f.h.Mode() == cgroup.Unified {
		return []string{f.root}
	}
	entries, _ := os.ReadDir(f.root)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(f.root, e.Name()))
		}
	}
	return out
}

func children(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// Read is what the kernel would show.
func (f *Fake) Read(group, file string) (string, error) {
	dir, ok := f.h.Dir(controllerOf(file), group)
	if !ok {
		return "", missing(f.h, file)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.show(dir, file)
}

// Write does what the kernel would do.
func (f *Fake) Write(group, file, text string) error {
	dir, ok := f.h.Dir(controllerOf(file), group)
	if !ok {
		return missing(f.h, file)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(dir, file, text)
}

// Put gives a file a content without any rule: counters, processes. The file remains the same for who has it open.
func (f *Fake) Put(group, file, text string) error {
	dir, ok := f.h.Dir(controllerOf(file), group)
	if !ok {
		return missing(f.h, file)
	}
	return os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644)
}

// FS is the tree as the executor sees it.
func (f *Fake) FS() cgroup.FS { return fakeFS{f} }

type fakeFS struct{ *Fake }

type fakeGroup struct {
	f   *Fake
	dir string
	id  uint64
}

func (f fakeFS) OpenGroup(dir string) (cgroup.Group, error) {
	id, err := inode(dir)
	if err != nil {
		return nil, &cgroup.FileError{Op: "open", Path: dir, Err: unix.ENOENT}
	}
	return &fakeGroup{f: f.Fake, dir: dir, id: id}, nil
}

func inode(dir string) (uint64, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

func (g *fakeGroup) ID() uint64 { return g.id }

func (g *fakeGroup) alive() bool {
	id, err := inode(g.dir)
	return err == nil && id == g.id
}

func (g *fakeGroup) Open(name string) (cgroup.RW, error) {
	if !g.alive() {
		return nil, &cgroup.FileError{Op: "open", Path: filepath.Join(g.dir, name), Err: unix.ENOENT}
	}
	if _, err := os.Stat(filepath.Join(g.dir, name)); err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(g.dir, name), Err: fs.ErrNotExist}
	}
	return &fakeFile{g: g, name: name}, nil
}

func (g *fakeGroup) Children() ([]string, error) {
	if !g.alive() {
		return nil, &cgroup.FileError{Op: "list", Path: g.dir, Err: unix.ENOENT}
	}
	return children(g.dir), nil
}

func (g *fakeGroup) Close() error { return nil }

type fakeFile struct {
	g    *fakeGroup
	name string
}

func (r *fakeFile) ReadInto(buf []byte) ([]byte, error) {
	r.g.f.mu.Lock()
	defer r.g.f.mu.Unlock()
	if !r.g.alive() {
		return nil, &cgroup.FileError{Op: "read", Path: filepath.Join(r.g.dir, r.name), Err: unix.ENODEV}
	}
	text, err := r.g.f.show(r.g.dir, r.name)
	return buf[:copy(buf, text)], err
}

func (r *fakeFile) WriteText(text []byte) error {
	f := r.g.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if !r.g.alive() {
		return &cgroup.FileError{Op: "write", Path: filepath.Join(r.g.dir, r.name), Err: unix.ENODEV}
	}
	if f.Fault != nil {
		rel, _ := filepath.Rel(f.root, r.g.dir)
		if f.h.Mode() != cgroup.Unified { // the first part is the controller
			_, rel, _ = strings.Cut(rel, "/")
		}
		if err := f.Fault(path.Clean("/"+rel), r.name, string(text)); err != nil {
			return &cgroup.FileError{Op: "write", Path: filepath.Join(r.g.dir, r.name), Err: err}
		}
	}
	return f.write(r.g.dir, r.name, string(text))
}

func (r *fakeFile) Close() error { return nil }

// show is the text that the kernel would give for a file.
func (f *Fake) show(dir, file string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return "", &cgroup.FileError{Op: "read", Path: filepath.Join(dir, file), Err: unix.ENOENT}
	}
	switch file {
	case "cpu.weight":
		if f.number(dir, "cpu.idle") == 1 {
			return "0\n", nil
		}
	case "cpu.shares":
		if f.number(dir, "cpu.idle") == 1 {
			return "3\n", nil // the weight of SCHED_IDLE
		}
	case "freezer.state":
		if f.number(dir, "freezer.self_freezing") == 1 || f.parentFreezing(dir) {
			return "FROZEN\n", nil
		}
		return "THAWED\n", nil
	case "freezer.parent_freezing":
		if f.parentFreezing(dir) {
			return "1\n", nil
		}
		return "0\n", nil
	}
	return string(text), nil
}

func (f *Fake) parentFreezing(dir string) bool {
	for dir = filepath.Dir(dir); len(dir) > len(f.root); dir = filepath.Dir(dir) {
		if f.number(dir, "freezer.self_freezing") == 1 {
			return true
		}
	}
	return false
}

// number is the number that a file holds, 0 if it has none.
func (f *Fake) number(dir, file string) int64 {
	n, _ := strconv.ParseInt(f.text(dir, file), 10, 64)
	return n
}

func (f *Fake) text(dir, file string) string {
	text, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(text))
}

// set replaces a file's content in one step.
func (f *Fake) set(dir, file string, content any) error {
	tmp := filepath.Join(filepath.Dir(f.gone), "new")
	if err := os.WriteFile(tmp, fmt.Appendln(nil, content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, file))
}
