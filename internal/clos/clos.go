// Package clos plans classes of service (CLOS): it maps what the controllers want for each pod to the few classes that the machine
// has. It is pure: the same limits and shares in the same order give the same plan, and where nothing changed nothing is allocated.
package clos

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/knob"
)

// Limits are what the machine and its other users leave to us. They change rarely.
type Limits struct {
	// CLOSIDs is how many control groups we may make: those of the machine, less the default group and those of others.
	CLOSIDs int
	// RMIDs is how many groups we may make, control and monitoring together. 0: the machine does not monitor.
	RMIDs int
	// L3 are the domains of the last-level cache by id; empty without cache allocation.
	L3 []int
	// FullMask is the mask with all ways, MinBits the least number of bits in one.
	FullMask uint64
	MinBits  int
	// Sparse says that masks may have gaps.
	Sparse bool
	// Shareable are ways that other agents of the machine, such as devices, fill too: no pod has them for itself.
	Shareable uint64
	// Foreign are ways that groups of others have for themselves (exclusive mode): the kernel refuses masks over them.
	Foreign uint64
	// Taken are ways that groups of others are limited to: our limited classes keep out of them as long as there is room.
	Taken uint64
	// Ours are all ways that classes of ours may have; 0: whatever is left. OnlineAlone are closed to offline pods, OfflineAlone to online
	// ones. NoCache is why none of this holds and nobody is limited to ways; empty: there is no such reason.
	Ours, OnlineAlone, OfflineAlone uint64
	NoCache                         string
	// MB are the domains of memory bandwidth by id; empty without bandwidth allocation.
	MB []int
	// MBMin, MBGran and MBFull are the least value, the step and the value that means no limit, in the machine's unit. With
	// MBPercent the unit is percent; else percents are converted by MBTotal, the bandwidth of a domain in that unit (0: not
	// known, then bandwidth is left alone).
	MBMin, MBGran, MBFull uint64
	MBPercent             bool
	MBTotal               uint64
	// OfflineFloor is the least number of ways that classes of offline pods keep, MBFloor the least percent.
	OfflineFloor, MBFloor int
}

// Equal reports whether two limits are the same.
func (l *Limits) Equal(m *Limits) bool {
	return l.CLOSIDs == m.CLOSIDs && l.RMIDs == m.RMIDs && slices.Equal(l.L3, m.L3) && l.FullMask == m.FullMask && l.MinBits == m.MinBits &&
		l.Sparse == m.Sparse && l.Shareable == m.Shareable && l.Foreign == m.Foreign && l.Taken == m.Taken && slices.Equal(l.MB, m.MB) &&
		l.Ours == m.Ours && l.OnlineAlone == m.OnlineAlone && l.OfflineAlone == m.OfflineAlone && l.NoCache == m.NoCache &&
		l.MBMin == m.MBMin && l.MBGran == m.MBGran && l.MBFull == m.MBFull && l.MBPercent == m.MBPercent && l.MBTotal == m.MBTotal &&
		l.OfflineFloor == m.OfflineFloor && l.MBFloor == m.MBFloor
}

// Names of classes. Further ones are numbered: "offline-2", "own-2".
const (
	Online  = "online"
	Offline = "offline"
	Own     = "own"
)

// Note is a want that could not be met in full, and why.
type Note struct{ Pod, Text string }

// Planner makes plans. It remembers who was in which class, so that plans are stable. The zero value is ready.
//
// Offline pods are always in classes of ours, limited or not: a cut of all of them, or of the only one, is then one write of
// schemata and moves no task. Classes of offline pods take ways from the lowest up, so that the more limited ones lie in the ways of
// the less limited. Ways that an online pod has for itself are taken from the highest down, below those that devices fill too. Online
// pods without ways of their own stay where they are (in the default group, with all ways) unless somebody has: then they have a
// class that keeps out of those ways.
//
// Where a policy names ways of its own, it may want all this the other way round, offline pods at the top. The plan is then made on masks
// that are mirrored, and mirrored back in the end.
type Planner struct {
	begun  bool
	limits Limits
	shares []knob.Share
	use    Limits            // limits without what is of no use, mirrored if need be
	flip   bool              // they are
	pods   []knob.Share      // shares without what is named twice
	open   uint64            // the ways of offline pods that nobody limits
	home   map[string]string // group of a pod -> class in the last plan
	plan   knob.ClassPlan
	notes  []Note
}

// Plan turns shares into classes. The plan is valid until the next call. changed says that it may differ from the last; where it is
// false nothing was looked at.
func (p *Planner) Plan(l *Limits, shares []knob.Share) (plan *knob.ClassPlan, changed bool) {
	if p.begun && p.limits.Equal(l) && slices.Equal(p.shares, shares) {
		return &p.plan, false
	}
	p.begun = true
	p.limits = *l
	p.limits.L3, p.limits.MB = slices.Clone(l.L3), slices.Clone(l.MB)
	p.shares = append(p.shares[:0], shares...)
	p.notes = nil
	p.make()
	return &p.plan, true
}

// Notes are the wants that the last plan does not meet in full.
func (p *Planner) Notes() []Note { return p.notes }

func (p *Planner) note(pod, format string, args ...any) {
	p.notes = append(p.notes, Note{pod, fmt.Sprintf(format, args...)})
}

// bucket is pods that are to have the same.
type bucket struct {
	name    string
	ways    int // 0 without cache allocation
	percent int // 100 without limit or bandwidth allocation
	mask    uint64
	free    bool   // nobody limits it
	where   uint64 // domains in which the limits hold, as in knob.Share
	cache   knob.Part
	band    knob.Part
	pods    []knob.MemberPod
}

func (p *Planner) make() {
	l := &p.use
	*l = p.limits
	p.flip = false
	if len(l.L3) > 0 {
		p.divide()
	}
	p.unite()
	p.plan.Classes, p.plan.Watch = nil, nil
	var buckets []bucket
	if len(l.L3)+len(l.MB) > 0 {
		buckets = p.classes()
	}
	home := make(map[string]string)
	for i := range buckets {
		b := &buckets[i]
		for _, pod := range b.pods {
			home[pod.Cgroup] = b.name
		}
		p.plan.Classes = append(p.plan.Classes, p.class(b))
	}
	slices.SortFunc(p.plan.Classes, func(a, b knob.Class) int { return strings.Compare(a.Name, b.Name) })
	p.home = home
	p.watch()
}

// divide settles which ways there are for whom.
func (p *Planner) divide() {
	l := &p.use
	if l.Ours == 0 {
		l.Ours = l.FullMask
	}
	if lost := (l.OnlineAlone | l.OfflineAlone) & l.Foreign; lost != 0 && l.NoCache == "" {
		p.note("", "a group of others has ways %x for itself, which the policy means for pods: the rest of them holds", lost)
		l.OnlineAlone, l.OfflineAlone = l.OnlineAlone&^lost, l.OfflineAlone&^lost
	}
	if l.OfflineAlone != 0 && l.CLOSIDs < 2 && l.NoCache == "" {
		l.NoCache = fmt.Sprintf("ways that are offline pods' alone take two classes of service, and %d are left for us", max(l.CLOSIDs, 0))
	}
	if l.NoCache != "" {
		p.note("", "nobody is limited to ways: %s", l.NoCache)
		l.Ours, l.OnlineAlone, l.OfflineAlone, l.Taken = l.FullMask, 0, 0, 0
	}
	ends := lowest(l.Ours, 1) | highest(l.Ours, 1)
	switch on, off := l.OnlineAlone&ends, l.OfflineAlone&ends; {
	case on == 0 && off == 0:
	case on != 0:
		p.flip = on == lowest(ends, 1)
	default:
		p.flip = off == highest(ends, 1)
	}
	if p.flip {
		for _, m := range [...]*uint64{&l.Shareable, &l.Foreign, &l.Taken, &l.Ours, &l.OnlineAlone, &l.OfflineAlone} {
			*m = p.mirror(*m)
		}
	}
	room, least := l.run(l.Ours&^l.Foreign), max(l.MinBits, 1)
	if bits.OnesCount64(l.run(room&^l.OnlineAlone)) < least || bits.OnesCount64(l.run(room&^l.OfflineAlone)) < least {
		p.note("", "groups of others have nearly all ways for themselves: the cache is left alone")
		l.L3 = nil
	}
}

// mirror is a mask seen from the other end, where the plan is made so.
func (p *Planner) mirror(mask uint64) uint64 {
	if !p.flip {
		return mask
	}
	return bits.Reverse64(mask) >> (64 - bits.Len64(p.use.FullMask))
}

// unite drops pods whose group is another's already, and wants of ways where nobody is limited to any.
func (p *Planner) unite() {
	p.pods = p.pods[:0]
	seen := make(map[string]string, len(p.shares))
	for _, s := range p.shares {
		if other, ok := seen[s.Cgroup]; ok {
			p.note(s.Pod, "its group is %s's already", other)
			continue
		}
		seen[s.Cgroup] = s.Pod
		if p.use.NoCache != "" {
			s.Own, s.Ways = false, knob.Part{}
		}
		p.pods = append(p.pods, s)
	}
}

func (p *Planner) classes() []bucket {
	l := &p.use
	if l.CLOSIDs <= 0 {
		if len(p.pods) > 0 {
			p.note("", "no class of service is left for us: nobody can be limited")
		}
		return nil
	}
	owners := p.owners()
	space := p.space(owners)
	owners = space.owners

	// Online pods that have none are kept out of ways that are not theirs.
	apart := p.othersOnline(owners) && (len(owners) > 0 || len(l.L3) > 0 && l.OfflineAlone != 0)
	need := len(owners)
	if apart {
		need++
	}
	offline := p.offline(space)
	// Half of the classes at most are kept for online pods: whoever cannot be told from a culprit is cut with it.
	kept := min(need, l.CLOSIDs/2)
	offline = p.squeeze(offline, l.CLOSIDs-kept)
	left := l.CLOSIDs - len(offline)
	first := 0 // of these, what goes before ways of one's own
	if len(l.L3) > 0 && l.OfflineAlone != 0 && (apart || len(owners) > left) {
		first = 1
	}

	var out []bucket
	var rest []knob.Share // who is not in the class of the other online pods
	for i, s := range owners {
		if left <= first {
			p.note(s.Pod, "no class of service is left to give it ways of its own")
			space.release(i)
			if first == 0 {
				rest = append(rest, s)
			}
			continue
		}
		left--
		rest = append(rest, s)
		out = append(out, bucket{ways: bits.OnesCount64(space.own[i]), mask: space.own[i], percent: 100, cache: s.Ways, pods: []knob.MemberPod{{Pod: s.Pod, Cgroup: s.Cgroup}}})
	}
	if len(out)+first > 0 && p.othersOnline(rest) {
		if left > 0 {
			out = append(out, p.rest(space, rest))
		} else {
			p.note("", "no class of service is left to keep other online pods out of ways that one has for itself")
		}
	}
	p.name(out, Own)
	p.name(offline, Offline)
	return append(out, offline...)
}

// owners are the online pods that are to have ways for themselves.
func (p *Planner) owners() []knob.Share {
	if len(p.use.L3) == 0 {
		return nil
	}
	var out []knob.Share
	for _, s := range p.pods {
		if s.Role == knob.RoleOnline && s.Own && s.Ways.N > 0 {
			out = append(out, s)
		}
	}
	// Those that had some before come first: they keep them.
	slices.SortStableFunc(out, func(a, b knob.Share) int { return cmp.Compare(p.strange(a), p.strange(b)) })
	return out
}

// strange is 0 for a pod that has ways of its own already, 1 for others.
func (p *Planner) strange(s knob.Share) int {
	if strings.HasPrefix(p.home[s.Cgroup], Own) {
		return 0
	}
	return 1
}

func (p *Planner) othersOnline(owners []knob.Share) bool {
	for _, s := range p.pods {
		if s.Role == knob.RoleOnline && !slices.ContainsFunc(owners, func(o knob.Share) bool { return o.Cgroup == s.Cgroup }) {
			return true
		}
	}
	return false
}

// space is how the ways are divided.
type space struct {
	room    uint64 // all ways that a class of ours may have
	own     []uint64
	owners  []knob.Share
	offline uint64 // what classes of offline pods are made of
}

// run gives of a set of ways what one mask can hold: all of it if masks may have gaps, else its longest run, the lowest of equals.
func (l *Limits) run(set uint64) uint64 {
	if l.Sparse {
		return set
	}
	var best uint64
	for set != 0 {
		from := bits.TrailingZeros64(set)
		n := bits.TrailingZeros64(^(set >> from))
		one := lowest(set, n)
		if n > bits.OnesCount64(best) {
			best = one
		}
		set &^= one
	}
	return best
}

// lowest is the n lowest ones of a set.
func lowest(set uint64, n int) uint64 {
	var out uint64
	for ; n > 0 && set != 0; n-- {
		bit := set & -set
		out |= bit
		set &^= bit
	}
	return out
}

// highest is the n highest ones of a set.
func highest(set uint64, n int) uint64 {
	return set &^ lowest(set, bits.OnesCount64(set)-n)
}

func (p *Planner) space(owners []knob.Share) space {
	l := &p.use
	var s space
	if len(l.L3) == 0 {
		return s
	}
	s.room = l.run(l.Ours &^ l.Foreign)
	quiet := l.run(s.room &^ l.Taken)
	floor := p.floor()
	if bits.OnesCount64(l.run(quiet&^l.OnlineAlone)) < floor || l.OfflineAlone&^quiet != 0 {
		if s.room != 0 && quiet != s.room {
			p.note("", "groups of others are limited to nearly all ways: ours overlap with them")
		}
		quiet = s.room
	}
	ownable := l.run(quiet &^ l.Shareable &^ l.OfflineAlone)
	s.offline = l.run(quiet &^ l.OnlineAlone)
	for _, o := range owners {
		n := max(o.Ways.N, l.MinBits)
		had := p.spare(&s, quiet, ownable, n, floor)
		if had < max(l.MinBits, 1) {
			p.note(o.Pod, "no ways are left to give it some of its own")
			continue
		} else if had < n {
			p.note(o.Pod, "gets %d ways of its own instead of %d: the others need the rest", had, n)
			n = had
		}
		mask := highest(ownable, n)
		ownable &^= mask
		s.own = append(s.own, mask)
		s.owners = append(s.owners, o)
	}
	s.offline = l.run(quiet &^ l.OnlineAlone &^ union(s.own))
	return s
}

// floor is the least number of ways that a class of offline pods has, if there are as many.
func (p *Planner) floor() int {
	return max(p.use.MinBits, p.use.OfflineFloor, 1, bits.OnesCount64(p.use.OfflineAlone))
}

// spare is how many of n ways one more online pod can have for itself, of the highest that may be owned, so that the others keep what they
// need at least: offline pods their floor, and online pods a mask of what is not closed to them.
func (p *Planner) spare(s *space, quiet, ownable uint64, n, floor int) int {
	l := &p.use
	below := quiet &^ above(ownable) &^ union(s.own)
	for n = min(n, bits.OnesCount64(ownable)); n > 0; n-- {
		left := below &^ highest(ownable, n)
		if bits.OnesCount64(l.run(left&^l.OnlineAlone)) >= floor && (l.OfflineAlone == 0 || bits.OnesCount64(l.run(left&^l.OfflineAlone)) >= l.MinBits) {
			break
		}
	}
	return n
}

// above is all ways above a set's highest: what a mask below it cannot reach across ways that somebody owns.
func above(set uint64) uint64 {
	if set == 0 {
		return 0
	}
	return ^uint64(0) << bits.Len64(set)
}

func union(masks []uint64) uint64 {
	var all uint64
	for _, m := range masks {
		all |= m
	}
	return all
}

// release takes back the ways of the owner at i. They stay unused until the next plan.
func (s *space) release(i int) { s.own[i] = 0 }

// rest is the class of online pods that have no ways of their own, while others have.
func (p *Planner) rest(s space, owners []knob.Share) bucket {
	b := bucket{name: Online, percent: 100, mask: p.use.run(s.room &^ union(s.own) &^ p.use.OfflineAlone)}
	b.ways = bits.OnesCount64(b.mask)
	for _, sh := range p.pods {
		if sh.Role == knob.RoleOnline && !slices.ContainsFunc(owners, func(o knob.Share) bool { return o.Cgroup == sh.Cgroup }) {
			b.pods = append(b.pods, knob.MemberPod{Pod: sh.Pod, Cgroup: sh.Cgroup})
		}
	}
	return b
}

// offline groups the offline pods by what they are to have, least limited first.
func (p *Planner) offline(s space) []bucket {
	l := &p.use
	all := bits.OnesCount64(s.offline)
	floor := min(p.floor(), all)
	var out []bucket
	for i := range p.pods {
		sh := &p.pods[i]
		if sh.Role != knob.RoleOffline {
			continue
		}
		b := bucket{percent: 100, free: true, where: p.where(sh)}
		if len(l.L3) > 0 {
			if b.ways = all; sh.Ways.N > 0 {
				b.ways = min(max(sh.Ways.N, floor), all)
				b.free, b.cache = false, sh.Ways
				if b.ways > sh.Ways.N {
					p.note(sh.Pod, "keeps %d ways: no class may have fewer", b.ways)
				}
			}
		}
		if len(l.MB) > 0 && sh.MB.N > 0 && sh.MB.N < 100 {
			if l.MBPercent || l.MBTotal > 0 {
				b.percent = max(sh.MB.N, l.MBFloor)
				b.free, b.band = false, sh.MB
			} else {
				p.note(sh.Pod, "keeps its bandwidth: this machine's limits are not in percent, and how much it has is not known")
			}
		}
		at := slices.IndexFunc(out, func(o bucket) bool {
			return o.ways == b.ways && p.value(o.percent) == p.value(b.percent) && o.free == b.free && o.where == b.where
		})
		if at < 0 {
			at = len(out)
			out = append(out, b)
		}
		out[at].pods = append(out[at].pods, knob.MemberPod{Pod: sh.Pod, Cgroup: sh.Cgroup})
	}
	slices.SortStableFunc(out, func(a, b bucket) int {
		return cmp.Or(cmp.Compare(boolean(b.free), boolean(a.free)), cmp.Compare(b.ways, a.ways), cmp.Compare(b.percent, a.percent),
			cmp.Compare(a.where, b.where))
	})
	p.open = s.offline
	for i := range out {
		out[i].mask = l.pack(s.offline, out[i].ways)
	}
	return out
}

// pack is n ways for offline pods: first those that are theirs alone, which are the lowest except where masks may have gaps.
func (l *Limits) pack(set uint64, n int) uint64 {
	alone := set & l.OfflineAlone
	if !l.Sparse || alone == 0 {
		return lowest(set, n)
	}
	return lowest(alone, n) | lowest(set&^alone, n-bits.OnesCount64(alone))
}

// where is the domains in which the limits of a pod hold, of those that there are; 0: all. Domains of cache and of bandwidth are the same on
// every machine so far; where they are not, a limit holds everywhere.
func (p *Planner) where(s *knob.Share) uint64 {
	l := &p.use
	n := max(len(l.L3), len(l.MB))
	if s.Ways.N == 0 && s.MB.N == 0 || n > 64 || len(l.L3) > 0 && len(l.MB) > 0 && !slices.Equal(l.L3, l.MB) {
		return 0
	}
	all := ^uint64(0) >> (64 - max(n, 1))
	if s.Where&all == all {
		return 0
	}
	return s.Where & all
}

// holds reports whether the bucket's limits hold in the i-th domain.
func (b *bucket) holds(i int) bool { return b.where == 0 || b.where>>i&1 == 1 }

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

// squeeze merges classes of offline pods until there are no more than n, those first that differ least; the tighter limits win. Pods
// that nobody limits are kept apart as long as there is any other way.
func (p *Planner) squeeze(buckets []bucket, n int) []bucket {
	for len(buckets) > max(n, 1) {
		best, at := 0, [2]int{}
		for i := range buckets {
			for j := i + 1; j < len(buckets); j++ {
				a, b := &buckets[i], &buckets[j]
				d := 1 + 100*abs(a.ways-b.ways)/max(bits.OnesCount64(p.use.FullMask), 1) + abs(a.percent-b.percent)
				if a.free != b.free {
					d += 1000
				}
				if a.where != b.where {
					d += 100
				}
				if best == 0 || d < best {
					best, at = d, [2]int{i, j}
				}
			}
		}
		a, b := &buckets[at[0]], &buckets[at[1]]
		p.lose(a, b)
		p.lose(b, a)
		if b.ways < a.ways {
			a.ways, a.mask, a.cache = b.ways, b.mask, b.cache
		}
		if b.percent < a.percent {
			a.percent, a.band = b.percent, b.band
		}
		switch { // what is held back in one of them is so in both
		case a.free:
			a.where = b.where
		case b.free:
		case a.where == 0 || b.where == 0:
			a.where = 0
		default:
			a.where |= b.where
		}
		a.free = a.free && b.free
		a.pods = append(a.pods, b.pods...)
		buckets = slices.Delete(buckets, at[1], at[1]+1)
	}
	return buckets
}

// lose notes the pods of a that get less because they are merged with b.
func (p *Planner) lose(a, b *bucket) {
	if b.ways < a.ways || b.percent < a.percent {
		for _, pod := range a.pods {
			p.note(pod.Pod, "is held to %d ways and %d%% of bandwidth as others are: no class of service is left for it alone", min(a.ways, b.ways), min(a.percent, b.percent))
		}
	}
}

func abs(n int) int { return max(n, -n) }

// name gives each bucket without a name the one that most of its pods had, and new ones to the rest.
func (p *Planner) name(buckets []bucket, base string) {
	taken := map[string]bool{}
	for {
		best, at, name := 0, -1, ""
		for i := range buckets {
			if buckets[i].name != "" {
				continue
			}
			count := map[string]int{}
			for _, pod := range buckets[i].pods {
				had := p.home[pod.Cgroup]
				if !is(had, base) || taken[had] {
					continue
				}
				count[had]++
				if n := count[had]; n > best || n == best && at == i && had < name {
					best, at, name = n, i, had
				}
			}
		}
		if at < 0 {
			break
		}
		buckets[at].name, taken[name] = name, true
	}
	next := 1
	for i := range buckets {
		for buckets[i].name == "" {
			if name := numbered(base, next); !taken[name] {
				buckets[i].name, taken[name] = name, true
			}
			next++
		}
	}
}

func numbered(base string, n int) string {
	if n == 1 {
		return base
	}
	return fmt.Sprintf("%s-%d", base, n)
}

// is reports whether name is base or a numbered one of it.
func is(name, base string) bool { return name == base || strings.HasPrefix(name, base+"-") }

// value is a limit of bandwidth in the machine's unit.
func (p *Planner) value(percent int) uint64 {
	l := &p.use
	if percent >= 100 || !l.MBPercent && l.MBTotal == 0 {
		return l.MBFull
	}
	v := uint64(percent)
	gran := max(l.MBGran, 1)
	if l.MBPercent {
		v = (v + gran - 1) / gran * gran // as the kernel does
	} else {
		v = l.MBTotal * v / 100 / gran * gran
	}
	return min(max(v, l.MBMin), l.MBFull)
}

func (p *Planner) class(b *bucket) knob.Class {
	c := knob.Class{Name: b.name, Ways: b.ways, Cache: b.cache, Bandwidth: b.band, Pods: b.pods}
	for i, d := range p.use.L3 {
		v := knob.DomainValue{Domain: d, Value: p.mirror(b.mask)}
		if !b.holds(i) {
			v.Value = p.mirror(p.open)
		}
		c.L3 = append(c.L3, v)
	}
	for i, d := range p.use.MB {
		v := knob.DomainValue{Domain: d, Value: p.value(b.percent)}
		if !b.holds(i) {
			v.Value = p.value(100)
		}
		c.MB = append(c.MB, v)
	}
	if b.percent < 100 && len(p.use.MB) > 0 {
		c.MBPercent = b.percent
	}
	slices.SortStableFunc(c.Pods, func(a, b knob.MemberPod) int { return strings.Compare(a.Cgroup, b.Cgroup) })
	return c
}

// watch says who is measured: online pods first, as far as ids go. Offline pods leave a quarter of the ids to classes that may be needed: an
// id that is freed can be in use by old lines for many seconds, and a cut that has to wait for one comes too late.
func (p *Planner) watch() {
	left := p.use.RMIDs - len(p.plan.Classes)
	spare := max(0, min(p.use.CLOSIDs, p.use.RMIDs/4)-len(p.plan.Classes))
	without := 0
	for _, role := range []knob.Role{knob.RoleOnline, knob.RoleOffline} {
		for _, s := range p.pods {
			if s.Role != role || p.use.RMIDs == 0 {
				continue
			}
			if left <= 0 || role == knob.RoleOffline && left <= spare {
				without++
				continue
			}
			left--
			p.plan.Watch = append(p.plan.Watch, knob.MemberPod{Pod: s.Pod, Cgroup: s.Cgroup})
		}
	}
	if without > 0 {
		p.note("", "%d pods are not monitored: no monitoring id (RMID) is left for them", without)
	}
}
