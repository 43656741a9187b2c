package whatif

import (
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// hold is what a plan leaves an offline pod.
type hold struct {
	standing model.Standing
	cpus     int     // of the mask; 0: all
	limit    float64 // CPUs; 0: none
	frozen   bool
	held     bool // below the posture
}

// caps is the most CPU time that it can get of n CPUs.
func (h *hold) caps(n int) float64 {
	c := float64(n)
	if h.cpus > 0 {
		c = min(c, float64(h.cpus))
	}
	if h.limit > 0 {
		c = min(c, h.limit)
	}
	if h.frozen {
		c = 0
	}
	return c
}

// holds reads a plan. out is by index into pods.
func holds(out []hold, plan []knob.Want, pods []signal.Pod) []hold {
	out = out[:0]
	for range pods {
		out = append(out, hold{})
	}
	at := 0
	for i := range plan {
		w := &plan[i]
		if w.Kind == knob.CPUBurst {
			continue
		}
		pod := -1
		for k := range pods { // wants of a pod stand together, so the search begins at the last one
			if j := (at + k) % len(pods); pods[j].Cgroup == w.Cgroup {
				pod, at = j, j
				break
			}
		}
		if pod < 0 {
			continue
		}
		h := &out[pod]
		h.held = h.held || w.Rule != "posture"
		switch w.Kind {
		case knob.CPUIdle:
			h.standing = model.Idle
		case knob.CPUWeight:
			h.standing = model.Weight
		case knob.CPUSet:
			h.cpus = w.Value.CPUs.Len()
		case knob.CPUQuota:
			h.limit = float64(w.Value.N) / float64(max(1, w.Value.Period))
		case knob.Freeze:
			h.frozen = w.Value.N != 0
		}
	}
	return out
}

// actor is what is known of a pod over the whole recording.
type actor struct {
	key    string
	demand float64 // CPUs that it uses when nothing holds it back, smoothed
	free   int     // ticks for which that was seen
	bound  bool    // in the last tick
	guess  bool    // it was once taken to want all of the node
}

// world is what a step of the recording says about the node, worked out once for all policies.
type world struct {
	model     *Model
	step      *Step
	snap      *signal.Snapshot
	gen       uint64
	policyID  string
	plan      []knob.Want // recorded, that held until this step
	next      []knob.Want // scratch
	objective *policy.Spec

	class []policy.Class
	actor []*actor
	known map[string]*actor
	first []int // of each pod's containers

	was    []hold    // recorded, by pod
	behind []float64 // ns of wait by container, then by pod: len(pods) for each container; online containers on ticks only
	others []float64 // ns of wait by container that was anybody's doing
	used   []float64 // CPUs of each pod
	want   []float64 // CPUs that it would have used
	free   float64   // of each CPU, for offline pods
	cpus   int
	tick   bool
	fresh  bool // CPU time was read
	bound  time.Duration
	events uint64 // recorded events since the last tick, by nobody
}

func newWorld(m *Model) *world { return &world{model: m, known: make(map[string]*actor)} }

// observe takes a step in.
func (w *world) observe(s *Step, objective *policy.Compiled) {
	snap := s.Snapshot
	w.step, w.snap = s, snap
	w.tick = snap.Trigger == signal.Tick
	pol := s.Policy
	if objective == nil {
		objective = pol
	}
	if objective != nil {
		w.objective = objective.At(snap.Wall)
	} else {
		w.objective = nil
	}
	w.bound = 0
	if pol != nil {
		w.bound = pol.At(snap.Wall).Objectives.CPUWaitEvent.D()
	}
	if id := policyID(pol); snap.PodsGen == 0 || snap.PodsGen != w.gen || len(snap.Pods) != len(w.actor) || id != w.policyID {
		w.meet(snap, pol)
		w.gen, w.policyID = snap.PodsGen, id
	}
	if w.tick {
		w.measure()
	}
}

func policyID(p *policy.Compiled) string {
	if p == nil {
		return ""
	}
	return p.ID()
}

// meet works out who is there.
func (w *world) meet(snap *signal.Snapshot, pol *policy.Compiled) {
	w.class, w.actor, w.first = w.class[:0], w.actor[:0], w.first[:0]
	for i := range snap.Pods {
		p := &snap.Pods[i]
		c := policy.Unclassified
		if pol != nil {
			c, _ = pol.Classify(decide.Subject(p))
		}
		w.class = append(w.class, c)
		id := p.UID + " " + p.Key()
		a := w.known[id]
		if a == nil {
			a = &actor{key: p.Key()}
			w.known[id] = a
		}
		w.actor = append(w.actor, a)
	}
	for i := range snap.Containers {
		for len(w.first) <= snap.Containers[i].Pod {
			w.first = append(w.first, i)
		}
	}
	for len(w.first) <= len(snap.Pods) {
		w.first = append(w.first, len(snap.Containers))
	}
	w.was = holds(w.was, w.plan, snap.Pods)
}

// measure works out who used how much, and who wanted more.
func (w *world) measure() {
	snap := w.snap
	w.cpus = max(1, len(snap.Node.Topology.CPUs))
	w.used, w.want = w.used[:0], w.want[:0]
	offline := 0.0
	for p := range snap.Pods {
		use := 0.0
		for i := w.first[p]; i < w.first[p+1]; i++ {
			if c := &snap.Containers[i].CPU; c.Span > 0 {
				use += float64(c.UsageNS) / float64(c.Span)
			}
		}
		w.used = append(w.used, use)
		want := use
		if w.class[p] == policy.Offline {
			offline += use
			want = w.actor[p].wants(use, &w.was[p], w.cpus)
		}
		w.want = append(w.want, want)
	}
	w.account()
	w.free = 1
	if n := &snap.Node.CPU; n.At != 0 && n.Span > 0 {
		busy := float64(n.BusyNS+n.StealNS) / float64(n.Span)
		w.free = min(1, max(0.02, 1-max(0, busy-offline)/float64(w.cpus)))
	}
}

// account sums waits up by who was behind them.
func (w *world) account() {
	snap := w.snap
	pods := len(snap.Pods)
	w.behind = append(w.behind[:0], make([]float64, len(snap.Containers)*pods)...)
	w.others = append(w.others[:0], make([]float64, len(snap.Containers))...)
	for i := range snap.Containers {
		c := &snap.Containers[i]
		if w.class[c.Pod] != policy.Online {
			continue
		}
		of := w.behind[i*pods : (i+1)*pods]
		for _, b := range c.Wait.Blame {
			if foreign(w, c.Pod, b.Culprit) {
				w.others[i] += float64(b.NS)
			}
			if b.Culprit >= 0 && int(b.Culprit) < len(snap.Containers) {
				of[snap.Containers[b.Culprit].Pod] += float64(b.NS)
			}
		}
	}
}

// blamed is the wait of the container at index i that was behind a pod, ns.
func (w *world) blamed(i, pod int) float64 { return w.behind[i*len(w.snap.Pods)+pod] }

// wants is the CPUs that an offline pod would use if nothing held it back. A pod that uses what it may have would use more; how much, it
// showed when it was free, and if it never was, it is taken to want all of the node.
func (a *actor) wants(use float64, h *hold, cpus int) float64 {
	const settled = 5 // ticks from which what a free pod uses means something
	most := h.caps(cpus)
	was := a.bound
	a.bound = most < float64(cpus)
	switch {
	case !a.bound:
		if use > 0.02 && !was { // the first tick after a hold is a bit of both
			a.free++
			a.demand += max(0.1, 1/float64(a.free)) * (use - a.demand)
		}
		return use
	case use < 0.85*most && !h.frozen:
		return use
	case a.free < settled:
		a.guess = true
		return float64(cpus)
	}
	return max(use, a.demand)
}

// after makes the step's plan the one that holds.
func (w *world) after(s *Step) {
	if !slices.Equal(w.plan, s.Plan) {
		w.plan = append(w.plan[:0], s.Plan...)
		w.was = holds(w.was, w.plan, s.Snapshot.Pods)
	}
}

// share is a pod's part of the node's CPU time.
func (w *world) share(use float64) float64 { return use / float64(w.cpus) }
