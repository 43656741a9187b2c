package collect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// fakeTracer counts as the kernel side does, for waits that a test makes up.
type fakeTracer struct {
	slots   int
	groups  map[uint64]fakeGroup
	waits   []ebpf.Wait
	blame   [][]uint64 // by victim, by culprit
	walks   []uint64
	stats   ebpf.Stats
	trackOK func(id uint64) error

	resets []ebpf.Slot
}

type fakeGroup struct {
	slot   ebpf.Slot
	victim bool
}

func newFakeTracer(slots int) *fakeTracer {
	f := &fakeTracer{slots: slots, groups: map[uint64]fakeGroup{}, waits: make([]ebpf.Wait, slots), walks: make([]uint64, slots)}
	for range slots {
		f.blame = append(f.blame, make([]uint64, slots))
	}
	return f
}

func (f *fakeTracer) MaxSlots() int { return f.slots }

func (f *fakeTracer) Track(id uint64, s ebpf.Slot, victim bool) error {
	if s < ebpf.FirstSlot || int(s) >= f.slots {
		panic(fmt.Sprintf("Track(%d, slot %d)", id, s))
	}
	if f.trackOK != nil {
		if err := f.trackOK(id); err != nil {
			return err
		}
	}
	f.groups[id] = fakeGroup{s, victim}
	return nil
}

func (f *fakeTracer) Untrack(id uint64) error { delete(f.groups, id); return nil }

func (f *fakeTracer) Reset(s ebpf.Slot) {
	for id, g := range f.groups {
		if g.slot == s {
			panic(fmt.Sprintf("Reset(%d) while group %d is tracked", s, id))
		}
	}
	f.resets = append(f.resets, s)
	f.waits[s], f.walks[s] = ebpf.Wait{}, 0
	clear(f.blame[s])
	for v := range f.blame {
		f.blame[v][s] = 0
	}
}

func (f *fakeTracer) Wait(s ebpf.Slot, into *ebpf.Wait) bool {
	if f.waits[s].Count == into.Count && f.waits[s].Preempted == into.Preempted {
		return false
	}
	*into = f.waits[s]
	return true
}

func (f *fakeTracer) Blame(v ebpf.Slot, seen uint64, into []uint64) uint64 {
	if f.walks[v] != seen {
		copy(into, f.blame[v])
	}
	return f.walks[v]
}

func (f *fakeTracer) Stats(into *ebpf.Stats) error {
	programs := append(into.Programs[:0], f.stats.Programs...)
	*into = f.stats
	into.Programs = programs
	return nil
}

// slotOf is the slot of the group with this id, SlotSystem if it is not tracked.
func (f *fakeTracer) slotOf(id uint64) ebpf.Slot {
	if g, ok := f.groups[id]; ok {
		return g.slot
	}
	return ebpf.SlotSystem
}

// dispatch ends a wait of a task of group id, during which culprit ran.
func (f *fakeTracer) dispatch(id uint64, wait time.Duration, culprit ebpf.Slot) {
	g, ok := f.groups[id]
	if !ok {
		return
	}
	w := &f.waits[g.slot]
	w.Count++
	w.SumNS += uint64(wait)
	w.Preempted++
	w.Hist[histogram.Index(uint64(wait))]++
	if g.victim {
		f.walks[g.slot]++
		f.blame[g.slot][culprit] += uint64(wait)
	}
}

// world is a node made of files in a temporary directory, a fake tracer and a fake clock.
type world struct {
	t      testing.TB
	root   string // cgroups
	proc   string
	sys    string
	v2     bool
	clock  *clock.Fake
	tracer *fakeTracer
	c      *Collector
}

// newWorld makes a v2 node; a layout of "v1" makes a v1 node.
func newWorld(t testing.TB, layout string, slots int, change ...func(*Options)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		t: t, root: filepath.Join(dir, "cgroup"), proc: filepath.Join(dir, "proc"), sys: filepath.Join(dir, "sys"),
		v2: layout != "v1", clock: clock.NewFake(),
	}
	if w.v2 {
		w.write(filepath.Join(w.root, "cgroup.controllers"), "cpuset cpu io memory\n")
	} else {
		for _, name := range []string{"cpu", "cpuacct", "cpuset", "memory"} {
			w.write(filepath.Join(w.root, name, "cgroup.procs"), "")
		}
	}
	w.node(0, 0)
	for _, r := range []string{"cpu", "memory", "io"} {
		w.write(filepath.Join(w.proc, "pressure", r), "some total=0\nfull total=0\n")
	}
	w.write(filepath.Join(w.sys, "devices/system/cpu/online"), "0-1\n")

	h, err := cgroup.Detect(w.root)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Proc: w.proc, Sys: w.sys, Hierarchy: h, Clock: w.clock, Caps: signal.Capabilities{RunQueue: slots > 0}}
	if slots > 0 {
		w.tracer = newFakeTracer(slots)
		o.Tracer = w.tracer
	}
	for _, f := range change {
		f(&o)
	}
	if w.c, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.c.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// node sets the node's busy and stolen CPU time in units of 10 ms.
func (w *world) node(busy, steal int) {
	w.t.Helper()
	w.write(filepath.Join(w.proc, "stat"), fmt.Sprintf("cpu  %d 0 0 1000 5 0 0 %d 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nintr 1\n", busy, steal))
}

// use is what the files of a group say. A quota of 0 is none.
type use struct {
	cpu                time.Duration
	quota              time.Duration
	periods, throttled int
	throttledFor       time.Duration
	memory, inactive   int
	stalled            time.Duration
	cpus               string
}

// group makes a group, or changes its files.
func (w *world) group(name string, u use) {
	w.t.Helper()
	file := func(controller, name2, text string) {
		if w.v2 {
			controller = ""
		}
		w.write(filepath.Join(w.root, controller, name, name2), text)
	}
	stat := fmt.Sprintf("nr_periods %d\nnr_throttled %d\n", u.periods, u.throttled)
	if !w.v2 {
		quota := u.quota.Microseconds()
		if quota == 0 {
			quota = -1
		}
		file("cpuacct", "cpuacct.usage", fmt.Sprintf("%d\n", u.cpu.Nanoseconds()))
		file("cpu", "cpu.stat", stat+fmt.Sprintf("throttled_time %d\n", u.throttledFor.Nanoseconds()))
		file("cpu", "cpu.cfs_quota_us", fmt.Sprintf("%d\n", quota))
		file("cpu", "cpu.cfs_period_us", "100000\n")
		file("memory", "memory.usage_in_bytes", fmt.Sprintf("%d\n", u.memory))
		file("memory", "memory.stat", fmt.Sprintf("inactive_file 1\ntotal_inactive_file %d\n", u.inactive))
		file("cpuset", "cpuset.cpus", u.cpus+"\n")
		return
	}
	quota := "max"
	if u.quota != 0 {
		quota = fmt.Sprint(u.quota.Microseconds())
	}
	file("", "cpu.stat", fmt.Sprintf("usage_usec %d\n", u.cpu.Microseconds())+stat+fmt.Sprintf("throttled_usec %d\n", u.throttledFor.Microseconds()))
	file("", "cpu.max", quota+" 100000\n")
	file("", "memory.current", fmt.Sprintf("%d\n", u.memory))
	file("", "memory.stat", fmt.Sprintf("inactive_file %d\n", u.inactive))
	for _, r := range []string{"cpu", "memory", "io"} {
		file("", r+".pressure", fmt.Sprintf("some avg10=0.00 avg60=0.00 avg300=0.00 total=%d\n", u.stalled.Microseconds()))
	}
	file("", "cpuset.cpus", u.cpus+"\n")
}

func (w *world) removeGroup(name string) {
	for _, controller := range []string{"", "cpu", "cpuacct", "cpuset", "memory"} {
		if w.v2 == (controller == "") {
			if err := os.RemoveAll(filepath.Join(w.root, controller, name)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *world) id(group string) uint64 {
	w.t.Helper()
	id, err := w.c.o.Hierarchy.ID(group)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// tick steps the clock and takes a snapshot.
func (w *world) tick(d time.Duration) *signal.Snapshot {
	w.clock.Step(d)
	return w.c.Tick()
}

const tick = 100 * time.Millisecond

// podOf is a pod with containers of the given names in groups below its own.
func podOf(name string, containers ...string) signal.Pod {
	p := signal.Pod{UID: "uid-" + name, Namespace: "default", Name: name, Cgroup: "/pods/" + name}
	for _, c := range containers {
		p.Containers = append(p.Containers, signal.Container{ID: name + "-" + c, Name: c, Cgroup: "/pods/" + name + "/" + c})
	}
	return p
}

// online makes pods of these names victims.
func online(names ...string) func(*signal.Pod) bool {
	return func(p *signal.Pod) bool {
		for _, n := range names {
			if p.Name == n {
				return true
			}
		}
		return false
	}
}

var errRefused = errors.New("refused")
