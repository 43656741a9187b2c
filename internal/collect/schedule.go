package collect

import (
	"math/bits"
	"time"
)

// part is something that is read from time to time.
type part uint8

const (
	partCPU part = iota
	partQuota
	partMemory
	partPSI
	partScan
	partPerf
	partRDT
	partWait
	parts
)

// schedule is when each part is to be read next. The zero value means at once.
type schedule [parts]time.Duration

// due reports whether part p is to be read, and if so when it is to be read next: every so often, but the second time already
// after a part of that which depends on phase. Phases that count up spread the readings of any number of containers evenly.
func (s *schedule) due(p part, now, every time.Duration, phase uint32) bool {
	next := s[p]
	switch {
	case now < next:
		return false
	case next == 0:
		s[p] = now + spread(every, phase, p)
	default:
		// Late is late: nothing is made up for, and the phase stays.
		s[p] = next + ((now-next)/every+1)*every
	}
	return true
}

// bystanderFactor is how many times more seldom pressure and quotas of containers that are not online are read: nothing is decided by the one, and
// the other only says where a cut begins.
const bystanderFactor = 5

// interval is the time between two readings of a part of a container.
func (c *Collector) interval(p part, ct *container) time.Duration {
	if !ct.victim && (p == partQuota || p == partPSI) {
		return bystanderFactor * c.every[p]
	}
	return c.every[p]
}

// spread gives the container of this phase its place in the interval. Phases count up, and however many there are, their places are
// even (van der Corput's series). Each part begins at another place, so that a new container is not read all at once.
func spread(every time.Duration, phase uint32, p part) time.Duration {
	place := float64(bits.Reverse32(phase))/(1<<32) + float64(p)/float64(parts)
	if place >= 1 {
		place--
	}
	return time.Duration(place * float64(every))
}

// backoff spaces attempts at something that fails, ever more widely. The zero value attempts nothing.
type backoff struct {
	next, wait time.Duration
}

// due reports whether the next attempt is due.
func (b *backoff) due(now time.Duration) bool { return b.next != 0 && now >= b.next }

// soon asks for an attempt as soon as possible.
func (b *backoff) soon() { *b = backoff{next: 1} }

// fail says that an attempt has failed, and returns when the next one is due.
func (b *backoff) fail(now, most time.Duration) time.Duration {
	b.wait = min(max(2*b.wait, retryMin), most)
	b.next = now + b.wait
	return b.next
}
