// Package poll lets one thread sleep in the kernel until there is something to do: a tick, a BPF event, or a word from another
// goroutine. The loop must not sleep on Go channels: the goroutine that it waits for runs on an ordinary thread, which on a
// saturated node waits for a CPU like anybody else, while a thread that sleeps in epoll_wait is woken by the kernel itself.
package poll

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Poller waits for its timer, its alarm, its wake-ups and one more descriptor. Wait belongs to one goroutine; Wake may be called from any.
type Poller struct {
	epoll, timer, alarm, wake int
	closing                   sync.RWMutex // keeps Wake from a descriptor that has become somebody else's
	extra                     int
	alarmAt                   time.Duration // as set last; 0: off
	events                    [4]unix.EpollEvent
	buf                       [8]byte
}

// Ready says what woke the poller.
type Ready struct {
	Ticks uint64 // timer periods that have passed since the last Wait; more than 1 means that ticks were missed
	Alarm bool   // the alarm's time has come
	Woken bool   // Wake was called
	Extra bool   // the extra descriptor is readable
}

// New makes a poller that ticks every interval. extra is a descriptor to watch for reading, or -1.
func New(interval time.Duration, extra int) (*Poller, error) {
	p := &Poller{epoll: -1, timer: -1, alarm: -1, wake: -1, extra: extra}
	if err := p.open(interval); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Poller) open(interval time.Duration) (err error) {
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if p.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	spec := unix.NsecToTimespec(interval.Nanoseconds())
	if err = unix.TimerfdSettime(p.timer, 0, &unix.ItimerSpec{Interval: spec, Value: spec}, nil); err != nil {
		return fmt.Errorf("timerfd interval %v: %w", interval, err)
	}
	if p.alarm, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	for _, fd := range []int{p.timer, p.alarm, p.wake, p.extra} {
		if fd < 0 {
			continue
		}
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return fmt.Errorf("epoll add: %w", err)
		}
	}
	return nil
}

// Wait sleeps until there is something to do, or for as long as atMost (in steps of 1 ms), if that is not 0.
func (p *Poller) Wait(atMost time.Duration) (Ready, error) {
	var r Ready
	timeout := -1
	if atMost > 0 {
		timeout = max(1, int(atMost.Milliseconds()))
	}
	n, err := unix.EpollWait(p.epoll, p.events[:], timeout)
	if err != nil {
		if errors.Is(err, unix.EINTR) {
			return r, nil
		}
		return r, fmt.Errorf("epoll wait: %w", err)
	}
	for _, ev := range p.events[:n] {
		switch int(ev.Fd) {
		case p.timer:
			r.Ticks = p.drain(p.timer)
		case p.alarm:
			p.drain(p.alarm)
			p.alarmAt = 0
			r.Alarm = true
		case p.wake:
			p.drain(p.wake)
			r.Woken = true
		case p.extra:
			r.Extra = true
		}
	}
	return r, nil
}

// SetAlarm asks for one more wake-up at a time of CLOCK_MONOTONIC, at once if it has passed; 0 takes the wish back. It belongs to
// the goroutine of Wait, and costs nothing when nothing changes.
func (p *Poller) SetAlarm(at time.Duration) error {
	if at == p.alarmAt {
		return nil
	}
	p.alarmAt = at
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	if err := unix.TimerfdSettime(p.alarm, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("alarm: %w", err)
	}
	return nil
}

// drain reads the counter of a timerfd or eventfd. Both are non-blocking: a spurious wake-up reads as 0.
func (p *Poller) drain(fd int) uint64 {
	if n, err := unix.Read(fd, p.buf[:]); err != nil || n != len(p.buf) {
		return 0
	}
	return binary.NativeEndian.Uint64(p.buf[:])
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// Wake makes Wait return soon. It never blocks, and does nothing after Close.
func (p *Poller) Wake() {
	p.closing.RLock()
	defer p.closing.RUnlock()
	if p.wake < 0 {
		return
	}
	// EAGAIN means that the counter is full: then the poller is about to wake anyway.
	_, _ = unix.Write(p.wake, one)
}

// Close frees the descriptors. The extra one is the caller's.
func (p *Poller) Close() error {
	p.closing.Lock()
	defer p.closing.Unlock()
	var errs []error
	for _, fd := range []*int{&p.epoll, &p.timer, &p.alarm, &p.wake} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}
