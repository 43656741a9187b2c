package decide

import (
	"maps"
	"slices"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// roster knows every pod and container of the present snapshot by a number that stays with it, and every pod's class. Numbers are
// given in the order of first sight, so a replay gives the same.
type roster struct {
	gen      uint64 // Snapshot.PodsGen that the lists below belong to
	policyID string
	filled   bool

	members    map[identity]*member
	containers map[containerKey]uint32
	lastPod    uint32
	lastID     uint32

	// By index into Pods, and into Containers for containerID.
	list        []*member
	class       []policy.Class
	rule        []string
	podID       []uint32
	first       []int
	containerID []uint32
	index       []containerRef
	next        map[containerKey]uint32
}

// identity is what makes a pod the same pod. One that comes back in another group is another pod.
type identity struct{ uid, namespace, name, cgroup string }

// containerKey is a container of a pod. IDs are unique on a node, but two static pods might be given the same group.
type containerKey struct {
	pod uint32
	id  string
}

// containerRef is where a container was found.
type containerRef struct {
	pod, container int
	id             string
}

type member struct {
	id    uint32
	pod   signal.Pod // as classified; its maps are never changed by anybody
	class policy.Class
	rule  string
	met   bool
}

// update takes over the snapshot's pods and reports whether anything differs from the step before.
func (r *roster) update(snap *signal.Snapshot, pol Policy) (changed bool) {
	id := pol.ID()
	if r.filled && id == r.policyID && (snap.PodsGen != 0 && snap.PodsGen == r.gen && len(snap.Containers) == len(r.index) || r.same(snap)) {
		r.gen = snap.PodsGen
		return false
	}
	again := id != r.policyID || !r.filled
	r.filled, r.gen, r.policyID = true, snap.PodsGen, id
	r.fill(snap, pol, again)
	return true
}

// same compares the snapshot with what is known, one by one: for snapshots that do not say by themselves.
func (r *roster) same(snap *signal.Snapshot) bool {
	if len(snap.Pods) != len(r.list) || len(snap.Containers) != len(r.index) {
		return false
	}
	for i := range snap.Pods {
		if !samePod(&snap.Pods[i], &r.list[i].pod) {
			return false
		}
	}
	for i := range snap.Containers {
		c, ref := &snap.Containers[i], &r.index[i]
		if c.Pod != ref.pod || c.Container != ref.container || containerID(snap, i) != ref.id {
			return false
		}
	}
	return true
}

// samePod reports whether two descriptions of a pod say the same of all that matters to its class and its groups.
func samePod(a, b *signal.Pod) bool {
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name && a.Cgroup == b.Cgroup && a.QoS == b.QoS &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) && slices.Equal(a.Containers, b.Containers)
}

func containerID(snap *signal.Snapshot, i int) string {
	c := &snap.Containers[i]
	return snap.Pods[c.Pod].Containers[c.Container].ID
}

// Subject is what class rules see of a pod.
func Subject(p *signal.Pod) policy.Subject {
	return policy.Subject{
		Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, QoSClass: string(p.QoS), Cgroup: p.Cgroup,
	}
}

// fill makes the lists anew. Pods that are known are classified again only if the policy or they themselves changed.
func (r *roster) fill(snap *signal.Snapshot, pol Policy, again bool) {
	if r.members == nil {
		r.members, r.containers, r.next = make(map[identity]*member), make(map[containerKey]uint32), make(map[containerKey]uint32)
	}
	for _, m := range r.members {
		m.met = false
	}
	r.list, r.class, r.rule, r.podID = r.list[:0], r.class[:0], r.rule[:0], r.podID[:0]
	for i := range snap.Pods {
		p := &snap.Pods[i]
		key := identity{p.UID, p.Namespace, p.Name, p.Cgroup}
		m := r.members[key]
		fresh := m == nil
		if fresh || m.met { // two pods that nothing tells apart are still two
			r.lastPod++
			m = &member{id: r.lastPod}
			if fresh {
				r.members[key] = m
			}
			fresh = true
		}
		if fresh || again || !samePod(p, &m.pod) {
			m.pod = *p
			m.class, m.rule = pol.Classify(Subject(p))
		}
		m.met = true
		r.list = append(r.list, m)
		r.class = append(r.class, m.class)
		r.rule = append(r.rule, m.rule)
		r.podID = append(r.podID, m.id)
	}
	for key, m := range r.members {
		if !m.met {
			delete(r.members, key)
		}
	}
	r.fillContainers(snap)
}

func (r *roster) fillContainers(snap *signal.Snapshot) {
	r.first, r.containerID, r.index = r.first[:0], r.containerID[:0], r.index[:0]
	clear(r.next)
	for i := range snap.Containers {
		c := &snap.Containers[i]
		for len(r.first) <= c.Pod {
			r.first = append(r.first, i)
		}
		id := containerID(snap, i)
		key := containerKey{r.podID[c.Pod], id}
		n, ok := r.containers[key]
		if !ok {
			r.lastID++
			n = r.lastID
		}
		r.next[key] = n
		r.containerID = append(r.containerID, n)
		r.index = append(r.index, containerRef{c.Pod, c.Container, id})
	}
	for len(r.first) <= len(snap.Pods) {
		r.first = append(r.first, len(snap.Containers))
	}
	r.containers, r.next = r.next, r.containers
}

// view is the snapshot as the judge and the controllers see it.
func (r *roster) view(snap *signal.Snapshot, spec *policy.Spec, changed bool) judge.View {
	return judge.View{Snapshot: snap, Spec: spec, Class: r.class, PodID: r.podID, ContainerID: r.containerID, First: r.first, Changed: changed}
}
