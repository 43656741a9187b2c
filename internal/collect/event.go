package collect

import (
	"slices"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// maxEvents is how many events wait for the next snapshot at most.
const maxEvents = 256

// AddEvent takes an event of the tracer for the next snapshot, Event's or Tick's. One that goes on must be in the next snapshot before the
// tracer is asked again.
func (c *Collector) AddEvent(e *ebpf.Event) {
	if len(c.pending) == maxEvents {
		c.dropped++
		return
	}
	c.pending = append(c.pending, *e)
}

// Event returns a snapshot between ticks: the events that were added since the last one, beside what the last tick saw, without its
// waits. It reads no file, and allocates nothing. The snapshot stays valid until the second next call of Event, and no longer
// than the tick's that it is based on.
func (c *Collector) Event() *signal.Snapshot {
	last := &c.ticks[c.current]
	quiet := &c.quiet[c.current]
	if !c.isQuiet[c.current] {
		c.isQuiet[c.current] = true
		*quiet = append((*quiet)[:0], last.containers...)
		for i := range *quiet {
			(*quiet)[i].Wait = signal.WaitSample{}
		}
	}

	c.curEvent ^= 1
	f := &c.events[c.curEvent]
	f.events, f.blame = f.events[:0], f.blame[:0]
	c.seq++
	f.snap = last.snap
	f.snap.Seq, f.snap.Trigger = c.seq, signal.Event
	f.snap.Now, f.snap.Wall, f.snap.Elapsed = c.o.Clock.Now(), c.o.Clock.Wall(), 0
	f.snap.Containers, f.snap.Refused = *quiet, nil
	f.snap.Lost = signal.Lost{NoSlot: uint64(c.noSlot)}
	f.snap.Events = c.takeEvents(f, signal.Event)
	return &f.snap
}

// takeEvents moves what is pending to f. An event whose victim is not in the last tick's snapshot (it has just come, or is gone) is of no
// use to anybody and is dropped.
func (c *Collector) takeEvents(f *frame, trigger signal.Trigger) []signal.WaitEvent {
	for i := range c.pending {
		e := &c.pending[i]
		victim := c.culprit(e.Victim)
		if victim < 0 {
			c.dropped++
			continue
		}
		f.events = append(f.events, signal.WaitEvent{
			At: e.At, Victim: int(victim), PID: e.PID, CPU: e.CPU, WaitNS: e.WaitNS, Culprit: c.culprit(e.Culprit), PartNS: e.PartNS,
			Often: e.Often, Ongoing: e.Ongoing,
		})
		at := &f.events[len(f.events)-1]
		switch {
		case e.Ongoing:
			at.Blame = c.partsBlame(f, e.Parts)
		case trigger == signal.Tick:
			at.Blame = f.containers[victim].Wait.Blame
		default:
			at.Blame = c.eventBlame(f, e.Victim)
		}
	}
	c.pending = c.pending[:0]
	return f.events
}

// eventBlame is where the waits of the victim went since the last tick or the last snapshot for an event of it; events of one victim in
// one snapshot share it.
func (c *Collector) eventBlame(f *frame, slot ebpf.Slot) []signal.Blame {
	earlier := f.events[:len(f.events)-1]
	same := func(e signal.WaitEvent) bool { return e.Victim == f.events[len(earlier)].Victim && !e.Ongoing }
	if i := slices.IndexFunc(earlier, same); i >= 0 {
		return earlier[i].Blame
	}
	ct := c.slots.holder[slot]
	if ct == nil || ct.row == nil {
		return nil
	}
	if ct.heard == nil {
		ct.heard = make([]uint64, len(ct.row))
	}
	if ct.heardAt <= ct.waitAt { // all that was heard is in the tick's row
		copy(ct.heard, ct.row)
	}
	ct.heardAt = f.snap.Now
	if c.tracer.Blame(slot, 0, c.row) == 0 {
		return nil
	}
	from := len(f.blame)
	for i := range c.slots.high {
		total := wholeMicros(c.row[i])
		if ns := grown(total, ct.heard[i]); ns != 0 {
			ct.heard[i] = total
			f.blame = append(f.blame, signal.Blame{Culprit: c.culprit(ebpf.Slot(i)), NS: ns})
		}
	}
	f.blame = merge(f.blame, from)
	return f.blame[from:len(f.blame):len(f.blame)]
}

// partsBlame is what a wait that goes on is made of.
func (c *Collector) partsBlame(f *frame, parts []ebpf.Part) []signal.Blame {
	from := len(f.blame)
	for _, p := range parts {
		f.blame = append(f.blame, signal.Blame{Culprit: c.culprit(p.Slot), NS: wholeMicros(p.NS)})
	}
	f.blame = merge(f.blame, from)
	return f.blame[from:len(f.blame):len(f.blame)]
}

// culprit is who a slot stands for in the last tick's snapshot.
func (c *Collector) culprit(s ebpf.Slot) signal.Culprit {
	if int(s) >= len(c.slots.index) {
		return signal.CulpritUnknown
	}
	return signal.Culprit(c.slots.index[s])
}
