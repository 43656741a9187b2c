package control

import (
	"maps"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
)

// OwnerBurst is the name of the burst controller as the owner of knobs.
const OwnerBurst = "cpu-burst"

const (
	// burstQuiet is how long a container must not have been throttled for its burst to be taken back. It doubles each time that this
	// turns out to be premature, up to burstQuietMax.
	burstQuiet    = 10 * time.Minute
	burstQuietMax = 12 * time.Hour
)

// Burst lets online containers that hit their own quota save up what they leave unused in quieter periods (cpu.max.burst). The
// quota itself is never touched: koordlet's scaling of quotas fights with every other writer of them (its issue 2306), and a burst
// beyond the quota, which it asks for by default, is EINVAL on cgroup v2 (2778). The zero value is ready.
//
// A pod whose containers all have limits has a quota too, their sum, which would throttle it all the same; so the pod's group gets the
// sum of its containers' bursts, as in koordlet.
type Burst struct {
	at    []*bursting          // by index into Containers; nil for what was never throttled
	byID  map[uint32]*bursting // by ContainerID
	notes []Note

	settled bool // no burst began or ended since Wants was last called
	wanted  bool // it wanted something
	percent int64
	able    bool
}

// bursting is an online container that has been throttled.
type bursting struct {
	container int // index; -1 while sync has not met it
	on        bool
	seen      time.Duration // CPUSample.At of the newest sample looked at
	throttled time.Duration // when it last was
	quiet     time.Duration // how long it must not be before the burst ends
}

// Notes is what the last step did.
func (b *Burst) Notes() []Note { return b.notes }

// Step takes one step.
func (b *Burst) Step(in *Input) {
	b.notes = b.notes[:0]
	if in.Changed {
		b.sync(in)
	}
	if !in.tick() {
		return
	}
	for i := range in.Containers {
		if !in.Judge.Judges(i) {
			continue
		}
		s := &in.Containers[i].CPU
		if s.ThrottledPeriods == 0 && b.at[i] == nil {
			continue
		}
		t := b.at[i]
		if t == nil {
			t = &bursting{container: i, quiet: burstQuiet}
			b.at[i], b.byID[in.ContainerID[i]] = t, t
		}
		if s.At == t.seen {
			continue
		}
		t.seen = s.At
		if s.ThrottledPeriods > 0 {
			t.throttled = in.Now
		}
		switch {
		case !t.on && s.ThrottledPeriods > 0 && s.QuotaUS > 0:
			t.on, b.settled = true, false
			b.note(in, i, RuleBurst, "throttled by its own quota")
		case t.on && s.QuotaUS <= 0:
			t.on, b.settled = false, false
			b.note(in, i, RuleBurstEnd, "it has no quota any more")
		case t.on && in.Now-t.throttled >= t.quiet:
			t.on, b.settled = false, false
			b.note(in, i, RuleBurstEnd, "not throttled for "+t.quiet.String())
			t.quiet = min(2*t.quiet, burstQuietMax)
		}
	}
}

// sync follows containers to their new indexes and forgets those that are gone or no longer online.
func (b *Burst) sync(in *Input) {
	b.settled = false
	if b.byID == nil {
		b.byID = make(map[uint32]*bursting)
	}
	for _, t := range b.byID {
		t.container = -1
	}
	b.at = b.at[:0]
	for i, id := range in.ContainerID {
		var t *bursting
		if in.Online(i) {
			if t = b.byID[id]; t != nil {
				t.container = i
			}
		}
		b.at = append(b.at, t)
	}
	maps.DeleteFunc(b.byID, func(_ uint32, t *bursting) bool { return t.container < 0 })
}

func (b *Burst) note(in *Input, i int, rule, text string) {
	pod := &in.Pods[in.Containers[i].Pod]
	b.notes = append(b.notes, Note{At: in.Now, Owner: OwnerBurst, Rule: rule, Pod: pod.Key(),
		Text: pod.Containers[in.Containers[i].Container].Name + ": " + text})
}

// Settled reports whether Wants would give the same as when it was last called. Quotas may change with every tick.
func (b *Burst) Settled(in *Input) bool {
	return b.settled && b.percent == burstPercent(in) && b.able == in.Node.Caps.CPUBurst && !(b.wanted && in.tick())
}

// burstPercent is how much of a quota may be saved up. The kernel takes no burst above the quota.
func burstPercent(in *Input) int64 { return int64(min(in.Spec.CPU.Burst.Percent, 100)) }

// Wants appends the complete list of what the controller wants.
func (b *Burst) Wants(in *Input, dst []knob.Want) []knob.Want {
	had, percent := len(dst), burstPercent(in)
	if b.percent, b.able = percent, in.Node.Caps.CPUBurst; percent > 0 && b.able && len(b.byID) > 0 {
		dst = b.wants(in, percent, dst)
	}
	b.settled, b.wanted = true, len(dst) > had
	return dst
}

func (b *Burst) wants(in *Input, percent int64, dst []knob.Want) []knob.Want {
	for pod := range in.Pods {
		if in.Class[pod] != policy.Online {
			continue
		}
		w := knob.Want{Owner: OwnerBurst, Rule: RuleBurst}
		group := in.Pods[pod].Cgroup
		sum, largest, unlimited := int64(0), int64(0), false
		for i := in.First[pod]; i < in.First[pod+1]; i++ {
			s := &in.Containers[i].CPU
			if s.QuotaUS <= 0 {
				unlimited = true
				continue
			}
			// The sampled quota is the tighter of the container's and the pod's, so the pod's is not below the largest.
			largest = max(largest, s.QuotaUS)
			t := b.at[i]
			n := s.QuotaUS * percent / 100
			if t == nil || !t.on || n == 0 {
				continue
			}
			if w.Pod == "" {
				w.Pod = in.Pods[pod].Key()
			}
			w.Cgroup = in.Pods[pod].Containers[in.Containers[i].Container].Cgroup
			if offLimits(w.Cgroup) == "" && w.Cgroup != group {
				dst = append(dst, want(w, knob.CPUBurst, knob.Value{N: n}))
			}
			sum += n
		}
		if sum == 0 || offLimits(group) != "" {
			continue
		}
		if own := in.First[pod+1]-in.First[pod] == 1 && w.Cgroup == group; own || !unlimited {
			w.Cgroup = group
			dst = append(dst, want(w, knob.CPUBurst, knob.Value{N: min(sum, largest)}))
		}
	}
	return dst
}
