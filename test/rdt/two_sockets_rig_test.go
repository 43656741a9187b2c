//go:build amd64

package rdt

//rig:variants two-sockets

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRigTwoSockets: who presses on the other socket's cache is left alone.
func TestRigTwoSockets(t *testing.T) {
	var far *actor
	y := story{name: "two-sockets", service: cached, hogs: streams(1), bound: 1.1, set: func(s *stage) {
		far = s.cast("xfar", "offline")
		for _, a := range s.actors {
			cpus := "0-1"
			if a == far {
				cpus = "2-3"
			}
			if err := os.WriteFile(filepath.Join(a.group, "cpuset.cpus"), []byte(cpus), 0); err != nil {
				s.t.Fatal(err)
			}
		}
		far.start(s.t, "hog", "-profile", greedy)
	}}
	o := y.tell(t)
	if o.everCut(far) {
		t.Error("the pod on the other socket was cut")
	}
	if !o.everCut(o.hogs[0]) {
		t.Error("the culprit was not")
	}
	o.end()
}
