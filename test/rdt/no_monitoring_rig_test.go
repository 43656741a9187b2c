//go:build amd64

package rdt

//rig:variants no-monitoring

import "testing"

// TestRigWithoutMonitoring: hardware counters alone name the culprits.
func TestRigWithoutMonitoring(t *testing.T) {
	y := story{name: "no-monitoring", service: cached, hogs: streams(2), bound: 1.1}
	o := y.tell(t)
	if !o.everCut(o.hogs[0]) && !o.everCut(o.hogs[1]) {
		t.Error("nobody was cut")
	}
	o.end()
}
