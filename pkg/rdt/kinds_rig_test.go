//go:build amd64

//rig:variants two-sockets no-mba no-cat no-monitoring twenty-ways four-closids

package rdt_test

import (
	"testing"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigKinds sets a limit in the last domain of whatever machine this is, and has it read back.
func TestRigKinds(t *testing.T) {
	f, err := rdt.Open(rdt.Dir(guest.Mount(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v, MB %+v, monitoring %+v", f.Info, f.Info.MB, f.Info.Mon)
	s, err := f.Schemata("")
	if err != nil {
		t.Fatal(err)
	}
	if len(s) == 0 {
		t.Fatal("nothing to control")
	}
	if err := f.Make("g"); err != nil {
		t.Fatal(err)
	}
	var lines []rdt.Line
	for _, l := range s {
		last := l.Domains[len(l.Domains)-1].ID
		v := uint64(3)
		if l.Resource == "MB" {
			v = f.Info.MB.Min
		}
		lines = append(lines, rdt.Line{Resource: l.Resource, Domains: []rdt.Domain{{ID: last, Value: v}}})
	}
	if _, now, err := f.SetLimits("g", lines); err != nil {
		t.Errorf("%v: %v", now, err)
	}
	c, err := f.Counters("g")
	if f.Info.Mon == nil {
		if err == nil {
			t.Error("there are counters on a machine that does not monitor")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Read(nil); err != nil || len(r) == 0 {
		t.Errorf("counters %v, %v", r, err)
	}
}
