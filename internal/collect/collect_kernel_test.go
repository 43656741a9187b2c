package collect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

// TestMain starts the load of the kernel tests, which is this binary again.
func TestMain(m *testing.M) {
	work.MaybeRun()
	os.Exit(m.Run())
}

// machine is a collector on this machine's kernel, with groups of its own.
type machine struct {
	testing.TB
	tree   *groups.Tree
	h      *cgroup.Hierarchy
	tracer *ebpf.Tracer
	c      *Collector
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs and groups")
	}
	tracer, err := ebpf.Load(ebpf.Options{})
	if missing, ok := errors.AsType[*ebpf.UnsupportedError](err); ok {
		t.Skipf("needs bpf: %v", missing)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-test-%08x", rand.Uint32()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(); err != nil {
			t.Error(err)
		}
	})
	c, err := New(Options{Hierarchy: h, Tracer: tracer, Clock: clock.System{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{TB: t, tree: tree, h: h, tracer: tracer, c: c}
}

// pod makes the groups of a pod of one container.
func (m *machine) pod(name string) signal.Pod {
	m.Helper()
	group, err := m.tree.Make(name + "/main")
	if err != nil {
		m.Fatal(err)
	}
	return signal.Pod{
		UID: name, Namespace: "test", Name: name, Cgroup: m.tree.Path(name), Containers: []signal.Container{{ID: name + "-main", Name: "main", Cgroup: group}},
	}
}

func (m *machine) start(group string, l work.Load) *work.Process {
	m.Helper()
	p, err := work.Start(l, m.tree.Joiner(group))
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(p.Stop)
	return p
}

// until ticks until done, with a generous limit because virtual machines are slow.
func (m *machine) until(what string, done func(s *signal.Snapshot) bool) *signal.Snapshot {
	m.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		time.Sleep(50 * time.Millisecond)
		s := m.c.Tick()
		if done(s) {
			return s
		}
		if time.Now().After(deadline) {
			m.Fatalf("waiting for %s: %+v", what, s)
		}
	}
}

// A victim and a culprit on one CPU, on the real kernel: every part of a snapshot is there and says what happened.
func TestSnapshotOnTheKernel(t *testing.T) {
	m := newMachine(t)
	batch, web := m.pod("batch"), m.pod("web")
	webGroup, batchGroup := web.Containers[0].Cgroup, batch.Containers[0].Cgroup
	if err := m.setQuota(webGroup, 150000); err != nil {
		t.Fatal(err)
	}
	m.c.SetPods([]signal.Pod{batch, web}, online("web"))
	m.tracer.SetBounds(time.Millisecond, 0)
	culprit := m.start(batchGroup, work.Spin.On(0))
	m.start(webGroup, work.Spin.On(0)) // competes for the CPU, so that it waits for a slice again and again

	var waits, buckets, blamed, onBatch, usage uint64
	var events int
	var event ebpf.Event
	s := m.until("blame, usage, memory and events", func(s *signal.Snapshot) bool {
		ct := &s.Containers[1]
		waits += ct.Wait.Count
		for _, b := range ct.Wait.Buckets {
			buckets += uint64(b.Count)
		}
		for _, b := range ct.Wait.Blame {
			blamed += b.NS
			if b.Culprit == 0 {
				onBatch += b.NS
			}
		}
		usage += ct.CPU.UsageNS
		for {
			ok, err := m.tracer.ReadEvent(&event)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			m.c.AddEvent(&event)
		}
		for _, e := range m.c.Event().Events {
			if e.Victim != 1 || e.WaitNS < 1e6 {
				t.Errorf("event = %+v", e)
			}
			events++
		}
		return onBatch > 50e6 && usage > 0 && ct.Memory.Current > 0 && events > 0 && (ct.PSI.At != 0 || m.h.Mode() != cgroup.Unified) && s.Node.CPU.At != 0
	})
	// The kernel goes on counting while it is read: of a wait on each CPU the one may be seen and the other not yet.
	if diff, cpus := int64(buckets)-int64(waits), int64(runtime.NumCPU()); diff < -cpus || diff > cpus {
		t.Errorf("%d waits, %d of them in buckets", waits, buckets)
	}
	// How much of it is the culprit's depends on what else runs on this machine.
	if onBatch > blamed {
		t.Errorf("%d of %d ns blamed on the culprit", onBatch, blamed)
	}
	if got := s.Containers[1].CPU; got.QuotaUS != 150000 || got.PeriodUS != 100000 {
		t.Errorf("CPU = %+v", got)
	}
	if s.Containers[1].CPUs.Empty() && !m.h.V2(cgroup.CPUSet) {
		t.Error("no CPUs")
	}

	// A group that the container makes counts for it.
	nested, err := m.tree.Make("batch/main/nested")
	if err != nil {
		t.Fatal(err)
	}
	m.c.Rescan(batchGroup)
	m.c.Tick()
	if !m.h.V2(cgroup.CPU) { // a v2 group with controllers for those below it takes no process
		if err := m.tree.Join(nested, culprit.PID()); err != nil {
			t.Fatal(err)
		}
		onBatch = 0
		m.until("blame on the nested group", func(s *signal.Snapshot) bool {
			for _, b := range s.Containers[1].Wait.Blame {
				if b.Culprit == 0 {
					onBatch += b.NS
				}
			}
			return onBatch > 20e6
		})
	}

	v := m.c.View()
	if len(v.Containers) != 2 || v.Containers[1].Wait.Count != v.Containers[1].Wait.Hist.Total() || v.Containers[1].Wait.Count < waits || v.Containers[1].CPU.UsageNS == 0 {
		t.Errorf("view = %+v", v.Containers)
	}
	for kind, n := range v.ReadErrors {
		if n != 0 {
			t.Errorf("%d errors of reading %s", n, kind)
		}
	}
}

// A group that vanishes under the collector is no error, and one that takes its place is found.
func TestGroupVanishesOnTheKernel(t *testing.T) {
	m := newMachine(t)
	web := m.pod("web")
	group := web.Containers[0].Cgroup
	m.c.SetPods([]signal.Pod{web}, online("web"))
	m.until("the first readings", func(s *signal.Snapshot) bool { return s.Containers[0].CPU.At != 0 && s.Containers[0].Memory.At != 0 })
	before, err := m.h.ID(group)
	if err != nil {
		t.Fatal(err)
	}

	if err := m.tree.Remove(); err != nil {
		t.Fatal(err)
	}
	m.until("the loss", func(*signal.Snapshot) bool { return m.c.list[0].id == 0 })
	if m.c.list[0].dir != -1 || m.c.list[0].cpu != nil || len(m.c.owners) != 0 {
		t.Errorf("the group is gone and still open: %+v", m.c.list[0])
	}

	if m.tree, err = groups.New(m.h, path.Base(m.tree.Path())); err != nil {
		t.Fatal(err)
	}
	m.pod("web")
	load := m.start(group, work.Spin)
	defer load.Stop()
	var used, waited bool // each in its own time: who has a CPU for itself waits seldom, and usage is read in one tick of ten
	m.until("the new group", func(s *signal.Snapshot) bool {
		ct := &s.Containers[0]
		used = used || ct.CPU.UsageNS > 0 && ct.CPU.At == s.Now
		waited = waited || ct.Wait.Count > 0
		return used && waited
	})
	if m.c.list[0].id == before {
		t.Error("it is the old group")
	}
	for kind, n := range m.c.View().ReadErrors {
		if n != 0 {
			t.Errorf("%d errors of reading %s", n, kind)
		}
	}
}

func (m *machine) setQuota(group string, us int) error {
	if m.h.V2(cgroup.CPU) {
		return m.tree.Write(cgroup.CPU, group, "cpu.max", fmt.Sprintf("%d 100000", us))
	}
	return m.tree.Write(cgroup.CPU, group, "cpu.cfs_quota_us", fmt.Sprint(us))
}

// BenchmarkTickOnTheKernel is a node with 150 containers, half of them online and a quarter with a quota, some of them busy. Time stands
// still between ticks, so the clock is a fake one. cpu-ns/op is what counts on a machine that has other work.
func BenchmarkTickOnTheKernel(b *testing.B) {
	m := newMachine(b)
	fake := clock.NewFake()
	m.c.o.Clock = fake
	var pods []signal.Pod
	isOnline := map[string]bool{}
	for i := range 150 {
		p := m.pod(fmt.Sprintf("p%03d", i))
		if isOnline[p.Name] = i%2 == 0; i%4 == 0 {
			if err := m.setQuota(p.Containers[0].Cgroup, 100000); err != nil {
				b.Fatal(err)
			}
		}
		pods = append(pods, p)
	}
	m.c.SetPods(pods, func(p *signal.Pod) bool { return isOnline[p.Name] })
	for i := range 20 {
		m.start(pods[i].Containers[0].Cgroup, work.Pulse(20*time.Microsecond, 2*time.Millisecond))
	}
	for range 200 { // until nothing is looked for any more that is not there
		fake.Step(10 * time.Second)
		m.c.Tick()
	}
	for range 30 {
		fake.Step(100 * time.Millisecond)
		m.c.Tick()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadCPU(b)
	b.ReportAllocs()
	for b.Loop() {
		fake.Step(100 * time.Millisecond)
		m.c.Tick()
	}
	b.ReportMetric(float64(threadCPU(b)-start)/float64(b.N), "cpu-ns/op")
}

func threadCPU(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
