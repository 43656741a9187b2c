// Package report makes one self-contained page of a recording: what online pods waited against what they were promised, what offline pods
// were given, who hurt whom, what was decided and why, and what another policy would have done otherwise. The page needs no network.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

const (
	points    = 800  // most of a line; a recording of any length fits by making them wider
	mostNotes = 1000 // decisions listed
	mostDiffs = 500
)

// Report collects a recording, step by step, in memory that does not grow with its length.
type Report struct {
	info        *trace.Info
	first, last time.Time
	start       time.Duration
	begun       bool
	width       time.Duration // of a point
	n           int           // points so far
	secs        []float32     // that each point covers
	seconds     float64
	ticks       int
	events      int

	pods    map[string]*pod
	order   []string
	matrix  map[[2]string]float64 // victim, culprit: ns
	plan    []knob.Want
	changes int
	notes   []Note
	left    int // notes that found no room
	diffs   []*replay.Difference
	undiff  uint64
	recs    map[string]*policy.Compiled
	recOrd  []string
	other   *policy.Compiled
	figures *whatif.Result
	fit     *whatif.Model
	held    *whatif.Error
}

// pod is one pod over the recording.
type pod struct {
	key   string
	class policy.Class

	p99, objective, level []float32 // online: µs, µs, judge.Level; largest of each point
	used, may             []float32 // offline: CPUs; mean, least
	weight                []float32 // of used
	held                  []float32 // offline: 1 where it is held below the posture
	charts                [charts]chart
	blame                 map[string][]float32 // online: ns of wait in each point, by cause

	judged, violated, watch, unknown float64                      // s
	other                            [judge.Bandwidth + 1]float64 // s beyond the objective on other axes than the CPU
	worst                            time.Duration
	promise                          time.Duration
	reasons                          map[string]float64 // s beyond the objective, by reason
	usedSeconds, heldSeconds, alive  float64
	cuts                             int
}

// chart is a plot of a pod beside the one that every pod has.
type chart struct {
	lines [3][]float32
	level []float32 // judge.Level; worst of each point
	drawn bool      // it shows something that is worth room on the page
}

const (
	chartCPI      = iota // online: cycles per instruction, what is normal, and the fence; thousandths; largest
	chartMemory          // online: stall and objective, thousandths; largest
	chartIO              // the same
	chartHardware        // offline: percent of the cache's ways and of bandwidth that it may have, least; MB/s that it moves, largest
	charts
)

var chartNames = [charts]string{"cpi", "memory", "io", "hardware"}

// mostCauses is how many causes of an online pod's wait are kept apart, and mostBlamed how many are drawn.
const (
	mostCauses = 16
	mostBlamed = 4
)

const others = "(others)"

// Note is a decision.
type Note struct {
	T    float64 `json:"t"` // s since the start
	Pod  string  `json:"pod"`
	Rule string  `json:"rule"`
	Cut  bool    `json:"cut"`
	Back bool    `json:"back"`
	Text string  `json:"text"`
}

// New makes an empty report. other is the policy that is compared with the recorded one; nil: none.
func New(other *policy.Compiled) *Report {
	return &Report{
		width: 100 * time.Millisecond, pods: make(map[string]*pod), matrix: make(map[[2]string]float64),
		recs: make(map[string]*policy.Compiled), other: other,
	}
}

// SetInfo adds what the recording says about itself.
func (r *Report) SetInfo(i *trace.Info) { r.info = i }

// SetWhatIf adds what the response model says, and how far off it was on what it had not learned from; held may be nil.
func (r *Report) SetWhatIf(res *whatif.Result, m *whatif.Model, held *whatif.Error) {
	r.figures, r.fit, r.held = res, m, held
}

// Differs adds a decision that comes out otherwise under the other policy.
func (r *Report) Differs(d *replay.Difference) {
	r.undiff++
	if len(r.diffs) < mostDiffs {
		r.diffs = append(r.diffs, d)
	}
}

// Step takes a step in. d is the decision as made again with the recorded policy, which has the verdicts; nil: there was no policy.
func (r *Report) Step(s *trace.Step, d *decide.Decision) {
	snap := s.Snapshot
	if !r.begun {
		r.begun, r.start, r.first = true, snap.Now, snap.Wall
	}
	r.last = snap.Wall
	at := snap.Now - r.start
	if p := s.Policy; p != nil && r.recs[p.ID()] == nil {
		r.recs[p.ID()] = p
		r.recOrd = append(r.recOrd, p.ID())
	}
	r.changes += score.Churn(r.plan, s.Decision.Plan)
	if !slices.Equal(r.plan, s.Decision.Plan) {
		r.plan = append(r.plan[:0], s.Decision.Plan...)
	}
	for i := range s.Decision.Notes {
		r.note(at, &s.Decision.Notes[i])
	}
	if snap.Trigger != signal.Tick {
		r.events++
		return
	}
	r.ticks++
	r.seconds += snap.Elapsed.Seconds()
	if d == nil {
		return
	}
	bin := r.bin(at)
	r.secs = put(r.secs, bin, float32(snap.Elapsed.Seconds()), sum)
	r.measure(s, d, bin)
}

// bin is the point for a time; when the line is full, points are joined in twos.
func (r *Report) bin(at time.Duration) int {
	for int(at/r.width) >= points {
		r.width *= 2
		r.n = (r.n + 1) / 2
		r.secs = halve(r.secs, sum)
		for _, p := range r.pods {
			p.halve()
		}
	}
	i := max(0, int(at/r.width))
	r.n = max(r.n, i+1)
	return i
}

// halve joins points in twos.
func (p *pod) halve() {
	p.p99, p.objective, p.level = halve(p.p99, larger), halve(p.objective, larger), halve(p.level, worse)
	p.may, p.held = halve(p.may, smaller), halve(p.held, larger)
	p.used, p.weight = halveMean(p.used, p.weight)
	for i := range p.charts {
		c := &p.charts[i]
		for k := range c.lines {
			join := larger
			if i == chartHardware && k < 2 {
				join = smaller
			}
			c.lines[k] = halve(c.lines[k], join)
		}
		c.level = halve(c.level, worse)
	}
	for cause, ns := range p.blame {
		p.blame[cause] = halve(ns, sum)
	}
}

var gap = float32(math.NaN())

func sum(a, b float32) float32 {
	switch {
	case a != a:
		return b
	case b != b:
		return a
	}
	return a + b
}

// worse is the worse of two levels. What is not known is worse than what is well, and hides nothing else.
func worse(a, b float32) float32 {
	rank := func(l float32) int {
		switch {
		case l != l:
			return -1
		case judge.Level(l) == judge.Unknown:
			return 1
		case judge.Level(l) == judge.OK:
			return 0
		}
		return 1 + int(l)
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

func larger(a, b float32) float32 {
	if a != a || b > a {
		return b
	}
	return a
}

func smaller(a, b float32) float32 {
	if a != a || b < a {
		return b
	}
	return a
}

func halve(v []float32, join func(a, b float32) float32) []float32 {
	out := v[:0]
	for i := 0; i < len(v); i += 2 {
		x := v[i]
		if i+1 < len(v) {
			x = join(x, v[i+1])
		}
		out = append(out, x)
	}
	return out
}

func halveMean(v, w []float32) (mean, weight []float32) {
	mean, weight = v[:0], w[:0]
	for i := 0; i < len(v); i += 2 {
		sum, n := v[i]*w[i], w[i]
		if w[i] == 0 {
			sum = 0
		}
		if i+1 < len(v) && w[i+1] > 0 {
			sum += v[i+1] * w[i+1]
			n += w[i+1]
		}
		x := gap
		if n > 0 {
			x = sum / n
		}
		mean, weight = append(mean, x), append(weight, n)
	}
	return mean, weight
}

// put joins a value into the point i of a line.
func put(v []float32, i int, x float32, join func(a, b float32) float32) []float32 {
	for len(v) <= i {
		v = append(v, gap)
	}
	v[i] = join(v[i], x)
	return v
}

func (r *Report) pod(p *signal.Pod, class policy.Class) *pod {
	key := p.Key()
	e := r.pods[key]
	if e == nil {
		e = &pod{key: key, class: class, reasons: make(map[string]float64), blame: make(map[string][]float32)}
		r.pods[key] = e
		r.order = append(r.order, key)
	}
	e.class = class
	return e
}

func (r *Report) measure(s *trace.Step, d *decide.Decision, bin int) {
	snap := s.Snapshot
	secs := snap.Elapsed.Seconds()
	cpus := float64(len(snap.Node.Topology.CPUs))
	for i := range d.Verdicts {
		v := &d.Verdicts[i]
		p := r.pod(&snap.Pods[v.Pod], d.Class[v.Pod])
		if v.Axis != judge.CPU {
			p.axis(v, bin, secs)
			continue
		}
		p.level = put(p.level, bin, float32(v.Level), worse)
		p.objective = put(p.objective, bin, float32(v.Objective)/1e3, larger)
		p.promise = v.Objective
		p.judged += secs
		switch v.Level {
		case judge.Unknown:
			p.unknown += secs
			continue
		case judge.Violated:
			p.violated += secs
			p.reasons[v.Reason.String()] += secs
		case judge.Watch:
			p.watch += secs
		}
		if v.Samples > 0 {
			p.p99 = put(p.p99, bin, float32(v.P99)/1e3, larger)
			p.worst = max(p.worst, v.P99)
		}
	}
	use := make([]float64, len(snap.Pods))
	for i := range snap.Containers {
		c := &snap.Containers[i]
		if c.CPU.Span > 0 {
			use[c.Pod] += float64(c.CPU.UsageNS) / float64(c.CPU.Span)
		}
		if d.Class[c.Pod] != policy.Online {
			continue
		}
		victim := r.pod(&snap.Pods[c.Pod], policy.Online)
		for _, b := range c.Wait.Blame {
			cause := culprit(snap, c.Pod, b.Culprit)
			r.matrix[[2]string{victim.key, cause}] += float64(b.NS)
			victim.blames(cause, bin, float32(b.NS))
		}
	}
	for i := range snap.Pods {
		if d.Class[i] != policy.Offline {
			continue
		}
		p := r.pod(&snap.Pods[i], policy.Offline)
		may, held := cpus, i < len(d.Grant) && d.Grant[i] != (control.Grant{})
		for k := range s.Decision.Plan {
			w := &s.Decision.Plan[k]
			if w.Cgroup != snap.Pods[i].Cgroup {
				continue
			}
			switch w.Kind {
			case knob.CPUSet:
				may = min(may, float64(w.Value.CPUs.Len()))
			case knob.CPUQuota:
				may = min(may, float64(w.Value.N)/float64(max(1, w.Value.Period)))
			case knob.Freeze:
				may = 0
			}
		}
		p.may = put(p.may, bin, float32(may), smaller)
		p.held = put(p.held, bin, 0, larger)
		if held {
			p.held = put(p.held, bin, 1, larger)
		}
		p.hardware(snap, d, i, bin)
		for len(p.used) <= bin {
			p.used, p.weight = append(p.used, 0), append(p.weight, 0)
		}
		n := p.weight[bin]
		if n == 0 {
			p.used[bin] = 0
		}
		p.used[bin] = (p.used[bin]*n + float32(use[i])) / (n + 1)
		p.weight[bin]++
		p.usedSeconds += use[i] * secs
		p.alive += secs
		if held {
			p.heldSeconds += secs
		}
	}
}

// axis takes in a verdict on another axis than the CPU.
func (p *pod) axis(v *judge.Verdict, bin int, secs float64) {
	if v.Level == judge.Violated {
		p.other[v.Axis] += secs
	}
	at := chartCPI // cache and bandwidth rest on the same counters
	switch v.Axis {
	case judge.Memory:
		at = chartMemory
	case judge.IO:
		at = chartIO
	}
	c := &p.charts[at]
	c.level = put(c.level, bin, float32(v.Level), worse)
	values := [3]float32{float32(v.CPI.CPI), float32(v.CPI.CPIBaseline), float32(v.CPI.CPIFence)}
	if at == chartCPI {
		c.drawn = c.drawn || v.CPI.CPI > 0
	} else {
		values = [3]float32{float32(v.StallPermille), float32(v.StallObjective)}
		// Most pods hardly ever stall: those that came near their objective are worth a plot.
		c.drawn = c.drawn || v.Level == judge.Watch || v.Level == judge.Violated
	}
	for k, x := range values {
		if x > 0 || at != chartCPI && k == 0 && v.Level != judge.Unknown {
			c.lines[k] = put(c.lines[k], bin, x, larger)
		}
	}
}

// blames adds a part of a wait to its cause.
func (p *pod) blames(cause string, bin int, ns float32) {
	if p.blame[cause] == nil && len(p.blame) >= mostCauses {
		cause = others
	}
	p.blame[cause] = put(p.blame[cause], bin, ns, sum)
}

// hardware takes in what an offline pod may have of the last-level cache and the memory bandwidth, and what it moves.
func (p *pod) hardware(snap *signal.Snapshot, d *decide.Decision, i, bin int) {
	rdt, c := &snap.Node.RDT, &p.charts[chartHardware]
	if i < len(d.Grant) && (rdt.Ways > 0 || rdt.MB != (signal.MBUnits{})) {
		ways, mb := float32(100), float32(100)
		if n := d.Grant[i].Ways; n > 0 && rdt.Ways > 0 {
			ways = 100 * float32(n) / float32(rdt.Ways)
		}
		if n := d.Grant[i].MB; n > 0 {
			mb = float32(n)
		}
		c.lines[0], c.lines[1] = put(c.lines[0], bin, ways, smaller), put(c.lines[1], bin, mb, smaller)
		c.drawn = true
	}
	for k := range snap.Containers {
		s := &snap.Containers[k]
		if s.Pod == i && s.RDT.State == signal.RDTOK && s.RDT.Span > 0 {
			c.lines[2] = put(c.lines[2], bin, float32(signal.BytesPerSecond(s.RDT.TotalBytes, s.RDT.Span))/1e6, larger)
			c.drawn = true
		}
	}
}

// blamed is what is drawn of an online pod's waits: the largest causes, ms of wait a second, and the others together.
func (p *pod) blamed(secs []float32) []causeLine {
	total := make(map[string]float64, len(p.blame))
	names := make([]string, 0, len(p.blame))
	for cause, ns := range p.blame {
		for _, x := range ns {
			if x == x {
				total[cause] += float64(x)
			}
		}
		names = append(names, cause)
	}
	if _, ok := total[others]; ok {
		total[others] = -1 // comes last
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(total[b], total[a]), strings.Compare(a, b)) })
	var out []causeLine
	for k, cause := range names {
		ns := p.blame[cause]
		if k > mostBlamed {
			last := &out[mostBlamed]
			last.Cause = others
			for i, x := range ns {
				if x == x {
					last.Values = put(last.Values, i, x, sum)
				}
			}
			continue
		}
		out = append(out, causeLine{cause, slices.Clone(ns)})
	}
	for _, l := range out {
		for i := range l.Values {
			l.Values[i] /= 1e6 * secs[i]
		}
	}
	return out
}

// culprit names the cause of a part of a wait.
func culprit(snap *signal.Snapshot, victim int, c signal.Culprit) string {
	switch {
	case c >= 0 && int(c) < len(snap.Containers):
		if p := snap.Containers[c].Pod; p != victim {
			return snap.Pods[p].Key()
		}
		return "(itself)"
	case c == signal.CulpritKernel:
		return "(kernel)"
	case c == signal.CulpritIRQ:
		return "(interrupts)"
	case c == signal.CulpritSystem:
		return "(system)"
	case c == signal.CulpritIdle:
		return "(idle CPU)"
	case c == signal.CulpritQuota:
		return "(own quota)"
	case c == signal.CulpritGone:
		return "(pods that ended)"
	}
	return "(unknown)"
}

func (r *Report) note(at time.Duration, n *control.Note) {
	cut := score.IsCut(n)
	if p := r.pods[n.Pod]; p != nil && cut {
		p.cuts++
	}
	if len(r.notes) == mostNotes {
		r.left++
		return
	}
	back := !cut && n.From != n.To
	r.notes = append(r.notes, Note{at.Seconds(), n.Pod, n.Rule, cut, back, n.String()})
}

// lines is what the page's plots are made of.
type lines struct {
	Step    float64 `json:"step"` // s
	N       int     `json:"n"`
	Start   float64 `json:"start"` // s since 1970
	Zone    int     `json:"zone"`  // s east of Greenwich, of the node
	Online  []line  `json:"online"`
	Offline []line  `json:"offline"`
	Notes   []Note  `json:"notes"`
}

type line struct {
	Pod       string  `json:"pod"`
	P99       numbers `json:"p99,omitempty"`
	Objective numbers `json:"objective,omitempty"`
	Level     string  `json:"level,omitempty"`
	Used      numbers `json:"used,omitempty"`
	May       numbers `json:"may,omitempty"`
	Held      string  `json:"held,omitempty"`

	Charts []chartLine `json:"charts,omitempty"`
	Blame  []causeLine `json:"blame,omitempty"`
}

type chartLine struct {
	Kind  string    `json:"kind"`
	Lines []numbers `json:"lines"`
	Level string    `json:"level,omitempty"`
}

type causeLine struct {
	Cause  string  `json:"cause"`
	Values numbers `json:"ms"` // of wait a second
}

// numbers are written with three digits, and as null where there is nothing.
type numbers []float32

func (n numbers) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	for i, v := range n {
		if i > 0 {
			out = append(out, ',')
		}
		if v != v {
			out = append(out, "null"...)
		} else {
			out = fmt.Appendf(out, "%.3g", v)
		}
	}
	return append(out, ']'), nil
}

func (r *Report) lines() ([]byte, error) {
	_, zone := r.first.Zone()
	l := lines{Zone: zone, Step: r.width.Seconds(), N: r.n, Start: float64(r.first.UnixNano()) / 1e9, Notes: r.notes}
	for _, p := range r.online() {
		l.Online = append(l.Online, line{Pod: p.key, P99: p.p99, Objective: p.objective, Level: digits(p.level), Charts: p.chartLines(), Blame: p.blamed(r.secs)})
	}
	for _, p := range r.offline() {
		used := slices.Clone(p.used)
		for i := range used {
			if p.weight[i] == 0 {
				used[i] = gap
			}
		}
		l.Offline = append(l.Offline, line{Pod: p.key, Used: used, May: p.may, Held: digits(p.held), Charts: p.chartLines()})
	}
	return json.Marshal(l)
}

// digits writes levels, and a point for none.
func digits(levels []float32) string {
	out := make([]byte, len(levels))
	for i, v := range levels {
		out[i] = '.'
		if v == v {
			out[i] = '0' + byte(v)
		}
	}
	return string(out)
}

func (p *pod) chartLines() (out []chartLine) {
	for i := range p.charts {
		c := &p.charts[i]
		if !c.drawn {
			continue
		}
		l := chartLine{Kind: chartNames[i], Level: digits(c.level)}
		for _, v := range c.lines {
			l.Lines = append(l.Lines, v)
		}
		out = append(out, l)
	}
	return out
}

// beyond is for how long the pod was beyond its objectives on any axis, at most.
func (p *pod) beyond() float64 {
	s := p.violated
	for _, x := range p.other {
		s += x
	}
	return s
}

// online lists online pods, those in trouble first.
func (r *Report) online() []*pod {
	return r.sorted(policy.Online, func(p *pod) float64 { return p.beyond()*1e6 + p.worst.Seconds() })
}

// offline lists offline pods, those that were held first.
func (r *Report) offline() []*pod {
	return r.sorted(policy.Offline, func(p *pod) float64 { return p.heldSeconds*1e3 + p.usedSeconds })
}

func (r *Report) sorted(class policy.Class, by func(*pod) float64) (out []*pod) {
	for _, key := range r.order {
		if p := r.pods[key]; p.class == class {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b *pod) int {
		switch x, y := by(a), by(b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return strings.Compare(a.key, b.key)
	})
	return out
}

// Change is a field in which two policies differ.
type Change struct{ Path, Was, Is string }

// diff lists the fields in which two policies differ.
func diff(a, b *policy.Compiled) []Change {
	x, y := a.Policy(), b.Policy()
	fa, fb := make(map[string]string), make(map[string]string)
	flatten("spec", reflect.ValueOf(x.Spec), fa)
	flatten("spec", reflect.ValueOf(y.Spec), fb)
	var out []Change
	for path, was := range fa {
		if fb[path] != was {
			out = append(out, Change{path, was, fb[path]})
		}
	}
	for path, is := range fb {
		if _, ok := fa[path]; !ok {
			out = append(out, Change{path, "", is})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func flatten(path string, v reflect.Value, out map[string]string) {
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			flatten(path+"."+name, v.Field(i), out)
		}
		return
	}
	data, err := json.Marshal(v.Interface())
	if err != nil {
		return
	}
	out[path] = strings.Trim(string(data), `"`)
}
