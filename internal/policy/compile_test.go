package policy

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func mustParse(t *testing.T, spec string) *Compiled {
	t.Helper()
	p, err := Parse("f", []byte(head+spec))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestID(t *testing.T) {
	id := func(spec string) string { return mustParse(t, spec).ID() }
	base := id("spec: {mode: observe}")
	if !regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(base) {
		t.Errorf("got %q", base)
	}
	for _, same := range []string{
		"spec:\n  # a comment\n  mode: 'observe'\n",
		"spec: {mode: observe, objectives: {cpuWaitP99: 2000us}}",
		"spec: {mode: enforce}\n---\n" + head + "spec: {mode: observe}",
		"spec: {mode: observe, windows: []}",
		"spec: {mode: observe, cpu: }",
	} {
		if got := id(same); got != base {
			t.Errorf("%s: got %s, want %s", same, got, base)
		}
	}
	for _, other := range []string{
		"spec: {mode: enforce}",
		"spec: {mode: observe, objectives: {cpuWaitP99: 3ms}}",
		"spec: {mode: observe}\nmetadata: {name: other}",
		"spec: {mode: observe, windows: [{name: a, from: '00:00', to: '24:00'}]}",
		"spec: {mode: observe, windows: [{name: a, from: '00:00', to: '24:00', ladder: []}]}",
	} {
		if id(other) == base {
			t.Errorf("%s: same id", other)
		}
	}
	if id("spec: {windows: [{name: a, from: '00:00', to: '24:00'}]}") == id("spec: {windows: [{name: a, from: '00:00', to: '24:00', ladder: []}]}") {
		t.Error("a ladder that is emptied is not one that is left alone")
	}
	var none Policy = Default()
	none.Spec.CPU.Ladder, none.Spec.Classes.Presets = nil, nil
	if got, want := MustCompile(none).ID(), id("metadata: {name: default}\nspec: {cpu: {ladder: []}, classes: {presets: []}}"); got != want {
		t.Errorf("nil and empty lists: got %s, want %s", got, want)
	}
}

func TestCompiledIsACopy(t *testing.T) {
	p := Default()
	p.Spec.Classes.Rules = []ClassRule{{Name: "a", Class: Offline, Match: Match{Labels: map[string]string{"k": "v"}}}}
	c := MustCompile(p)
	p.Spec.CPU.Ladder[0] = RungFreeze
	p.Spec.Classes.Rules[0].Match.Labels["k"] = "w"
	if got := c.At(time.Time{}).CPU.Ladder[0]; got != RungIdle {
		t.Errorf("ladder changed to %v", got)
	}
	if got, _ := c.Classify(Subject{Labels: map[string]string{"k": "v"}}); got != Offline {
		t.Errorf("rule changed: %v", got)
	}
}

func TestCompileValidates(t *testing.T) {
	p := Default()
	p.Spec.Mode = "off"
	p.Spec.Objectives.CPUWaitEvent = 1
	p.Spec.Judge.JointPercent = 10
	_, err := Compile(&p)
	want := `spec.mode: is "off"; want observe or enforce
spec.objectives.cpuWaitEvent: is 1ns; want 0 or 100us to 10s
spec.judge.jointPercent: is 10, below culpritPercent (40); want 40 or more: several culprits together explain at least what one alone must`
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if _, err := Compile(&Policy{}); err == nil {
		t.Error("the zero policy compiles")
	}
	defer func() {
		if recover() == nil {
			t.Error("MustCompile did not panic")
		}
	}()
	MustCompile(p)
}

func TestWindows(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skipf("needs the time zone database: %v", err)
	}
	c := mustParse(t, `
spec:
  windows:
  - {name: lunch, days: [mon, tue, wed, thu, fri], from: "12:00", to: "13:00", mode: observe}
  - {name: party, days: [fri], from: "22:00", to: "06:00", cpuWaitP99: 3ms}
  - {name: sunday, days: [sun], from: "00:00", to: "24:00", posture: weight, ladder: []}
  - {name: night, from: "23:30", to: "04:00", cpuWaitP99: 20ms, cpuWaitEvent: 50ms}
`)
	for at, want := range map[string]string{
		"2024-05-13 11:59:59": "", // a Monday
		"2024-05-13 12:00:00": "lunch",
		"2024-05-13 12:59:59": "lunch",
		"2024-05-13 13:00:00": "",
		"2024-05-13 23:29:59": "",
		"2024-05-13 23:30:00": "night",
		"2024-05-14 00:00:00": "night",
		"2024-05-14 03:59:59": "night",
		"2024-05-14 04:00:00": "",
		"2024-05-17 05:00:00": "", // Friday before it begins
		"2024-05-17 22:00:00": "party",
		"2024-05-17 23:45:00": "party", // the first that contains counts
		"2024-05-18 05:59:59": "party", // Saturday morning is still Friday's
		"2024-05-18 06:00:00": "",
		"2024-05-18 12:30:00": "",
		"2024-05-18 22:30:00": "",
		"2024-05-19 00:00:00": "sunday",
		"2024-05-19 23:59:59": "sunday",
		"2024-05-20 00:00:00": "night",
		"2024-03-31 01:59:59": "sunday", // the hour after that does not exist in Berlin
		"2024-03-31 03:00:00": "sunday",
		"2024-10-27 02:30:00": "sunday", // happens twice
	} {
		when, err := time.ParseInLocation(time.DateTime, at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Window(when); got != want {
			t.Errorf("%s %s: got %q, want %q", when.Weekday(), at, got, want)
		}
	}
	at := func(text string) *Spec {
		when, _ := time.ParseInLocation(time.DateTime, text, berlin)
		return c.At(when)
	}
	base := Default().Spec
	for text, change := range map[string]func(s *Spec){
		"2024-05-13 10:00:00": func(s *Spec) {},
		"2024-05-13 12:00:00": func(s *Spec) { s.Mode = Observe },
		"2024-05-17 22:00:00": func(s *Spec) { s.Objectives.CPUWaitP99 = Duration(3 * time.Millisecond) },
		"2024-05-19 10:00:00": func(s *Spec) { s.CPU.Posture, s.CPU.Ladder = PostureWeight, []Rung{} },
		"2024-05-14 00:00:00": func(s *Spec) {
			s.Objectives.CPUWaitP99, s.Objectives.CPUWaitEvent = Duration(20*time.Millisecond), Duration(50*time.Millisecond)
		},
	} {
		want := base
		change(&want)
		got := *at(text)
		got.Windows = nil
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", text, d)
		}
	}
	observed := c.WithMode(Observe)
	for _, text := range []string{"2024-05-13 10:00:00", "2024-05-14 00:00:00"} {
		when, _ := time.ParseInLocation(time.DateTime, text, berlin)
		if observed.At(when).Mode != Observe || c.At(when).Mode != Enforce {
			t.Errorf("%s: WithMode does not hold, or changed the original", text)
		}
	}
	if observed.ID() != c.ID() {
		t.Error("WithMode changed the ID")
	}
}

func TestAtUsesTheLocationOfItsArgument(t *testing.T) {
	c := mustParse(t, `spec: {windows: [{name: night, from: "22:00", to: "06:00"}]}`)
	utc := time.Date(2024, 5, 13, 21, 30, 0, 0, time.UTC)
	if got := c.Window(utc); got != "" {
		t.Errorf("got %q", got)
	}
	if got := c.Window(utc.In(time.FixedZone("", 3600))); got != "night" {
		t.Errorf("got %q", got)
	}
}

func TestAtDoesNotAllocate(t *testing.T) {
	c := mustParse(t, `spec: {windows: [{name: a, from: "22:00", to: "06:00", days: [mon]}, {name: b, from: "00:00", to: "24:00"}]}`)
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { c.At(now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWindowProperties: a window is open for as long as its times say on each of its days, and never otherwise.
func TestWindowProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := window{from: rapid.IntRange(0, 1439).Draw(t, "from"), to: rapid.IntRange(0, 1440).Draw(t, "to")}
		if w.from == w.to {
			t.Skip("not valid")
		}
		day := rapid.IntRange(0, 6).Draw(t, "day")
		w.days[day] = true
		open := 0
		for d := time.Sunday; d <= time.Saturday; d++ {
			for m := range 1440 {
				if w.contains(d, m) {
					open++
					if from := (int(d)*1440 + m - day*1440 - w.from + 7*1440) % (7 * 1440); from >= 1440 {
						t.Fatalf("open on %v at minute %d", d, m)
					}
				}
			}
		}
		want := w.to - w.from
		if want < 0 {
			want += 1440
		}
		if open != want {
			t.Fatalf("open for %d minutes of the week, want %d", open, want)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"web", "web", true},
		{"web", "web2", false},
		{"web*", "web", true},
		{"*-prod", "shop-prod", true},
		{"*", "", true},
		{"/kubepods/*/pod*", "/kubepods/burstable/pod1", true},
		{"/kubepods/*/pod*", "/kubepods/burstable/pod1/c", false},
		{"/kubepods/**", "/kubepods/burstable/pod1/c", true},
		{"/kubepods/**", "/kubepods", false},
		{"/**/c", "/a/b/c", true},
		{"/**/c", "/c", false},
		{"/**c", "/c", true},
		{"/a*b/**/c*d", "/axb/x/y/cxxd", true},
		{"/a*b/**/c*d", "/ax/b/x/y/cxxd", false},
		{"***", "a/b", true},
		{"/" + strings.Repeat("*a", 200), "/" + strings.Repeat("a", 400) + "b", false},
		{"/" + strings.Repeat("**a", 150), "/" + strings.Repeat("a", 4000) + "b", false},
	} {
		if got := glob(tt.pattern).match(tt.text); got != tt.want {
			t.Errorf("%.40s on %.40s: got %v", tt.pattern, tt.text, got)
		}
	}
}

// TestGlobAgainstRegexp holds the matcher against the definition in the words of regular expressions.
func TestGlobAgainstRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "/", "*", "**"}), 0, 12).Draw(t, "pattern"), "")
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "/"}), 0, 14).Draw(t, "text"), "")
		re := regexp.MustCompile(`\*+`).ReplaceAllStringFunc(pattern, func(stars string) string {
			if len(stars) == 1 {
				return "[^/]*"
			}
			return ".*"
		})
		want := regexp.MustCompile("^" + re + "$").MatchString(text)
		if got := glob(pattern).match(text); got != want {
			t.Fatalf("%q on %q: got %v, want %v", pattern, text, got, want)
		}
	})
}
