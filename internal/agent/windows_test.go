package agent

import (
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
)

// tick is a snapshot of one container per count, each with that many waits in one bucket.
func tick(gen uint64, now time.Duration, counts map[string]uint32, order ...string) *signal.Snapshot {
	s := &signal.Snapshot{Now: now, PodsGen: gen}
	for i, id := range order {
		s.Pods = append(s.Pods, signal.Pod{UID: id, Containers: []signal.Container{{ID: id}}})
		s.Containers = append(s.Containers, signal.ContainerSample{Pod: i, Wait: signal.WaitSample{
			At: now, Span: 100 * time.Millisecond, Count: uint64(counts[id]), Buckets: []signal.Bucket{{Index: 5, Count: counts[id]}},
		}})
	}
	return s
}

func TestWindowsFollowContainers(t *testing.T) {
	var w windows
	now := time.Duration(0)
	for range 25 {
		now += 100 * time.Millisecond
		w.add(tick(1, now, map[string]uint32{"a": 1, "b": 2}, "a", "b"))
	}
	if a, b := w.at(0).hist.Total(), w.at(1).hist.Total(); a != 10 || b != 20 {
		t.Fatalf("a full second holds %d and %d waits, want 10 and 20", a, b)
	}
	now += 100 * time.Millisecond
	w.add(tick(2, now, map[string]uint32{"b": 2, "c": 3}, "b", "c")) // a has ended, c is new
	if b, c := w.at(0).hist.Total(), w.at(1).hist.Total(); b != 20 || c != 3 {
		t.Fatalf("after a change of pods: b %d, c %d, want 20 and 3", b, c)
	}
	if len(w.byID) != 2 {
		t.Fatalf("%d windows are kept for 2 containers", len(w.byID))
	}
}
