// Package pods says which pods run on this node: over CRI from the container runtime (CRI), or from a file (Static).
//
// Both sources publish immutable lists. Readers take the newest list whenever they like and may keep it.
//
// What a list holds: a pod is listed as long as its sandbox is ready or one of its containers runs; a container is listed
// once its group is known and exists, and is dropped as soon as that group is gone, whatever the runtime says. The sandbox
// ("pause") container is not listed: its group lies below the pod's group, next to those of the containers.
package pods

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
)

// Source tells which pods there are.
type Source interface {
	// Run keeps the list up to date until ctx ends, and then returns nil. It calls changed from its own goroutine after
	// the list or the error in the status has changed; changed must not block. Run may be called once.
	Run(ctx context.Context, changed func()) error
	// Pods returns the newest list, sorted by namespace, name and UID, each pod's containers by name and ID. The list and
	// everything in it is immutable. It is empty before the source has answered for the first time.
	Pods() []signal.Pod
	// Status tells how well the source is doing.
	Status() Status
}

// Status is the state of a source at one instant.
type Status struct {
	// Source is where the pods come from: "unix:///run/containerd/containerd.sock", "/etc/qos-agent/pods.yaml".
	Source string
	// Runtime is the runtime's name and version, "containerd 1.6.20"; empty if not known.
	Runtime string
	// Connected is true while the source answers (CRI), or the file on disk is the one in force (Static).
	Connected bool
	// Since is when Connected took its value.
	Since time.Time
	// LastSuccess is when the list was last confirmed by its source; zero: never.
	LastSuccess time.Time
	// Error says in one text what is wrong and what to do about it, possibly in several lines (Static). Empty if Connected.
	Error string
	// Unresolved counts running containers that are not listed because their group is not known (CRI), and pods of the
	// file whose group does not exist (Static).
	Unresolved int
	// Degraded says why changes of the group tree are noticed later than usual, by polling. Empty: they are not.
	Degraded string
}

// same reports whether a reader would see no difference worth a notification.
func (s Status) same(o Status) bool {
	s.LastSuccess, o.LastSuccess = time.Time{}, time.Time{}
	return s == o
}

func sortPods(list []signal.Pod) {
	for i := range list {
		slices.SortFunc(list[i].Containers, func(a, b signal.Container) int {
			return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
		})
	}
	slices.SortFunc(list, func(a, b signal.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.UID, b.UID))
	})
}

func samePods(a, b []signal.Pod) bool { return slices.EqualFunc(a, b, samePod) }

func samePod(a, b signal.Pod) bool {
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name && a.QoS == b.QoS && a.Cgroup == b.Cgroup &&
		slices.Equal(a.Containers, b.Containers) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}
