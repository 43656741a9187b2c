package control

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
)

// Blame is checked by intervention: a cut is an experiment on the pair of victim and pod, and what the victim's waits do after it says
// whether the pod was to blame. The waits after the cut are tallied apart from the judge's window, which still holds those before it.

// pair is what experience says of one pod hurting one victim.
type pair struct {
	victim   uint32 // PodID
	belief   int    // 0 to 100: how sure we are that cutting the pod helps the victim
	failures int    // cuts in a row that did not
	until    time.Duration
	helped   bool   // the present grant is what keeps the victim well
	trial    *trial // nil: none is open
}

const (
	beliefStart = 50
	beliefMax   = 100
	// extensions is how often a trial that says nothing is prolonged before it counts as refuted.
	extensions = 2
	// patience is how many times Verify.After a trial waits for enough waits to look at.
	patience = 3
)

// trial is an open experiment.
type trial struct {
	container uint32        // ContainerID of the victim
	from      Grant         // what the pod had before
	rung      policy.Rung   // of the first step; "": it joined another's cut
	cut       time.Duration // the last step down, or the start of an extension
	seen      time.Duration // WaitSample.At of the newest sample looked at
	first     bool          // no further step was taken since it was opened

	before    time.Duration // p99 before the cut
	contended bool          // before was beyond the objective: there is something to improve
	share     int           // of the victim's wait that the pod had before, in thousandths
	expected  int           // by how much the wait should fall if all open blame of this victim is right, in thousandths
	due       time.Duration // when it is to be looked at
	rate      rate          // waits over time before the cut
	events    rate          // single long waits over time before the cut
	extended  int

	after       judge.Tally   // waits since the cut
	afterSpan   time.Duration // the time that they cover
	afterEvents uint64
}

// rate is a count over a time.
type rate struct {
	n    uint64
	span time.Duration
}

// times reports whether r is at least num/den times o. Rates over no time are equal to all.
func (r rate) times(o rate, num, den uint64) bool {
	return r.n*den*ms(o.span) >= o.n*num*ms(r.span)
}

// ms keeps products inside 64 bits.
func ms(d time.Duration) uint64 { return uint64(max(0, d) / time.Millisecond) }

// pair finds or makes the pair of p and a victim.
func (p *offline) pair(victim uint32) *pair {
	for i := range p.pairs {
		if p.pairs[i].victim == victim {
			return &p.pairs[i]
		}
	}
	p.pairs = append(p.pairs, pair{victim: victim, belief: beliefStart, until: never})
	return &p.pairs[len(p.pairs)-1]
}

// onTrial reports whether any experiment with p is open.
func (p *offline) onTrial() bool {
	for i := range p.pairs {
		if p.pairs[i].trial != nil {
			return true
		}
	}
	return false
}

// restart makes all experiments with p begin anew at a further step down.
func (p *offline) restart(in *Input) {
	for i := range p.pairs {
		if t := p.pairs[i].trial; t != nil && t.cut != in.Now {
			t.first = false
			t.anew(in.Now, in.Spec.CPU.Verify.After.D())
		}
	}
}

// anew forgets what was seen so far.
func (t *trial) anew(now, after time.Duration) {
	t.cut, t.due = now, now+after
	t.after.Reset()
	t.afterSpan, t.afterEvents = 0, 0
}

// open begins an experiment: the pod had from until it was cut at cut.
func (c *CPU) open(in *Input, p *offline, pr *pair, k complaint, from Grant, cut time.Duration) {
	if !in.Acting {
		return // nothing is really cut, so there is nothing to learn
	}
	t := &trial{}
	if n := len(c.spare); n > 0 {
		t, c.spare = c.spare[n-1], c.spare[:n-1]
	}
	c.trials++
	r, _ := in.Judge.Read(k.container)
	t.container, t.from, t.rung, t.first, t.extended = in.ContainerID[k.container], from, "", true, 0
	t.seen = in.Containers[k.container].Wait.At
	t.before, t.rate, t.events = r.P99, rate{r.Samples, r.Window}, rate{r.Events, max(r.Window, in.Spec.Judge.Window.D()/2)}
	t.contended = in.beyond(t.before)
	t.share, t.expected = k.permille, 0
	t.anew(cut, in.Spec.CPU.Verify.After.D())
	pr.trial = t
}

// beyond reports whether a p99 is beyond the objective.
func (in *Input) beyond(p99 time.Duration) bool {
	o := in.Spec.Objectives.CPUWaitP99.D()
	return o > 0 && p99 > o
}

// close ends a pair's experiment, if one is open, without saying anything.
func (c *CPU) close(pr *pair) {
	if pr.trial == nil {
		return
	}
	c.trials--
	c.spare = append(c.spare, pr.trial)
	pr.trial = nil
}

// count takes a single long wait into the experiments of its victim.
func (c *CPU) count(in *Input, f *judge.Finding) {
	if c.trials == 0 {
		return
	}
	id := in.ContainerID[f.Victim]
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for i := range p.pairs {
			if t := p.pairs[i].trial; t != nil && t.container == id && f.Began >= t.cut {
				t.afterEvents++
			}
		}
	}
}

// stillHurt reports whether the victim is known to be beyond its objective after the last cut. With too few waits to tell, the judge's
// window, by then all after the cut, has to do.
func (c *CPU) stillHurt(in *Input, t *trial) bool {
	if t.after.Total() >= uint64(in.Spec.Judge.MinSamples) {
		return in.beyond(t.after.P99())
	}
	return in.Now-t.cut >= in.Spec.Judge.Window.D()
}

// verify goes through the open experiments.
func (c *CPU) verify(in *Input) {
	if c.trials == 0 {
		return
	}
	c.expect(in)
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for i := range p.pairs {
			pr := &p.pairs[i]
			if pr.trial == nil {
				continue
			}
			if c.watch(in, pr.trial) {
				c.conclude(in, p, pr)
			} else {
				c.close(pr)
			}
		}
	}
}

// expect works out, for each victim, what the open experiments together should do for it: a pod that had a fifth of the wait and lost
// half of its CPUs should bring a tenth. What several small culprits promise together is what the victim has to show.
func (c *CPU) expect(in *Input) {
	c.promised = append(c.promised[:0], make([]int, len(in.Containers))...)
	for pass := range 2 {
		for _, p := range c.pods {
			if p == nil {
				continue
			}
			for i := range p.pairs {
				t := p.pairs[i].trial
				if t == nil {
					continue
				}
				at, ok := in.Judge.Index(t.container)
				if !ok {
					continue
				}
				if pass == 0 {
					c.promised[at] += t.share * c.lost(in, p, t.from) / 1000
				} else {
					t.expected = max(t.expected, c.promised[at])
				}
			}
		}
	}
}

// lost is how much of its CPUs p has lost since it had from, in thousandths. The idle and freeze rungs count as all of them.
func (c *CPU) lost(in *Input, p *offline, from Grant) int {
	if p.grant.Frozen || p.grant.Idle && !from.Idle {
		return 1000
	}
	had, has := c.cpuTime(in, p, from), c.cpuTime(in, p, p.grant)
	if has >= had {
		return 0
	}
	return int((had - has) * 1000 / had)
}

// watch takes in the victim's new waits. ok is false when the victim's container is gone.
func (c *CPU) watch(in *Input, t *trial) (ok bool) {
	at, ok := in.Judge.Index(t.container)
	if !ok {
		return false
	}
	s := &in.Containers[at].Wait
	if s.At == 0 || s.At == t.seen {
		return true
	}
	t.seen = s.At
	switch {
	case s.At-s.Span >= t.cut:
		t.after.Add(s.Buckets)
		t.afterSpan += s.Span
	case t.first && !t.contended && s.At > t.cut:
		// The trouble had just begun when an event led to the cut, so the window showed nothing of it yet. The sample that
		// straddles the cut does.
		c.scratch.Reset()
		c.scratch.Add(s.Buckets)
		if p99 := c.scratch.P99(); c.scratch.Total() >= uint64(in.Spec.Judge.MinSamples) && in.beyond(p99) {
			t.before, t.contended = p99, true
		}
	}
	return true
}

// conclude ends an experiment when it is time and there is enough to see.
func (c *CPU) conclude(in *Input, p *offline, pr *pair) {
	t, o := pr.trial, &in.Spec.CPU.Verify
	if in.Now < t.due {
		return
	}
	age := in.Now - t.cut
	if t.after.Total() < uint64(in.Spec.Judge.MinSamples) {
		if age >= patience*o.After.D() {
			c.close(pr)
		}
		return
	}

	// A small cut of a small culprit cannot do much. It has to show half of what it promises, and is looked at for longer.
	required := o.ImprovePercent * 10
	small := t.expected < required
	if small {
		required = t.expected / 2
	}
	p99, left := t.after.P99(), uint64(1000-required)
	now := rate{t.after.Total(), t.afterSpan}
	inside := !in.beyond(p99)
	fewer := t.afterEvents == 0 || !rate{t.afterEvents, age}.times(t.events, left, 1000)
	better := uint64(p99)*1000 <= uint64(t.before)*left
	busier := !t.rate.times(now, 2, 3)  // the victim itself does more than 3/2 of what it did
	quieter := !now.times(t.rate, 1, 2) // or less than half
	switch {
	case inside && quieter:
		c.close(pr) // well, but perhaps only because it does less
	case inside && (t.contended || fewer), t.contended && better:
		c.prove(in, p, pr, p99)
	case t.extended < extensions && (busier || !t.contended):
		// Nothing can be said: the victim's own load grew, or there is no measure of how bad it was before. From here on there is.
		t.extended++
		t.before, t.contended, t.rate, t.events = p99, !inside, now, rate{t.afterEvents, age}
		t.anew(in.Now, o.After.D())
	case t.extended < extensions && small:
		t.extended++
		t.due = in.Now + o.After.D()
	default:
		c.refute(in, p, pr, p99)
	}
}

// prove ends an experiment that helped.
func (c *CPU) prove(in *Input, p *offline, pr *pair, p99 time.Duration) {
	// Not to zero: where the waits swing by themselves, proof comes by chance now and then, and must not wipe out what many
	// failures have taught.
	pr.failures, pr.helped = max(0, pr.failures-1), true
	pr.belief += (beliefMax - pr.belief + 1) / 2
	p.owed, p.owing = Grant{}, false
	c.note(in, p, c.result(in, pr, Note{Rule: RuleProven, To: p.grant, Wait: p99}))
	c.close(pr)
}

// refute ends an experiment that did not help: the cut is taken back, unless another victim has one open or lives by it.
func (c *CPU) refute(in *Input, p *offline, pr *pair, p99 time.Duration) {
	o := &in.Spec.CPU.Verify
	pause := o.BackoffMin.D()
	for range min(pr.failures, 30) {
		pause = min(2*pause, o.BackoffMax.D())
	}
	pr.failures++
	pr.belief /= 2
	pr.helped = false
	pr.until = in.Now + pause

	if !p.owing || pr.trial.from.compare(p.owed) > 0 {
		p.owed, p.owing = pr.trial.from, true
	}
	n := c.result(in, pr, Note{Rule: RuleTakeBack, To: p.grant, Wait: p99, Pause: pause})
	c.close(pr)
	if p.needed() {
		n.Text = "kept for another victim"
		c.note(in, p, n)
		return
	}
	back := c.fit(in, p, p.owed)
	p.owed, p.owing = Grant{}, false
	if back.compare(p.grant) <= 0 {
		back = p.grant
	}
	n.To = back.lift(policy.RungFreeze)
	c.note(in, p, n)
	p.ascent.grown = false
	c.set(p, n.To, RuleTakeBack)
}

// needed reports whether some victim still has a claim on the present grant of p.
func (p *offline) needed() bool {
	for i := range p.pairs {
		if p.pairs[i].trial != nil || p.pairs[i].helped {
			return true
		}
	}
	return false
}

// result fills in what a note about the end of an experiment says.
func (c *CPU) result(in *Input, pr *pair, n Note) Note {
	if at, ok := in.Judge.PodIndex(pr.victim); ok {
		n.Victim = in.Pods[at].Key()
	}
	n.Before, n.Belief, n.Objective = pr.trial.before, pr.belief, in.objective(false)
	return n
}
