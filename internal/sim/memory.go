package sim

import (
	"math"
	"strings"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/model"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// What every machine with counters is like here.
const (
	gigahertz  = 2.5
	missCycles = 80 // of a miss on a quiet bus
	wayBytes   = 2 << 20
)

// memory is how a pod stands with cache and memory in this slice.
type memory struct {
	ways, percent int     // the most ways, and the percent of bandwidth, that it may have; 0: all
	held          float64 // ways that it holds
	mpki, cpi     float64
	alone         float64 // its CPI if it had the machine to itself

	cycles, instructions, misses float64 // since the last tick
	sumCPI, sumAlone             float64 // over the run, weighted by time
}

// share takes over what the plan of shares leaves each pod.
func (p *plant) share(shares []knob.Share) {
	if p.fault["refused"] != nil {
		return
	}
	for _, b := range p.bodies {
		b.mem.ways, b.mem.percent = 0, 0
	}
	for i := range shares {
		for _, b := range p.present {
			if b.static.Cgroup == shares[i].Cgroup && b.Class == policy.Offline {
				b.mem.ways, b.mem.percent = shares[i].Ways.N, shares[i].MB.N
			}
		}
	}
	for _, b := range p.bodies {
		b.held = b.held || b.mem.ways > 0 || b.mem.percent > 0
	}
}

// remember works out misses, traffic and CPI of this slice, and what they make of each pod's work. Masks of offline pods lie at one end of the
// cache, as the planner packs them; ways that several pods may fill go to each by the misses that it makes, as LRU does.
func (p *plant) remember() {
	all := float64(p.sc.Node.Ways)
	if all == 0 {
		return
	}
	open, rest := 0.0, 0.0 // pressure of pods that may fill everything; of the others
	common := 0.0          // ways that the others may fill
	for _, b := range p.present {
		x := b.pressure()
		if b.mem.ways == 0 {
			open += x
			continue
		}
		rest += x
		common = max(common, float64(b.mem.ways))
	}
	traffic := 0.0
	for _, b := range p.present {
		x := b.pressure()
		switch {
		case x == 0:
			b.mem.held = 0
		case b.mem.ways == 0:
			b.mem.held = (all-common)*x/open + common*x/(open+rest)
		default:
			b.mem.held = common * x / (open + rest) * min(1, float64(b.mem.ways)/common)
		}
		b.mem.mpki = model.Misses(b.Memory.MPKI, max(b.mem.held, 0.5), all, b.Memory.Exponent)
		traffic += b.wants()
	}
	stretch := model.Stretch(traffic / p.sc.Node.MemoryMBps)
	for _, b := range p.present {
		b.mem.alone = model.CPI(b.Memory.CPI, b.Memory.MPKI, missCycles, 1)
		b.mem.cpi = model.CPI(b.Memory.CPI, b.mem.mpki, missCycles, stretch*b.slowed())
		cycles := b.used * float64(slice) * gigahertz
		b.mem.cycles += cycles
		b.mem.instructions += cycles / b.mem.cpi
		b.mem.misses += cycles / b.mem.cpi * b.mem.mpki / 1000
		b.mem.sumCPI += b.mem.cpi
		b.mem.sumAlone += b.mem.alone
	}
}

// pressure is how hard the pod pulls at the cache.
func (b *body) pressure() float64 { return b.used * b.Memory.MPKI }

// pulls is a pod's part of all that pulls at cache and memory apart from the victim.
func (p *plant) pulls(pod, victim string) float64 {
	own, all := 0.0, 0.0
	for _, b := range p.present {
		if b.static.Key() == victim {
			continue
		}
		all += b.pressure()
		if b.static.Key() == pod {
			own = b.pressure()
		}
	}
	if all == 0 {
		return 0
	}
	return own / all
}

// wants is the traffic that it makes on a quiet bus, MB/s, under its limit.
func (b *body) wants() float64 {
	perSecond := b.used * gigahertz * 1e9 / model.CPI(b.Memory.CPI, b.mem.mpki, missCycles, b.slowed())
	return perSecond * b.mem.mpki / 1000 * signal.CacheLine / 1e6
}

// slowed is the factor by which a limit of bandwidth makes its misses take longer: MBA delays requests.
func (b *body) slowed() float64 {
	if b.mem.percent == 0 || b.mem.percent >= 100 {
		return 1
	}
	return 100 / float64(b.mem.percent)
}

// speed is how fast it works for the CPU time that it gets, against alone.
func (b *body) speed() float64 {
	if b.mem.cpi == 0 {
		return 1
	}
	return min(1, b.mem.alone/b.mem.cpi)
}

// counters puts the hardware's figures into a container's sample, and begins anew.
func (p *plant) counters(b *body, c *signal.ContainerSample) {
	if p.sc.Node.Ways == 0 {
		return
	}
	at, span := c.CPU.At, c.CPU.Span
	m := &b.mem
	c.Perf = signal.PerfSample{
		At: at, Span: span, Cycles: uint64(m.cycles), Instructions: uint64(m.instructions), LLCRefs: uint64(3 * m.misses), LLCMisses: uint64(m.misses),
		BusyNS: uint64(m.cycles / gigahertz), RunningPercent: 100,
	}
	bytes, held := uint64(m.misses*signal.CacheLine), uint64(m.held*wayBytes)
	c.RDT = signal.RDTSample{
		At: at, Span: span, State: signal.RDTOK, OccupancyBytes: held, TotalBytes: bytes, LocalBytes: bytes,
		Domains: []signal.RDTDomainSample{{OccupancyBytes: held, TotalBytes: bytes, LocalBytes: bytes}},
	}
	p.moved += bytes
}

// hardware describes cache and memory of the machine. There is one domain.
func (p *plant) hardware(n *signal.Node) {
	if p.sc.Node.Ways == 0 {
		return
	}
	set := p.set()
	n.RDT = signal.RDT{
		Domains: []signal.RDTDomain{{CPUs: set.String(), WayBytes: wayBytes}}, CLOSIDs: 16, RMIDs: 64, Ways: p.sc.Node.Ways, MinWays: 1,
		MB: signal.MBUnits{Unit: signal.MBPercent, Min: 10, Gran: 10, Max: 100},
	}
	missing := strings.Join(p.sc.Node.Missing, " ")
	n.Caps.Perf, n.Caps.CacheMonitoring, n.Caps.BandwidthMonitoring = true, true, true
	n.Caps.CacheAllocation = !strings.Contains(missing, "cacheAllocation")
	n.Caps.BandwidthAllocation = !strings.Contains(missing, "bandwidthAllocation")
	if !n.Caps.CacheAllocation {
		n.RDT.Ways, n.RDT.MinWays = 0, 0
	}
	if !n.Caps.BandwidthAllocation {
		n.RDT.MB = signal.MBUnits{}
	}
}

// rise is how far the CPI of online pods was above that of each alone, in percent.
func (p *plant) rise() float64 {
	now, alone := 0.0, 0.0
	for _, b := range p.bodies {
		if b.Class == policy.Online {
			now += b.mem.sumCPI
			alone += b.mem.sumAlone
		}
	}
	if alone == 0 {
		return 0
	}
	return math.Max(0, 100*(now/alone-1))
}
