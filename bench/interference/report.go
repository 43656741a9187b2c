package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// result is what others read.
type result struct {
	lab.Machine
	Seed          uint64             `json:"seed"`
	Seconds       float64            `json:"seconds"` // that the run took
	SettleSeconds float64            `json:"settle_seconds"`
	WindowSeconds float64            `json:"window_seconds"`
	Capacity      map[string]float64 `json:"capacity_per_second"` // of each service alone
	Loads         map[string]float64 `json:"loads"`               // as shares of that
	Windows       int                `json:"windows"`             // measured in all ...
	Thrown        int                `json:"thrown"`              // ... and thrown away by the noise rule
	Stalled       int                `json:"stalled"`             // thereof because no CPU ran for a moment
	Failed        int                `json:"failed"`              // phases whose work could not be measured
	TooNoisy      bool               `json:"too_noisy"`
	CutShort      bool               `json:"cut_short,omitempty"` // the budget ended before the last round did
	NotRun        map[string]string  `json:"not_run,omitempty"`   // protections that this machine cannot show, and why

	References  []reference        `json:"references"`
	Pairs       []pair             `json:"pairs"`
	Summary     map[string]summary `json:"summary"`
	WithoutDisk map[string]summary `json:"summary_without_disk_writers"`
	DiskOnly    map[string]summary `json:"summary_disk_writers"`

	phases []*phase
}

// reference is what a service does with no offline work beside it.
type reference struct {
	Online     string  `json:"online"`
	Load       string  `json:"load"`
	Rate       float64 `json:"rate"`
	AloneP99   float64 `json:"alone_p99_us"`
	SpinnerP99 float64 `json:"alone_spinner_p99_us"` // beside an idle-class spinner: CPUs need not wake up
	Windows    int     `json:"windows"`
	// Phases are each phase alone, in the order of time: a service may have fast and slow times of its own.
	Phases []own `json:"alone_phases"`
}

// own is what a service had and used in a phase.
type own struct {
	P99       float64 `json:"p99_us"`
	RequestUS float64 `json:"cpu_us_per_request"`
}

// pair is one service at one load beside one kind of work under one protection.
type pair struct {
	Online     string   `json:"online"`
	Load       string   `json:"load"`
	Offline    string   `json:"offline"`
	Protection string   `json:"protection"`
	P50        float64  `json:"p50_us"`
	P99        float64  `json:"p99_us"`
	P99Low     float64  `json:"p99_low_us"` // 95 % bootstrap
	P99High    float64  `json:"p99_high_us"`
	P999       float64  `json:"p999_us"`
	Ratio      float64  `json:"p99_ratio"`    // to alone
	Kept       float64  `json:"offline_kept"` // of the throughput under none
	Work       float64  `json:"offline_per_second"`
	CPU        float64  `json:"offline_cpus"`
	RequestUS  float64  `json:"online_cpu_us_per_request"`
	Left       float64  `json:"offline_cpu_of_left"` // CPU time that the work got, of what online and its clients left idle
	Late       float64  `json:"generator_late_p99_us"`
	Windows    int      `json:"windows"`
	Thrown     int      `json:"thrown"`
	TooNoisy   bool     `json:"too_noisy,omitempty"`
	Held       []string `json:"held,omitempty"` // by the agent, at the end of the last phase

	samples samples
}

// summary is a protection over all pairs.
type summary struct {
	Ratio     float64 `json:"p99_ratio_geomean"`
	RatioLow  float64 `json:"p99_ratio_geomean_low"`
	RatioHigh float64 `json:"p99_ratio_geomean_high"`
	Worst     float64 `json:"p99_ratio_worst"`
	WorstPair string  `json:"p99_ratio_worst_pair"`
	Over2     int     `json:"pairs_over_2"`
	Kept      float64 `json:"offline_kept_geomean"`
	KeptLow   float64 `json:"offline_kept_geomean_low"`
	KeptHigh  float64 `json:"offline_kept_geomean_high"`
	Pairs     int     `json:"pairs"`
}

// samples are a cell's values, one for each window that counts; work has one for each phase.
type samples struct {
	p50, p99, p999, cpu, left, late, work, rate, request []float64
	phases                                               []own
}

type cellKey struct{ online, load, offline, protection string }

// keptFloor stands for throughput that cannot be told from none: a geometric mean knows no zero.
const keptFloor = 0.01

// gather sums phases up.
func gather(o options, phases []*phase, capacity map[string]float64, seconds float64) *result {
	r := &result{
		Machine: lab.ThisMachine(), Seed: o.Seed, Seconds: math.Round(seconds), SettleSeconds: o.Settle.Seconds(), WindowSeconds: o.Window.Seconds(),
		phases: phases, Capacity: capacity, Loads: map[string]float64{}, NotRun: map[string]string{},
	}
	for _, l := range o.levels {
		r.Loads[l.name] = l.share
	}
	cells, thrown, held := map[cellKey]*samples{}, map[cellKey]int{}, map[cellKey][]string{}
	for _, p := range phases {
		if p.Failed != "" {
			r.Failed++
			continue
		}
		k := cellKey{p.Online, p.Load, p.Offline, p.Protection}
		s := cells[k]
		if s == nil {
			s = &samples{}
			cells[k] = s
		}
		held[k] = p.Held
		good := 0
		for _, w := range p.Windows {
			r.Windows++
			if w.Noisy {
				r.Thrown++
				if w.Stall > stallMax.Seconds()*1e3 {
					r.Stalled++
				}
				thrown[k]++
				continue
			}
			good++
			left := max(0.01, float64(r.CPUs)-w.OnlineCPU-w.LoadCPU)
			s.p50, s.p99, s.p999 = append(s.p50, w.P50), append(s.p99, w.P99), append(s.p999, w.P999)
			s.cpu, s.left = append(s.cpu, w.OfflineCPU), append(s.left, w.OfflineCPU/left)
			s.late, s.rate = append(s.late, w.LateP99), append(s.rate, w.Rate)
			s.request = append(s.request, 1e6*w.OnlineCPU/max(1, w.Rate))
		}
		if good > 0 {
			n := len(s.p99) - good
			s.phases = append(s.phases, own{median(s.p99[n:]), median(s.request[n:])})
		}
		if good > 0 && 2*good >= len(p.Windows) {
			s.work = append(s.work, p.Work)
		}
	}
	r.TooNoisy = r.Thrown*5 > r.Windows
	rng := rand.New(rand.NewPCG(o.Seed, 3))
	for _, s := range o.services {
		for _, l := range o.levels {
			if ref := cells[cellKey{s.Name, l.name, "", alone}]; ref != nil && len(ref.p99) > 0 {
				out := reference{Online: s.Name, Load: l.name, Rate: median(ref.rate), AloneP99: median(ref.p99), Windows: len(ref.p99), Phases: ref.phases}
				if sp := cells[cellKey{s.Name, l.name, "", spinner}]; sp != nil && len(sp.p99) > 0 {
					out.SpinnerP99 = median(sp.p99)
				}
				r.References = append(r.References, out)
			}
			for _, k := range o.offlines {
				for _, p := range o.protections {
					key := cellKey{s.Name, l.name, k.name, p.name}
					if c := cells[key]; c != nil {
						r.Pairs = append(r.Pairs, newPair(key, *c, cells, thrown[key], held[key], rng))
					}
				}
			}
		}
	}
	isDisk := map[string]bool{}
	for _, k := range o.offlines {
		isDisk[k.name] = k.disk
	}
	r.Summary = summaries(r.Pairs, cells, rng, func(pair) bool { return true })
	r.WithoutDisk = summaries(r.Pairs, cells, rng, func(p pair) bool { return !isDisk[p.Offline] })
	r.DiskOnly = summaries(r.Pairs, cells, rng, func(p pair) bool { return isDisk[p.Offline] })
	return r
}

func newPair(k cellKey, s samples, cells map[cellKey]*samples, thrown int, held []string, rng *rand.Rand) pair {
	p := pair{Online: k.online, Load: k.load, Offline: k.offline, Protection: k.protection, Windows: len(s.p99), Thrown: thrown, Held: held, samples: s}
	p.TooNoisy = thrown > len(s.p99) || len(s.p99) == 0
	if len(s.p99) == 0 {
		return p
	}
	p.P50, p.P99, p.P999 = median(s.p50), median(s.p99), median(s.p999)
	p.CPU, p.Left, p.Late, p.Work, p.RequestUS = median(s.cpu), median(s.left), median(s.late), orZero(median(s.work)), median(s.request)
	ci := bootstrap(rng, func(draw func([]float64) []float64) float64 { return median(draw(s.p99)) })
	p.P99Low, p.P99High = ci.Low, ci.High
	same := func(v []float64) []float64 { return v }
	p.Ratio, p.Kept = orZero(p.ratio(cells, same)), orZero(p.kept(cells, same))
	return p
}

// orZero is v, or 0 where there is nothing to compare with.
func orZero(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}

// ratio is the pair's p99 to that alone.
func (p *pair) ratio(cells map[cellKey]*samples, draw func([]float64) []float64) float64 {
	ref := cells[cellKey{p.Online, p.Load, "", alone}]
	if ref == nil {
		return math.NaN()
	}
	return median(draw(p.samples.p99)) / median(draw(ref.p99))
}

// kept is the pair's throughput to that of the same work beside the same service unprotected.
func (p *pair) kept(cells map[cellKey]*samples, draw func([]float64) []float64) float64 {
	ref := cells[cellKey{p.Online, p.Load, p.Offline, none}]
	if ref == nil || len(ref.work) == 0 || len(p.samples.work) == 0 || median(ref.work) == 0 {
		return math.NaN()
	}
	return max(keptFloor, median(draw(p.samples.work))/max(median(draw(ref.work)), math.SmallestNonzeroFloat32))
}

// summaries by protection over the pairs that want likes. Pairs too noisy to tell are left out.
func summaries(pairs []pair, cells map[cellKey]*samples, rng *rand.Rand, want func(pair) bool) map[string]summary {
	by := map[string][]pair{}
	for _, p := range pairs {
		if want(p) && !p.TooNoisy && p.Ratio > 0 {
			by[p.Protection] = append(by[p.Protection], p)
		}
	}
	out := map[string]summary{}
	for _, name := range sortedKeys(by) {
		ps := by[name]
		s := summary{Pairs: len(ps)}
		for _, p := range ps {
			if p.Ratio > s.Worst {
				s.Worst, s.WorstPair = p.Ratio, p.Online+" "+p.Load+" x "+p.Offline
			}
			if p.Ratio > 2 {
				s.Over2++
			}
		}
		// Pairs are drawn too: what another choice of pairs would have given is the larger part of what is not known.
		over := func(of func(*pair, func([]float64) []float64) float64) interval {
			var all []float64
			resample := false // the first time it is the value itself that is computed
			return bootstrap(rng, func(draw func([]float64) []float64) float64 {
				defer func() { resample = true }()
				all = all[:0]
				for i := range ps {
					if resample {
						i = rng.IntN(len(ps))
					}
					if v := of(&ps[i], draw); !math.IsNaN(v) && v > 0 {
						all = append(all, v)
					}
				}
				return geomean(all)
			})
		}
		ratio := over(func(p *pair, draw func([]float64) []float64) float64 { return p.ratio(cells, draw) })
		kept := over(func(p *pair, draw func([]float64) []float64) float64 { return p.kept(cells, draw) })
		s.Ratio, s.RatioLow, s.RatioHigh = ratio.Value, ratio.Low, ratio.High
		s.Kept, s.KeptLow, s.KeptHigh = kept.Value, kept.Low, kept.High
		out[name] = s
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Targets.
const (
	targetRatio = 1.25
	targetWorst = 2
	targetKept  = 0.7
)

// print writes the table.
func (r *result) print(w io.Writer, o options) {
	fmt.Fprintf(w, "\nkernel %s, %d CPUs, %s, seed %d, %.0f s; %d windows of %.2g s after %.2g s, %d thrown away as noisy (%d because the whole machine stood still for a moment), %d phases failed\n",
		r.Kernel, r.CPUs, r.Date, r.Seed, r.Seconds, r.Windows, r.WindowSeconds, r.SettleSeconds, r.Thrown, r.Stalled, r.Failed)
	if r.TooNoisy {
		fmt.Fprintln(w, "TOO NOISY TO TELL: more than one window in five was disturbed by others; repeat on a quiet machine")
	}
	if r.CutShort {
		fmt.Fprintln(w, "cut short: the budget ended before every pair had been measured equally often")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nreference\trequests/s\talone p99\tbeside an idle-class spinner\twindows")
	for _, ref := range r.References {
		fmt.Fprintf(t, "%s %s\t%.0f\t%s\t%s\t%d\n", ref.Online, ref.Load, ref.Rate, us(ref.AloneP99), us(ref.SpinnerP99), ref.Windows)
	}
	t.Flush()
	r.matrix(w, o, "p99 / p99 alone, geometric mean over services and loads", func(p pair) float64 { return p.Ratio }, "%.2f")
	r.matrix(w, o, "throughput kept, geometric mean over services and loads", func(p pair) float64 { return p.Kept }, "%.2f")
	for title, s := range map[string]map[string]summary{"all pairs": r.Summary} {
		printSummary(w, o, title, s)
	}
	printSummary(w, o, "without disk writers", r.WithoutDisk)
	printSummary(w, o, "disk writers alone", r.DiskOnly)
	for name, why := range r.NotRun {
		fmt.Fprintf(w, "%s was not run: %s\n", name, why)
	}
	r.worst(w)
	r.blame(w, o)
}

// blame prints what the service waited for, as the agent saw it.
func (r *result) blame(w io.Writer, o options) {
	culprits := []string{"job", "own", "system", "kernel", "irq", "idle", "quota", "unknown"}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nms a second that online waited, with the agent, by who ran\t%s\n", strings.Join(culprits, "\t"))
	any := false
	for _, k := range o.offlines {
		for _, l := range o.levels {
			sum, n := map[string]float64{}, 0
			for _, p := range r.phases {
				if p.Offline == k.name && p.Load == l.name && p.Protection == theAgent {
					n++
					for who, s := range p.Blame {
						sum[who] += s
					}
				}
			}
			if n == 0 {
				continue
			}
			any = true
			fmt.Fprintf(t, "%s, %s load", k.name, l.name)
			for _, c := range culprits {
				fmt.Fprintf(t, "\t%.1f", 1e3*sum[c]/float64(n))
			}
			fmt.Fprintln(t)
		}
	}
	if any {
		t.Flush()
	}
}

func us(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 1000:
		return fmt.Sprintf("%.0f us", v)
	default:
		return fmt.Sprintf("%.1f ms", v/1000)
	}
}

// matrix prints one figure by kind of work and protection.
func (r *result) matrix(w io.Writer, o options, title string, of func(pair) float64, format string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%s\n\t%s\n", title, strings.Join(names(o.protections), "\t"))
	for _, k := range o.offlines {
		fmt.Fprint(t, k.name)
		for _, prot := range o.protections {
			var all []float64
			for _, p := range r.Pairs {
				if p.Offline == k.name && p.Protection == prot.name && !p.TooNoisy && of(p) > 0 {
					all = append(all, of(p))
				}
			}
			if len(all) == 0 {
				fmt.Fprint(t, "\t-")
				continue
			}
			fmt.Fprintf(t, "\t"+format, geomean(all))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

func names(ps []protection) (out []string) {
	for _, p := range ps {
		out = append(out, p.name)
	}
	return out
}

func printSummary(w io.Writer, o options, title string, s map[string]summary) {
	if len(s) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n%s\tp99 / alone (95 %%)\tworst\tpairs over 2\tthroughput kept (95 %%)\tpairs\n", title)
	for _, p := range o.protections {
		if v, ok := s[p.name]; ok {
			fmt.Fprintf(t, "%s\t%.2f (%.2f - %.2f)\t%.1f (%s)\t%d\t%.2f (%.2f - %.2f)\t%d\n", p.name, v.Ratio, v.RatioLow, v.RatioHigh,
				v.Worst, v.WorstPair, v.Over2, v.Kept, v.KeptLow, v.KeptHigh, v.Pairs)
		}
	}
	t.Flush()
	if a, ok := s[theAgent]; ok {
		fmt.Fprintf(w, "targets: geometric mean %s, worst pair %s, throughput kept %s\n",
			verdict(a.Ratio, a.Ratio <= targetRatio, "at most 1.25"), verdict(a.Worst, a.Worst <= targetWorst, "at most 2"), verdict(a.Kept, a.Kept >= targetKept, "at least 0.70"))
	}
}

func verdict(v float64, met bool, target string) string {
	if met {
		return fmt.Sprintf("%.2f, met (%s)", v, target)
	}
	return fmt.Sprintf("%.2f, MISSED (%s)", v, target)
}

// worst lists the agent's worst pairs with what it held.
func (r *result) worst(w io.Writer) {
	var ps []pair
	for _, p := range r.Pairs {
		if p.Protection == theAgent && !p.TooNoisy {
			ps = append(ps, p)
		}
	}
	if len(ps) == 0 {
		return
	}
	slices.SortFunc(ps, func(a, b pair) int { return cmp.Compare(b.Ratio, a.Ratio) })
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nthe agent's worst pairs\tp99 (95 %)\t/ alone\tkept\tgenerator late p99\theld")
	for _, p := range ps[:min(12, len(ps))] {
		fmt.Fprintf(t, "%s %s x %s\t%s (%s - %s)\t%.2f\t%.2f\t%s\t%s\n", p.Online, p.Load, p.Offline, us(p.P99), us(p.P99Low), us(p.P99High),
			p.Ratio, p.Kept, us(p.Late), strings.Join(p.Held, " "))
	}
	t.Flush()
}
