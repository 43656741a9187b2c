package rdt

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"path"
	"strconv"
	"strings"
)

// Info is what the machine can control and monitor.
type Info struct {
	// Caches are the cache resources: L3, L2, or with code and data prioritisation (CDP) L3CODE and L3DATA.
	Caches []Cache
	MB     *Bandwidth  // nil without bandwidth allocation
	Mon    *Monitoring // nil without monitoring
	// CLOSIDs is how many control groups there can be, the default one among them: the least of all resources. 1 without any.
	CLOSIDs int
}

// Cache is what info says of a cache resource.
type Cache struct {
	Name      string // as in schemata
	CLOSIDs   int
	Mask      uint64 // all ways
	MinBits   int    // least number of bits in a mask
	Shareable uint64 // ways that other agents, such as devices, fill too
	Sparse    bool   // masks may have gaps
}

// Ways is how many there are.
func (c *Cache) Ways() int { return bits.OnesCount64(c.Mask) }

// Unit is what an MB value means.
type Unit uint8

const (
	Percent   Unit = iota + 1 // of a core's bandwidth, throttled core by core (Intel)
	MiBps                     // MiB/s of the group, kept by the kernel's feedback loop (mounted with mba_MBps)
	EighthGBs                 // 1/8 GB/s of the group in the domain (AMD)
)

func (u Unit) String() string {
	switch u {
	case Percent:
		return "percent"
	case MiBps:
		return "MiB/s"
	case EighthGBs:
		return "1/8 GB/s"
	}
	return "unknown"
}

// Unlimited is what an MB value reads in MiB/s when there is no limit.
const Unlimited = 1<<32 - 1

// Bandwidth is what info says of memory bandwidth.
type Bandwidth struct {
	CLOSIDs int
	Min     uint64 // least value
	Gran    uint64 // step: values are Min + n x Gran
	Max     uint64 // no limit
	Linear  bool   // the delay rises in proportion to the value (delay_linear)
	// Throttle is "max" (all threads of a core get its slowest one's limit), "per-thread", or "" where the kernel does not say.
	Throttle string
	Unit     Unit
}

// Round is what is written for v, and shown after: v within the limits, up to the next step. With mba_MBps, kernels without the fix
// "x86/resctrl: Avoid overflow in MB settings in bw_validate()" of 2024 (Debian's 6.1.0-56 and 6.12.117 have it) round up as well, in 32
// bits: of the 4294967295 that they show where there is no limit they make 4 MiB/s. So the last step below that stands for it.
func (b *Bandwidth) Round(v uint64) uint64 {
	v = min(max(v, b.Min), b.Max)
	if b.Gran <= 1 {
		return v
	}
	if up := (v + b.Gran - 1) / b.Gran * b.Gran; up <= b.Max {
		return up
	}
	return b.Max / b.Gran * b.Gran
}

// same reports whether two values mean the same.
func (b *Bandwidth) same(v, w uint64) bool {
	return v == w || b.Unit == MiBps && min(v, w) > Unlimited-max(b.Gran, 1)
}

// Monitoring is what info says of counters.
type Monitoring struct {
	RMIDs int
	// Occupancy, Total and Local say which counters there are.
	Occupancy, Total, Local bool
	Features                []string
	// MaxThreshold is the number of bytes below which a freed id leaves limbo.
	MaxThreshold uint64
}

// Cache finds a cache resource by its name; nil if there is none.
func (i *Info) Cache(name string) *Cache {
	for k := range i.Caches {
		if i.Caches[k].Name == name {
			return &i.Caches[k]
		}
	}
	return nil
}

// Known names of cache resources.
var cacheNames = [...]string{"L3", "L3CODE", "L3DATA", "L2", "L2CODE", "L2DATA"}

// infoReader reads files of info and keeps the first error.
type infoReader struct {
	tree Tree
	buf  [1024]byte
	err  error
}

// text reads a file; ok is false if there is none.
func (r *infoReader) text(name string) (text string, ok bool) {
	raw, err := r.tree.Read(path.Join(infoDir, name), r.buf[:])
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil {
		r.fail(name, err)
		return "", false
	}
	return strings.TrimSpace(string(raw)), true
}

func (r *infoReader) fail(name string, err error) {
	if r.err == nil {
		r.err = fmt.Errorf("resctrl: info/%s: %w", name, err)
	}
}

// number reads a number; a file that is not there is zero.
func (r *infoReader) number(name string, base int) uint64 {
	text, ok := r.text(name)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), base, 64)
	if err != nil {
		r.fail(name, err)
	}
	return n
}

func readInfo(tree Tree) (Info, error) {
	r := &infoReader{tree: tree}
	var i Info
	least := 0
	count := func(n int) int {
		if n > 0 && (least == 0 || n < least) {
			least = n
		}
		return n
	}
	for _, name := range cacheNames {
		if _, ok := r.text(name + "/cbm_mask"); !ok {
			continue
		}
		c := Cache{
			Name: name, CLOSIDs: count(int(r.number(name+"/num_closids", 10))), Mask: r.number(name+"/cbm_mask", 16),
			MinBits: max(int(r.number(name+"/min_cbm_bits", 10)), 1), Shareable: r.number(name+"/shareable_bits", 16),
			Sparse: r.number(name+"/sparse_masks", 10) == 1,
		}
		if c.Mask == 0 {
			r.fail(name+"/cbm_mask", errors.New("no ways"))
		}
		i.Caches = append(i.Caches, c)
	}
	if _, ok := r.text("MB/num_closids"); ok {
		i.MB = r.bandwidth()
		count(i.MB.CLOSIDs)
	}
	if features, ok := r.text("L3_MON/mon_features"); ok {
		m := &Monitoring{RMIDs: int(r.number("L3_MON/num_rmids", 10)), Features: strings.Fields(features), MaxThreshold: r.number("L3_MON/max_threshold_occupancy", 10)}
		for _, f := range m.Features {
			switch f {
			case "llc_occupancy":
				m.Occupancy = true
			case "mbm_total_bytes":
				m.Total = true
			case "mbm_local_bytes":
				m.Local = true
			}
		}
		i.Mon = m
	}
	i.CLOSIDs = max(least, 1)
	return i, r.err
}

// bandwidth finds out the unit too, which the kernel does not say: it shows in how values look.
func (r *infoReader) bandwidth() *Bandwidth {
	b := &Bandwidth{
		CLOSIDs: int(r.number("MB/num_closids", 10)), Min: r.number("MB/min_bandwidth", 10), Gran: max(r.number("MB/bandwidth_gran", 10), 1),
		Linear: r.number("MB/delay_linear", 10) == 1, Unit: Percent, Max: 100,
	}
	b.Throttle, _ = r.text("MB/thread_throttle_mode")
	raw, err := r.tree.Read("schemata", r.buf[:])
	if err != nil {
		r.fail("../schemata", err)
		return b
	}
	s, err := ParseSchemata(raw)
	if err != nil {
		r.fail("../schemata", err)
		return b
	}
	for _, v := range s.Values("MB") {
		switch {
		case v.Value == Unlimited:
			b.Unit, b.Max = MiBps, Unlimited
		case v.Value > 100 && b.Unit == Percent:
			b.Unit = EighthGBs
		}
	}
	// A step of one is AMD's too, should somebody have lowered the default group's values; Intel's is ten, or more.
	if b.Unit == Percent && b.Gran == 1 && b.Min <= 1 {
		b.Unit = EighthGBs
	}
	if b.Unit == EighthGBs {
		b.Max = amdMax
		for _, v := range s.Values("MB") {
			b.Max = max(b.Max, v.Value)
		}
	}
	return b
}

// amdMax is the kernel's MAX_MBA_BW_AMD: no limit.
const amdMax = 0x800
