package ebpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

// rig is a tracer on this machine's kernel and groups of our own to measure. Slots are handed out in order.
type rig struct {
	testing.TB
	*Tracer
	h    *cgroup.Hierarchy
	tree *groups.Tree
	next Slot
}

func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs and groups")
	}
	tracer, err := Load(o)
	if missing, ok := errors.AsType[*UnsupportedError](err); ok {
		t.Skipf("needs bpf: %v", missing)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-test-%x", rand.Uint32()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.Remove(), tracer.Close()); err != nil {
			t.Error(err)
		}
	})
	// Our groups matter more than other work that may be going on here, which would be to blame for most of the waits.
	if err := tree.SetWeight(tree.Path(), 1000); err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, Tracer: tracer, h: h, tree: tree, next: FirstSlot}
	r.allSwitch()
	return r
}

// allSwitch has every CPU switch: who runs there since before that is not known, nor for whom the first wait was.
func (r *rig) allSwitch() {
	r.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its mask
		var err error
		for cpu := range runtime.NumCPU() {
			var set unix.CPUSet
			set.Set(cpu)
			err = errors.Join(err, unix.SchedSetaffinity(0, &set))
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		r.Fatal(err)
	}
	r.until("every CPU has switched", func() bool {
		for cpu := range runtime.NumCPU() {
			if atomic.LoadUint32(&r.cpus.at[cpu].Head) == 0 {
				return false
			}
		}
		return true
	})
}

// group is a group that is measured.
type group struct {
	*rig
	path string
	slot Slot
}

func (r *rig) group(name string, victim bool) *group {
	r.Helper()
	g := &group{rig: r, slot: r.next, path: r.mkdir(name)}
	r.next++
	r.track(g.path, g.slot, victim)
	return g
}

func (r *rig) mkdir(name string) string {
	r.Helper()
	path, err := r.tree.Make(name)
	if err != nil {
		r.Fatal(err)
	}
	return path
}

func (r *rig) id(path string) uint64 {
	r.Helper()
	id, err := r.h.ID(path)
	if err != nil {
		r.Fatal(err)
	}
	return id
}

func (r *rig) track(path string, s Slot, victim bool) {
	r.Helper()
	if err := r.Track(r.id(path), s, victim); err != nil {
		r.Fatal(err)
	}
}

// run starts a load in the group at path.
func (r *rig) run(path string, l work.Load) *work.Process {
	r.Helper()
	p, err := work.Start(l, r.tree.Joiner(path))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(p.Stop)
	return p
}

func (g *group) run(l work.Load) *work.Process {
	g.Helper()
	return g.rig.run(g.path, l)
}

func (g *group) wait() Wait {
	var w Wait
	g.Wait(g.slot, &w)
	return w
}

// blame is who made the group wait, by slot.
func (g *group) blame() []uint64 {
	out := make([]uint64, g.MaxSlots())
	g.Blame(g.slot, 0, out)
	return out
}

// share is the part of the group's attributed waits that is charged to slots.
func (g *group) share(slots ...Slot) float64 {
	blame := g.blame()
	var part, all uint64
	for _, ns := range blame {
		all += ns
	}
	for _, s := range slots {
		part += blame[s]
	}
	return float64(part) / float64(max(all, 1))
}

// describe says in words who made the group wait.
func (g *group) describe() string {
	var b strings.Builder
	w := g.wait()
	p50, _ := w.Hist.Quantile(0.5)
	p99, _ := w.Hist.Quantile(0.99)
	fmt.Fprintf(&b, "%d waits, %v together, p50 %v, p99 %v, %d preempted; blame:", w.Count, time.Duration(w.SumNS), p50, p99, w.Preempted)
	for s, ns := range g.blame() {
		if ns > 0 {
			fmt.Fprintf(&b, " slot %d %.1f%%", s, 100*g.share(Slot(s)))
		}
	}
	var s Stats
	if err := g.Stats(&s); err != nil {
		g.Fatal(err)
	}
	if s.ShortWalks+s.BadStamps+s.QuotaLost > 0 {
		fmt.Fprintf(&b, "; %d walks too short, %d stamps not believed, %d throttlings lost", s.ShortWalks, s.BadStamps, s.QuotaLost)
	}
	return b.String()
}

// lastCPU is the CPU on which a test puts what shall share one.
func lastCPU() int { return runtime.NumCPU() - 1 }

// until waits for something to happen, for as long as a slow machine may need.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			r.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// waited lets time pass until the group has waited for d in all.
func (g *group) waited(d time.Duration) {
	g.Helper()
	g.until(fmt.Sprintf("%s waits %v", filepath.Base(g.path), d), func() bool { return g.wait().SumNS >= uint64(d) })
}

// waitedAnother lets time pass until the group has waited for d more than it has by now.
func (g *group) waitedAnother(d time.Duration) {
	g.Helper()
	g.waited(time.Duration(g.wait().SumNS) + d)
}

// checkSums fails if the shares of the group's waits do not add up to what was attributed, once nothing changes any more.
func (g *group) checkSums() {
	g.Helper()
	row := g.rowOf[g.slot]
	var last, sum, walked uint64
	for range 100 {
		walked = atomic.LoadUint64(&g.rows.at[row].WalkedNs)
		sum = 0
		for _, ns := range g.blame() {
			sum += ns
		}
		if sum == walked && walked == last {
			return
		}
		last = walked
		time.Sleep(10 * time.Millisecond)
	}
	g.Errorf("%s: shares add up to %d ns, %d ns were attributed", g.path, sum, walked)
}
