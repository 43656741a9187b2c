package collect

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Resctrl is what is needed of *rdt.FS.
type Resctrl interface {
	// Groups lists the control groups beside the default one.
	Groups() ([]string, error)
	// Counters opens the counters of a control or monitoring group.
	Counters(group string) (*rdt.Counters, error)
}

// monitoring is the resctrl counters of one pod. Its samples take turns in two arrays of domains, since the last snapshot but one has to
// stay as it is.
type monitoring struct {
	group    string // relative to resctrl's mount; "" while there is none
	counters *rdt.Counters
	at       time.Duration // of before; 0: none
	next     time.Duration
	readings []rdt.Reading
	before   []rdt.Reading
	domains  [2][]signal.RDTDomainSample
	turn     int
	total    rdtTotals
}

// rdtTotals is what a pod has moved since it was first seen, bytes.
type rdtTotals struct {
	known        bool
	bytes, local uint64
}

// readRDT reads what resctrl counts for the container's pod. The pod's first container carries it.
func (c *Collector) readRDT(now time.Duration, ct *container) {
	if c.o.Resctrl == nil {
		return
	}
	if ct.sample.Container != 0 {
		ct.sample.RDT = signal.RDTSample{}
		return
	}
	m := &ct.pod.rdt
	if now < m.next {
		return
	}
	if m.next == 0 {
		m.next = now + spread(c.every[partRDT], ct.phase, partRDT)
	} else {
		m.next += ((now-m.next)/c.every[partRDT] + 1) * c.every[partRDT]
	}
	group, ok := "", false
	if c.o.MonitorGroup != nil {
		group, ok = c.o.MonitorGroup(ct.pod.group)
	}
	if !ok || group != m.group {
		m.close() // the pod has come into another class: its counters are others
	}
	if !ok {
		ct.sample.RDT = signal.RDTSample{}
		return
	}
	if m.counters == nil {
		counters, err := c.o.Resctrl.Counters(group)
		if err != nil {
			if !rdt.Gone(err) {
				c.fail(signalRDT, ct, err)
			}
			return
		}
		m.group, m.counters = group, counters
	}
	var err error
	if m.readings, err = m.counters.Read(m.readings[:0]); err != nil {
		m.close()
		if !rdt.Gone(err) {
			c.fail(signalRDT, ct, err)
			ct.sample.RDT = signal.RDTSample{At: now, State: signal.RDTError}
		}
		return
	}
	ct.works(signalRDT)
	ct.sample.RDT = m.sample(now)
}

func (m *monitoring) close() {
	if m.counters != nil {
		m.counters.Close()
	}
	m.group, m.counters, m.at = "", nil, 0
}

// sample makes a sample of the readings just taken and remembers them.
func (m *monitoring) sample(now time.Duration) signal.RDTSample {
	m.turn ^= 1
	s := signal.RDTSample{At: now, State: signal.RDTOK}
	if m.at != 0 {
		s.Span = now - m.at
	}
	m.domains[m.turn] = m.domains[m.turn][:0]
	for i := range m.readings {
		r := &m.readings[i]
		s.State = max(s.State, stateOf(r.State()))
		d := signal.RDTDomainSample{ID: r.Domain, OccupancyBytes: r.Occupancy}
		if m.at != 0 && i < len(m.before) && m.before[i].Domain == r.Domain {
			d.TotalBytes = moved(r.Total, m.before[i].Total, r.TotalState, m.before[i].TotalState)
			d.LocalBytes = moved(r.Local, m.before[i].Local, r.LocalState, m.before[i].LocalState)
		}
		s.OccupancyBytes += d.OccupancyBytes
		s.TotalBytes += d.TotalBytes
		s.LocalBytes += d.LocalBytes
		m.domains[m.turn] = append(m.domains[m.turn], d)
	}
	s.Domains = m.domains[m.turn]
	m.total.known = true
	m.total.bytes += s.TotalBytes
	m.total.local += s.LocalBytes
	if s.State != signal.RDTOK {
		// What was not read is not to look like a jump when it can be read again.
		m.at = 0
		return s
	}
	m.before, m.readings = m.readings, m.before
	m.at = now
	return s
}

// moved is how far a counter has come between two readings that both were one.
func moved(now, before uint64, a, b rdt.State) uint64 {
	if a != rdt.OK || b != rdt.OK || now < before {
		return 0
	}
	return now - before
}

func stateOf(s rdt.State) signal.RDTState {
	switch s {
	case rdt.OK:
		return signal.RDTOK
	case rdt.Unavailable:
		return signal.RDTUnavailable
	case rdt.Unassigned:
		return signal.RDTUnassigned
	}
	return signal.RDTError
}

// bus is the counters of all control groups, which together are those of the machine: a control group counts its monitoring groups
// as well.
type bus struct {
	groups  []string
	parts   []monitoring // by index into groups
	listed  time.Duration
	next    time.Duration
	again   bool
	samples [2][]signal.DomainBandwidth
	turn    int
	total   []signal.RDTDomainSample // since the beginning, ascending
}

// busListEvery is the time between two looks at which control groups there are.
const busListEvery = 5 * time.Second

// readBus reads what the machine moves over its memory buses.
func (c *Collector) readBus(now time.Duration) {
	b := &c.bus
	if c.o.Resctrl == nil || now < b.next {
		return
	}
	b.next = now + c.every[partRDT]
	if b.again || b.listed == 0 || now-b.listed >= busListEvery {
		b.again, b.listed = false, now
		groups, err := c.o.Resctrl.Groups()
		if err != nil {
			c.fail(signalRDT, nil, err)
			return
		}
		groups = append([]string{""}, groups...)
		if !slices.Equal(groups, b.groups) {
			b.close()
			b.groups, b.parts = groups, make([]monitoring, len(groups))
		}
	}
	b.turn ^= 1
	out := b.samples[b.turn][:0]
	for i := range b.parts {
		m := &b.parts[i]
		if m.counters == nil {
			counters, err := c.o.Resctrl.Counters(b.groups[i])
			if err != nil {
				b.again = true
				continue
			}
			m.counters = counters
		}
		var err error
		if m.readings, err = m.counters.Read(m.readings[:0]); err != nil {
			m.close()
			b.again = true
			continue
		}
		s := m.sample(now)
		for _, d := range s.Domains {
			at, ok := slices.BinarySearchFunc(out, d.ID, func(x signal.DomainBandwidth, id int) int { return x.ID - id })
			if !ok {
				out = slices.Insert(out, at, signal.DomainBandwidth{ID: d.ID, At: now, State: signal.RDTOK})
			}
			out[at].TotalBytes += d.TotalBytes
			b.add(d.ID, d.TotalBytes)
			out[at].State = max(out[at].State, s.State)
			out[at].Span = max(out[at].Span, s.Span)
		}
	}
	c.failing &^= 1 << signalRDT
	b.samples[b.turn] = out
	c.node.sample.Bandwidth = out
}

func (b *bus) add(domain int, bytes uint64) {
	at, ok := slices.BinarySearchFunc(b.total, domain, func(x signal.RDTDomainSample, id int) int { return x.ID - id })
	if !ok {
		b.total = slices.Insert(b.total, at, signal.RDTDomainSample{ID: domain})
	}
	b.total[at].TotalBytes += bytes
}

func (b *bus) close() {
	for i := range b.parts {
		b.parts[i].close()
	}
}

// Facts is what resctrl says that the machine can do, with what sysfs (usually /sys) says of its caches.
func Facts(info *rdt.Info, sys string) signal.RDT {
	out := signal.RDT{CLOSIDs: info.CLOSIDs}
	if info.Mon != nil {
		out.RMIDs = info.Mon.RMIDs
	}
	ways := 0
	if l3 := info.Cache("L3"); l3 != nil {
		ways = l3.Ways()
		out.Ways, out.MinWays, out.ShareableWay, out.SparseMasks = ways, l3.MinBits, l3.Shareable, l3.Sparse
	}
	if mb := info.MB; mb != nil {
		out.MB = signal.MBUnits{Unit: signal.MBUnit(mb.Unit), Min: int(mb.Min), Gran: int(mb.Gran), Max: int(mb.Max)}
	}
	out.Domains = domains(sys, ways)
	return out
}

// domains finds the last-level caches by the ids that resctrl uses. ways is how many bits their masks have; without masks the number of
// ways that sysfs tells stands in.
func domains(sys string, ways int) []signal.RDTDomain {
	dirs, err := filepath.Glob(filepath.Join(sys, "devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"))
	if err != nil {
		return nil
	}
	found := map[int]signal.RDTDomain{}
	for _, dir := range dirs {
		if textOf(dir, "level") != "3" {
			continue
		}
		id, err := strconv.Atoi(textOf(dir, "id"))
		if err != nil {
			continue
		}
		d := signal.RDTDomain{ID: id, CPUs: textOf(dir, "shared_cpu_list")}
		n := ways
		if n == 0 {
			n, _ = strconv.Atoi(textOf(dir, "ways_of_associativity"))
		}
		if size := sizeOf(textOf(dir, "size")); n > 0 {
			d.WayBytes = size / uint64(n)
		}
		found[id] = d
	}
	var out []signal.RDTDomain
	for _, d := range found {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b signal.RDTDomain) int { return a.ID - b.ID })
	return out
}

func textOf(dir, file string) string {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// sizeOf reads a size as sysfs writes it ("22528K").
func sizeOf(text string) uint64 {
	var n uint64
	var unit string
	if _, err := fmt.Sscanf(text, "%d%s", &n, &unit); err != nil && n == 0 {
		return 0
	}
	switch unit {
	case "K":
		return n << 10
	case "M":
		return n << 20
	}
	return n
}
