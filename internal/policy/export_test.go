package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestExportAndImport(t *testing.T) {
	p := Default()
	p.Metadata.Name = "night-shift"
	p.Spec.Classes.Rules = []ClassRule{{Name: "batch", Class: Offline, Match: Match{Labels: map[string]string{"a": "b"}, Namespaces: []string{"jobs-*"}}}}
	p.Spec.Windows = []Window{{Name: "night", From: "22:00", To: "06:00", Mode: Observe, Ladder: []Rung{}}}
	night := time.Date(2026, 11, 26, 23, 0, 0, 0, time.UTC)
	for name, c := range map[string]*Compiled{"as it is": MustCompile(p), "forced": MustCompile(p).WithMode(Enforce)} {
		t.Run(name, func(t *testing.T) {
			data, err := c.Export()
			if err != nil {
				t.Fatal(err)
			}
			d, err := Import(data)
			if err != nil {
				t.Fatal(err)
			}
			if d.ID() != c.ID() || d.Name() != c.Name() {
				t.Errorf("got %s %s, want %s %s", d.Name(), d.ID(), c.Name(), c.ID())
			}
			for _, at := range []time.Time{night, night.Add(12 * time.Hour)} {
				if diff := cmp.Diff(c.At(at), d.At(at)); diff != "" {
					t.Errorf("at %v (-exported +imported):\n%s", at, diff)
				}
			}
			s := Subject{Namespace: "jobs-1", Labels: map[string]string{"a": "b"}}
			if class, rule := d.Classify(s); class != Offline || rule != "rule batch" {
				t.Errorf("classified as %s by %s", class, rule)
			}
		})
	}
}

func TestImportRefusesNonsense(t *testing.T) {
	for _, text := range []string{"", "{}", `{"id":"x","policy":{"spec":{"mode":"whatever"}}}`, `{"id":"x","forcedMode":"loud","policy":{}}`} {
		if _, err := Import([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}
