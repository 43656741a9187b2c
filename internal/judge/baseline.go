package judge

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
)

const (
	// binSamples is how many windows a bin of the baseline remembers.
	binSamples = 64
	// binPace is the least time between two windows that a full bin takes in, so that it remembers minutes, not seconds. A
	// container that is better off than ever is learned from at once.
	binPace = 5 * time.Second
	// maxBaselines bounds how many workloads are remembered, those that are gone included.
	maxBaselines = 1024
	// maxBin is the highest bin: 2^16 CPUs.
	maxBin = 2*26 + 1
)

// Normal is one window of a container that was well.
type Normal struct {
	CPI       uint32 `json:"cpi"`       // thousandths
	MPKI      uint32 `json:"mpki"`      // thousandths
	Occupancy uint32 `json:"occupancy"` // KiB of L3 that its pod held; 0: not known
	Bandwidth uint32 `json:"bandwidth"` // MB/s that all of its domains moved together; 0: not known
}

// Bin is what is normal at one level of CPU use.
type Bin struct {
	// Bin is twice the binary logarithm of the container's use in thousandths of a CPU: bins are half an octave wide, since what
	// changes CPI is whether a container does a little or a lot, not whether it does 30 or 31 %.
	Bin     int      `json:"bin"`
	Samples []Normal `json:"samples"` // oldest first

	next    int           // where the next sample goes once the bin is full
	at      time.Duration // of the newest sample of this run
	cpi     spread
	mpki    spread
	occ, bw uint32 // medians
}

// spread is a median and the median of the distances from it (MAD): half of all samples may lie without moving them far.
type spread struct{ median, mad uint32 }

// fence is the value beyond which a sample is not normal: the larger of a share above the median, and three standard deviations of a
// normal distribution as the MAD estimates them (3 × 1.4826), but at least least above.
func (s spread) fence(risePercent float64, least uint32) uint64 {
	rise := uint64(float64(s.median) * risePercent / 100)
	return uint64(s.median) + max(rise, uint64(s.mad)*4448/1000, uint64(least))
}

// baseline is what is normal for a container of a workload.
type baseline struct {
	key  string
	used uint64 // when it was last asked for, to forget the oldest first
	bins []*Bin // ascending
}

// binOf is the bin of a use in thousandths of a CPU.
func binOf(milliCPU uint64) int {
	if milliCPU < 2 {
		return 0
	}
	n := bits.Len64(milliCPU) - 1
	return min(2*n+int(milliCPU>>(n-1)&1), maxBin)
}

// octave is how many bins apart two levels of use may be to speak for each other.
const octave = 2

// find gives the bin for a use, or if it holds less than least samples the one nearest to it that does, lower bins first: who is
// slowed down uses more CPU for the same work, and so comes from below. A container whose use swings about the edge of two bins fills
// both slowly: the larger of neighbours that hold enough together will do.
func (b *baseline) find(bin, least int) *Bin {
	var best *Bin
	distance := 0
	for i, c := range b.bins {
		if len(c.Samples) < least && (!b.largest(i) || b.around(i) < least) {
			continue
		}
		if d := max(bin-c.Bin, c.Bin-bin); best == nil || d < distance {
			best, distance = c, d
		}
	}
	return best
}

// around is how many samples the bins within an octave of the one at index i hold.
func (b *baseline) around(i int) (n int) {
	for _, c := range b.bins {
		if max(b.bins[i].Bin-c.Bin, c.Bin-b.bins[i].Bin) <= octave {
			n += len(c.Samples)
		}
	}
	return n
}

// largest reports whether no bin within an octave of the one at index i holds more.
func (b *baseline) largest(i int) bool {
	for _, c := range b.bins {
		if max(b.bins[i].Bin-c.Bin, c.Bin-b.bins[i].Bin) <= octave && len(c.Samples) > len(b.bins[i].Samples) {
			return false
		}
	}
	return true
}

// bin finds or makes a bin.
func (b *baseline) bin(n int) *Bin {
	at, ok := slices.BinarySearchFunc(b.bins, n, func(c *Bin, n int) int { return c.Bin - n })
	if !ok {
		b.bins = slices.Insert(b.bins, at, &Bin{Bin: n, Samples: make([]Normal, 0, binSamples)})
	}
	return b.bins[at]
}

// learn takes in a window of a container that is well.
func (c *Bin) learn(n Normal, now time.Duration, scratch *[binSamples]uint32) {
	lower := len(c.Samples) > 0 && uint64(n.CPI)*100 < uint64(c.cpi.median)*95
	if len(c.Samples) == binSamples && !lower && c.at != 0 && now-c.at < binPace {
		return
	}
	c.at = now
	if len(c.Samples) < binSamples {
		c.Samples = append(c.Samples, n)
	} else {
		c.Samples[c.next] = n
		c.next = (c.next + 1) % binSamples
	}
	c.settle(scratch)
}

// settle works out the medians.
func (c *Bin) settle(scratch *[binSamples]uint32) {
	c.cpi = spreadOf(c.Samples, scratch, func(n *Normal) uint32 { return n.CPI })
	c.mpki = spreadOf(c.Samples, scratch, func(n *Normal) uint32 { return n.MPKI })
	c.occ = medianOf(c.Samples, scratch, true, func(n *Normal) uint32 { return n.Occupancy })
	c.bw = medianOf(c.Samples, scratch, true, func(n *Normal) uint32 { return n.Bandwidth })
}

func spreadOf(samples []Normal, scratch *[binSamples]uint32, field func(*Normal) uint32) spread {
	s := spread{median: medianOf(samples, scratch, false, field)}
	values := scratch[:0]
	for i := range samples {
		v := field(&samples[i])
		values = append(values, max(v, s.median)-min(v, s.median))
	}
	slices.Sort(values)
	s.mad = middle(values)
	return s
}

// medianOf leaves out what is not known, which is 0, if known is set.
func medianOf(samples []Normal, scratch *[binSamples]uint32, known bool, field func(*Normal) uint32) uint32 {
	values := scratch[:0]
	for i := range samples {
		if v := field(&samples[i]); v != 0 || !known {
			values = append(values, v)
		}
	}
	slices.Sort(values)
	return middle(values)
}

// middle of sorted values.
func middle(v []uint32) uint32 {
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

// forget empties the bin: what is normal has changed.
func (c *Bin) forget() { *c = Bin{Bin: c.Bin, Samples: c.Samples[:0]} }

// Workload is the name by which a container's baseline is kept: namespace, workload and container. Pods of a Deployment, Job or
// StatefulSet come and go, what is normal for their program stays. Who owns a pod is told by the labels that its controller puts on it;
// without them the pod's own name stands.
func Workload(p *signal.Pod, container string) string {
	name := p.Name
	switch {
	case p.Labels["pod-template-hash"] != "": // Deployment: NAME-HASH-RANDOM
		if at := strings.LastIndex(name, "-"+p.Labels["pod-template-hash"]+"-"); at > 0 {
			name = name[:at]
		}
	case p.Labels["batch.kubernetes.io/job-name"] != "":
		name = p.Labels["batch.kubernetes.io/job-name"]
	case p.Labels["statefulset.kubernetes.io/pod-name"] == name, p.Labels["controller-revision-hash"] != "": // NAME-0, NAME-RANDOM
		if at := strings.LastIndexByte(name, '-'); at > 0 {
			name = name[:at]
		}
	}
	return p.Namespace + "/" + name + "/" + container
}

// Baselines is what the judge has learned of workloads, to be kept across restarts.
type Baselines struct {
	// Version is of this format.
	Version   int                `json:"version"`
	Workloads []WorkloadBaseline `json:"workloads"` // the longest unused first
}

// WorkloadBaseline is what is normal for a container of a workload.
type WorkloadBaseline struct {
	Key  string `json:"key"` // see Workload
	Bins []Bin  `json:"bins"`
}

// baselinesVersion is the only one there is.
const baselinesVersion = 1

// Baselines copies out what was learned.
func (s *State) Baselines() Baselines {
	out := Baselines{Version: baselinesVersion, Workloads: []WorkloadBaseline{}}
	all := make([]*baseline, 0, len(s.baselines))
	for _, b := range s.baselines {
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b *baseline) int { return cmp.Or(cmp.Compare(a.used, b.used), cmp.Compare(a.key, b.key)) })
	for _, b := range all {
		w := WorkloadBaseline{Key: b.key}
		for _, c := range b.bins {
			ordered := append(slices.Clone(c.Samples[c.next:]), c.Samples[:c.next]...)
			w.Bins = append(w.Bins, Bin{Bin: c.Bin, Samples: ordered})
		}
		if len(w.Bins) > 0 {
			out.Workloads = append(out.Workloads, w)
		}
	}
	return out
}

// SetBaselines takes over what an earlier run has learned, in place of everything that is known. It fails, and changes nothing, on
// something that no run can have written.
func (s *State) SetBaselines(from *Baselines) error {
	if from.Version != baselinesVersion {
		return fmt.Errorf("baselines: version %d, want %d", from.Version, baselinesVersion)
	}
	if len(from.Workloads) > maxBaselines {
		return fmt.Errorf("baselines: %d workloads, want at most %d", len(from.Workloads), maxBaselines)
	}
	fresh := make(map[string]*baseline, len(from.Workloads))
	for i, w := range from.Workloads {
		if w.Key == "" || fresh[w.Key] != nil {
			return fmt.Errorf("baselines: workload %d: key %q is empty or there twice", i, w.Key)
		}
		b := &baseline{key: w.Key, used: uint64(i)}
		for k := range w.Bins {
			c := &Bin{Bin: w.Bins[k].Bin, Samples: append(make([]Normal, 0, binSamples), w.Bins[k].Samples...)}
			if err := c.valid(); err != nil {
				return fmt.Errorf("baselines: workload %s: bin %d: %w", w.Key, c.Bin, err)
			}
			if k > 0 && c.Bin <= w.Bins[k-1].Bin {
				return fmt.Errorf("baselines: workload %s: bins are not ascending", w.Key)
			}
			c.settle(&s.scratch)
			b.bins = append(b.bins, c)
		}
		fresh[w.Key] = b
	}
	s.baselines, s.uses = fresh, uint64(len(fresh))
	for _, t := range s.byID {
		t.base = nil // found anew
	}
	return nil
}

func (c *Bin) valid() error {
	switch {
	case c.Bin < 0 || c.Bin > maxBin:
		return errors.New("there is no such bin")
	case len(c.Samples) > binSamples:
		return fmt.Errorf("%d samples, want at most %d", len(c.Samples), binSamples)
	case slices.ContainsFunc(c.Samples, func(n Normal) bool { return n.CPI == 0 }):
		return errors.New("a CPI of 0")
	}
	return nil
}

// baselineOf finds or makes the baseline of a workload.
func (s *State) baselineOf(key string) *baseline {
	if s.baselines == nil {
		s.baselines = make(map[string]*baseline)
	}
	s.uses++
	b := s.baselines[key]
	if b == nil {
		if len(s.baselines) >= maxBaselines {
			s.forgetOldest()
		}
		b = &baseline{key: key}
		s.baselines[key] = b
	}
	b.used = s.uses
	return b
}

// forgetOldest drops the baseline that was asked for the longest ago. No two have the same age, so the order of the map does not matter.
func (s *State) forgetOldest() {
	var oldest *baseline
	for _, b := range s.baselines {
		if oldest == nil || b.used < oldest.used {
			oldest = b
		}
	}
	delete(s.baselines, oldest.key)
}
