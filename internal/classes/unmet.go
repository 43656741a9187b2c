package classes

import (
	"cmp"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Unmet appends the pods whose limits, or ways of their own, are in the plan and not in force, and why. Whoever judges what a limit has done has to
// know. It looks at what is known already and reads nothing.
func (e *Executor) Unmet(dst []signal.Refusal) []signal.Refusal {
	if !e.policy.Enforce || e.plan == nil || !e.lost && !e.troubled() {
		return dst
	}
	for i := range e.plan.Classes {
		c := &e.plan.Classes[i]
		if c.Cache == (knob.Part{}) && c.Bandwidth == (knob.Part{}) {
			continue // whoever is in it has no limits
		}
		why := e.amiss(c)
		for _, m := range c.Pods {
			reason := why
			if p := e.pods[m.Cgroup]; reason == "" {
				switch {
				case p == nil || p.group != Prefix+c.Name:
					reason = "its threads are in another group"
				case p.foreign != "":
					reason = "threads of it are in " + p.foreign + ", which is somebody else's"
				}
			}
			if reason != "" {
				dst = append(dst, signal.Refusal{Cgroup: m.Cgroup, Knob: signal.KnobResctrl, Reason: reason})
			}
		}
	}
	return dst
}

// troubled reports whether anything has failed, or was left to others, and is still so.
func (e *Executor) troubled() bool {
	if len(e.said) > 0 {
		return true
	}
	for _, c := range e.classes {
		if c.yielded {
			return true
		}
	}
	for _, p := range e.order {
		if p.foreign != "" {
			return true
		}
	}
	return false
}

// amiss is why a class of the plan does not limit its pods; empty if it does.
func (e *Executor) amiss(want *knob.Class) string {
	group := Prefix + want.Name
	c := e.classes[want.Name]
	switch {
	case e.lost:
		return "resctrl was unmounted"
	case c == nil:
		return cmp.Or(e.said[about("group", group, "")], "its class could not be made")
	case c.yielded:
		return "someone else has changed the limits of " + group
	case c.lines == nil && len(e.lines(want)) > 0:
		return cmp.Or(e.said[about("limits", group, "")], "the limits of "+group+" could not be set")
	}
	return ""
}

// about is the key under which it is kept what has failed last.
func about(resource, group, pod string) string { return resource + " " + group + " " + pod }
