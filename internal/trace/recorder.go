package trace

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
)

// RecorderOptions are where to record and how much to keep. Dir and MaxBytes are required.
type RecorderOptions struct {
	Dir      string
	MaxBytes int64         // of all recordings in Dir, the one that is being written included; never exceeded
	MaxAge   time.Duration // of files; 0: any
	// FileBytes and FileEvery end a file. A file is the least that can be removed, so FileBytes is at most a quarter of MaxBytes, which is
	// also its default up to 64 MiB; FileEvery is 1 h.
	FileBytes int64
	FileEvery time.Duration
	// StateEvery is the time between two checkpoints of the brain; 10 min.
	StateEvery time.Duration
	Writer     WriterOptions
	Info       Info
	// Wait makes Step wait for the disk rather than drop a step: for simulations, never for a daemon.
	Wait bool
	Log  *slog.Logger // must not block; nil for none

	wall func() time.Time // for tests
}

// Bounds of a recorder.
const (
	// queueLen is how many ticks may wait to be written, and eventsLen how many events, which are small and come in bursts.
	queueLen  = 32
	eventsLen = 256
	// minMaxBytes is the least that is worth recording into.
	minMaxBytes = 1 << 20
	// retryAfter is the pause after the disk has failed, and again the least time between checkpoints that make up for dropped steps.
	retryAfter = 10 * time.Second
)

// Recorder records what a loop does. Step, WantsState, State, Audit and Classes belong to the loop's goroutine: they copy what they are given into memory
// that is used again and again, and never wait. Everything else happens on a goroutine of the recorder. A nil recorder records nothing.
type Recorder struct {
	o        RecorderOptions
	log      *slog.Logger
	free     chan *capture // for ticks
	spare    chan *capture // for events
	queue    chan *capture
	done     chan struct{}
	closeErr error

	// The loop's.
	digester *Digester
	digest   Digest   // of the last decision that was captured
	held     bool     // digest is of a decision
	next     *capture // holds a checkpoint already
	audit    []Outcome
	missed   uint64 // steps dropped since the last that was captured
	broken   bool   // steps were dropped since the last checkpoint
	stateAt  time.Duration
	hasState bool
	seen     time.Duration // Now of the last step
	node     *wire.Type
	event    *wire.Type

	wantState atomic.Bool // by the writer: a new file is to begin

	// The writer's.
	dir    *dir
	run    string
	part   int
	file   *file
	w      *Writer
	began  time.Time
	turn   bool // the file is full or old: the next checkpoint begins a new one
	down   time.Time
	lost   uint64 // steps that could not be written
	failed bool

	stats struct {
		steps, dropped, bytes, failures atomic.Uint64
		disk                            atomic.Int64
	}
}

// capture is a copy of a step.
type capture struct {
	event    bool // goes back to spare
	step     Step
	snap     signal.Snapshot
	node     signal.Node
	cont     []signal.ContainerSample
	events   []signal.WaitEvent
	decision decide.Decision
	state    []byte
	hasState bool
}

// RecorderStats is what a recorder has done so far.
type RecorderStats struct {
	Steps     uint64 // written, or about to be
	Dropped   uint64 // because the queue was full or the disk refused
	Bytes     uint64 // written
	Failures  uint64 // of the disk
	DiskBytes int64  // that recordings take there
}

// NewRecorder starts a recorder. It fails if the directory cannot be used.
func NewRecorder(o RecorderOptions) (*Recorder, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes < minMaxBytes {
		return nil, fmt.Errorf("record: a bound of %d bytes; want at least %d", o.MaxBytes, minMaxBytes)
	}
	if o.FileBytes == 0 {
		o.FileBytes = 64 << 20
	}
	o.FileBytes = min(o.FileBytes, o.MaxBytes/4)
	if o.FileEvery == 0 {
		o.FileEvery = time.Hour
	}
	if o.StateEvery == 0 {
		o.StateEvery = 10 * time.Minute
	}
	if o.wall == nil {
		o.wall = time.Now
	}
	r := &Recorder{o: o, log: o.Log, done: make(chan struct{})}
	var err error
	if r.dir, err = openDir(o.Dir, o.MaxBytes, o.MaxAge); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if r.digester, err = NewDigester(); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	r.run = hex.EncodeToString(id[:])
	r.node, r.event = wire.MustCompile[signal.Node](), wire.MustCompile[signal.WaitEvent]()
	r.free, r.spare = make(chan *capture, queueLen), make(chan *capture, eventsLen)
	r.queue = make(chan *capture, queueLen+eventsLen)
	for range queueLen {
		r.free <- new(capture)
	}
	for range eventsLen {
		r.spare <- &capture{event: true}
	}
	r.wantState.Store(true)
	// The first file is begun at once, so that a directory that cannot be written to is found out now.
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	go r.write()
	return r, nil
}

// Stats is what has been done so far. It may be called from anywhere.
func (r *Recorder) Stats() RecorderStats {
	s := &r.stats
	return RecorderStats{s.steps.Load(), s.dropped.Load(), s.bytes.Load(), s.failures.Load(), s.disk.Load()}
}

// WantsState asks, before the step of a tick, for a checkpoint of the brain as it is then.
func (r *Recorder) WantsState() bool {
	if r == nil || r.next != nil {
		return false
	}
	switch since := r.seen - r.stateAt; {
	case r.wantState.Load(), !r.hasState, since >= r.o.StateEvery:
		return true
	default:
		return r.broken && since >= retryAfter
	}
}

// State takes a checkpoint, which fill appends to the slice it is given.
func (r *Recorder) State(fill func([]byte) []byte) {
	c := r.take(r.free)
	if c == nil {
		return // the step would be dropped as well
	}
	c.state, c.hasState = fill(c.state[:0]), true
	r.next = c
	r.wantState.Store(false)
	r.stateAt, r.hasState, r.broken = r.seen, true, false
	r.held = false // a new file may begin here, which knows nothing of the decision so far
}

// take gets memory for a step, or nil if all is in use.
func (r *Recorder) take(from chan *capture) *capture {
	if r.o.Wait {
		return <-from
	}
	select {
	case c := <-from:
		return c
	default:
		return nil
	}
}

// Audit takes outcomes that belong to no step. They go with the next one.
func (r *Recorder) Audit(outcomes []knob.Outcome) {
	if r == nil {
		return
	}
	for i := range outcomes {
		if len(r.audit) < maxAudit {
			r.audit = append(r.audit, outcomeOf(&outcomes[i], true))
		}
	}
}

// Classes takes outcomes of resctrl. They go with the next step that is recorded.
func (r *Recorder) Classes(outcomes []knob.ClassOutcome) {
	if r == nil {
		return
	}
	for i := range outcomes {
		c := &outcomes[i]
		o := knob.Outcome{Old: c.Old, New: c.New, Result: c.Result, Err: c.Err}
		o.Cgroup, o.Owner, o.Rule, o.Pod, o.Victim = c.Group, c.Owner, c.Rule, c.Pod, c.Victim
		if len(r.audit) < maxAudit {
			out := outcomeOf(&o, false)
			out.Resource = c.Resource
			r.audit = append(r.audit, out)
		}
	}
}

// maxAudit bounds what is kept for the next step while steps are dropped.
const maxAudit = 4096

func outcomeOf(o *knob.Outcome, audit bool) Outcome {
	out := Outcome{Want: o.Want, Old: o.Old, New: o.New, Result: o.Result, Audit: audit}
	if o.Err != nil {
		out.Err = o.Err.Error()
	}
	return out
}

// Step records a step. d is ignored if there was no policy.
func (r *Recorder) Step(snap *signal.Snapshot, p *policy.Compiled, d *decide.Decision, outcomes []knob.Outcome) {
	if r == nil {
		return
	}
	r.seen = snap.Now
	c := r.next
	r.next = nil
	if c == nil {
		// After a hole, an event is about a tick that is not there.
		if snap.Trigger == signal.Event && r.missed > 0 {
			r.drop()
			return
		}
		from := r.free
		if snap.Trigger == signal.Event {
			from = r.spare
		}
		if c = r.take(from); c == nil {
			r.drop()
			return
		}
	}
	c.take(r, snap)
	c.step = Step{Snapshot: &c.snap, Policy: p, Dropped: r.missed, Digest: c.step.Digest[:0], Outcomes: c.step.Outcomes[:0], quiet: snap.Trigger == signal.Event}
	if c.hasState {
		c.step.State, c.hasState = c.state, false
	}
	if p != nil {
		c.decide(r, d)
	}
	c.step.Outcomes = append(c.step.Outcomes, r.audit...)
	r.audit, r.missed = r.audit[:0], 0
	for i := range outcomes {
		c.step.Outcomes = append(c.step.Outcomes, outcomeOf(&outcomes[i], false))
	}
	r.stats.steps.Add(1)
	r.queue <- c // there is room for all captures
}

func (r *Recorder) drop() {
	r.missed++
	r.broken = true
	r.stats.dropped.Add(1)
}

// take copies the snapshot. Pods are shared: nobody changes them.
func (c *capture) take(r *Recorder, snap *signal.Snapshot) {
	c.snap = *snap
	if n := len(snap.Events); cap(c.events) < n {
		c.events = append(c.events[:cap(c.events)], make([]signal.WaitEvent, n-cap(c.events))...)
	}
	c.events = c.events[:len(snap.Events)]
	for i := range snap.Events {
		r.event.Copy(unsafe.Pointer(&c.events[i]), unsafe.Pointer(&snap.Events[i]))
	}
	c.snap.Events = c.events
	r.node.Copy(unsafe.Pointer(&c.node), unsafe.Pointer(&snap.Node))
	c.snap.Node = c.node
	c.snap.Containers = nil
	if snap.Trigger == signal.Event {
		return // they are those of the last tick
	}
	if n := len(snap.Containers); cap(c.cont) < n {
		c.cont = append(c.cont[:cap(c.cont)], make([]signal.ContainerSample, n-cap(c.cont)+n/8)...)
	}
	c.cont = c.cont[:len(snap.Containers)]
	for i := range snap.Containers {
		to, from := &c.cont[i], &snap.Containers[i]
		buckets, blame, domains := to.Wait.Buckets, to.Wait.Blame, to.RDT.Domains
		*to = *from
		to.Wait.Buckets = append(buckets[:0], from.Wait.Buckets...)
		to.Wait.Blame = append(blame[:0], from.Wait.Blame...)
		to.RDT.Domains = append(domains[:0], from.RDT.Domains...)
	}
	c.snap.Containers = c.cont
}

// decide copies what is new of the decision.
func (c *capture) decide(r *Recorder, d *decide.Decision) {
	c.step.Digest = r.digester.Digest(c.step.Digest, d)
	for i := range r.digester.fields {
		f := &r.digester.fields[i]
		if f.kept && (!r.held || c.step.Digest[i] != r.digest[i]) {
			f.t.Copy(unsafe.Add(unsafe.Pointer(&c.decision), f.offset), unsafe.Add(unsafe.Pointer(d), f.offset))
		}
	}
	c.step.Decision = c.decision
	r.digest, r.held = append(r.digest[:0], c.step.Digest...), true
}

// Close writes what is queued and ends the file. The loop must have ended.
func (r *Recorder) Close() error {
	if r == nil {
		return nil
	}
	close(r.queue)
	<-r.done
	return r.closeErr
}

// write is the recorder's goroutine.
func (r *Recorder) write() {
	defer close(r.done)
	idle := time.NewTicker(r.flushEvery())
	defer idle.Stop()
	for {
		select {
		case c, ok := <-r.queue:
			if !ok {
				r.closeErr = r.end()
				return
			}
			r.append(c)
			r.give(c)
		case <-idle.C:
			r.tidy()
		}
	}
}

// give gives memory back.
func (r *Recorder) give(c *capture) {
	if c.event {
		r.spare <- c
	} else {
		r.free <- c
	}
}

func (r *Recorder) flushEvery() time.Duration {
	if d := r.o.Writer.FrameEvery; d > 0 {
		return 2 * d
	}
	return 2 * time.Second
}

// append writes a step, to a new file if it is time for one.
func (r *Recorder) append(c *capture) {
	s := &c.step
	if r.w == nil || r.turn && s.State != nil {
		if err := r.reopen(s); err != nil {
			r.fail(err)
		}
	}
	if r.w == nil {
		r.lost++
		r.stats.dropped.Add(1)
		return
	}
	s.Dropped += r.lost
	if err := r.w.Append(s); err != nil {
		r.lost = s.Dropped + 1
		r.stats.dropped.Add(1)
		r.fail(err)
		return
	}
	r.lost = 0
	r.account()
	if !r.turn && (r.w.Size() >= r.o.FileBytes || r.o.wall().Sub(r.began) >= r.o.FileEvery) {
		r.turn = true
		r.wantState.Store(true)
	}
}

// reopen ends the present file, if there is one, and begins the next, with the step that has a checkpoint.
func (r *Recorder) reopen(s *Step) error {
	if r.w == nil {
		if r.o.wall().Before(r.down) {
			return nil // a checkpoint would be made in vain
		}
		if s.State == nil {
			r.wantState.Store(true)
			return nil
		}
		return r.begin()
	}
	if err := r.end(); err != nil {
		return err
	}
	return r.begin()
}

func (r *Recorder) begin() error {
	now := r.o.wall()
	if err := r.dir.expire(now); err != nil {
		return err
	}
	f, err := r.dir.create(fileName(now, r.run, r.part))
	if err != nil {
		return err
	}
	info := r.o.Info
	info.Run, info.Part, info.Started = r.run, r.part, now
	w, err := NewWriter(f, info, r.o.Writer)
	if err != nil {
		return errors.Join(err, f.done())
	}
	r.part++
	r.file, r.w, r.began, r.turn = f, w, now, false
	if r.failed {
		r.failed = false
		r.log.Info("recording goes on", "file", f.Name())
	}
	r.account()
	return nil
}

// end closes the present file.
func (r *Recorder) end() error {
	if r.w == nil {
		return nil
	}
	err := r.w.Close()
	r.account()
	err = errors.Join(err, r.file.done())
	r.w, r.file, r.turn = nil, nil, false
	return err
}

// tidy writes what has been waiting while nothing came.
func (r *Recorder) tidy() {
	if r.w == nil {
		return
	}
	if err := r.w.Flush(); err != nil {
		r.fail(err)
	}
	if err := r.dir.expire(r.o.wall()); err != nil {
		r.log.Warn("recordings that are too old", "error", err)
	}
	r.account()
}

// fail gives the file up. Another is begun after a while.
func (r *Recorder) fail(err error) {
	r.stats.failures.Add(1)
	if !r.failed {
		r.failed = true
		r.log.Error("recording has failed and is tried again", "every", retryAfter, "error", err)
	}
	if r.file != nil {
		_ = r.file.done() // there is one failure to tell already
	}
	r.w, r.file, r.turn = nil, nil, false
	r.down = r.o.wall().Add(retryAfter)
}

func (r *Recorder) account() {
	written := r.dir.bytes
	if r.file != nil {
		written += r.file.size
		r.stats.bytes.Add(uint64(r.file.size - r.file.counted))
		r.file.counted = r.file.size
	}
	r.stats.disk.Store(written)
}
