package agent

import (
	"errors"
	"fmt"
	"os"
	ossignal "os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/actuate"
	"github.com/qos-agent/qos-agent/internal/clos"
	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// The real-time thread's budget. A tick of a node with a thousand containers takes a few milliseconds; a loop that uses a fifth of
// a CPU for a second has gone wrong, or has been told to tick every 10 ms on a node that is too big for that.
const (
	budget        = 0.2
	budgetPeriod  = time.Second
	budgetPenalty = 10 * time.Second
)

// roundsEvery is the time between two looks at held knobs for changes by others, and at what /readyz says.
const roundsEvery = time.Second

// adoptFor is how long what a killed agent held stays while nobody tells which pods there are. A pod that was frozen must not stay
// so for as long as the container runtime is dead.
const adoptFor = time.Minute

// lookEvery is the time between two looks at who is waiting right now, if the bound of a long wait is not longer. A wait is accounted when
// it ends, which may take much longer than a tick.
const lookEvery = 10 * time.Millisecond

// maxEventsAStep bounds the work of a step when the kernel reports faster than the loop decides.
const maxEventsAStep = 64

// loop is what belongs to the loop's goroutine alone.
type loop struct {
	*Agent
	guard   sched.Guard
	rtError error // why the thread is not in the real-time class

	policy policyState
	decide *decide.State
	last   decide.Decision // of the last tick

	snapshot   *signal.Snapshot // of the last tick
	event      ebpf.Event       // reused
	bound      time.Duration    // of a wait that has not ended; 0: nobody looks
	looked     time.Duration    //
	watched    bool             // the kernel looks, and tells
	told       bool             // it has told, and who it is has not been asked yet
	complained bool             // that something about this does not work
	waiting    []ebpf.Event     // reused
	refused    []signal.Refusal // since the last tick
	rounds     time.Duration

	baselinesAt time.Duration // when they were last handed over
	began       time.Duration
	listed      bool // the collector has had a list of pods
	acting      bool // plans are carried out: the last tick has shown the pods, or it has been waited for them for too long

	connected   bool // to the pod source, when it last called
	disconnects uint64

	asked       time.Duration // when the last state was made
	lastState   kept[server.State]
	lastMetrics kept[server.Metrics]

	windows windows
	writes  [knob.NumKinds][knob.NumResults]uint64

	classWrites [len(classResources)][knob.NumResults]uint64
	classNotes  map[clos.Note]bool // what was last said of the plan of classes
}

// policyState is the policy in force and how it came to be.
type policyState struct {
	compiled *policy.Compiled // nil: there is none, nothing is wanted
	loaded   time.Time
	reloadOK bool
	reloadAt time.Time
	errors   []string
	reloads  uint64
	failures uint64
}

func newLoop(a *Agent) *loop {
	l := &loop{
		Agent:      a,
		decide:     decide.New(),
		classNotes: map[clos.Note]bool{},
		began:      a.o.Clock.Now(),
		guard: sched.Guard{
			Budget: budget, Period: budgetPeriod, Penalty: budgetPenalty,
			Promote: sched.Realtime,
			CPU:     sched.ThreadCPU,
		},
	}
	l.baselinesAt = l.began
	if a.o.Baselines != nil {
		if err := l.decide.SetBaselines(a.o.Baselines); err != nil {
			a.o.Log.Warn("what an earlier run has learned is not used", "error", err)
		}
	}
	l.connected = a.o.Source.Status().Connected
	l.adopt(a.o.Policy, a.o.Clock.Wall())
	return l
}

// run is the loop. It returns when the agent is to stop and everything has been put back.
func (l *loop) run() error {
	l.takeCPU()
	l.report()
	l.diary(decisionlog.Entry{Kind: decisionlog.KindAgent, Message: "the agent " + l.o.Version + " begins, mode " + string(l.mode())})
	l.noteInForce(l.policy.compiled)
	for !l.stop.Load() {
		ready, err := l.poller.Wait(l.nextLook())
		if err != nil {
			return errors.Join(err, l.restore())
		}
		// The hurt come first: an event must not wait for a tick that is due at the same time.
		if ready.Extra {
			l.onEvents()
		}
		l.look()
		if ready.Alarm {
			l.step(l.o.Collector.Event())
		}
		if ready.Ticks > 0 {
			l.onTick(ready.Ticks)
		}
		if ready.Woken {
			l.onMail()
		}
		if err := l.guard.Check(l.o.Clock.Now()); err != nil {
			l.o.Log.Warn("scheduling class of the loop", "class", l.guard.Class(), "reason", err)
		}
	}
	return l.restore()
}

// takeCPU puts the thread into the real-time class if that is wanted and allowed.
func (l *loop) takeCPU() {
	tid := unix.Gettid()
	l.guard.Demote = func() error { return sched.Ordinary(tid, sched.OwnNice) }
	xcpu := make(chan os.Signal, 1)
	ossignal.Notify(xcpu, unix.SIGXCPU)
	go l.interrupt(xcpu)
	if !l.o.Realtime {
		l.rtError = errors.New("turned off by --no-realtime")
		l.guard.Promote = func() error { return l.rtError }
	}
	if err := l.guard.Start(l.o.Clock.Now()); err != nil {
		l.rtError = err
		l.o.Log.Warn("the loop runs as an ordinary thread and will react later on a saturated node", "reason", err)
	}
}

// interrupt takes the thread out of the real-time class in the middle of what it does, when the kernel says that it has run for too
// long without a pause. Without that, the kernel would soon kill the agent.
func (l *loop) interrupt(xcpu chan os.Signal) {
	defer ossignal.Stop(xcpu)
	for {
		select {
		case <-l.ended:
			return
		case <-xcpu:
			if err := l.guard.Interrupt(); err != nil {
				l.o.Log.Error("the loop has run for too long without a pause and cannot leave the real-time class", "error", err)
				continue
			}
			l.o.Log.Warn("the loop has run for too long without a pause and is an ordinary thread for a while")
		}
	}
}

// onTick takes the regular step.
func (l *loop) onTick(due uint64) {
	start := l.o.Clock.Now()
	l.o.Instruments.Ticks.Add(1)
	l.o.Instruments.Overruns.Add(due - 1)
	l.snapshot = l.o.Collector.Tick()
	l.snapshot.Refused, l.refused = l.refused, nil
	if l.acting && l.o.Classes != nil {
		l.snapshot.Refused = l.o.Classes.Unmet(l.snapshot.Refused)
	}
	l.mayAct(start)
	if l.o.Recorder.WantsState() {
		l.o.Recorder.State(l.decide.Checkpoint)
	}
	l.step(l.snapshot)
	l.scanClasses()
	l.windows.add(l.snapshot)
	if start-l.rounds >= roundsEvery {
		l.rounds = start
		found := l.o.Executor.Audit()
		l.record(found)
		l.o.Recorder.Audit(found)
		l.auditClasses()
		l.report()
		l.shareBaselines(start)
		l.lastState, l.lastMetrics = kept[server.State]{}, kept[server.Metrics]{}
	}
	end := l.o.Clock.Now()
	l.ticked.Store(int64(end))
	l.o.Instruments.Tick.Observe(end - start)
}

// mayAct decides at a tick whether plans are carried out. What a killed agent held stays until a tick shows what it was held for;
// a step for an event must not come before that, because its plan is about the pods of the tick before.
func (l *loop) mayAct(now time.Duration) {
	switch {
	case l.acting:
	case l.listed:
		l.acting = true
	case now-l.began >= adoptFor:
		l.acting = true
		if n := l.o.Executor.Adopted(); n > 0 {
			text := fmt.Sprintf("nobody has told for %v which pods there are: what a killed agent held is put back", adoptFor)
			l.diary(decisionlog.Entry{Kind: decisionlog.KindPods, Message: text})
			l.o.Log.Warn(text, "knobs", n, "error", l.o.Source.Status().Error)
		}
	}
}

// onEvents takes a step for the long waits that the kernel has reported.
func (l *loop) onEvents() {
	var first time.Duration
	n := 0
	for n < maxEventsAStep {
		ok, err := l.o.Tracer.ReadEvent(&l.event)
		if err != nil {
			l.o.Log.Warn("read events", "error", err)
			break
		}
		if !ok {
			break
		}
		if l.event.GoesOn {
			l.told = true
			continue
		}
		if n == 0 {
			first = l.event.At
		}
		l.o.Collector.AddEvent(&l.event)
		n++
	}
	if n == 0 {
		return
	}
	l.o.Instruments.Events.Add(uint64(n))
	if l.snapshot == nil {
		return // the first tick, which knows the node, will have them
	}
	if l.step(l.o.Collector.Event()) {
		l.o.Instruments.Reaction.Observe(l.o.Clock.Now() - first)
	}
}

// lookPeriod is the time between two looks at who is waiting; 0: nobody looks.
func (l *loop) lookPeriod() time.Duration {
	if l.bound == 0 {
		return 0
	}
	return max(lookEvery, l.bound)
}

// nextLook is how long the loop may sleep until it has to look who is waiting; 0: for ever.
func (l *loop) nextLook() time.Duration {
	if l.bound == 0 || l.watched {
		return 0
	}
	return max(time.Millisecond, l.looked+l.lookPeriod()-l.o.Clock.Now())
}

// dueToLook tells whether it is time to look who is waiting.
func (l *loop) dueToLook() bool {
	switch {
	case l.bound == 0 || l.snapshot == nil:
		return false
	case l.watched:
		return l.told
	}
	return l.o.Clock.Now()-l.looked >= l.lookPeriod()-time.Millisecond
}

// look takes a step for long waits that have not ended.
func (l *loop) look() {
	if !l.dueToLook() {
		return
	}
	l.told, l.looked = false, l.o.Clock.Now()
	var err error
	if l.waiting, err = l.o.Tracer.Waiting(l.bound, l.waiting[:0]); err != nil {
		l.complain("look who waits", err)
		l.bound = 0 // until the next tick, which tries again
		return
	}
	if len(l.waiting) == 0 {
		return
	}
	for i := range l.waiting {
		l.o.Collector.AddEvent(&l.waiting[i])
	}
	l.o.Instruments.Events.Add(uint64(len(l.waiting)))
	if l.step(l.o.Collector.Event()) {
		l.o.Instruments.Reaction.Observe(l.o.Clock.Now() - l.waiting[0].At)
	}
}

// step decides and acts, and reports whether something was written.
func (l *loop) step(s *signal.Snapshot) (wrote bool) {
	if l.policy.compiled == nil {
		l.setBounds(policy.Objectives{}, nil)
		outcomes := l.o.Executor.Apply(nil, actuate.Policy{})
		wrote = l.record(outcomes)
		wrote = l.declassify() || wrote
		l.o.Recorder.Step(s, nil, nil, outcomes)
		return wrote
	}
	d := l.decide.Step(s, l.policy.compiled)
	if s.Trigger == signal.Tick {
		l.last = d
		l.setBounds(d.Spec.Objectives, d.Class) // a window of the policy may have opened or closed
	}
	var outcomes []knob.Outcome
	if l.acting {
		outcomes = l.o.Executor.Apply(d.Plan, actuate.Policy{Edits: d.Spec.Safety.ExternalEdits})
		wrote = l.record(outcomes, d.Notes...)
		wrote = l.classify(&d) || wrote
	}
	for i := range d.Notes {
		l.note(s.Seq, &d.Notes[i], d.Spec.Mode)
	}
	if err := l.poller.SetAlarm(d.Wake); err != nil {
		l.o.Log.Warn("alarm", "error", err)
	}
	l.o.Recorder.Step(s, l.policy.compiled, &d, outcomes) // last: the write must not wait for it
	return wrote
}

// setBounds sets which waits are worth an event: single ones, and, unless those are turned off, too many beyond the objective. Waits that
// have not ended are looked for where somebody can suffer and somebody can be held back.
func (l *loop) setBounds(o policy.Objectives, class []policy.Class) {
	if l.o.Tracer == nil {
		return
	}
	often := o.CPUWaitP99.D()
	if o.CPUWaitEvent == 0 {
		often = 0
	}
	l.o.Tracer.SetBounds(o.CPUWaitEvent.D(), often)
	l.bound = 0
	if slices.Contains(class, policy.Online) && slices.Contains(class, policy.Offline) {
		l.bound = o.CPUWaitEvent.D()
	}
	var err error
	if l.watched, err = l.o.Tracer.Watch(l.lookPeriod()); err != nil {
		l.complain("the agent looks itself who waits, which costs it more", err)
	}
}

// complain says once that waits that go on are not seen as they should be.
func (l *loop) complain(what string, err error) {
	if !l.complained {
		l.complained = true
		l.o.Log.Warn(what, "error", err)
	}
}

// onMail takes what other goroutines have left.
func (l *loop) onMail() {
	if m := l.policyMail.Swap(nil); m != nil {
		l.onPolicyMail(m)
	}
	if l.podsChanged.Swap(false) {
		l.onPodsChanged()
	}
	l.report()
	for range maxQuestions {
		select {
		case answer := <-l.questions:
			answer(l)
		default:
			return
		}
	}
}

// noteInForce enters a policy into the decision log, which the next one's readers want to compare with.
func (l *loop) noteInForce(p *policy.Compiled) {
	l.diary(decisionlog.Entry{Kind: decisionlog.KindPolicy, New: p.ID(), Message: "policy " + p.Name() + " is in force"})
}

// onPolicyMail takes a new policy, keeps the last good one if the new one is bad, and drops it if there is none any more.
func (l *loop) onPolicyMail(m *policyMail) {
	p := &l.policy
	p.reloadAt, p.reloadOK, p.errors = m.at, m.err == nil, nil
	switch {
	case m.err == nil && p.compiled != nil && m.policy.ID() == p.compiled.ID():
		p.reloads++
	case m.err == nil:
		l.adopt(m.policy, m.at)
		l.noteInForce(m.policy)
		l.o.Log.Info("policy in force", "policy", m.policy.Name(), "id", m.policy.ID())
	case errors.Is(m.err, policy.ErrNoPolicy):
		p.failures++
		p.errors = lines(m.err)
		if p.compiled != nil {
			l.diary(decisionlog.Entry{Kind: decisionlog.KindPolicy, Old: p.compiled.ID(), Message: "the policy was removed: everything is put back"})
		}
		p.compiled = nil
		l.last = decide.Decision{}
		l.setPods() // there are no victims any more
		l.o.Log.Error("no policy: everything is put back and nothing is judged", "error", m.err)
	default:
		p.failures++
		p.errors = lines(m.err)
		l.diary(decisionlog.Entry{Kind: decisionlog.KindPolicy, Message: "a new policy is refused, the last good one stays: " + p.errors[0]})
		l.o.Log.Error("new policy refused, the last good one stays in force", "error", m.err)
	}
}

// adopt puts a policy into force. It acts from the next tick on.
func (l *loop) adopt(c *policy.Compiled, at time.Time) {
	if l.o.Mode != "" {
		c = c.WithMode(l.o.Mode)
	}
	p := &l.policy
	p.compiled, p.loaded, p.reloadAt, p.reloadOK, p.errors = c, at, at, true, nil
	p.reloads++
	l.setPods()
}

// onPodsChanged takes a new list, and counts how often the source was lost.
func (l *loop) onPodsChanged() {
	connected := l.o.Source.Status().Connected
	if l.connected && !connected {
		l.disconnects++
		l.diary(decisionlog.Entry{Kind: decisionlog.KindPods, Message: "the pod source is lost: " + l.o.Source.Status().Error})
	}
	l.connected = connected
	l.setPods()
}

// setPods tells the collector which pods there are, and which of them are online and to be watched as victims.
func (l *loop) setPods() {
	if !l.listed && l.o.Source.Status().LastSuccess.IsZero() {
		return
	}
	l.listed = true
	l.o.Collector.SetPods(l.o.Source.Pods(), l.online)
	if l.o.Classes != nil {
		l.o.Classes.Pods(l.o.Source.Pods())
	}
}

func (l *loop) online(p *signal.Pod) bool {
	if l.policy.compiled == nil {
		return false
	}
	class, _ := l.policy.compiled.Classify(decide.Subject(p))
	return class == policy.Online
}

// restore puts everything back. That may take long and nobody waits for it: not in the real-time class.
func (l *loop) restore() error {
	if err := l.guard.Leave(); err != nil {
		l.o.Log.Warn("scheduling class of the loop", "class", l.guard.Class(), "reason", err)
	}
	outcomes := l.o.Executor.RestoreAll()
	l.record(outcomes)
	l.o.Recorder.Audit(outcomes)
	groups, classErrs := l.restoreClasses()
	if b := l.decide.Baselines(); len(b.Workloads) > 0 {
		l.baselines <- &b // waits for the writer, for there is no next time
	}
	l.diary(decisionlog.Entry{Kind: decisionlog.KindAgent, Message: fmt.Sprintf("the agent ends: %d knobs were put back, %d resctrl groups removed", len(outcomes), groups)})
	errs := classErrs
	for _, o := range outcomes {
		if o.Err != nil {
			errs = append(errs, fmt.Errorf("put back %s of %s: %w", o.Kind, o.Cgroup, o.Err))
		}
	}
	return errors.Join(errs...)
}

// record counts outcomes, logs those worth it with what led to them, and reports whether a knob was written because of the plan.
func (l *loop) record(outcomes []knob.Outcome, why ...control.Note) (wrote bool) {
	for i := range outcomes {
		o := &outcomes[i]
		l.writes[o.Kind][o.Result]++
		l.refusal(o)
		e := decisionlog.Entry{
			Kind: decisionlog.KindWrite, Owner: o.Owner, Rule: o.Rule, Pod: o.Pod, Victim: o.Victim, Cgroup: o.Cgroup, Knob: o.Kind.String(),
			Old: o.Old, New: o.New, Result: o.Result.String(),
		}
		if at := slices.IndexFunc(why, func(n control.Note) bool { return n.Pod == o.Pod && n.Owner == o.Owner && n.From != n.To }); at >= 0 {
			e.Inputs = inputs(&why[at])
		}
		switch o.Result {
		case knob.Written:
			wrote = true
		case knob.Gone: // normal: groups come and go
			continue
		case knob.Restored:
		default:
			l.o.Log.Warn("knob", "pod", o.Pod, "group", o.Cgroup, "knob", o.Kind, "result", o.Result, "old", o.Old, "new", o.New, "error", o.Err)
			if o.Err != nil {
				e.Message = o.Err.Error()
			}
		}
		l.diary(e)
	}
	return wrote
}

// refusal keeps for the next tick what a controller has to know: that what it wants is not so.
func (l *loop) refusal(o *knob.Outcome) {
	r := signal.Refusal{Cgroup: o.Cgroup, Knob: o.Kind.String()}
	switch {
	case o.Owner != control.OwnerCPU:
		return
	case (o.Result == knob.Failed || o.Result == knob.Mismatch) && o.Err != nil:
		r.Reason = o.Err.Error()
	case o.Result == knob.Yielded && o.Kind != knob.CPUIdle: // who takes the posture back means it
		r.Reason = "someone else has set it"
	default:
		return
	}
	l.refused = append(l.refused, r)
}

// note logs a decision.
func (l *loop) note(seq uint64, n *control.Note, mode policy.Mode) {
	text := n.String()
	e := decisionlog.Entry{
		Seq: seq, Kind: decisionlog.KindDecision, Owner: n.Owner, Rule: n.Rule, Pod: n.Pod, Victim: n.Victim, Inputs: inputs(n), Message: text,
	}
	if n.From != n.To {
		e.Old, e.New = n.From.String(), n.To.String()
	}
	if mode == policy.Observe {
		e.Result = "observed" // it would have been done
	}
	l.diary(e)
	l.o.Log.Info("decision", "rule", n.Rule, "pod", n.Pod, "victim", n.Victim, "text", text)
}

// inputs are the figures that a decision rests on; nil if there are none.
func inputs(n *control.Note) *decisionlog.Inputs {
	in := decisionlog.Inputs{
		WaitSeconds: n.Wait.Seconds(), BeforeSeconds: n.Before.Seconds(), ObjectiveSeconds: n.Objective.Seconds(),
		ShareRatio: permille(n.Permille), Belief: n.Belief, PauseSeconds: n.Pause.Seconds(),
	}
	if in == (decisionlog.Inputs{}) {
		return nil
	}
	return &in
}

// diary hands an entry to the decision log, stamped with the time, the step and the policy in force.
func (l *loop) diary(e decisionlog.Entry) {
	e.At = l.o.Clock.Wall()
	if e.Seq == 0 && l.snapshot != nil {
		e.Seq = l.snapshot.Seq
	}
	if l.policy.compiled != nil {
		e.Policy = l.policy.compiled.ID()
	}
	l.o.Decisions.Add(e)
}

func lines(err error) []string {
	var list policy.ErrorList
	if !errors.As(err, &list) || len(list) == 0 {
		return []string{err.Error()}
	}
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.Error()
	}
	return out
}
