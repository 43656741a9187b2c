// Package knob is the vocabulary between controllers and executor: which setting of which group should have which value, who
// wants it and why. It names settings by what they do; how they are written on cgroup v1 or v2 is the executor's business.
package knob

import (
	"fmt"

	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Kind is a setting of a group. Its String is the name in metrics, journal and decision log.
type Kind uint8

const (
	CPUIdle   Kind = iota // cpu.idle: 1 makes the whole group SCHED_IDLE towards its siblings
	CPUWeight             // cpu.weight (1 to 10000; on v1 converted to cpu.shares)
	CPUSet                // cpuset.cpus of the group and of all groups below it
	CPUQuota              // CPU bandwidth: N µs per Period µs; N = -1 lifts the limit
	CPUBurst              // cpu.max.burst, µs
	Freeze                // the freezer: 1 frozen, 0 thawed

	NumKinds = iota // how many there are
)

var names = [NumKinds]string{"cpu.idle", "cpu.weight", "cpuset.cpus", "cpu.quota", "cpu.burst", "freeze"}

func (k Kind) String() string {
	if int(k) < NumKinds {
		return names[k]
	}
	return fmt.Sprintf("knob(%d)", uint8(k))
}

// Kinds lists every kind, for metrics that want their labels seeded.
func Kinds() []Kind {
	out := make([]Kind, NumKinds)
	for i := range out {
		out[i] = Kind(i)
	}
	return out
}

// Value is the value of a knob. Which field counts depends on the kind. It is comparable.
type Value struct {
	N      int64
	Period int64      // CPUQuota only, µs
	CPUs   cpuset.Set // CPUSet only
}

// Format shows a value of kind k to people: "1", "50000/100000", "0-3".
func (v Value) Format(k Kind) string {
	switch k {
	case CPUSet:
		return v.CPUs.String()
	case CPUQuota:
		if v.N < 0 {
			return "max"
		}
		return fmt.Sprintf("%d/%d", v.N, v.Period)
	default:
		return fmt.Sprint(v.N)
	}
}

// Target is one knob of one group.
type Target struct {
	Cgroup string // relative to a controller's mount
	Kind   Kind
}

// Want is what a controller wants a knob to be. A plan is the complete list of wants: a knob that the executor holds and that
// no want names any more goes back to its original value.
type Want struct {
	Target
	Value Value
	// Owner is the controller that asks. A knob has one owner; a second one is refused.
	Owner string
	// Rule names the rule of the controller that led here, for the decision log: "posture", "event-cut", "regrow".
	Rule string
	// Pod is the pod ("namespace/name") that the group belongs to, and Victim the one for whose sake it is done, if any.
	Pod, Victim string
}

// Result is what became of a write.
type Result uint8

const (
	Written   Result = iota // written and read back as wanted
	Restored                // the original value is back
	Gone                    // the group has vanished: normal
	Refused                 // a second owner wanted the knob
	Failed                  // the kernel refused; Outcome.Err says why
	Mismatch                // the kernel took the write but shows another value
	Reapplied               // someone else had changed the value; ours is back
	Yielded                 // someone else had changed the value; the knob is theirs now

	NumResults = iota // how many there are
)

var resultNames = [NumResults]string{"written", "restored", "gone", "refused", "failed", "mismatch", "reapplied", "yielded"}

func (r Result) String() string { return resultNames[r] }

// Results lists every result.
func Results() []Result {
	out := make([]Result, NumResults)
	for i := range out {
		out[i] = Result(i)
	}
	return out
}

// Outcome is one change that the executor made or tried.
type Outcome struct {
	Want
	Old    string // value before, as text: "0-3", "max 100000"
	New    string // value that the knob has now
	Result Result
	Err    error // with Failed and Mismatch
}
