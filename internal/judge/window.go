package judge

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Tally is a histogram of waits to which samples are added and of which the 99th percentile is asked often. Counts are 32 bits
// wide: a window of a minute would have to see 70 million dispatches a second to overflow them. The zero value is empty.
type Tally struct {
	total  uint64
	top    int // no bucket above it is in use
	counts [histogram.Buckets]uint32
}

// Add counts the waits of a sample, whose buckets ascend.
func (t *Tally) Add(buckets []signal.Bucket) {
	total := t.total // in a register: it might lie among the counts for all that the compiler knows
	last := t.top
	for _, b := range buckets {
		i := int(b.Index)
		if i >= histogram.Buckets {
			break // they ascend
		}
		t.counts[i] += b.Count
		total += uint64(b.Count)
		last = i
	}
	t.total, t.top = total, max(t.top, last)
}

// Total is how many waits were counted.
func (t *Tally) Total() uint64 { return t.total }

// Reset empties the tally.
func (t *Tally) Reset() {
	clear(t.counts[:t.top+1])
	t.total, t.top = 0, 0
}

// P99 is the 99th percentile, interpolated inside its bucket; 0 for an empty tally. A percentile in the overflow bucket is
// its lower bound.
func (t *Tally) P99() time.Duration { return p99(t.total, t.top, &t.counts, &nothing) }

var nothing [histogram.Buckets]uint32

// p99 is the 99th percentile of two tallies together. It reads from the top, where the answer is, and counts in integers so that every
// machine gets the same.
func p99(total uint64, top int, a, b *[histogram.Buckets]uint32) time.Duration {
	if total == 0 {
		return 0
	}
	rank := (total*99 + 99) / 100 // the least number of waits that is at least 99 % of them
	below := total
	for i := min(top, histogram.Overflow); i >= 0; i-- {
		n := uint64(a[i]) + uint64(b[i])
		below -= n
		if below >= rank { // also where n is 0
			continue
		}
		lo := histogram.Lower(i)
		if i == histogram.Overflow {
			return time.Duration(lo)
		}
		return time.Duration(lo + (rank-below)*(histogram.Upper(i)-lo)/n)
	}
	return 0
}

// tallies is a sliding window over waits. Its halves are kept apart, so that a wait is added once and nothing is copied when they turn.
type tallies struct {
	young  uint8
	known  bool          `wire:"-"` // last is the present percentile: nothing was added since it was worked out
	last   time.Duration `wire:"-"`
	halves [2]Tally
}

func (t *tallies) add(buckets []signal.Bucket) {
	if len(buckets) > 0 {
		t.known = false
		t.halves[t.young&1].Add(buckets)
	}
}

// turn empties the older half, which becomes the younger one.
func (t *tallies) turn() {
	t.young ^= 1
	t.known = false
	t.halves[t.young&1].Reset()
}

func (t *tallies) reset() {
	t.known = false
	t.halves[0].Reset()
	t.halves[1].Reset()
}

func (t *tallies) total() uint64 { return t.halves[0].total + t.halves[1].total }

func (t *tallies) top() int { return max(t.halves[0].top, t.halves[1].top) }

func (t *tallies) p99() time.Duration {
	if !t.known {
		t.last, t.known = p99(t.total(), t.top(), &t.halves[0].counts, &t.halves[1].counts), true
	}
	return t.last
}

// floor is a lower bound of the longest wait.
func (t *tallies) floor() time.Duration { return time.Duration(histogram.Lower(t.top())) }

// span keeps the time that a sliding window covers. A window is two halves: the younger one fills up to W/2 and then pushes the
// older one out, so that both together cover between W/2 and W (plus a tick) at all times. That costs two sums instead of one
// per tick, and no subtraction of old ticks that would have to be kept.
type span struct {
	at             time.Duration // of the newest sample; 0: none yet
	covered, young time.Duration // by both halves, by the younger alone
}

// move is what a new sample does to the halves before it is added.
type move uint8

const (
	repeat move = iota // not new: add nothing
	grow               // goes into the younger half
	turn               // the younger half becomes the older one first
	reset              // both halves are of the past: begin anew
)

// next takes a sample read at at, covering d, into a window of w. Whatever lies before a hole of more than half a window, before a
// clock that ran backwards, or before a sample that covers a window by itself, is no longer part of the present.
func (s *span) next(at, d, w time.Duration) move {
	if at == s.at {
		return repeat
	}
	m := grow
	switch hole := at - d - s.at; {
	case s.at == 0, at < s.at, hole > w/2, d >= w:
		m = reset
		s.covered, s.young = 0, 0
	case s.young >= w/2:
		m = turn
		s.covered, s.young = s.young, 0
	}
	s.at = at
	s.covered += d
	s.young += d
	return m
}

// pair is two counters that are summed over the same window.
type pair [2]uint64

// sums is a sliding window over a pair of counters.
type sums struct {
	span
	all, recent pair
}

// add takes the deltas of a sample into the window.
func (s *sums) add(at, d, w time.Duration, part, whole uint64) {
	switch s.next(at, d, w) {
	case repeat:
		return
	case turn:
		s.all, s.recent = s.recent, pair{}
	case reset:
		s.all, s.recent = pair{}, pair{}
	}
	s.all[0] += part
	s.all[1] += whole
	s.recent[0] += part
	s.recent[1] += whole
}

// permille is part of whole in thousandths, rounded down; 0 of nothing is 0.
func permille(part, whole uint64) int {
	if whole == 0 {
		return 0
	}
	for whole > 1<<53 { // keep part*1000 inside 64 bits
		part >>= 1
		whole >>= 1
	}
	return int(part * 1000 / whole)
}
