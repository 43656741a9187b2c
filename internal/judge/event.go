package judge

import (
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
)

// find judges a long wait, and appends a finding for each pod that is to blame for it, or one that names nobody. A wait that counts alone
// is counted in the victim's window when it has ended, whatever comes of it. There is no finding about what is no complaint: the victim is not
// protected, the wait is inside the bound by now, or it is too old to act on.
func (s *State) find(v *View, event int) {
	e, o := &v.Events[event], &v.Spec.Objectives
	bound := o.CPUWaitEvent.D()
	if e.Often {
		bound = o.CPUWaitP99.D()
	}
	if e.Victim < 0 || e.Victim >= len(s.tracks) || s.tracks[e.Victim] == nil || o.CPUWaitEvent == 0 ||
		bound == 0 || time.Duration(e.WaitNS) < bound || v.Now-e.At > v.Spec.Safety.StaleAfter.D() {
		return
	}
	t := s.tracks[e.Victim]
	if !e.Often && !e.Ongoing {
		t.waits.events[0]++
		t.waits.events[1]++
	}
	throttled, stolen := permille(t.quota.all[0], t.quota.all[1]), permille(s.steal.all[0], s.steal.all[1])

	f := Finding{Event: event, Victim: e.Victim, Culprit: -1, Often: e.Often, Ongoing: e.Ongoing, Wait: time.Duration(e.WaitNS)}
	f.Began = e.At - f.Wait
	s.alone(v, e, &f, throttled, stolen)
	explained := f.Reason != Scattered && f.Reason != Unexplained
	if len(e.Blame) == 0 || explained && !e.Often {
		s.findings = append(s.findings, f)
		return
	}

	// More is known than the largest part of one wait.
	vd := Verdict{Axis: CPU, Level: Violated}
	vd.ThrottledPermille, vd.StealPermille = throttled, stolen
	s.account(v, e, &vd)
	s.explain(&v.Spec.Judge, &vd)
	f.Reason, f.Joint, f.Culprit = vd.Reason, vd.Joint, -1
	for _, c := range vd.Culprits() {
		f.Culprit, f.Permille = c.Pod, c.Permille
		s.findings = append(s.findings, f)
	}
	if vd.Named == 0 {
		s.findings = append(s.findings, f)
	}
}

// alone judges a wait by the largest part of it, which is all that is known of most.
func (s *State) alone(v *View, e *signal.WaitEvent, f *Finding, throttled, stolen int) {
	f.Permille = permille(min(e.PartNS, e.WaitNS), e.WaitNS)
	part, pod := attribute(v, v.Containers[e.Victim].Pod, e.Culprit)
	j := &v.Spec.Judge
	switch {
	case throttled >= j.ThrottledPercent*10:
		f.Reason = SelfThrottled
	case stolen >= j.StealPercent*10:
		f.Reason = Steal
	case f.Permille < j.CulpritPercent*10:
		f.Reason = Scattered
	case pod >= 0 && f.Permille <= 1000-j.UnknownPercent*10:
		// All the rest may be unknown. If that can be so much that nobody is to be named, something else has to decide.
		f.Reason = Unexplained
	case pod >= 0:
		f.Reason, f.Culprit = Contention, pod
	default:
		f.Reason = partReason[part]
	}
}

// account fills in where the victim's waits of the last milliseconds went.
func (s *State) account(v *View, e *signal.WaitEvent, vd *Verdict) {
	var parts [Parts]uint64
	victim, shares := v.Containers[e.Victim].Pod, s.accounted[:0]
	for _, b := range e.Blame {
		vd.AttributedNS += b.NS
		part, pod := attribute(v, victim, b.Culprit)
		if pod < 0 {
			parts[part] += b.NS
			continue
		}
		at := slices.IndexFunc(shares, func(s Share) bool { return s.Pod == pod })
		if at < 0 {
			at = len(shares)
			shares = append(shares, Share{Pod: pod, Class: v.Class[pod]})
		}
		shares[at].NS += b.NS
	}
	for i, ns := range parts {
		vd.Parts[i] = permille(ns, vd.AttributedNS)
	}
	for i := range shares {
		shares[i].Permille = permille(shares[i].NS, vd.AttributedNS)
	}
	slices.SortFunc(shares, byShare)
	s.accounted, vd.Shares = shares, shares
}

// partReason is the reason for a wait that went mostly to a part.
var partReason = [Parts]Reason{
	Own:        OwnQueue,
	OwnQuota:   SelfThrottled,
	Idle:       IdleWakeup,
	KernelTime: Kernel,
	IRQ:        Kernel,
	SystemTime: System,
	Gone:       Scattered,
	NotKnown:   Unexplained,
}
