package collect

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// pseudoCulprits is how many culprits are no container, CulpritUnknown to CulpritGone.
const pseudoCulprits = -int(signal.CulpritGone)

// readWait fills out with what a container has waited since it was last read.
func (c *Collector) readWait(now time.Duration, ct *container, f *frame, out *signal.WaitSample) {
	out.At, out.Span = now, now-ct.waitAt
	ct.waitAt = now
	if c.tracer.Wait(ct.slot, &ct.wait) {
		was := &ct.seen
		out.Count = ct.wait.Count - was.Count
		out.SumNS = wholeMicros(ct.wait.SumNS) - wholeMicros(was.SumNS)
		out.Preempted = ct.wait.Preempted - was.Preempted
		from := len(f.buckets)
		for i := range ct.wait.Hist {
			if n := ct.wait.Hist[i] - was.Hist[i]; n != 0 {
				f.buckets = append(f.buckets, signal.Bucket{Index: uint16(i), Count: uint32(min(n, math.MaxUint32))})
			}
		}
		out.Buckets = f.buckets[from:len(f.buckets):len(f.buckets)]
		ct.seen = ct.wait
	}
	if ct.row != nil {
		from := len(f.blame)
		c.readBlame(ct, f)
		f.blame = merge(f.blame, from)
		out.Blame = f.blame[from:len(f.blame):len(f.blame)]
	}
}

// wholeMicros cuts a running total of ns to whole microseconds: what is left over counts next time. Decisions need no more, and a recording of
// less is a third smaller.
func wholeMicros(ns uint64) uint64 { return ns - ns%1000 }

// readBlame adds what a victim's waits have been blamed for since the last time to the totals of its pod, and to f if it is not nil.
func (c *Collector) readBlame(ct *container, f *frame) {
	walks := c.tracer.Blame(ct.slot, ct.walks, c.row)
	if walks == ct.walks {
		return
	}
	ct.walks = walks
	for i := range c.slots.high {
		total := wholeMicros(c.row[i])
		ns := grown(total, ct.row[i])
		if ns == 0 {
			continue
		}
		ct.row[i] = total
		ct.pod.add(c.slots.owner[i], ebpf.Slot(i), ns)
		if f != nil {
			f.blame = append(f.blame, signal.Blame{Culprit: signal.Culprit(c.slots.index[i]), NS: ns})
		}
	}
}

// add counts time that the pod's containers waited while a slot ran that belongs, or last belonged, to culprit.
func (p *pod) add(culprit *pod, s ebpf.Slot, ns uint64) {
	if culprit != nil {
		p.blame[culprit] += ns
		return
	}
	p.pseudo[-int(pseudo(s))-1] += ns
}

// merge sorts all[from:] by culprit and makes one of those that are the same: the slots of all containers that are gone are one
// culprit.
func merge(all []signal.Blame, from int) []signal.Blame {
	part := all[from:]
	slices.SortFunc(part, func(a, b signal.Blame) int { return cmp.Compare(a.Culprit, b.Culprit) })
	n := 0
	for i, b := range part {
		if i > 0 && part[n-1].Culprit == b.Culprit {
			part[n-1].NS += b.NS
			continue
		}
		part[n] = b
		n++
	}
	return all[:from+n]
}

// Rescan looks at the next tick for groups that have come or gone in a group or below it, instead of some seconds later. It is for
// who watches the group tree.
func (c *Collector) Rescan(group string) { c.rescan = append(c.rescan, group) }

func (c *Collector) applyRescan() {
	if len(c.rescan) == 0 {
		return
	}
	for _, group := range c.rescan {
		for _, ct := range c.list {
			if within(ct.group, group) || within(group, ct.group) {
				ct.due[partScan] = 0
			}
		}
	}
	c.rescan = c.rescan[:0]
}

// within reports whether group is top or below it.
func within(group, top string) bool {
	rest, ok := strings.CutPrefix(group, top)
	return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(top, "/"))
}
