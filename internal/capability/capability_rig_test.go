//go:build amd64

//rig:variants plain two-sockets no-mba no-cat no-monitoring

package capability

import (
	"bytes"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigDoctor holds what the probes say against what the kernel's info files say of this kind of machine, and has them leave nothing
// behind.
func TestRigDoctor(t *testing.T) {
	guest.Require(t)
	none := Run(t.Context(), Options{})
	for _, p := range none.Probes {
		if p.Name == "resctrl" && (p.OK || !strings.HasPrefix(p.Fix, "mount -t resctrl")) {
			t.Errorf("not mounted: %+v", p)
		}
	}
	root := guest.Mount(t)
	f, err := rdt.Open(rdt.Dir(root))
	if err != nil {
		t.Fatal(err)
	}
	r := Run(t.Context(), Options{})
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + text.String())
	for name, want := range map[string]bool{
		"resctrl": true, Perf: true, CacheAllocation: f.Info.Cache("L3") != nil, BandwidthAllocation: f.Info.MB != nil,
		CacheMonitoring: f.Info.Mon != nil && f.Info.Mon.Occupancy, BandwidthMonitoring: f.Info.Mon != nil && f.Info.Mon.Total,
	} {
		if r.Has(name) != want {
			t.Errorf("%s: %v, want %v", name, r.Has(name), want)
		}
	}
	caps := r.Capabilities()
	if caps.CacheAllocation != (f.Info.Cache("L3") != nil) || caps.BandwidthAllocation != (f.Info.MB != nil) {
		t.Errorf("capabilities %+v", caps)
	}
	groups, err := f.Groups()
	if err != nil || len(groups) > 0 {
		t.Errorf("left behind: %q, %v", groups, err)
	}
}
