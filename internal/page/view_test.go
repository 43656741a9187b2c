package page

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/server"
)

// A view that takes over what has not changed says the same as one that is made anew.
func TestViewTakesOverOnlyWhatIsTheSame(t *testing.T) {
	n := busy(3, 5, true)
	state := func() *server.State {
		t.Helper()
		s, err := n.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	last, err := newView(state(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		change func(*server.State)
	}{
		{"figures only", func(*server.State) {}},
		{"another class", func(s *server.State) { s.Pods[1].Class = "unclassified" }},
		{"another rule", func(s *server.State) { s.Pods[1].ClassRule = "rule 3" }},
		{"a container more", func(s *server.State) {
			s.Pods[2].Containers = append(s.Pods[2].Containers, server.Container{Name: "sidecar"})
		}},
		{"a container of another name", func(s *server.State) { s.Pods[2].Containers[0].Name = "other" }},
		{"a pod less", func(s *server.State) { s.Pods = s.Pods[1:] }},
		{"no pods", func(s *server.State) { s.Pods = nil }},
		{"a knob at another value", func(s *server.State) { s.Knobs[0].Current = "0" }},
		{"no knobs", func(s *server.State) { s.Knobs = nil }},
		{"a capability lost", func(s *server.State) { s.Node.Capabilities[0].OK = false }},
		{"a note more", func(s *server.State) { n.note(s.Notes[0]); s.Notes = n.notes }},
		{"the oldest notes gone", func(s *server.State) { s.Notes = s.Notes[:len(s.Notes)-2] }},
		{"notes of an agent that began anew", func(s *server.State) { s.Notes = s.Notes[len(s.Notes)-1:] }},
	} {
		s := state()
		c.change(s)
		got, err := newView(s, last)
		if err != nil {
			t.Fatal(err)
		}
		want, err := newView(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(view{}, note{}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".of" }, cmp.Ignore())); diff != "" {
			t.Errorf("%s: anew (-), with the last (+):\n%s", c.what, diff)
		}
		last = got
	}
}
