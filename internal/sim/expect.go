package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/score"
)

// Check says what of a result is not as its scenario expects it.
func (r *Result) Check() (wrong []string) {
	e := &r.Scenario.Expect
	fail := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	wrong = append(wrong, r.Broken...)
	for _, b := range []struct {
		name   string
		bounds Bounds
		got    float64
	}{
		{"violationPercent", e.ViolationPercent, r.Score.Violation()},
		{"missedPercent", e.MissedPercent, r.Score.Missed()},
		{"workPercent", e.WorkPercent, r.Score.WorkPercent()},
		{"reversals", e.Reversals, float64(r.Reversals)},
		{"changes", e.Changes, float64(r.Score.Changes)},
		{"cpiRisePercent", e.CPIRisePercent, r.CPIRise},
		{"falseCuts", e.FalseCuts, float64(r.Score.FalseCuts)},
	} {
		if b.bounds.Min != nil && b.got < *b.bounds.Min {
			fail("%s is %.4g, want at least %.4g", b.name, b.got, *b.bounds.Min)
		}
		if b.bounds.Max != nil && b.got > *b.bounds.Max {
			fail("%s is %.4g, want at most %.4g", b.name, b.got, *b.bounds.Max)
		}
	}
	if at := e.SettlesBy.D(); at > 0 && r.LastChange > at {
		fail("a knob turned at %v, want rest from %v on", r.LastChange, at)
	}
	if w := e.ReactsWithin.D(); w > 0 {
		switch {
		case r.FirstCut < 0:
			fail("nothing was cut, want a cut within %v", w)
		case r.FirstHurt >= 0 && r.FirstCut-r.FirstHurt > w:
			fail("the first cut came %v after the first violation, want %v", r.FirstCut-r.FirstHurt, w)
		}
	}
	if e.WellFrom > 0 {
		for _, l := range r.Online {
			if p := l.unwell(int(e.WellFrom.D() / r.Every)); p > 1 {
				fail("%s is beyond its objective in %.1f %% of the time from %v on, want at most 1 %%", l.Pod, p, e.WellFrom)
			}
		}
	}
	if e.FreeAtEnd && len(r.Held) > 0 {
		fail("%s still held at the end", strings.Join(r.Held, ", "))
	}
	cut, used := make(map[string]bool), make(map[string]bool)
	for i := range r.Notes {
		n := &r.Notes[i].Note
		used[n.Rule] = true
		if score.IsCut(n) {
			cut[n.Pod[strings.IndexByte(n.Pod, '/')+1:]] = true
		}
	}
	for _, name := range e.Cut {
		if !cut[name] {
			fail("%s was not cut", name)
		}
	}
	for _, name := range e.NeverCut {
		if cut[name] {
			fail("%s was cut", name)
		}
	}
	for _, rule := range e.Rules {
		if !used[rule] {
			fail("rule %s was not used", rule)
		}
	}
	for _, rule := range e.NoRules {
		if used[rule] {
			fail("rule %s was used", rule)
		}
	}
	return wrong
}

// unwell is the part of the line's points from one on that are beyond the objective, in percent.
func (l *Line) unwell(from int) float64 {
	bad, all := 0, 0
	for i := from; i < len(l.P99); i++ {
		if l.P99[i] < 0 {
			continue
		}
		all++
		if l.Objective[i] > 0 && l.P99[i] > l.Objective[i] {
			bad++
		}
	}
	if all == 0 {
		return 0
	}
	return 100 * float64(bad) / float64(all)
}

// Summary tells people what happened.
func (r *Result) Summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s under policy %s, %v on %d CPUs (simulated; the node is a model)\n", r.Scenario.Name, r.Policy, r.Scenario.Duration, r.Scenario.Node.CPUs)
	fmt.Fprintf(&b, "  %s\n", r.Scenario.About)
	s := &r.Score
	fmt.Fprintf(&b, "  online beyond objective  %6.2f %% of the time, %.2f %% with nobody held for it\n", s.Violation(), s.Missed())
	fmt.Fprintf(&b, "  offline work             %6.1f %% of what was wanted, %.2f CPUs\n", s.WorkPercent(), s.Work())
	fmt.Fprintf(&b, "  knobs turned             %6d times, %d reversals; %d cuts, %d of them of innocent pods\n", s.Changes, r.Reversals, s.Cuts, s.FalseCuts)
	if r.Scenario.Node.Ways > 0 {
		fmt.Fprintf(&b, "  CPI of online pods       %6.1f %% above that of each alone\n", r.CPIRise)
	}
	if r.FirstCut >= 0 && r.FirstHurt >= 0 {
		fmt.Fprintf(&b, "  first harm               %v, first cut %v, last change %v\n", r.FirstHurt, r.FirstCut, r.LastChange)
	}
	if len(r.Held) > 0 {
		fmt.Fprintf(&b, "  held at the end          %s\n", strings.Join(r.Held, ", "))
	}
	rules := make(map[string]int)
	for i := range r.Notes {
		rules[r.Notes[i].Rule]++
	}
	names := make([]string, 0, len(rules))
	for n := range rules {
		names = append(names, n)
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, rules[n])
	}
	if len(names) > 0 {
		fmt.Fprintf(&b, "  decisions                %s\n", strings.Join(names, ", "))
	}
	return b.String()
}
