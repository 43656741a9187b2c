package ebpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// shared is an array map of the kernel side, mapped into this process. The kernel writes to it at any time: load through
// sync/atomic.
type shared[T any] struct {
	at  []T
	mem []byte
}

// mapShared maps m. T must be laid out as the map's values are; elements of array maps are padded to 8 bytes.
func mapShared[T any](m *ebpf.Map, prot int) (shared[T], error) {
	size := int(unsafe.Sizeof(*new(T)))
	if size%8 != 0 || size != int(m.ValueSize()) {
		return shared[T]{}, fmt.Errorf("map %s: elements of %d bytes, want %d", m, m.ValueSize(), size)
	}
	n := int(m.MaxEntries())
	mem, err := unix.Mmap(m.FD(), 0, n*size, prot, unix.MAP_SHARED)
	if err != nil {
		return shared[T]{}, fmt.Errorf("map %s into memory: %w", m, err)
	}
	return shared[T]{at: unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), n), mem: mem}, nil
}

func (s *shared[T]) unmap() error {
	if s.mem == nil {
		return nil
	}
	mem := s.mem
	s.at, s.mem = nil, nil
	return unix.Munmap(mem)
}

// slotSums adds up a slot's counters since it was reset. The kernel's buckets have 32 bits and wrap; nothing is ever set back
// there, because a CPU could be in the middle of an addition.
type slotSums struct {
	total Wait
	// What the kernel's counters were, all copies added up, when total was brought up to date.
	waits, waitNS, preempted uint64
	hist                     [histogram.Buckets]uint32
}

// update adds what the counters have grown by.
func (s *slotSums) update(copies []runqueueQosCounters) {
	var waits, waitNS, preempted uint64
	for i := range copies {
		c := &copies[i]
		waits += atomic.LoadUint64(&c.Waits)
		waitNS += atomic.LoadUint64(&c.WaitNs)
		preempted += atomic.LoadUint64(&c.Preempted)
	}
	s.total.Preempted += preempted - s.preempted
	s.preempted = preempted
	if waits == s.waits {
		return
	}
	s.total.Count += waits - s.waits
	s.total.SumNS += waitNS - s.waitNS
	s.waits, s.waitNS = waits, waitNS
	// Two buckets at a time, and nothing is written for those that are as they were: of a container's waits of one tick, most buckets are.
	for b := 0; b < len(s.hist); b += 2 {
		var n, m uint32
		for i := range copies {
			both := atomic.LoadUint64((*uint64)(unsafe.Pointer(&copies[i].Hist[b])))
			n += uint32(both)
			m += uint32(both >> 32)
		}
		if n == s.hist[b] && m == s.hist[b+1] {
			continue
		}
		s.total.Hist[b] += uint64(n - s.hist[b])
		s.total.Hist[b+1] += uint64(m - s.hist[b+1])
		s.hist[b], s.hist[b+1] = n, m
	}
}

// The buckets come in pairs that a load of 64 bits can take.
var (
	_ [0]struct{} = [histogram.Buckets % 2]struct{}{}
	_ [0]struct{} = [unsafe.Offsetof(runqueueQosCounters{}.Hist) % 8]struct{}{}
)

// restart begins at zero from what the counters are now.
func (s *slotSums) restart(copies []runqueueQosCounters) {
	s.update(copies)
	s.total = Wait{}
}
