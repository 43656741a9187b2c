package page

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
)

const (
	// matrixEvery is the time between two readings of the totals of blame, and matrixSpan what a matrix covers once enough were made.
	matrixEvery = 5 * time.Second
	matrixSpan  = 60 * time.Second
)

// matrix is who waited for whom over a span of time.
type matrix struct {
	Span           float64  `json:"span"` // s
	Victims        []string `json:"victims"`
	Culprits       []string `json:"culprits"`
	Cells          [][3]int `json:"cells"`  // index of victim, index of culprit, ms of waiting
	Totals         []int    `json:"totals"` // of each victim, also of culprits that are not shown, ms
	HiddenVictims  int      `json:"hiddenVictims"`
	HiddenCulprits int      `json:"hiddenCulprits"`
}

// pair is a victim and who ran meanwhile.
type pair struct{ victim, culprit podName }

// podName is a pod, or with an empty namespace a pseudo culprit.
type podName struct{ namespace, name string }

func (p podName) String() string {
	return partyName(server.Party{Namespace: p.namespace, Name: p.name})
}

func (p podName) compare(o podName) int {
	return cmp.Or(strings.Compare(p.namespace, o.namespace), strings.Compare(p.name, o.name))
}

// cell is how long a pair's victim has waited while its culprit ran, ns.
type cell struct {
	seen     int    // number of the last reading that had it
	now, was uint64 // since the agent started: in that reading, and in the one before
	span     uint64 // in the steps that are kept
}

// step is the time between two readings, and the cells that grew in it: few on a node at rest.
type step struct {
	begin, end time.Time
	grown      []growth
}

type growth struct {
	cell *cell
	ns   uint64
}

// readings are the totals of blame as last read, and how they grew over the last matrixSpan. The zero value is ready.
type readings struct {
	n     int // readings made
	last  time.Time
	cells map[pair]*cell
	steps []step // oldest first
}

// due tells whether it is time for another reading. The second comes as soon as it can: before it there is nothing to show.
func (r *readings) due(now time.Time) bool { return r.n < 2 || now.Sub(r.last) >= matrixEvery }

// add takes a reading.
func (r *readings) add(at time.Time, blame []server.BlameMetrics) {
	if r.cells == nil {
		r.cells = make(map[pair]*cell, len(blame))
	}
	r.n++
	for i := range blame {
		b := &blame[i]
		key := pair{podName{b.VictimNamespace, b.VictimPod}, podName{b.CulpritNamespace, b.CulpritPod}}
		c := r.cells[key]
		if c == nil {
			c = new(cell)
			r.cells[key] = c
		}
		if c.seen != r.n {
			c.seen, c.now = r.n, 0
		}
		c.now += b.NS // a pod that was made again under its name has another row
	}
	s := step{begin: r.last, end: at, grown: r.forget(at)}
	for key, c := range r.cells {
		switch {
		case c.seen != r.n && c.span == 0:
			delete(r.cells, key) // its pods have ended
			continue
		case c.seen != r.n:
			c.now = 0
		case c.now > c.was && r.n > 1:
			c.span += c.now - c.was
			s.grown = append(s.grown, growth{c, c.now - c.was})
		}
		c.was = c.now
	}
	if r.n > 1 {
		r.steps = append(r.steps, s)
	}
	r.last = at
}

// forget drops steps of which none is needed to cover matrixSpan, and returns the room that one of them took.
func (r *readings) forget(now time.Time) (room []growth) {
	for len(r.steps) > 0 && now.Sub(r.steps[0].end) >= matrixSpan {
		for _, g := range r.steps[0].grown {
			g.cell.span -= g.ns
		}
		room = r.steps[0].grown[:0]
		r.steps = slices.Delete(r.steps, 0, 1)
	}
	return room
}

// matrix sums the steps up.
func (r *readings) matrix() *matrix {
	m := &matrix{Victims: []string{}, Culprits: []string{}, Cells: [][3]int{}, Totals: []int{}}
	if len(r.steps) == 0 {
		return m
	}
	m.Span = round(r.last.Sub(r.steps[0].begin).Seconds(), 0)
	byVictim, byCulprit := map[podName]uint64{}, map[podName]uint64{}
	for p, c := range r.cells {
		if c.span > 0 {
			byVictim[p.victim] += c.span
			byCulprit[p.culprit] += c.span
		}
	}
	victims, culprits := largest(byVictim), largest(byCulprit)
	m.HiddenVictims, m.HiddenCulprits = max(0, len(victims)-maxVictims), max(0, len(culprits)-maxCulprits)
	victims, culprits = victims[:len(victims)-m.HiddenVictims], culprits[:len(culprits)-m.HiddenCulprits]
	for _, c := range culprits {
		m.Culprits = append(m.Culprits, c.String())
	}
	for i, v := range victims {
		m.Victims = append(m.Victims, v.String())
		m.Totals = append(m.Totals, ms(byVictim[v]))
		for j, c := range culprits {
			if at := r.cells[pair{v, c}]; at != nil && ms(at.span) > 0 {
				m.Cells = append(m.Cells, [3]int{i, j, ms(at.span)})
			}
		}
	}
	return m
}

func ms(ns uint64) int { return int(time.Duration(ns).Round(time.Millisecond).Milliseconds()) }

// largest is the keys by descending value.
func largest(of map[podName]uint64) []podName {
	return slices.SortedFunc(maps.Keys(of), func(a, b podName) int { return cmp.Or(cmp.Compare(of[b], of[a]), a.compare(b)) })
}
