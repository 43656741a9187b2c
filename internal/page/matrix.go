package page

import (
	"cmp"
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

type pair struct{ victim, culprit string }

// totals is one reading: how long each victim has waited while each culprit ran, since the agent started.
type totals struct {
	at time.Time
	ns map[pair]uint64
}

// readings are the totals of the last matrixSpan, oldest first.
type readings []totals

func (r readings) add(at time.Time, blame []server.BlameMetrics) readings {
	t := totals{at: at, ns: make(map[pair]uint64, len(blame))}
	for i := range blame {
		b := &blame[i]
		t.ns[pair{b.VictimNamespace + "/" + b.VictimPod, partyName(server.Party{Namespace: b.CulpritNamespace, Name: b.CulpritPod})}] += b.NS
	}
	r = append(r, t)
	for len(r) > 2 && at.Sub(r[1].at) >= matrixSpan {
		r = r[1:]
	}
	return r
}

// matrix is the difference between the first and the last reading.
func (r readings) matrix() *matrix {
	m := &matrix{Victims: []string{}, Culprits: []string{}, Cells: [][3]int{}, Totals: []int{}}
	if len(r) < 2 {
		return m
	}
	first, last := r[0], r[len(r)-1]
	m.Span = round(last.at.Sub(first.at).Seconds(), 0)
	gone := make(map[pair]uint64)
	byVictim, byCulprit := map[string]uint64{}, map[string]uint64{}
	for p, ns := range last.ns {
		was := first.ns[p]
		if ns <= was { // nothing new, or a pod of the same name that began anew
			continue
		}
		gone[p] = ns - was
		byVictim[p.victim] += ns - was
		byCulprit[p.culprit] += ns - was
	}
	m.Victims, m.HiddenVictims = largest(byVictim, maxVictims)
	m.Culprits, m.HiddenCulprits = largest(byCulprit, maxCulprits)
	for i, v := range m.Victims {
		m.Totals = append(m.Totals, ms(byVictim[v]))
		for j, c := range m.Culprits {
			if n := ms(gone[pair{v, c}]); n > 0 {
				m.Cells = append(m.Cells, [3]int{i, j, n})
			}
		}
	}
	return m
}

func ms(ns uint64) int { return int(time.Duration(ns).Round(time.Millisecond).Milliseconds()) }

// largest is up to n keys by descending value, and how many were left out.
func largest(of map[string]uint64, n int) (keys []string, hidden int) {
	keys = make([]string, 0, len(of))
	for k := range of {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(of[b], of[a]), strings.Compare(a, b)) })
	if len(keys) > n {
		return keys[:n], len(keys) - n
	}
	return keys, 0
}
