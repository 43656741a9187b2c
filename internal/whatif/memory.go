package whatif

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Memory is a model of an online pod's cycles per instruction, fitted to recordings that have hardware counters:
//
//	CPI  = core + MPKI/1000 * miss * Stretch(traffic / bus)    saturation of the bandwidth
//	MPKI = a * held^-exponent                                   sharing of the cache
//
// with Stretch and the power law of package model. It says what the pod's CPI would have been with less traffic and cache taken by
// offline pods. It does not follow what another policy would decide: see Axes.
type Memory struct {
	Pod     string  `json:"pod"`     // "namespace/name"
	Windows int     `json:"windows"` // of a second, that it is fitted on
	CPI     float64 `json:"cpi"`     // recorded, mean of the windows

	Core     float64 `json:"core"`            // cycles per instruction without misses
	Miss     float64 `json:"missCycles"`      // of a miss on a quiet bus
	Bus      float64 `json:"busMBps"`         // traffic at which the bus is full, MB/s
	Exponent float64 `json:"exponent"`        // of the cache that the pod holds
	Assumed  bool    `json:"assumedExponent"` // what it holds hardly varied, or was not measured: the exponent is the square root rule's

	// Without is the CPI if offline pods had caused no traffic and held no cache, Half if half of both.
	Without float64 `json:"cpiWithoutOffline"`
	Half    float64 `json:"cpiWithHalf"`

	// Blocks is how many blocks of ten seconds a fit on the others was held against; Relative is the mean error of CPI there, in parts of
	// what was seen, and Naive that of taking the mean of the blocks that were fitted on.
	Blocks   int     `json:"holdOutBlocks"`
	Relative float64 `json:"holdOutError"`
	Naive    float64 `json:"holdOutErrorOfTheMean"`
}

// memoryWindow is a second of an online pod's container.
type memoryWindow struct {
	at                 time.Duration // since the recording began
	cpi, mpki          float64
	traffic, offline   float64 // MB/s on the buses: all, and offline pods'
	held, offlineHolds float64 // bytes of cache: the pod's, and offline pods'; 0: not measured
}

// leastWindows is how many windows a fit wants.
const leastWindows = 20

// FitMemory fits a model for each online pod that was counted for long enough, in the order of their names.
func FitMemory(recs []Recording) ([]Memory, error) {
	windows := make(map[string][]memoryWindow)
	for _, r := range recs {
		if err := memoryWindows(r, windows); err != nil {
			return nil, err
		}
	}
	var out []Memory
	for pod, ws := range windows {
		if len(ws) >= leastWindows {
			out = append(out, fitMemory(pod, ws))
		}
	}
	slices.SortFunc(out, func(a, b Memory) int { return cmp.Compare(a.Pod, b.Pod) })
	return out, nil
}

// memoryWindows adds the windows of a recording, by pod.
func memoryWindows(r Recording, out map[string][]memoryWindow) error {
	type sum struct {
		from                         time.Duration
		cycles, instructions, misses uint64
		m                            memoryWindow // times ns
	}
	w := newWorld(&Model{}) // learns nothing
	sums := make(map[string]*sum)
	start := time.Duration(-1)
	return r.Steps(func(s *Step) error {
		w.observe(s, nil)
		defer w.after(s)
		snap := s.Snapshot
		if !w.tick {
			return nil
		}
		if start < 0 {
			start = snap.Now
		}
		var now traffic
		for i := range snap.Containers {
			c := &snap.Containers[i]
			p := &c.Perf
			if w.class[c.Pod] != policy.Online || p.At != snap.Now || p.RunningPercent < 50 {
				continue
			}
			key := snap.Pods[c.Pod].UID + "/" + snap.Pods[c.Pod].Containers[c.Container].ID
			a := sums[key]
			if a == nil {
				a = &sum{from: p.At - p.Span}
				sums[key] = a
			}
			a.cycles, a.instructions, a.misses = a.cycles+p.Cycles, a.instructions+p.Instructions, a.misses+p.LLCMisses
			if !now.known {
				now = trafficOf(w)
			}
			span := float64(p.Span)
			a.m.traffic += now.all * span
			a.m.offline += now.offline * span
			a.m.held += now.held[c.Pod] * span
			a.m.offlineHolds += now.offlineHolds * span
			took := p.At - a.from
			if took < window {
				continue
			}
			if a.instructions > 0 {
				pod, ns := snap.Pods[c.Pod].Key(), float64(took)
				out[pod] = append(out[pod], memoryWindow{
					at: snap.Now - start, cpi: float64(a.cycles) / float64(a.instructions), mpki: 1000 * float64(a.misses) / float64(a.instructions),
					traffic: a.m.traffic / ns, offline: a.m.offline / ns, held: a.m.held / ns, offlineHolds: a.m.offlineHolds / ns,
				})
			}
			*a = sum{from: p.At}
		}
		return nil
	})
}

// traffic is who moves how much, and holds what of the cache.
type traffic struct {
	known        bool
	all, offline float64   // MB/s
	held         []float64 // bytes by pod
	offlineHolds float64
}

// trafficOf reads it from what resctrl monitors, or, where it monitors nothing, from misses.
func trafficOf(w *world) traffic {
	snap := w.snap
	t := traffic{known: true, held: make([]float64, len(snap.Pods))}
	var byMisses, offlineByMisses, byRDT float64
	for i := range snap.Containers {
		c := &snap.Containers[i]
		if r := &c.RDT; r.State == signal.RDTOK && r.Span > 0 {
			rate := mbps(r.TotalBytes, r.Span)
			byRDT += rate
			t.held[c.Pod] += float64(r.OccupancyBytes)
			if w.class[c.Pod] == policy.Offline {
				t.offline += rate
				t.offlineHolds += float64(r.OccupancyBytes)
			}
		}
		if p := &c.Perf; p.Span > 0 {
			rate := mbps(p.LLCMisses*signal.CacheLine, p.Span)
			byMisses += rate
			if w.class[c.Pod] == policy.Offline {
				offlineByMisses += rate
			}
		}
	}
	if t.all = byRDT; t.all == 0 {
		t.all, t.offline = byMisses, offlineByMisses
	}
	machine := 0.0
	for _, b := range snap.Node.Bandwidth {
		if b.State == signal.RDTOK && b.Span > 0 {
			machine += mbps(b.TotalBytes, b.Span)
		}
	}
	t.all = max(t.all, machine)
	return t
}

// mbps is a rate in MB/s.
func mbps(n uint64, over time.Duration) float64 { return float64(signal.BytesPerSecond(n, over)) / 1e6 }

func fitMemory(pod string, ws []memoryWindow) Memory {
	m := fitCPI(ws)
	m.Pod, m.Windows = pod, len(ws)
	for i := range ws {
		m.CPI += ws[i].cpi / float64(len(ws))
		m.Without += ws[i].cpi * m.less(&ws[i], 1) / float64(len(ws))
		m.Half += ws[i].cpi * m.less(&ws[i], 0.5) / float64(len(ws))
	}
	learn, test := Halves()
	var half, rest []memoryWindow
	mean := 0.0
	for _, w := range ws {
		if learn(w.at) {
			half = append(half, w)
			mean += w.cpi
		} else if test(w.at) {
			rest = append(rest, w)
		}
	}
	if len(half) < leastWindows/2 || len(rest) == 0 {
		return m
	}
	mean /= float64(len(half))
	h := fitCPI(half)
	blocks := make(map[time.Duration]bool)
	seen := 0.0
	for i := range rest {
		w := &rest[i]
		blocks[w.at/Block] = true
		seen += w.cpi
		m.Relative += math.Abs(h.expect(w.mpki, w.traffic) - w.cpi)
		m.Naive += math.Abs(mean - w.cpi)
	}
	m.Blocks, m.Relative, m.Naive = len(blocks), m.Relative/seen, m.Naive/seen
	return m
}

// expect is the CPI with so many misses beside so much traffic.
func (m *Memory) expect(mpki, traffic float64) float64 {
	return model.CPI(m.Core, mpki, m.Miss, model.Stretch(traffic/m.Bus))
}

// less is the factor of a window's CPI if offline pods had given up a part of their traffic and cache.
func (m *Memory) less(w *memoryWindow, part float64) float64 {
	mpki := w.mpki
	if w.held > 0 {
		mpki = model.Misses(mpki, w.held+part*w.offlineHolds, w.held, m.Exponent)
	}
	return m.expect(mpki, max(0, w.traffic-part*w.offline)) / m.expect(w.mpki, w.traffic)
}

// fitCPI finds the bus on a grid, and for each core and miss by least squares; and the exponent by a line through logarithms.
func fitCPI(ws []memoryWindow) Memory {
	most := 1e-9
	for i := range ws {
		most = max(most, ws[i].traffic)
	}
	cpi := each(ws, func(w *memoryWindow) float64 { return w.cpi })
	best, least := Memory{}, math.Inf(1)
	for _, room := range [...]float64{1.001, 1.02, 1.05, 1.1, 1.2, 1.4, 1.8, 3} { // 3: nothing of saturation was seen
		m := Memory{Bus: room * most}
		m.Core, m.Miss = model.Line(each(ws, func(w *memoryWindow) float64 { return w.mpki / 1000 * model.Stretch(w.traffic/m.Bus) }), cpi)
		switch {
		case m.Miss < 0: // misses do not hasten anybody
			m.Core, m.Miss = mean(ws), 0
		case m.Core < 0:
			m.Core, m.Miss = 0, slope(ws, m.Bus)
		}
		off := 0.0
		for i := range ws {
			d := m.expect(ws[i].mpki, ws[i].traffic) - ws[i].cpi
			off += d * d
		}
		if off < least {
			best, least = m, off
		}
	}
	best.Exponent, best.Assumed = exponent(ws)
	return best
}

func each(ws []memoryWindow, of func(*memoryWindow) float64) []float64 {
	out := make([]float64, len(ws))
	for i := range ws {
		out[i] = of(&ws[i])
	}
	return out
}

func mean(ws []memoryWindow) (sum float64) {
	for i := range ws {
		sum += ws[i].cpi / float64(len(ws))
	}
	return sum
}

// slope is the cycles of a miss if a core needed none itself.
func slope(ws []memoryWindow, bus float64) float64 {
	xx, xy := 0.0, 0.0
	for i := range ws {
		x := ws[i].mpki / 1000 * model.Stretch(ws[i].traffic/bus)
		xx += x * x
		xy += x * ws[i].cpi
	}
	if xx == 0 {
		return 0
	}
	return xy / xx
}

// exponent of the power law, between 0 and 1. It is assumed to be that of the square root rule if what the pod holds varies too
// little to tell.
func exponent(ws []memoryWindow) (e float64, assumed bool) {
	const rule, varies = 0.5, 0.1
	var held []memoryWindow
	low, high := math.Inf(1), 0.0
	for _, w := range ws {
		if w.held > 0 && w.mpki > 0 {
			held = append(held, w)
			low, high = min(low, w.held), max(high, w.held)
		}
	}
	if len(held) < leastWindows/2 || high < low*(1+varies) {
		return rule, true
	}
	_, b := model.Line(each(held, func(w *memoryWindow) float64 { return math.Log(w.held) }), each(held, func(w *memoryWindow) float64 { return math.Log(w.mpki) }))
	return min(max(-b, 0), 1), false
}

// Axis says what an answer knows of a resource, or of two that it knows the same of.
type Axis struct {
	Axis string `json:"axis"`
	// Followed: the other policy's decisions about it act on the model. If not, they come out as those of the recording, and Why says why.
	Followed bool   `json:"followed"`
	Why      string `json:"why"`
	Cuts     int    `json:"recordedCuts"` // that were made for it
}

// Axes looks at what recordings have of each resource.
func Axes(recs []Recording) ([]Axis, error) {
	var waits, counters, monitored bool
	cuts := make(map[string]int)
	for _, r := range recs {
		if err := r.Steps(func(s *Step) error {
			for i := range s.Snapshot.Containers {
				c := &s.Snapshot.Containers[i]
				waits = waits || c.Wait.At != 0
				counters = counters || c.Perf.Instructions > 0
				monitored = monitored || c.RDT.State == signal.RDTOK
			}
			for i := range s.Notes {
				if n := &s.Notes[i]; n.From != n.To && n.Victim != "" {
					cuts[n.Owner]++
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	cpu := Axis{Axis: "cpu", Followed: waits, Why: "posture, CPUs, quota and freezing act on the response model", Cuts: cuts[control.OwnerCPU]}
	if !waits {
		cpu.Why = "no run-queue waits were recorded (no eBPF)"
	}
	memory := "what another policy would do with ways and bandwidth is not followed: the recording does not show what the pods would do with others, " +
		"and judging CPI takes baselines that another policy would have learned otherwise; "
	switch {
	case !counters:
		memory += "and there is no CPI in it (no hardware counters)"
	case !monitored:
		memory += "a CPI model from misses alone is below, as resctrl monitored nothing"
	default:
		memory += "a CPI model is below"
	}
	const pressure = "nothing is known of how pods answer to reclaim and to limits of io; pressure is taken as recorded"
	return []Axis{
		cpu, {Axis: "cache and bandwidth", Why: memory, Cuts: cuts[control.OwnerCache] + cuts[control.OwnerBandwidth]},
		{Axis: "memory and io", Why: pressure},
	}, nil
}
