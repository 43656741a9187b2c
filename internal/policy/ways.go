package policy

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Ways is a set of ways of the last-level cache: bit i is way i, as in the kernel's cbm_mask. It is written as a list ("0-3,8") or as a
// mask ("0x10f"). Empty stands for what a field says that is not set.
type Ways uint64

// MaxWays is how many ways a set can name: the width of the kernel's masks is 32 at most.
const MaxWays = 32

var errWays = errors.New("not a set of ways")

// FullWays is the first n.
func FullWays(n int) Ways { return 1<<min(max(n, 0), MaxWays) - 1 }

// Len is how many ways there are in the set.
func (w Ways) Len() int { return bits.OnesCount64(uint64(w)) }

// Contiguous reports whether the ways are next to each other, as none and one are.
func (w Ways) Contiguous() bool {
	return w == 0 || bits.Len64(uint64(w))-bits.TrailingZeros64(uint64(w)) == w.Len()
}

// String is the list: "0-3,8".
func (w Ways) String() string {
	var b strings.Builder
	for rest := uint64(w); rest != 0; {
		from := bits.TrailingZeros64(rest)
		n := bits.TrailingZeros64(^(rest >> from))
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(from))
		if n > 1 {
			b.WriteString("-" + strconv.Itoa(from+n-1))
		}
		rest &^= (1<<n - 1) << from
	}
	return b.String()
}

// MarshalText writes the list.
func (w Ways) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads a list or a mask; an empty text is the empty set.
func (w *Ways) UnmarshalText(text []byte) error {
	s := string(text)
	if digits, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		mask, err := strconv.ParseUint(digits, 16, MaxWays)
		if err != nil || mask == 0 {
			return errWays
		}
		*w = Ways(mask)
		return nil
	}
	*w = 0
	if s == "" {
		return nil
	}
	var set Ways
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 8)
		to, err2 := strconv.ParseUint(last, 10, 8)
		if err != nil || err2 != nil || from > to || to >= MaxWays {
			return errWays
		}
		set |= FullWays(int(to)+1) &^ FullWays(int(from))
	}
	*w = set
	return nil
}

// Machine is what a node's hardware can divide, as resctrl tells it. What is zero is not known, or not there.
type Machine struct {
	Ways    Ways // all of the last-level cache: cbm_mask
	MinWays int  // in a mask: min_cbm_bits
	Sparse  bool // masks may have gaps: sparse_masks
	CLOSIDs int  // classes of service, the default one among them: the least num_closids
	MBMin   int  // least limit of bandwidth, where that is in percent: min_bandwidth
}

// All is the ways that the agent may use on a machine with these.
func (c *CacheControl) All(machine Ways) Ways {
	if c.Ways == 0 {
		return machine
	}
	return c.Ways
}

// Misfit is why the ways that the policy names cannot be had on a machine; ok is false if there is no such reason. None of them is used
// then: a division that holds in part is not what anybody wrote.
func (c *CacheControl) Misfit(m *Machine) (e FieldError, ok bool) {
	if m.Ways == 0 || c.Ways|c.OnlineWays|c.OfflineWays == 0 {
		return e, false
	}
	all, least := c.All(m.Ways), max(m.MinWays, 1)
	for _, f := range [...]struct {
		path     string
		set      Ways
		left     Ways // to others
		to, want string
	}{
		{"spec.rdt.cache.ways", c.Ways, 0, "", ""},
		{"spec.rdt.cache.onlineWays", c.OnlineWays, all &^ c.OnlineWays, "offline", "online"},
		{"spec.rdt.cache.offlineWays", c.OfflineWays, all &^ c.OfflineWays, "online", "offline"},
	} {
		bad := func(fix, format string, args ...any) (FieldError, bool) {
			return FieldError{Path: f.path, Problem: "is " + f.set.String() + ", " + fmt.Sprintf(format, args...), Fix: fix}, true
		}
		switch {
		case f.set == 0:
		case f.set&^m.Ways != 0:
			return bad(fmt.Sprintf("ways among %v", m.Ways), "of which the machine lacks %v: it has %d ways (cbm_mask %x)", f.set&^m.Ways, m.Ways.Len(), uint64(m.Ways))
		case f.set.Len() < least:
			return bad(fmt.Sprintf("%d ways or more", least), "fewer ways than the machine's least mask has (min_cbm_bits %d)", m.MinWays)
		case !m.Sparse && !f.set.Contiguous():
			return bad("ways that are next to each other", "and the machine's masks cannot have gaps")
		case f.to == "":
		case f.left.Len() < least:
			return bad(fmt.Sprintf("%d or more of %v left to %s pods", least, all, f.to), "which leaves %s pods %d of the %d ways", f.to, f.left.Len(), all.Len())
		case !m.Sparse && !f.left.Contiguous():
			return bad(fmt.Sprintf("ways at one end of %v", all), "which leaves %s pods %v, and the machine's masks cannot have gaps", f.to, f.left)
		}
	}
	if c.OfflineWays != 0 && m.CLOSIDs > 0 && m.CLOSIDs < 3 {
		return FieldError{Path: "spec.rdt.cache.offlineWays", Fix: "no such field on this machine",
			Problem: fmt.Sprintf("is %v, which takes a class of service for offline pods and one for online ones: the machine has %d beside the default one", c.OfflineWays, m.CLOSIDs-1)}, true
	}
	return e, false
}

// machine adds what the policy asks of the cache and the memory bandwidth that the machine does not have.
func (c *relationChecker) machine(r *RDT, m *Machine) {
	if e, bad := r.Cache.Misfit(m); bad {
		c.add(e.Path, e.Problem, e.Fix, "spec.rdt.cache.ways")
	} else if m.Ways != 0 && r.Cache.Enabled {
		open := r.Cache.All(m.Ways) &^ r.Cache.OnlineWays
		if n := open.Len(); r.Cache.FloorWays >= n {
			c.add("spec.rdt.cache.floorWays", fmt.Sprintf("is %d, and offline pods can have no more than %d of the machine's %d ways (cbm_mask %x)",
				r.Cache.FloorWays, n, m.Ways.Len(), uint64(m.Ways)), fmt.Sprintf("less than %d, or cache.enabled: false", n), "spec.rdt.cache.ways", "spec.rdt.cache.onlineWays")
		}
	}
	if b := &r.Bandwidth; b.Enabled && b.FloorPercent < m.MBMin {
		c.add("spec.rdt.bandwidth.floorPercent", fmt.Sprintf("is %d, below the machine's least limit (min_bandwidth %d)", b.FloorPercent, m.MBMin),
			fmt.Sprintf("%d or more, or bandwidth.enabled: false", m.MBMin))
	}
}

// ranges checks the ways that a policy names against each other, whatever the machine.
func (c *relationChecker) ranges(r *CacheControl) {
	const ways, online, offline = "spec.rdt.cache.ways", "spec.rdt.cache.onlineWays", "spec.rdt.cache.offlineWays"
	if both := r.OnlineWays & r.OfflineWays; both != 0 {
		c.add(online, fmt.Sprintf("is %v, which overlaps with offlineWays (%v) in %v", r.OnlineWays, r.OfflineWays, both), "ways that are not offline pods' alone", offline)
	}
	if r.Ways == 0 {
		return
	}
	for _, f := range [...]struct {
		path, others string
		set          Ways
	}{{online, "offline", r.OnlineWays}, {offline, "online", r.OfflineWays}} {
		switch beyond := f.set &^ r.Ways; {
		case beyond != 0:
			c.add(f.path, fmt.Sprintf("is %v, of which %v is not among ways (%v)", f.set, beyond, r.Ways), fmt.Sprintf("ways among %v", r.Ways), ways)
		case f.set == r.Ways:
			c.add(f.path, fmt.Sprintf("is %v, all that the agent may use: nothing is left to %s pods", f.set, f.others), fmt.Sprintf("a part of %v", r.Ways), ways)
		}
	}
}
