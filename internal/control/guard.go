package control

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/policy"
)

// guard finds offline pods whose group must not be written, and says so once for each: what is done to a group is done to all groups
// below it, so a group that holds more than the pod itself is off limits.
func (c *CPU) guard(in *Input) {
	c.sorted = c.sorted[:0]
	for i := range in.Pods {
		c.sorted = append(c.sorted, i)
	}
	slices.SortFunc(c.sorted, func(a, b int) int {
		if d := strings.Compare(in.Pods[a].Cgroup, in.Pods[b].Cgroup); d != 0 {
			return d
		}
		return a - b
	})
	was := make([]string, len(c.pods))
	for i, p := range c.pods {
		if p != nil {
			was[i] = p.blocked
			p.blocked = cmp.Or(offLimits(in.Pods[i].Cgroup), c.holdsOthers(in, i))
		}
	}
	for i, p := range c.pods {
		if p != nil && p.blocked == "" {
			p.blocked = c.coveredBy(in, i)
		}
	}
	for i, p := range c.pods {
		if p != nil && p.blocked != "" && p.blocked != was[i] {
			c.notes = append(c.notes, Note{At: in.Now, Owner: OwnerCPU, Rule: RuleSkip, Pod: p.key, Text: p.blocked})
		}
	}
}

// offLimits says why nothing may be written to a group, judging by its name: the kubelet owns its tiers and rewrites their shares
// every minute, and cpu.idle there keeps it from starting again.
func offLimits(group string) string {
	clean := path.Clean("/" + group)
	base := path.Base(clean)
	switch parent := path.Base(path.Dir(clean)); {
	case group == "":
		return "it has no group of its own that is known"
	case clean == "/":
		return "its group is the root"
	case base == "kubepods", base == "kubepods.slice", strings.HasSuffix(base, "-kubepods.slice"),
		strings.HasSuffix(base, "kubepods-burstable.slice"), strings.HasSuffix(base, "kubepods-besteffort.slice"),
		parent == "kubepods" && (base == "burstable" || base == "besteffort"):
		return "its group is a tier of the kubelet"
	}
	return ""
}

// holdsOthers says why the group of the pod at index i is not its own: a pod that is not offline lives in it or below it.
func (c *CPU) holdsOthers(in *Input, i int) string {
	group := in.Pods[i].Cgroup
	for at := c.search(in, group); at < len(c.sorted) && in.Pods[c.sorted[at]].Cgroup == group; at++ {
		if j := c.sorted[at]; in.Class[j] != policy.Offline {
			return "it shares its group with " + in.Pods[j].Key()
		}
	}
	below := group + "/"
	for at := c.search(in, below); at < len(c.sorted) && strings.HasPrefix(in.Pods[c.sorted[at]].Cgroup, below); at++ {
		if j := c.sorted[at]; in.Class[j] != policy.Offline {
			return "its group holds " + in.Pods[j].Key()
		}
	}
	return ""
}

// coveredBy says which other offline pod's group holds that of the pod at index i, or is the same, so that two wants would meet.
func (c *CPU) coveredBy(in *Input, i int) string {
	group := in.Pods[i].Cgroup
	for up := group; len(up) > 1; up = path.Dir(up) {
		for at := c.search(in, up); at < len(c.sorted) && in.Pods[c.sorted[at]].Cgroup == up; at++ {
			j := c.sorted[at]
			if p := c.pods[j]; p != nil && p.blocked == "" && (up != group || j < i) {
				return "its group is held back as that of " + in.Pods[j].Key()
			}
		}
	}
	return ""
}

// search finds the first pod, by group, whose group is not before group.
func (c *CPU) search(in *Input, group string) int {
	at, _ := slices.BinarySearchFunc(c.sorted, group, func(i int, g string) int { return strings.Compare(in.Pods[i].Cgroup, g) })
	return at
}
