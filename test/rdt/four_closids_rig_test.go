//go:build amd64

package rdt

//rig:variants four-closids

import "testing"

// TestRigLongFourClosids: three groups beside the default one are enough for the plain story.
func TestRigLongFourClosids(t *testing.T) {
	y := story{name: "four-closids", service: cached, hogs: streams(3), bound: 1.1}
	y.tell(t).end()
}
