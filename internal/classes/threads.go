package classes

import (
	"fmt"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// scanRounds is how often a pod's threads are looked at before the next scan has to find the rest: each round catches what a thread
// that was not moved yet has started meanwhile. A thread that was moved has its children in the right group.
const scanRounds = 8

// rescan moves those threads of a pod that were not moved yet, until there are none.
func (e *Executor) rescan(p *pod) {
	p.scan = false
	var sorted []int
	for range scanRounds {
		tids, err := e.threads(p.member.Cgroup, e.tids[:0])
		e.tids = tids
		if err != nil {
			e.failed(knob.ClassOutcome{Group: p.dest(), Resource: "tasks", Pod: p.member.Pod}, err)
			p.scan = true
			return
		}
		sorted = append(e.sorted[:0], tids...)
		e.sorted = sorted
		slices.Sort(sorted)
		fresh := slices.DeleteFunc(tids, func(tid int) bool {
			_, known := slices.BinarySearch(p.known, tid)
			return known
		})
		if len(fresh) == 0 {
			break
		}
		e.foreign.refresh(e.fs)
		for _, tid := range fresh {
			if group := e.foreign.has(tid); group != "" {
				e.blocked(p, group)
				continue
			}
			if e.put(p, tid) {
				e.crash("thread moved")
			}
		}
		p.known = append(p.known[:0], sorted...)
	}
	p.known = append(p.known[:0], sorted...)
}

// put moves one thread to where the pod belongs: into the control group first, without which the monitoring group does not take it.
func (e *Executor) put(p *pod, tid int) bool {
	if !e.move(p.group, tid, p) {
		return false
	}
	return p.mon == "" || e.move(p.dest(), tid, p)
}

func (e *Executor) move(group string, tid int, p *pod) bool {
	moved, err := e.fs.Move(group, tid)
	if err != nil {
		e.failed(knob.ClassOutcome{Group: group, Resource: "tasks", Pod: p.member.Pod}, err)
	}
	return moved
}

// blocked tells that threads of a pod stay where others have put them.
func (e *Executor) blocked(p *pod, group string) {
	if p.foreign == group {
		return
	}
	p.foreign = group
	e.tell(knob.ClassOutcome{Group: p.dest(), Resource: "tasks", Pod: p.member.Pod, Old: group, New: group, Result: knob.Refused,
		Err: fmt.Errorf("threads of %s are in %s, which is somebody else's: they stay there", p.member.Pod, group)})
}

// verify holds a class's threads against those of its pods: those that are missing are moved in, and those that are nobody's go back
// to the default group.
func (e *Executor) verify(c *class) {
	inside, err := e.fs.Tasks(c.group(), nil)
	if err != nil {
		return // the look at its limits tells
	}
	slices.Sort(inside)
	e.foreign.refresh(e.fs)
	var all []int
	for _, p := range e.order {
		if p.group != c.group() {
			continue
		}
		tids, err := e.threads(p.member.Cgroup, nil)
		if err != nil {
			return // whose threads are whose cannot be told
		}
		for _, tid := range tids {
			if _, ok := slices.BinarySearch(inside, tid); !ok && e.foreign.has(tid) == "" {
				e.put(p, tid)
			}
		}
		all = append(all, tids...)
	}
	slices.Sort(all)
	for _, tid := range inside {
		if _, ok := slices.BinarySearch(all, tid); !ok {
			e.move("", tid, &pod{})
		}
	}
}

// foreign is what others have in resctrl.
type foreign struct {
	control   []string // their control groups
	mon       []string // their monitoring groups
	exclusive uint64   // ways that are theirs alone
	taken     uint64   // ways that they are limited to
	tids      map[int]string
}

// look lists the groups of others and their ways.
func (f *foreign) look(fs *rdt.FS) error {
	groups, err := fs.Groups()
	if err != nil {
		return err
	}
	*f = foreign{}
	for _, g := range append([]string{""}, groups...) {
		mon, err := fs.MonGroups(g)
		if err != nil && !rdt.Gone(err) {
			return err
		}
		for _, m := range mon {
			if !strings.HasPrefix(m[strings.LastIndexByte(m, '/')+1:], Prefix) {
				f.mon = append(f.mon, m)
			}
		}
		if g == "" || strings.HasPrefix(g, Prefix) {
			continue
		}
		f.control = append(f.control, g)
		mode, err := fs.Mode(g)
		if err != nil {
			continue // it has just gone
		}
		limits, err := fs.Schemata(g)
		if err != nil {
			continue // it has just gone, or is being pseudo-locked
		}
		for i := range fs.Info.Caches {
			c := &fs.Info.Caches[i]
			if !strings.HasPrefix(c.Name, "L3") {
				continue
			}
			for _, d := range limits.Values(c.Name) {
				if mode != "shareable" {
					f.exclusive |= d.Value
				} else if d.Value != c.Mask {
					f.taken |= d.Value
				}
			}
		}
	}
	return nil
}

// equal reports whether others have the same as before.
func (f *foreign) equal(g *foreign) bool {
	return slices.Equal(f.control, g.control) && slices.Equal(f.mon, g.mon) && f.exclusive == g.exclusive && f.taken == g.taken
}

// refresh finds out which threads are in groups of others, of which there usually are none.
func (f *foreign) refresh(fs *rdt.FS) {
	f.tids = nil
	groups := append(slices.Clone(f.control), f.mon...)
	if len(groups) == 0 {
		return
	}
	f.tids = make(map[int]string)
	for _, g := range groups {
		tids, err := fs.Tasks(g, nil)
		if err != nil {
			continue // it has just gone
		}
		for _, tid := range tids {
			f.tids[tid] = g
		}
	}
}

// has is the group of others in which a thread is, as of the last refresh; "" if in none.
func (f *foreign) has(tid int) string { return f.tids[tid] }
