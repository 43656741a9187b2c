package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/trace/tracetest"
)

func enforcing(change func(*policy.Spec)) *policy.Compiled {
	p := policy.Default()
	p.Spec.Mode = policy.Enforce
	p.Spec.Objectives.CPUWaitP99 = policy.Duration(2 * time.Millisecond)
	p.Spec.Objectives.CPUWaitEvent = policy.Duration(4 * time.Millisecond)
	if change != nil {
		change(&p.Spec)
	}
	return policy.MustCompile(p)
}

// daemon does what the loop does around Step, on a made-up node.
type daemon struct {
	node   *tracetest.Node
	rec    *trace.Recorder
	brain  *decide.State
	policy *policy.Compiled
	notes  int
}

func (d *daemon) step(s *signal.Snapshot) {
	if s.Trigger == signal.Tick && d.rec.WantsState() {
		d.rec.State(d.brain.Checkpoint)
	}
	if d.policy == nil {
		d.rec.Step(s, nil, nil, nil)
		return
	}
	out := d.brain.Step(s, d.policy)
	d.notes += len(out.Notes)
	var outcomes []knob.Outcome
	for _, w := range out.Plan {
		if out.Changed {
			outcomes = append(outcomes, knob.Outcome{Want: w, Result: knob.Written})
		}
	}
	d.rec.Step(s, d.policy, &out, outcomes)
}

func (d *daemon) run(ticks int) {
	for i := range ticks {
		if i%50 == 49 {
			d.node.Churn(i % 10)
		}
		d.step(d.node.Tick())
		if s := d.node.Event(); s != nil {
			d.step(s)
		}
	}
}

// recording is made with several policies, none for a while, and pods that come and go.
func recording(t testing.TB, dir string, seed uint64) (notes int) {
	rec, err := trace.NewRecorder(trace.RecorderOptions{
		Dir: dir, MaxBytes: 1 << 30, FileBytes: 256 << 10, StateEvery: 20 * time.Second, Wait: true, Info: trace.Info{Agent: "test", Hostname: "node-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{node: tracetest.New(tracetest.Options{Containers: 30, CPUs: 8, Seed: seed}), rec: rec, brain: decide.New(), policy: enforcing(nil)}
	d.run(1500)
	d.policy = nil
	d.run(30)
	d.policy = enforcing(func(s *policy.Spec) { s.Mode = policy.Observe })
	d.run(500)
	d.policy = enforcing(func(s *policy.Spec) { s.CPU.Ladder = []policy.Rung{policy.RungQuota} })
	d.run(1500)
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return d.notes
}

func series(t testing.TB, dir string) Series {
	t.Helper()
	files, err := trace.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Group(files)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("%d series, want 1", len(all))
	}
	return all[0]
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	notes := recording(t, dir, 1)
	s := series(t, dir)
	if len(s.Files) < 3 {
		t.Fatalf("only %d files", len(s.Files))
	}
	res, err := Run(context.Background(), s, Options{Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	if res.FirstDiff != nil {
		t.Fatalf("a decision came out otherwise:\n%s", res.FirstDiff)
	}
	if res.Compared < 3500 || res.Same != res.Compared || res.Checkpoints < 5 || len(res.Policies) != 3 || notes < 20 {
		t.Errorf("%+v, %d notes", res, notes)
	}

	// Every file stands alone.
	for _, f := range s.Files {
		res, err := Run(context.Background(), Series{Files: []string{f}}, Options{Verify: true})
		if err != nil || res.FirstDiff != nil || res.Inexact > 0 {
			t.Errorf("%s alone: %v, %+v", f, err, res)
		}
	}
	// So does what comes after a file that is missing.
	res, err = Run(context.Background(), Series{Files: slices.Delete(slices.Clone(s.Files), 1, 2)}, Options{Verify: true})
	if err != nil || res.FirstDiff != nil || res.Inexact > 0 {
		t.Errorf("without the second file: %v, %+v", err, res)
	}
	// And any part of it.
	from := res.First.Add(100 * time.Second)
	seen := 0
	res, err = Run(context.Background(), s, Options{Verify: true, From: from, To: from.Add(time.Minute), Each: func(s *trace.Step, _ *decide.Decision) {
		if s.Snapshot.Wall.Before(from) || s.Snapshot.Wall.After(from.Add(time.Minute)) {
			t.Errorf("a step at %v", s.Snapshot.Wall)
		}
		seen++
	}})
	if err != nil || res.FirstDiff != nil || res.Inexact > 0 || seen < 590 {
		t.Errorf("a minute: %v, %+v, %d steps", err, res, seen)
	}
}

func TestVerifyShowsTheFirstDifference(t *testing.T) {
	dir := t.TempDir()
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 1 << 30, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{node: tracetest.New(tracetest.Options{Containers: 20, CPUs: 8, Seed: 3}), rec: rec, brain: decide.New(), policy: enforcing(nil)}
	d.run(600)
	// An agent that decides as if it had another policy.
	lie := enforcing(func(s *policy.Spec) { s.CPU.Posture = policy.PostureWeight })
	s := d.node.Tick()
	out := d.brain.Step(s, lie)
	rec.Step(s, d.policy, &out, nil)
	seq := s.Seq
	d.run(10)
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := Run(context.Background(), series(t, dir), Options{Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	if res.FirstDiff == nil || res.FirstDiff.Seq != seq || !slices.Contains(res.FirstDiff.Fields, "Plan") {
		t.Fatalf("got %v, want a difference at step %d", res.FirstDiff, seq)
	}
	text := res.FirstDiff.String()
	for _, want := range []string{"Plan", "- cpu.idle of offline-ns/", "+ cpu.idle of offline-ns/", "- cpu.weight of offline-ns/"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func TestAnotherPolicy(t *testing.T) {
	dir := t.TempDir()
	recording(t, dir, 2)
	var diffs []*Difference
	run := func(p *policy.Compiled) *Result {
		diffs = nil
		res, err := Run(context.Background(), series(t, dir), Options{Policy: p, Differs: func(d *Difference) { diffs = append(diffs, d) }})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := run(enforcing(func(s *policy.Spec) { s.CPU.Ladder = []policy.Rung{}; s.CPU.Posture = policy.PostureWeight }))
	if res.Rules["cpu tick-cut"] == nil && res.Rules["cpu event-cut"] == nil || len(diffs) == 0 || len(diffs[0].Replayed) == 0 {
		t.Fatalf("%d differences: %+v", len(diffs), res)
	}
	cuts := Count{}
	for rule, n := range res.Rules {
		if strings.HasSuffix(rule, "-cut") {
			cuts.Recorded += n.Recorded
			cuts.Replayed += n.Replayed
		}
	}
	if cuts.Recorded == 0 || cuts.Replayed != 0 {
		t.Errorf("cuts %+v, want none of the replayed, which has no ladder", cuts)
	}
	for i, d := range diffs {
		for j := range i {
			if fmt.Sprint(diffs[j]) == fmt.Sprint(d) {
				t.Errorf("told twice: %s", d)
			}
		}
	}
	t.Log(diffs[0], diffs[len(diffs)-1])
}

func TestReplayIsTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	recording(t, dir, 4)
	p := enforcing(func(s *policy.Spec) { s.Judge.CulpritPercent = 20 })
	var texts [2]string
	for i := range texts {
		var b strings.Builder
		if _, err := Run(context.Background(), series(t, dir), Options{Policy: p, Differs: func(d *Difference) { b.WriteString(d.String()) }}); err != nil {
			t.Fatal(err)
		}
		texts[i] = b.String()
	}
	if texts[0] == "" || texts[0] != texts[1] {
		t.Error("two replays differ, or nothing was compared")
	}
}

func TestKilledDaemon(t *testing.T) {
	dir := t.TempDir()
	recording(t, dir, 5)
	s := series(t, dir)
	last := s.Files[len(s.Files)-1]
	st, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(last, st.Size()*2/3); err != nil {
		t.Fatal(err)
	}
	res, err := Run(context.Background(), s, Options{Verify: true})
	if err != nil || res.FirstDiff != nil || len(res.Warnings) != 1 {
		t.Errorf("%v, %+v", err, res)
	}
}

func TestGroup(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	recording(t, a, 6)
	recording(t, b, 7)
	files, err := trace.Files(b, a)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	got, err := Group(files)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || filepath.Dir(got[0].Files[0]) != a || !slices.IsSorted(got[0].Files) || !slices.IsSorted(got[1].Files) || got[0].Run == got[1].Run {
		t.Errorf("%+v", got)
	}
}

// TestDamagedCheckpoints replays recordings whose checkpoints hold what no controller remembers: there is an error that says where, or none, but
// the program goes on.
func TestDamagedCheckpoints(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	dir, failed := t.TempDir(), 0
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 1 << 30, Wait: true, StateEvery: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{node: tracetest.New(tracetest.Options{Containers: 12, CPUs: 8, Idle: -1, Hardware: true}), rec: rec, brain: decide.New(), policy: enforcing(nil)}
	d.run(120)
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := trace.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 60 {
		in, err := trace.Open(files[0])
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprint(n)+trace.Ext)
		out, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		w, err := trace.NewWriter(out, *in.Info(), trace.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for met := 0; ; {
			s, err := in.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if s.HasState() {
				met++
			}
			if met < 2 {
				continue // the first is of a brain that has met nobody
			}
			if s.HasState() {
				if s.State, err = s.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				s.State = slices.Clone(s.State)
				for range 1 + rng.IntN(3) {
					s.State[rng.IntN(len(s.State))] = byte(rng.IntN(256))
				}
			}
			if err := w.Append(s); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), out.Close(), in.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(context.Background(), Series{Files: []string{name}}, Options{}); err != nil {
			failed++
			if !strings.Contains(err.Error(), "checkpoint") || !strings.Contains(err.Error(), "step ") {
				t.Errorf("an error that does not say what is wrong: %v", err)
			}
		}
	}
	if failed == 0 {
		t.Error("no change of a checkpoint was noticed: none was made")
	}
}
