package classes

import (
	"errors"
	"fmt"
	"os"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Bounds of one Scan: it runs on every tick, between events that must not wait.
const (
	scanAtOnce = 16 // pods of which it is known that there is something new
	scanCalls  = 40 // calls within which all others are scanned, however many there are
)

// Pods tells which pods there are. Those that have other containers than before are scanned first.
func (e *Executor) Pods(list []signal.Pod) {
	for i := range list {
		p := e.pods[list[i].Cgroup]
		if p == nil {
			continue
		}
		same := len(p.containers) == len(list[i].Containers)
		for k := range list[i].Containers {
			same = same && p.containers[k] == list[i].Containers[k].ID
		}
		if same {
			continue
		}
		p.containers = p.containers[:0]
		for k := range list[i].Containers {
			p.containers = append(p.containers, list[i].Containers[k].ID)
		}
		p.scan = true
	}
}

// Scan looks for new threads of some pods: those of which something new is known, and a few others in turn. It is to be called on every
// tick. The slice is good until the next call of a method.
func (e *Executor) Scan() []knob.ClassOutcome {
	e.out = e.out[:0]
	if !e.applied || e.lost || len(e.order) == 0 {
		return nil
	}
	left := scanAtOnce
	for _, p := range e.order {
		if p.scan && left > 0 {
			left--
			e.rescan(p)
		}
	}
	for range (len(e.order) + scanCalls - 1) / scanCalls {
		e.cursor = (e.cursor + 1) % len(e.order)
		e.rescan(e.order[e.cursor])
	}
	return e.out
}

// Audit looks at the limits of our groups for changes by someone else, at groups of others, and at the threads of one class. It is to
// be called about once a second. The slice is good until the next call of a method.
func (e *Executor) Audit() []knob.ClassOutcome {
	e.out = e.out[:0]
	if !e.applied || e.lost {
		return nil
	}
	if _, err := e.fs.Schemata(""); rdt.Gone(err) {
		e.vanished(err)
		return e.out
	}
	var now foreign
	if err := now.look(e.fs); err == nil && !now.equal(&e.foreign) {
		e.stale = true // the next Apply plans anew
		for _, p := range e.order {
			if p.foreign != "" { // its threads there may be ours to move now
				p.foreign, p.known, p.scan = "", p.known[:0], true
			}
		}
		e.foreign = now
	}
	names := e.names()
	for _, name := range names {
		e.edited(e.classes[name])
	}
	if len(names) > 0 {
		e.verified = (e.verified + 1) % len(names)
		if c := e.classes[names[e.verified]]; c != nil {
			e.verify(c)
		}
	}
	return e.out
}

// edited deals with limits that someone else has changed.
func (e *Executor) edited(c *class) {
	now, err := e.fs.Schemata(c.group())
	if rdt.Gone(err) {
		// Somebody has removed the group. Its threads are in the default one.
		e.forget(c.group())
		delete(e.classes, c.name)
		for _, p := range e.order {
			if p.group == c.group() {
				p.group, p.mon, p.known, p.scan = "", "", p.known[:0], true
			}
		}
		e.tell(knob.ClassOutcome{Group: c.group(), Resource: "group", Old: show(c.have), Result: knob.Gone})
		e.retryAt = e.now() // the next Apply makes it again
		return
	}
	if err != nil || c.lines == nil || c.yielded || show(now) == show(c.have) {
		return
	}
	old := show(c.have)
	c.have = now
	if e.policy.Edits == policy.Yield {
		c.yielded = true
		o := outcome(c.group(), "limits", &c.want)
		o.Old, o.New, o.Result = old, show(now), knob.Yielded
		e.tell(o)
		return
	}
	e.limit(c, knob.Reapplied)
}

// vanished forgets everything: resctrl was unmounted under us, and all groups have gone with it.
func (e *Executor) vanished(err error) {
	for _, name := range e.names() {
		c := e.classes[name]
		e.tell(knob.ClassOutcome{Group: c.group(), Resource: "group", Old: show(c.have), Result: knob.Gone})
	}
	clear(e.classes)
	clear(e.pods)
	clear(e.owed)
	e.order = nil
	e.mounted = false
	if err := e.journal.Replace(e.state()); err != nil {
		e.log.Error("journal cannot be written", "error", err)
	}
	e.lost = true
	e.failed(knob.ClassOutcome{Resource: "mount"}, err)
}

// RestoreAll removes all groups of ours, whoever made them. What fails stays in the journal.
func (e *Executor) RestoreAll() []knob.ClassOutcome {
	e.out = e.out[:0]
	if e.lost {
		return nil
	}
	e.applied, e.policy.Enforce = true, false
	e.shares = e.shares[:0]
	e.carryOut(&knob.ClassPlan{})
	return e.out
}

// held is how many groups there are.
func (e *Executor) held() int {
	n := len(e.classes) + len(e.owed)
	for _, p := range e.order {
		if p.mon != "" {
			n++
		}
	}
	return n
}

// Close lets go of the run directory, and unmounts what it has mounted if nothing is held and nobody else has groups there. It does
// not restore; what is still held stays in the journal.
func (e *Executor) Close() error {
	clean := e.held() == 0
	var err error
	if clean && e.mounted && !e.lost {
		err = e.unmount()
	}
	err = errors.Join(err, e.journal.Close())
	if clean && err == nil {
		err = os.Remove(e.journalPath())
	}
	return errors.Join(err, e.lock.Close())
}

// unmount is not done under others: all of their groups would be gone, too.
func (e *Executor) unmount() error {
	var others foreign
	if err := others.look(e.fs); err != nil {
		return err
	}
	if n := len(others.control) + len(others.mon); n > 0 {
		e.log.Warn("resctrl stays mounted: others have made groups there", "groups", n)
		return nil
	}
	if err := rdt.Unmount(e.dir); err != nil {
		e.log.Warn("resctrl stays mounted", "error", err)
		return nil
	}
	e.crash("unmounted")
	return nil
}

// Summary is what Restore did.
type Summary struct {
	Removed []knob.ClassOutcome // groups of ours that are gone
	Failed  []knob.ClassOutcome
	// Unmounted says that resctrl, which the agent had mounted, is not mounted any more.
	Unmounted bool
	// OtherBoot is how many groups were journalled before the machine was started anew.
	OtherBoot int
}

// Restore takes away what a dead agent has left in resctrl. It refuses with a *journal.Busy while an agent runs. The error is not nil
// if anything failed; that stays in the journal. Without a journal there is nothing to do.
func Restore(o Options) (Summary, error) {
	var sum Summary
	past, err := loadHistory(o.RunDir)
	if err != nil {
		return sum, err
	}
	if past.boot == "" {
		if _, err := os.Stat(journalPath(o.RunDir)); err != nil {
			return sum, nil
		}
	}
	if o.Dir == "" {
		o.Dir = past.dir
	}
	o.MayMount = false
	if o.Threads == nil {
		o.Threads = func(string, []int) ([]int, error) { return nil, nil }
	}
	e, err := Open(o)
	if errors.Is(err, rdt.ErrNotMounted) || errors.Is(err, rdt.ErrUnsupported) {
		return sum, os.Remove(journalPath(o.RunDir)) // with the mount, everything is gone
	}
	if err != nil {
		return sum, err
	}
	sum.OtherBoot = e.other
	for _, out := range e.RestoreAll() {
		switch {
		case out.Result == knob.Restored && out.Resource == "group":
			sum.Removed = append(sum.Removed, out)
		case out.Err != nil:
			sum.Failed = append(sum.Failed, out)
		}
	}
	if n := e.held(); n > 0 {
		err = fmt.Errorf("resctrl groups that could not be removed and stay in the journal: %d", n)
	}
	mounted := e.mounted
	err = errors.Join(err, e.Close())
	if mounted && err == nil {
		_, on, mountErr := rdt.Mounted("/proc", e.dir)
		sum.Unmounted = mountErr == nil && !on
	}
	return sum, err
}
