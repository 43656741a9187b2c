package control

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// RDT holds offline pods back in the last-level cache and on the memory bus. It is two controllers, cache and bandwidth, with one
// memory of who hurt whom, because only one resource of a culprit is cut at a time: whether a cut helped can only be seen if nothing
// else was done. The zero value is ready.
//
// A verdict names the resource, so that is tried first. If the victim is not better off for it, the cut is taken back and the next
// resource is tried, as in PARTIES (Chen et al., ASPLOS 2019), whose wheel begins anywhere since it has no signal that names one.
// The order is cache, bandwidth, cores: a stream that loses ways loses nothing itself, while the other two cost it speed. Cores are the
// CPU controller's to take (Heracles removes cores in the same case); it is asked to by a Plea.
//
// As with CPUs, cuts are immediate and returns are slow; a level that brought trouble back is remembered and left alone for a time that
// doubles.
type RDT struct {
	pods  []*sharer          // by index into Pods; nil for what is not offline
	byID  map[uint32]*sharer // by PodID
	wards []*ward            // by index into Pods; nil for what is not online
	watch map[uint32]*ward   // by PodID
	names []string           // of pods, by index into Pods
	shut  []bool             // likewise: its group is off limits

	suffering time.Duration // when somebody online was last in trouble that others may have made
	unknown   time.Duration // when somebody online was last unknown
	blind     blindness

	doubted  bool // somebody's limits were not in force in the last tick
	violated bool // somebody's CPI is beyond its fence, as of the last survey
	active   bool // some pod may be held back, on trial, kept from a level that was bad, or have ways of its own

	stirred time.Duration // when a limit or owned ways last changed

	settled bool // limits and owned ways are what they were when Shares was last called
	caps    signal.Capabilities

	terms    terms             // of this step
	division division          // by these terms
	why      [resources]string // likewise, what stands against cutting a resource; "": nothing
	said     [resources]string // of these, what was said last

	notes []Note
	pleas []Plea
}

// terms are all on which it depends what can be cut, and how far.
type terms struct {
	cache     policy.CacheControl
	bandwidth policy.BandwidthControl

	ways, minWays, closids int
	sparse                 bool
	mb                     signal.MBUnits
	allocates              [resources]bool // the node's capabilities
}

// resource is what is cut.
type resource uint8

const (
	ways resource = iota
	bandwidth
	resources

	cores = resources // the CPU controller's; only ever tried, never held here
)

// Names of the two controllers as owners.
const (
	OwnerCache     = "cache"
	OwnerBandwidth = "bandwidth"
)

func (r resource) owner() string { return [...]string{OwnerCache, OwnerBandwidth, OwnerBandwidth}[r] }

// Plea asks the CPU controller to take cores from a pod.
type Plea struct {
	Pod           int    // index into Pods
	Victim        string // "namespace/name"
	CPI, CPIFence uint64 // the victim's, thousandths
	Permille      int    // the pod's share of the blame
}

// sharer is what is remembered of one offline pod.
type sharer struct {
	pod   int
	key   string
	limit [resources]limit
	pairs []sharing

	named   time.Duration // when it last had a part in somebody's trouble
	lastCut time.Duration // of any resource
	traffic uint64        // the most that it moved when it was cut, MB/s; 0: it is not held back, or that is not known
	idle    bool          // it moves next to nothing of that ...
	paused  time.Duration // ... since then
	resumed time.Duration // when it last ceased to be idle
	pleaded time.Duration // when cores were last asked for

	unmet   unmet
	barred  time.Duration // its limits could not be set: no further cut before then
	barWait time.Duration // and how long that was the last time
}

// limit is how far a pod is held back in one resource.
type limit struct {
	n            int    // ways, or percent; 0: not at all
	where        uint64 // domains in which it holds, as in knob.Share; 0: in all
	rule, victim string

	cut    time.Duration
	good   amount // the level at which it is known to have helped; 0: none
	ascent ascent[amount]
}

// sharing is what experience says of one pod hurting one victim in each of the resources.
type sharing struct {
	victim   uint32 // PodID
	belief   int
	failures [resources + 1]int
	until    [resources + 1]time.Duration
	helped   bool // what is held now is what keeps the victim well
	trial    attempt

	looked, near int // since the last step up: how often the victim was looked at, and how often it was watched or worse
}

// attempt is an experiment that is under way.
type attempt struct {
	open      bool
	resource  resource
	from      int           // the limit before
	where     uint64        // and the domains in which it held
	container uint32        // ContainerID of the victim
	cpi       uint64        // the victim's before, thousandths
	use       uint64        // its CPU use before, thousandths of a CPU
	due       time.Duration // when it is to be looked at
	began     time.Duration
	extended  int
}

// Notes is what the last step did.
func (c *RDT) Notes() []Note { return c.notes }

// Pleas is what the last step asks of the CPU controller.
func (c *RDT) Pleas() []Plea { return c.pleas }

// Limits is how far the pod at index i is held back: ways and percent of bandwidth; 0: not at all.
func (c *RDT) Limits(i int) (nways, mb int) {
	if i < len(c.pods) && c.pods[i] != nil {
		p := c.pods[i]
		return p.limit[ways].n, p.limit[bandwidth].n
	}
	return 0, 0
}

// Step takes one step.
func (c *RDT) Step(in *Input) {
	c.notes, c.pleas = c.notes[:0], c.pleas[:0]
	if in.Changed {
		c.sync(in)
	}
	if !in.tick() {
		return
	}
	c.agree(in)
	c.explain(in)
	if c.active {
		c.refit(in)
	}
	c.survey(in)
	if !c.active && !c.violated {
		return // as nearly always: nobody is hurt, and nobody is held back
	}
	c.concede(in)
	c.verify(in)
	c.look(in)
	c.settle(in)
	for i := range in.Verdicts {
		if c.violated {
			c.weigh(in, &in.Verdicts[i])
		}
		c.approach(in, &in.Verdicts[i])
	}
	c.relieve(in)
	c.press(in)
	c.protect(in)
	c.regrow(in)
	c.release(in)
	c.active = c.acting(in)
}

// acting reports whether there is anything for the next step to look after.
func (c *RDT) acting(in *Input) bool {
	for _, w := range c.wards {
		if w != nil && w.n > 0 {
			return true
		}
	}
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for r := range resources {
			if l := &p.limit[r]; l.n != 0 || l.ascent.wait > 0 || l.onProbation(in) {
				return true
			}
		}
		if p.onTrial() {
			return true
		}
	}
	return false
}

// sync follows pods to their new indexes, and forgets those that are gone or no longer what they were.
func (c *RDT) sync(in *Input) {
	if c.byID == nil {
		c.byID, c.watch = make(map[uint32]*sharer), make(map[uint32]*ward)
	}
	for _, p := range c.byID {
		p.pod = -1
	}
	for _, w := range c.watch {
		w.pod = -1
	}
	c.settled = false
	c.pods, c.wards, c.names, c.shut = c.pods[:0], c.wards[:0], c.names[:0], c.shut[:0]
	for i, id := range in.PodID {
		c.names = append(c.names, in.Pods[i].Key())
		c.shut = append(c.shut, offLimits(in.Pods[i].Cgroup) != "")
		var p *sharer
		if in.Class[i] == policy.Offline && !c.shut[i] {
			if p = c.byID[id]; p == nil {
				p = &sharer{key: c.names[i], named: never, lastCut: never, pleaded: never, resumed: never}
				for r := range p.limit {
					p.limit[r].cut, p.limit[r].ascent.at = never, never
				}
				c.byID[id] = p
			}
			p.pod = i
			p.pairs = slices.DeleteFunc(p.pairs, func(s sharing) bool {
				at, ok := in.Judge.PodIndex(s.victim)
				return !ok || in.Class[at] != policy.Online
			})
		}
		c.pods = append(c.pods, p)
		var w *ward
		if in.Class[i] == policy.Online && !c.shut[i] {
			if w = c.watch[id]; w == nil {
				w = &ward{key: c.names[i], pause: never}
				c.watch[id] = w
			}
			w.pod = i
		}
		c.wards = append(c.wards, w)
	}
	maps.DeleteFunc(c.byID, func(_ uint32, p *sharer) bool { return p.pod < 0 })
	maps.DeleteFunc(c.watch, func(_ uint32, w *ward) bool { return w.pod < 0 })
}

// agree works out what policy and machine allow, if that is not known yet or one of them has changed.
func (c *RDT) agree(in *Input) {
	s, r, caps := &in.Spec.RDT, &in.Node.RDT, &in.Node.Caps
	t := terms{cache: s.Cache, bandwidth: s.Bandwidth, ways: r.Ways, minWays: r.MinWays, closids: r.CLOSIDs, sparse: r.SparseMasks, mb: r.MB}
	t.allocates[ways], t.allocates[bandwidth] = caps.CacheAllocation, caps.BandwidthAllocation
	if c.division.floor > 0 && t == c.terms {
		return
	}
	c.terms, c.division = t, divide(in)
	c.why = obstacles(in, &c.division)
}

// able reports whether a resource can be cut here and now.
func (c *RDT) able(in *Input, r resource) bool {
	switch r {
	case ways:
		return in.Spec.RDT.Cache.Enabled && in.Node.Caps.CacheAllocation && c.division.offline > c.division.floor
	case bandwidth:
		return in.Spec.RDT.Bandwidth.Enabled && in.Node.Caps.BandwidthAllocation && floorMB(in) < fullMB
	}
	return false
}

// obstacles is why a controller that the policy wants has nothing to do on this node, or not all that it is told.
func obstacles(in *Input, d *division) (why [resources]string) {
	caps, s, r := &in.Node.Caps, &in.Spec.RDT, &in.Node.RDT
	switch {
	case !s.Cache.Enabled:
	case !caps.CacheAllocation:
		why[ways] = "off: the node cannot partition the cache"
	case d.misfit != "":
		why[ways] = "off: " + d.misfit
	case d.offline <= d.alone:
		why[ways] = fmt.Sprintf("off: offlineWays %v is all that offline pods may fill", s.Cache.OfflineWays)
	case d.offline < r.Ways && d.offline <= d.floor:
		why[ways] = fmt.Sprintf("off: floorWays %d (the machine wants at least %d) leaves nothing to cut of the %d ways that offline pods may fill", s.Cache.FloorWays, r.MinWays, d.offline)
	case d.offline <= d.floor:
		why[ways] = fmt.Sprintf("off: floorWays %d (the machine wants at least %d) leaves nothing of the %d ways to cut", s.Cache.FloorWays, r.MinWays, r.Ways)
	}
	switch {
	case !s.Bandwidth.Enabled:
	case !caps.BandwidthAllocation:
		why[bandwidth] = "off: the node cannot limit memory bandwidth"
	case floorMB(in) >= fullMB:
		why[bandwidth] = fmt.Sprintf("off: floorPercent %d leaves nothing to cut", s.Bandwidth.FloorPercent)
	case r.MB.Unit == signal.MBPercent && s.Bandwidth.FloorPercent < r.MB.Min:
		why[bandwidth] = fmt.Sprintf("floorPercent %d is below the machine's least limit: %d holds", s.Bandwidth.FloorPercent, r.MB.Min)
	}
	return why
}

// explain says once why a controller that the policy wants has nothing to do on this node.
func (c *RDT) explain(in *Input) {
	if !in.Node.Caps.Perf {
		return // nobody is judged on these axes: the node's capabilities say so
	}
	for res, text := range c.why {
		if text == c.said[res] {
			continue
		}
		if c.said[res] = text; text != "" {
			c.notes = append(c.notes, Note{At: in.Now, Owner: resource(res).owner(), Rule: RuleSkip, Text: text})
		}
	}
}

// refit brings limits inside what policy and machine allow now.
func (c *RDT) refit(in *Input) {
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for r := range resources {
			n := p.limit[r].n
			if n == 0 {
				continue
			}
			to := c.fit(in, r, n)
			if !c.able(in, r) {
				to = 0
			}
			if to != n {
				c.note(in, p, r, Note{Rule: RulePolicy, Text: "policy or machine changed"}, to)
				c.set(in, p, r, to, RulePolicy)
			}
		}
	}
}

// fit is a limit inside the floor and the machine's steps; one that limits nothing is 0.
func (c *RDT) fit(in *Input, r resource, n int) int {
	if r == ways {
		return c.division.fit(n)
	}
	return fitMB(in, n)
}

// survey takes in who is in trouble, who has a part in it, and whether anything is known at all.
func (c *RDT) survey(in *Input) {
	judged, known := 0, 0
	c.violated = false
	verdicts := in.Verdicts
	if !in.Node.Caps.Perf {
		verdicts = nil // there are none on these axes
	}
	for i := range verdicts {
		v := &verdicts[i]
		if v.Axis != judge.Cache && v.Axis != judge.Bandwidth {
			continue
		}
		judged++
		if v.Level == judge.Unknown {
			if in.Now-v.Since < in.Spec.Safety.ReleaseAfter.D() {
				c.unknown = in.Now
			}
			continue
		}
		known++
		c.violated = c.violated || v.Level == judge.Violated
		if v.Level == judge.OK || v.Reason.SelfInflicted() {
			continue
		}
		c.suffering = in.Now
		for _, s := range concerned(v) {
			if p := c.pods[s.Pod]; p != nil {
				p.named = in.Now
			}
		}
		for _, p := range c.pods { // who is known to hurt it, and has just been given something back, has a part in it, too
			if p != nil && p.onProbation(in) && p.proven(in.PodID[v.Pod]) != nil {
				p.named = in.Now
			}
		}
	}
	c.blind.see(in.Now, !in.Node.Caps.Perf || judged > 0 && known == 0)
}

// idlePart of what a pod moved when it was cut is next to nothing.
const idlePart = 10

// look takes in which of the pods that are held back do nothing at present.
func (c *RDT) look(in *Input) {
	for _, p := range c.pods {
		if p == nil || p.traffic == 0 {
			continue
		}
		allowed := p.traffic
		if n := p.limit[bandwidth].n; n > 0 {
			allowed = allowed * uint64(n) / fullMB
		}
		now, known := in.Judge.PodMBps(p.pod)
		idle := known && now*idlePart < allowed
		switch {
		case idle && !p.idle:
			p.paused = in.Now
		case !idle && p.idle && in.Now-p.paused >= in.Spec.RDT.Verify.After.D(): // not a moment without the CPU
			p.resumed = in.Now
		}
		p.idle = idle
	}
}

// weigh cuts the culprits that a verdict names, and everybody else who is noticeable only when these have nothing left.
func (c *RDT) weigh(in *Input, v *judge.Verdict) {
	if v.Axis != judge.Cache && v.Axis != judge.Bandwidth || v.Level != judge.Violated {
		return
	}
	if v.Reason != judge.Contention {
		c.undo(in, v)
		c.makeWay(in, v)
		return
	}
	if c.trying() != nil && c.makeWay(in, v) {
		return // see first whether it was that
	}
	named := v.Culprits()
	if v.Joint && offlinePermille(named) < in.Spec.Judge.CulpritPercent*10 {
		return
	}
	settling := c.settling(in, v)
	if settling {
		c.undo(in, v)
	} else if c.protected(in, v, named) {
		return
	}
	found, spent := 0, 0
	for _, s := range named {
		if p := c.pods[s.Pod]; p != nil {
			found++
			if settling && p.sharing(in.PodID[v.Pod]).belief <= beliefStart {
				continue
			}
			if c.cut(in, p, v, s) == exhausted {
				spent++
			}
		}
	}
	if found > 0 && spent == found {
		for _, s := range concerned(v)[v.Named:] {
			if p := c.pods[s.Pod]; p != nil && c.cut(in, p, v, s) != exhausted {
				spent--
			}
		}
	}
	if spent >= found && !c.makeWay(in, v) {
		c.deserve(in, v)
	}
}

// settling reports whether a pod whose cuts are known to have helped the victim has just been given something back, or has just been
// cut for it. Until that has shown its effect it is the likeliest reason for the trouble, whoever looks suspicious meanwhile, and nobody
// new is cut.
func (c *RDT) settling(in *Input, v *judge.Verdict) bool {
	for _, p := range c.pods {
		if p == nil || p.proven(in.PodID[v.Pod]) == nil {
			continue
		}
		for r := range resources {
			l := &p.limit[r]
			if l.onProbation(in) || l.n != 0 && l.victim == c.names[v.Pod] && in.Now-l.cut < in.Spec.RDT.Verify.After.D() {
				return true
			}
		}
	}
	return false
}

// undo takes back the last step up of pods whose cuts are known to have helped the victim. What an intervention has shown outweighs that
// nobody looks suspicious: where occupancy is not measured, a stream that was given ways back moves no more than before.
func (c *RDT) undo(in *Input, v *judge.Verdict) {
	for _, p := range c.pods {
		if p == nil || !p.onProbation(in) {
			continue
		}
		if pr := p.proven(in.PodID[v.Pod]); pr != nil {
			c.takeBack(in, v, p, pr)
		}
	}
}

// takeBack undoes a pod's last step up.
func (c *RDT) takeBack(in *Input, v *judge.Verdict, p *sharer, pr *sharing) {
	if in.Now-p.lastCut < in.Spec.RDT.Cooldown.D() {
		return
	}
	for r := range resources {
		l := &p.limit[r]
		if !l.onProbation(in) {
			continue
		}
		to, pause := int(l.ascent.before), l.relapse(in)
		c.note(in, p, r, Note{Rule: RuleRegrowUndo, Victim: c.names[v.Pod], CPI: v.CPI.CPI, CPIFence: v.CPI.CPIFence, Belief: pr.belief, Pause: pause}, to)
		l.cut, l.good, l.ascent.grown, p.lastCut, p.named, l.victim = in.Now, amount(to), false, in.Now, in.Now, c.names[v.Pod]
		c.set(in, p, r, to, RuleRegrowUndo)
		c.warn(in, p, r, in.PodID[v.Pod])
	}
}

// approach takes back a step up that has brought a victim near its fence and keeps it there, for most of the time since. The fence is where
// harm begins, not where to live: who rests there is beyond it with every bit of noise. (A level that is found so is remembered as bad
// like one that has hurt.)
func (c *RDT) approach(in *Input, v *judge.Verdict) {
	if v.Axis != judge.Cache && v.Axis != judge.Bandwidth || v.Level == judge.Unknown || v.CPI.CPIFence == 0 || v.Reason == judge.FewSamples {
		return
	}
	near := (v.Level == judge.Watch || v.Level == judge.Violated) && !v.Reason.SelfInflicted()
	settled := in.Spec.RDT.Verify.After.D() + in.Spec.Judge.CPI.Window.D()
	for _, p := range c.pods {
		if p == nil || !p.onProbation(in) {
			continue
		}
		pr := p.proven(in.PodID[v.Pod])
		if pr == nil {
			continue
		}
		if v.Axis == judge.Cache { // one of the two that each container has
			pr.looked++
		}
		if near {
			pr.near++
		}
		since := in.Now - max(p.limit[ways].ascent.at, p.limit[bandwidth].ascent.at)
		// What a step does shows within a window or two. One reading beyond the fence right after it is enough: nobody is newly blamed.
		beyond := near && v.CPI.CPI > v.CPI.CPIFence && since <= in.Spec.RDT.Verify.After.D()
		if beyond || near && pr.near*2 > pr.looked && since >= settled {
			c.takeBack(in, v, p, pr)
		}
	}
}

// cut takes one step with a pod, unless there is a reason not to.
func (c *RDT) cut(in *Input, p *sharer, v *judge.Verdict, s judge.Share) outcome {
	pr := p.sharing(in.PodID[v.Pod])
	if in.Now-p.lastCut < in.Spec.RDT.Cooldown.D() {
		return waiting
	}
	if in.CPU != nil && in.Now-in.CPU.Blamed(in.PodID[p.pod]) < in.Spec.RDT.Verify.After.D() {
		return waiting // its CPU time has just been cut: see first what that does
	}
	if p.unmet.on && in.Now >= p.barred {
		return waiting // the last cut has not been made yet
	}
	for _, r := range orderOf(v.Axis) {
		if in.Now < pr.until[r] || r != cores && in.Now < p.barred {
			continue
		}
		if pr.trial.open && pr.trial.resource != r && c.left(in, p, r) {
			return waiting // see first what the other one does
		}
		if r == cores {
			return c.plead(in, p, pr, v, s)
		}
		where, wider := p.limit[r].widen(in, v.Pod)
		to := c.down(in, p, r, v)
		if wider {
			to = p.limit[r].n // it has not been held back there yet
		}
		if to == 0 {
			continue
		}
		rule := RuleTickCut
		switch {
		case wider:
		case p.limit[r].onProbation(in):
			to, rule = int(p.limit[r].ascent.before), RuleRegrowUndo
		case v.Joint:
			rule = RuleJointCut
		}
		if good := p.limit[r].good; rule != RuleRegrowUndo && pr.belief > beliefStart && good.compare(amount(to)) < 0 {
			to = c.fit(in, r, int(good)) // where this ended the last time
		}
		p.traffic = max(p.traffic, s.MBps)
		pr.open(in, r, p.limit[r].n, p.limit[r].where, v)
		pause := p.limit[r].relapse(in)
		c.note(in, p, r, Note{Rule: rule, Victim: c.names[v.Pod], CPI: v.CPI.CPI, CPIFence: v.CPI.CPIFence, Permille: s.Permille,
			Belief: pr.belief, Pause: pause}, to)
		p.limit[r].cut, p.limit[r].ascent.grown, p.lastCut = in.Now, false, in.Now
		p.limit[r].victim, p.limit[r].where = c.names[v.Pod], where
		c.set(in, p, r, to, rule)
		if pause > 0 {
			c.warn(in, p, r, in.PodID[v.Pod])
		}
		return done
	}
	return exhausted
}

// widen is the domains in which a limit has to hold to help a victim, too. wider: there is a limit, but not in all of these.
func (l *limit) widen(in *Input, victim int) (where uint64, wider bool) {
	where = in.Judge.Where(victim)
	switch {
	case l.n == 0:
		return where, false
	case l.where == 0:
		return 0, false
	case where == 0:
		return 0, true
	}
	return where | l.where, where&^l.where != 0
}

// orderOf is which resources are tried for a complaint, the first first. Ways do nothing for a bus that is full.
func orderOf(axis judge.Axis) []resource {
	if axis == judge.Cache {
		return []resource{ways, bandwidth, cores}
	}
	return []resource{bandwidth, cores}
}

// left reports whether there is anything left to take from a pod in a resource.
func (c *RDT) left(in *Input, p *sharer, r resource) bool {
	if r == cores {
		return true
	}
	n := p.limit[r].n
	return c.able(in, r) && (n == 0 || n > c.fit(in, r, 1))
}

// down is the next lower limit; 0: there is none.
func (c *RDT) down(in *Input, p *sharer, r resource, v *judge.Verdict) int {
	if !c.able(in, r) {
		return 0
	}
	now := p.limit[r].n
	to := c.lower(in, r, now, v)
	if severe(&v.CPI) && to != 0 {
		to = c.lower(in, r, to, v)
	}
	if to == 0 || now != 0 && to >= now {
		return 0
	}
	return to
}

// severe reports whether the harm is so far beyond what is promised that one step will not do. Each further one would have to wait for
// the effect of the last.
func severe(ev *judge.CPIEvidence) bool {
	return over(ev.CPI, ev.CPIBaseline) > severeHarm*over(ev.CPIFence, ev.CPIBaseline)
}

// severeHarm is how many times the promised rise of CPI is severe.
const severeHarm = 4

// lower is the next lower limit from now (0: none).
func (c *RDT) lower(in *Input, r resource, now int, v *judge.Verdict) int {
	if r == ways {
		return c.division.lower(in, now, &v.CPI)
	}
	return lowerMB(in, now)
}

// plead asks the CPU controller for a cut, at the pace at which cuts of our own are made.
func (c *RDT) plead(in *Input, p *sharer, pr *sharing, v *judge.Verdict, s judge.Share) outcome {
	pr.open(in, cores, 0, 0, v)
	p.pleaded, p.lastCut = in.Now, in.Now
	c.pleas = append(c.pleas, Plea{Pod: p.pod, Victim: c.names[v.Pod], CPI: v.CPI.CPI, CPIFence: v.CPI.CPIFence, Permille: s.Permille})
	return exhausted
}

// sharing finds or makes the pair of p and a victim.
func (p *sharer) sharing(victim uint32) *sharing {
	for i := range p.pairs {
		if p.pairs[i].victim == victim {
			return &p.pairs[i]
		}
	}
	s := sharing{victim: victim, belief: beliefStart}
	for r := range s.until {
		s.until[r] = never
	}
	p.pairs = append(p.pairs, s)
	return &p.pairs[len(p.pairs)-1]
}

// proven is the pair of p and a victim whom cuts of p are known to have helped; nil otherwise.
func (p *sharer) proven(victim uint32) *sharing {
	for i := range p.pairs {
		if p.pairs[i].victim == victim && p.pairs[i].belief > beliefStart {
			return &p.pairs[i]
		}
	}
	return nil
}

// open begins an experiment, or lets the one under way go on from a further step.
func (pr *sharing) open(in *Input, r resource, from int, where uint64, v *judge.Verdict) {
	if !in.Acting {
		return
	}
	t := &pr.trial
	if !t.open || t.resource != r {
		*t = attempt{open: true, resource: r, from: from, where: where, container: in.ContainerID[v.Sample], cpi: v.CPI.CPI, use: v.CPI.MilliCPU, began: in.Now}
	}
	t.due = in.Now + in.Spec.RDT.Verify.After.D()
}

// verify looks at the experiments that are due.
func (c *RDT) verify(in *Input) {
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for i := range p.pairs {
			pr := &p.pairs[i]
			switch {
			case !pr.trial.open:
			case in.Now >= pr.trial.due:
				c.conclude(in, p, pr)
			case in.Now-pr.trial.began < in.Spec.RDT.Cooldown.D():
				pr.trial.worsen(in)
			}
		}
	}
}

// worsen takes in how bad it was before the cut: the window that led to it had only begun to show that, and the next ones hold little yet of
// what came after.
func (t *attempt) worsen(in *Input) {
	if at, ok := in.Judge.Index(t.container); ok {
		if now, ok := in.Judge.ReadCPI(at); ok {
			t.cpi = max(t.cpi, now.CPI)
		}
	}
}

// conclude ends an experiment if there is enough to see.
func (c *RDT) conclude(in *Input, p *sharer, pr *sharing) {
	t, o := &pr.trial, &in.Spec.RDT.Verify
	at, ok := in.Judge.Index(t.container)
	if !ok {
		t.open = false
		return
	}
	now, ok := in.Judge.ReadCPI(at)
	if !ok || now.At <= t.due-o.After.D() {
		if in.Now-t.due >= patience*o.After.D() {
			t.open = false // the victim does nothing, or is not seen: nothing can be said
		}
		return
	}
	// CPI above the baseline is what a cut has to bring down.
	before, after := over(t.cpi, now.CPIBaseline), over(now.CPI, now.CPIBaseline)
	switch {
	case now.CPI <= now.CPIFence, after*100 <= before*uint64(100-o.ImprovePercent):
		pr.failures[t.resource] = max(0, pr.failures[t.resource]-1)
		pr.helped = true
		pr.belief += (beliefMax - pr.belief + 1) / 2
		if t.resource != cores && now.CPI <= now.CPIFence {
			p.limit[t.resource].good = amount(p.limit[t.resource].n)
		}
		c.note(in, p, t.resource, c.result(in, pr, Note{Rule: RuleProven, CPI: now.CPI}), p.holds(t.resource))
		t.open = false
	case now.MilliCPU*2 > t.use*3 && t.extended < extensions:
		t.extended++ // it does more than it did: from here on there is a measure
		t.cpi, t.use, t.due = now.CPI, now.MilliCPU, in.Now+o.After.D()
	default:
		c.refute(in, p, pr, now.CPI)
	}
}

func over(cpi, baseline uint64) uint64 { return cpi - min(cpi, baseline) }

// refute ends an experiment that did not help: the cut is taken back, unless another victim has one open or lives by it.
func (c *RDT) refute(in *Input, p *sharer, pr *sharing, cpi uint64) {
	t, o := &pr.trial, &in.Spec.RDT.Verify
	pause := o.BackoffMin.D()
	for range min(pr.failures[t.resource], 30) {
		pause = min(2*pause, o.BackoffMax.D())
	}
	pr.failures[t.resource]++
	pr.belief /= 2
	pr.until[t.resource] = in.Now + pause
	t.open, pr.helped = false, false

	n := c.result(in, pr, Note{Rule: RuleTakeBack, CPI: cpi, Pause: pause})
	to := p.holds(t.resource)
	switch {
	case t.resource == cores:
		n.Text = "cores did not help; the CPU controller gives them back"
	case p.needed():
		n.Text = "kept for another victim"
	default:
		to = t.from
	}
	c.note(in, p, t.resource, n, to)
	if t.resource != cores && !p.needed() {
		p.limit[t.resource].where = t.where
		p.limit[t.resource].ascent.grown = false
		c.set(in, p, t.resource, to, RuleTakeBack)
	}
	p.lastCut = never // the next resource may be tried at once
}

// needed reports whether some victim still has a claim on what is held.
func (p *sharer) needed() bool {
	return slices.ContainsFunc(p.pairs, func(s sharing) bool { return s.trial.open || s.helped })
}

// onTrial reports whether any experiment is under way.
func (p *sharer) onTrial() bool {
	return slices.ContainsFunc(p.pairs, func(s sharing) bool { return s.trial.open })
}

func (p *sharer) holds(r resource) int {
	if r == cores {
		return 0
	}
	return p.limit[r].n
}

// result fills in what a note about the end of an experiment says.
func (c *RDT) result(in *Input, pr *sharing, n Note) Note {
	if at, ok := in.Judge.PodIndex(pr.victim); ok {
		n.Victim = c.names[at]
	}
	n.CPIBefore, n.Belief = pr.trial.cpi, pr.belief
	return n
}

// onProbation reports whether trouble comes so soon after a step up in any resource that this step is to be undone.
func (p *sharer) onProbation(in *Input) bool {
	return p.limit[ways].onProbation(in) || p.limit[bandwidth].onProbation(in)
}

// onProbation reports whether trouble comes so soon after a step up that this step is to be undone.
func (l *limit) onProbation(in *Input) bool {
	return l.ascent.recent(in.Now, max(probation, 2*in.Spec.Judge.CPI.Window.D()), amount(l.n))
}

// relapse is the ascent's, at the pace of cache and bandwidth: trying a level that was bad costs a victim several windows, more than with
// CPUs.
func (l *limit) relapse(in *Input) time.Duration {
	return l.ascent.relapse(in.Now, amount(l.n), 2*in.Spec.RDT.RegrowEvery.D(), in.Spec.RDT.Hold.D())
}

// warn has other pods that are held back for the same victim learn from a level of one that was bad. Masks of ways lie inside each other, and
// bandwidth is one bus, so what one did with the next step the others would do too; if each tried for itself, the victim would pay for
// each of them.
func (c *RDT) warn(in *Input, p *sharer, r resource, victim uint32) {
	from := &p.limit[r].ascent
	if from.wait == 0 {
		return
	}
	for _, o := range c.pods {
		if o == nil || o == p || o.limit[r].n == 0 || amount(o.limit[r].n).compare(from.bad) >= 0 || o.proven(victim) == nil {
			continue
		}
		o.limit[r].ascent.heed(in.Now, from)
	}
}

// regrow gives every pod that is held back one step in one resource, if all is well.
func (c *RDT) regrow(in *Input) {
	s := &in.Spec.RDT
	hold, every := s.Hold.D(), max(s.RegrowEvery.D(), in.Spec.Judge.CPI.Window.D())
	if in.Now-c.unknown < hold || c.trying() != nil || c.pushing() || !c.shows(in) {
		return
	}
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		if p.idle && in.Now-p.paused < slowHarm {
			// It gains nothing by being given something now, and that nobody suffers from it says nothing about the moment when it comes
			// back.
			continue
		}
		quiet := in.Now - max(p.lastCut, p.named, p.resumed)
		if p.onTrial() || c.tight(in, p) || quiet < hold || in.Now-c.suffering < hold && quiet < absolution*hold {
			continue
		}
		for _, r := range [...]resource{bandwidth, ways} { // what costs the pod most comes back first
			l := &p.limit[r]
			l.ascent.forgive(in.Now, amount(l.n), max(l.cut, p.resumed))
			if l.n == 0 {
				continue
			}
			if in.Now-l.ascent.at < every || in.Now-p.limit[1-r].ascent.at < every {
				break
			}
			to := c.up(in, r, l.n)
			if l.ascent.avoids(in.Now, amount(to)) {
				continue
			}
			if r == bandwidth && s.Bandwidth.TotalMBps > 0 && in.Judge.BusPercent(&s.Bandwidth) >= s.Bandwidth.AbundantPercent {
				continue
			}
			c.note(in, p, r, Note{Rule: RuleRegrow}, to)
			l.ascent.step(in.Now, amount(l.n))
			for i := range p.pairs {
				p.pairs[i].looked, p.pairs[i].near = 0, 0
			}
			c.set(in, p, r, to, RuleRegrow)
			break
		}
	}
}

func (c *RDT) up(in *Input, r resource, n int) int {
	if r == ways {
		return c.division.fit(n + 1)
	}
	return fitMB(in, n+max(1, in.Spec.RDT.Bandwidth.GrowPercent))
}

// release takes everything back when nothing has been known of anybody for too long.
func (c *RDT) release(in *Input) {
	if !c.blind.tooLong(in) {
		return
	}
	for _, p := range c.pods {
		if p == nil {
			continue
		}
		for r := range resources {
			if p.limit[r].n != 0 {
				c.note(in, p, r, Note{Rule: RuleRelease, Text: "no counters of any online container"}, 0)
				p.limit[r].ascent.grown = false
				c.set(in, p, r, 0, RuleRelease)
			}
		}
	}
	for _, w := range c.wards {
		if w != nil && w.n > 0 {
			c.disown(in, w, RuleRelease, "no counters of any online container")
		}
	}
}

// set gives a pod a limit.
func (c *RDT) set(in *Input, p *sharer, r resource, n int, rule string) {
	c.settled = false
	c.stir(in)
	l := &p.limit[r]
	l.n, l.rule = n, rule
	if n == 0 {
		l.victim, l.where = "", 0
	}
	if p.limit[ways].n == 0 && p.limit[bandwidth].n == 0 {
		p.traffic, p.idle = 0, false
		for i := range p.pairs {
			p.pairs[i].helped = false
		}
	}
}

// note appends a note about a pod whose limit is about to become to.
func (c *RDT) note(in *Input, p *sharer, r resource, n Note, to int) {
	n.At, n.Owner, n.Pod = in.Now, r.owner(), p.key
	switch r {
	case ways:
		n.From.Ways, n.To.Ways = p.limit[r].n, to
	case bandwidth:
		n.From.MB, n.To.MB = p.limit[r].n, to
	}
	if n.Victim == "" && r != cores {
		n.Victim = p.limit[r].victim
	}
	c.notes = append(c.notes, n)
}

// Settled reports whether Shares would give the same as when it was last called, and Limits the same for every pod.
func (c *RDT) Settled(in *Input) bool { return c.settled && c.caps == in.Node.Caps }

// Shares appends what the two controllers want for every pod that is online or offline. It is empty where nothing can be controlled or
// monitored.
func (c *RDT) Shares(in *Input, dst []knob.Share) []knob.Share {
	caps := &in.Node.Caps
	c.settled, c.caps = true, *caps
	if !caps.CacheAllocation && !caps.BandwidthAllocation && !caps.CacheMonitoring && !caps.BandwidthMonitoring {
		return dst
	}
	for i := range in.Pods {
		s := knob.Share{Pod: c.names[i], Cgroup: in.Pods[i].Cgroup}
		switch in.Class[i] {
		case policy.Online:
			s.Role = knob.RoleOnline
		case policy.Offline:
			s.Role = knob.RoleOffline
		default:
			continue
		}
		if c.shut[i] {
			continue
		}
		if p := c.pods[i]; p != nil {
			s.Ways, s.MB = p.part(ways), p.part(bandwidth)
			s.Where = p.where()
		}
		if w := c.wards[i]; w != nil && w.n > 0 {
			s.Own, s.Ways = true, knob.Part{N: w.n, Owner: OwnerCache, Rule: RuleOwnWays}
		}
		dst = append(dst, s)
	}
	return dst
}

// where is the domains in which any of a pod's limits holds.
func (p *sharer) where() (all uint64) {
	for r := range resources {
		switch l := &p.limit[r]; {
		case l.n == 0:
		case l.where == 0:
			return 0
		default:
			all |= l.where
		}
	}
	return all
}

func (p *sharer) part(r resource) knob.Part {
	l := &p.limit[r]
	if l.n == 0 {
		return knob.Part{}
	}
	return knob.Part{N: l.n, Owner: r.owner(), Rule: l.rule, Victim: l.victim}
}
