package control

import (
	"cmp"
	"slices"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// machine is the CPUs in the order in which offline pods that are held back get them.
//
// All of them get a prefix of one list, so they are packed on the same cores and what is taken from one is free of all. SMT
// siblings go together, since a sibling shares nearly everything that hurts. The list takes NUMA nodes in turn, so that each
// node has its part of free cores for online pods that cannot leave it, and within a node the cores of one last-level cache after
// the other, so that whole caches become free of offline work early. It begins at the highest numbers: interrupts, kernel threads
// and most static pinning gather at the lowest.
type machine struct {
	cpus  []signal.CPU // as the snapshot last showed them
	cores []core
	set   cpuset.Set
}

type core struct {
	id, node, llc int
	cpus          cpuset.Set
}

// update takes over the snapshot's topology and reports whether CPUs came or went.
func (m *machine) update(t *signal.Topology) bool {
	if slices.Equal(m.cpus, t.CPUs) {
		return false
	}
	m.cpus = append(m.cpus[:0], t.CPUs...)
	m.set = t.Set()
	m.cores = order(t.CPUs)
	return true
}

// order groups CPUs into cores and lists these by preference.
func order(cpus []signal.CPU) []core {
	byID := make(map[int]int, len(cpus)) // core -> index
	var all []core
	for _, c := range cpus {
		i, ok := byID[c.Core]
		if !ok {
			i = len(all)
			byID[c.Core] = i
			all = append(all, core{id: c.Core, node: c.Node, llc: c.LLC})
		}
		all[i].cpus.Add(c.ID)
	}
	slices.SortFunc(all, func(a, b core) int {
		return cmp.Or(cmp.Compare(b.node, a.node), cmp.Compare(b.llc, a.llc), cmp.Compare(b.id, a.id))
	})

	// Deal the nodes' lists out in turn.
	var nodes [][]core
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].node == all[0].node {
			n++
		}
		nodes = append(nodes, all[:n])
		all = all[n:]
	}
	var out []core
	for round := 0; ; round++ {
		before := len(out)
		for _, n := range nodes {
			if round < len(n) {
				out = append(out, n[round])
			}
		}
		if len(out) == before {
			return out
		}
	}
}

// within counts the cores of which allowed has at least one CPU; an empty allowed is every CPU.
func (m *machine) within(allowed cpuset.Set) int {
	if allowed.Empty() {
		return len(m.cores)
	}
	n := 0
	for i := range m.cores {
		if !m.cores[i].cpus.And(allowed).Empty() {
			n++
		}
	}
	return n
}

// mask is the CPUs of the first n cores within allowed: all that there are if n is larger, one core if it is smaller. It is
// empty only if no online CPU is allowed.
func (m *machine) mask(n int, allowed cpuset.Set) cpuset.Set {
	var s cpuset.Set
	n = max(n, 1)
	for i := range m.cores {
		c := m.cores[i].cpus
		if !allowed.Empty() {
			c = c.And(allowed)
		}
		if c.Empty() {
			continue
		}
		s = s.Or(c)
		if n--; n == 0 {
			break
		}
	}
	return s
}
