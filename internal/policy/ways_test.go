package policy

import (
	"encoding/json"
	"testing"
)

func TestWaysAreReadAndWritten(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "0": "0", "10": "10", "0-3": "0-3", "3,1,2": "1-3", "0-1, 8": "0-1,8", "0x10f": "0-3,8", "0XF": "0-3", "31": "31", "0xffffffff": "0-31",
	} {
		var w, again Ways
		if err := w.UnmarshalText([]byte(in)); err != nil || w.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, w, err, want)
		}
		if err := again.UnmarshalText([]byte(w.String())); err != nil || again != w {
			t.Errorf("%q read back: %q, %v", w, again, err)
		}
	}
	for _, in := range []string{"32", "-1", "1-", "a", "0x", "0x0", "0x100000000", "7ff", "3-1", "1,,2", "0-99", " ", "0-3-5", "+1"} {
		w := Ways(1)
		if err := w.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is read as %q", in, w)
		}
	}
	for w, want := range map[Ways]bool{0: true, 1: true, 0x6: true, 0x5: false, 0x80000000: true, 0xf0f: false} {
		if w.Contiguous() != want {
			t.Errorf("%v contiguous: %v", w, !want)
		}
	}
}

// TestPoliciesWithoutWaysAreWhatTheyWere: recordings know policies by their id, and import them from their text.
func TestPoliciesWithoutWaysAreWhatTheyWere(t *testing.T) {
	p := Default()
	text, err := json.Marshal(p.Spec.RDT.Cache)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"enabled":true,"floorWays":1,"cutPercent":50,"onlineOwn":true}`; string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
	p.Spec.RDT.Cache.Ways, p.Spec.RDT.Cache.OnlineWays = 0x3ff, 0x380
	c := MustCompile(p)
	kept, err := c.Export()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Import(kept)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Policy().Spec.RDT.Cache; got != p.Spec.RDT.Cache || again.ID() != c.ID() {
		t.Errorf("%+v, id %s; want %+v, id %s", got, again.ID(), p.Spec.RDT.Cache, c.ID())
	}
}
