package tune

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/qos-agent/qos-agent/internal/whatif"
)

// Chosen is a policy of the front that is worth looking at, and why.
type Chosen struct {
	Found
	Name string // front-1, ...
	Why  string
	// Outcome is the estimate with intervals; nil after a merge, which has no recordings at hand.
	Outcome *whatif.Outcome
}

// Choose takes from the front: the least violation, the most work at no more violation than the base policy, and the one in between
// that gains the most of both, each once.
func Choose(found []Found) (base *Found, front []Found, chosen []Chosen) {
	for i := range found {
		if found[i].At == nil {
			base = &found[i]
		}
	}
	for _, i := range frontOf(found) {
		front = append(front, found[i])
	}
	add := func(f *Found, why string) {
		if f == nil || f.At == nil {
			return
		}
		for i := range chosen {
			if chosen[i].ID() == f.ID() {
				chosen[i].Why += "; " + why
				return
			}
		}
		chosen = append(chosen, Chosen{Found: *f, Name: fmt.Sprintf("tuned-%d", len(chosen)+1), Why: why})
	}
	if len(front) == 0 {
		return base, front, nil
	}
	add(&front[0], "the least online violation")
	if base != nil {
		var most, both *Found
		gain := 0.0
		for i := range front {
			f := &front[i]
			if f.Score.Violation() <= base.Score.Violation() && (most == nil || f.Score.Work() > most.Score.Work()) {
				most = f
			}
			v := base.Score.Violation() - f.Score.Violation()
			w := f.Score.Work() - base.Score.Work()
			if v >= 0 && w >= 0 && v/max(base.Score.Violation(), 0.1)+w/max(base.Score.Work(), 0.01) > gain {
				both, gain = f, v/max(base.Score.Violation(), 0.1)+w/max(base.Score.Work(), 0.01)
			}
		}
		add(most, "the most offline work at no more violation than the base policy")
		add(both, "the largest gain in both against the base policy")
	}
	return base, front, chosen
}

// Write writes chosen policies as ConfigMaps that can be applied as they are.
func Write(dir string, sp *Space, base *Found, chosen []Chosen, recordings []string) ([]string, error) {
	var files []string
	for i := range chosen {
		c := &chosen[i]
		file := filepath.Join(dir, c.Name+".yaml")
		if err := os.WriteFile(file, []byte(configMap(sp, base, c, recordings)), 0o644); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

func configMap(sp *Space, base *Found, c *Chosen, recordings []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Policy %s, chosen by qos-agent tune: %s.\n#\n", c.ID(), c.Why)
	fmt.Fprintf(&b, "# The evidence is a response model's estimate on recordings, not a measurement: try it with mode: observe, then on one node.\n")
	fmt.Fprintf(&b, "#   this policy:  %s\n", figures(&c.Found))
	if base != nil {
		fmt.Fprintf(&b, "#   base policy:  %s\n", figures(base))
	}
	if o := c.Outcome; o != nil {
		fmt.Fprintf(&b, "#   nine times in ten: violation %.2f to %.2f %%, work %.2f to %.2f CPUs; %.0f %% of the time rests on the model\n",
			o.Violation.Low, o.Violation.High, o.Work.Low, o.Work.High, o.Diverged)
	}
	const most = 20
	for i, r := range recordings {
		if i == most {
			fmt.Fprintf(&b, "#   and %d more recordings\n", len(recordings)-most)
			break
		}
		fmt.Fprintf(&b, "#   recording: %s\n", r)
	}
	b.WriteString("# What differs from the base policy:\n")
	for i, p := range sp.Parameters {
		fmt.Fprintf(&b, "#   %s: %s\n", p.Path, c.Values[i])
	}
	fmt.Fprintf(&b, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: qos-agent-policy\n  labels:\n    app.kubernetes.io/name: qos-agent\n    qos-agent.io/tuned: %q\ndata:\n  policy.yaml: |\n", c.ID())
	for line := range strings.SplitSeq(strings.TrimRight(c.Text, "\n"), "\n") {
		if line == "" {
			b.WriteByte('\n')
			continue
		}
		b.WriteString("    " + line + "\n")
	}
	return b.String()
}

func figures(f *Found) string {
	s := &f.Score
	return fmt.Sprintf("online beyond objective %.2f %% of the time, offline work %.2f CPUs, %.0f knobs an hour, %.1f wrong cuts an hour",
		s.Violation(), s.Work(), s.Churn(), s.FalseCutsPerHour())
}

// Table shows a front to people.
func Table(sp *Space, base *Found, front []Found) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %11s %9s %9s %10s  %s\n", "policy", "violation %", "work CPUs", "knobs/h", "wrong c./h", "differs")
	row := func(name string, f *Found) {
		s := &f.Score
		fmt.Fprintf(&b, "%-14s %11.2f %9.2f %9.0f %10.1f ", name, s.Violation(), s.Work(), s.Churn(), s.FalseCutsPerHour())
		for i, v := range f.Values {
			fmt.Fprintf(&b, " %s=%s", sp.Parameters[i].Path[strings.LastIndexByte(sp.Parameters[i].Path, '.')+1:], strings.ReplaceAll(v, " ", ""))
		}
		b.WriteByte('\n')
	}
	if base != nil {
		row("base", base)
	}
	for i := range front {
		if front[i].At != nil {
			row(front[i].ID(), &front[i])
		}
	}
	return b.String()
}
