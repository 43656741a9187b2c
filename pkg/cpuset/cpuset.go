// Package cpuset is a set of logical CPUs in the kernel's list format ("0-3,8"). A Set is a plain value: comparable, copyable,
// without allocation.
package cpuset

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Max is the number of CPUs that a Set can hold.
const Max = 1024

// Set is a set of CPUs 0 to Max-1. The zero value is empty.
type Set [Max / 64]uint64

// Of makes a set of the given CPUs. It panics on a CPU outside 0 to Max-1.
func Of(cpus ...int) Set {
	var s Set
	for _, c := range cpus {
		s.Add(c)
	}
	return s
}

// Add puts cpu into the set.
func (s *Set) Add(cpu int) { s[cpu/64] |= 1 << (cpu % 64) }

// Remove takes cpu out of the set.
func (s *Set) Remove(cpu int) { s[cpu/64] &^= 1 << (cpu % 64) }

// Has reports whether cpu is in the set.
func (s Set) Has(cpu int) bool { return cpu >= 0 && cpu < Max && s[cpu/64]&(1<<(cpu%64)) != 0 }

// Len is the number of CPUs in the set.
func (s Set) Len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty reports whether no CPU is in the set.
func (s Set) Empty() bool { return s == Set{} }

// And is the intersection.
func (s Set) And(t Set) Set {
	for i := range s {
		s[i] &= t[i]
	}
	return s
}

// Or is the union.
func (s Set) Or(t Set) Set {
	for i := range s {
		s[i] |= t[i]
	}
	return s
}

// Minus is what is in s and not in t.
func (s Set) Minus(t Set) Set {
	for i := range s {
		s[i] &^= t[i]
	}
	return s
}

// SubsetOf reports whether every CPU of s is in t.
func (s Set) SubsetOf(t Set) bool { return s.Minus(t).Empty() }

// List is the CPUs in ascending order.
func (s Set) List() []int {
	out := make([]int, 0, s.Len())
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			out = append(out, i*64+bits.TrailingZeros64(w))
		}
	}
	return out
}

// String is the kernel's list format, ranges joined: "0-3,8". The empty set is "".
func (s Set) String() string {
	var b strings.Builder
	for c := 0; c < Max; c++ {
		if !s.Has(c) {
			continue
		}
		end := c
		for s.Has(end + 1) {
			end++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(c))
		if end > c {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(end))
		}
		c = end
	}
	return b.String()
}

// MarshalText and UnmarshalText use the list format.
func (s Set) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the list format.
func (s *Set) UnmarshalText(text []byte) error {
	v, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// Parse reads the kernel's list format. Surrounding white space is ignored; "" is the empty set.
func Parse(list string) (Set, error) {
	var s Set
	list = strings.TrimSpace(list)
	if list == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		lo, err := parseCPU(first, list)
		if err != nil {
			return Set{}, err
		}
		hi := lo
		if isRange {
			if hi, err = parseCPU(last, list); err != nil {
				return Set{}, err
			}
		}
		if hi < lo {
			return Set{}, fmt.Errorf("cpu list %q: range %q runs backwards", list, part)
		}
		for c := lo; c <= hi; c++ {
			s.Add(c)
		}
	}
	return s, nil
}

func parseCPU(text, list string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("cpu list %q: %q is not a CPU number", list, text)
	}
	if n >= Max {
		return 0, fmt.Errorf("cpu list %q: CPU %d is beyond the %d that are supported", list, n, Max)
	}
	return int(n), nil
}
