//go:build amd64

package rdt

//rig:variants forty-rmids

import (
	"fmt"
	"testing"
)

// TestRigLongFortyRMIDs: sixty pods on a machine that can monitor forty groups.
func TestRigLongFortyRMIDs(t *testing.T) {
	y := story{name: "forty-rmids", service: cached, hogs: streams(2), bound: 1.1, set: func(s *stage) {
		for i := range 57 {
			s.cast(fmt.Sprintf("idle%02d", i), "offline")
		}
	}}
	o := y.tell(t)
	if !o.anyCut() {
		t.Error("nobody was cut")
	}
	o.end()
}
