package cpuset

import (
	"testing"

	"pgregory.net/rapid"
)

func TestParseAndPrint(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "\n": "", "0\n": "0", "0-3,8": "0-3,8", "3,1,2": "1-3", "0,2,4": "0,2,4", "62-66": "62-66", "1023": "1023",
	} {
		s, err := Parse(in)
		if err != nil || s.String() != want {
			t.Errorf("Parse(%q) = %q, %v, want %q", in, s, err, want)
		}
	}
	for _, bad := range []string{"x", "1-", "-1", "3-1", "1024", "0,,1", "0 1"} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %q, want an error", bad, s)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cpus := rapid.SliceOf(rapid.IntRange(0, Max-1)).Draw(t, "cpus")
		s := Of(cpus...)
		back, err := Parse(s.String())
		if err != nil || back != s {
			t.Fatalf("%v came back as %v, %v", s, back, err)
		}
		if got := Of(s.List()...); got != s || len(s.List()) != s.Len() {
			t.Fatalf("List of %v loses CPUs", s)
		}
	})
}

func TestAlgebra(t *testing.T) {
	a, b := Of(0, 1, 2, 70), Of(2, 70, 71)
	if a.And(b) != Of(2, 70) || a.Or(b) != Of(0, 1, 2, 70, 71) || a.Minus(b) != Of(0, 1) {
		t.Fatal("set algebra is wrong")
	}
	if !Of(2).SubsetOf(a) || b.SubsetOf(a) || !(Set{}).Empty() {
		t.Fatal("subset or empty is wrong")
	}
}
