package judge

import (
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// waits is the sliding window over a container's run-queue waits: their histogram, and where the long ones went.
type waits struct {
	span
	events pair
	pods   []blamed
	parts  [Parts]pair // both halves, the younger alone
	at     []int32     `wire:"-"` // by index into Pods, one more than where the pod is among pods; 0: nowhere. Empty: to be made
	tally  tallies
}

// blamed is another pod's part of the waits.
type blamed struct {
	id  uint32
	pod int32 // index into Pods; -1: the pod is gone
	ns  pair
}

// follow looks up where the blamed pods are now.
func (w *waits) follow(podAt map[uint32]int) {
	for i := range w.pods {
		at, ok := podAt[w.pods[i].id]
		if !ok {
			at = -1
		}
		w.pods[i].pod = int32(at)
	}
	w.at = w.at[:0]
}

// add takes the sample of the container at index i into the window.
func (w *waits) add(v *View, i int, width time.Duration) {
	s := &v.Containers[i].Wait
	switch w.next(s.At, s.Span, width) {
	case repeat:
		return
	case turn:
		w.turn()
	case reset:
		w.tally.reset()
		w.parts, w.pods, w.events = [Parts]pair{}, w.pods[:0], pair{}
		w.at = w.at[:0]
	}
	w.tally.add(s.Buckets)

	next := 0 // on a node where always the same wait for the same, blame comes in the same order at each tick
	victim := v.Containers[i].Pod
	for _, b := range s.Blame {
		part, pod := attribute(v, victim, b.Culprit)
		if pod < 0 {
			w.parts[part][0] += b.NS
			w.parts[part][1] += b.NS
			continue
		}
		at := next
		if at >= len(w.pods) || w.pods[at].pod != int32(pod) {
			at = w.entry(v, pod)
		}
		w.pods[at].ns[0] += b.NS
		w.pods[at].ns[1] += b.NS
		next = at + 1
	}
}

// turn makes the younger half the older one.
func (w *waits) turn() {
	w.tally.turn()
	for i := range w.parts {
		w.parts[i] = pair{w.parts[i][1], 0}
	}
	kept := 0
	for i := range w.pods {
		b := w.pods[i]
		w.pods[kept] = blamed{b.id, b.pod, pair{b.ns[1], 0}}
		if b.ns[1] != 0 { // which no processor foresees, so that there is better nothing else to do
			kept++
		}
	}
	w.pods = w.pods[:kept]
	w.at = w.at[:0]
	w.events = pair{w.events[1], 0}
}

// entry finds or makes the entry of a pod. A container on a busy node waits for a hundred others in turn.
func (w *waits) entry(v *View, pod int) int {
	if len(w.at) != len(v.Pods) {
		w.at = slices.Grow(w.at[:0], len(v.Pods))[:len(v.Pods)]
		clear(w.at)
		for i := range w.pods {
			if at := int(w.pods[i].pod); at >= 0 && at < len(w.at) {
				w.at[at] = int32(i + 1)
			}
		}
	}
	if w.at[pod] == 0 {
		w.pods = append(w.pods, blamed{id: v.PodID[pod], pod: int32(pod)})
		w.at[pod] = int32(len(w.pods))
	}
	return int(w.at[pod]) - 1
}

// attribute turns a culprit as the kernel side names it into another pod, or into a part that is nobody's if pod is -1. Containers
// of the victim's own pod are its own doing.
func attribute(v *View, victim int, c signal.Culprit) (part Part, pod int) {
	switch {
	case c >= 0 && int(c) < len(v.Containers):
		if pod = v.Containers[c].Pod; pod != victim {
			return 0, pod
		}
		return Own, -1
	case c == signal.CulpritKernel:
		return KernelTime, -1
	case c == signal.CulpritIRQ:
		return IRQ, -1
	case c == signal.CulpritSystem:
		return SystemTime, -1
	case c == signal.CulpritIdle:
		return Idle, -1
	case c == signal.CulpritQuota:
		return OwnQuota, -1
	case c == signal.CulpritGone:
		return Gone, -1
	}
	return NotKnown, -1
}

// cpu judges the run-queue wait.
func (s *State) cpu(v *View, i int, t *track, vd *Verdict) {
	vd.Objective = v.Spec.Objectives.CPUWaitP99.D()
	r := freshness(v, v.Containers[i].Wait.At)
	if !v.Node.Caps.RunQueue {
		r = Unmeasured
	}
	if r != None {
		vd.unknown(r)
		return
	}

	w, j := &t.waits, &v.Spec.Judge
	vd.Samples, vd.Window, vd.P99 = w.tally.total(), w.covered, w.tally.p99()
	vd.ThrottledPermille = permille(t.quota.all[0], t.quota.all[1])
	vd.StealPermille = s.stolen

	if few := vd.Samples < uint64(j.MinSamples); few {
		// A percentile of a handful means nothing, but if not even the longest of them is beyond the objective, all is well.
		vd.Reason = FewSamples
		if vd.Samples > 0 && w.tally.floor() > vd.Objective {
			vd.Level = Watch
			s.attribute(v, w, vd)
		}
		return
	}
	vd.Level = grade(int64(vd.P99), int64(vd.Objective), j)
	if vd.Level != OK {
		s.attribute(v, w, vd)
		s.explain(j, vd)
	}
}

// attribute fills in where the window's waits went.
func (s *State) attribute(v *View, w *waits, vd *Verdict) {
	gone := uint64(0)
	for _, p := range w.parts {
		vd.AttributedNS += p[0]
	}
	for _, b := range w.pods {
		vd.AttributedNS += b.ns[0]
		if b.pod < 0 {
			gone += b.ns[0]
		}
	}
	for i, p := range w.parts {
		ns := p[0]
		if Part(i) == Gone {
			ns += gone
		}
		vd.Parts[i] = permille(ns, vd.AttributedNS)
	}
	from := len(s.shares)
	for _, b := range w.pods {
		if b.pod >= 0 && b.ns[0] > 0 {
			s.shares = append(s.shares, Share{Pod: int(b.pod), Class: v.Class[b.pod], NS: b.ns[0], Permille: permille(b.ns[0], vd.AttributedNS)})
		}
	}
	vd.Shares = s.shares[from:len(s.shares):len(s.shares)]
	slices.SortFunc(vd.Shares, byShare)
}

// byShare puts the largest first, ties in the order of pods.
func byShare(a, b Share) int {
	switch {
	case a.NS > b.NS:
		return -1
	case a.NS < b.NS:
		return 1
	}
	return a.Pod - b.Pod
}

// explain finds the reason for the waits, and who is to blame, from shares and side signals. Causes that excuse everybody come
// first: while a container is throttled or the hypervisor holds its CPU, somebody else runs there, and the accounting alone would
// blame them.
func (s *State) explain(j *policy.Judge, vd *Verdict) {
	foreign := 0
	for i := range vd.Shares {
		foreign += vd.Shares[i].Permille
	}
	p := &vd.Parts
	kernel := p[KernelTime] + p[IRQ]
	own, culprit := p[Own], j.CulpritPercent*10
	switch {
	case vd.ThrottledPermille >= j.ThrottledPercent*10 || dominates(p[OwnQuota], foreign, culprit):
		vd.Reason = SelfThrottled
	case vd.StealPermille >= j.StealPercent*10:
		vd.Reason = Steal
	case vd.AttributedNS == 0 || p[NotKnown] >= j.UnknownPercent*10:
		vd.Reason = Unexplained
	case dominates(own, foreign, culprit):
		vd.Reason = OwnQueue
	case dominates(p[Idle], foreign, culprit):
		vd.Reason = IdleWakeup
	case dominates(kernel, foreign, culprit):
		vd.Reason = Kernel
	case dominates(p[SystemTime], foreign, culprit):
		vd.Reason = System
	default:
		vd.Reason = Scattered
		if vd.Named, vd.Joint = culprits(j, vd.Shares, vd.AttributedNS); vd.Named > 0 {
			vd.Reason = Contention
		}
	}
}

// dominates reports whether a part of the wait is large enough to be a cause and larger than all other pods' together.
func dominates(part, foreign, least int) bool { return part >= least && part > foreign }

// noticeable is the share in percent below which a pod is not one of several culprits, unless all shares are small.
const noticeable = 5

// culprits counts the leading shares that are to blame: each that reaches CulpritPercent; or else the fewest that reach JointPercent
// together, none of them negligible. Negligible is less than 5 %, or less than a quarter of the largest when that is smaller still:
// thirty batch pods with 3 % each are a set of equals, but a pod with 1 % is not made a culprit by a neighbour's 35 %.
func culprits(j *policy.Judge, shares []Share, total uint64) (n int, joint bool) {
	for n < len(shares) && shares[n].NS*100 >= total*uint64(j.CulpritPercent) {
		n++
	}
	if n > 0 || len(shares) == 0 {
		return n, false
	}
	least := min(total*noticeable/100, shares[0].NS/4)
	sum := uint64(0)
	for n < len(shares) && shares[n].NS >= least {
		sum += shares[n].NS
		n++
		if sum*100 >= total*uint64(j.JointPercent) {
			return n, true
		}
	}
	return 0, false
}
