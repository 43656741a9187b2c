// Package control turns verdicts into what the knobs should be. It is pure: the same steps give the same wants on any machine.
//
// Wants are declarative and complete: a knob that no want names goes back to its original value, so a controller that forgets a pod
// has released it. There is one controller for each resource, and no knob of a group has two owners.
package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Input is what a controller sees in one step.
type Input struct {
	*judge.View
	Judge    *judge.State
	Verdicts []judge.Verdict // of this step; none on events
	Findings []judge.Finding // about this step's events
	// CPU is the CPU controller as of the step before: one resource of a pod is cut at a time, and what is known of waits is measured, not
	// inferred, so the CPU goes first. nil: there is none.
	CPU *CPU
	// Pleas are what the controllers of cache and bandwidth ask of the CPU controller in this step.
	Pleas []Plea
	// Acting says that wants are really written. Where they are not, the effect of a cut cannot be looked at either.
	Acting bool
}

// tick reports whether this is a regular step.
func (in *Input) tick() bool { return in.Trigger == signal.Tick }

// cpuVerdicts is the verdicts on the CPU axis. All containers have the same axes, the CPU first, so those in between need not be looked at.
func (in *Input) cpuVerdicts(yield func(*judge.Verdict) bool) {
	all := in.Verdicts
	if len(all) == 0 || all[0].Axis != judge.CPU {
		return
	}
	axes := 1
	for axes < len(all) && all[axes].Sample == all[0].Sample {
		axes++
	}
	for i := 0; i < len(all); i += axes {
		if !yield(&all[i]) {
			return
		}
	}
}

// concerned is who has a part in a victim's trouble: those whom the verdict names, then all others whose share is noticeable.
func concerned(v *judge.Verdict) []judge.Share {
	n := v.Named
	for n < len(v.Shares) && v.Shares[n].Permille >= noticeable {
		n++
	}
	return v.Shares[:n]
}

// blindness is that nothing at all is known of anybody online.
type blindness struct {
	is    bool
	since time.Duration
}

func (b *blindness) see(now time.Duration, is bool) {
	if is && !b.is {
		b.since = now
	}
	b.is = is
}

// tooLong reports whether it has lasted for as long as cuts may stand that nothing justifies any more.
func (b *blindness) tooLong(in *Input) bool {
	return b.is && in.Now-b.since >= in.Spec.Safety.ReleaseAfter.D()
}

// Rules that lead to a want or a note.
const (
	RulePosture    = "posture"     // the standing treatment of offline pods
	RuleEventCut   = "event-cut"   // a single long wait, at once
	RuleTickCut    = "tick-cut"    // one pod holds most of a victim's wait over the window
	RuleJointCut   = "joint-cut"   // several pods together do
	RuleWidenCut   = "widen-cut"   // the culprits have nothing left to give: everybody else who is noticeable
	RuleRegrow     = "regrow"      // a step back up the ladder
	RuleRegrowUndo = "regrow-undo" // the last step up hurt: back to what was good
	RuleThaw       = "thaw"        // the freezer lets go, whatever else
	RuleTakeBack   = "take-back"   // the cut did not help its victim
	RuleProven     = "proven"      // the cut helped its victim
	RuleRelease    = "release"     // blind for too long: back to the posture
	RulePolicy     = "policy"      // the policy or the machine changed under a cut
	RuleSkip       = "skip"        // something that the policy asks for and that cannot be done
	RuleOwnWays    = "own-ways"    // an online pod gets a part of the cache for itself
	RuleOwnEnd     = "own-end"     // it has not needed it for long, or it did not help
	RulePress      = "press"       // a victim rests too high: a further step of whoever is known to hurt it
	RulePlea       = "plea"        // neither cache nor bandwidth can be cut further, or at all: cores are taken instead
	RuleBurst      = "burst"       // an online container may borrow from its quieter periods
	RuleBurstEnd   = "burst-end"   // it has not needed to for long
)

// Note is a line of the decision log: what changed and why. Fields that do not apply are zero.
type Note struct {
	At        time.Duration `json:"at"` // CLOCK_MONOTONIC
	Owner     string        `json:"owner"`
	Rule      string        `json:"rule"`
	Pod       string        `json:"pod,omitempty"`    // "namespace/name"
	Victim    string        `json:"victim,omitempty"` // likewise
	From      Grant         `json:"from"`
	To        Grant         `json:"to"`
	Wait      time.Duration `json:"wait,omitempty"`   // the victim's p99, or the single wait
	Before    time.Duration `json:"before,omitempty"` // the victim's p99 before the cut that is judged here
	Objective time.Duration `json:"objective,omitempty"`
	CPI       uint64        `json:"cpi,omitempty"`       // the victim's cycles per instruction, thousandths
	CPIBefore uint64        `json:"cpiBefore,omitempty"` // and before the cut that is judged here
	CPIFence  uint64        `json:"cpiFence,omitempty"`  // what is normal at most, thousandths
	Permille  int           `json:"permille,omitempty"`  // the pod's share of the wait, or of the score of suspects
	Belief    int           `json:"belief,omitempty"`    // in the pair of victim and pod, 0 to 100
	Pause     time.Duration `json:"pause,omitempty"`     // how long this will not be tried again
	Text      string        `json:"text,omitempty"`      // what fits no field
}

func (n Note) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", n.Owner, n.Rule)
	if n.Pod != "" {
		fmt.Fprintf(&b, " %s", n.Pod)
	}
	if n.From != n.To {
		fmt.Fprintf(&b, ": %s -> %s", n.From, n.To)
	}
	if n.Victim != "" {
		fmt.Fprintf(&b, " for %s", n.Victim)
	}
	if n.Wait != 0 {
		fmt.Fprintf(&b, ", wait %s", n.Wait)
	}
	if n.Before != 0 {
		fmt.Fprintf(&b, " after %s", n.Before)
	}
	if n.Objective != 0 {
		fmt.Fprintf(&b, ", objective %s", n.Objective)
	}
	if n.CPI != 0 {
		fmt.Fprintf(&b, ", CPI %s", milli(n.CPI))
	}
	if n.CPIBefore != 0 {
		fmt.Fprintf(&b, " after %s", milli(n.CPIBefore))
	}
	if n.CPIFence != 0 {
		fmt.Fprintf(&b, ", normal up to %s", milli(n.CPIFence))
	}
	if n.Permille != 0 {
		fmt.Fprintf(&b, ", share %d.%d %%", n.Permille/10, n.Permille%10)
	}
	if n.Belief != 0 {
		fmt.Fprintf(&b, ", belief %d", n.Belief)
	}
	if n.Pause != 0 {
		fmt.Fprintf(&b, ", not again for %s", n.Pause)
	}
	if n.Text != "" {
		fmt.Fprintf(&b, " (%s)", n.Text)
	}
	return b.String()
}

// milli shows thousandths.
func milli(n uint64) string { return fmt.Sprintf("%d.%03d", n/1000, n%1000) }

// Grant is how far a controller holds an offline pod below the standing posture. The zero value is: not at all.
type Grant struct {
	Idle     bool  `json:"idle,omitempty"`     // made SCHED_IDLE (or of least weight), where the posture is not that already
	Cores    int   `json:"cores,omitempty"`    // whole cores that it may use; 0: all
	MilliCPU int64 `json:"milliCPU,omitempty"` // CPU time that it may use, thousandths of a CPU; 0: no limit
	Frozen   bool  `json:"frozen,omitempty"`
	Ways     int   `json:"ways,omitempty"` // ways of the last-level cache that it may fill; 0: all
	MB       int   `json:"mb,omitempty"`   // percent of the memory bandwidth; 0: no limit
}

func (g Grant) String() string {
	if g == (Grant{}) {
		return "posture"
	}
	var parts []string
	if g.Idle {
		parts = append(parts, "idle")
	}
	if g.Cores > 0 {
		parts = append(parts, fmt.Sprintf("cores %d", g.Cores))
	}
	if g.MilliCPU > 0 {
		parts = append(parts, fmt.Sprintf("quota %dm", g.MilliCPU))
	}
	if g.Frozen {
		parts = append(parts, "frozen")
	}
	if g.Ways > 0 {
		parts = append(parts, fmt.Sprintf("ways %d", g.Ways))
	}
	if g.MB > 0 {
		parts = append(parts, fmt.Sprintf("bandwidth %d %%", g.MB))
	}
	return strings.Join(parts, ", ")
}

// compare orders grants by how much CPU they leave a pod: negative if g leaves less than o. The last rung counts most, since it is reached
// only when those before it are used up. The freezer is left out: it is a moment, not a level.
func (g Grant) compare(o Grant) int {
	if d := cmpLimit(g.MilliCPU, o.MilliCPU); d != 0 {
		return d
	}
	if d := cmpLimit(int64(g.Cores), int64(o.Cores)); d != 0 {
		return d
	}
	switch {
	case g.Idle == o.Idle:
		return 0
	case g.Idle:
		return -1
	}
	return 1
}

// cmpLimit compares limits of which 0 is none.
func cmpLimit(a, b int64) int {
	switch {
	case a == b:
		return 0
	case a == 0:
		return 1
	case b == 0, a < b:
		return -1
	}
	return 1
}

// limited reports whether a rung of the ladder holds in g.
func (g Grant) limited(r policy.Rung) bool {
	switch r {
	case policy.RungIdle:
		return g.Idle
	case policy.RungCPUs:
		return g.Cores > 0
	case policy.RungQuota:
		return g.MilliCPU > 0
	case policy.RungFreeze:
		return g.Frozen
	}
	return false
}

// lift takes a rung's limit out of g.
func (g Grant) lift(r policy.Rung) Grant {
	switch r {
	case policy.RungIdle:
		g.Idle = false
	case policy.RungCPUs:
		g.Cores = 0
	case policy.RungQuota:
		g.MilliCPU = 0
	case policy.RungFreeze:
		g.Frozen = false
	}
	return g
}
