package capability

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// groupPrefix and a pid name the groups that probes make. They hold no tasks, ever.
const groupPrefix = "qos-agent-probe-"

// Groups makes, opens and removes groups by their directories.
type Groups interface {
	cgroup.FS
	Make(dir string) error
	Remove(dir string) error
}

type kernelGroups struct{ cgroup.FS }

func (kernelGroups) Make(dir string) error   { return os.Mkdir(dir, 0o755) }
func (kernelGroups) Remove(dir string) error { return unix.Rmdir(dir) }

func ownPID() int { return os.Getpid() }

// alive errs towards "yes": what cannot be asked is left alone.
func alive(pid int) bool { return !errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// mounts are the directories in which probe groups may be, each once.
func (p *prober) mounts() []string {
	if p.hierarchy == nil {
		return nil
	}
	var out []string
	for _, c := range []cgroup.Controller{cgroup.CPU, cgroup.CPUSet, cgroup.Freezer, cgroup.Memory, cgroup.Blkio, cgroup.Pressure} {
		if dir, _, ok := p.hierarchy.Mount(c); ok && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// sweep removes the probe groups of processes that were killed before they could do it themselves. What cannot be removed is
// left for the next run: it holds nothing.
func (p *prober) sweep() {
	for _, mount := range p.mounts() {
		entries, err := os.ReadDir(mount)
		if err != nil {
			continue
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(strings.TrimPrefix(e.Name(), groupPrefix))
			if err == nil && strings.HasPrefix(e.Name(), groupPrefix) && (pid == p.PID || !p.Alive(pid)) {
				_ = p.Groups.Remove(filepath.Join(mount, e.Name()))
			}
		}
	}
}

// group gives the probe's group in the hierarchy of a controller, and makes it the first time.
func (p *prober) group(c cgroup.Controller) (cgroup.Group, error) {
	if p.hierarchyErr != nil {
		return nil, errors.New("no cgroup hierarchy")
	}
	dir, ok := p.hierarchy.Dir(c, groupPrefix+strconv.Itoa(p.PID))
	if !ok {
		return nil, fmt.Errorf("the %s controller is not mounted under %s", c, p.hierarchy.Root())
	}
	if g, ok := p.open[dir]; ok {
		return g, nil
	}
	if err := p.Groups.Make(dir); err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
			err = advise(err, asRoot)
		}
		return nil, err
	}
	p.made = append(p.made, dir)
	g, err := p.Groups.OpenGroup(dir)
	if err != nil {
		return nil, err
	}
	p.open[dir] = g
	return g, nil
}

// close removes every group that was made.
func (p *prober) close() {
	for _, g := range p.open {
		_ = g.Close() // a descriptor for reading
	}
	for _, dir := range p.made {
		_ = p.Groups.Remove(dir) // the next run's sweep tries again
	}
}

// file is a file of the probe's group and what writing it taught.
type file struct {
	p    *prober
	c    cgroup.Controller
	name string
}

// pick gives the file that does a job: v1 or v2, by what the controller's hierarchy is.
func (p *prober) pick(c cgroup.Controller, v1, v2 string) file {
	if p.hierarchy != nil && p.hierarchy.V2(c) {
		return file{p, c, v2}
	}
	return file{p, c, v1}
}

func (f file) with(fn func(cgroup.RW) error) error {
	g, err := f.p.group(f.c)
	if err != nil {
		return err
	}
	rw, err := g.Open(f.name)
	if errors.Is(err, fs.ErrNotExist) {
		return f.notThere()
	}
	if err != nil {
		return err
	}
	defer func() { _ = rw.Close() }()
	return fn(rw)
}

// notThere tells a controller that is switched off from a kernel without the feature.
func (f file) notThere() error {
	missing := fmt.Errorf("groups have no file %s", f.name)
	dir, v2, _ := f.p.hierarchy.Mount(f.c)
	name, _, _ := strings.Cut(f.name, ".")
	if !v2 || name == "cgroup" {
		return missing
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil || slices.Contains(strings.Fields(string(enabled)), name) {
		return missing
	}
	return advise(fmt.Errorf("the %s controller is not enabled in %s/cgroup.subtree_control", name, dir),
		fmt.Sprintf("systemd and the kubelet enable it with their first service or pod that needs it; by hand: echo +%s > %s/cgroup.subtree_control", name, dir))
}

func (f file) read() (text string, err error) {
	err = f.with(func(rw cgroup.RW) error {
		buf, err := rw.ReadInto(make([]byte, 4096))
		text = strings.TrimSpace(string(buf))
		return err
	})
	return text, err
}

// set writes a text and checks that the file shows it afterwards.
func (f file) set(text string) error {
	return f.with(func(rw cgroup.RW) error {
		if err := rw.WriteText([]byte(text)); err != nil {
			return err
		}
		buf, err := rw.ReadInto(make([]byte, 4096))
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(string(buf)); got != text {
			return fmt.Errorf("%s: wrote %q and read %q", f.name, text, got)
		}
		return nil
	})
}

// setAll sets files one after the other; what it found is about the first.
func setAll(steps ...step) (string, error) {
	for _, s := range steps {
		if err := s.file.set(s.text); err != nil {
			return "", err
		}
	}
	return steps[0].file.name + " written and read back", nil
}

type step struct {
	file file
	text string
}

func (p *prober) layout(context.Context) (string, error) {
	if p.hierarchyErr != nil {
		return "", p.hierarchyErr
	}
	found := fmt.Sprintf("%s at %s", p.hierarchy.Mode(), p.hierarchy.Root())
	dir, v2, _ := p.hierarchy.Mount(cgroup.CPU)
	// The top of a hierarchy differs from the groups below it: v1 shows release_agent there only, v2 has no cgroup.events there.
	mark, top := "release_agent", true
	if v2 {
		mark, top = "cgroup.events", false
	}
	if _, err := os.Stat(filepath.Join(dir, mark)); (err == nil) != top {
		found += ", which is not the top of the hierarchy: groups outside it are not seen (mount the host's)"
	}
	return found, nil
}

func (p *prober) cpuWeight(context.Context) (string, error) {
	return setAll(step{p.pick(cgroup.CPU, "cpu.shares", "cpu.weight"), "50"})
}

func (p *prober) cpuIdle(context.Context) (string, error) {
	f := p.pick(cgroup.CPU, "cpu.idle", "cpu.idle")
	found, err := setAll(step{f, "1"})
	if err != nil {
		return "", err
	}
	return found, f.set("0")
}

func (p *prober) cpuQuota(context.Context) (string, error) {
	if p.hierarchy != nil && p.hierarchy.V2(cgroup.CPU) {
		return setAll(step{file{p, cgroup.CPU, "cpu.max"}, "50000 100000"})
	}
	return setAll(step{file{p, cgroup.CPU, "cpu.cfs_quota_us"}, "50000"}, step{file{p, cgroup.CPU, "cpu.cfs_period_us"}, "100000"})
}

// cpuBurst comes after cpuQuota, whose quota it needs.
func (p *prober) cpuBurst(context.Context) (string, error) {
	return setAll(step{p.pick(cgroup.CPU, "cpu.cfs_burst_us", "cpu.max.burst"), "10000"})
}

func (p *prober) cpuset(context.Context) (string, error) {
	v2 := p.hierarchy != nil && p.hierarchy.V2(cgroup.CPUSet)
	cpus := file{p, cgroup.CPUSet, "cpuset.cpus"}
	if !v2 { // a group of v1 has no CPUs and no memory until it is given some, and only what the root has
		mems, err := p.rootCPUSet("cpuset.mems")
		if err != nil {
			return "", err
		}
		if err := (file{p, cgroup.CPUSet, "cpuset.mems"}).set(mems); err != nil {
			return "", err
		}
	}
	source := "cpuset.cpus"
	if v2 {
		source = "cpuset.cpus.effective"
	}
	all, err := p.rootCPUSet(source)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(all, ",")
	first, _, _ = strings.Cut(first, "-")
	return setAll(step{cpus, first})
}

func (p *prober) rootCPUSet(name string) (string, error) {
	if p.hierarchy == nil {
		return "", errors.New("no cgroup hierarchy")
	}
	dir, ok := p.hierarchy.Dir(cgroup.CPUSet, "/")
	if !ok {
		return "", fmt.Errorf("the cpuset controller is not mounted under %s", p.hierarchy.Root())
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(text)), err
}

func (p *prober) freezer(context.Context) (string, error) {
	f, frozen, thawed := p.pick(cgroup.Freezer, "freezer.state", "cgroup.freeze"), "FROZEN", "THAWED"
	if f.name == "cgroup.freeze" {
		frozen, thawed = "1", "0"
	}
	found, err := setAll(step{f, frozen})
	if err != nil {
		return "", err
	}
	return found, f.set(thawed)
}

func (p *prober) memory(context.Context) (string, error) {
	return p.readable(p.pick(cgroup.Memory, "memory.usage_in_bytes", "memory.current"))
}

func (p *prober) io(context.Context) (string, error) {
	return p.readable(p.pick(cgroup.Blkio, "blkio.throttle.io_service_bytes", "io.stat"))
}

func (p *prober) readable(f file) (string, error) {
	if _, err := f.read(); err != nil {
		return "", err
	}
	return f.name + " read", nil
}

// psiGroup asks the probe's group, and then whether pods can be in that tree at all: on a hybrid machine their groups are in the
// v1 hierarchies, and in the v2 tree only as far as systemd mirrors them there.
func (p *prober) psiGroup(context.Context) (string, error) {
	text, err := (file{p, cgroup.Pressure, "cpu.pressure"}).read()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return "", advise(errors.New("pressure is switched off"), "boot with psi=1")
	case err != nil:
		return "", err
	case !strings.HasPrefix(text, "some avg10="):
		return "", fmt.Errorf("cpu.pressure reads %q", text)
	}
	if p.hierarchy.V2(cgroup.CPU) {
		return "cpu.pressure read", nil
	}
	dir, _, _ := p.hierarchy.Mount(cgroup.Pressure)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), groupPrefix) {
			return "cpu.pressure read, for groups that are in the v2 tree too", nil
		}
	}
	return "", errors.New("pods are in v1 hierarchies, which have no pressure files, and the v2 tree has no groups")
}
