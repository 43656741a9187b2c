package actuate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestSteadyStateIsFree(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	var plan []knob.Want
	for i := range 50 {
		g := fmt.Sprintf("pod%d", i)
		b.mkdir(g)
		plan = append(plan, b.want(g, knob.CPUIdle, n(1)), b.want(g, knob.CPUSet, cpus(0)))
	}
	b.e.Apply(plan, b.policy)
	if got := testing.AllocsPerRun(100, func() { b.e.Apply(plan, b.policy) }); got > 0 {
		t.Errorf("an unchanged plan allocates %v times", got)
	}
}

// shut is a kernel on which groups cannot be opened for a while: there are too many open files.
type shut struct {
	cgroup.FS
	now bool
}

func (s *shut) OpenGroup(dir string) (cgroup.Group, error) {
	if s.now {
		return nil, &cgroup.FileError{Op: "open", Path: dir, Err: unix.EMFILE}
	}
	return s.FS.OpenGroup(dir)
}

// What a killed agent held and cannot be opened at first stays in the journal, is not taken for an original, and goes back in the end.
func TestAdoptedKnobThatCannotBeOpened(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("a", "b")
	b.write("b", "cpu.weight", "300")
	before := cgrouptest.Snapshot(b.w)
	plan := []knob.Want{b.want("a", knob.CPUIdle, n(1)), b.want("b", knob.CPUWeight, n(1))}
	b.e.Apply(plan, b.policy)
	fs := &shut{FS: b.w.FS(), now: true}
	o := b.options()
	o.FS = fs
	for range 2 { // killed again before they could be opened
		b.kill()
		e, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		b.e = e
		out := b.e.Apply(plan, b.policy)
		if len(out) == 0 {
			t.Error("nothing was said about it")
		}
		for _, o := range out {
			if o.Result != knob.Failed || !errors.Is(o.Err, unix.EMFILE) {
				t.Errorf("%+v", o)
			}
		}
	}
	fs.now = false
	b.now = b.now.Add(time.Minute)
	b.e.Apply(plan, b.policy)
	b.is("b", "cpu.weight", "1")
	b.e.RestoreAll()
	b.unchanged(before)
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

func TestSecondOwner(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("pod")
	mine, theirs := b.want("pod", knob.CPUWeight, n(10)), b.want("pod", knob.CPUWeight, n(20))
	theirs.Owner = "memory"
	b.apply(results{knob.Written: 1}, mine)
	// Whoever comes first in the plan, the holder keeps it; it is said once.
	out := b.apply(results{knob.Refused: 1}, theirs, mine)
	if o := out[0]; o.Owner != "memory" || o.Err == nil || !strings.Contains(o.Err.Error(), "owned by cpu") {
		t.Errorf("refused: %+v", o)
	}
	mine.Value.N = 11
	b.apply(results{knob.Written: 1}, theirs, mine)
	b.is("pod", "cpu.weight", "11")
	// When the holder lets go the other may have it.
	b.apply(results{knob.Written: 1}, theirs)
	b.is("pod", "cpu.weight", "20")
	// The same want twice is no conflict, two values of one owner are.
	b.apply(results{}, theirs, theirs)
	again := theirs
	again.Value.N = 30
	b.apply(results{knob.Refused: 1}, theirs, again)
	b.apply(results{knob.Restored: 1})
}

func TestBadWants(t *testing.T) {
	for _, w := range []knob.Want{
		{Target: knob.Target{Cgroup: "/", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "pod", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "/x/../pod", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "/kubepods", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "/kubepods/besteffort", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "/kubepods.slice/kubepods-burstable.slice", Kind: knob.CPUIdle}, Value: n(1)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUIdle}, Value: n(2)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.Freeze}, Value: n(-1)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUWeight}, Value: n(0)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUSet}},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUQuota}, Value: quota(500, 100000)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUQuota}, Value: quota(5000, 10)},
		{Target: knob.Target{Cgroup: "/pod", Kind: knob.CPUBurst}, Value: n(-1)},
		{Target: knob.Target{Cgroup: "/pod", Kind: 99}, Value: n(1)},
	} {
		t.Run(fmt.Sprint(w.Cgroup, " ", w.Kind, " ", w.Value.Format(w.Kind)), func(t *testing.T) {
			b := newBench(t, cgrouptest.NewFake(t, cgroup.Legacy))
			b.mkdir("pod", "kubepods", "kubepods/besteffort")
			before := cgrouptest.Snapshot(b.w)
			out := b.apply(results{knob.Failed: 1}, w)
			t.Log(out[0].Err)
			b.now = b.now.Add(time.Hour)
			b.apply(results{}, w)
			b.unchanged(before)
		})
	}
}

func TestLacksKnob(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Hybrid, "cpu.idle", "cpu.cfs_burst_us"))
	b.mkdir("pod")
	before := cgrouptest.Snapshot(b.w)
	plan := []knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUWeight, n(1)), b.want("pod", knob.CPUQuota, quota(5000, 100000))}
	out := b.apply(results{knob.Failed: 1, knob.Written: 2}, plan...)
	if out[0].Result != knob.Failed || !strings.Contains(out[0].Err.Error(), "cpu.idle") {
		t.Errorf("the missing knob gives %+v", out[0])
	}
	b.now = b.now.Add(time.Hour)
	b.apply(results{}, plan...)
	b.e.RestoreAll()
	b.unchanged(before)
}

func TestRefusedWritesAreTriedAgain(t *testing.T) {
	w := cgrouptest.NewFake(t, cgroup.Unified)
	b := newBench(t, w)
	b.mkdir("pod")
	before := cgrouptest.Snapshot(w)
	tries := 0
	w.Fault = func(_, file, _ string) error {
		if file == "cpuset.cpus" {
			tries++
			return unix.EINVAL
		}
		return nil
	}
	plan := []knob.Want{b.want("pod", knob.CPUSet, cpus(0)), b.want("pod", knob.CPUIdle, n(1))}
	out := b.apply(results{knob.Failed: 1, knob.Written: 1}, plan...)
	for _, o := range out {
		if o.Result == knob.Failed && (!errors.Is(o.Err, unix.EINVAL) || o.New != "") {
			t.Errorf("failed: %+v", o)
		}
	}
	tries = 0
	for range 600 { // ten minutes
		b.now = b.now.Add(time.Second)
		b.e.Apply(plan, b.policy)
	}
	if tries < 10 || tries > 20 {
		t.Errorf("tried %d times in ten minutes", tries)
	}
	w.Fault = nil
	b.now = b.now.Add(time.Minute)
	b.apply(results{knob.Written: 1}, plan...)
	// A restore that fails is not forgotten.
	w.Fault = func(_, file, _ string) error {
		if file == "cpuset.cpus" {
			return unix.EIO
		}
		return nil
	}
	b.results(results{knob.Failed: 1, knob.Restored: 1}, b.e.RestoreAll())
	b.kill()
	if sum, err := Restore(b.options()); err == nil || len(sum.Failed) != 1 {
		t.Errorf("a restore that fails: %+v, %v", sum, err)
	}
	w.Fault = nil
	if sum, err := Restore(b.options()); err != nil || len(sum.Restored) != 1 {
		t.Errorf("the restore after it: %+v, %v", sum, err)
	}
	b.unchanged(before)
}

// TestCPUSetOfAGroupWithProcesses: the kernel takes no setting away from a group that has processes, so what the group above has, which
// is the same to them, is written in its place; and where even that is not known, the knob stays held.
func TestCPUSetOfAGroupWithProcesses(t *testing.T) {
	w := cgrouptest.NewFake(t, cgroup.Unified)
	b := newBench(t, w)
	b.mkdir("pod", "pod/c")
	put := func(group, file, text string) {
		t.Helper()
		if err := w.Put(b.abs(group), file, text); err != nil {
			t.Fatal(err)
		}
	}
	put("pod/c", "cgroup.procs", "4711\n")
	plan := []knob.Want{b.want("pod", knob.CPUSet, cpus(0)), b.want("pod/c", knob.CPUSet, cpus(0))}
	b.apply(results{knob.Written: 2}, plan...)

	out := b.e.Apply(plan[:1], b.policy) // the container's want ends, and nobody knows what its pod may use
	b.results(results{knob.Failed: 1}, out)
	if len(out) == 1 && !errors.Is(out[0].Err, unix.ENOSPC) {
		t.Errorf("failed: %v", out[0].Err)
	}
	b.is("pod/c", "cpuset.cpus", "0")
	if held := b.held(); len(held) != 2 {
		t.Errorf("held: %v", held)
	}

	put("pod", "cpuset.cpus.effective", "0-5\n")
	put("", "cpuset.cpus.effective", "0-7\n")
	b.now = b.now.Add(time.Hour)
	b.results(results{knob.Restored: 1}, b.e.Apply(plan[:1], b.policy))
	b.is("pod/c", "cpuset.cpus", "0-5")
	b.results(results{knob.Restored: 1}, b.e.Apply(nil, b.policy))
	b.is("pod", "cpuset.cpus", "0-7")
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
	b.kill()
	b.open() // what was put back so is not wanted back once more
	if held := b.held(); len(held) > 0 {
		t.Errorf("held again: %v", held)
	}
}

// otherValue is a kernel that takes each write of a file but makes something else of it.
type otherValue struct {
	cgroup.FS
	file, text string
}

type otherGroup struct {
	cgroup.Group
	fs otherValue
}

type otherFile struct {
	cgroup.RW
	text string
}

func (f otherValue) OpenGroup(dir string) (cgroup.Group, error) {
	g, err := f.FS.OpenGroup(dir)
	return otherGroup{g, f}, err
}

func (g otherGroup) Open(name string) (cgroup.RW, error) {
	f, err := g.Group.Open(name)
	if err == nil && name == g.fs.file {
		f = otherFile{f, g.fs.text}
	}
	return f, err
}

func (f otherFile) WriteText([]byte) error { return f.RW.WriteText([]byte(f.text)) }

func TestMismatch(t *testing.T) {
	w := cgrouptest.NewFake(t, cgroup.Unified)
	b := newBench(t, w)
	b.mkdir("pod")
	b.e.fs = otherValue{w.FS(), "cpu.weight", "55"}
	out := b.apply(results{knob.Mismatch: 1}, b.want("pod", knob.CPUWeight, n(10)))
	if o := out[0]; o.Old != "100" || o.New != "55" || o.Err == nil {
		t.Errorf("mismatch: %+v", o)
	}
	// What the kernel made of it is not somebody else's doing.
	b.results(results{}, b.auditAll())
}

func TestJournalCannotBeWritten(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("pod", "other")
	before := cgrouptest.Snapshot(b.w)
	held := []knob.Want{b.want("pod", knob.CPUIdle, n(1))}
	b.e.Apply(held, b.policy)
	readOnly, err := os.Open(filepath.Join(b.runDir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	good := b.e.journal.Swap(readOnly)

	// Nothing is touched for the first time, and what can go back goes back.
	b.apply(results{knob.Failed: 1}, held[0], b.want("other", knob.CPUIdle, n(1)))
	b.is("other", "cpu.idle", "0")
	b.is("pod", "cpu.idle", "1")
	b.apply(results{knob.Restored: 1})
	b.unchanged(before)
	b.e.journal.Swap(good)
}

func TestRunDir(t *testing.T) {
	w := cgrouptest.NewFake(t, cgroup.Unified)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(file, "run"), "/proc/qos-agent-test", "/proc"} {
		_, err := Open(Options{Hierarchy: w.Hierarchy(), RunDir: dir, BootID: "boot"})
		if err == nil || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), dir) > 1 {
			t.Errorf("run dir %s: %v", dir, err)
		}
		t.Log(err)
	}

	b := newBench(t, w)
	var busy *journal.Busy
	if _, err := Open(b.options()); !errors.As(err, &busy) || busy.PID != os.Getpid() || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second agent gets %v", err)
	}
	if err := b.e.Close(); err != nil {
		t.Error(err)
	}
	b.open()
}

func TestHeldTellsChanges(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("pod")
	was := b.e.Generation()
	changed := func(what string, want bool) {
		t.Helper()
		if now := b.e.Generation(); (now != was) != want {
			t.Errorf("%s: generation changed: %v", what, now != was)
		}
		was = b.e.Generation()
	}
	plan := []knob.Want{b.want("pod", knob.CPUIdle, n(1))}
	b.e.Apply(plan, b.policy)
	changed("held", true)
	b.e.Apply(plan, b.policy)
	b.auditAll()
	changed("nothing", false)
	plan[0].Rule = "another"
	b.e.Apply(plan, b.policy)
	changed("another rule", true)
	if got := b.e.Held()[0].Rule; got != "another" {
		t.Errorf("held for rule %q", got)
	}
	b.e.Apply(nil, b.policy)
	changed("restored", true)
}

func BenchmarkApplyUnchanged(b *testing.B) {
	var plan []knob.Want
	for i := range 1000 {
		plan = append(plan, knob.Want{Target: knob.Target{Cgroup: fmt.Sprintf("/kubepods/besteffort/pod%d", i), Kind: knob.CPUIdle}, Value: n(1), Owner: "cpu", Rule: "posture"})
	}
	e := &Executor{applied: true, last: append([]knob.Want(nil), plan...)}
	b.ReportAllocs()
	for b.Loop() {
		e.Apply(plan, Policy{})
	}
}
