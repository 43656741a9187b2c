package judge

import (
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// View is a snapshot together with what is known of its pods: their class under the policy, and numbers that stay the same while
// indexes into the snapshot move. It is valid for one step.
type View struct {
	*signal.Snapshot
	Spec *policy.Spec

	Class []policy.Class // by index into Pods
	// PodID and ContainerID number pods and containers for their life, by index into Pods and Containers. Numbers start at 1
	// and are never used again.
	PodID, ContainerID []uint32
	// First is, by index into Pods, where the pod's containers begin; it has one more entry than Pods.
	First []int
	// Changed says that pods, containers or classes differ from the step before (or that there was none).
	Changed bool
}

// Online reports whether the container at index i is to be protected.
func (v *View) Online(i int) bool { return v.Class[v.Containers[i].Pod] == policy.Online }
