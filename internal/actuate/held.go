package actuate

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// unit is a held knob.
type unit struct {
	knob.Target
	setting cgroup.Setting
	id      uint64 // of its group
	k       *cgroup.Knob
	since   time.Time

	orig cgroup.Value // what it goes back to
	cur  cgroup.Value // what it was seen to be, or set to, last
	raw  string       // cur as the kernel shows it; "" if it was not read yet
	// maybe is what else it was during its last change. A container that was made meanwhile may have taken it over; and after
	// a crash it may be what the knob shows.
	maybe []cgroup.Value

	logged cgroup.Value // what the journal says that it is

	want    knob.Want // for which it is held; of another group or knob, if derived
	direct  bool      // the want is for this very knob
	goal    cgroup.Value
	release bool // it is no longer held once it has reached its goal
	fresh   bool // not in the journal yet
	changed bool // its original is not in the journal yet
	edited  bool // someone else has changed it from was, and what becomes of it was not told yet
	was     cgroup.Value
	stuck   bool // the batch at hand gets no further with it
	pos     int  // in order
}

var settingOf = [...]cgroup.Setting{
	knob.CPUIdle: cgroup.Idle, knob.CPUWeight: cgroup.Weight, knob.CPUSet: cgroup.CPUs,
	knob.CPUQuota: cgroup.Quota, knob.CPUBurst: cgroup.Burst, knob.Freeze: cgroup.Freeze,
}

func (e *Executor) v2(k knob.Kind) bool { return e.h.V2(settingOf[k].Controller()) }

// openGroup opens the group of a knob in the knob's hierarchy.
func (e *Executor) openGroup(t knob.Target) (cgroup.Group, error) {
	c := settingOf[t.Kind].Controller()
	dir, ok := e.h.Dir(c, t.Cgroup)
	if !ok {
		return nil, fmt.Errorf("controller %s is not mounted: %w", c, fs.ErrNotExist)
	}
	return e.fs.OpenGroup(dir)
}

// open opens a knob and reads what it is. The error matches cgroup.ErrGone without the group, and fs.ErrNotExist but not
// cgroup.ErrGone if the kernel does not offer the knob there.
func (e *Executor) open(t knob.Target) (*unit, error) {
	u, err := e.openUnread(t)
	if err != nil {
		return nil, err
	}
	raw, err := u.k.Read(e.buf[:])
	if err == nil {
		u.raw = string(raw)
		u.cur, err = u.k.Parse(raw)
	}
	if err != nil {
		u.k.Close()
		return nil, err
	}
	u.orig, u.goal = u.cur, u.cur
	u.since, u.fresh = e.now(), true
	return u, nil
}

func (e *Executor) openUnread(t knob.Target) (*unit, error) {
	g, err := e.openGroup(t)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	u := &unit{Target: t, setting: settingOf[t.Kind], id: g.ID(), want: knob.Want{Target: t}}
	u.k, err = cgroup.OpenKnob(g, u.setting, e.v2(t.Kind))
	return u, err
}

// revive opens a knob that a dead agent held, if it is still the same group. What the knob shows is compared with the journal
// later, when the policy for changes by others is known.
func (e *Executor) revive(t knob.Target, r *record) (*unit, error) {
	u, err := e.openUnread(t)
	if err != nil {
		return nil, err
	}
	if u.id != r.ID {
		u.k.Close()
		return nil, cgroup.ErrGone // another group has taken its path
	}
	u.orig, err = u.setting.ParseValue(r.Original)
	if err == nil {
		u.cur, err = u.setting.ParseValue(r.Now)
	}
	for _, text := range r.Maybe {
		var v cgroup.Value
		if v, err = u.setting.ParseValue(text); err != nil {
			break
		}
		u.maybe = append(u.maybe, v)
	}
	if err != nil {
		u.k.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	u.goal, u.logged = u.cur, u.cur
	u.want, u.since = want(t, r), time.Unix(0, r.Since)
	return u, nil
}

// want is what a journalled knob was held for, without the value.
func want(t knob.Target, r *record) knob.Want {
	return knob.Want{Target: t, Owner: r.Owner, Rule: r.Rule, Pod: r.Pod, Victim: r.Victim}
}

func (u *unit) record() record {
	r := record{
		Op: opHold, Group: u.Cgroup, Knob: u.Kind.String(), ID: u.id,
		Original: u.setting.Format(u.orig), Now: u.setting.Format(u.cur),
		Owner: u.want.Owner, Rule: u.want.Rule, Pod: u.want.Pod, Victim: u.want.Victim, Since: u.since.UnixNano(),
	}
	if u.raw == "" { // adopted and not looked at yet
		for _, v := range u.maybe {
			r.Maybe = append(r.Maybe, u.setting.Format(v))
		}
	}
	return r
}

// state is the journal without history.
func (e *Executor) state() []record {
	out := []record{{Op: opBoot, Boot: e.boot, Root: e.h.Root()}}
	for _, u := range e.order {
		out = append(out, u.record())
	}
	for _, t := range slices.SortedFunc(maps.Keys(e.closed), compareTargets) {
		out = append(out, *e.closed[t])
	}
	return out
}

// reopen tries again to open a knob that a dead agent held. Until it succeeds nothing is done to it: what it shows may be ours, and must not
// be taken for its original.
func (e *Executor) reopen(t knob.Target) *unit {
	r := e.closed[t]
	u, err := e.revive(t, r)
	switch {
	case err == nil:
		delete(e.closed, t)
		delete(e.retries, t)
		e.add(u)
		return u
	case cgroup.Gone(err):
		delete(e.closed, t)
		delete(e.retries, t)
		e.note(e.journal.Append([]record{{Op: opDrop, Group: t.Cgroup, Knob: t.Kind.String()}}, false))
		e.out = append(e.out, knob.Outcome{Want: want(t, r), Old: r.Now, Result: knob.Gone})
		if e.wants[t] != nil {
			e.later(t)
		}
	default:
		e.out = append(e.out, knob.Outcome{Want: want(t, r), Old: r.Now, New: r.Now, Result: knob.Failed, Err: err})
		e.later(t)
	}
	return nil
}

func (e *Executor) add(u *unit) {
	u.pos = len(e.order)
	e.order = append(e.order, u)
	e.held[u.Target] = u
	e.version++
}

// remove stops holding a knob, whatever it is now.
func (e *Executor) remove(u *unit) {
	last := e.order[len(e.order)-1]
	e.order[u.pos], last.pos = last, u.pos
	e.order = e.order[:len(e.order)-1]
	delete(e.held, u.Target)
	delete(e.retries, u.Target)
	u.k.Close()
	e.version++
}

// refresh finds out what the knob is now. It reports false if there is nothing more to do about it at present: its group has
// vanished, or it cannot be read.
func (e *Executor) refresh(u *unit) bool {
	raw, err := u.k.Read(e.buf[:])
	if err != nil {
		e.failed(u, u.goal, err)
		return false
	}
	if string(raw) == u.raw {
		return true
	}
	v, err := u.k.Parse(raw)
	if err != nil {
		e.failed(u, u.goal, err)
		return false
	}
	adopted := u.raw == ""
	u.raw = string(raw)
	if adopted {
		e.version++
	}
	switch {
	case v == u.cur:
	case adopted && (v == u.orig || slices.Contains(u.maybe, v)):
		u.maybe = append(u.maybe, u.cur)
		u.cur, u.changed = v, true
	case e.sideEffect(u, v):
		u.cur, u.changed = v, true
	default:
		u.was, u.orig, u.cur = u.cur, e.originally(u, v, adopted), v
		u.edited, u.changed = true, true
		e.version++
	}
	return true
}

// originally is what the knob would be without us after someone else has changed it to v. On cgroup v1 quota and period are two
// files: the one that still has our value was not meant.
func (e *Executor) originally(u *unit, v cgroup.Value, adopted bool) cgroup.Value {
	if u.Kind != knob.CPUQuota || e.v2(u.Kind) {
		return v
	}
	ours := u.maybe // counts only after a crash
	if !adopted {
		ours = nil
	}
	theirs := v
	for _, o := range append(ours[:len(ours):len(ours)], u.cur) {
		if theirs.N == o.N {
			v.N = u.orig.N
		}
		if theirs.Period == o.Period {
			v.Period = u.orig.Period
		}
	}
	return v
}

// sideEffect reports whether v is the kernel's own doing: what it made of a weight when cpu.idle, which we hold, was changed (none
// for an idle group, the default for one that stops being idle), or of a cpuset of cgroup v1 when CPUs went offline.
func (e *Executor) sideEffect(u *unit, v cgroup.Value) bool {
	if u.Kind == knob.CPUSet && e.tree(u.Kind) {
		return !v.CPUs.Empty() && !u.cur.CPUs.SubsetOf(e.online) && v.CPUs == u.cur.CPUs.And(e.online)
	}
	return u.Kind == knob.CPUWeight && e.held[knob.Target{Cgroup: u.Cgroup, Kind: knob.CPUIdle}] != nil &&
		(v.N == 0 || u.cur.N == 0 && v.N == cgroup.DefaultWeight(e.v2(knob.CPUWeight)))
}

// failed tells that a knob could not be read, or not be given a value.
func (e *Executor) failed(u *unit, value cgroup.Value, err error) {
	o := knob.Outcome{Want: u.want, Old: u.setting.Format(u.cur), New: u.setting.Format(u.cur), Result: knob.Failed, Err: err}
	o.Target, o.Value = u.Target, knob.Value(value)
	if cgroup.Gone(err) {
		o.Result, o.New, o.Err = knob.Gone, "", nil
		e.gone(u, o)
		return
	}
	e.out = append(e.out, o)
	e.later(u.Target)
}

// gone forgets a knob whose group has vanished. If it is still wanted, another group may take the path.
func (e *Executor) gone(u *unit, o knob.Outcome) {
	if !u.fresh {
		// Without the record nothing bad happens: the group's number is not given out again.
		e.note(e.journal.Append([]record{{Op: opDrop, Group: u.Cgroup, Knob: u.Kind.String()}}, false))
	}
	e.remove(u)
	if en := e.wants[u.Target]; en != nil {
		en.gone = true
		e.later(u.Target)
	}
	if u.direct || u.release {
		e.out = append(e.out, o)
	}
}

func (e *Executor) note(err error) {
	if err != nil {
		e.log.Error("journal cannot be written; it will be tried again", "error", err)
	}
}

// later has a knob tried again after a while, each time a longer one.
func (e *Executor) later(t knob.Target) {
	r := e.retries[t]
	r.wait = min(max(2*r.wait, firstRetry), lastRetry)
	r.at = e.now().Add(r.wait)
	e.retries[t] = r
}

// unsupported reports whether err says that the kernel does not offer a knob on a group that exists.
func unsupported(err error) bool { return errors.Is(err, fs.ErrNotExist) && !cgroup.Gone(err) }
