package server

import (
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
)

// RDTDomain is a part of a measurement that belongs to one L3 cache.
type RDTDomain struct {
	ID                      int     `json:"id"`
	OccupancyBytes          uint64  `json:"occupancyBytes,omitempty"`
	BandwidthBytesPerSecond float64 `json:"bandwidthBytesPerSecond"`
}

// Limits is how far the controllers want an offline pod to be held back below the posture; what does not hold is absent.
type Limits struct {
	Cores            int     `json:"cores,omitempty"`
	QuotaCores       float64 `json:"quotaCores,omitempty"`
	Frozen           bool    `json:"frozen,omitempty"`
	Ways             int     `json:"ways,omitempty"`             // of the last-level cache
	BandwidthPercent int     `json:"bandwidthPercent,omitempty"` // of the memory bandwidth
}

// NodeRDT is what the machine can do about cache and memory bandwidth, and what moves over its memory buses.
type NodeRDT struct {
	CLOSIDs      int         `json:"closids"` // control groups that resctrl allows, the default one among them
	RMIDs        int         `json:"rmids"`   // groups that can be monitored
	Ways         int         `json:"ways"`    // of the last-level cache; 0: it cannot be partitioned
	WayBytes     uint64      `json:"wayBytes"`
	MinWays      int         `json:"minWays"`
	MBMinimum    int         `json:"mbMinimum"` // least bandwidth limit, in the machine's unit; 0: none can be set
	MBStep       int         `json:"mbStep"`
	AgeSeconds   float64     `json:"ageSeconds"`   // of Domains
	MonitorState string      `json:"monitorState"` // ok, unavailable ...; "" if nothing is monitored
	Domains      []RDTDomain `json:"domains"`
	Classes      []RDTClass  `json:"classes"` // of service, that the agent holds now
}

// RDTClass is a class of service (CLOS): a control group of resctrl that the agent holds.
type RDTClass struct {
	Group            string   `json:"group"`                      // its directory
	Schemata         string   `json:"schemata"`                   // its limits as resctrl shows them
	Ways             int      `json:"ways,omitempty"`             // of the last-level cache
	BandwidthPercent int      `json:"bandwidthPercent,omitempty"` // absent without a limit
	Owner            string   `json:"owner,omitempty"`            // controller that limits it; absent if none does
	Rule             string   `json:"rule,omitempty"`
	Victim           string   `json:"victim,omitempty"`
	Pods             []string `json:"pods"`
	AgeSeconds       float64  `json:"ageSeconds"`
}

// CPIEvidence is what a verdict on cache or memory bandwidth rests on, over the judge's CPI window.
type CPIEvidence struct {
	CPI                    float64 `json:"cpi"`
	CPIBaseline            float64 `json:"cpiBaseline,omitempty"` // what is normal at this CPU use; absent while it is being learned
	CPIFence               float64 `json:"cpiFence,omitempty"`    // above it CPI is not normal any more
	MPKI                   float64 `json:"mpki"`
	MPKIBaseline           float64 `json:"mpkiBaseline,omitempty"`
	MPKIFence              float64 `json:"mpkiFence,omitempty"`
	UsageCores             float64 `json:"usageCores"`
	BaselineSamples        int     `json:"baselineSamples"`
	RunningRatio           float64 `json:"runningRatio"`
	OccupancyBytes         uint64  `json:"occupancyBytes,omitempty"` // L3 that the pod holds
	OccupancyBaselineBytes uint64  `json:"occupancyBaselineBytes,omitempty"`
	BusBytesPerSecond      float64 `json:"busBytesPerSecond"` // of all in the memory domains that the pod uses
	BusBaselinePerSecond   float64 `json:"busBaselineBytesPerSecond,omitempty"`
	BusRatio               float64 `json:"busRatio"` // of the fullest of them, as far as it is known what it can move
}

// CounterTotals is hardware counts, scaled to the time in which the container ran.
type CounterTotals struct {
	Cycles, Instructions, LLCRefs, LLCMisses uint64
}

// CPILevels is an online container's window beside its baseline. Baselines and fences are 0 while they are being learned.
type CPILevels struct {
	CPI, CPIBaseline, CPIFence, MPKI, MPKIBaseline, MPKIFence float64
}

// PodRDTMetrics is one online or offline pod.
type PodRDTMetrics struct {
	Namespace, Pod string
	Class          policy.Class
	Monitored      bool // the next three are known
	OccupancyBytes uint64
	Bytes, Local   uint64 // moved since the pod was first seen
	Ways, MB       int    // wanted limits; 0: none
}

// DomainMetrics is one L3 cache and the memory behind it.
type DomainMetrics struct {
	ID    int
	Bytes uint64 // moved by all since the agent started
}

// ClassMetrics is a class of service that the agent holds.
type ClassMetrics struct {
	Name                         string // "offline-2"
	Ways, BandwidthPercent, Pods int    // 100 percent: no limit
}

// ClassWrites counts outcomes of changes in resctrl.
type ClassWrites struct {
	Resource string // "L3", "MB", "tasks", "group" ...
	Result   knob.Result
	Count    uint64
}

// rdtFamilies are the metric families of cache and memory bandwidth.
type rdtFamilies struct {
	cycles, instructions, llcRefs, llcMisses           *family
	cpi, cpiBaseline, cpiFence                         *family
	mpki, mpkiBaseline, mpkiFence                      *family
	occupancy, bandwidth, localBandwidth, domain       *family
	waysWanted, mbWanted, perfUncounted, perfExtrapole *family
	closWays, closBandwidth, closPods, writes          *family
}

func (f *families) addRDT() {
	f.section = "Cache and memory bandwidth"
	container := []string{"namespace", "pod", "container", "class"}
	const each = "1 per online or offline container with hardware counters"
	r := &f.rdt
	r.cycles = f.add(counter, "cycles_total", "CPU cycles of the container.", each, container...)
	r.instructions = f.add(counter, "instructions_total", "Instructions of the container. Cycles over instructions is CPI.", each, container...)
	r.llcRefs = f.add(counter, "llc_references_total", "References to the last-level cache by the container.", each, container...)
	r.llcMisses = f.add(counter, "llc_misses_total", "Misses in the last-level cache by the container.", each, container...)
	online := []string{"namespace", "pod", "container"}
	const one = "1 per online container with hardware counters"
	r.cpi = f.add(gauge, "cpi", "Cycles per instruction over the judge's CPI window.", one, online...)
	r.cpiBaseline = f.add(gauge, "cpi_baseline", "What is normal for the container at its present CPU use; absent while it is being learned.", one, online...)
	r.cpiFence = f.add(gauge, "cpi_fence", "CPI above which the container is not well any more; absent while it is being learned.", one, online...)
	r.mpki = f.add(gauge, "mpki", "LLC misses per thousand instructions over the judge's CPI window.", one, online...)
	r.mpkiBaseline = f.add(gauge, "mpki_baseline", "What is normal; absent while it is being learned.", one, online...)
	r.mpkiFence = f.add(gauge, "mpki_fence", "MPKI above which a risen CPI is the cache's doing; absent while it is being learned.", one, online...)
	pod := []string{"namespace", "pod", "class"}
	const monitored = "1 per online or offline pod with a monitoring group; at most the RMIDs of the machine"
	r.occupancy = f.add(gauge, "llc_occupancy_bytes", "Last-level cache that the pod's lines hold.", monitored, pod...)
	r.bandwidth = f.add(counter, "memory_bandwidth_bytes_total", "Bytes that the pod moved between cache and memory.", monitored, pod...)
	r.localBandwidth = f.add(counter, "memory_bandwidth_local_bytes_total", "Of these, from and to the memory of the same socket.", monitored, pod...)
	r.domain = f.add(counter, "domain_memory_bandwidth_bytes_total",
		"Bytes that everything on the machine moved between this last-level cache and memory.", "1 per last-level cache", "domain")
	r.waysWanted = f.add(gauge, "llc_ways_wanted",
		"Ways of the last-level cache to which the cache controller wants to limit the offline pod, or that it wants for the online pod alone; absent without a limit.",
		"1 per pod with a limit", pod...)
	r.mbWanted = f.add(gauge, "memory_bandwidth_percent_wanted",
		"Percent of the memory bandwidth to which the bandwidth controller wants to limit the offline pod; absent without a limit.", "1 per pod with a limit", pod...)
	const held = "1 per class of service that is held, at most the CLOSIDs of the machine"
	r.closWays = f.add(gauge, "clos_ways", "Ways of the last-level cache that a class of service of the agent's may fill; absent without cache allocation.", held, "clos")
	r.closBandwidth = f.add(gauge, "clos_memory_bandwidth_percent", "Memory bandwidth to which a class of service of the agent's is limited; 100 is no limit.", held, "clos")
	r.closPods = f.add(gauge, "clos_pods", "Pods in a class of service of the agent's.", held, "clos")
	r.writes = f.add(counter, "resctrl_writes_total", "Changes in resctrl by what was changed and outcome.", "at most 56: resource x outcome, those that occurred", "resource", "result")
	r.perfUncounted = f.add(gauge, "perf_uncounted_containers",
		"Containers without hardware counters because descriptors are too few: online ones are counted first, then the largest offline ones.", "1")
	r.perfExtrapole = f.add(gauge, "perf_extrapolated_containers",
		"Containers whose hardware counters ran less than half of the time, because others use them as well.", "1")
}

func (c *collector) collectRDT(e emitter, m *Metrics) {
	r := &c.rdt
	for i := range m.PodRDT {
		p := &m.PodRDT[i]
		if p.Class != policy.Online && p.Class != policy.Offline {
			continue
		}
		labels := []string{p.Namespace, p.Pod, string(p.Class)}
		if p.Monitored {
			e.value(r.occupancy, float64(p.OccupancyBytes), labels...)
			e.count(r.bandwidth, p.Bytes, labels...)
			e.count(r.localBandwidth, p.Local, labels...)
		}
		if p.Ways > 0 {
			e.value(r.waysWanted, float64(p.Ways), labels...)
		}
		if p.MB > 0 {
			e.value(r.mbWanted, float64(p.MB), labels...)
		}
	}
	for _, d := range m.Domains {
		e.count(r.domain, d.Bytes, number(d.ID))
	}
	for _, k := range m.Classes {
		if k.Ways > 0 {
			e.value(r.closWays, float64(k.Ways), k.Name)
		}
		e.value(r.closBandwidth, float64(k.BandwidthPercent), k.Name)
		e.value(r.closPods, float64(k.Pods), k.Name)
	}
	for _, w := range m.ClassWrites {
		e.count(r.writes, w.Count, w.Resource, w.Result.String())
	}
	e.value(r.perfUncounted, float64(m.PerfUncounted))
	e.value(r.perfExtrapole, float64(m.PerfExtrapolated))
}

// collectCounters shows a container's hardware counters.
func (c *collector) collectCounters(e emitter, key *containerKey, row *ContainerMetrics) {
	r := &c.rdt
	labels := []string{key.namespace, key.pod, key.container, string(key.class)}
	if n := row.Counters; n != nil {
		e.count(r.cycles, n.Cycles, labels...)
		e.count(r.instructions, n.Instructions, labels...)
		e.count(r.llcRefs, n.LLCRefs, labels...)
		e.count(r.llcMisses, n.LLCMisses, labels...)
	}
	if l := row.CPI; l != nil && key.class == policy.Online {
		labels = labels[:3]
		e.value(r.cpi, l.CPI, labels...)
		e.value(r.mpki, l.MPKI, labels...)
		if l.CPIFence > 0 {
			e.value(r.cpiBaseline, l.CPIBaseline, labels...)
			e.value(r.cpiFence, l.CPIFence, labels...)
			e.value(r.mpkiBaseline, l.MPKIBaseline, labels...)
			e.value(r.mpkiFence, l.MPKIFence, labels...)
		}
	}
}

// add adds b to a without changing what either points to; nil counts as nothing.
func (n *CounterTotals) add(b *CounterTotals) *CounterTotals {
	if n == nil || b == nil {
		if n == nil {
			return b
		}
		return n
	}
	return &CounterTotals{n.Cycles + b.Cycles, n.Instructions + b.Instructions, n.LLCRefs + b.LLCRefs, n.LLCMisses + b.LLCMisses}
}
