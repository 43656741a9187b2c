package cgrouptest

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// write applies the kernel's rules. Each was seen on a kernel; the table in the tests runs on both.
func (f *Fake) write(dir, file, text string) error {
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return &cgroup.FileError{Op: "write", Path: filepath.Join(dir, file), Err: unix.ENOENT}
	}
	if err := f.rule(dir, file, text); err != nil {
		return &cgroup.FileError{Op: "write", Path: filepath.Join(dir, file), Err: err}
	}
	return nil
}

func (f *Fake) rule(dir, file, text string) error {
	switch file {
	case "cpu.idle":
		return f.writeIdle(dir, text)
	case "cpu.weight":
		return f.writeWeight(dir, file, text, 1, 10000)
	case "cpu.shares":
		return f.writeWeight(dir, file, text, 0, 1<<63-1)
	case "cpu.max":
		return f.writeMax(dir, text)
	case "cpu.cfs_quota_us":
		quota, err := number(text)
		if err != nil {
			return err
		}
		b := f.bandwidth(dir)
		b.quota = max(quota, -1)
		return f.setBandwidth(dir, b)
	case "cpu.cfs_period_us":
		period, err := number(text)
		if err != nil {
			return err
		}
		b := f.bandwidth(dir)
		b.period = period
		return f.setBandwidth(dir, b)
	case "cpu.max.burst", "cpu.cfs_burst_us":
		burst, err := number(text)
		if err != nil {
			return err
		}
		b := f.bandwidth(dir)
		b.burst = burst
		return f.setBandwidth(dir, b)
	case "cpuset.cpus":
		return f.writeCPUs(dir, text)
	case "cpuset.mems":
		return f.set(dir, file, strings.TrimSpace(text))
	case "freezer.state":
		switch strings.TrimSpace(text) {
		case "FROZEN":
			return f.set(dir, "freezer.self_freezing", 1)
		case "THAWED":
			return f.set(dir, "freezer.self_freezing", 0)
		}
		return unix.EINVAL
	case "cgroup.freeze":
		n, err := number(text)
		if err != nil {
			return err
		}
		if n < 0 || n > 1 {
			return unix.ERANGE
		}
		return f.set(dir, file, n)
	}
	return unix.EINVAL // a file for reading only
}

// number parses as the kernel's kstrtoll does: any base, at most one newline, no other white space.
func number(text string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(text, "\n"), 0, 64)
	if err != nil {
		return 0, unix.EINVAL
	}
	return n, nil
}

func (f *Fake) writeIdle(dir, text string) error {
	idle, err := number(text)
	if err != nil || idle < 0 || idle > 1 {
		return unix.EINVAL
	}
	was := f.number(dir, "cpu.idle")
	if was == 1 && idle == 0 {
		// The weight starts anew. It is set while it does not show, so that a reader sees both change at once.
		for _, file := range []string{"cpu.weight", "cpu.shares"} {
			if f.text(dir, file) != "" {
				if err := f.set(dir, file, cgroup.DefaultWeight(file == "cpu.weight")); err != nil {
					return err
				}
			}
		}
	}
	return f.set(dir, "cpu.idle", idle)
}

func (f *Fake) writeWeight(dir, file, text string, least, most int64) error {
	n, err := number(text)
	switch {
	case err != nil || file == "cpu.shares" && n < 0:
		return unix.EINVAL
	case n < least || n > most:
		return unix.ERANGE
	case f.number(dir, "cpu.idle") == 1:
		return unix.EINVAL
	}
	if file == "cpu.shares" {
		n = min(max(n, 2), 262144)
	}
	return f.set(dir, file, n)
}

// bandwidth is a group's quota, µs.
type bandwidth struct{ quota, period, burst int64 }

func (f *Fake) bandwidth(dir string) bandwidth {
	if !f.h.V2(cgroup.CPU) {
		return bandwidth{f.number(dir, "cpu.cfs_quota_us"), f.number(dir, "cpu.cfs_period_us"), f.number(dir, "cpu.cfs_burst_us")}
	}
	v, _ := cgroup.Quota.ParseValue(f.text(dir, "cpu.max"))
	return bandwidth{v.N, v.Period, f.number(dir, "cpu.max.burst")}
}

// ratio is the share of a CPU as the kernel compares it; ok is false without a limit.
func (b bandwidth) ratio() (r int64, ok bool) {
	if b.quota < 0 {
		return 0, false
	}
	return b.quota << 20 / b.period, true
}

func (f *Fake) writeMax(dir, text string) error {
	fields := strings.Fields(text)
	if len(fields) == 0 || len(fields) > 2 {
		return unix.EINVAL
	}
	b := f.bandwidth(dir)
	b.quota = -1
	var err error
	if fields[0] != "max" {
		if b.quota, err = number(fields[0]); err != nil || b.quota < 0 {
			return unix.EINVAL
		}
	}
	if len(fields) == 2 {
		if b.period, err = number(fields[1]); err != nil {
			return err
		}
	}
	return f.setBandwidth(dir, b)
}

// setBandwidth takes over what has changed: one of three values on v1, quota and period at once on v2.
func (f *Fake) setBandwidth(dir string, b bandwidth) error {
	switch {
	case b.quota >= 0 && b.quota < 1000, b.period < 1000, b.period > 1000000, b.burst < 0:
		return unix.EINVAL
	case b.quota >= 0 && b.burst > b.quota:
		return unix.EINVAL
	}
	old := f.bandwidth(dir)
	if f.h.V2(cgroup.CPU) {
		if old.burst != b.burst {
			return f.set(dir, "cpu.max.burst", b.burst)
		}
		return f.set(dir, "cpu.max", cgroup.Quota.Format(cgroup.Value{N: b.quota, Period: b.period}))
	}
	if err := f.checkRatios(dir, b); err != nil {
		return err
	}
	switch {
	case old.quota != b.quota:
		return f.set(dir, "cpu.cfs_quota_us", b.quota)
	case old.period != b.period:
		return f.set(dir, "cpu.cfs_period_us", b.period)
	default:
		return f.set(dir, "cpu.cfs_burst_us", b.burst)
	}
}

// checkRatios is the rule of v1: no group may have a larger share than the nearest limited group above it.
func (f *Fake) checkRatios(dir string, b bandwidth) error {
	mine, limited := b.ratio()
	if !limited {
		return nil // what was in order below a limit is in order without it
	}
	mount, _, _ := f.h.Mount(cgroup.CPU)
	for up := filepath.Dir(dir); len(up) > len(mount); up = filepath.Dir(up) {
		if above, ok := f.bandwidth(up).ratio(); ok {
			if mine > above {
				return unix.EINVAL
			}
			break
		}
	}
	return f.checkBelow(dir, mine)
}

func (f *Fake) checkBelow(dir string, limit int64) error {
	for _, name := range children(dir) {
		child := filepath.Join(dir, name)
		if r, ok := f.bandwidth(child).ratio(); ok {
			if r > limit {
				return unix.EINVAL
			}
			continue
		}
		if err := f.checkBelow(child, limit); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fake) writeCPUs(dir, text string) error {
	set, err := cpuset.Parse(text)
	if err != nil {
		if strings.Contains(err.Error(), "beyond") {
			return unix.ERANGE
		}
		return unix.EINVAL
	}
	var all cpuset.Set
	for c := range FakeCPUs {
		all.Add(c)
	}
	if !set.SubsetOf(all) {
		return unix.ERANGE
	}
	if f.h.V2(cgroup.CPUSet) {
		if set.Empty() && f.text(dir, "cpuset.cpus") != "" && f.populated(dir) {
			return unix.ENOSPC // though an empty set stands for the parent's, and a new group has one
		}
		return f.set(dir, "cpuset.cpus", set)
	}
	if err := f.checkCPUs(dir, set); err != nil {
		return err
	}
	return f.set(dir, "cpuset.cpus", set)
}

// checkCPUs is the rule of v1: a child's CPUs are a subset of its parent's.
func (f *Fake) checkCPUs(dir string, set cpuset.Set) error {
	for _, name := range children(dir) {
		if child, _ := cpuset.Parse(f.text(filepath.Join(dir, name), "cpuset.cpus")); !child.SubsetOf(set) {
			return unix.EBUSY
		}
	}
	if parent, _ := cpuset.Parse(f.text(filepath.Dir(dir), "cpuset.cpus")); !set.SubsetOf(parent) {
		return unix.EACCES
	}
	if procs := f.text(dir, "cgroup.procs"); procs != "" && set.Empty() {
		return unix.ENOSPC
	}
	return nil
}

// populated reports whether there are processes in a group or below it.
func (f *Fake) populated(dir string) bool {
	if f.text(dir, "cgroup.procs") != "" {
		return true
	}
	return slices.ContainsFunc(children(dir), func(name string) bool { return f.populated(filepath.Join(dir, name)) })
}
