package decide

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/wire"
)

// rebirth is a state made from a checkpoint of s.
func rebirth(t testing.TB, s *State) *State {
	t.Helper()
	data := s.Checkpoint(nil)
	out, err := Restore(StateLayout(), data)
	if err != nil {
		t.Fatal(err)
	}
	if again := out.Checkpoint(nil); !bytes.Equal(data, again) {
		t.Fatalf("a checkpoint of %d bytes became one of %d", len(data), len(again))
	}
	return out
}

func TestCheckpointDecidesTheSame(t *testing.T) {
	p := newPlant(t, 4,
		&job{name: "guilty", class: policy.Offline, demand: 4, hurt: 3000, bias: 1},
		&job{name: "innocent", class: policy.Offline, demand: 2, bias: 1},
		&job{name: "other", class: policy.Offline, demand: 2, hurt: 900, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1, limit: 100_000, throttled: 2},
		&job{name: "web2", class: policy.Online, demand: 1},
	)
	p.reborn, p.noise = true, 0.2
	p.respec(func(s *policy.Spec) {
		s.CPU.Ladder = []policy.Rung{policy.RungCPUs, policy.RungQuota, policy.RungFreeze}
		s.CPU.Burst.Percent = 100
	})
	p.run(30 * time.Second)
	p.jobs = append(p.jobs[1:], &job{name: "late", class: policy.Offline, demand: 4, hurt: 2000, bias: 1, cpus: 4})
	p.run(10 * time.Second)
	p.respec(func(s *policy.Spec) { s.Mode = policy.Observe })
	p.run(10 * time.Second)
	p.respec(func(s *policy.Spec) { s.Mode = policy.Enforce })
	p.run(30 * time.Second)
	if len(p.log) < 20 {
		t.Errorf("only %d notes: nothing was compared", len(p.log))
	}
}

func TestRestoreRefusesWhatItDoesNotKnow(t *testing.T) {
	s := New()
	data := s.Checkpoint(nil)
	if _, err := Restore(StateLayout()+"x", data); !errors.Is(err, ErrLayout) {
		t.Errorf("another layout: %v", err)
	}
	for name, bad := range map[string][]byte{"short": data[:len(data)-1], "long": append(bytes.Clone(data), 0), "empty": nil} {
		if _, err := Restore(StateLayout(), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestCheckpointInAnotherOrder restores what a version wrote that remembered the same things in another order.
func TestCheckpointInAnotherOrder(t *testing.T) {
	p := newPlant(t, 4, &job{name: "guilty", class: policy.Offline, demand: 4, hurt: 3000, bias: 1}, &job{name: "web", class: policy.Online, demand: 1})
	p.run(3 * time.Second)
	data := p.brain.Checkpoint(nil)
	// The field that comes last goes to the front: in the layout, and in the bytes.
	layout := StateLayout()
	cut := strings.LastIndex(layout, ",input:")
	if cut < 0 {
		t.Fatal("input is not the last field of State")
	}
	type input struct{ Input control.Input }
	tail := wire.MustCompile[input]().Append(nil, unsafe.Pointer(&input{}))
	if !bytes.HasSuffix(data, tail) {
		t.Fatal("input is not empty between steps")
	}
	other := "{" + layout[cut+1:len(layout)-1] + "," + layout[1:cut] + "}"
	s, err := Restore(other, append(tail, data[:len(data)-len(tail)]...))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Checkpoint(nil), data) {
		t.Error("it is not the same state")
	}
	for _, l := range []string{layout[:cut] + "}", strings.Replace(layout, ",input:", ",inputs:", 1)} {
		if Restorable(l) {
			t.Errorf("a layout that lacks something is taken")
		}
	}
}

func BenchmarkCheckpoint(b *testing.B) {
	p := node(b, 150, 3000)
	p.snap.PodsGen = 1
	for range 50 {
		p.snap.Now += p.tick
		for i := range p.snap.Containers {
			p.snap.Containers[i].Wait.At = p.snap.Now
		}
		p.brain.Step(&p.snap, p.pol)
	}
	var data []byte
	b.ReportAllocs()
	for b.Loop() {
		data = p.brain.Checkpoint(data[:0])
	}
	b.ReportMetric(float64(len(data)), "bytes")
}
