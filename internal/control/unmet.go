package control

import (
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
)

// What resctrl did not take has not happened: no experiment with it can be judged, and for the victim's sake something else has to be tried soon.

// unmet is how long limits of a pod have not been in force that should be.
type unmet struct {
	on    bool
	since time.Duration
	last  time.Duration
}

// hear takes in a tick in which they are not.
func (u *unmet) hear(now time.Duration) {
	if !u.on {
		u.on, u.since = true, now
	}
	u.last = now
}

// barredMin is how long a pod is left alone in cache and bandwidth whose limits could not be set, for a start; it doubles, up to pauseMax.
const barredMin = 5 * time.Second

// concede takes in whose limits are not in force. Experiments with them wait. If that stays so for longer than an experiment takes, they end as if
// they had never begun, and the pod's cores are what is left.
func (c *RDT) concede(in *Input) {
	for i := range in.Refused {
		r := &in.Refused[i]
		if r.Knob != signal.KnobResctrl {
			continue
		}
		for at := range in.Pods {
			if in.Pods[at].Cgroup != r.Cgroup {
				continue
			}
			c.doubted = true
			if p := c.pods[at]; p != nil {
				p.unmet.hear(in.Now)
				c.wait(in, p, r.Reason)
			}
			if w := c.wards[at]; w != nil {
				w.unmet.hear(in.Now)
				if w.n > 0 && in.Now-w.unmet.since >= in.Spec.RDT.Verify.After.D() {
					c.renounce(in, w, r.Reason)
				}
			}
		}
	}
	if !c.doubted {
		return
	}
	c.doubted = false
	for i := range in.Pods { // a pod is one of the two, or neither
		var u *unmet
		if p, w := c.pods[i], c.wards[i]; p != nil {
			u = &p.unmet
		} else if w != nil {
			u = &w.unmet
		}
		if u != nil && u.on {
			u.on = u.last == in.Now
			c.doubted = c.doubted || u.on
		}
	}
}

// wait puts off the experiments with a pod whose limits are not in force, and in the end gives them up.
func (c *RDT) wait(in *Input, p *sharer, reason string) {
	after := in.Spec.RDT.Verify.After.D()
	for i := range p.pairs {
		if t := &p.pairs[i].trial; t.open && t.resource != cores {
			t.due = in.Now + after
		}
	}
	if in.Now-p.unmet.since < after || in.Now < p.barred {
		return
	}
	p.barWait = min(max(2*p.barWait, barredMin), pauseMax)
	p.barred = in.Now + p.barWait
	for r := range resources {
		to, where := p.limit[r].n, p.limit[r].where
		for i := range p.pairs {
			if t := &p.pairs[i].trial; t.open && t.resource == r {
				t.open = false
				to, where = t.from, t.where
			}
		}
		if to == p.limit[r].n {
			continue
		}
		c.note(in, p, r, Note{Rule: RuleSkip, Pause: p.barWait, Text: reason}, to)
		p.limit[r].where, p.limit[r].ascent.grown = where, false
		c.set(in, p, r, to, RuleSkip)
	}
	p.lastCut = never // cores may be asked for at once
}
