package whatif

import (
	"math"
	"time"

	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Model is the response model as fitted from recordings: how each offline pod makes each online pod wait.
type Model struct {
	pairs    map[pairKey]*model.Pair
	culprits map[string]*model.Pair // over all victims
	all      model.Pair
	shapes   [model.Standings]shape
	Windows  int
}

// pairKey names a pair. Pods are known by name, so that what one recording taught holds for others of the same workload.
type pairKey struct{ victim, culprit string }

// shape is what waits behind offline pods look like.
type shape struct {
	ns   [histogram.Buckets]float64
	seen float64
}

// long is the wait from which the kernel side says whose it was.
const long = 20 * time.Microsecond

// enough is the number of windows from which a pair is believed by itself.
const enough = 20

// Fit learns from recordings. keep says, if it is not nil, by time since the start of a recording whether to learn from it: for
// validation on what was left out.
func Fit(recs []Recording, keep func(time.Duration) bool) (*Model, error) {
	m := &Model{pairs: make(map[pairKey]*model.Pair), culprits: make(map[string]*model.Pair)}
	for _, r := range recs {
		w := newWorld(m)
		c := newCollector(func(o *observation) { m.learn(o) }, keep)
		if err := r.Steps(func(s *Step) error {
			w.observe(s, nil)
			c.step(w)
			w.after(s)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// observation is a window of one online container and one offline pod.
type observation struct {
	pairKey
	at         time.Duration // since the recording began
	dispatches float64
	waitUS     float64
	share      float64
	standing   model.Standing
}

func (m *Model) learn(o *observation) {
	m.Windows++
	p := m.pairs[o.pairKey]
	if p == nil {
		p = &model.Pair{}
		m.pairs[o.pairKey] = p
	}
	p.Observe(o.dispatches, o.waitUS, o.share, o.standing)
	c := m.culprits[o.culprit]
	if c == nil {
		c = &model.Pair{}
		m.culprits[o.culprit] = c
	}
	c.Observe(o.dispatches, o.waitUS, o.share, o.standing)
	m.all.Observe(o.dispatches, o.waitUS, o.share, o.standing)
}

// estimate is what is known of a pair, or else of its culprit, or else of everybody.
func (m *Model) estimate(victim, culprit string) model.Estimate {
	if p := m.pairs[pairKey{victim, culprit}]; p != nil && p.Windows() >= enough {
		return p.Fit()
	}
	if p := m.culprits[culprit]; p != nil && p.Windows() >= enough {
		return p.Fit()
	}
	return m.all.Fit()
}

// Wait is what the model expects an online pod to wait behind an offline one, µs a dispatch, when that uses the share of the node.
func (m *Model) Wait(victim, culprit string, share float64, st model.Standing) float64 {
	e := m.estimate(victim, culprit)
	return e.Wait(share, st)
}

// Varied is the part of the pairs whose parameters the recordings show, rather than the priors, in percent.
func (m *Model) Varied() float64 {
	n := 0
	for _, p := range m.pairs {
		if p.Varied() {
			n++
		}
	}
	if len(m.pairs) == 0 {
		return 0
	}
	return 100 * float64(n) / float64(len(m.pairs))
}

// Pairs is how many pairs of an online and an offline pod were seen.
func (m *Model) Pairs() int { return len(m.pairs) }

// collector makes windows of ticks.
type collector struct {
	give  func(*observation)
	keep  func(time.Duration) bool
	start time.Duration
	begun bool
	span  time.Duration
	open  []opened // by container, then by pod
	gen   uint64
	obs   observation
}

// opened is a window that fills.
type opened struct {
	dispatches, ns, share float64
	standing              model.Standing
	mixed                 bool
	n                     int
}

func newCollector(give func(*observation), keep func(time.Duration) bool) *collector {
	return &collector{give: give, keep: keep}
}

// window is the time over which waits are held against CPU time.
const window = time.Second

func (c *collector) reset(n int) {
	c.span = 0
	c.open = append(c.open[:0], make([]opened, n)...)
}

func (c *collector) step(w *world) {
	if !w.tick {
		return
	}
	snap := w.snap
	if !c.begun {
		c.begun, c.start = true, snap.Now
	}
	at := snap.Now - c.start
	n := len(snap.Containers) * len(snap.Pods)
	if snap.PodsGen != c.gen || snap.PodsGen == 0 || len(c.open) != n {
		c.gen = snap.PodsGen
		c.reset(n)
	}
	if c.keep != nil && !c.keep(at) {
		c.reset(n)
		return
	}
	for i := range snap.Containers {
		s := &snap.Containers[i]
		if w.class[s.Pod] != policy.Online || s.Wait.At != snap.Now && s.Wait.Count == 0 {
			continue
		}
		dispatches := float64(count(&s.Wait))
		for o := range snap.Pods {
			if w.class[o] != policy.Offline {
				continue
			}
			b := &c.open[i*len(snap.Pods)+o]
			if b.n == 0 {
				b.standing = w.was[o].standing
			}
			b.mixed = b.mixed || b.standing != w.was[o].standing
			b.dispatches += dispatches
			b.ns += w.blamed(i, o)
			b.share += w.share(w.used[o])
			b.n++
		}
		w.model.learnShape(w, i)
	}
	if c.span += snap.Elapsed; c.span < window {
		return
	}
	c.span = 0
	for k := range c.open {
		b := &c.open[k]
		if b.n == 0 {
			continue
		}
		if !b.mixed {
			i, o := k/len(snap.Pods), k%len(snap.Pods)
			c.obs = observation{
				pairKey: pairKey{snap.Pods[snap.Containers[i].Pod].Key(), w.actor[o].key}, at: at,
				dispatches: b.dispatches, waitUS: b.ns / 1e3, share: b.share / float64(b.n), standing: b.standing,
			}
			c.give(&c.obs)
		}
		*b = opened{}
	}
}

// count is the waits of a sample.
func count(s *signal.WaitSample) uint64 {
	if s.Count > 0 {
		return s.Count
	}
	n := uint64(0)
	for _, b := range s.Buckets {
		n += uint64(b.Count)
	}
	return n
}

// learnShape learns what waits behind offline pods look like.
func (m *Model) learnShape(w *world, i int) {
	s := &w.snap.Containers[i]
	offline, most := 0.0, 0.0
	st := model.Idle
	for p := range w.snap.Pods {
		if w.class[p] != policy.Offline {
			continue
		}
		ns := w.blamed(i, p)
		offline += ns
		if ns > most {
			most, st = ns, w.was[p].standing
		}
	}
	others := w.others[i]
	if offline < 0.5*others || offline == 0 {
		return
	}
	var bins, met [histogram.Buckets]float64
	for _, b := range s.Wait.Buckets {
		if int(b.Index) < histogram.Buckets {
			bins[b.Index] = float64(b.Count)
		}
	}
	longest(&met, &bins, others)
	h := &m.shapes[st]
	for i, n := range met {
		if n > 0 {
			h.ns[i] += n * middle(i)
			h.seen += n * middle(i)
		}
	}
}

// foreign reports whether a part of a wait is somebody's doing, rather than the victim's own or an idle CPU's that had to wake up.
func foreign(w *world, victim int, c signal.Culprit) bool {
	switch {
	case c >= 0 && int(c) < len(w.snap.Containers):
		return w.snap.Containers[c].Pod != victim
	case c == signal.CulpritIdle, c == signal.CulpritQuota:
		return false
	}
	return true
}

// longest takes the longest waits that make up ns together: those are the ones that met somebody. Which wait met whom is not recorded, only
// how much in all; a wait behind others is nearly always longer than one that only had to be dispatched.
func longest(met, bins *[histogram.Buckets]float64, ns float64) {
	for i := histogram.Overflow; i >= firstLong && ns > 0; i-- {
		n := min(max(bins[i], 0), ns/middle(i))
		met[i] = n
		ns -= n * middle(i)
	}
}

var firstLong = histogram.Index(uint64(long))

// middle is a wait that stands for a bucket, ns.
func middle(i int) float64 {
	if i >= histogram.Overflow {
		return float64(histogram.Lower(histogram.Overflow))
	}
	return float64(histogram.Lower(i)+histogram.Upper(i)) / 2
}

// waits spreads ns of wait behind an offline pod over a histogram, as such waits looked in the recordings, or else as an exponential
// distribution with the mean of priorTail.
func (m *Model) waits(bins *[histogram.Buckets]float64, ns float64, st model.Standing) {
	if h := &m.shapes[st]; h.seen > 0 {
		for i, part := range h.ns {
			if part > 0 {
				bins[i] += ns * part / h.seen / middle(i)
			}
		}
		return
	}
	n := ns / 1e3 / priorTail[st]
	for i, part := range &priorShapes[st] {
		bins[i] += n * part
	}
}

// priorTail is the mean wait behind an offline pod where none was ever seen, µs: a slice or two at equal weight, what kernel work takes
// otherwise.
var priorTail = [model.Standings]float64{model.Equal: 4000, model.Weight: 1500, model.Idle: 1000}

// priorShapes is how such waits spread over a histogram: what each bucket has of one wait. It is asked for every pair of pods at every tick.
var priorShapes = func() (s [model.Standings][histogram.Buckets]float64) {
	for st := range s {
		mix := model.Mixture{Median: 1, Hits: []model.Hit{{P: 1, Mean: priorTail[st]}}}
		mix.Tally(&s[st], 1)
	}
	return s
}()

// Error is how far off predictions are.
type Error struct {
	Blocks int `json:"blocks"`
	// Relative is the sum of the absolute errors over the sum of what was seen: of the wait behind offline pods, by online container and
	// block of time.
	Relative float64 `json:"relative"`
	// Bias is what was predicted in all over what was seen, less 1.
	Bias float64 `json:"bias"`
}

// Validate holds the model against recordings: given what offline pods used, how long do online pods wait behind them? keep is as in Fit.
func (m *Model) Validate(recs []Recording, keep func(time.Duration) bool) (Error, error) {
	type key struct {
		rec    int
		victim string
		block  time.Duration
	}
	type sum struct{ seen, expected float64 }
	sums := make(map[key]*sum)
	var order []key
	for i, r := range recs {
		w := newWorld(&Model{}) // learns nothing
		c := newCollector(func(o *observation) {
			k := key{i, o.victim, o.at / Block}
			s := sums[k]
			if s == nil {
				s = &sum{}
				sums[k] = s
				order = append(order, k)
			}
			s.seen += o.waitUS
			s.expected += m.Wait(o.victim, o.culprit, o.share, o.standing) * o.dispatches
		}, keep)
		if err := r.Steps(func(s *Step) error {
			w.observe(s, nil)
			c.step(w)
			w.after(s)
			return nil
		}); err != nil {
			return Error{}, err
		}
	}
	e := Error{Blocks: len(order)}
	seen, expected, off := 0.0, 0.0, 0.0
	for _, k := range order {
		s := sums[k]
		seen += s.seen
		expected += s.expected
		off += math.Abs(s.seen - s.expected)
	}
	if seen > 0 {
		e.Relative, e.Bias = off/seen, expected/seen-1
	}
	return e, nil
}

// Halves gives two keep functions that split a recording into alternating blocks: one half to learn from, one to be held against.
func Halves() (learn, test func(time.Duration) bool) {
	return func(t time.Duration) bool { return t/Block%2 == 0 }, func(t time.Duration) bool { return t/Block%2 == 1 }
}
