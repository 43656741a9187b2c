// Package replay makes decisions again: it lets the loop's own step run on recorded snapshots, with the recorded policy to see that the
// same comes out, or with another to see what would have been decided otherwise.
//
// It is open-loop: what was measured is what was measured, whatever the replayed decision would have done to it. What another
// decision would have led to is a question for a model.
package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Options are what to replay, and how. The zero value replays all with the recorded policy and compares nothing.
type Options struct {
	// Policy instead of the recorded one. Stretches that were recorded without a policy are still without one.
	Policy *policy.Compiled
	// Verify compares every decision with the recorded digest. Not with Policy.
	Verify bool
	// ReadOnly decides nothing: Each gets no decisions.
	ReadOnly bool
	// KeepGoing goes on after the first difference of Verify.
	KeepGoing bool
	// From and To bound what is replayed; zero: all. The replay itself begins at a checkpoint before From.
	From, To time.Time
	// Each gets every step between From and To with the decision that the replay came to, nil if there was no policy. Neither may be kept.
	Each func(*trace.Step, *decide.Decision)
	// Before gets every step between From and To before it is taken, with what the controllers remember then, and whether that is exactly what
	// the recording agent remembered. Its error ends the replay.
	Before func(s *trace.Step, brain *decide.State, exact bool) error
	// Differs gets every difference: of Verify, or of Policy.
	Differs func(*Difference)
	// Progress gets how many of how many bytes have been read, about once for each frame.
	Progress func(done, total int64)
}

// Result is what a replay of one trace came to.
type Result struct {
	Trace    string        `json:"trace"` // the first file
	Files    int           `json:"files"`
	Run      string        `json:"run"`
	Host     string        `json:"host"`
	Agent    string        `json:"agent"` // version that recorded
	First    time.Time     `json:"first"`
	Last     time.Time     `json:"last"`
	Steps    uint64        `json:"steps"`
	Ticks    uint64        `json:"ticks"`
	Events   uint64        `json:"events"` // steps for long waits
	Recorded time.Duration `json:"recordedNS"`
	Took     time.Duration `json:"tookNS"`

	// Compared is how many decisions were compared, Same how many of them came out the same, Inexact how many could not be compared
	// because what the controllers remembered at that time is not known. Checkpoints is how many checkpoints were compared, byte by byte, with
	// what the replay remembered.
	Compared    uint64 `json:"compared"`
	Same        uint64 `json:"same"`
	Inexact     uint64 `json:"inexact"`
	Checkpoints uint64 `json:"checkpoints"`
	// Dropped is how many steps the recorder lost.
	Dropped uint64 `json:"dropped"`
	// Policies are the IDs of the recorded policies, in the order of their first use.
	Policies []string `json:"policies"`
	// Rules counts notes of the decision log by owner and rule: as recorded, and as replayed.
	Rules map[string]*Count `json:"rules"`
	// Warnings are things that the reader should know.
	Warnings []string `json:"warnings,omitempty"`

	Differences uint64      `json:"differences"`
	FirstDiff   *Difference `json:"firstDifference,omitempty"`
}

// Count is how often something happened.
type Count struct {
	Recorded uint64 `json:"recorded"`
	Replayed uint64 `json:"replayed"`
}

// Series is the files of one run of a daemon, in their order.
type Series struct {
	Run   string
	Files []string
}

// Group opens every file, and makes a series of those of one run, in the order of their first files.
func Group(files []string) ([]Series, error) {
	type member struct {
		name string
		part int
	}
	index := map[string]int{}
	var out []Series
	parts := map[string]int{} // by file
	for _, f := range files {
		r, err := trace.Open(f)
		if err != nil {
			return nil, err
		}
		info := r.Info()
		run := info.Run
		if run == "" {
			run = f // stands alone
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		i, ok := index[run]
		if !ok {
			i = len(out)
			index[run] = i
			out = append(out, Series{Run: info.Run})
		}
		parts[f] = info.Part
		at := len(out[i].Files)
		for at > 0 && parts[out[i].Files[at-1]] > info.Part {
			at--
		}
		out[i].Files = append(out[i].Files[:at], append([]string{f}, out[i].Files[at:]...)...)
	}
	return out, nil
}

// run is the state of a replay.
type run struct {
	o        Options
	res      *Result
	brain    *decide.State
	decision decide.Decision // the last
	exact    bool            // brain is what the recording agent's was
	digester *trace.Digester
	digest   trace.Digest
	can      []bool // fields of a digest that can be compared
	layout   string
	// restorable: checkpoints of that layout say what a brain remembers.
	restorable bool
	seq        uint64 // of the last step
	prevNow    time.Duration
	compare    comparer
	scratch    []byte
	policies   map[string]bool
	total      int64
	before     int64 // bytes of the files before
}

// Spare makes a program that does nothing but replay spare itself much of the collection of garbage: a replay has a few MB in use, whatever the
// length of the recording, and may as well have four times as much garbage. It gives back what undoes it. GOGC in the environment wins.
func Spare() (undo func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	was := debug.SetGCPercent(400)
	return func() { debug.SetGCPercent(was) }
}

// Run replays a series. It returns what it has found so far also with an error.
func Run(ctx context.Context, s Series, o Options) (*Result, error) {
	if o.Verify && o.Policy != nil {
		return nil, errors.New("replay: another policy decides otherwise: there is nothing to verify")
	}
	start := time.Now()
	r := &run{o: o, res: &Result{Trace: s.Files[0], Files: len(s.Files), Run: s.Run, Rules: map[string]*Count{}}, policies: map[string]bool{}}
	defer func() { r.res.Took = time.Since(start) }()
	var err error
	if r.digester, err = trace.NewDigester(); err != nil {
		return nil, err
	}
	readers := make([]*trace.Reader, 0, len(s.Files))
	defer func() {
		for _, f := range readers {
			_ = f.Close() // only read from
		}
	}()
	for _, name := range s.Files {
		f, err := trace.Open(name)
		if err != nil {
			return r.res, err
		}
		readers = append(readers, f)
		r.total += f.Size()
	}
	readers, err = r.trim(readers)
	if err != nil {
		return r.res, err
	}
	for i, f := range readers {
		more, err := r.file(ctx, f, i == 0)
		if err != nil || !more {
			return r.res, err
		}
		r.before += f.Size()
	}
	return r.res, nil
}

// trim leaves out files that lie before From, and seeks in the first of the rest.
func (r *run) trim(files []*trace.Reader) ([]*trace.Reader, error) {
	if r.o.From.IsZero() {
		return files, nil
	}
	begin := func(f *trace.Reader) int64 {
		for _, e := range f.Index() {
			if e.State {
				return e.Wall
			}
		}
		return 1<<63 - 1
	}
	at := 0
	for i, f := range files {
		if begin(f) <= r.o.From.UnixNano() {
			at = i
		}
	}
	for _, f := range files[:at] {
		r.total -= f.Size()
	}
	return files[at:], files[at].Seek(r.o.From, true)
}

// file replays one file. more is false when the end that was asked for has been reached.
func (r *run) file(ctx context.Context, f *trace.Reader, first bool) (more bool, err error) {
	// A checkpoint can hold what no controller ever remembers, and bytes of it that lead nowhere are not found out by reading it.
	defer func() {
		if p := recover(); p != nil {
			more, err = false, fmt.Errorf("%s: step %d cannot be decided on, so the checkpoint before it is damaged, or there is a mistake in this program: %v", f.Name(), r.seq, p)
		}
	}()
	info := f.Info()
	if first {
		r.res.Host, r.res.Agent, r.res.Run = info.Hostname, info.Agent, info.Run
	}
	r.can, r.layout = f.Comparable(), info.StateLayout
	r.restorable = decide.Restorable(r.layout)
	for _, m := range f.Missing() {
		r.warn("%s: %s was not recorded", f.Name(), m)
	}
	for _, m := range f.Dropped() {
		r.warn("%s: %s is not known to this version", f.Name(), m)
	}
	if r.o.Verify && !r.restorable {
		r.warn("%s was recorded by a version (%s) that remembered other things: its checkpoints cannot be used, and decisions may differ", f.Name(), info.Agent)
	}
	at := f.Pos()
	for {
		step, err := f.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return false, err
		}
		if p := f.Pos(); p != at {
			at = p
			if r.o.Progress != nil {
				r.o.Progress(r.before+p, r.total)
			}
			if err := ctx.Err(); err != nil {
				return false, err
			}
		}
		wall := step.Snapshot.Wall
		if !r.o.To.IsZero() && wall.After(r.o.To) {
			return false, nil
		}
		more, err := r.step(step, !wall.Before(r.o.From))
		if err != nil || !more {
			return false, err
		}
	}
	if f.Torn() != nil {
		r.warn("%v: what comes after is lost, as is normal for a daemon that was killed", f.Torn())
	}
	return true, nil
}

func (r *run) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, w := range r.res.Warnings {
		if w == text {
			return
		}
	}
	if len(r.res.Warnings) < 100 {
		r.res.Warnings = append(r.res.Warnings, text)
	}
}

// step takes one step. wanted says that it lies in the time that was asked for.
func (r *run) step(s *trace.Step, wanted bool) (more bool, err error) {
	if err := r.resume(s); err != nil {
		return false, err
	}
	if wanted {
		r.count(s)
	}
	if wanted && r.o.Before != nil {
		if err := r.o.Before(s, r.brain, r.exact); err != nil {
			return false, err
		}
	}
	if s.Policy == nil || r.o.ReadOnly {
		if wanted && r.o.Each != nil {
			r.o.Each(s, nil)
		}
		return true, nil
	}
	p := s.Policy
	if r.o.Policy != nil {
		p = r.o.Policy
	}
	r.decision = r.brain.Step(s.Snapshot, p)
	d := &r.decision
	if !wanted {
		return true, nil
	}
	for i := range d.Notes {
		r.rule(d.Notes[i].Owner, d.Notes[i].Rule).Replayed++
	}
	if r.o.Each != nil {
		r.o.Each(s, d)
	}
	switch {
	case r.o.Verify:
		return r.verify(s, d), nil
	case r.o.Policy != nil:
		if diff := r.compare.policies(s, d); diff != nil {
			r.differ(diff)
		}
	}
	return true, nil
}

// resume brings the brain to what it was, where the recording says so.
func (r *run) resume(s *trace.Step) error {
	r.res.Dropped += s.Dropped
	if seq := s.Snapshot.Seq; s.Dropped > 0 || r.seq != 0 && seq != r.seq+1 { // a file may be missing
		r.exact = false
	}
	r.seq = s.Snapshot.Seq
	switch {
	case !s.HasState():
		if r.brain == nil {
			r.brain = decide.New()
			r.warn("the recording begins without a checkpoint: until the controllers have met all, decisions may differ")
		}
		return nil
	case r.brain != nil && (r.exact || r.o.Policy != nil):
		// The brain has come here by itself. With the recorded policy it must now remember the same.
		if r.o.Verify && r.restorable {
			recorded, err := r.checkpoint(s)
			if err != nil {
				return err
			}
			r.scratch = r.brain.Checkpoint(r.scratch[:0])
			r.res.Checkpoints++
			if !bytes.Equal(r.scratch, recorded) {
				r.differ(&Difference{At: s.Snapshot.Wall, Seq: s.Snapshot.Seq, Fields: []string{"State"},
					Text: []string{"what the controllers remember before this step is not what the recording agent remembered"}})
				r.exact = false
			}
		}
		return nil
	}
	brain, err := r.restore(s)
	if errors.Is(err, decide.ErrLayout) {
		if r.brain == nil {
			r.brain = decide.New()
		}
		return nil
	} else if err != nil {
		return err
	}
	r.brain, r.exact = brain, true
	return nil
}

func (r *run) restore(s *trace.Step) (*decide.State, error) {
	state, err := s.Checkpoint()
	if err != nil {
		return nil, err
	}
	brain, err := decide.Restore(r.layout, state)
	if err != nil {
		return nil, fmt.Errorf("step %d: %w", s.Snapshot.Seq, err)
	}
	return brain, nil
}

// checkpoint is the step's in the layout of this version, in which those of a brain are.
func (r *run) checkpoint(s *trace.Step) ([]byte, error) {
	if r.layout == decide.StateLayout() {
		return s.Checkpoint()
	}
	brain, err := r.restore(s)
	if err != nil {
		return nil, err
	}
	return brain.Checkpoint(nil), nil
}

func (r *run) count(s *trace.Step) {
	snap := s.Snapshot
	res := r.res
	res.Steps++
	if res.First.IsZero() {
		res.First = snap.Wall
	} else if passed := snap.Now - r.prevNow; passed > 0 {
		res.Recorded += passed
	}
	res.Last, r.prevNow = snap.Wall, snap.Now
	if snap.Trigger == signal.Tick {
		res.Ticks++
	} else {
		res.Events++
	}
	if s.Policy != nil {
		if id := s.Policy.ID(); !r.policies[id] {
			r.policies[id] = true
			res.Policies = append(res.Policies, id)
		}
		for i := range s.Decision.Notes {
			r.rule(s.Decision.Notes[i].Owner, s.Decision.Notes[i].Rule).Recorded++
		}
	}
}

func (r *run) rule(owner, rule string) *Count {
	key := owner + " " + rule
	c := r.res.Rules[key]
	if c == nil {
		c = &Count{}
		r.res.Rules[key] = c
	}
	return c
}

// verify compares a decision with the recorded digest, and reports whether to go on.
func (r *run) verify(s *trace.Step, d *decide.Decision) (more bool) {
	if !r.exact {
		r.res.Inexact++
		return true
	}
	r.res.Compared++
	r.digest = r.digester.Digest(r.digest, d)
	same := true
	for i := range r.digest {
		if r.can[i] && r.digest[i] != s.Digest[i] {
			same = false
		}
	}
	if same {
		r.res.Same++
		return true
	}
	var fields []string
	for i, name := range r.digester.Fields() {
		if r.can[i] && r.digest[i] != s.Digest[i] {
			fields = append(fields, name)
		}
	}
	r.differ(r.compare.exactly(s, d, fields))
	return r.o.KeepGoing
}

func (r *run) differ(d *Difference) {
	r.res.Differences++
	if r.res.FirstDiff == nil {
		r.res.FirstDiff = d
	}
	if r.o.Differs != nil {
		r.o.Differs(d)
	}
}
