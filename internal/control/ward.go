package control

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
)

// Online pods: where the CPI of each comes to rest, and ways of the cache that one may have for itself.
//
// A verdict is about a window of a fraction of a second, and windows scatter; a fence that has been widened by that cannot tell a pod that
// rests at its baseline from one that rests just inside of what was promised. The mean over seconds can. It blames nobody: it only holds
// back what those are given who are known to hurt the pod, and leads to one further experiment, ways of its own.

// ward is an online pod.
type ward struct {
	pod  int
	key  string
	rest rest
	held uint64 // bytes of cache that it held while it was well; 0: not known

	n       int           // ways of its own; 0: none
	at      time.Duration // when it got them
	seen    bool          // the effect was looked at
	before  uint64        // where it rested then
	traffic uint64        // what those who are known to hurt it moved then, MB/s
	need    time.Duration // when it was last in want of cache
	busy    time.Duration // when those who are known to hurt it last moved a noticeable part of that
	keep    time.Duration // how long it keeps them without need
	pause   time.Duration // not again before

	unmet unmet
	push  push
	prior uint64 // where it rested when another got ways of its own
}

const (
	// ownFor is how long an online pod keeps ways of its own without need, for a start. It doubles each time that this turns out to
	// be premature, up to pauseMax.
	ownFor = time.Minute
	// restMemory is how far back the mean goes.
	restMemory = 30 * time.Second
	// leastWant is how many misses beyond what is normal are worth something, MPKI in thousandths.
	leastWant = 100
)

// push is a step that was taken from a pod because a ward rested too high.
type push struct {
	open     bool
	pod      uint32 // PodID
	resource resource
	from, to int
	before   uint64        // where the ward rested
	pause    time.Duration // not again before
}

// rest is the means of an online pod since anything was last changed.
type rest struct {
	from, last     time.Duration // of readings
	weight         uint64        // CPU use in thousandths, summed over readings
	cpi            uint64        // thousandths of the baseline, weighted
	misses, normal uint64        // MPKI and its baseline, weighted
}

// add takes in a reading.
func (r *rest) add(now time.Duration, ev *judge.CPIEvidence) {
	switch {
	case r.weight == 0:
		r.from = now
	case now-r.from >= restMemory:
		r.from = now - restMemory/2
		r.weight, r.cpi, r.misses, r.normal = r.weight/2, r.cpi/2, r.misses/2, r.normal/2
	}
	r.last = now
	r.weight += ev.MilliCPU
	r.cpi += ev.MilliCPU * (ev.CPI * 1000 / ev.CPIBaseline)
	r.misses += ev.MilliCPU * ev.MPKI
	r.normal += ev.MilliCPU * ev.MPKIBaseline
}

// mean is CPI in thousandths of the baseline; 0: nothing was seen yet.
func (r *rest) mean() uint64 {
	if r.weight == 0 {
		return 0
	}
	return r.cpi / r.weight
}

// long reports whether enough was seen to act on it.
func (r *rest) long(in *Input) bool { return r.weight > 0 && r.last-r.from >= in.Spec.RDT.Hold.D() }

// starved reports whether it misses more than is normal, by more than a twentieth.
func (r *rest) starved() bool {
	return r.misses*20 > r.normal*21 && r.misses-r.normal >= leastWant*r.weight
}

// aim is where CPI is to come to rest, in thousandths of the baseline: half of the promised rise, so that scatter does not break the promise.
func aim(in *Input) uint64 { return 1000 + uint64(in.Spec.Objectives.CPIRisePercent*10)/2 }

// worth is from where on a further experiment is worth it: half of that again.
func worth(in *Input) uint64 { return 1000 + uint64(in.Spec.Objectives.CPIRisePercent*10)/4 }

// high is where a pod does not rest for long without something being done: where a single window would be watched.
func high(in *Input) uint64 {
	return 1000 + uint64(in.Spec.Objectives.CPIRisePercent*10)*uint64(in.Spec.Judge.WatchPercent)/100
}

// settle takes in where online pods are, once the last change can be seen in a whole window.
func (c *RDT) settle(in *Input) {
	if !c.shows(in) {
		return
	}
	for i := range in.Verdicts {
		v := &in.Verdicts[i]
		w := c.wards[v.Pod]
		if v.Axis != judge.Cache || v.Level == judge.Unknown || v.Reason == judge.FewSamples || w == nil || v.CPI.CPIBaseline == 0 {
			continue
		}
		w.rest.add(in.Now, &v.CPI)
		w.held = v.CPI.OccupancyBaseline
	}
}

// shows reports whether the last change is so long ago that a whole window is of what came after.
func (c *RDT) shows(in *Input) bool {
	return in.Now-c.stirred >= in.Spec.RDT.Cooldown.D()+in.Spec.Judge.CPI.Window.D()
}

// stir forgets where pods rest: something changes now.
func (c *RDT) stir(in *Input) {
	c.stirred = in.Now
	for _, w := range c.wards {
		if w != nil {
			w.rest = rest{}
		}
	}
}

// tight reports whether somebody whom p is known to hurt rests so near to what was promised, or is about to get ways of its own, that p is given
// nothing now. After a long time it is, all the same: what is normal may have moved.
func (c *RDT) tight(in *Input, p *sharer) bool {
	if in.Now-c.stirred >= slowHarm {
		return false
	}
	for i := range p.pairs {
		if p.pairs[i].belief <= beliefStart {
			continue
		}
		at, ok := in.Judge.PodIndex(p.pairs[i].victim)
		if !ok || c.wards[at] == nil {
			continue
		}
		if w := c.wards[at]; w.rest.mean() > aim(in) || c.lacks(in, w) {
			return true
		}
	}
	return false
}

// relieve gives ways of its own to a pod that does not come to rest near its baseline for want of cache, although those who are known to take
// it have as few ways as can be. What other online pods fill of the cache counts against it as well, and only this helps against that.
func (c *RDT) relieve(in *Input) {
	if c.trying() != nil {
		return // one experiment at a time
	}
	for _, w := range c.wards {
		if w != nil && w.rest.long(in) && c.lacks(in, w) {
			c.own(in, w)
			return
		}
	}
}

// press takes one more step from a pod that is held back, where somebody whom it is known to hurt rests high, though inside of the fence: from the
// one that has most left. If that does not help, it is given back.
func (c *RDT) press(in *Input) {
	for _, w := range c.wards {
		switch {
		case w == nil || !w.rest.long(in) || c.trying() != nil:
		case w.push.open:
			c.weighPush(in, w)
		case !c.pushing() && w.rest.mean() > high(in):
			c.pushOn(in, w)
		}
	}
}

func (c *RDT) pushOn(in *Input, w *ward) {
	r := bandwidth
	if w.rest.starved() {
		r = ways
	}
	var most *sharer
	for _, p := range c.pods {
		if p == nil || p.idle || p.proven(in.PodID[w.pod]) == nil || p.limit[r].n == 0 {
			continue
		}
		if p.onTrial() || p.unmet.on {
			return // see first what that does
		}
		if in.Now < w.push.pause && !p.limit[r].ascent.grown {
			continue // that did not help the last time; but what it has grown into since is another matter
		}
		if c.left(in, p, r) && (most == nil || p.limit[r].n > most.limit[r].n) {
			most = p
		}
	}
	if most == nil {
		return
	}
	l, mean := &most.limit[r], w.rest.mean()
	to := lowerMB(in, l.n)
	switch {
	case l.ascent.grown:
		to = int(l.ascent.before)
	case r == ways:
		to = c.division.fit(l.n - 1)
	}
	if to == 0 || to >= l.n {
		return
	}
	w.push = push{open: true, pod: in.PodID[most.pod], resource: r, from: l.n, to: to, before: mean}
	l.ascent.grown = true // as if it had been grown into: it is where the ward does not live well
	pause := l.relapse(in)
	c.note(in, most, r, Note{Rule: RulePress, Victim: w.key, Pause: pause, Text: "its CPI rests at " + milli(mean) + " of normal"}, to)
	l.cut, l.ascent.grown, l.victim, most.lastCut = in.Now, false, w.key, in.Now
	c.set(in, most, r, to, RulePress)
	c.warn(in, most, r, in.PodID[w.pod])
}

// weighPush looks at what a step more has done.
func (c *RDT) weighPush(in *Input, w *ward) {
	t := &w.push
	t.open = false
	after := w.rest.mean()
	if after <= aim(in) || over(after, 1000)*100 <= over(t.before, 1000)*uint64(100-in.Spec.RDT.Verify.ImprovePercent) {
		return
	}
	t.pause = in.Now + in.Spec.RDT.Verify.BackoffMax.D()
	p := c.byID[t.pod]
	if p == nil || p.limit[t.resource].n != t.to {
		return
	}
	c.note(in, p, t.resource, Note{Rule: RuleTakeBack, Victim: w.key, Pause: in.Spec.RDT.Verify.BackoffMax.D(),
		Text: "CPI rests at " + milli(after) + " of normal after " + milli(t.before)}, t.from)
	p.lastCut = in.Now // a while before anything more is given
	c.set(in, p, t.resource, t.from, RuleTakeBack)
}

// pushing reports whether it is to be seen yet what a step more does.
func (c *RDT) pushing() bool {
	for _, w := range c.wards {
		if w != nil && w.push.open {
			return true
		}
	}
	return false
}

// trying is the pod whose ways of its own are an experiment; nil if none is under way.
func (c *RDT) trying() *ward {
	for _, w := range c.wards {
		if w != nil && w.n > 0 && !w.seen {
			return w
		}
	}
	return nil
}

// lacks reports whether a pod could do with ways of its own, and can have them.
func (c *RDT) lacks(in *Input, w *ward) bool {
	if w.n > 0 || in.Now < w.pause || w.rest.weight == 0 || !w.rest.starved() || w.rest.mean() <= worth(in) {
		return false
	}
	spent, trial := c.spent(in, w)
	return spent && !trial && c.room(in, w) > 0
}

// spent reports whether those who are known to hurt a pod, and are there, have as few ways as can be; trial: an experiment with one of them is
// under way.
func (c *RDT) spent(in *Input, w *ward) (spent, trial bool) {
	for _, p := range c.pods {
		if p == nil || p.idle || p.proven(in.PodID[w.pod]) == nil {
			continue
		}
		if n := p.limit[ways].n; n == 0 || n > c.division.floor {
			return false, false
		}
		spent, trial = true, trial || p.onTrial()
	}
	return spent, trial
}

// pressing is what those move who are known to hurt a pod, MB/s.
func (c *RDT) pressing(in *Input, w *ward) (sum uint64) {
	for _, p := range c.pods {
		if p != nil && p.proven(in.PodID[w.pod]) != nil {
			n, _ := in.Judge.PodMBps(p.pod)
			sum += n
		}
	}
	return sum
}

// protected gives the victim of a verdict ways of its own once all that is known to hurt it, and all that is blamed now, has as few ways as can
// be: next to what bandwidth and cores cost those, that costs nobody anything. It reports whether the verdict is dealt with so.
func (c *RDT) protected(in *Input, v *judge.Verdict, named []judge.Share) bool {
	w := c.wards[v.Pod]
	if v.Axis != judge.Cache || w == nil {
		return false
	}
	if w.n > 0 {
		w.need = in.Now
		return !w.seen // see first what they do
	}
	for _, s := range named {
		if p := c.pods[s.Pod]; p != nil && p.limit[ways].n != c.division.floor {
			return false
		}
	}
	spent, trial := c.spent(in, w)
	if spent && trial { // what was done for it, or for others, may be enough
		return c.room(in, w) > 0 && in.Now >= w.pause && in.Now-v.Since < 2*in.Spec.RDT.Verify.After.D()
	}
	return spent && c.claim(in, v)
}

// deserve gives the victim of a verdict ways of its own if offline pods have nothing at all left to give.
func (c *RDT) deserve(in *Input, v *judge.Verdict) {
	if v.Axis == judge.Cache && c.wards[v.Pod] != nil && in.Now-v.Since >= in.Spec.RDT.Verify.After.D() {
		c.claim(in, v)
	}
}

// claim has the victim of a verdict get ways of its own, if it has none and none are on trial.
func (c *RDT) claim(in *Input, v *judge.Verdict) bool {
	w := c.wards[v.Pod]
	w.need, w.held = in.Now, v.CPI.OccupancyBaseline
	if w.n > 0 || c.trying() != nil {
		return false
	}
	if w.rest.weight == 0 {
		w.rest.add(in.Now, &v.CPI)
	}
	c.own(in, w)
	return w.n > 0
}

// own gives an online pod as many ways of its own as it needs, if that is known and there is room for it.
func (c *RDT) own(in *Input, w *ward) {
	n := c.room(in, w)
	if n == 0 || in.Now < w.pause {
		return
	}
	w.n, w.at, w.seen, w.before, w.traffic, w.busy = n, in.Now, false, w.rest.mean(), c.pressing(in, w), in.Now
	w.keep = max(w.keep, ownFor)
	for _, o := range c.wards {
		if o != nil {
			o.prior = o.rest.mean()
		}
	}
	c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCache, Rule: RuleOwnWays, Pod: w.key, To: Grant{Ways: n}, Text: "CPI " + milli(w.before) + " of normal"})
	c.settled = false
	c.stir(in)
}

// room is how many ways of its own a pod can have: as many as it held while it was well, or none (0). With fewer it would be worse off than with
// a part of all. Others live here, too: a quarter of all ways is nobody's own.
func (c *RDT) room(in *Input, w *ward) int {
	if !in.Spec.RDT.Cache.OnlineOwn || !c.able(in, ways) {
		return 0
	}
	d := &c.division
	n, left := ceilWays(in, w.held), d.all-max(d.floor, ceil(d.all, 4)+d.alone)
	for _, o := range c.wards {
		if o != nil {
			left -= o.n
		}
	}
	if n = max(n, in.Node.RDT.MinWays); w.held == 0 || n > left {
		return 0
	}
	return n
}

// protect looks after those who have ways of their own.
func (c *RDT) protect(in *Input) {
	for _, w := range c.wards {
		if w == nil || w.n == 0 {
			continue
		}
		if moves := c.pressing(in, w); moves > 0 && moves*idlePart >= w.traffic {
			w.busy = in.Now
		}
		age := in.Now - w.at
		switch {
		case !in.Spec.RDT.Cache.OnlineOwn || !c.able(in, ways):
			c.disown(in, w, RulePolicy, "policy or machine changed")
		case w.unmet.on: // they are not there yet
		case !w.seen && age >= 2*in.Spec.RDT.Verify.After.D() && in.Now-w.need < in.Spec.RDT.Cooldown.D():
			c.renounce(in, w, "it did not help")
		case !w.seen && w.rest.long(in):
			c.weighOwn(in, w)
		case !w.seen && age >= restMemory:
			w.seen = true // it does nothing, or is not seen: nothing can be said
		case in.Now-max(w.need, w.busy, w.at) >= w.keep:
			w.keep = min(2*w.keep, max(pauseMax, ownFor))
			c.disown(in, w, RuleOwnEnd, "not needed for long")
		}
	}
}

// weighOwn looks at what ways of its own have done for a pod and to others.
func (c *RDT) weighOwn(in *Input, w *ward) {
	w.seen = true
	if after := w.rest.mean(); after > worth(in) && over(after, 1000)*100 > over(w.before, 1000)*uint64(100-in.Spec.RDT.Verify.ImprovePercent) {
		c.renounce(in, w, "it did not help: CPI "+milli(after)+" of normal after "+milli(w.before))
		return
	}
	for _, o := range c.wards {
		if o == nil || o == w {
			continue
		}
		if now := o.rest.mean(); now > aim(in) && now > o.prior+aim(in)-1000 && o.rest.starved() {
			c.renounce(in, w, "it took from "+o.key+": CPI "+milli(now)+" of normal after "+milli(o.prior))
			return
		}
	}
}

// makeWay takes back ways that somebody has to itself, if a victim misses more than is normal and no offline pod can be cut for it. It reports
// whether that was so.
func (c *RDT) makeWay(in *Input, v *judge.Verdict) bool {
	if v.Axis != judge.Cache || v.CPI.MPKI <= v.CPI.MPKIFence {
		return false
	}
	for _, w := range c.wards {
		if w != nil && w.n > 0 && w.pod != v.Pod {
			c.renounce(in, w, c.names[v.Pod]+" needs them")
			return true
		}
	}
	return false
}

// renounce takes back ways of a pod's own that did no good, for long.
func (c *RDT) renounce(in *Input, w *ward, why string) {
	w.pause = in.Now + in.Spec.RDT.Verify.BackoffMax.D()
	c.disown(in, w, RuleOwnEnd, why)
}

func (c *RDT) disown(in *Input, w *ward, rule, why string) {
	c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCache, Rule: rule, Pod: w.key, From: Grant{Ways: w.n}, Text: why})
	w.n, c.settled = 0, false
	c.stir(in)
}
