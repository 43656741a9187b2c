//go:build amd64

package rdt

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
)

const (
	roundCount   = 5
	roundSettles = 8 * time.Second
	roundLasts   = 6 * time.Second
)

// TestRigLongRounds: three hogs under constant load beside a service that lives in the cache.
func TestRigLongRounds(t *testing.T) {
	var splits []lab.Split
	for _, ways := range []int{1, 2} {
		for _, mb := range []int{100, 80, 60, 40} {
			splits = append(splits, lab.Split{Ways: ways, MB: mb})
		}
	}
	byTurns(t, "three-hogs", cached, greedy, splits)
}

// TestRigLongRoundsBandwidth: the same beside a service that waits for memory, where it is bandwidth that has to be given up.
func TestRigLongRoundsBandwidth(t *testing.T) {
	var splits []lab.Split
	for _, mb := range []int{80, 70, 60, 50, 40, 30, 20, 10} {
		splits = append(splits, lab.Split{Ways: 4, MB: mb})
	}
	byTurns(t, "bandwidth", missing, flood, splits)
}

// byTurns has the daemon and the best static split take turns. The split is the one that leaves offline pods most bandwidth, of those that gave the
// service a CPI no higher than the daemon's first turn did.
func byTurns(t *testing.T, name, service, load string, splits []lab.Split) {
	s := newStage(t)
	o := s.castHogs(name, 3)
	o.open(service)
	s.run()
	s.learned()
	r := &lab.Rounds{Scenario: name, Kernel: lab.Kernel()}
	r.CPIAlone = round(o.online.cpi(time.Now().Add(-2*time.Second), time.Now()), 3)
	o.startHogs(load)
	holds := map[lab.Held]int{}
	var best, over lab.Split
	for i := range roundCount {
		if i > 0 {
			s.run() // it knows from before what is normal
		}
		time.Sleep(roundSettles)
		used, from := o.used(), time.Now()
		for time.Since(from) < roundLasts {
			time.Sleep(500 * time.Millisecond)
			st := s.state()
			for _, h := range o.hogs {
				l := limitsOf(st, h)
				holds[lab.Held{Ways: l.Ways, MB: l.BandwidthPercent}]++
			}
		}
		agent := o.turn(from, used)
		o.end()

		x := o.divide()
		if i == 0 {
			best, over = x.sweep(agent.CPI, splits)
			r.Ways, r.MB, r.Tried = best.Ways, best.MB, best.Tried
		}
		r.Agent, r.Split = append(r.Agent, agent), append(r.Split, x.turn(&best))
		if over.Ways > 0 {
			r.Over = append(r.Over, x.turn(&over))
		}
		x.end()
	}
	sum := 0
	for _, n := range holds {
		sum += n
	}
	for h, n := range holds {
		h.Part = round(float64(n)/float64(sum), 2)
		r.Held = append(r.Held, h)
	}
	slices.SortFunc(r.Held, func(a, b lab.Held) int {
		return cmp.Or(cmp.Compare(b.Part, a.Part), cmp.Compare(a.Ways, b.Ways), cmp.Compare(a.MB, b.MB))
	})
	r.Held = r.Held[:min(len(r.Held), 3)]
	var ratios, same []float64
	for i, a := range r.Agent {
		b := r.Split[i]
		ratios = append(ratios, a.MBps/b.MBps)
		if len(r.Over) > 0 {
			c := r.Over[i]
			part := min(max((a.CPI-b.CPI)/(c.CPI-b.CPI), 0), 1)
			same = append(same, a.MBps/(b.MBps+part*(c.MBps-b.MBps)))
		}
	}
	r.Ratio, r.RatioMin, r.RatioMax = middle(ratios)
	if len(same) > 0 {
		r.Same, r.SameMin, r.SameMax = middle(same)
	}
	report(t, lab.StoryLine{Rounds: r})
}

// middle is the median of some figures, and their extremes.
func middle(all []float64) (median, least, most float64) {
	slices.Sort(all)
	return round(all[len(all)/2], 3), round(all[0], 3), round(all[len(all)-1], 3)
}

func round(x float64, digits int) float64 {
	tens := math.Pow10(digits)
	return math.Round(x*tens) / tens
}

// used is the CPU time that the daemon has used, seconds.
func (o *told) used() float64 {
	return readCost(o.t.Context(), o.t, o.agent)["process_cpu_seconds_total"]
}

// turn is what there was since from, when the daemon had used so much.
func (o *told) turn(from time.Time, used float64) lab.Turn {
	now := time.Now()
	out := lab.Turn{CPI: round(o.online.cpi(from, now), 3), MBps: round(o.moved(from, now), 0)}
	for _, w := range o.offline {
		out.CPUs += w.cpus(from, now)
	}
	out.CPUs = round(out.CPUs, 2)
	out.Self = round((o.used()-used)/now.Sub(from).Seconds(), 2)
	return out
}

// turn is what a split gives.
func (x *divided) turn(s *lab.Split) lab.Turn {
	x.set(s)
	time.Sleep(time.Second)
	used, from := x.used(), time.Now()
	time.Sleep(roundLasts)
	return x.told.turn(from, used)
}

// sweep tries splits for two seconds each and gives the one with most bandwidth at a CPI no higher than so much, or with the least CPI; over is the
// one with the next higher CPI, if there is one.
func (x *divided) sweep(most float64, tried []lab.Split) (best, over lab.Split) {
	for i := range tried {
		x.measure(&tried[i], 2*time.Second)
	}
	fit := slices.DeleteFunc(slices.Clone(tried), func(s lab.Split) bool { return s.CPI > most })
	best = slices.MinFunc(tried, func(a, b lab.Split) int { return cmp.Compare(a.CPI, b.CPI) })
	if len(fit) > 0 {
		best = slices.MaxFunc(fit, func(a, b lab.Split) int { return cmp.Compare(a.OfflineMBps, b.OfflineMBps) })
	}
	best.Tried = len(tried)
	more := slices.DeleteFunc(tried, func(s lab.Split) bool { return s.CPI <= most || s.OfflineMBps <= best.OfflineMBps })
	if len(more) > 0 {
		over = slices.MinFunc(more, func(a, b lab.Split) int { return cmp.Compare(a.CPI, b.CPI) })
	}
	return best, over
}
