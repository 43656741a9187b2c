package collect

import (
	"cmp"
	"slices"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// View is what has been counted since each pod was first seen, as of the last tick. Counts only grow while their pod lives, and go
// with it. It shares nothing with the collector.
type View struct {
	Containers []ContainerTotals // by pod, then name
	Blame      []BlameTotal      // in no order
	ReadErrors map[string]uint64 // failed readings by signal: wait, cpu, memory, psi, node
	// EventsDropped counts events of containers that no snapshot showed, and those that came too fast.
	EventsDropped uint64
	NoSlot        int // containers that are not measured now because every slot is taken
	Tracer        ebpf.Stats

	Pods         []PodTotals              // that resctrl counts or has counted, by pod
	Domains      []signal.RDTDomainSample // TotalBytes since the collector began
	Uncounted    int                      // containers without hardware counters for want of descriptors
	Extrapolated int                      // containers whose counters ran less than half of the time
}

// ContainerTotals is all containers of one name in a pod, the one that runs and those that ran before it.
type ContainerTotals struct {
	Pod  PodRef
	Name string

	Wait   *ebpf.Wait           // nil: never measured
	CPU    *cgroup.CPUStat      // since the agent saw the container first; nil: never read
	Memory *signal.MemorySample // of what runs now; nil: never read

	Counters *perf.Counts // hardware; nil: never read
}

// PodTotals is what a pod has moved between cache and memory, bytes.
type PodTotals struct {
	Pod          PodRef
	Bytes, Local uint64
}

// BlameTotal is how long containers of a victim waited while those of a culprit ran.
type BlameTotal struct {
	Victim PodRef
	// Culprit is a pod, Victim itself included, if Pseudo is 0.
	Culprit PodRef
	Pseudo  signal.Culprit
	NS      uint64
}

// View copies the totals out.
func (c *Collector) View() View {
	v := View{ReadErrors: map[string]uint64{}, EventsDropped: c.dropped, NoSlot: c.noSlot, Tracer: c.stats}
	v.Tracer.Programs = slices.Clone(c.stats.Programs)
	for k, n := range c.errors {
		v.ReadErrors[signalKind(k).String()] = n
	}
	rows := map[*totals]*ContainerTotals{}
	for _, p := range c.podStates {
		for name, t := range p.totals {
			rows[t] = t.view(p.ref, name)
		}
		if t := &p.rdt.total; t.known {
			v.Pods = append(v.Pods, PodTotals{p.ref, t.bytes, t.local})
		}
	}
	for _, ct := range c.containers {
		rows[ct.totals].live(ct)
		switch {
		case c.perf.pool != nil && !ct.perf.want && ct.id != 0:
			v.Uncounted++
		case ct.perf.scarce:
			v.Extrapolated++
		}
	}
	v.Blame = c.Blame()
	v.Domains = slices.Clone(c.bus.total)
	slices.SortFunc(v.Pods, func(a, b PodTotals) int { return a.Pod.compare(b.Pod) })
	for _, r := range rows {
		v.Containers = append(v.Containers, *r)
	}
	slices.SortFunc(v.Containers, func(a, b ContainerTotals) int {
		return cmp.Or(a.Pod.compare(b.Pod), cmp.Compare(a.Name, b.Name))
	})
	return v
}

// Blame copies out View.Blame alone.
func (c *Collector) Blame() []BlameTotal {
	n := 0
	for _, p := range c.podStates {
		n += len(p.blame) + len(p.pseudo)
	}
	rows := make([]BlameTotal, 0, n)
	for _, p := range c.podStates {
		rows = p.viewBlame(rows)
	}
	return rows
}

// view shows what containers that have ended counted.
func (t *totals) view(ref PodRef, name string) *ContainerTotals {
	r := &ContainerTotals{Pod: ref, Name: name}
	if t.measured {
		w := t.wait
		r.Wait = &w
	}
	if t.hasCPU {
		cpu := t.cpu
		r.CPU = &cpu
	}
	if t.counted {
		n := t.counters
		r.Counters = &n
	}
	return r
}

// live adds what a running container counts.
func (r *ContainerTotals) live(ct *container) {
	if ct.slot != 0 {
		addWait(r.Wait, &ct.wait)
	}
	m := ct.sample.Memory
	switch {
	case m.At == 0:
	case r.Memory == nil:
		r.Memory = &m
	default:
		r.Memory.At = min(r.Memory.At, m.At)
		r.Memory.Current += m.Current
		r.Memory.WorkingSet += m.WorkingSet
	}
}

func (p *pod) viewBlame(rows []BlameTotal) []BlameTotal {
	for culprit, ns := range p.blame {
		rows = append(rows, BlameTotal{Victim: p.ref, Culprit: culprit.ref, NS: ns})
	}
	for i, ns := range p.pseudo {
		if ns > 0 {
			rows = append(rows, BlameTotal{Victim: p.ref, Pseudo: signal.Culprit(-i - 1), NS: ns})
		}
	}
	return rows
}

func (r PodRef) compare(o PodRef) int {
	return cmp.Or(cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Name, o.Name), cmp.Compare(r.UID, o.UID))
}
