package decide

import (
	"fmt"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// node is a plant of n pods, half of them online, on 64 CPUs. Offline pods share the blame for waits of the given length.
func node(b *testing.B, n int, wait float64) *plant {
	var jobs []*job
	for i := range n {
		j := &job{name: fmt.Sprintf("p%04d", i), class: policy.Offline, demand: 1, bias: 1}
		if i%2 == 0 {
			j.class, j.limit = policy.Online, 200_000
		}
		jobs = append(jobs, j)
	}
	p := newPlant(b, 64, jobs...)
	p.base = wait
	p.run(2 * time.Second)
	p.build(signal.Tick)
	for i := range p.snap.Containers {
		w := &p.snap.Containers[i].Wait
		for k := 20; k < 40; k++ {
			w.Buckets = append(w.Buckets, signal.Bucket{Index: uint16(k), Count: 1})
		}
		if len(w.Blame) > 20 {
			w.Blame = w.Blame[:20]
		}
	}
	return p
}

// BenchmarkTick is a regular step of n containers, with everybody well and with every online container in trouble.
func BenchmarkTick(b *testing.B) {
	for _, n := range []int{150, 1000} {
		for name, wait := range map[string]float64{"calm": 100, "trouble": 3000} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				p := node(b, n, wait)
				p.snap.PodsGen = 1
				b.ReportAllocs()
				for b.Loop() {
					p.snap.Now += p.tick
					for i := range p.snap.Containers {
						c := &p.snap.Containers[i]
						c.Wait.At, c.CPU.At = p.snap.Now, p.snap.Now
					}
					p.brain.Step(&p.snap, p.pol)
				}
			})
		}
	}
}

// BenchmarkTickRDT is a regular step of 150 containers on two sockets, without hardware counters, with them, and with resctrl as well.
// What the last two cost is their ratio to the first.
func BenchmarkTickRDT(b *testing.B) {
	for _, have := range []string{"without", "perf", "perf+resctrl"} {
		b.Run(have, func(b *testing.B) {
			var flows []*flow
			for i := range 150 {
				f := hog(fmt.Sprintf("p%04d", i))
				f.work = 0.001
				if i%2 == 0 {
					f = server(fmt.Sprintf("p%04d", i))
					f.work, f.ws = 0.01, 0.1
				}
				f.domain = i / 2 % 2
				flows = append(flows, f)
			}
			m := newMemory(b, 2, flows...)
			m.caps.Perf = have != "without"
			if have != "perf+resctrl" {
				m.caps.CacheAllocation, m.caps.BandwidthAllocation, m.caps.CacheMonitoring, m.caps.BandwidthMonitoring = false, false, false, false
			}
			m.run(10 * time.Second)
			m.snap.PodsGen = 1
			b.ReportAllocs()
			for b.Loop() {
				m.now += m.tick
				m.snap.Now = m.now
				for i := range m.snap.Containers {
					c := &m.snap.Containers[i]
					c.Perf.At, c.RDT.At, c.Wait.At, c.CPU.At = m.now, m.now, m.now, m.now
				}
				for i := range m.snap.Node.Bandwidth {
					m.snap.Node.Bandwidth[i].At = m.now
				}
				m.brain.Step(&m.snap, m.pol)
			}
		})
	}
}

// BenchmarkEvent is a step for one long wait among n containers, with a culprit that was cut just before. It does not depend on n.
func BenchmarkEvent(b *testing.B) {
	for _, n := range []int{150, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := node(b, n, 3000)
			p.snap.PodsGen, p.snap.Trigger = 1, signal.Event
			p.snap.Events = []signal.WaitEvent{{At: p.snap.Now, Victim: 0, WaitNS: 9e6, Culprit: 1, PartNS: 8e6}}
			b.ReportAllocs()
			for b.Loop() {
				p.brain.Step(&p.snap, p.pol)
			}
		})
	}
}

var _ Policy = (*policy.Compiled)(nil)
