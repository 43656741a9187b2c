package poll

import (
	"sync"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/clock"
	"golang.org/x/sys/unix"
)

func TestTimerWakeAndExtra(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	p, err := New(time.Hour, pipe[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	go p.Wake()
	if r, err := p.Wait(0); err != nil || !r.Woken || r.Ticks != 0 || r.Extra {
		t.Fatalf("after Wake: %+v, %v", r, err)
	}
	if _, err := unix.Write(pipe[1], []byte{1}); err != nil {
		t.Fatal(err)
	}
	if r, err := p.Wait(0); err != nil || !r.Extra || r.Woken {
		t.Fatalf("after a write to the extra descriptor: %+v, %v", r, err)
	}
}

func TestMissedTicksAreCounted(t *testing.T) {
	p, err := New(2*time.Millisecond, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	time.Sleep(20 * time.Millisecond)
	r, err := p.Wait(0)
	if err != nil || r.Ticks < 2 {
		t.Fatalf("after ten periods: %+v, %v", r, err)
	}
}

func TestAlarmRingsOnceAndCanBeTakenBack(t *testing.T) {
	p, err := New(time.Hour, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	now := clock.System{}.Now()
	for _, at := range []time.Duration{now + time.Hour, 0, now + time.Millisecond} {
		if err := p.SetAlarm(at); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := p.Wait(0); err != nil || !r.Alarm || (clock.System{}).Now() < now+time.Millisecond {
		t.Fatalf("after the alarm's time: %+v, %v", r, err)
	}
	if err := p.SetAlarm(now); err != nil { // in the past: at once
		t.Fatal(err)
	}
	if r, err := p.Wait(0); err != nil || !r.Alarm {
		t.Fatalf("after an alarm in the past: %+v, %v", r, err)
	}
	go p.Wake()
	if r, err := p.Wait(0); err != nil || r.Alarm || !r.Woken {
		t.Fatalf("the alarm rings again: %+v, %v", r, err)
	}
}

func TestWaitDoesNotAllocate(t *testing.T) {
	p, err := New(time.Hour, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n := testing.AllocsPerRun(100, func() {
		p.Wake()
		if _, err := p.Wait(0); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations a round", n)
	}
}

func TestWakeBesideClose(t *testing.T) {
	p, err := New(time.Hour, -1)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				p.Wake()
			}
		})
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
