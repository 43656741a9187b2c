//go:build amd64

//rig:variants sparse

package classes

import (
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigSparseWays names ways with a gap on a CPU that can have them, with a kernel that knows it (6.12) and one that does not (6.1).
func TestRigSparseWays(t *testing.T) {
	e, fs := realBench(t)
	guest.Start(t, guest.Group(t, hogGroup[1:]), "hog", "-profile", "10,64,900,10")
	hog := knob.Share{Pod: "ns/hog", Cgroup: hogGroup, Role: knob.RoleOffline}
	apply := func(c policy.CacheControl, want uint64) {
		t.Helper()
		c.FloorWays = 1
		for _, o := range e.Apply([]knob.Share{hog}, Policy{Enforce: true, Cache: c, FloorPercent: 10}) {
			if o.Err != nil {
				t.Error(o.Err)
			}
		}
		s, err := fs.Schemata(Prefix + "offline")
		if err != nil {
			t.Fatal(err)
		}
		if v := s.Values("L3"); len(v) != 1 || v[0].Value != want {
			t.Errorf("the kernel has %x, want %x; notes %v", v, want, e.Notes())
		}
	}
	middle := policy.CacheControl{OnlineWays: 0x070}
	if !fs.Info.Cache("L3").Sparse {
		apply(middle, 0x7ff)
		if n := e.Notes(); len(n) != 1 || !strings.Contains(n[0].Text, "the machine's masks cannot have gaps") {
			t.Errorf("notes: %+v", n)
		}
		return
	}
	apply(middle, 0x78f)
	apply(policy.CacheControl{Ways: 0x30f}, 0x30f)
}
