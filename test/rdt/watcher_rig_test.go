//go:build amd64

package rdt

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/perf"
)

// watcher counts a group by itself, every 50 ms, whatever the daemon sees.
type watcher struct {
	mu     sync.Mutex
	points []point
	stop   chan struct{}
	done   chan struct{}
}

// point is the counters of one group between two looks.
type point struct {
	at            time.Time
	span          time.Duration
	ran           time.Duration // CPU time of the group
	cycles, instr uint64
	misses        uint64
}

// The rig's PMU has four counters beside two that can count only cycles and instructions. The daemon takes two of the four, so what we
// count beside it has to do with the others; else the kernel would let both run half of the time. Software events cost nothing.
func events(hardware ...perf.Event) *[perf.EventsPerCPU]perf.Event {
	var out [perf.EventsPerCPU]perf.Event
	for i := range out {
		out[i] = perf.Event{Name: "task-clock", Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK}
	}
	copy(out[:], hardware)
	return &out
}

// watchCPI begins to count cycles and instructions of a group, watchTraffic its misses.
func watchCPI(t *testing.T, dir string) *watcher {
	hw := perf.Hardware()
	return watchGroup(t, dir, events(hw[0], hw[1]), func(p *point, n, before *perf.Counts) {
		p.cycles, p.instr = n.Cycles-before.Cycles, n.Instructions-before.Instructions
	})
}

func watchTraffic(t *testing.T, dir string) *watcher {
	return watchGroup(t, dir, events(perf.Hardware()[3]), func(p *point, n, before *perf.Counts) { p.misses = n.Cycles - before.Cycles })
}

func cpus() (out []int) {
	for cpu := range 64 {
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", cpu)); err == nil {
			out = append(out, cpu)
		}
	}
	return out
}

// watchGroup begins to count for a group.
func watchGroup(t *testing.T, dir string, events *[perf.EventsPerCPU]perf.Event, take func(p *point, n, before *perf.Counts)) *watcher {
	t.Helper()
	pool := perf.NewPool(perf.Options{CPUs: cpus(), Events: events})
	g, err := pool.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer pool.Close()
		var before, now perf.Counts
		last := time.Now()
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if err := g.Read(&now); err != nil {
				return // the group is gone, with the test
			}
			at := time.Now()
			p := point{at: at, span: at.Sub(last), ran: now.Enabled - before.Enabled}
			take(&p, &now, &before)
			w.mu.Lock()
			w.points = append(w.points, p)
			w.mu.Unlock()
			before, last = now, at
		}
	}()
	t.Cleanup(w.end)
	return w
}

func (w *watcher) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

// windows is CPI over three looks each, for the time from a to b.
func (w *watcher) windows(a, b time.Time) (at []time.Time, cpi []float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.points {
		if i < 2 || w.points[i].at.Before(a) || w.points[i].at.After(b) {
			continue
		}
		var c, n uint64
		for _, p := range w.points[i-2 : i+1] {
			c += p.cycles
			n += p.instr
		}
		if n > 0 {
			at = append(at, w.points[i].at)
			cpi = append(cpi, float64(c)/float64(n))
		}
	}
	return at, cpi
}

// between adds up what the looks from a to b saw.
func (w *watcher) between(a, b time.Time) (sum point) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.points {
		if p := &w.points[i]; !p.at.Before(a) && !p.at.After(b) {
			sum.span += p.span
			sum.ran += p.ran
			sum.cycles += p.cycles
			sum.instr += p.instr
			sum.misses += p.misses
		}
	}
	return sum
}

// cpi is cycles per instruction from a to b; 0: it ran none.
func (w *watcher) cpi(a, b time.Time) float64 {
	sum := w.between(a, b)
	if sum.instr == 0 {
		return 0
	}
	return float64(sum.cycles) / float64(sum.instr)
}

// cpus is how many CPUs the group used from a to b.
func (w *watcher) cpus(a, b time.Time) float64 {
	sum := w.between(a, b)
	return sum.ran.Seconds() / max(sum.span.Seconds(), 1e-9)
}

// mbps is what the group moved from a to b, by its misses, MB/s.
func (w *watcher) mbps(a, b time.Time) float64 {
	sum := w.between(a, b)
	return float64(sum.misses) * 64 / 1e6 / max(sum.span.Seconds(), 1e-9)
}

// mean is the mean over time of CPI from a to b.
func (w *watcher) mean(a, b time.Time) float64 {
	_, cpi := w.windows(a, b)
	sum := 0.0
	for _, c := range cpi {
		sum += c
	}
	return sum / float64(max(1, len(cpi)))
}

// beyond is the part of the time from a to b in which CPI is beyond bound.
func (w *watcher) beyond(a, b time.Time, bound float64) float64 {
	_, cpi := w.windows(a, b)
	n := 0
	for _, c := range cpi {
		if c > bound {
			n++
		}
	}
	return float64(n) / float64(max(1, len(cpi)))
}

// recovered is how the service fared after the hogs' start: took is the time until CPI first is inside bound for good half a second, -1 if never, 0 if
// it never left it; over is the part of the time in which it was beyond.
func (w *watcher) recovered(start, end time.Time, bound float64) (took time.Duration, over float64) {
	at, cpi := w.windows(start, end)
	took = -1
	good := time.Time{}
	hurt, n := false, 0
	for i := range at {
		if cpi[i] > bound {
			n++
			hurt = true
			good = time.Time{}
			continue
		}
		if !hurt {
			continue // the load has not begun to bite
		}
		if good.IsZero() {
			good = at[i]
		}
		if took < 0 && at[i].Sub(good) >= 500*time.Millisecond {
			took = good.Sub(start)
		}
	}
	if len(at) > 0 {
		over = float64(n) / float64(len(at))
	}
	if !hurt {
		took = 0
	}
	return took, over
}
