package classes

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/clos"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Apply has shares planned and makes the plan so. It returns what it did or tried, nil when there was nothing to do; the slice is good
// until the next call of a method. What fails is tried again after a second, and then ever more rarely, up to once a minute.
func (e *Executor) Apply(shares []knob.Share, p Policy) []knob.ClassOutcome {
	e.out = e.out[:0]
	due := !e.retryAt.IsZero() && !e.now().Before(e.retryAt)
	same := e.applied && p == e.policy && slices.Equal(shares, e.shares)
	if same && !due && !e.stale {
		return nil
	}
	if e.lost && !e.reopen(due) {
		return e.out
	}
	if e.stale || !e.applied || p != e.policy {
		e.look(p)
	}
	e.policy, e.stale = p, false
	e.shares = append(e.shares[:0], shares...)
	plan, changed := e.planner.Plan(&e.limits, shares)
	e.plan = plan
	if same && !changed && !due {
		return e.out
	}
	e.applied = true
	if due {
		e.retryAt = time.Time{}
	}
	e.carryOut(plan)
	if e.retryAt.IsZero() {
		e.wait = 0
	}
	return e.out
}

// reopen looks whether a resctrl that had vanished is there again.
func (e *Executor) reopen(due bool) bool {
	if !due {
		return false
	}
	e.retryAt = time.Time{}
	fs, err := rdt.Open(e.tree)
	if err != nil {
		e.failed(knob.ClassOutcome{Resource: "mount"}, err)
		return false
	}
	e.works("mount", "", "")
	e.fs, e.lost, e.stale = fs, false, true
	return true
}

// look finds out what the machine and its other users leave to us.
func (e *Executor) look(p Policy) {
	info := &e.fs.Info
	if err := e.foreign.look(e.fs); err != nil {
		e.failed(knob.ClassOutcome{Resource: "group"}, err)
	}
	l := clos.Limits{
		CLOSIDs: info.CLOSIDs - 1 - len(e.foreign.control), OfflineFloor: p.Cache.FloorWays, MBFloor: p.FloorPercent,
		Foreign: e.foreign.exclusive, Taken: e.foreign.taken,
	}
	own, err := e.fs.Schemata("")
	if err != nil {
		e.failed(knob.ClassOutcome{Resource: "group"}, err)
		return
	}
	if c := lastLevel(info); c != nil {
		l.FullMask, l.MinBits, l.Sparse, l.Shareable = c.Mask, c.MinBits, c.Sparse, c.Shareable
		l.L3 = ids(own.Values(c.Name))
		l.Ours, l.OnlineAlone, l.OfflineAlone = uint64(p.Cache.Ways), uint64(p.Cache.OnlineWays), uint64(p.Cache.OfflineWays)
		m := Machine(info)
		if misfit, bad := p.Cache.Misfit(&m); bad {
			l.NoCache = misfit.Error()
		}
	}
	if mb := info.MB; mb != nil {
		l.MB = ids(own.Values("MB"))
		l.MBMin, l.MBGran, l.MBFull, l.MBPercent = mb.Min, mb.Gran, mb.Max, mb.Unit == rdt.Percent
		switch mb.Unit {
		case rdt.MiBps:
			l.MBTotal = uint64(p.TotalMBps) * 1e6 / (1 << 20)
		case rdt.EighthGBs:
			l.MBTotal = uint64(p.TotalMBps) * 8 / 1000
		}
	}
	if info.Mon != nil {
		l.RMIDs = max(info.Mon.RMIDs-1-len(e.foreign.control)-len(e.foreign.mon), 0)
		l.CLOSIDs = min(l.CLOSIDs, l.RMIDs) // a control group takes one of each
	}
	e.limits = l
}

// lastLevel is the resource of the last-level cache; with code and data prioritisation, one of the two, which are limited alike.
func lastLevel(info *rdt.Info) *rdt.Cache {
	for _, name := range []string{"L3", "L3DATA"} {
		if c := info.Cache(name); c != nil {
			return c
		}
	}
	return nil
}

func ids(domains []rdt.Domain) []int {
	var out []int
	for _, d := range domains {
		out = append(out, d.ID)
	}
	slices.Sort(out)
	return out
}

// carryOut makes a plan so.
func (e *Executor) carryOut(plan *knob.ClassPlan) {
	classes := plan.Classes
	if !e.policy.Enforce {
		classes = nil
	}
	clear(e.wanted)
	for i := range classes {
		e.wanted[classes[i].Name] = true
	}
	var late []*knob.Class
	for i := range classes {
		if !e.class(&classes[i], false) {
			late = append(late, &classes[i])
		}
	}
	if len(late) > 0 { // the ids of what is not wanted any more may be what is missing
		for _, p := range e.order {
			if !slices.ContainsFunc(plan.Watch, func(m knob.MemberPod) bool { return m.Cgroup == p.member.Cgroup }) {
				e.unwatch(p)
			}
		}
		e.dropClasses()
		e.sweep()
		for _, c := range late {
			e.class(c, true)
		}
	}
	e.place(classes, plan.Watch)
	e.dropClasses()
	e.sweep()
	for _, name := range e.names() {
		if c := e.classes[name]; c.adopted {
			c.adopted = false
			e.verify(c)
		}
	}
}

// class makes a class with its limits. It reports false if it could not be made for lack of ids and it is not the last try.
func (e *Executor) class(want *knob.Class, last bool) bool {
	c := e.classes[want.Name]
	if c == nil {
		c = &class{name: want.Name, since: e.now()}
		c.adopted = e.owed[c.group()]
		err := e.makeGroup(c.group())
		if !last && (errors.Is(err, rdt.ErrNoCLOSID) || errors.Is(err, rdt.ErrNoRMID) || errors.Is(err, rdt.ErrLimbo)) {
			return false
		}
		if err != nil {
			e.failed(outcome(c.group(), "group", want), err)
			return true
		}
		e.works("group", c.group(), "")
		e.classes[want.Name] = c
		o := outcome(c.group(), "group", want)
		o.New, o.Result = "made", knob.Written
		e.tell(o)
	}
	c.want = clone(want)
	e.limit(c, knob.Written)
	return true
}

// clone keeps a class of a plan.
func clone(c *knob.Class) knob.Class {
	d := *c
	d.L3, d.MB, d.Pods = slices.Clone(c.L3), slices.Clone(c.MB), slices.Clone(c.Pods)
	return d
}

func outcome(group, resource string, c *knob.Class) knob.ClassOutcome {
	why := c.Cache
	if why == (knob.Part{}) || resource == "MB" {
		why = c.Bandwidth
	}
	return knob.ClassOutcome{Group: group, Resource: resource, Owner: why.Owner, Rule: why.Rule, Victim: why.Victim}
}

// makeGroup makes a group, or adopts it if a dead agent has left it.
func (e *Executor) makeGroup(group string) error {
	if e.owed[group] {
		delete(e.owed, group) // it is in the journal
		return nil
	}
	if err := e.announce(group); err != nil {
		return err
	}
	e.crash("group announced")
	err := e.fs.Make(group)
	if errors.Is(err, fs.ErrExist) {
		err = nil // nobody else uses our name: it is what was left
	}
	if err != nil {
		e.forget(group)
	}
	e.crash("group made")
	return err
}

// limit writes a class's limits, if they differ from what was written last.
func (e *Executor) limit(c *class, result knob.Result) {
	lines := e.lines(&c.want)
	if result == knob.Written && equalLines(lines, c.lines) {
		return
	}
	if c.yielded && equalLines(lines, c.lines) {
		return
	}
	c.yielded = false
	old, now, err := e.fs.SetLimits(c.group(), lines)
	e.crash("limits written")
	c.have = now
	c.lines = nil
	if err != nil {
		e.failed(outcome(c.group(), "limits", &c.want), err)
		return
	}
	c.lines = lines
	e.works("limits", c.group(), "")
	for i := range lines {
		r := lines[i].Resource
		if was, is := old.Values(r), now.Values(r); !slices.Equal(was, is) {
			o := outcome(c.group(), r, &c.want)
			o.Old, o.New, o.Result = rdt.FormatDomains(r, was), rdt.FormatDomains(r, is), result
			e.tell(o)
		}
	}
}

func equalLines(a, b []rdt.Line) bool {
	return slices.EqualFunc(a, b, func(x, y rdt.Line) bool { return x.Resource == y.Resource && slices.Equal(x.Domains, y.Domains) })
}

// lines are a class's limits as resctrl names them.
func (e *Executor) lines(c *knob.Class) []rdt.Line {
	var out []rdt.Line
	if len(c.L3) > 0 {
		domains := convert(c.L3)
		for _, name := range []string{"L3", "L3CODE", "L3DATA"} {
			if e.fs.Info.Cache(name) != nil {
				out = append(out, rdt.Line{Resource: name, Domains: domains})
			}
		}
	}
	if len(c.MB) > 0 {
		out = append(out, rdt.Line{Resource: "MB", Domains: convert(c.MB)})
	}
	return out
}

func convert(values []knob.DomainValue) []rdt.Domain {
	out := make([]rdt.Domain, len(values))
	for i, v := range values {
		out[i] = rdt.Domain{ID: v.Domain, Value: v.Value}
	}
	return out
}

// place puts every pod where it belongs.
func (e *Executor) place(classes []knob.Class, watch []knob.MemberPod) {
	type home struct {
		member knob.MemberPod
		class  *knob.Class
		watch  bool
	}
	homes := make(map[string]*home)
	for i := range classes {
		if e.classes[classes[i].Name] == nil {
			continue // it could not be made: its pods go without
		}
		for _, m := range classes[i].Pods {
			homes[m.Cgroup] = &home{member: m, class: &classes[i]}
		}
	}
	for _, m := range watch {
		if h := homes[m.Cgroup]; h != nil {
			h.watch = true
		} else {
			homes[m.Cgroup] = &home{member: m, watch: true}
		}
	}
	// Who goes makes room for who comes.
	for _, p := range slices.Clone(e.order) {
		h := homes[p.member.Cgroup]
		if h == nil || !h.watch {
			e.unwatch(p)
		}
		if h == nil {
			e.release(p)
		}
	}
	visit := func(m knob.MemberPod) {
		h := homes[m.Cgroup]
		if h == nil {
			return
		}
		p := e.pods[m.Cgroup]
		if p == nil {
			p = &pod{member: m, scan: true}
			e.pods[m.Cgroup] = p
			e.order = append(e.order, p)
		}
		p.member = m
		group := ""
		if h.class != nil {
			group = Prefix + h.class.Name
		}
		e.settle(p, group, h.watch, h.class)
		delete(homes, m.Cgroup)
	}
	for i := range classes {
		for _, m := range classes[i].Pods {
			visit(m)
		}
	}
	for _, m := range watch {
		visit(m)
	}
}

// settle puts a pod into a control group and, with watch, into a monitoring group of its own there.
func (e *Executor) settle(p *pod, group string, watch bool, class *knob.Class) {
	if p.group != group {
		old := p.group
		if !e.transfer(p, group) {
			return // it is tried again
		}
		o := knob.ClassOutcome{Group: group, Resource: "tasks", Pod: p.member.Pod, Old: old, New: p.group, Result: knob.Written}
		if class != nil {
			o.Owner, o.Rule, o.Victim = class.Cache.Owner, class.Cache.Rule, class.Cache.Victim
			if o.Owner == "" {
				o.Owner, o.Rule, o.Victim = class.Bandwidth.Owner, class.Bandwidth.Rule, class.Bandwidth.Victim
			}
		}
		e.tell(o)
	}
	if watch && p.mon == "" {
		e.watch(p)
	}
	if p.scan {
		e.rescan(p)
	}
}

// transfer moves a pod to another control group. Where the kernel can, that is one step with all threads and counters kept.
func (e *Executor) transfer(p *pod, group string) bool {
	if p.mon != "" {
		from, to := p.dest(), rdt.MonGroup(group, p.mon)
		if e.renames {
			if err := e.announce(to); err == nil {
				err = e.fs.Rename(from, to)
				e.crash("monitoring group moved")
				if err == nil {
					e.forget(from)
					p.group, p.scan = group, true
					return true
				}
				e.forget(to)
				if errors.Is(err, fs.ErrPermission) {
					e.renames = false
				}
			}
		}
		if e.unwatch(p); p.mon != "" {
			return false
		}
	}
	p.group, p.known, p.scan = group, p.known[:0], true
	return true
}

// monName is the name of a pod's monitoring group: what its group is called, and what tells it from others called so.
func monName(cgroup string) string {
	h := fnv.New32a()
	h.Write([]byte(cgroup))
	base := path.Base(cgroup)
	if len(base) > 100 {
		base = base[:100]
	}
	return fmt.Sprintf("%s%s.%08x", Prefix, strings.Map(plain, base), h.Sum32())
}

func plain(r rune) rune {
	if r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
		return r
	}
	return '_'
}

// watch gives a pod a monitoring group.
func (e *Executor) watch(p *pod) {
	name := monName(p.member.Cgroup)
	group := rdt.MonGroup(p.group, name)
	if err := e.makeGroup(group); err != nil {
		e.failed(knob.ClassOutcome{Group: group, Resource: "mon", Pod: p.member.Pod}, err)
		return
	}
	e.works("mon", group, p.member.Pod)
	p.mon, p.known, p.scan = name, p.known[:0], true
}

// unwatch takes a pod's monitoring group away; its threads stay in the control group.
func (e *Executor) unwatch(p *pod) {
	if p.mon == "" {
		return
	}
	if e.remove(p.dest()) {
		p.mon = ""
	}
}

// remove removes a group of ours. What cannot be removed is tried again.
func (e *Executor) remove(group string) bool {
	err := e.fs.Remove(group)
	e.crash("group removed")
	if err != nil {
		e.failed(knob.ClassOutcome{Group: group, Resource: "group"}, err)
		return false
	}
	e.works("group", group, "")
	e.forget(group)
	return true
}

// release puts a pod back into the default group and forgets it.
func (e *Executor) release(p *pod) {
	if p.mon != "" {
		return // its monitoring group could not be removed
	}
	if e.wanted[strings.TrimPrefix(p.group, Prefix)] { // else the threads go where they belong when the class does
		tids, err := e.threads(p.member.Cgroup, nil)
		if err != nil {
			e.log.Debug("threads of a pod that leaves its class", "pod", p.member.Pod, "error", err)
		}
		e.foreign.refresh(e.fs)
		for _, tid := range tids {
			if e.foreign.has(tid) == "" {
				e.move("", tid, p)
			}
		}
		e.tell(knob.ClassOutcome{Group: p.group, Resource: "tasks", Pod: p.member.Pod, Old: p.group, Result: knob.Restored})
	}
	delete(e.pods, p.member.Cgroup)
	i := slices.Index(e.order, p)
	e.order = slices.Delete(e.order, i, i+1)
}

// dropClasses removes the classes that are not wanted. Their threads go to the default group by themselves.
func (e *Executor) dropClasses() {
	for _, name := range e.names() {
		if e.wanted[name] {
			continue
		}
		c := e.classes[name]
		for _, p := range e.order {
			if p.group == c.group() && p.mon != "" {
				e.unwatch(p)
			}
		}
		if !e.remove(c.group()) {
			continue
		}
		delete(e.classes, name)
		for _, p := range e.order {
			if p.group == c.group() {
				p.group, p.known, p.scan = "", p.known[:0], true
			}
		}
		e.tell(knob.ClassOutcome{Group: c.group(), Resource: "group", Old: show(c.have), Result: knob.Restored})
	}
}

// sweep removes what a dead agent has left and no plan wants.
func (e *Executor) sweep() {
	var groups []string
	for g := range e.owed {
		groups = append(groups, g)
	}
	// Monitoring groups go before the control groups that they are in.
	slices.SortFunc(groups, func(a, b string) int {
		return strings.Count(b, "/") - strings.Count(a, "/")
	})
	for _, g := range groups {
		if e.remove(g) {
			delete(e.owed, g)
			e.tell(knob.ClassOutcome{Group: g, Resource: "group", Result: knob.Restored})
		}
	}
}
