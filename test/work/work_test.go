package work

import (
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	MaybeRun()
	os.Exit(m.Run())
}

func TestPausedLoadUsesNothing(t *testing.T) {
	p, err := Start(Spin, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for cpu := time.Duration(0); cpu < 50*time.Millisecond; {
		if cpu, err = p.CPU(); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("a spinning process has used %v in 20 s", cpu)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for a signal on its way
	before, _ := p.CPU()
	time.Sleep(100 * time.Millisecond)
	if after, _ := p.CPU(); after-before > 10*time.Millisecond {
		t.Fatalf("a stopped process has used %v", after-before)
	}
}

func TestTextRoundTrip(t *testing.T) {
	want := Pulse(time.Millisecond, 3*time.Second).On(1)
	if got, err := parse(want.text()); err != nil || got != want {
		t.Fatalf("%+v came back as %+v, %v", want, got, err)
	}
	for _, bad := range []string{"", "1 2 3", "1 2 x 4"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("parse(%q) gives no error", bad)
		}
	}
}
