package perf

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake is a kernel whose counters are what a test says.
type fake struct {
	next   int
	cpuOf  map[int]int // leader -> CPU
	open_  map[int]bool
	words  map[int][7]uint64 // by CPU: how many, enabled, running, values
	refuse func(cpu int, event uint64) error
}

func newFake() *fake {
	return &fake{next: 100, cpuOf: map[int]int{}, open_: map[int]bool{}, words: map[int][7]uint64{}}
}

func (f *fake) open(attr *unix.PerfEventAttr, _, cpu, leader int) (int, error) {
	if f.refuse != nil {
		if err := f.refuse(cpu, attr.Config); err != nil {
			return -1, err
		}
	}
	if leader >= 0 && !f.open_[leader] {
		return -1, unix.EBADF
	}
	f.next++
	f.open_[f.next] = true
	if leader < 0 {
		f.cpuOf[f.next] = cpu
	}
	return f.next, nil
}

func (f *fake) read(fd int, p []byte) (int, error) {
	if !f.open_[fd] {
		return 0, unix.EBADF
	}
	w := f.words[f.cpuOf[fd]]
	w[0] = EventsPerCPU
	for i, v := range w {
		binary.NativeEndian.PutUint64(p[8*i:], v)
	}
	return 8 * len(w), nil
}

func (f *fake) close(fd int) error {
	if !f.open_[fd] {
		return unix.EBADF
	}
	delete(f.open_, fd)
	return nil
}

func pool(t *testing.T, f *fake, max int, cpus ...int) *Pool {
	t.Helper()
	p := NewPool(Options{CPUs: cpus, MaxFDs: max})
	p.sys = f
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if len(f.open_) != 0 || p.FDs() != 0 {
			t.Errorf("%d descriptors are left open, the pool counts %d", len(f.open_), p.FDs())
		}
	})
	return p
}

func open(t *testing.T, p *Pool) *Group {
	t.Helper()
	g, err := p.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func read(t *testing.T, g *Group) Counts {
	t.Helper()
	var c Counts
	if err := g.Read(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCountsAreScaledPerCPU(t *testing.T) {
	f := newFake()
	g := open(t, pool(t, f, 100, 0, 1))
	f.words[0] = [7]uint64{0, 1000, 1000, 10, 20, 30, 40}
	f.words[1] = [7]uint64{0, 2000, 500, 10, 20, 30, 40} // ran a quarter of the time
	got := read(t, g)
	if want := (Counts{50, 100, 150, 200, 3000, 1500}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// From here on CPU 1 has all of the time: only what is new is scaled by what is new.
	f.words[1] = [7]uint64{0, 3000, 1500, 110, 20, 30, 40}
	if got := read(t, g); got.Cycles != 150 {
		t.Errorf("cycles %d, want 150", got.Cycles)
	}
}

func TestACounterThatHadNoHardwareCountsNothing(t *testing.T) {
	f := newFake()
	g := open(t, pool(t, f, 100, 0))
	f.words[0] = [7]uint64{0, 1000, 0, 0, 0, 0, 0}
	got := read(t, g)
	if want := (Counts{Enabled: 1000}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCountersGoRoundTheirEnd(t *testing.T) {
	f := newFake()
	g := open(t, pool(t, f, 100, 0))
	f.words[0] = [7]uint64{0, 10, 10, 1<<64 - 5, 1, 1, 1}
	g.cpus[0].value[0] = 1<<64 - 10
	if got := read(t, g); got.Cycles != 5 {
		t.Fatalf("cycles %d, want 5", got.Cycles)
	}
	f.words[0] = [7]uint64{0, 20, 20, 7, 1, 1, 1}
	if got := read(t, g); got.Cycles != 17 {
		t.Errorf("cycles %d after the end, want 17", got.Cycles)
	}
	f.words[0] = [7]uint64{0, 30, 30, 3, 1, 1, 1} // backwards
	if got := read(t, g); got.Cycles != 17 {
		t.Errorf("cycles %d of a counter that ran backwards, want 17", got.Cycles)
	}
}

func TestScaleDoesNotOverflow(t *testing.T) {
	for _, c := range []struct{ n, enabled, running, want uint64 }{
		{10, 100, 50, 20},
		{10, 100, 0, 10},
		{10, 50, 100, 10},
		{1 << 60, 3 << 40, 1 << 40, 3 << 60},
		{1 << 63, 1 << 40, 1, 1 << 63}, // no real count
	} {
		if got := scale(c.n, c.enabled, c.running); got != c.want {
			t.Errorf("scale(%d, %d, %d) = %d, want %d", c.n, c.enabled, c.running, got, c.want)
		}
	}
}

func TestTheBudgetIsKept(t *testing.T) {
	f := newFake()
	p := pool(t, f, 20, 0, 1) // two groups of 8
	if p.Capacity() != 2 {
		t.Errorf("capacity %d, want 2", p.Capacity())
	}
	a, _ := open(t, p), open(t, p)
	if _, err := p.Open(t.TempDir()); !errors.Is(err, ErrFull) {
		t.Errorf("third group: %v, want ErrFull", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	open(t, p)
}

func TestOpenLeavesNothingBehindWhenItFails(t *testing.T) {
	f := newFake()
	p := pool(t, f, 100, 0, 1)
	f.refuse = func(cpu int, event uint64) error {
		if cpu == 1 && event == unix.PERF_COUNT_HW_CACHE_MISSES {
			return unix.ENOENT
		}
		return nil
	}
	_, err := p.Open(t.TempDir())
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
	if want := "perf event cache-misses on CPU 1: open: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
	if len(f.open_) != 0 || p.FDs() != 0 {
		t.Errorf("%d descriptors left, counted %d", len(f.open_), p.FDs())
	}
	if _, err := p.Open(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such group: %v", err)
	}
}

func TestHotplugKeepsTotals(t *testing.T) {
	f := newFake()
	p := pool(t, f, 100, 0, 1)
	g := open(t, p)
	f.words[0] = [7]uint64{0, 10, 10, 100, 1, 1, 1}
	f.words[1] = [7]uint64{0, 10, 10, 50, 1, 1, 1}
	read(t, g)
	f.words[1] = [7]uint64{0, 20, 20, 60, 1, 1, 1} // last words of CPU 1
	if err := p.SetCPUs([]int{0, 2}); err != nil {
		t.Fatal(err)
	}
	f.words[2] = [7]uint64{0, 5, 5, 7, 1, 1, 1}
	if got := read(t, g); got.Cycles != 167 || got.Enabled != 35*time.Nanosecond {
		t.Errorf("cycles %d and enabled %d, want 167 and 35", got.Cycles, got.Enabled)
	}
	if p.FDs() != 8 {
		t.Errorf("%d descriptors, want 8", p.FDs())
	}
	f.refuse = func(cpu int, _ uint64) error {
		if cpu == 3 {
			return unix.ENODEV // gone before it could be opened
		}
		return nil
	}
	if err := p.SetCPUs([]int{0, 2, 3}); err != nil {
		t.Error(err)
	}
}

func TestHotplugStaysInsideTheBudget(t *testing.T) {
	f := newFake()
	p := pool(t, f, 8, 0)
	open(t, p)
	open(t, p)
	if err := p.SetCPUs([]int{0, 1}); !errors.Is(err, ErrFull) {
		t.Errorf("%v, want ErrFull", err)
	}
	if p.FDs() != 8 {
		t.Errorf("%d descriptors, want 8", p.FDs())
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	f := newFake()
	g := open(t, pool(t, f, 100, 0, 1))
	var c Counts
	if n := testing.AllocsPerRun(100, func() { _ = g.Read(&c) }); n != 0 {
		t.Errorf("%v allocations a reading", n)
	}
}

// software is four events that every kernel has.
func software() *[EventsPerCPU]Event {
	return &[EventsPerCPU]Event{
		{"cpu-clock", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK},
		{"task-clock", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_TASK_CLOCK},
		{"context-switches", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CONTEXT_SWITCHES},
		{"page-faults", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS},
	}
}
