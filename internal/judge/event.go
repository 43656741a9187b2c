package judge

import (
	"time"
)

// find judges a single long wait. It is counted in the victim's window whatever comes of it. ok is false for what is no complaint:
// the victim is not protected, the wait is inside the bound by now, or it is too old to act on.
func (s *State) find(v *View, event int) (f Finding, ok bool) {
	e := &v.Events[event]
	bound := v.Spec.Objectives.CPUWaitEvent.D()
	if e.Victim < 0 || e.Victim >= len(s.tracks) || s.tracks[e.Victim] == nil ||
		bound == 0 || time.Duration(e.WaitNS) < bound || v.Now-e.At > v.Spec.Safety.StaleAfter.D() {
		return Finding{}, false
	}
	t := s.tracks[e.Victim]
	t.waits.events[0]++
	t.waits.events[1]++

	f = Finding{Event: event, Victim: e.Victim, Culprit: -1, Wait: time.Duration(e.WaitNS), Permille: permille(min(e.PartNS, e.WaitNS), e.WaitNS)}
	f.Began = e.At - f.Wait
	part, pod := attribute(v, v.Containers[e.Victim].Pod, e.Culprit)
	j := &v.Spec.Judge
	switch {
	case permille(t.quota.all[0], t.quota.all[1]) >= j.ThrottledPercent*10:
		f.Reason = SelfThrottled
	case permille(s.steal.all[0], s.steal.all[1]) >= j.StealPercent*10:
		f.Reason = Steal
	case f.Permille < j.CulpritPercent*10:
		f.Reason = Scattered
	case pod >= 0 && f.Permille <= 1000-j.UnknownPercent*10:
		// An event tells only of the largest part. All the rest may be unknown: if that can be so much that nobody is to be
		// named, the window with all its parts has to decide.
		f.Reason = Unexplained
	case pod >= 0:
		f.Reason, f.Culprit = Contention, pod
	default:
		f.Reason = partReason[part]
	}
	return f, true
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
