package collect

import (
	"errors"
	"path"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// PodRef names a pod for good: a pod that is made again under the same name has another UID.
type PodRef struct {
	UID, Namespace, Name string
}

// pod is what outlives the containers of a pod.
type pod struct {
	ref   PodRef
	group string

	cpu     *cgroup.CPUReader // nil if not open, or if the pod's group is a container's too
	quota   cgroup.CPUQuota
	quotaAt time.Duration // when quota was read; 0: never
	stat    cgroup.CPUStat
	statAt  time.Duration // when stat was read; 0: never
	rdt     monitoring

	// Totals since the pod was first seen. What containers of one name counted is added up, so that a restart sets nothing back.
	totals map[string]*totals
	blame  map[*pod]uint64 // ns by culprit
	pseudo [pseudoCulprits]uint64
}

// totals is what the containers of one name in a pod have counted.
type totals struct {
	measured bool      // run-queue wait
	wait     ebpf.Wait // of containers that have ended; what lives is in container.wait
	hasCPU   bool
	cpu      cgroup.CPUStat
	counted  bool
	counters perf.Counts
}

// containerKey is everything about a container that makes it another one if it changes.
type containerKey struct {
	pod             PodRef
	name, id, group string
}

// SetPods says which pods there are from now on, and which of them are victims: those whose waits are attributed and whose long
// waits give events. pods must be sorted by namespace, name and UID, their containers by name and ID, and must not be changed any
// more. The next tick shows the change; events until then are about the pods of the last tick.
//
// Call it again with the same pods when the classes have changed.
func (c *Collector) SetPods(pods []signal.Pod, victim func(*signal.Pod) bool) {
	now := c.o.Clock.Now()
	c.gen++
	c.pods = pods

	// What has ended goes first: its groups may be part of what comes.
	listed := make(map[containerKey]bool, len(c.containers))
	alive := make(map[PodRef]bool, len(pods))
	for i := range pods {
		ref := refOf(&pods[i])
		alive[ref] = true
		for j := range pods[i].Containers {
			listed[keyOf(ref, &pods[i].Containers[j])] = true
		}
	}
	for key, ct := range c.containers {
		if !listed[key] {
			c.endContainer(now, ct)
		}
	}
	for ref, p := range c.podStates {
		if !alive[ref] {
			c.endPod(p)
		}
	}

	c.perf.stale = true
	clear(c.list) // what has ended is not to be kept alive
	c.list = c.list[:0]
	for i := range pods {
		p := c.pod(&pods[i])
		isVictim := victim(&pods[i])
		for j := range pods[i].Containers {
			ct := c.container(now, p, &pods[i].Containers[j], isVictim)
			ct.sample.Pod, ct.sample.Container = i, j
			c.list = append(c.list, ct)
		}
	}
}

func refOf(p *signal.Pod) PodRef { return PodRef{p.UID, p.Namespace, p.Name} }

func keyOf(ref PodRef, d *signal.Container) containerKey {
	return containerKey{pod: ref, name: d.Name, id: d.ID, group: path.Clean("/" + d.Cgroup)}
}

// pod finds or makes what is kept of a pod.
func (c *Collector) pod(d *signal.Pod) *pod {
	ref := refOf(d)
	p := c.podStates[ref]
	if p == nil {
		p = &pod{ref: ref, totals: map[string]*totals{}, blame: map[*pod]uint64{}}
		c.podStates[ref] = p
	}
	group := ""
	if d.Cgroup != "" {
		group = path.Clean("/" + d.Cgroup)
	}
	if p.group != group {
		p.close(c)
		p.group = group
	}
	return p
}

func (c *Collector) endPod(p *pod) {
	p.close(c)
	delete(c.podStates, p.ref)
	c.slots.disown(p)
	for _, other := range c.podStates {
		delete(other.blame, p)
	}
}

func (p *pod) close(c *Collector) {
	c.closed(p.cpu.Close())
	p.rdt.close()
	p.cpu, p.quota, p.quotaAt, p.statAt = nil, cgroup.CPUQuota{}, 0, 0
}

// container finds or makes what is kept of a container, and brings its role up to date. A new one is opened at once, so that its
// waits count from now on.
func (c *Collector) container(now time.Duration, p *pod, d *signal.Container, victim bool) *container {
	key := keyOf(p.ref, d)
	ct := c.containers[key]
	if ct == nil {
		ct = &container{key: key, pod: p, group: key.group, victim: victim, dir: -1, phase: c.born}
		c.born++
		if ct.totals = p.totals[d.Name]; ct.totals == nil {
			ct.totals = &totals{}
			p.totals[d.Name] = ct.totals
		}
		c.containers[key] = ct
		c.scan(now, ct)
		return ct
	}
	if ct.victim != victim {
		ct.victim = victim
		// What is known may be too old for its new role, and what a victim has waited for is to be read before a slot in it is cleared.
		ct.due[partQuota], ct.due[partPSI], ct.due[partWait] = 0, 0, 0
		for _, id := range ct.groups {
			c.track(id, ct)
		}
	}
	return ct
}

func (c *Collector) endContainer(now time.Duration, ct *container) {
	c.closeGroup(ct)
	if ct.slot != 0 {
		// Nothing is charged to the container any more: what it has waited since the last tick goes into the totals.
		c.tracer.Wait(ct.slot, &ct.wait)
		if ct.row != nil {
			c.readBlame(ct, nil)
		}
		addWait(&ct.totals.wait, &ct.wait)
		c.slots.rest(ct.slot, now)
	}
	delete(c.containers, ct.key)
	if c.byGroup[ct.group] == ct {
		delete(c.byGroup, ct.group)
	}
}

func addWait(sum, w *ebpf.Wait) {
	sum.Count += w.Count
	sum.SumNS += w.SumNS
	sum.Preempted += w.Preempted
	for i, n := range w.Hist {
		sum.Hist[i] += n
	}
}

// closed takes the error of closing a file that was read from: there is nothing to do about it but to say so.
func (c *Collector) closed(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		c.log.Warn("close", "error", err)
	}
}
