package clos

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// intel is a machine as Ice Lake servers are, with one socket.
func intel() Limits {
	return Limits{CLOSIDs: 7, RMIDs: 63, L3: []int{0}, FullMask: 0x7ff, MinBits: 1, MB: []int{0}, MBMin: 10, MBGran: 10, MBFull: 100, MBPercent: true, OfflineFloor: 1, MBFloor: 10}
}

func online(name string) knob.Share {
	return knob.Share{Pod: "shop/" + name, Cgroup: "/kubepods/pod-" + name, Role: knob.RoleOnline}
}

func offline(name string, ways, mb int) knob.Share {
	s := knob.Share{Pod: "batch/" + name, Cgroup: "/kubepods/besteffort/pod-" + name, Role: knob.RoleOffline}
	if ways > 0 {
		s.Ways = knob.Part{N: ways, Owner: "cache", Rule: "cut", Victim: "shop/web"}
	}
	if mb > 0 {
		s.MB = knob.Part{N: mb, Owner: "bandwidth", Rule: "cut", Victim: "shop/web"}
	}
	return s
}

func in(where uint64, s knob.Share) knob.Share { s.Where = where; return s }

func own(s knob.Share, ways int) knob.Share {
	s.Own, s.Ways = true, knob.Part{N: ways, Owner: "cache", Rule: "own"}
	return s
}

// show is a plan for people: one class a line.
func show(p *knob.ClassPlan) string {
	var b strings.Builder
	for _, c := range p.Classes {
		fmt.Fprintf(&b, "%s", c.Name)
		for _, v := range c.L3 {
			fmt.Fprintf(&b, " L3:%d=%x", v.Domain, v.Value)
		}
		for _, v := range c.MB {
			fmt.Fprintf(&b, " MB:%d=%d", v.Domain, v.Value)
		}
		for _, pod := range c.Pods {
			fmt.Fprintf(&b, " %s", pod.Pod)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestPlans(t *testing.T) {
	two := intel()
	two.L3, two.MB = []int{0, 2}, []int{0, 2}
	few := intel()
	few.CLOSIDs = 1
	three := intel()
	three.CLOSIDs = 3
	noCache, noBandwidth := intel(), intel()
	noCache.L3, noBandwidth.MB = nil, nil
	devices := intel()
	devices.Shareable = 0x600
	others := intel()
	others.Foreign, others.Taken = 0x700, 0x003
	amd := intel()
	amd.MBMin, amd.MBGran, amd.MBFull, amd.MBPercent, amd.MBTotal = 1, 1, 2048, false, 1600
	unknown := amd
	unknown.MBTotal = 0
	named := func(ours, online, offline uint64) Limits {
		l := intel()
		l.Ours, l.OnlineAlone, l.OfflineAlone = ours, online, offline
		return l
	}
	gaps, clash, lone, unfit := named(0, 0x070, 0x300), named(0, 0, 0x003), named(0, 0, 0x003), intel()
	gaps.Sparse, clash.Foreign, lone.CLOSIDs, unfit.NoCache, unfit.Taken = true, 0x002, 1, "spec.rdt.cache.ways: is 0-12, ...", 0x003
	for _, c := range []struct {
		name   string
		limits Limits
		shares []knob.Share
		want   string
		notes  string
	}{
		{"nobody", intel(), nil, "", ""},
		{"nobody is hurt", intel(), []knob.Share{online("web"), offline("a", 0, 0)}, "offline L3:0=7ff MB:0=100 batch/a\n", ""},
		{"all are cut", intel(), []knob.Share{online("web"), offline("a", 2, 0), offline("b", 2, 0)}, "offline L3:0=3 MB:0=100 batch/a batch/b\n", ""},
		{"one of two is a culprit", intel(), []knob.Share{offline("a", 0, 0), offline("b", 2, 20)},
			"offline L3:0=7ff MB:0=100 batch/a\noffline-2 L3:0=3 MB:0=20 batch/b\n", ""},
		{"percents are rounded up", intel(), []knob.Share{offline("a", 0, 25)}, "offline L3:0=7ff MB:0=30 batch/a\n", ""},
		{"two sockets, sparse ids", two, []knob.Share{offline("a", 3, 50)}, "offline L3:0=7 L3:2=7 MB:0=50 MB:2=50 batch/a\n", ""},
		{"only where it hurts somebody", two, []knob.Share{in(1, offline("a", 3, 50)), in(2, offline("b", 3, 50)), in(3, offline("c", 3, 50))},
			"offline L3:0=7 L3:2=7 MB:0=50 MB:2=50 batch/c\noffline-2 L3:0=7 L3:2=7ff MB:0=50 MB:2=100 batch/a\n" +
				"offline-3 L3:0=7ff L3:2=7 MB:0=100 MB:2=50 batch/b\n", ""},
		{"ways of its own", intel(), []knob.Share{own(online("web"), 8), online("api"), offline("a", 2, 0), offline("b", 0, 0)},
			"offline L3:0=7 MB:0=100 batch/b\noffline-2 L3:0=3 MB:0=100 batch/a\nonline L3:0=7 MB:0=100 shop/api\nown L3:0=7f8 MB:0=100 shop/web\n", ""},
		{"too many ways", intel(), []knob.Share{own(online("web"), 11), offline("a", 0, 0)},
			"offline L3:0=1 MB:0=100 batch/a\nown L3:0=7fe MB:0=100 shop/web\n", "shop/web: gets 10 ways of its own instead of 11: the others need the rest"},
		{"one class only", few, []knob.Share{own(online("web"), 4), offline("a", 2, 0), offline("b", 0, 50)},
			"offline L3:0=3 MB:0=50 batch/a batch/b\n",
			"batch/b: is held to 2 ways and 50% of bandwidth as others are: no class of service is left for it alone\n" +
				"batch/a: is held to 2 ways and 50% of bandwidth as others are: no class of service is left for it alone\n" +
				"shop/web: no class of service is left to give it ways of its own"},
		{"the innocent keep theirs", three, []knob.Share{offline("a", 2, 0), offline("b", 3, 0), offline("c", 4, 50), offline("good", 0, 0)},
			"offline L3:0=7ff MB:0=100 batch/good\noffline-2 L3:0=f MB:0=50 batch/c\noffline-3 L3:0=3 MB:0=100 batch/a batch/b\n",
			"batch/b: is held to 2 ways and 100% of bandwidth as others are: no class of service is left for it alone"},
		{"no cache allocation", noCache, []knob.Share{offline("a", 2, 50)}, "offline MB:0=50 batch/a\n", ""},
		{"no bandwidth allocation", noBandwidth, []knob.Share{offline("a", 2, 50)}, "offline L3:0=3 batch/a\n", ""},
		{"ways that devices fill are nobody's own", devices, []knob.Share{own(online("web"), 4), offline("a", 0, 0)},
			"offline L3:0=1f MB:0=100 batch/a\nown L3:0=1e0 MB:0=100 shop/web\n", ""},
		{"others have ways", others, []knob.Share{offline("a", 2, 0), offline("b", 0, 0)},
			"offline L3:0=fc MB:0=100 batch/b\noffline-2 L3:0=c MB:0=100 batch/a\n", ""},
		{"some ways only", named(0x0f8, 0, 0), []knob.Share{online("web"), offline("a", 2, 0), offline("b", 0, 0)},
			"offline L3:0=f8 MB:0=100 batch/b\noffline-2 L3:0=18 MB:0=100 batch/a\n", ""},
		{"some ways only, one's own too", named(0x0f8, 0, 0), []knob.Share{own(online("web"), 3), online("api"), offline("a", 1, 0)},
			"offline L3:0=8 MB:0=100 batch/a\nonline L3:0=18 MB:0=100 shop/api\nown L3:0=e0 MB:0=100 shop/web\n", ""},
		{"ways for online pods alone", named(0, 0x780, 0), []knob.Share{online("web"), offline("a", 2, 0), offline("b", 0, 0)},
			"offline L3:0=7f MB:0=100 batch/b\noffline-2 L3:0=3 MB:0=100 batch/a\n", ""},
		{"ways for online pods alone, at the bottom", named(0, 0x00f, 0), []knob.Share{own(online("web"), 5), online("api"), offline("a", 2, 0), offline("b", 0, 0)},
			"offline L3:0=7e0 MB:0=100 batch/b\noffline-2 L3:0=600 MB:0=100 batch/a\nonline L3:0=7e0 MB:0=100 shop/api\nown L3:0=1f MB:0=100 shop/web\n", ""},
		{"ways for offline pods alone", named(0, 0, 0x003), []knob.Share{online("web"), offline("a", 1, 0), offline("b", 4, 0), offline("c", 0, 0)},
			"offline L3:0=7ff MB:0=100 batch/c\noffline-2 L3:0=f MB:0=100 batch/b\noffline-3 L3:0=3 MB:0=100 batch/a\nonline L3:0=7fc MB:0=100 shop/web\n",
			"batch/a: keeps 2 ways: no class may have fewer"},
		{"ways for each", named(0x3ff, 0x003, 0x380), []knob.Share{online("web"), offline("a", 4, 0)},
			"offline L3:0=3c0 MB:0=100 batch/a\nonline L3:0=7f MB:0=100 shop/web\n", ""},
		{"ways for each, with gaps", gaps, []knob.Share{online("web"), offline("a", 3, 0), offline("b", 0, 0)},
			"offline L3:0=78f MB:0=100 batch/b\noffline-2 L3:0=301 MB:0=100 batch/a\nonline L3:0=4ff MB:0=100 shop/web\n", ""},
		{"others have ways that were meant for offline pods", clash, []knob.Share{online("web"), offline("a", 2, 0)},
			"offline L3:0=c MB:0=100 batch/a\nonline L3:0=7fc MB:0=100 shop/web\n", "a group of others has ways 2 for itself, which the policy means for pods: the rest of them holds"},
		{"no class to keep online pods out", lone, []knob.Share{online("web"), offline("a", 2, 50)},
			"offline L3:0=7ff MB:0=50 batch/a\n", "nobody is limited to ways: ways that are offline pods' alone take two classes of service, and 1 are left for us"},
		{"ways that the machine lacks", unfit, []knob.Share{own(online("web"), 4), offline("a", 2, 50)},
			"offline L3:0=7ff MB:0=50 batch/a\n", "nobody is limited to ways: spec.rdt.cache.ways: is 0-12, ..."},
		{"bandwidth in 1/8 GB/s", amd, []knob.Share{offline("a", 0, 25)}, "offline L3:0=7ff MB:0=400 batch/a\n", ""},
		{"bandwidth not known", unknown, []knob.Share{offline("a", 0, 25)}, "offline L3:0=7ff MB:0=2048 batch/a\n",
			"batch/a: keeps its bandwidth: this machine's limits are not in percent, and how much it has is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Planner
			plan, changed := p.Plan(&c.limits, c.shares)
			if !changed {
				t.Error("the first plan is no change")
			}
			if got := show(plan); got != c.want {
				t.Errorf("plan\n%swant\n%s", got, c.want)
			}
			var notes []string
			for _, n := range p.Notes() {
				notes = append(notes, strings.TrimPrefix(n.Pod+": "+n.Text, ": "))
			}
			if got := strings.Join(notes, "\n"); got != c.notes {
				t.Errorf("notes\n%s\nwant\n%s", got, c.notes)
			}
			if _, changed := p.Plan(&c.limits, slices.Clone(c.shares)); changed {
				t.Error("the same again is a change")
			}
		})
	}
}

func TestNothingNewAllocatesNothing(t *testing.T) {
	var p Planner
	l := intel()
	var shares []knob.Share
	for i := range 150 {
		shares = append(shares, offline(fmt.Sprint(i), i%5, 0))
	}
	p.Plan(&l, shares)
	if n := testing.AllocsPerRun(100, func() { p.Plan(&l, shares) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWatchTakesTheOnlineFirst(t *testing.T) {
	l := intel()
	l.RMIDs = 4
	var p Planner
	plan, _ := p.Plan(&l, []knob.Share{offline("a", 0, 0), offline("b", 0, 0), offline("c", 0, 0), online("web"), online("api")})
	var got []string
	for _, w := range plan.Watch {
		got = append(got, w.Pod)
	}
	// One id is the class's.
	if want := []string{"shop/web", "shop/api", "batch/a"}; !slices.Equal(got, want) {
		t.Errorf("watched %q, want %q", got, want)
	}
	if n := p.Notes(); len(n) != 1 || !strings.Contains(n[0].Text, "2 pods are not monitored") {
		t.Errorf("notes %v", n)
	}
}

// TestPlansStay cuts one pod after the other, and lets pods come and go: nobody is moved who need not be.
// TestWatchLeavesIDsToClasses: a new class must not have to wait for an id that comes out of limbo.
func TestWatchLeavesIDsToClasses(t *testing.T) {
	l := intel()
	l.RMIDs = 39
	var shares []knob.Share
	for i := range 60 {
		shares = append(shares, offline(fmt.Sprint(i), 0, 0))
	}
	var p Planner
	plan, _ := p.Plan(&l, shares)
	before := slices.Clone(plan.Watch)
	for i := range 6 {
		shares[i].Ways.N = 1 + i
		if plan, _ = p.Plan(&l, shares); len(plan.Classes) != 2+i || !slices.Equal(plan.Watch, before) {
			t.Fatalf("%d classes, %d watched, %d before", len(plan.Classes), len(plan.Watch), len(before))
		}
	}
}

func TestPlansStay(t *testing.T) {
	var p Planner
	l := intel()
	home := func(plan *knob.ClassPlan) map[string]string {
		m := map[string]string{}
		for _, c := range plan.Classes {
			for _, pod := range c.Pods {
				m[pod.Pod] = c.Name
			}
		}
		return m
	}
	shares := []knob.Share{offline("a", 0, 0), offline("b", 0, 0), offline("c", 0, 0)}
	plan, _ := p.Plan(&l, shares)
	first := home(plan)
	shares[1] = offline("b", 4, 0)
	plan, _ = p.Plan(&l, shares)
	second := home(plan)
	if second["batch/a"] != first["batch/a"] || second["batch/c"] != first["batch/c"] || second["batch/b"] == first["batch/b"] {
		t.Fatalf("from %v to %v", first, second)
	}
	shares[1] = offline("b", 2, 0) // cut deeper
	plan, _ = p.Plan(&l, shares)
	if third := home(plan); third["batch/b"] != second["batch/b"] {
		t.Errorf("a deeper cut moved the pod: %v to %v", second, third)
	}
	shares = append(shares[1:], offline("d", 0, 0)) // a goes, d comes
	plan, _ = p.Plan(&l, shares)
	if fourth := home(plan); fourth["batch/b"] != second["batch/b"] || fourth["batch/c"] != second["batch/c"] {
		t.Errorf("churn moved pods: %v to %v", second, fourth)
	}
}

// TestInvariants throws random machines and wants at the planner.
func TestInvariants(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := Limits{
			CLOSIDs: r.IntN(9), RMIDs: r.IntN(40), MinBits: 1 + r.IntN(2), Sparse: r.IntN(4) == 0,
			MBMin: 10, MBGran: 10, MBFull: 100, MBPercent: true, OfflineFloor: 1 + r.IntN(3), MBFloor: 10 * r.IntN(3),
		}
		ways := 4 + r.IntN(17)
		l.FullMask = 1<<ways - 1
		for d := range 1 + r.IntN(3) {
			if r.IntN(5) > 0 {
				l.L3 = append(l.L3, 2*d)
			}
			if r.IntN(5) > 0 {
				l.MB = append(l.MB, 2*d)
			}
		}
		if r.IntN(3) == 0 {
			l.Shareable = l.FullMask &^ (l.FullMask >> 2)
		}
		if r.IntN(4) == 0 {
			l.Foreign = l.FullMask & (3 << r.IntN(ways))
		}
		if r.IntN(4) == 0 {
			l.Taken = l.FullMask & (7 << r.IntN(ways))
		}
		named := policy.CacheControl{Ways: some(r, ways), OnlineWays: some(r, ways), OfflineWays: some(r, ways)}
		m := policy.Machine{Ways: policy.Ways(l.FullMask), MinWays: l.MinBits, Sparse: l.Sparse}
		if misfit, bad := named.Misfit(&m); bad {
			l.NoCache = misfit.Error()
		} else if named.OnlineWays&named.OfflineWays|(named.OnlineWays|named.OfflineWays)&^named.All(m.Ways) == 0 {
			l.Ours, l.OnlineAlone, l.OfflineAlone = uint64(named.Ways), uint64(named.OnlineWays), uint64(named.OfflineWays)
		}
		var p, again Planner
		var shares []knob.Share
		for range 30 {
			shares = mutate(r, shares)
			plan, _ := p.Plan(&l, shares)
			same, _ := again.Plan(&l, shares)
			if !plan.Equal(same) {
				t.Fatalf("seed %d: the same history, other plans", seed)
			}
			if err := check(&l, shares, plan); err != nil {
				t.Fatalf("seed %d: %v\n%+v\n%s", seed, err, l, show(plan))
			}
		}
	}
}

// some is a range of ways, or two, or none.
func some(r *rand.Rand, ways int) policy.Ways {
	var set policy.Ways
	for range max(0, r.IntN(6)-3) {
		from := r.IntN(ways)
		set |= policy.FullWays(from+1+r.IntN(ways-from)) &^ policy.FullWays(from)
	}
	return set
}

func mutate(r *rand.Rand, shares []knob.Share) []knob.Share {
	shares = slices.Clone(shares)
	if len(shares) > 0 && r.IntN(3) == 0 {
		i := r.IntN(len(shares))
		shares = slices.Delete(shares, i, i+1)
	}
	if r.IntN(2) == 0 {
		name := fmt.Sprint(r.Uint64())
		if r.IntN(2) == 0 {
			shares = append(shares, online(name))
		} else {
			shares = append(shares, offline(name, 0, 0))
		}
	}
	for i := range shares {
		s := &shares[i]
		if r.IntN(3) > 0 {
			continue
		}
		if s.Role == knob.RoleOnline {
			s.Own, s.Ways.N = r.IntN(3) == 0, r.IntN(8)
			continue
		}
		s.Ways.N, s.MB.N, s.Where = r.IntN(24), 5*r.IntN(21), uint64(r.IntN(8))
	}
	return shares
}

func holds(where uint64, domain int) bool { return where == 0 || where>>domain&1 == 1 }

// check holds a plan against what the kernel would take and what was promised.
func check(l *Limits, shares []knob.Share, plan *knob.ClassPlan) error {
	open := l.NoCache != "" || l.OfflineAlone != 0 && l.CLOSIDs < 2 // nobody is limited to ways
	if open {
		free := *l
		free.Ours, free.OnlineAlone, free.OfflineAlone = 0, 0, 0
		l = &free
	}
	if len(plan.Classes) > l.CLOSIDs {
		return fmt.Errorf("%d classes of %d", len(plan.Classes), l.CLOSIDs)
	}
	if l.RMIDs > 0 && len(plan.Watch)+len(plan.Classes) > max(l.RMIDs, len(plan.Classes)) {
		return fmt.Errorf("%d classes and %d watched of %d ids", len(plan.Classes), len(plan.Watch), l.RMIDs)
	}
	classOf := map[string]*knob.Class{}
	names := map[string]bool{}
	var owned uint64
	for i := range plan.Classes {
		c := &plan.Classes[i]
		if names[c.Name] {
			return fmt.Errorf("two classes %s", c.Name)
		}
		names[c.Name] = true
		for _, pod := range c.Pods {
			if classOf[pod.Cgroup] != nil {
				return fmt.Errorf("%s is in two classes", pod.Pod)
			}
			classOf[pod.Cgroup] = c
		}
		if len(c.Pods) == 0 {
			return fmt.Errorf("%s is empty", c.Name)
		}
		if len(c.MB) != len(l.MB) || len(c.L3) != len(l.L3) && len(c.L3) != 0 {
			return fmt.Errorf("%s has not every domain", c.Name)
		}
		for _, v := range c.MB {
			if v.Value < l.MBMin || v.Value > l.MBFull || v.Value%l.MBGran != 0 {
				return fmt.Errorf("%s: MB %d", c.Name, v.Value)
			}
		}
		for _, v := range c.L3 {
			switch {
			case v.Value&^l.FullMask != 0 || v.Value&l.Foreign != 0:
				return fmt.Errorf("%s: mask %x is not ours", c.Name, v.Value)
			case bits.OnesCount64(v.Value) < l.MinBits:
				return fmt.Errorf("%s: mask %x is too small", c.Name, v.Value)
			case !l.Sparse && !rdt.Contiguous(v.Value):
				return fmt.Errorf("%s: mask %x has gaps", c.Name, v.Value)
			case l.Ours != 0 && v.Value&^l.Ours != 0:
				return fmt.Errorf("%s: mask %x is not in ways %x", c.Name, v.Value, l.Ours)
			case is(c.Name, Offline) && v.Value&l.OnlineAlone != 0:
				return fmt.Errorf("%s: mask %x has ways of online pods", c.Name, v.Value)
			case !is(c.Name, Offline) && v.Value&l.OfflineAlone&^l.Foreign != 0:
				return fmt.Errorf("%s: mask %x has ways of offline pods", c.Name, v.Value)
			case is(c.Name, Own) && v.Value&l.Shareable != 0:
				return fmt.Errorf("%s: mask %x has ways that devices fill", c.Name, v.Value)
			}
		}
		if is(c.Name, Own) && len(c.L3) > 0 {
			owned |= c.L3[0].Value
		}
	}
	for i := range plan.Classes {
		for j := range plan.Classes[:i] {
			a, b := &plan.Classes[i], &plan.Classes[j]
			if (is(a.Name, Own) || is(b.Name, Own)) && len(a.L3) > 0 && a.L3[0].Value&b.L3[0].Value != 0 {
				return fmt.Errorf("%s and %s overlap", a.Name, b.Name)
			}
		}
	}
	// What is offline pods' alone is so as long as two classes are left for that, and others leave enough of the cache.
	apart := l.OfflineAlone&^l.Foreign != 0 && slices.ContainsFunc(plan.Classes, func(c knob.Class) bool { return is(c.Name, Offline) && len(c.L3) > 0 })
	floor := max(l.MinBits, l.OfflineFloor, bits.OnesCount64(l.OfflineAlone&^l.Foreign))
	for _, s := range shares {
		c := classOf[s.Cgroup]
		if s.Role != knob.RoleOffline {
			if apart && c == nil && s.Role == knob.RoleOnline {
				return fmt.Errorf("%s may fill what is offline pods' alone", s.Pod)
			}
			continue
		}
		if c == nil {
			if l.CLOSIDs > 0 && len(l.MB) > 0 {
				return fmt.Errorf("%s is in no class", s.Pod)
			}
			continue
		}
		if s.Ways.N > 0 && len(c.L3) > 0 && !open && c.Ways > max(s.Ways.N, floor) {
			return fmt.Errorf("%s has %d ways, wanted are %d", s.Pod, c.Ways, s.Ways.N)
		}
		for i, v := range c.MB {
			if s.MB.N > 0 && holds(s.Where, i) && v.Value > uint64(max(s.MB.N+9, l.MBFloor, int(l.MBMin))) {
				return fmt.Errorf("%s has MB %d in domain %d, wanted are %d", s.Pod, v.Value, v.Domain, s.MB.N)
			}
		}
		for i, v := range c.L3 {
			if n := bits.OnesCount64(v.Value); !open && s.Ways.N > 0 && holds(s.Where, i) && n > max(s.Ways.N, floor) {
				return fmt.Errorf("%s has %d ways in domain %d, wanted are %d", s.Pod, n, v.Domain, s.Ways.N)
			}
		}
	}
	return nil
}
