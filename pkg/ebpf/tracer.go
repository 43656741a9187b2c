package ebpf

import (
	"errors"
	"time"
)

// Tracer is the loaded kernel side. Its methods are safe for concurrent use.
type Tracer struct{}

// Load loads and attaches the programs. A kernel or a process that lacks something gives a [*UnsupportedError].
func Load(o Options) (*Tracer, error) { return nil, errors.New("not built yet") }

// Track makes tasks of the group with the given id count for slot s. The id is the inode number of the group's directory in
// the cpu controller's hierarchy. A victim's waits are attributed too.
func (t *Tracer) Track(id uint64, s Slot, victim bool) error { return nil }

// Untrack makes tasks of the group count for SlotSystem again. A group that is not tracked is no error.
func (t *Tracer) Untrack(id uint64) error { return nil }

// Reset forgets what slot s has counted, as victim and as culprit, and gives back what it held as a victim. Call it before a
// slot is given to another container.
func (t *Tracer) Reset(s Slot) {}

// SetEventBound sets the wait above which a victim gives an event; 0 turns events off. It takes effect at once.
func (t *Tracer) SetEventBound(d time.Duration) {}

// Wait brings into up to date and reports whether it changed. into must be zero or hold what an earlier call for the same slot
// left there. It neither allocates nor enters the kernel.
func (t *Tracer) Wait(s Slot, into *Wait) bool { return false }

// Blame copies the nanoseconds that victim has waited by culprit slot, as many as into holds (up to MaxSlots), and returns
// the number of waits attributed so far. If that number is seen, which an earlier call returned, nothing is copied.
// It neither allocates nor enters the kernel.
func (t *Tracer) Blame(victim Slot, seen uint64, into []uint64) (walks uint64) { return 0 }

// EventFD is a descriptor that polls readable while events are waiting.
func (t *Tracer) EventFD() int { return -1 }

// ReadEvent takes the next event, if there is one. It does not block.
func (t *Tracer) ReadEvent(into *Event) (bool, error) { return false, nil }

// Stats fills into, reusing its Programs slice.
func (t *Tracer) Stats(into *Stats) error { return nil }

// MaxSlots is the number of slots, pseudo slots included.
func (t *Tracer) MaxSlots() int { return 0 }

// Close detaches the programs and frees everything. The Tracer must not be used afterwards.
func (t *Tracer) Close() error { return nil }
