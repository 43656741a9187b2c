package actuate

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// goals gives each knob that has to be looked at, and those that depend on it, a goal, and returns them. Knobs that are wanted
// for the first time are opened; nothing is written yet.
func (e *Executor) goals() []*unit {
	targets := slices.SortedFunc(maps.Keys(e.dirty), compareTargets)
	clear(e.dirty)
	var units []*unit
	visited := make(map[knob.Target]bool)
	e.online = e.rootCPUs(targets)
	for _, t := range targets {
		if !e.tree(t.Kind) {
			continue
		}
		// The second walk is for a knob that the first does not come to, because its group has vanished or the one above
		// cannot be held.
		for _, root := range []knob.Target{e.top(t), t} {
			if !visited[root] {
				units = e.treeGoals(root, above{}, visited, units)
			}
		}
	}
	bandwidths := make(map[string]bool) // groups whose burst has to be looked at
	for _, u := range units {
		bandwidths[u.Cgroup] = bandwidths[u.Cgroup] || u.Kind == knob.CPUQuota
	}
	for _, t := range targets {
		switch {
		case t.Kind == knob.CPUIdle || t.Kind == knob.CPUWeight:
			idle := knob.Target{Cgroup: t.Cgroup, Kind: knob.CPUIdle}
			if !visited[idle] {
				visited[idle] = true
				units = e.weightGoals(t.Cgroup, units)
			}
		case t.Kind == knob.CPUQuota || t.Kind == knob.CPUBurst:
			bandwidths[t.Cgroup] = true
		case !e.tree(t.Kind):
			if u := e.look(t); u != nil {
				u.goal, u.release = u.base(), !u.direct
				units = append(units, u)
			}
		}
	}
	for _, group := range slices.Sorted(maps.Keys(bandwidths)) {
		if bandwidths[group] {
			units = e.bandwidthGoals(group, units)
		}
	}
	return units
}

// rootCPUs is the CPUs of the root of cgroup v1's cpusets, which are those online, if any of the knobs is such a cpuset.
func (e *Executor) rootCPUs(targets []knob.Target) (online cpuset.Set) {
	cpus := func(t knob.Target) bool { return t.Kind == knob.CPUSet && e.tree(t.Kind) }
	if !slices.ContainsFunc(targets, cpus) {
		return online
	}
	if u, err := e.open(knob.Target{Cgroup: "/", Kind: knob.CPUSet}); err == nil {
		online = u.cur.CPUs
		u.k.Close()
	}
	return online
}

// tree reports whether a knob of this kind concerns the groups below as well: on cgroup v1 no group may have CPUs that its
// parent does not have, nor a larger share of CPU time. On v2 the kernel intersects by itself.
func (e *Executor) tree(k knob.Kind) bool {
	return (k == knob.CPUSet || k == knob.CPUQuota) && !e.v2(k)
}

// top is the uppermost knob of the same kind, at t or above it, that is held or wanted.
func (e *Executor) top(t knob.Target) knob.Target {
	top := t
	for t.Cgroup = path.Dir(t.Cgroup); len(t.Cgroup) > 1; t.Cgroup = path.Dir(t.Cgroup) {
		if e.held[t] != nil || e.wanted(t) != nil {
			top = t
		}
	}
	return top
}

// wanted is what the plan says about a knob, if that can be done.
func (e *Executor) wanted(t knob.Target) *entry {
	if en := e.wants[t]; en != nil && !en.yielded && !en.invalid {
		return en
	}
	return nil
}

// look finds out what is known about a knob: what it is now, whether someone else has changed it, whether it is wanted. A
// knob that is wanted for the first time is taken. The result is nil if it is not held, or cannot be dealt with now.
func (e *Executor) look(t knob.Target) *unit {
	if e.closed[t] != nil && e.reopen(t) == nil {
		return nil
	}
	en, u := e.wanted(t), e.held[t]
	if u == nil {
		if en == nil {
			return nil
		}
		if u = e.take(en); u == nil {
			return nil
		}
	} else if !u.fresh && !e.refresh(u) {
		return nil
	}
	if u.edited && en != nil && e.policy.Edits == policy.Yield {
		en.yielded, en = true, nil
		e.tell(u, u.was, knob.Yielded, nil)
		u.edited = false
	}
	u.stuck = false
	if direct := en != nil; direct != u.direct {
		u.direct = direct
		e.version++
	}
	if u.direct {
		u.want = en.want
	}
	return u
}

// take opens a knob that is wanted for the first time.
func (e *Executor) take(en *entry) *unit {
	t := en.want.Target
	err := check(en.want)
	if err == nil {
		err = e.notOurs(t.Cgroup)
	}
	if err != nil {
		en.invalid = true
		e.out = append(e.out, knob.Outcome{Want: en.want, Result: knob.Failed, Err: err})
		return nil
	}
	u, err := e.open(t)
	switch {
	case err == nil:
		en.gone = false
		e.add(u)
		return u
	case cgroup.Gone(err):
		if !en.gone {
			e.out = append(e.out, knob.Outcome{Want: en.want, Result: knob.Gone})
		}
		en.gone = true
		e.later(t)
		return nil
	case unsupported(err):
		en.invalid = true
	default:
		e.later(t)
	}
	e.out = append(e.out, knob.Outcome{Want: en.want, Result: knob.Failed, Err: err})
	return nil
}

// notOurs says why a group must not be written by this process: the agent is in it, would hold itself back, and once frozen could
// not thaw anything any more.
func (e *Executor) notOurs(group string) error {
	for _, own := range e.own {
		if own == group || strings.HasPrefix(own, group+"/") {
			return fmt.Errorf("group %q: the agent itself runs there", group)
		}
	}
	return nil
}

// check says what is wrong with a want, whatever the kernel.
func check(w knob.Want) error {
	if err := cgroup.CheckWritable(w.Cgroup); err != nil {
		return err
	}
	bad := func(what string) error {
		return fmt.Errorf("%s %s: %s: %s", w.Cgroup, w.Kind, w.Value.Format(w.Kind), what)
	}
	switch v := w.Value; w.Kind {
	case knob.CPUIdle, knob.Freeze:
		if v.N != 0 && v.N != 1 {
			return bad("must be 0 or 1")
		}
	case knob.CPUWeight:
		if v.N < 1 || v.N > 10000 {
			return bad("must be 1 to 10000")
		}
	case knob.CPUSet:
		if v.CPUs.Empty() {
			return bad("must not be empty")
		}
	case knob.CPUQuota:
		if v.N < 1000 && v.N != -1 || v.Period != 0 && (v.Period < 1000 || v.Period > 1000000) {
			return bad("must be -1, or at least 1000 µs in a period of 1 ms to 1 s")
		}
	case knob.CPUBurst:
		if v.N < 0 {
			return bad("must not be negative")
		}
	default:
		return bad("unknown kind of knob")
	}
	return nil
}

// follow takes a knob that nobody asked for but that has to follow one that is held.
func (e *Executor) follow(t knob.Target, leader knob.Want) (*unit, error) {
	u, err := e.open(t)
	if err != nil {
		return nil, err
	}
	u.want = leader
	u.want.Target = t
	e.add(u)
	return u, nil
}

// base is what a knob would be set to if it were alone: what is wanted, or the original. What others have limited more tightly, before us
// or meanwhile, is not loosened, whatever the policy says about changes by others.
func (u *unit) base() cgroup.Value {
	if !u.direct {
		return u.orig
	}
	v := cgroup.Value(u.want.Value)
	switch u.Kind {
	case knob.CPUQuota:
		if v.Period == 0 {
			v.Period = u.orig.Period
		}
		v.N = max(v.N, -1)
		if v = (cgroup.Value{N: v.N, Period: v.Period}); v.N >= 0 && ratio(u.orig) < ratio(v) { // to lift a limit is to lift it
			return u.orig
		}
		return v
	case knob.CPUSet:
		if u.orig.CPUs.Empty() || v.CPUs.SubsetOf(u.orig.CPUs) {
			return cgroup.Value{CPUs: v.CPUs}
		}
		if both := v.CPUs.And(u.orig.CPUs); !both.Empty() {
			return cgroup.Value{CPUs: both}
		}
		return u.orig
	default:
		return cgroup.Value{N: v.N}
	}
}

// settled reports whether a knob is where it shall be. An idle group has no weight to be set.
func (u *unit) settled() bool { return u.goal == u.cur || u.Kind == knob.CPUWeight && u.goal.N == 0 }

// weightGoals deals with cpu.idle and the weight, which the kernel resets when a group stops being idle.
func (e *Executor) weightGoals(group string, units []*unit) []*unit {
	weightOf := knob.Target{Cgroup: group, Kind: knob.CPUWeight}
	idle := e.look(knob.Target{Cgroup: group, Kind: knob.CPUIdle})
	weight := e.look(weightOf)
	if idle != nil {
		idle.goal, idle.release = idle.base(), !idle.direct
		if weight == nil && e.held[weightOf] == nil && e.closed[weightOf] == nil {
			var err error
			if weight, err = e.follow(weightOf, idle.want); err != nil && !unsupported(err) {
				e.failed(idle, idle.goal, err) // its weight would be lost
				return units
			}
		}
		units = append(units, idle)
	}
	if weight == nil {
		return units
	}
	if idle != nil && (idle.orig.N == 1) != (weight.orig.N == 0) {
		// Someone else has changed cpu.idle since: without us, that would have wiped out the weight, or reset it.
		weight.orig, weight.changed = cgroup.Value{}, true
		if idle.orig.N == 0 {
			weight.orig.N = cgroup.DefaultWeight(e.v2(knob.CPUWeight))
		}
	}
	weight.goal = weight.base()
	if weight.direct && !e.v2(knob.CPUWeight) {
		weight.goal.N = cgroup.WeightToShares(weight.goal.N)
	}
	isIdle := weight.cur.N == 0
	if idle != nil {
		isIdle = idle.goal.N == 1
	}
	if isIdle {
		weight.goal = cgroup.Value{}
	}
	weight.release = !weight.direct && (idle == nil || idle.release)
	return append(units, weight)
}

// bandwidthGoals deals with the burst, which may not exceed the quota, and on cgroup v2 with the quota itself.
func (e *Executor) bandwidthGoals(group string, units []*unit) []*unit {
	quotaOf, burstOf := knob.Target{Cgroup: group, Kind: knob.CPUQuota}, knob.Target{Cgroup: group, Kind: knob.CPUBurst}
	quota := e.held[quotaOf]
	if !e.tree(knob.CPUQuota) {
		if quota = e.look(quotaOf); quota != nil {
			quota.goal, quota.release = quota.base(), !quota.direct
			units = append(units, quota)
		}
	}
	burst := e.look(burstOf)
	if quota != nil && burst == nil && e.held[burstOf] == nil && e.closed[burstOf] == nil {
		var err error
		if burst, err = e.follow(burstOf, quota.want); err != nil && !unsupported(err) {
			e.failed(quota, quota.goal, err)
			quota.goal, quota.stuck = quota.cur, true
			return units
		}
	}
	if burst == nil {
		return units
	}
	burst.goal, burst.release = burst.base(), !burst.direct
	if quota != nil {
		if quota.goal.N >= 0 {
			burst.goal.N = min(burst.goal.N, quota.goal.N)
		}
		burst.release = burst.release && quota.release
	}
	return append(units, burst)
}

// above is what a group of a tree has to know of the groups above it.
type above struct {
	held   bool         // one of them is held
	wanted bool         // one of them is wanted
	want   knob.Want    // of the nearest that is
	goal   cgroup.Value // CPUSet: of the nearest held one; CPUQuota: of the nearest that has a limit
	cur    cgroup.Value // CPUSet: what the nearest held one shows,
	maybe  []cgroup.Value
	orig   cgroup.Value // and what it would show without us
}

// treeGoals walks a group and the groups below it on cgroup v1. On CPUSet each gets what it would have by itself, as far as
// that is within its parent's; where nothing of it is, its parent's, as the kernel does on v2. On CPUQuota a limit that is
// larger than a parent's new one says nothing any more and would be refused: it is lifted for as long.
func (e *Executor) treeGoals(t knob.Target, a above, visited map[knob.Target]bool, units []*unit) []*unit {
	visited[t] = true
	u := e.look(t)
	if u == nil && e.held[t] == nil && e.closed[t] == nil && a.held {
		u = e.followParent(t, a)
	}
	if u != nil && u.fresh && t.Kind == knob.CPUSet && a.held && a.inherited(u.cur) {
		// A container that starts in a held pod gets a copy of what the pod has at that moment. Without us, it would have
		// got the pod's original.
		u.orig = a.orig
	}
	switch {
	case u != nil:
		if t.Kind == knob.CPUSet {
			a = u.treeCPUs(a, e.online)
		} else {
			a = u.treeQuota(a)
		}
		if u.fresh && u.release && u.settled() {
			e.remove(u) // there was nothing to undo
		} else {
			units = append(units, u)
		}
		if t.Kind == knob.CPUSet && u.goal.CPUs.Empty() {
			return units // not set up yet, and so is nothing below
		}
	case !a.held:
		return units
	}
	g, err := e.openGroup(t)
	if err != nil {
		return units
	}
	names, _ := g.Children()
	g.Close()
	for _, name := range names {
		units = e.treeGoals(knob.Target{Cgroup: path.Join(t.Cgroup, name), Kind: t.Kind}, a, visited, units)
	}
	return units
}

// followParent takes a group below a held one, if it has to follow.
func (e *Executor) followParent(t knob.Target, a above) *unit {
	u, err := e.follow(t, a.want)
	if err != nil {
		return nil // if it matters, the parent's write fails and tells
	}
	if t.Kind == knob.CPUQuota && !wider(u.cur, a.goal) {
		e.remove(u)
		return nil
	}
	return u
}

// inherited reports whether v looks like a copy of what a held parent shows or has just shown.
func (a *above) inherited(v cgroup.Value) bool {
	return v != a.orig && !v.CPUs.Empty() && (v == a.cur || slices.Contains(a.maybe, v))
}

// treeCPUs sets the goal of a cpuset. CPUs that are not online cannot be given to a group on cgroup v1.
func (u *unit) treeCPUs(a above, online cpuset.Set) above {
	if u.edited && !u.direct && u.was.CPUs.Empty() && a.held && a.inherited(u.cur) {
		u.orig, u.edited = a.orig, false // the runtime has set up the group only now
	}
	u.goal = u.base()
	if both := u.goal.CPUs.And(online); !both.Empty() {
		u.goal.CPUs = both
	}
	if a.held && !u.goal.CPUs.Empty() {
		if both := u.goal.CPUs.And(a.goal.CPUs); !both.Empty() {
			u.goal.CPUs = both
		} else {
			u.goal.CPUs = a.goal.CPUs
		}
	}
	a = u.below(a)
	a.goal, a.cur, a.maybe, a.orig = u.goal, u.cur, u.maybe, u.orig
	return a
}

func (u *unit) treeQuota(a above) above {
	u.goal = u.base()
	if a.held && wider(u.goal, a.goal) {
		if u.direct {
			u.goal = a.goal
		} else {
			u.goal.N = -1
		}
	}
	held := a.held
	limit := a.goal
	a = u.below(a)
	if a.goal = u.goal; u.goal.N < 0 && held {
		a.goal = limit
	}
	return a
}

// below is what the groups below u have to know of u and those above it.
func (u *unit) below(a above) above {
	u.release = !u.direct && !a.wanted
	if u.direct {
		a.wanted, a.want = true, u.want
	} else if !a.wanted {
		a.want = u.want // who had it last
	}
	a.held = true
	return a
}

// wider reports whether quota v is a limit that is larger than limit. No limit is not wider than anything: such a group is
// bounded by its parent.
func wider(v, limit cgroup.Value) bool {
	return v.N >= 0 && limit.N >= 0 && ratio(v) > ratio(limit)
}

// ratio is how the kernel compares quotas of different periods.
func ratio(v cgroup.Value) int64 {
	if v.N < 0 {
		return 1<<63 - 1
	}
	return v.N << 20 / max(v.Period, 1)
}
