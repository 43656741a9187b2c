package trace

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
)

// record lets a walk of n steps be recorded, as the loop does it, and returns what every step should be read as.
func record(t *testing.T, r *Recorder, w *walk, n int) (want []*Step) {
	t.Helper()
	for range n {
		s := w.step()
		s.State, s.Dropped = nil, 0
		if s.Snapshot.Trigger == signal.Tick && r.WantsState() {
			r.State(func(b []byte) []byte {
				b = append(b, fmt.Sprint("state before ", s.Snapshot.Seq)...)
				s.State = b
				return b
			})
			s.State = append([]byte(nil), s.State...)
		}
		d := s.Decision
		var outcomes []knob.Outcome
		for i := range s.Outcomes {
			o := &s.Outcomes[i]
			o.Audit = false
			outcomes = append(outcomes, knob.Outcome{Want: o.Want, Old: o.Old, New: o.New, Result: o.Result, Err: io.ErrUnexpectedEOF})
			o.Err = io.ErrUnexpectedEOF.Error()
		}
		if s.Policy != nil {
			s.Digest = w.digest.Digest(nil, &d)
		}
		r.Step(s.Snapshot, s.Policy, &d, outcomes)
		want = append(want, s)
		for len(r.queue) > queueLen/2 { // a loop is slower than this test
			time.Sleep(time.Millisecond)
		}
	}
	return want
}

// readAll reads all files of a directory as one.
func readAll(t *testing.T, dir string, each func(i int, s *Step)) (files, steps int) {
	t.Helper()
	names, err := Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for part, name := range names {
		r, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if r.Info().Part != part || !r.Complete() {
			t.Errorf("%s is part %d, complete %v", name, r.Info().Part, r.Complete())
		}
		for s := range all(t, r) {
			each(steps, s)
			steps++
		}
		_ = r.Close()
	}
	return len(names), steps
}

func TestRecorder(t *testing.T) {
	dir := t.TempDir()
	r, err := NewRecorder(RecorderOptions{
		Dir: dir, MaxBytes: 64 << 20, FileBytes: 60 << 10, StateEvery: 10 * time.Second,
		Writer: WriterOptions{KeyEvery: 7 * time.Second}, Info: Info{Agent: "test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := record(t, r, newWalk(t, 1), 800)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	files, steps := readAll(t, dir, func(i int, s *Step) { compare(t, fmt.Sprint("step ", i), want[i], s) })
	if steps != len(want) || files < 3 {
		t.Errorf("%d steps in %d files, want %d in several", steps, files, len(want))
	}
	if s := r.Stats(); s.Steps != 800 || s.Dropped != 0 || s.Failures != 0 || s.Bytes == 0 || s.DiskBytes != int64(s.Bytes) {
		t.Errorf("%+v", s)
	}
}

// TestRecorderStaysBelowItsBound looks at the directory whenever the recorder has nothing to do.
func TestRecorderStaysBelowItsBound(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "20200101T000000Z-00000000-0000"+Ext)
	if err := os.WriteFile(old, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(old, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(other, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const bound = 1 << 20
	r, err := NewRecorder(RecorderOptions{Dir: dir, MaxBytes: bound, Writer: WriterOptions{FrameEvery: 100 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	w, top := newWalk(t, 2), int64(0)
	for range 100 {
		record(t, r, w, 60)
		for len(r.free) < queueLen || len(r.spare) < eventsLen {
			time.Sleep(time.Millisecond)
		}
		sum := int64(0)
		names, err := filepath.Glob(filepath.Join(dir, "*"+Ext))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			st, err := os.Stat(n)
			if err != nil {
				t.Fatal(err)
			}
			sum += st.Size()
		}
		top = max(top, sum)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if top > bound || top < bound*3/4 {
		t.Errorf("recordings took up to %d bytes, the bound is %d", top, bound)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the oldest file is still there")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error("a file that is no recording has gone")
	}
	if s := r.Stats(); s.Failures != 0 || s.Dropped != 0 || int64(s.Bytes) < bound {
		t.Errorf("%+v", s)
	}
}

func TestRecorderDropsRatherThanWaits(t *testing.T) {
	dir := t.TempDir()
	r, err := NewRecorder(RecorderOptions{Dir: dir, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The writer is held up.
	var held []*capture
	for range queueLen - 5 {
		held = append(held, <-r.free)
	}
	for range eventsLen - 5 {
		held = append(held, <-r.spare)
	}
	w := newWalk(t, 3)
	w.snap.Pods = nil
	want := 0
	for range 200 {
		s := w.step()
		if s.Snapshot.Trigger == signal.Tick && r.WantsState() {
			r.State(w.brain.Checkpoint)
		}
		r.Step(s.Snapshot, s.Policy, &s.Decision, nil)
		want++
		if want == 100 {
			for len(r.free) < 5 {
				time.Sleep(time.Millisecond)
			}
			for _, c := range held {
				r.give(c)
			}
		}
	}
	for len(r.free) < queueLen || len(r.spare) < eventsLen {
		time.Sleep(time.Millisecond)
	}
	for s := w.step(); ; s = w.step() { // the one that tells of those that were dropped before it
		if want++; s.Snapshot.Trigger == signal.Tick {
			r.Step(s.Snapshot, s.Policy, &s.Decision, nil)
			break
		}
		r.Step(s.Snapshot, s.Policy, &s.Decision, nil)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	st := r.Stats()
	if st.Dropped == 0 || st.Steps+st.Dropped != uint64(want) {
		t.Fatalf("%+v of %d steps", st, want)
	}
	dropped := uint64(0)
	known := true // what the brain remembered
	_, steps := readAll(t, dir, func(i int, s *Step) {
		dropped += s.Dropped
		known = s.HasState() || known && s.Dropped == 0
	})
	if uint64(steps) != st.Steps || dropped != st.Dropped {
		t.Errorf("%d steps and %d dropped in the file; %+v", steps, dropped, st)
	}
	if !known && !r.broken {
		t.Error("after a hole no checkpoint is wanted")
	}
}

func TestRecorderOutlivesABadDisk(t *testing.T) {
	dir := t.TempDir()
	now := time.Unix(1e9, 0)
	r, err := NewRecorder(RecorderOptions{Dir: dir, MaxBytes: 1 << 20, Writer: WriterOptions{FrameEvery: time.Millisecond}, wall: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	w := newWalk(t, 6)
	record(t, r, w, 20)
	for len(r.free) < queueLen || len(r.spare) < eventsLen {
		time.Sleep(time.Millisecond)
	}
	_ = r.file.Close() // from now on writing fails
	record(t, r, w, 20)
	for len(r.free) < queueLen || len(r.spare) < eventsLen {
		time.Sleep(time.Millisecond)
	}
	if s := r.Stats(); s.Failures != 1 || s.Dropped == 0 {
		t.Errorf("%+v", s)
	}
	now = now.Add(time.Hour)
	record(t, r, w, 20)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := Files(dir)
	if err != nil || len(names) != 2 {
		t.Fatalf("%v, %v", names, err)
	}
	second, err := Open(names[1])
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	s, err := second.Next()
	if err != nil || !s.HasState() || s.Dropped == 0 {
		t.Errorf("the second file begins with %+v, %v", s, err)
	}
}

// TestCaptureSharesNothing changes everything in a snapshot after it was handed over. A slice that is added to the vocabulary and that is not copied
// fails here.
func TestCaptureSharesNothing(t *testing.T) {
	r := &Recorder{}
	r.digester, _ = NewDigester()
	r.node, r.event = wire.MustCompile[signal.Node](), wire.MustCompile[signal.WaitEvent]()
	snap := filled(7, signal.Tick)
	want := filled(7, signal.Tick)
	d, wantDecision := new(decide.Decision), new(decide.Decision)
	(&filler{3}).fill(reflect.ValueOf(d).Elem(), "")
	(&filler{3}).fill(reflect.ValueOf(wantDecision).Elem(), "")
	var c capture
	c.take(r, snap)
	c.decide(r, d)
	scramble(reflect.ValueOf(snap.Containers))
	scramble(reflect.ValueOf(snap.Events))
	scramble(reflect.ValueOf(&snap.Node).Elem())
	scramble(reflect.ValueOf(d).Elem())
	if diff := cmp.Diff(want, &c.snap, alike...); diff != "" {
		t.Errorf("the capture changed with the snapshot (-want +got):\n%s", diff)
	}
	c.decision.Verdicts, c.decision.Findings, c.decision.Spec = nil, nil, nil
	wantDecision.Verdicts, wantDecision.Findings, wantDecision.Spec = nil, nil, nil
	if diff := cmp.Diff(*wantDecision, c.decision, alike...); diff != "" {
		t.Errorf("the capture changed with the decision (-want +got):\n%s", diff)
	}
}

// scramble changes every scalar that can be reached without a map.
func scramble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			scramble(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scramble(v.Field(i))
		}
	case reflect.Pointer:
		if v.Type().Elem().Name() != "Spec" {
			scramble(v.Elem())
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(v.Int() ^ 1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() ^ 1)
	case reflect.String:
		v.SetString("scrambled")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	}
}

func TestCapturingDoesNotAllocate(t *testing.T) {
	r, err := NewRecorder(RecorderOptions{Dir: t.TempDir(), MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := newWalk(t, 8)
	var steps []*Step
	for len(steps) < 4*queueLen {
		if s := w.step(); s.Policy != nil {
			s.Outcomes = nil
			steps = append(steps, s)
		}
	}
	for range 4 { // until every capture has seen the largest
		for _, s := range steps {
			r.Step(s.Snapshot, s.Policy, &s.Decision, nil)
			for len(r.free) < queueLen || len(r.spare) < eventsLen {
				runtime.Gosched()
			}
		}
	}
	// The writer is kept out: captures go back by themselves.
	i := 0
	allocs := testing.AllocsPerRun(200, func() {
		c := <-r.free
		s := steps[i%len(steps)]
		i++
		c.take(r, s.Snapshot)
		c.step.Digest = c.step.Digest[:0]
		c.decide(r, &s.Decision)
		r.free <- c
	})
	if allocs > 0.5 {
		t.Errorf("%v allocations a step", allocs)
	}
}
