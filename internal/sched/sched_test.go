package sched

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGuardDemotesAndPromotesAgain(t *testing.T) {
	var cpu time.Duration
	realtime := false
	g := Guard{
		Budget: 0.2, Period: time.Second, Penalty: 10 * time.Second,
		Promote: func() error { realtime = true; return nil },
		Demote:  func() error { realtime = false; return nil },
		CPU:     func() time.Duration { return cpu },
	}
	now := time.Second
	if err := g.Start(now); err != nil || !realtime || g.Class() != ClassRealtime {
		t.Fatalf("start: %v, realtime %v", err, realtime)
	}
	step := func(d, used time.Duration) {
		t.Helper()
		now += d
		cpu += used
		if err := g.Check(now); err != nil {
			t.Fatal(err)
		}
	}
	step(time.Second, 150*time.Millisecond)
	if !realtime {
		t.Fatal("demoted inside the budget")
	}
	step(500*time.Millisecond, 400*time.Millisecond)
	if !realtime {
		t.Fatal("demoted before the period was over")
	}
	step(500*time.Millisecond, 0)
	if realtime || g.Class() != ClassDemoted || g.Demotions != 1 {
		t.Fatalf("40 %% of a CPU with a budget of 20 %%: class %v", g.Class())
	}
	step(9*time.Second, 0)
	if realtime {
		t.Fatal("promoted before the penalty was over")
	}
	step(time.Second, 0)
	if !realtime || g.Class() != ClassRealtime {
		t.Fatalf("not promoted after the penalty: class %v", g.Class())
	}
}

func TestGuardStaysOrdinaryWhenRefused(t *testing.T) {
	refused := errors.New("refused")
	g := Guard{Budget: 0.2, Period: time.Second, Promote: func() error { return refused }, CPU: func() time.Duration { return 0 }}
	if err := g.Start(0); !errors.Is(err, refused) {
		t.Fatalf("start: %v", err)
	}
	if err := g.Check(time.Hour); err != nil || g.Class() != ClassOrdinary {
		t.Fatalf("check: %v, class %v", err, g.Class())
	}
}

func TestRealtimeOnThisKernel(t *testing.T) {
	runtime.LockOSThread() // not unlocked: the thread ends with the test's goroutine, and its policy with it
	if err := Realtime(); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("needs leave to use SCHED_RR: %v", err)
		}
		t.Fatal(err)
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_RR || attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
		t.Errorf("policy after Realtime: %+v, %v", attr, err)
	}
	if err := Ordinary(0, 0); err != nil {
		t.Error(err)
	}
	if attr, err = unix.SchedGetAttr(0, 0); err != nil || attr.Policy != unix.SCHED_NORMAL {
		t.Errorf("policy after Ordinary: %+v, %v", attr, err)
	}
}

func TestInterruptDemotesUntilThePenaltyIsOver(t *testing.T) {
	realtime := false
	g := Guard{
		Budget: 0.2, Period: time.Second, Penalty: 10 * time.Second,
		Promote: func() error { realtime = true; return nil },
		Demote:  func() error { realtime = false; return nil },
		CPU:     func() time.Duration { return 0 },
	}
	check := func(now time.Duration, want Class) {
		t.Helper()
		if err := g.Check(now); err != nil || g.Class() != want || realtime != (want == ClassRealtime) {
			t.Fatalf("at %v: %v, class %v, realtime %v; want %v", now, err, g.Class(), realtime, want)
		}
	}
	if err := g.Start(0); err != nil {
		t.Fatal(err)
	}
	if err := g.Interrupt(); err != nil || realtime {
		t.Fatalf("interrupt: %v, realtime %v", err, realtime)
	}
	check(5*time.Second, ClassDemoted)
	check(14*time.Second, ClassDemoted)
	check(15*time.Second, ClassRealtime)
	if g.Demotions != 1 {
		t.Errorf("%d demotions, want 1", g.Demotions)
	}
	if err := g.Leave(); err != nil {
		t.Fatal(err)
	}
	check(time.Hour, ClassOrdinary)
}

// TestKernelInterruptsALongRun runs for longer than the soft limit without a pause, as a loop that puts thousands of groups back
// may, and must come out of it demoted and not killed.
func TestKernelInterruptsALongRun(t *testing.T) {
	xcpu := make(chan os.Signal, 1)
	signal.Notify(xcpu, unix.SIGXCPU)
	defer signal.Stop(xcpu)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		tid := unix.Gettid()
		g := Guard{Promote: Realtime, Demote: func() error { return Ordinary(tid, 0) }, CPU: ThreadCPU}
		if err := g.Start(0); err != nil {
			done <- err
			return
		}
		go func() {
			<-xcpu
			if err := g.Interrupt(); err != nil {
				t.Errorf("interrupt: %v", err)
			}
		}()
		start := ThreadCPU()
		for !g.interrupted.Load() && ThreadCPU()-start < hardRTLimit { // at the hard limit the kernel ends this process
		}
		err := g.Check(time.Second)
		if attr, e := unix.SchedGetAttr(0, 0); e != nil || attr.Policy != unix.SCHED_NORMAL || g.Class() != ClassDemoted {
			err = errors.Join(err, e, fmt.Errorf("after the soft limit: class %v, %+v", g.Class(), attr))
		}
		done <- err
	}()
	if err := <-done; errors.Is(err, unix.EPERM) {
		t.Skipf("needs leave to use SCHED_RR: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}
