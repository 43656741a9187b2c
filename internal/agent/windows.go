package agent

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// windowLen is the time over which the state API shows waits: long enough for a percentile, short enough to be "now".
const windowLen = time.Second

// windows sums up each container's waits of the present window and keeps the last full one, for people. (The judge has windows of
// its own: it judges online containers only, and over the time that the policy says.)
type windows struct {
	gen   uint64
	began time.Duration
	of    []*window // by index into Snapshot.Containers
	byID  map[string]*window
}

type window struct {
	now, last waits
	seen      bool
}

type waits struct {
	hist      histogram.Counts
	span      time.Duration
	sumNS     uint64
	preempted uint64
}

// add takes in a tick.
func (w *windows) add(s *signal.Snapshot) {
	if s.PodsGen == 0 || s.PodsGen != w.gen || len(w.of) != len(s.Containers) {
		w.sync(s)
	}
	turn := s.Now-w.began >= windowLen
	if turn {
		w.began = s.Now
	}
	for i, t := range w.of {
		sample := &s.Containers[i].Wait
		if sample.At == s.Now {
			sample.Hist(&t.now.hist)
			t.now.span += sample.Span
			t.now.sumNS += sample.SumNS
			t.now.preempted += sample.Preempted
		}
		if turn {
			t.last, t.now = t.now, waits{}
		}
	}
}

// sync matches windows with containers, and drops those of containers that have ended.
func (w *windows) sync(s *signal.Snapshot) {
	w.gen = s.PodsGen
	w.of = w.of[:0]
	if w.byID == nil {
		w.byID = map[string]*window{}
	}
	for i := range s.Containers {
		c := &s.Containers[i]
		id := s.Pods[c.Pod].UID + "/" + s.Pods[c.Pod].Containers[c.Container].ID
		t := w.byID[id]
		if t == nil {
			t = new(window)
			w.byID[id] = t
		}
		t.seen = true
		w.of = append(w.of, t)
	}
	for id, t := range w.byID {
		if !t.seen {
			delete(w.byID, id)
		}
		t.seen = false
	}
}

// at is the last full window of the container at index i, or the present one before the first is full.
func (w *windows) at(i int) *waits {
	if i >= len(w.of) {
		return &waits{}
	}
	if w.of[i].last.span == 0 {
		return &w.of[i].now
	}
	return &w.of[i].last
}
