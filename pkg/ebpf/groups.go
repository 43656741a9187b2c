package ebpf

import (
	"errors"
	"sync/atomic"
)

// groupTable is the table of tracked groups that the kernel side searches: open addressing, linear probing. The kernel reads
// while we write; an entry that is being changed can make it count a single dispatch for the wrong slot, never more.
type groupTable struct {
	shared[runqueueQosGroup]
	bits int // log2 of its size
}

const (
	groupProbes  = 16 // QOS_PROBES
	groupEmpty   = 0
	groupRemoved = ^uint64(0)
)

var errNotGroup = errors.New("not the inode number of a group")

func isGroup(id uint64) bool { return id != groupEmpty && id != groupRemoved }

// place is the index of the i-th entry to look at for id.
func (t *groupTable) place(id uint64, i int) int {
	home := id * 0x9e3779b97f4a7c15 >> 32 >> (32 - t.bits)
	return (int(home) + i) & (1<<t.bits - 1)
}

// find is the index of id's entry, or -1.
func (t *groupTable) find(id uint64) int {
	for i := range groupProbes {
		at := t.place(id, i)
		switch t.at[at].Id {
		case id:
			return at
		case groupEmpty:
			return -1
		}
	}
	return -1
}

// put adds or changes a group, whose id must be one; false if there is no room for it.
func (t *groupTable) put(g runqueueQosGroup) bool {
	at := t.find(g.Id)
	for i := 0; at < 0; i++ {
		if i == groupProbes {
			return false
		}
		if p := t.place(g.Id, i); t.at[p].Id == groupEmpty || t.at[p].Id == groupRemoved {
			at = p
		}
	}
	e := &t.at[at]
	atomic.StoreUint32(&e.Row, 0) // nobody is blamed for what is half written
	atomic.StoreUint32(&e.Slot, g.Slot)
	atomic.StoreUint32(&e.Epoch, g.Epoch)
	atomic.StoreUint32(&e.Throttled, g.Throttled)
	atomic.StoreUint32(&e.Row, g.Row)
	atomic.StoreUint64(&e.Id, g.Id)
	return true
}

// remove takes a group out. Searches for others may have to pass its place, unless the next place is empty: then this one and
// the removed ones before it can be empty too, so that searches stay short for ever.
func (t *groupTable) remove(id uint64) {
	at := t.find(id)
	if at < 0 {
		return
	}
	mask := len(t.at) - 1
	if t.at[(at+1)&mask].Id != groupEmpty {
		atomic.StoreUint64(&t.at[at].Id, groupRemoved)
		return
	}
	atomic.StoreUint64(&t.at[at].Id, groupEmpty)
	for p := (at - 1) & mask; t.at[p].Id == groupRemoved; p = (p - 1) & mask {
		atomic.StoreUint64(&t.at[p].Id, groupEmpty)
	}
}
