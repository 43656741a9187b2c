package control

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// OwnerCPU is the name of the CPU controller as the owner of knobs.
const OwnerCPU = "cpu"

const (
	// probation is the least time after a step back up in which a new complaint is taken as that step's doing.
	probation = 5 * time.Second
	// slowHarm is how long a level that was bad once must be good before that is forgotten.
	slowHarm = 5 * time.Minute
	// pauseMax bounds the pause after a level that turned out to hurt, and the pause between two freezes.
	pauseMax = 15 * time.Minute
	// absolution is how many times Hold a pod must have had no noticeable part in anybody's trouble to grow although somebody is
	// in trouble: otherwise two online pods that hurt each other would hold all offline work down for good.
	absolution = 3
	// refusedMin is the first pause after a rung that could not be written; it doubles, up to pauseMax.
	refusedMin = time.Minute
	// crowd is how many long waits in the judge's window are no accident, whatever share of all waits they are.
	crowd = 3
	// noticeable is the share of a wait, in thousandths, from which a pod has a part in it.
	noticeable = 50

	// never is a time that is long ago for every clock, and far enough from the smallest value not to overflow.
	never = time.Duration(math.MinInt64 / 4)
)

// CPU is the CPU controller. The zero value is ready.
//
// Offline pods have a standing posture (SCHED_IDLE or least weight), so that the kernel itself reacts within microseconds; Katalyst
// has that as an option, we as the rule. What the posture does not cure is cut down a ladder: whole cores first, which leaves an idle
// buffer (PerfIso: a buffer of idle cores is what keeps tails short), then CPU time, then, where the policy says so, moments in the
// freezer. As in Heracles and all its descendants cuts are immediate and large, and returns slow and small.
//
// Who is cut comes from the judge. Whether that was right is found out by intervention: if the victim is not better off after the
// cut, the cut is taken back, and that pair of victim and pod is left alone for an exponentially growing time. No peer does this
// online; CPI² and kguardian stop at naming.
//
// A level that brought trouble back is remembered and tried again after a pause that doubles, so that constant load comes to rest
// instead of probing the same edge for ever (the tick-wise growth of koordlet's BE suppression flaps there; its issue 1103).
type CPU struct {
	machine machine
	pods    []*offline          // by index into Pods; nil for what is not offline
	byID    map[uint32]*offline // by PodID

	suffering time.Duration // when somebody online was last in trouble that others may have made
	unknown   time.Duration // when somebody online was last unknown
	blind     blindness
	skipped   []string // what was already said to be impossible

	trials int      // how many are open
	spare  []*trial // for use again
	frozen int      // how many pods are

	contended bool // somebody's waits are beyond the objective for others' sake, as of the last survey
	active    bool // some pod may be held back, or kept from a level that was bad

	settled bool          // Wants, and all grants, are as they were when Wants was last called, as far as basis says
	basis   basis         // what Wants went by
	retry   time.Duration // when the first idle rung that was refused may be tried again; 0: there is none
	narrow  int           // how many pods Wants keeps to some of their cores

	scratch  judge.Tally
	notes    []Note
	sorted   []int    // scratch of guard
	promised []int    // scratch of expect
	groups   []string // scratch of limited
}

// offline is what is remembered of one offline pod.
type offline struct {
	pod     int    // index into Pods
	key     string // "namespace/name"
	blocked string // why it must not be touched; "": it may
	noCores string // why its cores cannot be cut, as was said last

	grant  Grant
	rule   string // that led to grant
	victim string // for whose sake

	lastCut   time.Duration
	blamed    time.Duration // of the last cut for somebody's wait, not on another controller's plea
	beforeCut Grant         // what it had before lastCut
	named     time.Duration
	ascent    ascent[Grant]
	ice       ice

	refused [len(rungs)]refusal // by index into rungs
	within  cpuset.Set          // what it was allowed when Wants last made a mask of its cores ...
	alike   bool                // ... and whether that was the same for all of its containers

	ownLimit int64 // thousandths of a CPU: limit of its own before we set one; 0: none
	pairs    []pair
	owed     Grant // what refuted cuts would have given back had not another victim needed them
	owing    bool
}

// refusal is a rung that the kernel, or whoever else writes there, did not let us have.
type refusal struct {
	until time.Duration // not again before
	wait  time.Duration // the pause, doubled each time
}

// rungs in the order of ladders, and the knob of each.
var rungs = [...]struct {
	rung policy.Rung
	knob knob.Kind
}{{policy.RungIdle, knob.CPUIdle}, {policy.RungCPUs, knob.CPUSet}, {policy.RungQuota, knob.CPUQuota}, {policy.RungFreeze, knob.Freeze}}

// idleRung is the first of rungs.
const idleRung = 0

// ice is the state of the freezer.
type ice struct {
	thaw  time.Duration // when it ends, while frozen
	next  time.Duration // not again before
	count int           // freezes since the pod last grew
}

// complaint is a reason to cut a pod.
type complaint struct {
	rule      string
	container int           // victim, index into Containers
	wait      time.Duration // its p99 or the single wait
	permille  int           // the pod's share
	event     bool
	often     bool          // events: it is one of too many that exceed the objective
	ongoing   bool          // events: the wait has not ended
	began     time.Duration // events: when the wait began
}

// outcome is what became of a complaint.
type outcome uint8

const (
	done      outcome = iota // the pod was cut
	waiting                  // an earlier cut has not had time to show its effect
	backedOff                // cutting this pod did not help this victim before
	exhausted                // there is nothing left to take
)

// Notes is what the last step did.
func (c *CPU) Notes() []Note { return c.notes }

// Grant is how far the pod at index i is held below the posture.
func (c *CPU) Grant(i int) Grant {
	if i < len(c.pods) && c.pods[i] != nil {
		return c.pods[i].grant
	}
	return Grant{}
}

// Blamed is when the pod of this PodID was last cut for somebody's wait; long ago if it never was.
func (c *CPU) Blamed(id uint32) time.Duration {
	if p := c.byID[id]; p != nil {
		return p.blamed
	}
	return never
}

// Wake is when the next step is wanted at the latest; 0: no wish.
func (c *CPU) Wake() time.Duration {
	wake := time.Duration(0)
	if c.frozen == 0 {
		return wake
	}
	for _, p := range c.pods {
		if p != nil && p.grant.Frozen && (wake == 0 || p.ice.thaw < wake) {
			wake = p.ice.thaw
		}
	}
	return wake
}

// Step takes one step.
func (c *CPU) Step(in *Input) {
	c.notes = c.notes[:0]
	hotplug := c.machine.update(&in.Node.Topology)
	if in.Changed {
		c.sync(in)
	}
	if in.Changed || hotplug {
		c.settled = false
	}
	c.concede(in)
	if c.active && (in.Changed || hotplug || in.tick()) {
		c.refit(in)
	}
	if in.Spec.CPU.Posture == policy.PostureIdle && !in.Node.Caps.CPUIdle {
		c.skip(in, "posture idle: the kernel has no cpu.idle; least weight instead")
	}
	c.thaw(in)
	c.hear(in)
	if !in.tick() {
		return
	}
	c.survey(in)
	c.verify(in)
	if c.contended {
		for v := range in.cpuVerdicts {
			c.weigh(in, v)
		}
	}
	c.heed(in)
	if c.active {
		c.regrow(in)
		c.release(in)
	}
}

// heed takes cores from those about whose cache and bandwidth nothing more can be done. Whether that helps is for the one who asked to
// find out: what these pods do to a victim's wait says nothing about it.
func (c *CPU) heed(in *Input) {
	for _, plea := range in.Pleas {
		p := c.pods[plea.Pod]
		if p == nil || p.blocked != "" {
			continue
		}
		p.named = in.Now
		if p.grant.Frozen || in.Now-p.lastCut < in.Spec.CPU.Cooldown.D() {
			continue
		}
		to, rung := c.down(in, p)
		if undo := c.fit(in, p, p.ascent.before); p.ascent.recent(in.Now, probation, p.grant) && undo.compare(p.grant) < 0 {
			to, rung = undo, policy.RungCPUs
		}
		if rung != policy.RungCPUs && rung != policy.RungQuota {
			continue
		}
		n := Note{Rule: RulePlea, Victim: plea.Victim, To: to, CPI: plea.CPI, CPIFence: plea.CPIFence, Permille: plea.Permille, Pause: p.relapse(in)}
		c.note(in, p, n)
		p.beforeCut, p.lastCut, p.ascent.grown, p.victim = p.grant, in.Now, false, plea.Victim
		c.set(p, to, RulePlea)
		p.restart(in)
	}
}

// sync follows pods to their new indexes, and forgets those that are gone or no longer offline: their knobs go back by themselves.
func (c *CPU) sync(in *Input) {
	if c.byID == nil {
		c.byID = make(map[uint32]*offline)
	}
	for _, p := range c.byID {
		p.pod = -1
	}
	c.pods = c.pods[:0]
	for i, id := range in.PodID {
		var p *offline
		if in.Class[i] == policy.Offline {
			p = c.byID[id]
			if p == nil {
				p = &offline{key: in.Pods[i].Key(), lastCut: never, blamed: never, named: never, ascent: ascent[Grant]{at: never}, ice: ice{next: never}}
				c.byID[id] = p
			}
			p.pod = i
			c.prune(in, p)
		}
		c.pods = append(c.pods, p)
	}
	for id, p := range c.byID {
		if p.pod < 0 {
			for i := range p.pairs {
				c.close(&p.pairs[i])
			}
			delete(c.byID, id)
		}
	}
	c.frozen = 0
	for _, p := range c.pods {
		if p != nil && p.grant.Frozen {
			c.frozen++
		}
	}
	c.guard(in)
}

// prune forgets pairs whose victim is gone or no longer online.
func (c *CPU) prune(in *Input, p *offline) {
	kept := p.pairs[:0]
	for _, pr := range p.pairs {
		if at, ok := in.Judge.PodIndex(pr.victim); ok && in.Class[at] == policy.Online {
			kept = append(kept, pr)
		} else {
			c.close(&pr)
		}
	}
	p.pairs = kept
}

// allowed is the CPUs on which a pod may run by the will of others; ok is false if its containers differ in that, as one mask for all
// of them could then widen one.
func allowed(in *Input, pod int) (s cpuset.Set, ok bool) {
	from, to := in.First[pod], in.First[pod+1]
	for i := from; i < to; i++ {
		if i > from && in.Containers[i].CPUs != s {
			return cpuset.Set{}, false
		}
		s = in.Containers[i].CPUs
	}
	return s, true
}

// cores is how many cores a pod has where nobody holds it back; 0: it cannot be cut by cpuset, and why.
func (c *CPU) cores(in *Input, p *offline) (n int, why string) {
	for i := in.First[p.pod]; i < in.First[p.pod+1]; i++ {
		if in.Containers[i].NoCPUSet {
			return 0, "the cpuset controller is not enabled for its group"
		}
	}
	s, ok := allowed(in, p.pod)
	if !ok {
		return 0, "its containers have different CPUs"
	}
	return c.machine.within(s), ""
}

// refit brings every grant inside what policy and machine allow now.
func (c *CPU) refit(in *Input) {
	for _, p := range c.pods {
		if p == nil || p.grant == (Grant{}) {
			continue
		}
		g := c.fit(in, p, p.grant)
		if p.blocked != "" {
			g = Grant{}
		}
		if g != p.grant {
			c.note(in, p, Note{Rule: RulePolicy, To: g, Text: "policy or machine changed"})
			c.set(p, g, RulePolicy)
		}
	}
}

// fit is g with rungs that are no longer on the ladder, or no longer possible, taken out, and with limits raised to the floors.
func (c *CPU) fit(in *Input, p *offline, g Grant) Grant {
	for i := range rungs {
		if r := rungs[i].rung; g.limited(r) && (!slices.Contains(in.Spec.CPU.Ladder, r) || !able(in, r) || p.refuses(in, r)) {
			g = g.lift(r)
		}
	}
	if g.Idle && !idleHelps(in) {
		g.Idle = false
	}
	if g.Cores > 0 {
		g.Cores = max(g.Cores, coreFloor(in))
		if n, _ := c.cores(in, p); n <= coreFloor(in) {
			g.Cores = 0
		}
	}
	if g.MilliCPU > 0 {
		g.MilliCPU = max(g.MilliCPU, quotaFloor(in))
	}
	return g
}

// coreFloor is the least number of cores that a pod keeps.
func coreFloor(in *Input) int { return max(1, in.Spec.CPU.CPUs.Floor) }

// quotaFloor is the least CPU time that a pod keeps, in thousandths of a CPU. The kernel takes no quota under 1 ms.
func quotaFloor(in *Input) int64 {
	q := &in.Spec.CPU.Quota
	period := max(1, int64(q.Period.D()/time.Microsecond))
	return max(int64(q.FloorPercent)*10, (minQuotaUS*1000+period-1)/period)
}

// minQuotaUS is the smallest quota that the kernel accepts, µs.
const minQuotaUS = 1000

// able reports whether the node can do a rung.
func able(in *Input, r policy.Rung) bool {
	switch r {
	case policy.RungCPUs:
		return in.Node.Caps.CPUSet
	case policy.RungQuota:
		return in.Node.Caps.CPUQuota
	case policy.RungFreeze:
		return in.Node.Caps.Freeze
	}
	return true // least weight stands in for cpu.idle
}

// standing is what the posture comes to on this node.
func standing(in *Input) (idle, weight bool) {
	switch in.Spec.CPU.Posture {
	case policy.PostureIdle:
		return in.Node.Caps.CPUIdle, !in.Node.Caps.CPUIdle
	case policy.PostureWeight:
		return false, true
	}
	return false, false
}

// idleHelps reports whether the idle rung is more than the posture already is.
func idleHelps(in *Input) bool {
	idle, weight := standing(in)
	return !idle && (in.Node.Caps.CPUIdle || !weight)
}

// concede takes in what could not be written. Such a rung counts as one that is not there, for this pod and for a while: to hold it up in the
// plan would leave the pod as it is and make the controller believe that it is held back.
func (c *CPU) concede(in *Input) {
	for i := range in.Refused {
		r := &in.Refused[i]
		at := slices.IndexFunc(in.Pods, func(p signal.Pod) bool { return r.Cgroup == p.Cgroup || strings.HasPrefix(r.Cgroup, p.Cgroup+"/") })
		if at < 0 || c.pods[at] == nil {
			continue
		}
		for k := range rungs {
			if rungs[k].knob.String() == r.Knob {
				c.refuse(in, c.pods[at], k, r.Reason)
			}
		}
	}
}

func (c *CPU) refuse(in *Input, p *offline, rung int, reason string) {
	f := &p.refused[rung]
	if in.Now < f.until {
		return // another container of the pod
	}
	f.wait = min(max(2*f.wait, refusedMin), pauseMax)
	f.until = in.Now + f.wait
	c.settled = false
	name := rungs[rung].rung
	to := p.grant.lift(name)
	c.note(in, p, Note{Rule: RuleSkip, To: to, Pause: f.wait, Text: "rung " + string(name) + ": " + reason})
	if to == p.grant {
		return
	}
	// What was to be seen by it will not be seen.
	for i := range p.pairs {
		c.close(&p.pairs[i])
	}
	c.set(p, to, RuleSkip)
}

// refuses reports whether a rung was refused a while ago.
func (p *offline) refuses(in *Input, r policy.Rung) bool {
	for i := range rungs {
		if rungs[i].rung == r {
			return p.refused[i].wait > 0 && in.Now < p.refused[i].until
		}
	}
	return false
}

// thaw ends what has been frozen for long enough, whatever else happens.
func (c *CPU) thaw(in *Input) {
	if c.frozen == 0 {
		return
	}
	for _, p := range c.pods {
		if p == nil || !p.grant.Frozen || in.Now < p.ice.thaw {
			continue
		}
		rest := in.Spec.CPU.Freeze.Max.D()
		for range min(p.ice.count-1, 30) {
			rest = min(2*rest, pauseMax)
		}
		p.ice.next = in.Now + rest
		c.note(in, p, Note{Rule: RuleThaw, To: p.grant.lift(policy.RungFreeze), Pause: rest})
		c.set(p, p.grant.lift(policy.RungFreeze), RuleThaw)
	}
}

// hear acts on long waits at once.
func (c *CPU) hear(in *Input) {
	for i := range in.Findings {
		f := &in.Findings[i]
		if !f.Often && !f.Ongoing && (i == 0 || in.Findings[i-1].Event != f.Event) {
			c.count(in, f)
		}
		if f.Reason != judge.Contention {
			continue
		}
		p := c.pods[f.Culprit]
		if p == nil {
			continue
		}
		p.named = in.Now
		// Several small parts are weaker evidence than a large one: of a single wait they are not enough, and offline pods must
		// be most of it.
		if !f.Joint || f.Often && offlineOfEvent(in, f.Event) >= in.Spec.Judge.CulpritPercent*10 {
			c.cut(in, p, complaint{rule: RuleEventCut, container: f.Victim, wait: f.Wait, permille: f.Permille, event: true, often: f.Often, ongoing: f.Ongoing, began: f.Began})
		}
	}
}

// offlineOfEvent is what the offline pods that an event names have of it, in thousandths.
func offlineOfEvent(in *Input, event int) int {
	sum := 0
	for i := range in.Findings {
		if f := &in.Findings[i]; f.Event == event && f.Culprit >= 0 && in.Class[f.Culprit] == policy.Offline {
			sum += f.Permille
		}
	}
	return sum
}

// survey takes in who is in trouble, who has a part in it, and whether anything is known at all.
func (c *CPU) survey(in *Input) {
	judged, known := 0, 0
	c.contended = false
	for v := range in.cpuVerdicts {
		judged++
		if v.Level == judge.Unknown {
			if unsettling(in, v) {
				c.unknown = in.Now
			}
			continue
		}
		known++
		if in.Now-in.Containers[v.Sample].Wait.At > in.Spec.Judge.Window.D() {
			c.unknown = in.Now // not stale yet, but of the past: nothing is given back on it
		}
		if v.Level == judge.OK || v.Reason.SelfInflicted() {
			continue
		}
		c.suffering, c.contended = in.Now, c.contended || v.Level == judge.Violated && v.Reason == judge.Contention
		for _, s := range concerned(v) {
			if p := c.pods[s.Pod]; p != nil {
				p.named = in.Now
			}
		}
	}

	c.blind.see(in.Now, !in.Node.Caps.RunQueue || judged > 0 && known == 0)
}

// unsettling reports whether an unknown container is a reason to give nothing back: a new one that has not been read yet is not, and
// one that has been unknown for so long that cuts were to be released is not any more.
func unsettling(in *Input, v *judge.Verdict) bool {
	age := in.Now - v.Since
	if v.Reason == judge.Unmeasured && in.Node.Caps.RunQueue && age < in.Spec.Safety.StaleAfter.D() {
		return false
	}
	return age < in.Spec.Safety.ReleaseAfter.D()
}

// weigh cuts the culprits that a verdict names: one step each, and everybody else who is noticeable only when these have nothing left.
func (c *CPU) weigh(in *Input, v *judge.Verdict) {
	if v.Level != judge.Violated || v.Reason != judge.Contention {
		return
	}
	k := complaint{rule: RuleTickCut, container: v.Sample, wait: v.P99}
	named := v.Culprits()
	if v.Joint {
		// Several small parts are weaker evidence than a large one: it has to last, and offline pods must be most of it.
		k.rule = RuleJointCut
		if in.Now-v.Since < in.Spec.CPU.Cooldown.D() || offlinePermille(named) < in.Spec.Judge.CulpritPercent*10 {
			return
		}
	}
	found, spent := 0, 0
	for _, s := range named {
		if p := c.pods[s.Pod]; p != nil {
			k.permille = s.Permille
			found++
			if c.cut(in, p, k) == exhausted {
				spent++
			}
		}
	}
	if found == 0 || spent < found {
		return
	}
	k.rule = RuleWidenCut
	for _, s := range concerned(v)[v.Named:] {
		if p := c.pods[s.Pod]; p != nil {
			k.permille = s.Permille
			c.cut(in, p, k)
		}
	}
}

func offlinePermille(shares []judge.Share) int {
	sum := 0
	for _, s := range shares {
		if s.Class == policy.Offline {
			sum += s.Permille
		}
	}
	return sum
}

// cut takes one step down the ladder with a pod, unless there is a reason not to.
func (c *CPU) cut(in *Input, p *offline, k complaint) outcome {
	s := &in.Spec.CPU
	pr := p.pair(in.PodID[in.Containers[k.container].Pod])
	switch {
	case p.blocked != "":
		return exhausted
	case in.Now < pr.until:
		return backedOff
	case p.grant.Frozen, in.Now-p.lastCut < s.Cooldown.D():
		return waiting
	case k.event && k.began < p.lastCut:
		return waiting // the wait began under the old grant
	case k.single() && p.grant != (Grant{}) && c.bearable(in, pr, k.container):
		return waiting // it is held back already, and the objective is kept: a long wait now and then is no reason to take more
	case !k.event && pr.trial != nil && !c.stillHurt(in, pr.trial):
		return waiting
	case !k.event && pr.trial == nil && in.Now-p.lastCut < in.Spec.Judge.Window.D() && p.grant.compare(p.beforeCut) < 0:
		// Another victim's cut is younger than this verdict's window: see first what it does for this one.
		c.open(in, p, pr, k, p.beforeCut, p.lastCut)
		return waiting
	}

	to, rule := c.fit(in, p, p.ascent.before), RuleRegrowUndo
	if !p.onProbation(in, k) {
		var rung policy.Rung
		if to, rung = c.down(in, p); rung == "" {
			return exhausted
		}
		rule = k.rule
		switch {
		case pr.trial == nil:
			c.open(in, p, pr, k, p.grant, in.Now)
			if pr.trial != nil {
				pr.trial.rung = rung
			}
		case pr.failures > 1 && rung != pr.trial.rung:
			// The whole ladder did not help, and not because the first try had no measure of how bad it was: now each rung
			// has to show that it does something before the next is taken.
			return waiting
		}
	}
	pause := p.relapse(in)
	c.note(in, p, Note{Rule: rule, Victim: in.Pods[in.Containers[k.container].Pod].Key(), To: to, Wait: k.wait, Permille: k.permille,
		Objective: in.objective(k.event && !k.often), Belief: pr.belief, Pause: pause})
	p.beforeCut, p.lastCut, p.blamed, p.ascent.grown = p.grant, in.Now, in.Now, false
	p.victim = in.Pods[in.Containers[k.container].Pod].Key()
	c.set(p, to, rule)
	p.restart(in)
	return done
}

// single reports whether the complaint is about one wait that is over, and says nothing about how many there are.
func (k *complaint) single() bool { return k.event && !k.often && !k.ongoing }

// bearable reports whether a victim's long waits are too few to take more for them. While it is open whether the last cut was enough, three
// in the judge's window are not; once that is settled, the objective decides.
func (c *CPU) bearable(in *Input, pr *pair, container int) bool {
	r, _ := in.Judge.Read(container)
	return !in.beyond(r.P99) && (pr.trial == nil || r.Events < crowd)
}

// objective is the promise that a complaint is about.
func (in *Input) objective(event bool) time.Duration {
	if event {
		return in.Spec.Objectives.CPUWaitEvent.D()
	}
	return in.Spec.Objectives.CPUWaitP99.D()
}

// onProbation reports whether the complaint comes so soon after a step up that this step is to be undone, rather than more be taken.
func (p *offline) onProbation(in *Input, k complaint) bool {
	return !(k.event && k.began < p.ascent.at) && p.ascent.recent(in.Now, max(probation, 2*in.Spec.Judge.Window.D()), p.grant)
}

// relapse is the ascent's, at the pace of CPUs.
func (p *offline) relapse(in *Input) time.Duration {
	return p.ascent.relapse(in.Now, p.grant, in.Spec.CPU.RegrowEvery.D(), in.Spec.CPU.Hold.D())
}

// down is the next step down the ladder, and the rung that it is on; "" at the end.
func (c *CPU) down(in *Input, p *offline) (to Grant, rung policy.Rung) {
	g := p.grant
	s := &in.Spec.CPU
	for _, r := range s.Ladder {
		if !able(in, r) {
			c.skip(in, "rung "+string(r)+": the node cannot do it")
			continue
		}
		if p.refuses(in, r) {
			continue
		}
		switch r {
		case policy.RungIdle:
			if !g.Idle && idleHelps(in) {
				g.Idle = true
				return g, r
			}
		case policy.RungCPUs:
			all, why := c.cores(in, p)
			if why != p.noCores {
				if p.noCores = why; why != "" {
					c.note(in, p, Note{Rule: RuleSkip, To: p.grant, Text: "rung cpus: " + why})
				}
			}
			now := all
			if g.Cores > 0 {
				now = min(g.Cores, all)
			}
			n := now - max(1, ceil(now*s.CPUs.CutPercent, 100))
			n = max(min(n, all-s.CPUs.IdleBuffer), coreFloor(in))
			if n < now {
				g.Cores = n
				return g, r
			}
		case policy.RungQuota:
			now := g.MilliCPU
			if now == 0 {
				now = c.demand(in, p)
			}
			if n := max(now*int64(100-s.Quota.CutPercent)/100, quotaFloor(in)); n < now {
				g.MilliCPU = n
				return g, r
			}
		case policy.RungFreeze:
			if in.Now >= p.ice.next && s.Freeze.Max > 0 {
				p.ice.thaw = in.Now + s.Freeze.Max.D()
				p.ice.count++
				g.Frozen = true
				return g, r
			}
		}
	}
	return g, ""
}

func ceil(a, b int) int { return (a + b - 1) / b }

// capacity is the CPU time that the pod could use without a quota of ours, in thousandths of a CPU.
func (c *CPU) capacity(in *Input, p *offline) int64 {
	g := p.grant
	g.MilliCPU = 0
	return c.cpuTime(in, p, g)
}

// cpuTime is the CPU time that the pod could use under a grant, in thousandths of a CPU. It is at least 1.
func (c *CPU) cpuTime(in *Input, p *offline, g Grant) int64 {
	n := c.machine.set.Len()
	if s, ok := allowed(in, p.pod); ok && n > 0 && (g.Cores > 0 || !s.Empty()) {
		cores := len(c.machine.cores)
		if g.Cores > 0 {
			cores = g.Cores
		}
		n = c.machine.mask(cores, s).Len()
	}
	all := int64(max(1, n)) * 1000
	if p.ownLimit > 0 {
		all = min(all, p.ownLimit)
	}
	if g.MilliCPU > 0 {
		all = min(all, g.MilliCPU)
	}
	return max(all, 1)
}

// demand is where a quota begins: what the pod uses now, since a limit far above that would do nothing, but not less than a CPU,
// since a burst that has just begun shows little use yet, and not more than it could use. A limit of its own is found here, before
// ours hides it.
func (c *CPU) demand(in *Input, p *offline) int64 {
	use, own, unlimited := int64(0), int64(0), false
	for i := in.First[p.pod]; i < in.First[p.pod+1]; i++ {
		s := &in.Containers[i].CPU
		if s.QuotaUS > 0 && s.PeriodUS > 0 {
			// Each is the tighter of the container's and the pod's limit, so the largest is never above the pod's.
			own = max(own, s.QuotaUS*1000/s.PeriodUS)
		} else {
			unlimited = true
		}
		if s.Span > 0 {
			use += int64(s.UsageNS/1000) * 1_000_000 / int64(s.Span)
		}
	}
	p.ownLimit = 0
	if !unlimited {
		p.ownLimit = own
	}
	return min(max(use, 1000), c.capacity(in, p))
}

// up is the next step up: the ladder backwards.
func (c *CPU) up(in *Input, p *offline) Grant {
	g := p.grant
	switch {
	case g.MilliCPU > 0:
		step := int64(c.machine.set.Len()) * int64(in.Spec.CPU.Quota.GrowPercent) * 10
		g.MilliCPU += max(step, 10)
		if g.MilliCPU >= c.capacity(in, p) {
			g.MilliCPU = 0
		}
	case g.Cores > 0:
		g.Cores++
		if all, _ := c.cores(in, p); g.Cores >= all {
			g.Cores = 0
		}
	default:
		g.Idle = false
	}
	return g
}

// regrow gives every pod that is held back one step, if all is well.
func (c *CPU) regrow(in *Input) {
	s := &in.Spec.CPU
	hold := s.Hold.D()
	// The effect of one step must be in the window before the next is taken.
	every := max(s.RegrowEvery.D(), in.Spec.Judge.Window.D())
	if in.Now-c.unknown < hold {
		return
	}
	c.active = false
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		p.ascent.forgive(in.Now, p.grant, p.lastCut)
		c.active = c.active || p.grant != (Grant{}) || p.ascent.wait > 0
		if p.grant == (Grant{}) || p.grant.Frozen || p.onTrial() || in.Now-p.ascent.at < every {
			continue
		}
		quiet := in.Now - max(p.lastCut, p.named)
		if quiet < hold || in.Now-c.suffering < hold && quiet < absolution*hold {
			continue
		}
		to := c.up(in, p)
		if p.ascent.avoids(in.Now, to) {
			continue
		}
		c.note(in, p, Note{Rule: RuleRegrow, To: to})
		p.ascent.step(in.Now, p.grant)
		p.ice.count = 0
		c.set(p, to, RuleRegrow)
	}
}

// release takes everything back to the posture when nothing has been known of anybody for too long: a cut that cannot be justified
// any more is not to stand.
func (c *CPU) release(in *Input) {
	if !c.blind.tooLong(in) {
		return
	}
	for _, p := range c.pods {
		if p != nil && p.grant != (Grant{}) {
			c.note(in, p, Note{Rule: RuleRelease, Text: "no signal of any online container"})
			p.ascent.grown = false
			c.set(p, Grant{}, RuleRelease)
		}
	}
}

// set gives a pod a grant.
func (c *CPU) set(p *offline, g Grant, rule string) {
	if g.Frozen != p.grant.Frozen {
		if g.Frozen {
			c.frozen++
		} else {
			c.frozen--
		}
	}
	p.grant, p.rule = g, rule
	c.settled, c.active = false, true
	if g == (Grant{}) {
		p.victim, p.owed, p.owing = "", Grant{}, false
		for i := range p.pairs {
			p.pairs[i].helped = false
			c.close(&p.pairs[i])
		}
	}
}

// note appends a note about a pod that is about to change.
func (c *CPU) note(in *Input, p *offline, n Note) {
	n.At, n.Owner, n.Pod, n.From = in.Now, OwnerCPU, p.key, p.grant
	if n.Victim == "" {
		n.Victim = p.victim
	}
	c.notes = append(c.notes, n)
}

// skip says once that something which the policy asks for cannot be done.
func (c *CPU) skip(in *Input, what string) {
	if slices.Contains(c.skipped, what) {
		return
	}
	c.skipped = append(c.skipped, what)
	c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCPU, Rule: RuleSkip, Text: what})
}

// basis is what Wants goes by apart from grants.
type basis struct {
	posture      policy.Posture
	period       time.Duration
	idle, nested bool // capabilities
}

func basisOf(in *Input) basis {
	caps := &in.Node.Caps
	return basis{in.Spec.CPU.Posture, in.Spec.CPU.Quota.Period.D(), caps.CPUIdle, caps.NestedLimits}
}

// Settled reports whether Wants would give the same as when it was last called, and Grant the same for every pod: with hundreds of pods, which
// are mostly left as they are, making the list and comparing it would be a large part of a step.
func (c *CPU) Settled(in *Input) bool {
	if !c.settled || c.basis != basisOf(in) || c.retry != 0 && in.Now >= c.retry {
		return false
	}
	if c.narrow == 0 || !in.tick() { // on events containers are as the last tick saw them
		return true
	}
	for i, p := range c.pods {
		if p == nil || p.blocked != "" || p.grant.Cores == 0 {
			continue
		}
		if s, ok := allowed(in, i); ok != p.alike || s != p.within {
			return false
		}
	}
	return true
}

// Wants appends the complete list of what the controller wants.
func (c *CPU) Wants(in *Input, dst []knob.Want) []knob.Want {
	c.settled, c.basis, c.retry, c.narrow = true, basisOf(in), 0, 0
	idle, weight := standing(in)
	period := int64(in.Spec.CPU.Quota.Period.D() / time.Microsecond)
	for i, p := range c.pods {
		if p == nil || p.blocked != "" {
			continue
		}
		w := knob.Want{Owner: OwnerCPU, Pod: p.key, Rule: RulePosture}
		w.Cgroup = in.Pods[i].Cgroup
		switch g := p.grant; {
		case idle && p.refuses(in, policy.RungIdle):
			if until := p.refused[idleRung].until; c.retry == 0 || until < c.retry {
				c.retry = until
			}
			dst = append(dst, want(w, knob.CPUWeight, knob.Value{N: 1}))
		case idle:
			dst = append(dst, want(w, knob.CPUIdle, knob.Value{N: 1}))
		case g.Idle && in.Node.Caps.CPUIdle:
			// Not beside a weight: cpu.idle makes cpu.weight unwritable.
			dst = append(dst, want(p.held(w), knob.CPUIdle, knob.Value{N: 1}))
		case weight:
			dst = append(dst, want(w, knob.CPUWeight, knob.Value{N: 1}))
		case g.Idle:
			dst = append(dst, want(p.held(w), knob.CPUWeight, knob.Value{N: 1}))
		}
		if p.grant == (Grant{}) {
			continue
		}
		w = p.held(w)
		groups := c.limited(in, i)
		if p.grant.Cores > 0 {
			// Never empty: without an allowed CPU that is online there is nothing to say.
			s, ok := allowed(in, i)
			p.within, p.alike = s, ok
			c.narrow++
			if ok {
				if mask := c.machine.mask(p.grant.Cores, s); !mask.Empty() {
					for _, w.Cgroup = range groups {
						dst = append(dst, want(w, knob.CPUSet, knob.Value{CPUs: mask}))
					}
				}
			}
		}
		if p.grant.MilliCPU > 0 {
			quota := max(p.grant.MilliCPU*period/1000/int64(max(1, len(groups))), minQuotaUS)
			for _, w.Cgroup = range groups {
				dst = append(dst, want(w, knob.CPUQuota, knob.Value{N: quota, Period: period}))
			}
		}
		w.Cgroup = in.Pods[i].Cgroup
		if p.grant.Frozen {
			dst = append(dst, want(w, knob.Freeze, knob.Value{N: 1}))
		}
	}
	return dst
}

// limited is the groups at which CPUs and CPU time of a pod are limited: its own, or, where a group may not have less than those in it, its
// containers', which then share its CPU time equally. A limit of the pod would keep a further container that has a limit of its own
// from starting there.
func (c *CPU) limited(in *Input, pod int) []string {
	p := &in.Pods[pod]
	c.groups = c.groups[:0]
	if !in.Node.Caps.NestedLimits {
		for i := in.First[pod]; i < in.First[pod+1]; i++ {
			if g := p.Containers[in.Containers[i].Container].Cgroup; offLimits(g) == "" && !slices.Contains(c.groups, g) {
				c.groups = append(c.groups, g)
			}
		}
	}
	if len(c.groups) == 0 {
		c.groups = append(c.groups, p.Cgroup)
	}
	return c.groups
}

// held is w as something that goes beyond the posture.
func (p *offline) held(w knob.Want) knob.Want {
	w.Rule, w.Victim = p.rule, p.victim
	return w
}

// want is w for one knob.
func want(w knob.Want, k knob.Kind, v knob.Value) knob.Want {
	w.Kind, w.Value = k, v
	return w
}
