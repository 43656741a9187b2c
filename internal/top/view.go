package top

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/qos-agent/qos-agent/internal/human"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/server"
)

// view is what the user has chosen.
type view struct {
	sort    rune
	reverse bool
	filter  string
	class   string // "": all
	offset  int    // first row that is shown
	typing  bool   // a filter is being typed
	paused  bool
	help    bool
	colour  bool
}

// Colours of a terminal, by what they stand for.
const (
	bold, dim, red, yellow, green, inverse, plain = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[7m", "\x1b[0m"
)

func (v *view) paint(style, text string) string {
	if !v.colour || text == "" {
		return text
	}
	return style + text + plain
}

// render makes a screen of at most height lines of at most width columns; with height 0 there is no end to either. err is why the state
// is not newer.
func (v *view) render(s *server.State, err error, width, height int, now time.Time) []string {
	var out []string
	if s != nil {
		out = append(out, v.head(s)...)
	}
	if err != nil {
		text := human.Clean(err.Error())
		if s != nil {
			text = fmt.Sprintf("STALE since %s: %s", s.At.Local().Format(time.TimeOnly), text)
		}
		out = append(out, v.paint(bold+red, text))
	}
	if v.help {
		return v.cut(append(out, helpText...), width, height)
	}
	if s == nil {
		return v.cut(out, width, height)
	}
	list := v.rows(s)
	cols, last := v.layout(s, width, height == 0, list)
	var head strings.Builder
	for i, c := range cols {
		name := c.name
		if c.key == v.sort {
			name = map[bool]string{true: "^", false: "*"}[v.reverse] + name
		}
		head.WriteString(pad(name, c.width, c.left, i == last) + sep(i, last))
	}
	out = append(out, v.paint(inverse, pad(strings.TrimRight(head.String(), " "), barWidth(width, height), true, height == 0)))

	space := len(list)
	if height > 0 {
		space = max(height-len(out)-1, 1)
		v.offset = max(0, min(v.offset, len(list)-space))
	}
	shown := list[min(v.offset, len(list)):min(v.offset+space, len(list))]
	for i := range shown {
		var line strings.Builder
		for j, c := range cols {
			text := pad(c.text(&shown[i]), c.width, c.left, j == last)
			if c.key == 's' {
				text = v.paint(levelColour(shown[i].level), text)
			}
			line.WriteString(text + sep(j, last))
		}
		out = append(out, strings.TrimRight(line.String(), " "))
	}
	if len(list) == 0 {
		out = append(out, "no container matches")
	}
	if height > 0 {
		for len(out) < height-1 {
			out = append(out, "")
		}
		out = append(out[:height-1], v.foot(len(list), len(shown)))
	}
	return v.cut(out, width, height)
}

func barWidth(width, height int) int {
	if height == 0 {
		return 0
	}
	return width
}

func sep(i, last int) string {
	if i == last {
		return ""
	}
	return "  "
}

func levelColour(level string) string {
	switch level {
	case judge.Violated.String():
		return bold + red
	case judge.Watch.String():
		return yellow
	case judge.OK.String():
		return green
	}
	return dim
}

// head is the node at a glance.
func (v *view) head(s *server.State) []string {
	n := &s.Node
	first := fmt.Sprintf("qos-agent %s  %s  policy %s", human.Clean(n.Hostname), v.paint(bold, strings.ToUpper(s.Agent.Mode)), human.Clean(cmp.Or(s.Policy.Name, "none")))
	if s.Policy.Window != "" {
		first += ", window " + human.Clean(s.Policy.Window)
	}
	first += "  " + s.At.Local().Format(time.TimeOnly)

	second := fmt.Sprintf("%d CPUs", len(n.CPUs))
	if c := n.Signals.CPU; c != nil {
		second += fmt.Sprintf("  busy %s  steal %s", human.Percent(c.BusyRatio), human.Percent(c.StealRatio))
	}
	if p := n.Signals.Pressure; p != nil {
		second += fmt.Sprintf("  pressure cpu %s mem %s io %s", human.Percent(p.CPUSomeRatio), human.Percent(p.MemorySomeRatio), human.Percent(p.IOSomeRatio))
	}
	classes, violated, heldPods := map[string]int{}, 0, map[string]bool{}
	for i := range s.Pods {
		classes[s.Pods[i].Class]++
	}
	for i := range s.Verdicts {
		if s.Verdicts[i].Level == judge.Violated.String() {
			violated++
		}
	}
	for i := range s.Knobs {
		heldPods[s.Knobs[i].Pod] = true
	}
	hurt := fmt.Sprintf("%d violated", violated)
	if violated > 0 {
		hurt = v.paint(bold+red, hurt)
	}
	third := fmt.Sprintf("pods: %d online (%s), %d offline (%d held), %d of no class  tick p99 %s", classes["online"], hurt, classes["offline"], len(heldPods), classes["unclassified"], human.Seconds(s.Loop.Tick.P99Seconds))
	if s.Loop.Reaction.Count > 0 {
		third += "  reaction p99 " + human.Seconds(s.Loop.Reaction.P99Seconds)
	}
	out := []string{first, second, third}
	for _, w := range warnings(s) {
		out = append(out, v.paint(yellow, "! "+human.Clean(w)))
	}
	return append(out, "")
}

// warnings is what an operator must not overlook.
func warnings(s *server.State) []string {
	var out []string
	if !s.Policy.Reload.OK {
		out = append(out, "a new policy was refused: "+strings.Join(s.Policy.Reload.Errors, "; "))
	}
	if !s.PodSource.Connected {
		out = append(out, "the pod source is not connected: "+s.PodSource.Error)
	}
	if s.PodSource.Unresolved > 0 {
		out = append(out, fmt.Sprintf("%d containers or pods are not watched: their control group is not known", s.PodSource.Unresolved))
	}
	if s.Agent.Scheduling.Class != "realtime" {
		out = append(out, "the loop is "+s.Agent.Scheduling.Class+": "+s.Agent.Scheduling.Detail)
	}
	for _, p := range s.Node.Capabilities {
		if p.Needed && !p.OK {
			out = append(out, p.Name+" is missing: "+p.Detail)
		}
	}
	return out
}

// rows filters and sorts.
func (v *view) rows(s *server.State) []row {
	list := rows(s)
	list = slices.DeleteFunc(list, func(r row) bool {
		return v.class != "" && r.class != v.class || v.filter != "" && !strings.Contains(strings.ToLower(r.name), strings.ToLower(v.filter))
	})
	for _, c := range columns() {
		if c.key != v.sort || c.less == nil {
			continue
		}
		slices.SortStableFunc(list, func(a, b row) int {
			d := c.less(&a, &b)
			if v.reverse {
				d = -d
			}
			return cmp.Or(d, strings.Compare(a.name, b.name))
		})
	}
	return list
}

// layout fits the columns: those for which there is not one figure are left out, then those that are missed least.
func (v *view) layout(s *server.State, width int, endless bool, list []row) (cols []column, last int) {
	cols = slices.DeleteFunc(columns(), func(c column) bool {
		return (c.name == "STALL" || c.name == "CPI" || c.name == "LLC") && !slices.ContainsFunc(list, func(r row) bool { return c.text(&r) != none })
	})
	longest := len("POD") + 1
	for i := range list {
		longest = max(longest, utf8.RuneCountInString(list[i].name))
	}
	fit := func() int {
		total := 0
		for _, c := range cols {
			total += c.width + 2
		}
		return width - total
	}
	cols[0].width = longest
	if !endless {
		cols[0].width = min(longest, max(16, width/3))
		for _, name := range []string{"LLC", "CLASS", "MEMORY", "STALL", "CPI"} {
			if fit() < 12 {
				cols = slices.DeleteFunc(cols, func(c column) bool { return c.name == name })
			}
		}
	}
	return cols, len(cols) - 1
}

func (v *view) foot(all, shown int) string {
	if v.typing {
		return "filter: " + v.filter + "_"
	}
	text := fmt.Sprintf(" %d-%d of %d", min(v.offset+1, all), v.offset+shown, all)
	if v.filter != "" {
		text += "  filter " + strconv.Quote(v.filter)
	}
	if v.class != "" {
		text += "  class " + v.class
	}
	if v.paused {
		text += "  PAUSED"
	}
	return v.paint(dim, text+"   q quit  h help  / filter  s w c m n sort  r reverse  o class")
}

var helpText = []string{
	"", "Keys", "",
	"  q         quit                      h   this help",
	"  up down   scroll, also j k          PgUp PgDn Home End",
	"  s         by state, worst first     w   by wait p99",
	"  c         by CPUs in use            m   by memory",
	"  p         by stall on memory or io  i   by CPI       l   by last-level cache",
	"  n         by name                   k   by class     r   reverse",
	"  /         filter by name            o   class: all, online, offline, unclassified",
	"  space     pause",
	"",
	"STATE is the worst verdict of an online container. WAITp99 is run-queue wait over the last second.",
	"The last column says who ran while an online container waited, or what an offline pod is held at.",
}

// cut brings lines to the width of the screen, colours aside.
func (v *view) cut(lines []string, width, height int) []string {
	if height == 0 {
		return lines
	}
	lines = lines[:min(len(lines), height)]
	for i, l := range lines {
		lines[i] = truncate(l, width)
	}
	return lines
}

// truncate keeps width characters and every escape sequence.
func truncate(s string, width int) string {
	var b strings.Builder
	n, escape := 0, false
	for _, r := range s {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			if n++; n > width {
				continue
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}

// pad brings a text to a width; the last column may be longer.
func pad(s string, width int, left, last bool) string {
	n := utf8.RuneCountInString(s)
	switch {
	case n > width && !last && width > 1:
		r := []rune(s)
		return string(r[:width-1]) + "~"
	case n >= width:
		return s
	case left:
		return s + strings.Repeat(" ", width-n)
	}
	return strings.Repeat(" ", width-n) + s
}

// trimmed is a number with two decimals.
func trimmed(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
