package cgroup_test

import (
	"testing"

	cgroups "github.com/containerd/cgroups/v3"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// Another implementation sees the same on this machine.
func TestKernelMode(t *testing.T) {
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	want := map[cgroup.Mode]cgroups.CGMode{cgroup.Legacy: cgroups.Legacy, cgroup.Hybrid: cgroups.Hybrid, cgroup.Unified: cgroups.Unified}[h.Mode()]
	if got := cgroups.Mode(); got != want {
		t.Errorf("mode is %v here and %v there", h.Mode(), got)
	}
}
