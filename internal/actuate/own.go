package actuate

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// ownGroups lists the groups in which this process runs, one or more, as far as its view of the tree tells. proc is its file
// in /proc, seen is where its own namespace of groups is mounted.
//
// In a container on cgroup v2 the process has a namespace of groups of its own and is told that it is in "/". There its group is
// the one in the node's tree that is the same directory as the top of what the container has mounted for itself.
func ownGroups(h *cgroup.Hierarchy, proc, seen string) []string {
	text, err := os.ReadFile(proc)
	if err != nil {
		return nil
	}
	var groups []string
	for line := range strings.Lines(string(text)) { // 5:cpu,cpuacct:/path
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		group := f[2]
		if group == "/" && f[1] == "" && h.V2(cgroup.CPU) {
			group = sameGroup(h, seen)
		}
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return groups
}

// sameGroup finds a directory by what it is; "/" if it is the top, or nowhere.
func sameGroup(h *cgroup.Hierarchy, dir string) string {
	own, err := os.Stat(dir)
	if err != nil {
		return "/"
	}
	found, errFound := "/", errors.New("found")
	_ = h.Walk(cgroup.CPU, "/", func(group string) error { // what cannot be walked is not found
		d, _ := h.Dir(cgroup.CPU, group)
		if info, err := os.Stat(d); err == nil && os.SameFile(own, info) {
			found = group
			return errFound
		}
		return nil
	})
	return found
}
