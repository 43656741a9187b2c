package actuate

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// phase is when in a batch a step is due.
type phase uint8

const (
	thaw      phase = iota // first of all: nobody stays frozen because something else fails
	lessBurst              // a burst that does not fit into the new quota makes the kernel refuse the quota
	widen                  // parents before children
	narrow                 // children before parents
	moreBurst              // fits only into the new quota
	idle                   //
	weight                 // after idle, which resets it
	freeze                 // last of all: the rest is written while the group still runs
)

// step is one value for one knob.
type step struct {
	u     *unit
	to    cgroup.Value
	phase phase
	depth int  // of the group
	final bool // to is the goal
}

// rounds is how often a batch is made for the same plan: groups that appear meanwhile can make the kernel refuse a step, and
// may have copied a value that is no longer right.
const rounds = 4

// settle brings everything that is dirty to its goal.
func (e *Executor) settle() {
	for round := 1; len(e.dirty) > 0; round++ {
		e.carryOut(e.goals(), round == rounds)
		if round == rounds {
			clear(e.dirty)
		}
	}
	e.retryAt = time.Time{}
	for _, r := range e.retries {
		if e.retryAt.IsZero() || r.at.Before(e.retryAt) {
			e.retryAt = r.at
		}
	}
}

// carryOut writes what brings the units to their goals. In the last round it leaves nothing for another one.
func (e *Executor) carryOut(units []*unit, last bool) {
	var steps []step
	for _, u := range units {
		if e.held[u.Target] == u { // else its group has vanished meanwhile
			steps = e.stepsTo(u, steps)
		}
	}
	slices.SortFunc(steps, func(a, b step) int {
		if c := cmp.Compare(a.phase, b.phase); c != 0 {
			return c
		}
		depth := cmp.Compare(a.depth, b.depth)
		if a.phase == narrow {
			depth = -depth
		}
		return cmp.Or(depth, strings.Compare(a.u.Cgroup, b.u.Cgroup), cmp.Compare(a.u.Kind, b.u.Kind))
	})
	if err := e.announce(units, steps); err != nil {
		steps = e.onlyRestore(units, steps, err)
	}
	widened := false
	for _, s := range steps {
		if e.held[s.u.Target] != s.u || s.u.stuck {
			continue
		}
		e.do(s, last)
		e.crash("step done")
		widened = widened || s.phase == widen && s.u.Kind == knob.CPUSet && e.tree(knob.CPUSet)
	}
	e.conclude(units, steps, widened && !last)
}

// stepsTo appends the steps from what a knob is to its goal.
func (e *Executor) stepsTo(u *unit, steps []step) []step {
	if u.settled() || u.stuck {
		return steps
	}
	s := step{u: u, to: u.goal, depth: strings.Count(u.Cgroup, "/"), final: true}
	switch u.Kind {
	case knob.CPUIdle:
		s.phase = idle
	case knob.CPUWeight:
		s.phase = weight
	case knob.CPUBurst:
		if s.phase = moreBurst; u.goal.N < u.cur.N {
			s.phase = lessBurst
		}
	case knob.Freeze:
		if s.phase = freeze; u.goal.N == 0 {
			s.phase = thaw
		}
	case knob.CPUQuota:
		if s.phase = widen; ratio(u.goal) < ratio(u.cur) {
			s.phase = narrow
		}
	case knob.CPUSet:
		s.phase = widen
		if union := u.cur.CPUs.Or(u.goal.CPUs); union != u.goal.CPUs && e.tree(knob.CPUSet) {
			// Children that have not been narrowed yet need what goes, and those that are widened what comes.
			if union != u.cur.CPUs {
				s.to, s.final = cgroup.Value{CPUs: union}, false
				steps = append(steps, s)
				s.to, s.final = u.goal, true
			}
			s.phase = narrow
		}
	}
	return append(steps, s)
}

// announce writes to the journal what is about to happen: the originals of what is touched for the first time, synced to
// the disk, and the values that each knob is going to have.
func (e *Executor) announce(units []*unit, steps []step) error {
	var records []record
	sync := false
	for _, u := range units {
		if e.held[u.Target] == u && (u.fresh || u.changed) {
			records = append(records, u.record())
			u.logged = u.cur
			sync = true
		}
	}
	for _, s := range steps {
		if !s.final {
			continue // the final step tells about both
		}
		u := s.u
		way := e.way(u)
		r := record{Op: opSet, Group: u.Cgroup, Knob: u.Kind.String()}
		for _, v := range append(way, u.goal) {
			r.To = append(r.To, u.setting.Format(v))
		}
		records = append(records, r)
		u.maybe, u.logged = append(way, u.cur), u.goal
	}
	if len(records) == 0 {
		return nil
	}
	if err := e.journal.Append(records, sync); err != nil {
		return err
	}
	for _, u := range units {
		u.fresh, u.changed = false, false
	}
	return nil
}

// way lists what a knob shows between what it is and its goal.
func (e *Executor) way(u *unit) []cgroup.Value {
	switch {
	case u.Kind == knob.CPUSet && e.tree(knob.CPUSet):
		if union := u.cur.CPUs.Or(u.goal.CPUs); union != u.cur.CPUs && union != u.goal.CPUs {
			return []cgroup.Value{{CPUs: union}}
		}
	case u.Kind == knob.CPUQuota:
		return u.k.Between(u.cur, u.goal)
	case u.Kind == knob.CPUWeight:
		return []cgroup.Value{{}, {N: cgroup.DefaultWeight(e.v2(knob.CPUWeight))}} // cpu.idle may be changed in the same batch
	}
	return nil
}

// onlyRestore is what remains of a batch that could not be journalled: nothing is touched for the first time, but what is in
// the journal already may go back.
func (e *Executor) onlyRestore(units []*unit, steps []step, err error) []step {
	for _, u := range units {
		switch {
		case e.held[u.Target] != u:
		case u.fresh:
			if u.direct {
				e.tell(u, u.cur, knob.Failed, err)
			}
			e.remove(u)
			if e.wants[u.Target] != nil {
				e.later(u.Target)
			}
		case !u.release && !u.settled():
			e.failed(u, u.goal, err)
		}
	}
	return slices.DeleteFunc(steps, func(s step) bool { return !s.u.release || s.u.fresh })
}

// do writes one value and reads it back.
func (e *Executor) do(s step, last bool) {
	u, old := s.u, s.u.cur
	if s.to == old {
		return
	}
	err := u.k.Write(old, s.to)
	if errors.Is(err, unix.ENOSPC) && u.Kind == knob.CPUSet && s.to.CPUs.Empty() && e.v2(u.Kind) {
		// A setting cannot be taken away again from a group that has processes (cgroup v2): all that the group above has is the
		// same to them.
		if all := e.above(u.Cgroup); !all.Empty() {
			s.to.CPUs, u.goal.CPUs = all, all
			err = u.k.Write(old, s.to)
		}
	}
	if err == nil || !cgroup.Gone(err) {
		if readErr := e.observe(u); err == nil {
			err = readErr
		}
	}
	e.version++
	switch {
	case err != nil && e.tree(u.Kind) && !last && (errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)):
		// A group that has just appeared is in the way: the next round knows it.
		u.stuck = true
		e.touch(u.Target)
		return
	case err != nil:
		u.stuck = true
		e.failed(u, s.to, err)
		return
	case u.cur != s.to:
		u.stuck = true
		e.tell(u, old, knob.Mismatch, fmt.Errorf("%s %s: wrote %s, shows %s", u.Cgroup, u.Kind, u.setting.Format(s.to), u.setting.Format(u.cur)))
		e.later(u.Target)
		return
	}
	if u.Kind == knob.CPUIdle {
		if w := e.held[knob.Target{Cgroup: u.Cgroup, Kind: knob.CPUWeight}]; w != nil {
			e.observe(w) // what cannot be read now is found out when it is written or audited
		}
	}
	if !s.final {
		return
	}
	switch {
	case u.release:
		e.tell(u, old, knob.Restored, nil)
	case u.edited:
		e.tell(u, old, knob.Reapplied, nil)
	default:
		e.tell(u, old, knob.Written, nil)
	}
	u.edited = false
}

// above is the CPUs on which the group above may run, on cgroup v2; empty if that cannot be read.
func (e *Executor) above(group string) (cpus cpuset.Set) {
	r, err := cgroup.OpenEffectiveCPUs(e.h, path.Dir(group))
	if err != nil {
		return cpus
	}
	defer r.Close()
	var scratch cgroup.Scratch
	if err := r.CPUs(&scratch, &cpus); err != nil {
		return cpuset.Set{}
	}
	return cpus
}

// observe reads what a knob is after we have changed it.
func (e *Executor) observe(u *unit) error {
	raw, err := u.k.Read(e.buf[:])
	if err != nil {
		return err
	}
	v, err := u.k.Parse(raw)
	if err != nil {
		return err
	}
	u.raw, u.cur = string(raw), v
	return nil
}

// tell adds an outcome.
func (e *Executor) tell(u *unit, old cgroup.Value, result knob.Result, err error) {
	o := knob.Outcome{Want: u.want, Old: u.setting.Format(old), New: u.setting.Format(u.cur), Result: result, Err: err}
	o.Target = u.Target
	if !u.direct {
		o.Value = knob.Value(u.goal)
	}
	e.out = append(e.out, o)
}

// conclude ends a batch: the journal learns how it went, and knobs that are back at their originals are let go. With again, the
// groups below restored cpusets are looked at once more before that.
func (e *Executor) conclude(units []*unit, steps []step, again bool) {
	var records []record
	for _, u := range units {
		if e.held[u.Target] != u {
			continue
		}
		if u.edited && !u.stuck {
			e.conceded(u)
		}
		wait := again && u.Kind == knob.CPUSet
		if wait {
			e.touch(u.Target)
		}
		switch {
		case u.settled() && u.release && !wait:
			records = append(records, record{Op: opDrop, Group: u.Cgroup, Knob: u.Kind.String()})
			e.remove(u)
			continue
		case u.settled():
			delete(e.retries, u.Target)
		}
		if u.cur != u.logged {
			records = append(records, record{Op: opNow, Group: u.Cgroup, Knob: u.Kind.String(), Now: u.setting.Format(u.cur)})
			u.logged = u.cur
		}
	}
	if len(steps) > 0 {
		records = append(records, record{Op: opDone})
	}
	if len(records) > 0 {
		e.note(e.journal.Append(records, false))
	}
	if bloated(e.journal, len(e.order)) {
		e.note(e.journal.Replace(e.state()))
	}
}

// conceded tells of a change by someone else that stands.
func (e *Executor) conceded(u *unit) {
	u.edited = false
	switch {
	case !u.direct:
		e.tell(u, u.was, knob.Yielded, nil)
	case u.goal != u.cur:
		e.tell(u, u.was, knob.Mismatch, fmt.Errorf("%s %s: someone else has made the group idle, which has no weight", u.Cgroup, u.Kind))
	case u.cur == u.orig: // it is tighter than ours, and stays
		e.tell(u, u.was, knob.Yielded, nil)
	}
}
