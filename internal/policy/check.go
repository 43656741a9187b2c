package policy

import (
	"fmt"
	"os"
	"strings"

	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

// Checked is what became of checking one path.
type Checked struct {
	Path   string
	Policy *Compiled // nil if Err is not, or if Note says why there is none
	Err    error     // an ErrorList
	Note   string    // what there is to say otherwise
}

// CheckPaths loads policies as the agent would. A file is checked by itself, over the defaults, as LoadFile does. A directory gives a result for
// each of its files by itself, and then one for all of them together, which is what the agent would use; errors are not
// repeated there. A file that makes sense only together with the others of its directory gets a Note, not an error. What a policy asks that
// a machine does not have is an error too: the daemon takes it and does without, since the nodes of a cluster differ.
func CheckPaths(m Machine, paths ...string) []Checked {
	var out []Checked
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			out = append(out, checkDir(m, p)...)
		} else {
			l := newLoader()
			l.machine = m
			l.addManifest(p)
			out = append(out, compiled(p, l))
		}
	}
	return out
}

func checkDir(m Machine, dir string) []Checked {
	files, err := policyFiles(dir)
	if err != nil {
		return []Checked{{Path: dir, Err: err}}
	}
	var out []Checked
	var shown ErrorList
	for _, f := range files {
		alone := newLoader()
		alone.machine = m
		alone.addFile(f)
		if errs := alone.errs.Tidy(); len(errs) > 0 {
			out = append(out, Checked{Path: f, Err: errs})
			shown = append(shown, errs...)
			continue
		}
		c := compiled(f, alone)
		if c.Err != nil {
			c.Note, c.Err = "not a policy by itself: "+strings.ReplaceAll(c.Err.Error(), "\n", "; "), nil
		}
		out = append(out, c)
	}
	together := newLoader()
	together.machine = m
	all := compiled(dir, together, files...)
	if all.Err != nil && len(shown) > 0 {
		all.Err, all.Note = less(all.Err, shown), "cannot be used: see the errors of its files"
	}
	return append(out, all)
}

// compiled adds files to a loader and makes a policy of it.
func compiled(path string, l *loader, files ...string) Checked {
	for _, f := range files {
		l.addFile(f)
	}
	p, err := l.finish()
	if err != nil {
		return Checked{Path: path, Err: err}
	}
	c, err := Compile(p)
	return Checked{Path: path, Policy: c, Err: err}
}

// less is err without the errors that were shown already.
func less(err error, shown ErrorList) error {
	known := make(map[string]bool, len(shown))
	for _, e := range shown {
		known[e.Error()] = true
	}
	var rest strictyaml.ErrorList
	for _, e := range asList("", err) {
		if !known[e.Error()] {
			rest = append(rest, e)
		}
	}
	return rest.AsError()
}

// Summary describes a policy in a few lines for people.
func Summary(c *Compiled) string {
	s := &c.policy.Spec
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s "+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintf(&b, "policy %s (id %s): %s\n", c.Name(), c.ID(), s.Mode)

	var classes []string
	for _, r := range s.Classes.Rules {
		classes = append(classes, fmt.Sprintf("rule %s (%s)", r.Name, r.Class))
	}
	if len(s.Classes.Presets) > 0 {
		classes = append(classes, "presets "+strings.Join(s.Classes.Presets, ", "))
	}
	if len(classes) == 0 {
		classes = []string{"none: no pod is protected, none is held back"}
	}
	line("classes", "%s", strings.Join(classes, "; "))
	o := &s.Objectives
	line("objectives", "CPU wait p99 %s over %v, event at %s; memory stall %s, io stall %s, CPI rise %s",
		off(o.CPUWaitP99), s.Judge.Window, off(o.CPUWaitEvent), percent(o.MemoryStallPercent), percent(o.IOStallPercent), percent(o.CPIRisePercent))
	line("offline", "posture %s; ladder %s", s.CPU.Posture, rungs(s.CPU.Ladder))
	line("rdt", "cache %s%s; bandwidth %s", rdtControl(s.RDT.Cache.Enabled, "from %d ways", s.RDT.Cache.FloorWays), division(&s.RDT.Cache),
		rdtControl(s.RDT.Bandwidth.Enabled, "from %d %%", s.RDT.Bandwidth.FloorPercent))
	line("online", "burst %s", percent(float64(s.CPU.Burst.Percent)))
	line("safety", "stale after %v, release after %v; external edits: %s", s.Safety.StaleAfter, s.Safety.ReleaseAfter, s.Safety.ExternalEdits)
	for i := range s.Windows {
		line("window", "%s", describe(&s.Windows[i]))
	}
	return b.String()
}

func describe(w *Window) string {
	days := "every day"
	if len(w.Days) > 0 {
		days = strings.Join(w.Days, ",")
	}
	var changes []string
	change := func(name string, value any) { changes = append(changes, fmt.Sprintf("%s %v", name, value)) }
	if w.Mode != "" {
		change("mode", w.Mode)
	}
	if w.CPUWaitP99 != nil {
		change("CPU wait p99", off(*w.CPUWaitP99))
	}
	if w.CPUWaitEvent != nil {
		change("event at", off(*w.CPUWaitEvent))
	}
	if w.Posture != "" {
		change("posture", w.Posture)
	}
	if w.Ladder != nil {
		change("ladder", rungs(w.Ladder))
	}
	if len(changes) == 0 {
		changes = []string{"nothing changes"}
	}
	return fmt.Sprintf("%s (%s %s-%s): %s", w.Name, days, w.From, w.To, strings.Join(changes, ", "))
}

func rdtControl(enabled bool, format string, floor int) string {
	if !enabled {
		return "off"
	}
	return fmt.Sprintf(format, floor)
}

// division is the ways that a policy names.
func division(c *CacheControl) string {
	var b strings.Builder
	for _, f := range [...]struct {
		name string
		set  Ways
	}{{"ways", c.Ways}, {"online alone", c.OnlineWays}, {"offline alone", c.OfflineWays}} {
		if f.set != 0 {
			fmt.Fprintf(&b, ", %s %v", f.name, f.set)
		}
	}
	return b.String()
}

func off(d Duration) string {
	if d == 0 {
		return "off"
	}
	return d.String()
}

func percent(p float64) string {
	if p == 0 {
		return "off"
	}
	return fmt.Sprintf("%g %%", p)
}

func rungs(ladder []Rung) string {
	if len(ladder) == 0 {
		return "empty"
	}
	words := make([]string, len(ladder))
	for i, r := range ladder {
		words[i] = string(r)
	}
	return strings.Join(words, " > ")
}
