// Package clock is where time comes from: CLOCK_MONOTONIC for everything that is measured, because it is the clock of the BPF
// programs' ktime too, and wall-clock time for people and for the time windows of a policy.
package clock

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time.
type Clock interface {
	Now() time.Duration // CLOCK_MONOTONIC: since boot, without suspend
	Wall() time.Time
}

// System is the machine's clock.
type System struct{}

// Now is CLOCK_MONOTONIC.
func (System) Now() time.Duration {
	var ts unix.Timespec
	// clock_gettime cannot fail with a clock that exists and a valid pointer.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// Wall is the local wall-clock time.
func (System) Wall() time.Time { return time.Now() }

// Fake is a clock that tests move.
type Fake struct {
	mu   sync.Mutex
	now  time.Duration
	wall time.Time
}

// NewFake starts at one second after boot, on a Tuesday noon in UTC.
func NewFake() *Fake {
	return &Fake{now: time.Second, wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
}

// Now is the fake's monotonic time.
func (f *Fake) Now() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// Wall is the fake's wall-clock time.
func (f *Fake) Wall() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wall
}

// Step moves both clocks forward.
func (f *Fake) Step(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now += d
	f.wall = f.wall.Add(d)
}
