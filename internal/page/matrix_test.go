package page

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/server"
)

func blamed(victim, culprit string, wait time.Duration) server.BlameMetrics {
	return server.BlameMetrics{VictimNamespace: "n", VictimPod: victim, CulpritNamespace: "n", CulpritPod: culprit, NS: uint64(wait)}
}

func TestMatrixIsWhatGrewOverItsSpan(t *testing.T) {
	var r readings
	now := noon
	check := func(what string, want *matrix) {
		t.Helper()
		if diff := cmp.Diff(want, r.matrix()); diff != "" {
			t.Errorf("%s:\n%s", what, diff)
		}
	}
	none := &matrix{Victims: []string{}, Culprits: []string{}, Cells: [][3]int{}, Totals: []int{}}
	if !r.due(now) {
		t.Error("no first reading")
	}
	r.add(now, []server.BlameMetrics{blamed("a", "x", time.Second), blamed("b", "x", time.Second)})
	check("what was before the page was opened", none)
	if !r.due(now.Add(time.Second)) {
		t.Error("the second reading is put off")
	}

	now = now.Add(time.Second)
	own := server.BlameMetrics{VictimNamespace: "n", VictimPod: "a", CulpritPod: server.CulpritOwn, NS: 1e6}
	r.add(now, []server.BlameMetrics{blamed("a", "x", time.Second+5*time.Millisecond), blamed("b", "x", time.Second), own})
	check("growth, and a pair that is new", &matrix{
		Span: 1, Victims: []string{"n/a"}, Culprits: []string{"n/x", "own"}, Cells: [][3]int{{0, 0, 5}, {0, 1, 1}}, Totals: []int{6},
	})
	if r.due(now.Add(4*time.Second)) || !r.due(now.Add(matrixEvery)) {
		t.Error("later readings do not come at their pace")
	}

	// a is made again under its name: its counts begin at 0. Then there are two rows of it.
	now = now.Add(matrixEvery)
	r.add(now, []server.BlameMetrics{blamed("a", "x", 2*time.Millisecond), blamed("b", "x", time.Second)})
	now = now.Add(matrixEvery)
	r.add(now, []server.BlameMetrics{blamed("a", "x", 3*time.Millisecond), blamed("a", "x", 2*time.Millisecond), blamed("b", "x", time.Second+9*time.Millisecond)})
	check("sums over steps and rows", &matrix{
		Span: 11, Victims: []string{"n/a", "n/b"}, Culprits: []string{"n/x", "own"}, Cells: [][3]int{{0, 0, 8}, {0, 1, 1}, {1, 0, 9}}, Totals: []int{9, 9},
	})

	// Nothing grows any more: it falls out as the span moves on, and pairs of pods that have ended are forgotten.
	for range matrixSpan / matrixEvery {
		now = now.Add(matrixEvery)
		r.add(now, []server.BlameMetrics{blamed("b", "x", time.Second+9*time.Millisecond)})
	}
	none.Span = matrixSpan.Seconds()
	check("after a minute of rest", none)
	if len(r.cells) != 1 || len(r.steps) != int(matrixSpan/matrixEvery) {
		t.Errorf("%d cells and %d steps are kept", len(r.cells), len(r.steps))
	}
}

func TestMatrixHoldsTheLargest(t *testing.T) {
	var r readings
	r.add(noon, nil)
	var rows []server.BlameMetrics
	for i := range maxVictims + 3 {
		rows = append(rows, blamed(fmt.Sprint("v", i), fmt.Sprint("c", i), time.Duration(i+1)*time.Millisecond))
	}
	r.add(noon.Add(time.Second), rows)
	m := r.matrix()
	if len(m.Victims) != maxVictims || m.HiddenVictims != 3 || len(m.Culprits) != maxCulprits || m.HiddenCulprits != 3 || m.Victims[0] != fmt.Sprint("n/v", maxVictims+2) {
		t.Errorf("%d victims, %d hidden, %d culprits, %d hidden, first %s", len(m.Victims), m.HiddenVictims, len(m.Culprits), m.HiddenCulprits, m.Victims[0])
	}
}
