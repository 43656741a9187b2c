// Package top shows a daemon's state in a terminal: live and sortable where there is a terminal, once as plain text where there is none.
package top

import (
	"cmp"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/human"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/server"
)

// row is a container.
type row struct {
	name    string // namespace/pod, and the container if there are several
	class   string
	level   string // worst on any axis; "": not judged
	axis    string
	signals *server.Signals
	text    string // who hurts it, or how it is held
}

// badness orders levels; what is not judged comes last.
func (r *row) badness() int {
	return slices.Index([]string{"", judge.OK.String(), judge.Unknown.String(), judge.Watch.String(), judge.Violated.String()}, r.level)
}

// rows lists the containers of a state. Names are made safe for a terminal here.
func rows(s *server.State) []row {
	type key struct{ namespace, pod, container string }
	verdicts := map[key]*server.Verdict{}
	for i := range s.Verdicts { // worst first
		v := &s.Verdicts[i]
		k := key{v.Namespace, v.Pod, v.Container}
		if have := verdicts[k]; have == nil || (&row{level: v.Level}).badness() > (&row{level: have.Level}).badness() {
			verdicts[k] = v
		}
	}
	type hold struct{ text, victim string }
	held := map[string]hold{}
	for i := range s.Knobs {
		k := &s.Knobs[i]
		if k.Knob == "cpu.weight" && k.Current == "0" {
			continue // that is how the kernel shows cpu.idle
		}
		h := held[k.Pod]
		part := strings.TrimPrefix(strings.TrimSuffix(k.Knob, ".cpus"), "cpu.") + " " + k.Current
		if !strings.Contains(h.text, part) { // containers of a pod have the same
			h.text = strings.TrimPrefix(h.text+", "+part, ", ")
		}
		h.victim = cmp.Or(h.victim, k.Victim)
		held[k.Pod] = h
	}
	var out []row
	for i := range s.Pods {
		p := &s.Pods[i]
		name := human.Clean(p.Namespace + "/" + p.Name)
		h := held[p.Namespace+"/"+p.Name]
		text := h.text
		if h.victim != "" {
			text += " for " + h.victim
		}
		for j := range p.Containers {
			c := &p.Containers[j]
			r := row{name: name, class: p.Class, signals: &c.Signals, text: human.Clean(text)}
			if len(p.Containers) > 1 {
				r.name += " " + human.Clean(c.Name)
			}
			if v := verdicts[key{p.Namespace, p.Name, c.Name}]; v != nil {
				r.level, r.axis = v.Level, v.Axis
				if v.Level != judge.OK.String() {
					r.text = human.Clean(blame(v))
				}
			}
			out = append(out, r)
		}
	}
	return out
}

// blame names the largest parts of a wait.
func blame(v *server.Verdict) string {
	const shown = 3
	var out []string
	for _, b := range v.Blame[:min(len(v.Blame), shown)] {
		name := b.Culprit.Name
		if b.Culprit.Namespace != "" {
			name = b.Culprit.Namespace + "/" + name
		}
		out = append(out, name+" "+human.Percent(b.Ratio))
	}
	if len(out) == 0 {
		return v.Reason
	}
	return v.Reason + ": " + strings.Join(out, ", ")
}

// column is one column of the table.
type column struct {
	name  string
	key   rune // that sorts by it
	left  bool // aligned
	width int
	text  func(*row) string
	less  func(a, b *row) int
}

const none = "-"

func columns() []column {
	num := func(f func(*server.Signals) (float64, bool)) func(a, b *row) int { // largest first
		return func(a, b *row) int {
			x, okX := f(a.signals)
			y, okY := f(b.signals)
			if okX != okY {
				return map[bool]int{true: -1, false: 1}[okX]
			}
			return cmp.Compare(y, x)
		}
	}
	p99 := func(s *server.Signals) (float64, bool) {
		if s.Wait == nil || s.Wait.Count == 0 {
			return 0, false
		}
		return s.Wait.P99Seconds, true
	}
	cpu := func(s *server.Signals) (float64, bool) {
		if s.CPU == nil {
			return 0, false
		}
		return s.CPU.UsageCores, true
	}
	mem := func(s *server.Signals) (float64, bool) {
		if s.Memory == nil {
			return 0, false
		}
		return float64(s.Memory.WorkingSetBytes), true
	}
	stall := func(s *server.Signals) (float64, bool) {
		if s.Pressure == nil {
			return 0, false
		}
		return max(s.Pressure.MemorySomeRatio, s.Pressure.IOSomeRatio), true
	}
	cpi := func(s *server.Signals) (float64, bool) {
		if s.Perf == nil || s.Perf.CPI == 0 {
			return 0, false
		}
		return s.Perf.CPI, true
	}
	llc := func(s *server.Signals) (float64, bool) {
		if s.RDT == nil || s.RDT.State != "ok" {
			return 0, false
		}
		return float64(s.RDT.OccupancyBytes), true
	}
	show := func(f func(*server.Signals) (float64, bool), text func(float64) string) func(*row) string {
		return func(r *row) string {
			if v, ok := f(r.signals); ok {
				return text(v)
			}
			return none
		}
	}
	state := func(r *row) string {
		switch {
		case r.level == "":
			return none
		case r.level == judge.OK.String():
			return r.level
		}
		return r.level + " " + r.axis
	}
	byClass := func(a, b *row) int { return strings.Compare(a.class, b.class) }
	return []column{
		{name: "POD", key: 'n', left: true, width: 34, text: func(r *row) string { return r.name }, less: func(a, b *row) int { return strings.Compare(a.name, b.name) }},
		{name: "CLASS", key: 'k', left: true, width: 8, text: func(r *row) string { return strings.Replace(r.class, "unclassified", none, 1) }, less: byClass},
		{name: "STATE", key: 's', left: true, width: 13, text: state, less: func(a, b *row) int {
			return cmp.Or(cmp.Compare(b.badness(), a.badness()), num(p99)(a, b))
		}},
		{name: "WAITp99", key: 'w', width: 8, text: show(p99, human.Seconds), less: num(p99)},
		{name: "CPUS", key: 'c', width: 6, text: show(cpu, func(v float64) string { return trimmed(v) }), less: num(cpu)},
		{name: "MEMORY", key: 'm', width: 8, text: show(mem, func(v float64) string { return human.Bytes(uint64(v)) }), less: num(mem)},
		{name: "STALL", key: 'p', width: 6, text: show(stall, human.Percent), less: num(stall)},
		{name: "CPI", key: 'i', width: 5, text: show(cpi, trimmed), less: num(cpi)},
		{name: "LLC", key: 'l', width: 8, text: show(llc, func(v float64) string { return human.Bytes(uint64(v)) }), less: num(llc)},
		{name: "HURT BY / HELD AT", left: true, text: func(r *row) string { return r.text }},
	}
}

// Sorts lists the names by which --sort knows the columns.
func Sorts() []string {
	return []string{"state", "wait", "cpu", "memory", "stall", "cpi", "llc", "name", "class"}
}

// sortKeys are the keys of Sorts.
var sortKeys = map[string]rune{"state": 's', "wait": 'w', "cpu": 'c', "memory": 'm', "stall": 'p', "cpi": 'i', "llc": 'l', "name": 'n', "class": 'k'}
