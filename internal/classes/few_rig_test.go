//go:build amd64

//rig:variants few-rmids four-closids

package classes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigFewIDs runs more pods than the machine has monitoring ids, and more wants than it has classes, on the real kernel with its
// limbo: the online ones are monitored, the limits hold, nobody who is not limited is held to somebody else's limit while there is
// another way, and pods come and go.
func TestRigFewIDs(t *testing.T) {
	e, fs := realBench(t)
	var shares []knob.Share
	for i := range 20 {
		s := knob.Share{Pod: fmt.Sprint("ns/", i), Cgroup: fmt.Sprint("/qos-agent-test/p", i), Role: knob.RoleOffline}
		if i >= 16 {
			s.Role = knob.RoleOnline
		} else if i%4 > 0 {
			s = limited(s, 1+i%4, 10*(1+i%3))
		}
		guest.Start(t, guest.Group(t, s.Cgroup[1:]), "hog", "-profile", "10,64,900,10", "-phases", "idle@1h")
		shares = append(shares, s)
	}
	apply := func(shares []knob.Share) {
		t.Helper()
		for range 40 { // freed ids come out of limbo after a second or more
			for _, o := range e.Apply(shares, enforce) {
				t.Logf("%s %s %s>%s %v %v", o.Group, o.Resource, o.Old, o.New, o.Result, o.Err)
			}
			if e.retryAt.IsZero() {
				return
			}
			time.Sleep(time.Until(e.retryAt))
		}
		t.Fatalf("does not come to rest: %v", e.said)
	}
	check := func(shares []knob.Share) {
		t.Helper()
		for _, s := range shares {
			if _, ok := e.MonitorGroup(s.Cgroup); s.Role == knob.RoleOnline && !ok {
				t.Errorf("%s is online and not monitored", s.Pod)
			}
		}
		classOf := map[string]*knob.Class{}
		plan := e.Plan()
		for i := range plan.Classes {
			c := &plan.Classes[i]
			for _, p := range c.Pods {
				classOf[p.Cgroup] = c
				if tids := outside(t, e, fs, p.Cgroup, Prefix+c.Name); len(tids) > 0 {
					t.Errorf("threads %v of %s are not in %s", tids, p.Pod, c.Name)
				}
			}
		}
		for _, s := range shares {
			c := classOf[s.Cgroup]
			switch {
			case s.Role != knob.RoleOffline:
			case c == nil:
				t.Errorf("%s is in no class", s.Pod)
			case s.Ways.N > 0 && c.Ways > s.Ways.N:
				t.Errorf("%s has %d ways, wanted are %d", s.Pod, c.Ways, s.Ways.N)
			case s.Ways.N == 0 && (c.Ways < 11 || c.MBPercent != 0):
				t.Errorf("%s is held to %d ways although nobody limits it", s.Pod, c.Ways)
			}
		}
		groups, err := fs.Groups()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(groups); n >= fs.Info.CLOSIDs || n != len(plan.Classes) {
			t.Errorf("%d groups: %s; the machine has %d classes", n, strings.Join(groups, " "), fs.Info.CLOSIDs)
		}
	}
	apply(shares)
	check(shares)
	apply(shares[4:])
	check(shares[4:])
	apply(shares)
	check(shares)
}
