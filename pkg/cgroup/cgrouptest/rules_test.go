package cgrouptest

import (
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// op is one thing done to a tree. With a file and no text it is a read that must show want; with a text it is a write that
// must give errno; without a file it makes ("mkdir") or removes ("rmdir") the group, or starts a process in it ("enter").
type op struct {
	group, file, text string
	want              []string // any of them
	errno             syscall.Errno
}

func write(group, file, text string) op { return op{group: group, file: file, text: text} }
func refused(group, file, text string, errno syscall.Errno) op {
	return op{group, file, text, nil, errno}
}
func shows(group, file string, want ...string) op { return op{group: group, file: file, want: want} }
func mkdir(group string) op                       { return op{group: group, text: "mkdir"} }
func rmdir(group string) op                       { return op{group: group, text: "rmdir"} }
func enter(group string) op                       { return op{group: group, text: "enter"} }

// rules is what is known of the kernel, as operations on a fresh tree that has the CPUs 0 and 1. A case runs on v1, v2 or both.
var rules = []struct {
	name   string
	v1, v2 bool
	ops    []op
}{
	{"defaults v1", true, false, []op{
		mkdir("a"),
		shows("a", "cpu.idle", "0\n"), shows("a", "cpu.shares", "1024\n"), shows("a", "cpu.cfs_quota_us", "-1\n"),
		shows("a", "cpu.cfs_period_us", "100000\n"), shows("a", "cpu.cfs_burst_us", "0\n"), shows("a", "cpuset.cpus", "\n"),
		shows("a", "freezer.state", "THAWED\n"), shows("a", "freezer.self_freezing", "0\n"),
	}},
	{"defaults v2", false, true, []op{
		mkdir("a"),
		shows("a", "cpu.idle", "0\n"), shows("a", "cpu.weight", "100\n"), shows("a", "cpu.max", "max 100000\n"),
		shows("a", "cpu.max.burst", "0\n"), shows("a", "cpuset.cpus", "\n"), shows("a", "cgroup.freeze", "0\n"),
	}},
	{"idle hides and resets the weight, v1", true, false, []op{
		mkdir("a"), mkdir("a/c"), write("a", "cpu.shares", "512"), write("a", "cpu.idle", "0"), shows("a", "cpu.shares", "512\n"),
		write("a", "cpu.idle", "1"), shows("a", "cpu.shares", "3\n"), refused("a", "cpu.shares", "512", unix.EINVAL),
		write("a", "cpu.idle", "1"), write("a", "cpu.idle", "0"), shows("a", "cpu.shares", "1024\n"),
		write("a", "cpu.idle", "1"), write("a/c", "cpu.shares", "5"), shows("a/c", "cpu.shares", "5\n"),
	}},
	{"idle hides and resets the weight, v2", false, true, []op{ // hidden is 0 up to some kernel between 6.1 and 6.12, then 1
		mkdir("a"), mkdir("a/c"), write("a", "cpu.weight", "50"), write("a", "cpu.idle", "0"), shows("a", "cpu.weight", "50\n"),
		write("a", "cpu.idle", "1"), shows("a", "cpu.weight", "0\n", "1\n"), refused("a", "cpu.weight", "50", unix.EINVAL),
		write("a", "cpu.idle", "1"), write("a", "cpu.idle", "0"), shows("a", "cpu.weight", "100\n"),
		write("a", "cpu.idle", "1"), write("a/c", "cpu.weight", "5"), shows("a/c", "cpu.weight", "5\n"),
	}},
	{"idle takes 0 and 1", true, true, []op{
		mkdir("a"), refused("a", "cpu.idle", "2", unix.EINVAL), refused("a", "cpu.idle", "-1", unix.EINVAL),
		refused("a", "cpu.idle", "x", unix.EINVAL), write("a", "cpu.idle", "1\n"), shows("a", "cpu.idle", "1\n"),
	}},
	{"shares are clamped", true, false, []op{
		mkdir("a"), write("a", "cpu.shares", "0"), shows("a", "cpu.shares", "2\n"), write("a", "cpu.shares", "300000"),
		shows("a", "cpu.shares", "262144\n"), refused("a", "cpu.shares", "-1", unix.EINVAL), refused("a", "cpu.shares", "abc", unix.EINVAL),
		refused("a", "cpu.shares", " 5", unix.EINVAL), write("a", "cpu.shares", "512\n"), shows("a", "cpu.shares", "512\n"),
	}},
	{"weights are bounded", false, true, []op{
		mkdir("a"), refused("a", "cpu.weight", "0", unix.ERANGE), refused("a", "cpu.weight", "10001", unix.ERANGE),
		refused("a", "cpu.weight", "abc", unix.EINVAL), write("a", "cpu.weight", "1"), shows("a", "cpu.weight", "1\n"),
		write("a", "cpu.weight", "7777"), shows("a", "cpu.weight", "7777\n"),
		write("a", "cpu.weight", "10000"), shows("a", "cpu.weight", "10000\n"),
	}},
	{"bounds of bandwidth v1", true, false, []op{
		mkdir("a"), refused("a", "cpu.cfs_quota_us", "999", unix.EINVAL), refused("a", "cpu.cfs_quota_us", "0", unix.EINVAL),
		write("a", "cpu.cfs_quota_us", "1000"), write("a", "cpu.cfs_quota_us", "-2"), shows("a", "cpu.cfs_quota_us", "-1\n"),
		refused("a", "cpu.cfs_period_us", "999", unix.EINVAL), refused("a", "cpu.cfs_period_us", "1000001", unix.EINVAL),
		write("a", "cpu.cfs_period_us", "1000"), write("a", "cpu.cfs_period_us", "1000000"),
		refused("a", "cpu.cfs_quota_us", "max", unix.EINVAL), refused("a", "cpu.cfs_burst_us", "-1", unix.EINVAL),
	}},
	{"bounds of bandwidth v2", false, true, []op{
		mkdir("a"), refused("a", "cpu.max", "999", unix.EINVAL), refused("a", "cpu.max", "0", unix.EINVAL), refused("a", "cpu.max", "-1", unix.EINVAL),
		refused("a", "cpu.max", "max 999", unix.EINVAL), refused("a", "cpu.max", "max 1000001", unix.EINVAL),
		write("a", "cpu.max", "1000"), shows("a", "cpu.max", "1000 100000\n"), write("a", "cpu.max", "5000 1000"), shows("a", "cpu.max", "5000 1000\n"),
		write("a", "cpu.max", "max"), shows("a", "cpu.max", "max 1000\n"), write("a", "cpu.max", "max 100000\n"), shows("a", "cpu.max", "max 100000\n"),
		refused("a", "cpu.max", "abc", unix.EINVAL),
	}},
	{"burst fits within the quota, v1", true, false, []op{
		mkdir("a"), write("a", "cpu.cfs_burst_us", "1000"), write("a", "cpu.cfs_burst_us", "0"), write("a", "cpu.cfs_quota_us", "50000"),
		refused("a", "cpu.cfs_burst_us", "50001", unix.EINVAL), write("a", "cpu.cfs_burst_us", "50000"),
		refused("a", "cpu.cfs_quota_us", "40000", unix.EINVAL), write("a", "cpu.cfs_quota_us", "-1"), shows("a", "cpu.cfs_burst_us", "50000\n"),
		refused("a", "cpu.cfs_quota_us", "40000", unix.EINVAL), write("a", "cpu.cfs_burst_us", "0"), write("a", "cpu.cfs_quota_us", "40000"),
	}},
	{"burst fits within the quota, v2", false, true, []op{
		mkdir("a"), write("a", "cpu.max.burst", "1000"), write("a", "cpu.max.burst", "0"), write("a", "cpu.max", "50000"),
		refused("a", "cpu.max.burst", "50001", unix.EINVAL), write("a", "cpu.max.burst", "50000"), shows("a", "cpu.max", "50000 100000\n"),
		refused("a", "cpu.max", "40000", unix.EINVAL), write("a", "cpu.max", "max"), shows("a", "cpu.max.burst", "50000\n"),
		refused("a", "cpu.max", "40000", unix.EINVAL), write("a", "cpu.max.burst", "0"), write("a", "cpu.max", "40000"),
	}},
	{"a child's share is within its parent's, v1", true, false, []op{
		mkdir("a"), mkdir("a/c"), mkdir("a/c/d"), write("a", "cpu.cfs_quota_us", "40000"),
		refused("a/c", "cpu.cfs_quota_us", "40001", unix.EINVAL), write("a/c", "cpu.cfs_quota_us", "40000"),
		refused("a", "cpu.cfs_quota_us", "30000", unix.EINVAL), write("a/c", "cpu.cfs_quota_us", "-1"), write("a", "cpu.cfs_quota_us", "30000"),
		refused("a/c/d", "cpu.cfs_quota_us", "30001", unix.EINVAL), write("a/c/d", "cpu.cfs_quota_us", "20000"),
		refused("a", "cpu.cfs_quota_us", "19999", unix.EINVAL), refused("a/c/d", "cpu.cfs_period_us", "10000", unix.EINVAL),
		refused("a", "cpu.cfs_period_us", "200000", unix.EINVAL), write("a/c/d", "cpu.cfs_quota_us", "3000"), write("a/c/d", "cpu.cfs_period_us", "10000"),
	}},
	{"a child's limit is its own, v2", false, true, []op{
		mkdir("a"), mkdir("a/c"), write("a", "cpu.max", "40000"), write("a/c", "cpu.max", "90000"), write("a", "cpu.max", "30000"),
		shows("a/c", "cpu.max", "90000 100000\n"),
	}},
	{"a child's CPUs are within its parent's, v1", true, false, []op{
		mkdir("a"), mkdir("a/c"), refused("a/c", "cpuset.cpus", "0", unix.EACCES), write("a", "cpuset.cpus", "0-1"), write("a/c", "cpuset.cpus", "0-1"),
		refused("a", "cpuset.cpus", "0", unix.EBUSY), write("a/c", "cpuset.cpus", "0"), write("a", "cpuset.cpus", "0"),
		refused("a/c", "cpuset.cpus", "1", unix.EACCES), refused("a", "cpuset.cpus", "\n", unix.EBUSY), write("a/c", "cpuset.cpus", "\n"),
		write("a", "cpuset.cpus", "\n"), shows("a", "cpuset.cpus", "\n"),
	}},
	{"a child's CPUs are its own, v2", false, true, []op{
		mkdir("a"), mkdir("a/c"), write("a/c", "cpuset.cpus", "0"), write("a", "cpuset.cpus", "1"), shows("a/c", "cpuset.cpus", "0\n"),
		write("a", "cpuset.cpus", "\n"), shows("a", "cpuset.cpus", "\n"), write("a/c", "cpuset.cpus", "\n"), shows("a/c", "cpuset.cpus", "\n"),
	}},
	{"CPUs of a group with processes, v2", false, true, []op{
		mkdir("a"), mkdir("a/c"), enter("a/c"), write("a", "cpuset.cpus", "\n"), write("a", "cpuset.cpus", "0"), write("a/c", "cpuset.cpus", "0"),
		refused("a/c", "cpuset.cpus", "\n", unix.ENOSPC), refused("a", "cpuset.cpus", "\n", unix.ENOSPC), shows("a", "cpuset.cpus", "0\n"),
		write("a", "cpuset.cpus", "0-1"), write("a/c", "cpuset.cpus", "1"), shows("a/c", "cpuset.cpus", "1\n"),
	}},
	{"lists of CPUs", true, true, []op{
		mkdir("a"), write("a", "cpuset.cpus", "1,0"), shows("a", "cpuset.cpus", "0-1\n"), write("a", "cpuset.cpus", " 0-1 \n"),
		refused("a", "cpuset.cpus", "abc", unix.EINVAL), refused("a", "cpuset.cpus", "1-0", unix.EINVAL),
		refused("a", "cpuset.cpus", "1023", unix.ERANGE), shows("a", "cpuset.cpus", "0-1\n"),
	}},
	{"freezer v1", true, false, []op{
		mkdir("a"), mkdir("a/c"), write("a", "freezer.state", "FROZEN"), shows("a", "freezer.state", "FROZEN\n"), shows("a/c", "freezer.state", "FROZEN\n"),
		shows("a/c", "freezer.self_freezing", "0\n"), shows("a/c", "freezer.parent_freezing", "1\n"), write("a/c", "freezer.state", "THAWED"),
		shows("a/c", "freezer.state", "FROZEN\n"), write("a", "freezer.state", "THAWED\n"), shows("a/c", "freezer.state", "THAWED\n"),
		refused("a", "freezer.state", "FREEZING", unix.EINVAL), refused("a", "freezer.state", "frozen", unix.EINVAL), refused("a", "freezer.state", "1", unix.EINVAL),
	}},
	{"freezer v2", false, true, []op{
		mkdir("a"), mkdir("a/c"), write("a", "cgroup.freeze", "1"), shows("a", "cgroup.freeze", "1\n"), shows("a/c", "cgroup.freeze", "0\n"),
		write("a", "cgroup.freeze", "0"), refused("a", "cgroup.freeze", "2", unix.ERANGE), refused("a", "cgroup.freeze", "x", unix.EINVAL),
	}},
	{"groups with children stay", true, true, []op{
		mkdir("a"), mkdir("a/c"), {group: "a", text: "rmdir", errno: unix.EBUSY}, rmdir("a/c"), rmdir("a"),
		{group: "a", text: "rmdir", errno: unix.ENOENT},
	}},
}

func TestFakeRules(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Hybrid, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) { testRules(t, func(t *testing.T) World { return NewFake(t, mode) }) })
	}
}

func testRules(t *testing.T, fresh func(t *testing.T) World) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			w := fresh(t)
			if v2 := w.Hierarchy().V2(cgroup.CPU); v2 && !r.v2 || !v2 && !r.v1 {
				return // a rule of the other version
			}
			for i, o := range r.ops {
				if err := o.run(t, w); err != nil {
					t.Fatalf("operation %d: %v", i, err)
				}
			}
		})
	}
}

func (o op) run(t *testing.T, w World) error {
	group := path.Join(w.Base(), o.group)
	var err error
	switch {
	case o.file == "" && o.text == "mkdir":
		err = w.Mkdir(group)
	case o.file == "" && o.text == "enter":
		err = inhabit(t, w, group)
	case o.file == "":
		err = w.Rmdir(group)
	case o.text == "":
		got, err := w.Read(group, o.file)
		if err != nil || !slices.Contains(o.want, got) {
			return fmt.Errorf("%s/%s shows %q, %v, want %q", o.group, o.file, got, err, o.want)
		}
		return nil
	default:
		err = w.Write(group, o.file, o.text)
	}
	if o.errno == 0 && err != nil || o.errno != 0 && !errors.Is(err, o.errno) {
		return fmt.Errorf("%s/%s: writing %q gives %v, want %v", o.group, o.file, o.text, err, o.errno)
	}
	return nil
}

// inhabit puts a process into a group until the test ends.
func inhabit(t *testing.T, w World, group string) error {
	if f, ok := w.(*Fake); ok {
		return f.Put(group, "cgroup.procs", "4711\n")
	}
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		return err
	}
	t.Cleanup(func() {
		_ = sleep.Process.Kill() // it may have ended
		_ = sleep.Wait()
	})
	return w.Write(group, "cgroup.procs", strconv.Itoa(sleep.Process.Pid))
}

// A file that was opened stays with its group, whatever takes the path afterwards.
func testVanish(t *testing.T, w World) {
	group := path.Join(w.Base(), "a")
	must(t, w.Mkdir(group))
	dir, _ := w.Hierarchy().Dir(cgroup.CPU, group)
	g, err := w.FS().OpenGroup(dir)
	must(t, err)
	defer g.Close()
	f, err := g.Open("cpu.idle")
	must(t, err)
	defer f.Close()
	must(t, f.WriteText([]byte("1")))
	must(t, w.Rmdir(group))

	check := func(when string) {
		t.Helper()
		if _, err := f.ReadInto(make([]byte, 64)); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("%s: read gives %v, want ErrGone", when, err)
		}
		if err := f.WriteText([]byte("1")); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("%s: write gives %v, want ErrGone", when, err)
		}
		if _, err := g.Open("cpu.idle"); !errors.Is(err, cgroup.ErrGone) {
			t.Errorf("%s: open gives %v, want ErrGone", when, err)
		}
	}
	check("removed")
	if _, err := w.FS().OpenGroup(dir); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("opening the removed group gives %v, want ErrGone", err)
	}
	must(t, w.Mkdir(group))
	check("another in its place")
	again, err := w.FS().OpenGroup(dir)
	must(t, err)
	defer again.Close()
	if again.ID() == g.ID() {
		t.Errorf("two groups have the ID %d", g.ID())
	}
	if _, err := again.Open("no.such"); err == nil || errors.Is(err, cgroup.ErrGone) {
		t.Errorf("opening a file that does not exist gives %v, want an error that is not ErrGone", err)
	}
	if got, err := w.Read(group, "cpu.idle"); got != "0\n" {
		t.Errorf("the new group is idle: %q, %v", got, err)
	}
}

func TestFakeVanish(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Hybrid, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) { testVanish(t, NewFake(t, mode)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
