//go:build amd64

package rdt

//rig:variants no-mba

import "testing"

// TestRigLongWithoutMBA: ways are enough for the plain story.
func TestRigLongWithoutMBA(t *testing.T) {
	y := story{name: "no-mba", service: cached, hogs: streams(2), bound: 1.1}
	o := y.tell(t)
	for _, h := range o.hogs {
		if l := limitsOf(o.state(), h); l.BandwidthPercent > 0 {
			t.Errorf("%s: %+v, and there is no MBA", h.pod.Name, l)
		}
	}
	o.end()
}
