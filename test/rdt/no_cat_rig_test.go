//go:build amd64

package rdt

//rig:variants no-cat

import "testing"

// TestRigWithoutCAT: bandwidth and cores are all there is.
func TestRigWithoutCAT(t *testing.T) {
	y := story{name: "no-cat", service: cached, hogs: streams(2), bound: 3}
	o := y.tell(t)
	for _, h := range o.hogs {
		if l := limitsOf(o.state(), h); l.Ways > 0 {
			t.Errorf("%s: %+v, and there is no CAT", h.pod.Name, l)
		}
	}
	if o.result.CPIAgent > 0.9*o.result.CPIUnprotected {
		t.Errorf("CPI %.3f with the daemon, %.3f without", o.result.CPIAgent, o.result.CPIUnprotected)
	}
	o.end()
}
