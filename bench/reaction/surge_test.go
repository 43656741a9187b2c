package main

import (
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
)

func surgeOf(p99 ...float64) (out slots) {
	for i, v := range p99 {
		at := time.Duration(i) * slot
		out = append(out, slotOf{at, at + slot, load.Window{Completed: 100, P50: 10, P90: 20, P99: v, Max: v}})
	}
	return out
}

func TestRecovered(t *testing.T) {
	for _, c := range []struct {
		what string
		in   slots
		at   time.Duration
		ok   bool
	}{
		{"never bad", surgeOf(1, 1, 1, 1, 1), 0, true},
		{"bad at first", surgeOf(9, 9, 1, 1, 1, 1, 9), 2 * slot, true},
		{"well for too short", surgeOf(9, 1, 1, 9, 9, 9), 0, false},
		{"well until the end", surgeOf(9, 9, 1), 2 * slot, true},
		{"bad to the end", surgeOf(9, 1, 1, 9), 0, false},
	} {
		if at, ok := c.in.recovered(2); at != c.at || ok != c.ok {
			t.Errorf("%s: %v, %v, want %v, %v", c.what, at, ok, c.at, c.ok)
		}
	}
}

func TestP99OfASurge(t *testing.T) {
	// One slot in four is bad: its worst tenth is 2.5 % of all requests.
	if got := surgeOf(20, 500, 20, 20).p99(); got != 500 {
		t.Errorf("p99 %v", got)
	}
	if got := surgeOf(30, 30, 30, 30).p99(); got != 30 {
		t.Errorf("p99 %v", got)
	}
}
