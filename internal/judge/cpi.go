package judge

import (
	"slices"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// Cache and memory bandwidth are judged by what they do to a victim: cycles per instruction (CPI) beyond what is normal for the program
// at its present CPU use. Which of the two resources it is, the misses say: with more LLC misses for the same instructions somebody takes
// the victim's cache; with the same misses, and more traffic on the bus than while it was well, each miss takes longer.
//
// The score of suspects is that of CPI² (Zhang et al., EuroSys 2013), with three changes. It weighs suspects by the traffic that they
// cause between cache and memory, not by their CPU use, which says nothing about either. Only what a suspect does beyond what it did
// while the victim was well counts, so that a neighbour who has always been there is no suspect when another comes. And the score
// forgets within a second instead of five minutes, because each blame is checked by intervention.

const (
	// leastMPKI is how far MPKI must be above the baseline at least, thousandths: programs that live in their cache have next to none.
	leastMPKI = 100
	// harmful is how many readings in a row must be beyond the fence before anybody is blamed.
	harmful = 2
	// phaseAfter is how long a container must have been off its baseline, without anybody having done more than before, for the new
	// state to be its new normal.
	phaseAfter = 10 * time.Second
	// quietMBps is a change of traffic that nobody notices, MB/s.
	quietMBps = 100
	// calmShift and scoreShift are the weights of a new reading in the averages of a suspect: 1/16 and 1/4.
	calmShift, scoreShift = 4, 2
)

// cpiTrack is one online container's counters.
type cpiTrack struct {
	window   counts
	learned  time.Duration // when the baseline was last given a window
	over     int           // readings in a row beyond the CPI fence
	phase    time.Duration // since when it has been off its baseline by its own doing; 0: it is not
	now      reading
	suspects []suspect
}

// reading is the present window with what is normal beside it.
type reading struct {
	ok   bool // there is a window, and enough in it
	fit  bool // there is a baseline
	ev   CPIEvidence
	high bool // more traffic than while it was well, or than the memory takes well
}

// suspect is another pod as a victim sees it.
type suspect struct {
	id    uint32 // PodID
	pod   int    // index into Pods; -1: gone
	mbps  uint64 // traffic now
	calm  uint64 // and while the victim was well: an average, in sixteenths of MB/s
	occ   uint64 // L3 that it holds now, KiB; 0: not known
	calmO uint64 // and held while the victim was well, in sixteenths of KiB
	known bool   // calm means something
	score int64  // as above, in thousandths of thousandths
}

// counts is a sliding window over the counters: cycles, instructions, misses, CPU time.
type counts struct {
	span
	all, recent [4]uint64
}

func (c *counts) add(at, d, w time.Duration, n [4]uint64) (fresh bool) {
	switch c.next(at, d, w) {
	case repeat:
		return false
	case turn:
		c.all, c.recent = c.recent, [4]uint64{}
	case reset:
		c.all, c.recent = [4]uint64{}, [4]uint64{}
	}
	for i := range n {
		c.all[i] += n[i]
		c.recent[i] += n[i]
	}
	return true
}

// follow looks up where the suspects are now, and forgets those that are gone.
func (t *cpiTrack) follow(podAt map[uint32]int) {
	kept := t.suspects[:0]
	for _, s := range t.suspects {
		if at, ok := podAt[s.id]; ok {
			s.pod = at
			kept = append(kept, s)
		}
	}
	t.suspects = kept
}

// traffic is what pods and domains move, gathered once a tick.
type traffic struct {
	pods []podTraffic // by index into Pods
	ids  []int        // of the machine's domains; empty: not known, all is one
	all  []uint64     // MB/s by domain
	peak []uint64     // the most that was seen, MB/s by domain
	busy []bool       // by domain: used by the container at hand; scratch
}

// podTraffic is one pod's.
type podTraffic struct {
	mbps      uint64 // in all domains
	byDomain  []uint64
	occupancy uint64 // bytes; 0: not known
	monitored bool   // by resctrl: byDomain means something
	known     bool
	home      uint64 // domains in which resctrl last saw it move anything, bit i for index i; 0: not known
}

// survey gathers what every pod moves: as resctrl sees it where it does, else from the counters of LLC misses, 64 bytes each, which
// know of no domains and leave out what hardware prefetches.
func (s *State) survey(v *View) {
	t := &s.traffic
	if !v.Node.Caps.Perf || v.Spec.Objectives.CPIRisePercent == 0 {
		return
	}
	if v.Changed || len(t.pods) != len(v.Pods) {
		t.pods = slices.Grow(t.pods[:0], len(v.Pods))[:len(v.Pods)]
		for i := range t.pods {
			t.pods[i].home = 0 // it may be another pod's
		}
	}
	t.domains(v)
	for i := range t.pods {
		p := &t.pods[i]
		p.byDomain = append(p.byDomain[:0], make([]uint64, len(t.ids))...)
		p.mbps, p.occupancy, p.monitored, p.known = 0, 0, false, false
		for k := v.First[i]; k < v.First[i+1]; k++ {
			p.add(v, &v.Containers[k], t.ids)
		}
		if p.monitored && p.mbps > 0 && len(t.ids) <= 64 {
			p.home = 0
			for d, n := range p.byDomain {
				if n*20 >= p.mbps {
					p.home |= 1 << d
				}
			}
		}
		if !p.monitored {
			p.known, p.mbps = false, 0
			for k := v.First[i]; k < v.First[i+1]; k++ {
				if c := &v.Containers[k].Perf; c.Span > 0 && freshness(v, c.At) == None {
					p.mbps += mbps(c.LLCMisses*signal.CacheLine, c.Span)
					p.known = true
				}
			}
		}
	}
	t.total(v)
}

// mbps is whole MB/s (10^6 bytes).
func mbps(n uint64, over time.Duration) uint64 { return signal.BytesPerSecond(n, over) / 1e6 }

// add takes in what resctrl saw of a container's pod.
func (p *podTraffic) add(v *View, c *signal.ContainerSample, ids []int) {
	r := &c.RDT
	if r.State != signal.RDTOK || freshness(v, r.At) != None {
		return
	}
	p.occupancy += r.OccupancyBytes
	if r.Span <= 0 || !v.Node.Caps.BandwidthMonitoring {
		return
	}
	p.monitored, p.known = true, true
	p.mbps += mbps(r.TotalBytes, r.Span)
	for _, d := range r.Domains {
		if at, ok := slices.BinarySearch(ids, d.ID); ok {
			p.byDomain[at] += mbps(d.TotalBytes, r.Span)
		}
	}
}

// domains follows the machine's domains.
func (t *traffic) domains(v *View) {
	same := len(t.ids) == len(v.Node.RDT.Domains)
	for i := 0; same && i < len(t.ids); i++ {
		same = t.ids[i] == v.Node.RDT.Domains[i].ID
	}
	if same && len(t.all) > 0 {
		return
	}
	t.ids = t.ids[:0]
	for _, d := range v.Node.RDT.Domains {
		t.ids = append(t.ids, d.ID)
	}
	n := max(1, len(t.ids))
	t.all, t.peak, t.busy = make([]uint64, n), make([]uint64, n), make([]bool, n)
}

// total works out what each domain moves in all: as resctrl sees the machine, else the sum of what is known of pods.
func (t *traffic) total(v *View) {
	clear(t.all)
	measured := false
	for _, d := range v.Node.Bandwidth {
		at, ok := slices.BinarySearch(t.ids, d.ID)
		if ok && d.State == signal.RDTOK && d.Span > 0 && freshness(v, d.At) == None {
			t.all[at] = mbps(d.TotalBytes, d.Span)
			measured = true
		}
	}
	if !measured {
		for i := range t.pods {
			p := &t.pods[i]
			switch {
			case p.monitored:
				for d, n := range p.byDomain {
					t.all[d] += n
				}
			default: // evenly: nothing says where
				for d := range t.all {
					t.all[d] += p.mbps / uint64(len(t.all))
				}
			}
		}
	}
	for d, n := range t.all {
		t.peak[d] = max(t.peak[d], n)
	}
}

// at marks the domains that a pod uses: those with a noticeable part of its traffic, at present or when that was last seen, or all if nothing is
// known of it.
func (t *traffic) at(pod int) {
	p := &t.pods[pod]
	for d := range t.busy {
		switch {
		case !p.monitored:
			t.busy[d] = p.home == 0 || p.home>>d&1 == 1
		default:
			t.busy[d] = p.mbps == 0 || p.byDomain[d]*20 >= p.mbps
		}
	}
}

// here is what a pod moves in the marked domains.
func (t *traffic) here(pod int) (n uint64) {
	p := &t.pods[pod]
	if !p.monitored {
		// Counters of misses know of no domains: where it was seen last is where it is.
		for d, b := range t.busy {
			if b && (p.home == 0 || p.home>>d&1 == 1) {
				return p.mbps
			}
		}
		return 0
	}
	for d, b := range t.busy {
		if b {
			n += p.byDomain[d]
		}
	}
	return n
}

// bus is the traffic of all in the marked domains, and the use of the fullest of them in percent of what it can move.
func (t *traffic) bus(j *policy.BandwidthControl) (sum uint64, percent int) {
	for d, b := range t.busy {
		if !b {
			continue
		}
		sum += t.all[d]
		most := uint64(j.TotalMBps)
		if most == 0 {
			most = t.peak[d]
		}
		if most > 0 {
			percent = max(percent, int(t.all[d]*100/most))
		}
	}
	return sum, percent
}

// judgeCPI takes in what is new of a container's counters and appends its verdicts on cache and bandwidth.
func (s *State) judgeCPI(v *View, i int, t *track) {
	c := &v.Containers[i]
	r := freshness(v, c.Perf.At)
	if r != None {
		t.cpi.now = reading{}
		s.append(v, i, t, Verdict{Axis: Cache, Level: Unknown, Reason: r})
		s.append(v, i, t, Verdict{Axis: Bandwidth, Level: Unknown, Reason: r})
		return
	}
	p := &c.Perf
	if t.cpi.window.add(p.At, p.Span, v.Spec.Judge.CPI.Window.D(), [4]uint64{p.Cycles, p.Instructions, p.LLCMisses, p.BusyNS}) {
		s.traffic.at(c.Pod)
		s.read(v, c, t)
		s.suspect(v, c.Pod, &t.cpi)
		s.learn(v, t)
	}
	cache, bandwidth := s.explainCPI(v, t)
	s.append(v, i, t, cache)
	s.append(v, i, t, bandwidth)
}

// read holds the window against the baseline.
func (s *State) read(v *View, c *signal.ContainerSample, t *track) {
	w, j := &t.cpi.window, &v.Spec.Judge.CPI
	now := reading{}
	ev := &now.ev
	ev.RunningPercent = int(c.Perf.RunningPercent)
	if w.covered > 0 {
		ev.MilliCPU = w.all[3] * 1000 / uint64(w.covered)
	}
	ev.Bin = binOf(ev.MilliCPU)
	now.ok = w.all[1] > 0 && float64(ev.MilliCPU) >= j.MinCPUPercent*10 && w.covered >= j.Window.D()/2
	if w.all[1] > 0 {
		ev.CPI = w.all[0] * 1000 / w.all[1]
		ev.MPKI = w.all[2] * 1_000_000 / w.all[1]
	}
	ev.OccupancyBytes = s.traffic.pods[c.Pod].occupancy
	ev.DomainMBps, ev.BusPercent = s.traffic.bus(&v.Spec.RDT.Bandwidth)
	if b := t.base.find(ev.Bin, j.MinBaseline); b != nil {
		now.fit = true
		ev.BaselineSamples = len(b.Samples)
		ev.CPIBaseline, ev.MPKIBaseline = uint64(b.cpi.median), uint64(b.mpki.median)
		ev.CPIFence = b.cpi.fence(v.Spec.Objectives.CPIRisePercent, 1)
		ev.MPKIFence = b.mpki.fence(j.MPKIRisePercent, leastMPKI)
		ev.OccupancyBaseline, ev.DomainBaseline = uint64(b.occ)<<10, uint64(b.bw)
	}
	now.high = high(ev, &v.Spec.RDT.Bandwidth)
	if now.ok && now.fit && ev.CPI > ev.CPIFence {
		t.cpi.over++
	} else if now.ok {
		t.cpi.over = 0
	}
	t.cpi.now = now
}

// high reports whether memory may be what slows the container down: the bus is so full that memory is slow for everybody, or the
// container misses at all, so that it can feel latency, and there is a lot more traffic than while it was well.
func high(ev *CPIEvidence, b *policy.BandwidthControl) bool {
	stressed, grown := ev.BusPercent >= b.StressedPercent, grown(ev)
	if b.TotalMBps == 0 {
		stressed = stressed && grown // of the most that was seen so far, which says little by itself
	}
	return stressed || grown && ev.MPKI >= leastMPKI && ev.BusPercent*2 >= b.StressedPercent
}

// grown reports whether there is a lot more traffic than while the container was well.
func grown(ev *CPIEvidence) bool { return ev.DomainMBps > ev.DomainBaseline*3/2+quietMBps }

// suspect takes in what every other pod does while the victim is as it is.
func (s *State) suspect(v *View, victim int, t *cpiTrack) {
	now := &t.now
	if !now.ok || !now.fit {
		return
	}
	hint, sum, gain := 0, uint64(0), uint64(0)
	for pod := range s.traffic.pods {
		if pod == victim || !s.traffic.pods[pod].known {
			continue
		}
		n := s.traffic.here(pod)
		hint = t.entry(pod, v.PodID[pod], hint)
		x := &t.suspects[hint]
		x.mbps, x.occ = n, s.traffic.pods[pod].occupancy>>10
		sum += n
		gain += x.gain()
	}
	ev := &now.ev
	for i := range t.suspects {
		x := &t.suspects[i]
		term := int64(0)
		switch {
		case x.pod < 0:
		case ev.CPI > ev.CPIFence && gain > 0: // fence/CPI is between 0 and 1
			term = int64(x.gain()*1000/gain) * int64(1000-ev.CPIFence*1000/ev.CPI)
		case ev.CPI <= ev.CPIFence && sum > 0:
			term = int64(x.mbps*1000/sum) * (int64(ev.CPI*1000/ev.CPIFence) - 1000)
		}
		x.score += (term - x.score) >> scoreShift
		if ev.CPI <= watchCPI(ev, v.Spec.Judge.WatchPercent) {
			x.settle()
		}
	}
}

// watchCPI is the CPI from which a container is watched.
func watchCPI(ev *CPIEvidence, percent int) uint64 {
	return ev.CPIBaseline + (ev.CPIFence-ev.CPIBaseline)*uint64(percent)/100
}

// gain is what the suspect does beyond what it did while the victim was well: traffic that is new, or old traffic that goes through
// cache that it did not hold then. (A stream moves the same with one way as with ten.)
func (x *suspect) gain() uint64 {
	calm, held := x.calm>>calmShift, x.calmO>>calmShift
	more := x.mbps - min(x.mbps, calm)
	if x.occ > held {
		more = max(more, x.mbps*(x.occ-held)/x.occ)
	}
	return more
}

// settle takes what the suspect does now as harmless.
func (x *suspect) settle() {
	if !x.known {
		x.known, x.calm, x.calmO = true, x.mbps<<calmShift, x.occ<<calmShift
		return
	}
	x.calm += x.mbps - x.calm>>calmShift
	x.calmO += x.occ - x.calmO>>calmShift
}

// entry finds or makes the entry of a pod; pods come in the same order each time.
func (t *cpiTrack) entry(pod int, id uint32, last int) int {
	for k := range t.suspects {
		i := last + k
		if i >= len(t.suspects) {
			i -= len(t.suspects)
		}
		if t.suspects[i].id == id {
			return i
		}
	}
	t.suspects = append(t.suspects, suspect{id: id, pod: pod})
	return len(t.suspects) - 1
}

// changed reports whether other pods move noticeably more than while the victim was well.
func (t *cpiTrack) changed() bool {
	calm, gain := uint64(0), uint64(0)
	for i := range t.suspects {
		calm += t.suspects[i].calm >> calmShift
		gain += t.suspects[i].gain()
	}
	return gain >= max(calm/5, quietMBps)
}

// learn gives the window to the baseline if it shows the container as it is when nobody disturbs it.
func (s *State) learn(v *View, t *track) {
	c := &t.cpi
	now, ev := &c.now, &c.now.ev
	if !now.ok || c.window.at-c.learned < v.Spec.Judge.CPI.Window.D() {
		return
	}
	b := t.base.bin(ev.Bin)
	switch {
	case now.fit && ev.CPI > watchCPI(ev, v.Spec.Judge.WatchPercent):
		if c.changed() {
			c.phase = 0
			return
		}
		// Its own doing, as far as can be seen. If it stays so, that is what is normal now.
		if c.phase == 0 {
			c.phase = v.Now
		}
		if v.Now-c.phase < phaseAfter {
			return
		}
		if ev.CPI > ev.CPIFence {
			if near := t.base.find(ev.Bin, v.Spec.Judge.CPI.MinBaseline); near == b {
				b.forget()
			}
		}
	default:
		c.phase = 0
		if now.fit && grown(ev) {
			// Beside others who do a lot more it may be a little off its best, for as long as they do. If that were learned, the fence would
			// follow, then what they are given back, and so on: each step is small, and none of them is normal.
			return
		}
	}
	c.learned = c.window.at
	b.learn(Normal{
		CPI: narrow(ev.CPI), MPKI: narrow(ev.MPKI), Occupancy: narrow(ev.OccupancyBytes >> 10), Bandwidth: narrow(ev.DomainMBps),
	}, v.Now, &s.scratch)
}

func narrow(n uint64) uint32 { return uint32(min(n, 1<<32-1)) }

// explainCPI is the verdicts of the present reading. CPI is one promise, so at most one of the two is beyond it: the cache as long as
// there are more misses than normal, which also make traffic; then the bandwidth.
func (s *State) explainCPI(v *View, t *track) (cache, bandwidth Verdict) {
	c := &t.cpi
	now, ev := &c.now, &c.now.ev
	cache, bandwidth = Verdict{Axis: Cache}, Verdict{Axis: Bandwidth}
	for _, vd := range [...]*Verdict{&cache, &bandwidth} {
		vd.Window, vd.CPI = c.window.covered, *ev
		switch {
		case !now.ok:
			vd.Reason = FewSamples
		case !now.fit:
			vd.Reason = Learning
		}
	}
	if !now.ok || !now.fit || ev.CPI <= watchCPI(ev, v.Spec.Judge.WatchPercent) {
		return cache, bandwidth
	}
	level := Watch
	if ev.CPI > ev.CPIFence && c.over >= harmful {
		level = Violated
	}
	misses := ev.MPKI > ev.MPKIFence
	vd := &cache
	if !misses && now.high {
		vd = &bandwidth
	}
	vd.Level = level
	switch {
	case !misses && !now.high:
		vd.Reason = Unexplained // a slower clock, a busy sibling thread, other code
	case misses && !c.changed(), misses && s.holds(v, t):
		vd.Reason = OwnPhase
	case !c.changed():
		vd.Reason = OwnPhase
	default:
		s.name(v, c, vd)
	}
	if vd.Reason == Unexplained && !c.changed() {
		vd.Reason = OwnPhase
	}
	return cache, bandwidth
}

// holds reports whether the victim's pod holds as much cache as while it was well: then its misses are not for want of it.
func (s *State) holds(v *View, t *track) bool {
	ev := &t.cpi.now.ev
	return v.Node.Caps.CacheMonitoring && ev.OccupancyBytes > 0 && ev.OccupancyBaseline > 0 && ev.OccupancyBytes*20 >= ev.OccupancyBaseline*21
}

// name fills in the shares of suspects and finds culprits among them.
func (s *State) name(v *View, c *cpiTrack, vd *Verdict) {
	from, total := len(s.shares), uint64(0)
	for i := range c.suspects {
		x := &c.suspects[i]
		if x.pod < 0 || x.score <= 0 || vd.Axis == Cache && s.absent(v, x.pod) {
			continue
		}
		s.shares = append(s.shares, Share{Pod: x.pod, Class: v.Class[x.pod], NS: uint64(x.score), MBps: x.mbps})
		total += uint64(x.score)
	}
	vd.Shares = s.shares[from:len(s.shares):len(s.shares)]
	slices.SortFunc(vd.Shares, byShare)
	vd.Reason = Scattered
	if vd.Level == Violated {
		if vd.Named, vd.Joint = rivals(&v.Spec.Judge, vd.Shares, total); vd.Named > 0 {
			vd.Reason = Contention
		}
	}
	for i := range vd.Shares {
		vd.Shares[i].Permille = permille(vd.Shares[i].NS, total)
		vd.Shares[i].NS = 0
	}
}

// rivals counts the leading shares that are to blame: all that are of the size of the largest, half of it or more, if the largest
// reaches CulpritPercent alone or all of them JointPercent together; or else the fewest that do. Unlike CPU time, cache and bandwidth
// that some of several equals give up go to the others, not to the victim.
func rivals(j *policy.Judge, shares []Share, total uint64) (n int, joint bool) {
	if len(shares) == 0 {
		return 0, false
	}
	sum, alone := uint64(0), shares[0].NS*100 >= total*uint64(j.CulpritPercent)
	for n < len(shares) && shares[n].NS*2 >= shares[0].NS {
		sum += shares[n].NS
		n++
	}
	if alone || sum*100 >= total*uint64(j.JointPercent) {
		return n, !alone
	}
	return culprits(j, shares, total)
}

// absent reports whether a pod is known to hold so little of the cache that it cannot have pushed anybody out of it.
func (s *State) absent(v *View, pod int) bool {
	p := &s.traffic.pods[pod]
	if !v.Node.Caps.CacheMonitoring || !p.monitored || len(v.Node.RDT.Domains) == 0 {
		return false
	}
	return p.occupancy < v.Node.RDT.Domains[0].WayBytes/4
}

// CPIReading is the present window of an online container, for whoever wants to compare it with a later one.
type CPIReading struct {
	CPIEvidence
	At   time.Duration // of the newest counters in it
	High bool          // its domains move more than while it was well, or than they can without becoming slow
}

// ReadCPI gives the present window of the container at index i; ok is false without enough of a window or a baseline.
func (s *State) ReadCPI(i int) (r CPIReading, ok bool) {
	if i < 0 || i >= len(s.tracks) || s.tracks[i] == nil {
		return CPIReading{}, false
	}
	c := &s.tracks[i].cpi
	return CPIReading{CPIEvidence: c.now.ev, At: c.window.at, High: c.now.high}, c.now.ok && c.now.fit
}

// BusPercent is the use of the fullest domain, in percent of what it can move as far as that is known; 0 if nothing is.
func (s *State) BusPercent(j *policy.BandwidthControl) int {
	for d := range s.traffic.busy {
		s.traffic.busy[d] = true
	}
	_, percent := s.traffic.bus(j)
	return percent
}

// Where is the domains that a pod uses: bit i is the i-th of the machine's by ascending id. 0: all of them, or that is not known.
func (s *State) Where(pod int) (mask uint64) {
	t := &s.traffic
	if n := len(t.ids); n < 2 || n > 64 || pod >= len(t.pods) || !t.pods[pod].monitored {
		return 0
	}
	t.at(pod)
	every := true
	for d, b := range t.busy {
		if b {
			mask |= 1 << d
		}
		every = every && b
	}
	if every {
		return 0
	}
	return mask
}

// PodMBps is what a pod moves between cache and memory, MB/s; ok is false if it is not known.
func (s *State) PodMBps(pod int) (n uint64, ok bool) {
	if pod >= len(s.traffic.pods) {
		return 0, false
	}
	return s.traffic.pods[pod].mbps, s.traffic.pods[pod].known
}
