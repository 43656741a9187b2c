package collect

import (
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

const (
	// slotRest is how long a freed slot lies idle before it is given out again. The kernel's log of switches, and its digests, may name it for as
	// long as a wait lasts that began while its container ran.
	slotRest = 5 * time.Second
	// resetsATick bounds the work of a tick after many containers have ended at once.
	resetsATick = 8
)

// slots is which container has which slot of the tracer.
type slots struct {
	free    []ebpf.Slot   // ready for use; taken from the end
	resting []restingSlot // freed, oldest first
	high    int           // one past the highest slot ever given out

	// By slot. A slot that rests still belongs to the pod that had it.
	owner []*pod
	// holder is the container that has the slot now; nil for one that rests or is free.
	holder []*container
	// index is the container's place in the last tick's snapshot, or one of the negative culprits.
	index    []int32
	indexGen uint64
}

type restingSlot struct {
	slot  ebpf.Slot
	since time.Duration
}

func (s *slots) init(n int) {
	for slot := n - 1; slot >= int(ebpf.FirstSlot); slot-- {
		s.free = append(s.free, ebpf.Slot(slot))
	}
	s.high = int(ebpf.FirstSlot)
	s.owner, s.holder = make([]*pod, n), make([]*container, n)
	s.index = make([]int32, n)
	s.forgetIndexes(0)
}

// forgetIndexes makes every container's slot name a container that is gone.
func (s *slots) forgetIndexes(gen uint64) {
	s.indexGen = gen
	for i := range s.index {
		s.index[i] = int32(pseudo(ebpf.Slot(i)))
	}
}

// pseudo is the culprit that a slot stands for while no container has it.
func pseudo(s ebpf.Slot) signal.Culprit {
	switch {
	case s >= ebpf.FirstSlot:
		return signal.CulpritGone
	case s == ebpf.SlotKernel:
		return signal.CulpritKernel
	case s == ebpf.SlotIRQ:
		return signal.CulpritIRQ
	case s == ebpf.SlotSystem:
		return signal.CulpritSystem
	case s == ebpf.SlotIdle:
		return signal.CulpritIdle
	case s == ebpf.SlotQuota:
		return signal.CulpritQuota
	default:
		return signal.CulpritUnknown
	}
}

// take gives out a slot; ok is false if none is free.
func (s *slots) take(ct *container) (slot ebpf.Slot, ok bool) {
	if len(s.free) == 0 {
		return 0, false
	}
	slot = s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.high = max(s.high, int(slot)+1)
	s.owner[slot], s.holder[slot] = ct.pod, ct
	// The last snapshot does not know the new container, whoever had the slot before.
	s.index[slot] = int32(signal.CulpritGone)
	return slot, true
}

// rest takes a slot back.
func (s *slots) rest(slot ebpf.Slot, now time.Duration) {
	s.holder[slot] = nil
	s.resting = append(s.resting, restingSlot{slot, now})
}

// disown makes what the slots of an ended pod are blamed for nobody's.
func (s *slots) disown(p *pod) {
	for i := range s.high {
		if s.owner[i] == p {
			s.owner[i] = nil
		}
	}
}

// reuseSlots clears slots that have rested long enough and makes them ready for use. It has to follow the reading of all waits,
// so that nothing is lost that was charged to such a slot.
func (c *Collector) reuseSlots(now time.Duration) {
	s := &c.slots
	n := 0
	for ; n < min(len(s.resting), resetsATick) && now-s.resting[n].since >= slotRest; n++ {
		slot := s.resting[n].slot
		c.tracer.Reset(slot)
		for _, ct := range c.list {
			if ct.row != nil {
				ct.row[slot] = 0
			}
		}
		s.owner[slot] = nil
		s.free = append(s.free, slot)
	}
	s.resting = slices.Delete(s.resting, 0, n)
}
