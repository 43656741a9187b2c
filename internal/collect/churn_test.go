package collect

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// counts is waits as a test has made them up or as snapshots have shown them.
type counts struct{ count, sumNS, blameNS uint64 }

// churn drives a collector with random pods that come, go, restart and change class, and random waits, and keeps its own accounts.
type churn struct {
	*world
	t    *rapid.T
	pods []signal.Pod
	// generation of each pod name: a pod that was gone and comes back is another one.
	generation map[string]int
	restarts   map[string]int
	victims    map[string]bool
	rested     map[ebpf.Slot]time.Duration // when each slot was last given back

	made, shown map[string]*counts           // by container, while it is listed
	totals      map[string]*counts           // by pod and container name, while the pod is listed
	blame       map[string]map[string]uint64 // by victim and culprit pod
	last        map[string]uint64            // totals of the last view, which may not fall
	owner       map[ebpf.Slot]string         // pod that has or last had the slot, with its generation
}

func podKey(ref PodRef) string { return ref.Namespace + "/" + ref.Name }

// setPods lists a random subset of what there could be.
func (c *churn) setPods() {
	var pods []signal.Pod
	for i := range 4 {
		if rapid.IntRange(0, 3).Draw(c.t, "pod listed") == 0 {
			continue
		}
		p := signal.Pod{UID: fmt.Sprint(i), Namespace: "n", Name: fmt.Sprint(i), Cgroup: fmt.Sprintf("/p%d", i)}
		for j := range rapid.IntRange(0, 3).Draw(c.t, "containers") {
			name := fmt.Sprint("c", j)
			if rapid.IntRange(0, 4).Draw(c.t, "restart") == 0 {
				c.restarts[p.Name+name]++
			}
			id := fmt.Sprintf("%d-%d-%d", i, j, c.restarts[p.Name+name])
			group := fmt.Sprintf("/p%d/%s", i, id)
			if _, err := c.c.o.Hierarchy.ID(group); err != nil {
				c.group(group, use{})
			}
			p.Containers = append(p.Containers, signal.Container{ID: id, Name: name, Cgroup: group})
		}
		pods = append(pods, p)
	}
	listed := map[string]bool{}
	running := map[string]bool{}
	for _, p := range pods {
		listed[podKey(refOf(&p))] = true
		for _, ct := range p.Containers {
			running[ct.ID] = true
		}
		c.victims[p.Name] = rapid.Bool().Draw(c.t, "online")
	}
	for _, p := range c.pods {
		key := podKey(refOf(&p))
		for _, ct := range p.Containers {
			if running[ct.ID] {
				continue
			}
			if slot := c.slot(ct); slot >= ebpf.FirstSlot {
				c.rested[slot] = c.clock.Now()
			}
			delete(c.made, ct.ID)
			delete(c.shown, ct.ID)
			if !listed[key] {
				delete(c.totals, key+"/"+ct.Name)
			}
		}
		if !listed[key] {
			c.endPod(key)
		}
	}
	c.pods = pods
	c.c.SetPods(pods, func(p *signal.Pod) bool { return c.victims[p.Name] })
	c.learnSlots()
}

// endPod forgets what is counted for and against a pod.
func (c *churn) endPod(key string) {
	delete(c.blame, key)
	for _, b := range c.blame {
		delete(b, key)
	}
	for name := range c.totals {
		if within("/"+name, "/"+key) {
			delete(c.totals, name)
		}
	}
	for name := range c.last {
		if within("/"+name, "/"+key) {
			delete(c.last, name)
		}
	}
	c.generation[key]++
}

func (c *churn) slot(ct signal.Container) ebpf.Slot { return c.tracer.slotOf(c.id(ct.Cgroup)) }

// learnSlots notes who has which slot.
func (c *churn) learnSlots() {
	for _, p := range c.pods {
		for _, ct := range p.Containers {
			slot := c.slot(ct)
			if slot < ebpf.FirstSlot {
				continue
			}
			if at, ok := c.rested[slot]; ok {
				if c.clock.Now()-at < slotRest {
					c.t.Fatalf("slot %d was given out again after %v", slot, c.clock.Now()-at)
				}
				delete(c.rested, slot)
			}
			key := podKey(refOf(&p))
			c.owner[slot] = fmt.Sprint(key, "#", c.generation[key])
		}
	}
}

// dispatch makes waits of random containers, with culprits that run, that have just ended, or that are no containers.
func (c *churn) dispatch() {
	for _, p := range c.pods {
		for _, ct := range p.Containers {
			n := rapid.IntRange(0, 2).Draw(c.t, "waits")
			slot := c.slot(ct)
			if slot < ebpf.FirstSlot {
				continue
			}
			for range n {
				culprits := []ebpf.Slot{ebpf.SlotUnknown, ebpf.SlotKernel, ebpf.SlotQuota}
				for s := ebpf.FirstSlot; int(s) < c.tracer.slots; s++ {
					if at, rests := c.rested[s]; c.owner[s] != "" && (!rests || c.clock.Now()-at < slotRest) {
						culprits = append(culprits, s)
					}
				}
				culprit := rapid.SampledFrom(culprits).Draw(c.t, "culprit")
				ns := rapid.Uint64Range(1, 1e6).Draw(c.t, "wait") * 1000 // what is below a microsecond has a test of its own
				c.tracer.dispatch(c.id(ct.Cgroup), time.Duration(ns), culprit)
				c.account(p, ct, ns, culprit)
			}
		}
	}
}

func (c *churn) account(p signal.Pod, ct signal.Container, ns uint64, culprit ebpf.Slot) {
	key := podKey(refOf(&p))
	for _, n := range []*counts{at(c.made, ct.ID), at(c.totals, key+"/"+ct.Name)} {
		n.count++
		n.sumNS += ns
		if c.victims[p.Name] {
			n.blameNS += ns
		}
	}
	if !c.victims[p.Name] || culprit < ebpf.FirstSlot {
		return
	}
	if c.blame[key] == nil {
		c.blame[key] = map[string]uint64{}
	}
	for _, other := range c.pods {
		if o := podKey(refOf(&other)); c.owner[culprit] == fmt.Sprint(o, "#", c.generation[o]) {
			c.blame[key][o] += ns
		}
	}
}

func at(m map[string]*counts, key string) *counts {
	if m[key] == nil {
		m[key] = &counts{}
	}
	return m[key]
}

// tickAndCheck compares the collector's accounts with the test's.
func (c *churn) tickAndCheck() {
	s := c.tick(time.Duration(rapid.IntRange(50, 1500).Draw(c.t, "ms")) * time.Millisecond)
	c.learnSlots()
	unread := map[string]bool{} // of whom there is more than was read yet
	for i := range s.Containers {
		ct := &s.Containers[i]
		d := s.Pods[ct.Pod].Containers[ct.Container]
		if ct.Wait.At != 0 && ct.Wait.At != s.Now {
			if c.victims[s.Pods[ct.Pod].Name] || ct.Wait.Count != 0 || s.Now-ct.Wait.At > 500*time.Millisecond {
				c.t.Fatalf("container %s at %v: %+v", d.ID, s.Now, ct.Wait)
			}
			unread[podKey(refOf(&s.Pods[ct.Pod]))+"/"+d.Name] = true
			continue
		}
		n := at(c.shown, d.ID)
		n.count += ct.Wait.Count
		n.sumNS += ct.Wait.SumNS
		var inBuckets uint64
		for _, b := range ct.Wait.Buckets {
			inBuckets += uint64(b.Count)
		}
		if inBuckets != ct.Wait.Count {
			c.t.Fatalf("%d waits and %d in buckets", ct.Wait.Count, inBuckets)
		}
		if !slices.IsSortedFunc(ct.Wait.Blame, func(a, b signal.Blame) int { return int(a.Culprit) - int(b.Culprit) }) {
			c.t.Fatalf("blame is not sorted: %v", ct.Wait.Blame)
		}
		for _, b := range ct.Wait.Blame {
			n.blameNS += b.NS
			if int(b.Culprit) >= len(s.Containers) {
				c.t.Fatalf("culprit %d of %d containers", b.Culprit, len(s.Containers))
			}
		}
		if made := at(c.made, d.ID); *made != *n {
			c.t.Fatalf("container %s: snapshots add up to %+v, waits to %+v", d.ID, *n, *made)
		}
	}
	c.checkView(unread)
}

func (c *churn) checkView(unread map[string]bool) {
	v := c.c.View()
	seen := map[string]bool{}
	for _, row := range v.Containers {
		key := podKey(row.Pod) + "/" + row.Name
		seen[key] = true
		want := at(c.totals, key)
		if row.Wait == nil {
			if want.count != 0 {
				c.t.Fatalf("%s is not measured but should have %+v", key, *want)
			}
			continue
		}
		if unread[key] {
			if row.Wait.Count > want.count || row.Wait.SumNS > want.sumNS || row.Wait.Hist.Total() != row.Wait.Count {
				c.t.Fatalf("%s: total of %d waits, %d ns, %d in buckets, want at most %+v", key, row.Wait.Count, row.Wait.SumNS, row.Wait.Hist.Total(), *want)
			}
		} else if row.Wait.Count != want.count || row.Wait.SumNS != want.sumNS || row.Wait.Hist.Total() != want.count {
			c.t.Fatalf("%s: total of %d waits, %d ns, %d in buckets, want %+v", key, row.Wait.Count, row.Wait.SumNS, row.Wait.Hist.Total(), *want)
		}
		if row.Wait.Count < c.last[key] {
			c.t.Fatalf("%s: total fell from %d to %d", key, c.last[key], row.Wait.Count)
		}
		c.last[key] = row.Wait.Count
	}
	for key, n := range c.totals {
		if !seen[key] && n.count > 0 {
			c.t.Fatalf("%s is missing, with %+v", key, *n)
		}
	}
	got := map[string]map[string]uint64{}
	for _, b := range v.Blame {
		if b.Pseudo != 0 {
			continue
		}
		if got[podKey(b.Victim)] == nil {
			got[podKey(b.Victim)] = map[string]uint64{}
		}
		got[podKey(b.Victim)][podKey(b.Culprit)] = b.NS
	}
	for victim, row := range c.blame {
		for culprit, ns := range row {
			if got[victim][culprit] != ns {
				c.t.Fatalf("%s waited %d ns for %s, want %d", victim, got[victim][culprit], culprit, ns)
			}
		}
	}
	for victim, row := range got {
		for culprit, ns := range row {
			if c.blame[victim][culprit] != ns {
				c.t.Fatalf("%s waited %d ns for %s, want %d", victim, ns, culprit, c.blame[victim][culprit])
			}
		}
	}
}

// Every wait shows in exactly one snapshot, and in the totals as long as its pod lives, whatever comes and goes.
func TestNothingIsLostOrCountedTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := &churn{
			world: newWorld(t, "v2", int(ebpf.FirstSlot)+rapid.IntRange(1, 12).Draw(rt, "slots")), t: rt,
			generation: map[string]int{}, restarts: map[string]int{}, victims: map[string]bool{}, rested: map[ebpf.Slot]time.Duration{},
			made: map[string]*counts{}, shown: map[string]*counts{}, totals: map[string]*counts{}, blame: map[string]map[string]uint64{},
			last: map[string]uint64{}, owner: map[ebpf.Slot]string{},
		}
		// No files held open until the last check, nor by one that fails: shrinking it runs hundreds of others.
		defer c.c.SetPods(nil, online())
		rt.Repeat(map[string]func(*rapid.T){
			"set pods": func(*rapid.T) { c.setPods() },
			"dispatch": func(*rapid.T) { c.dispatch() },
			"tick":     func(*rapid.T) { c.tickAndCheck() },
			"event":    func(*rapid.T) { c.c.Event() },
		})
	})
}
