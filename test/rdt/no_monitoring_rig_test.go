//go:build amd64

package rdt

//rig:variants no-monitoring

import "testing"

// TestRigWithoutMonitoring: hardware counters alone name the culprits.
func TestRigWithoutMonitoring(t *testing.T) {
	y := story{name: "no-monitoring", service: cached, hogs: streams(2), bound: 1.1}
	o := y.tell(t)
	if !o.anyCut() {
		t.Error("nobody was cut")
	}
	o.end()
}
