package control

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// cpus makes a machine of nodes NUMA nodes with caches last-level caches each, cores cores each, and threads siblings each, numbered as
// Linux mostly does: first siblings of all cores, then second ones.
func cpus(nodes, caches, cores, threads int) []signal.CPU {
	var out []signal.CPU
	n := nodes * caches * cores
	for t := range threads {
		for i := range n {
			out = append(out, signal.CPU{ID: t*n + i, Core: i, LLC: i / cores * cores, Node: i / cores / caches})
		}
	}
	return out
}

func TestMask(t *testing.T) {
	tests := map[string]struct {
		cpus    []signal.CPU
		n       int
		allowed string
		want    string
	}{
		"two CPUs, one of them":                  {cpus(1, 1, 2, 1), 1, "", "1"},
		"highest first":                          {cpus(1, 1, 8, 1), 3, "", "5-7"},
		"siblings together":                      {cpus(1, 1, 4, 2), 2, "", "2-3,6-7"},
		"nodes in turn":                          {cpus(2, 1, 4, 1), 2, "", "3,7"},
		"nodes in turn, uneven":                  {cpus(2, 1, 4, 1), 3, "", "3,6-7"},
		"one cache of a node after the other":    {cpus(2, 2, 2, 1), 4, "", "2-3,6-7"},
		"more than there are":                    {cpus(1, 1, 4, 1), 9, "", "0-3"},
		"none is one":                            {cpus(1, 1, 4, 1), 0, "", "3"},
		"only what is allowed":                   {cpus(1, 1, 8, 1), 2, "0-3", "2-3"},
		"a core of which one sibling is allowed": {cpus(1, 1, 4, 2), 2, "2,3,7", "2-3,7"},
		"nothing that is allowed is online":      {cpus(1, 1, 2, 1), 1, "5", ""},
		"no CPU known":                           {nil, 1, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var m machine
			if !m.update(&signal.Topology{CPUs: tt.cpus}) && len(tt.cpus) > 0 {
				t.Error("a new topology was not noticed")
			}
			if m.update(&signal.Topology{CPUs: slices.Clone(tt.cpus)}) {
				t.Error("the same topology was taken for new")
			}
			allowed, err := cpuset.Parse(tt.allowed)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.mask(tt.n, allowed).String(); got != tt.want {
				t.Errorf("mask %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMasksAreWholeCoresOfTheMachineAndNested(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := cpus(rapid.IntRange(1, 3).Draw(t, "nodes"), rapid.IntRange(1, 3).Draw(t, "caches"), rapid.IntRange(1, 5).Draw(t, "cores"),
			rapid.IntRange(1, 2).Draw(t, "threads"))
		// Some CPUs are offline.
		list = slices.DeleteFunc(list, func(c signal.CPU) bool { return c.ID > 0 && rapid.IntRange(0, 4).Draw(t, "offline") == 0 })
		var m machine
		m.update(&signal.Topology{CPUs: list})
		prev := cpuset.Set{}
		for n := 1; n <= len(m.cores); n++ {
			mask := m.mask(n, cpuset.Set{})
			if !mask.SubsetOf(m.set) || !prev.SubsetOf(mask) || prev == mask {
				t.Fatalf("%d cores: %s after %s on %s", n, mask, prev, m.set)
			}
			for _, c := range list {
				for _, d := range list {
					if c.Core == d.Core && mask.Has(c.ID) != mask.Has(d.ID) {
						t.Fatalf("%d cores: %s splits core %d", n, mask, c.Core)
					}
				}
			}
			prev = mask
		}
		if prev != m.set {
			t.Fatalf("all cores are %s of %s", prev, m.set)
		}
	})
}

// TestGrantsAreOrdered checks that every step down leaves less, whatever rungs come before it.
func TestGrantsAreOrdered(t *testing.T) {
	down := []Grant{
		{}, {Idle: true}, {Idle: true, Cores: 4}, {Idle: true, Cores: 1}, {Idle: true, Cores: 1, MilliCPU: 500}, {Idle: true, Cores: 1, MilliCPU: 100},
	}
	for i, a := range down {
		for j, b := range down {
			if got := a.compare(b); (got > 0) != (i < j) || (got < 0) != (i > j) {
				t.Errorf("%s against %s: %d", a, b, got)
			}
		}
	}
	if (Grant{Cores: 2, Frozen: true}).compare(Grant{Cores: 2}) != 0 {
		t.Error("the freezer counts")
	}
	for _, r := range []policy.Rung{policy.RungIdle, policy.RungCPUs, policy.RungQuota, policy.RungFreeze} {
		g := Grant{Idle: true, Cores: 1, MilliCPU: 1, Frozen: true}
		if !g.limited(r) || g.lift(r).limited(r) {
			t.Errorf("%s is not lifted", r)
		}
	}
}

func TestNotesReadWell(t *testing.T) {
	n := Note{
		Owner: OwnerCPU, Rule: RuleEventCut, Pod: "ns/batch", Victim: "ns/web", To: Grant{Cores: 4}, Wait: 8_200_000, Objective: 4_000_000,
		Permille: 705, Belief: 50,
	}
	want := "cpu event-cut ns/batch: posture -> cores 4 for ns/web, wait 8.2ms, objective 4ms, share 70.5 %, belief 50"
	if got := n.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	all := Grant{Idle: true, Cores: 2, MilliCPU: 250, Frozen: true}.String()
	for _, part := range []string{"idle", "cores 2", "quota 250m", "frozen"} {
		if !strings.Contains(all, part) {
			t.Errorf("%q lacks %q", all, part)
		}
	}
}

// TestTheDivisionFollowsPolicyAndMachine: what is kept from step to step is what policy and machine say now, whatever they said before.
func TestTheDivisionFollowsPolicyAndMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c RDT
		spec, snap := policy.Default().Spec, signal.Snapshot{Node: signal.Node{
			Caps: signal.Capabilities{CacheAllocation: true, BandwidthAllocation: true},
			RDT:  signal.RDT{Ways: 11, MinWays: 1, CLOSIDs: 4, MB: signal.MBUnits{Unit: signal.MBPercent, Min: 10, Gran: 10, Max: 100}},
		}}
		spec.RDT.Cache.OfflineWays = policy.Ways(rapid.SampledFrom([]uint64{0, 3, 5}).Draw(t, "offlineWays"))
		in := &Input{View: &judge.View{Snapshot: &snap, Spec: &spec}}
		c.agree(in)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			s, r, caps := &spec.RDT, &snap.Node.RDT, &snap.Node.Caps
			few := func(name string) int { return rapid.IntRange(0, 12).Draw(t, name) }
			set := func(name string) policy.Ways {
				return policy.Ways(rapid.SampledFrom([]uint64{0, 3, 5, 0x7ff, 0x780, 0xfff}).Draw(t, name))
			}
			switch rapid.IntRange(0, 14).Draw(t, "field") {
			case 0:
				s.Cache.Enabled = !s.Cache.Enabled
			case 1:
				s.Cache.Ways = set("ways")
			case 2:
				s.Cache.OnlineWays = set("onlineWays")
			case 3:
				s.Cache.OfflineWays = set("offlineWays")
			case 4:
				s.Cache.FloorWays = few("floorWays")
			case 5:
				s.Bandwidth.Enabled = !s.Bandwidth.Enabled
			case 6:
				s.Bandwidth.FloorPercent = few("floorPercent") * 10
			case 7:
				caps.CacheAllocation = !caps.CacheAllocation
			case 8:
				caps.BandwidthAllocation = !caps.BandwidthAllocation
			case 9:
				r.Ways = few("of the machine")
			case 10:
				r.MinWays = few("least of the machine")
			case 11:
				r.SparseMasks = !r.SparseMasks
			case 12:
				r.CLOSIDs = few("classes")
			case 13:
				r.MB.Unit = rapid.SampledFrom([]signal.MBUnit{signal.MBNone, signal.MBPercent, signal.MBMiBps}).Draw(t, "unit")
			case 14:
				r.MB.Min = few("least limit") * 10
			}
			c.agree(in)
			d := divide(in)
			if c.division != d || c.why != obstacles(in, &d) {
				t.Fatalf("kept %+v %q, want %+v %q", c.division, c.why, d, obstacles(in, &d))
			}
		}
	})
}
