package sim

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/score"
)

// SVG draws the run: what online pods waited against what they were promised, what offline pods wanted, might use and used, and when
// knobs turned. The picture stands alone and follows the reader's light or dark scheme.
func (r *Result) SVG() []byte {
	d := &drawing{res: r, total: r.Scenario.Duration.D()}
	d.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", width, height, html.EscapeString(r.Scenario.Name+": "+r.Scenario.About))
	d.b.WriteString(style)
	d.printf(`<rect class="bg" width="%d" height="%d"/><text class="title" x="%d" y="18">%s</text>`+"\n", width, height, left, html.EscapeString(r.Scenario.Name))
	d.waits()
	d.grants()
	d.turns()
	d.axis()
	d.b.WriteString("</svg>\n")
	return []byte(d.b.String())
}

const (
	width, height = 720, 330
	left, right   = 64, 706
	waitTop       = 34
	waitBottom    = 150
	grantTop      = 176
	grantBottom   = 270
	turnTop       = 280
	turnBottom    = 298
	points        = 300 // at most, of a line
)

const style = `<style>
text{font:11px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:13px}.bg{fill:#fff}.grid{stroke:#d0d7de;stroke-width:.5}
.line{fill:none;stroke-width:1.5;stroke-linejoin:round}.promise{stroke:#cf222e;stroke-dasharray:5 4;fill:none}.thin{stroke-width:1;opacity:.55;fill:none}
.c0{stroke:#0969da}.c1{stroke:#8250df}.c2{stroke:#1a7f37}.c3{stroke:#9a6700}.k0{fill:#0969da}.k1{fill:#8250df}.k2{fill:#1a7f37}.k3{fill:#9a6700}
.cut{stroke:#cf222e;stroke-width:1.5}.back{stroke:#1a7f37;stroke-width:1.5}.fault{fill:#bf8700;opacity:.15}.kcut{fill:#cf222e}.kback{fill:#1a7f37}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bg{fill:#0d1117}.grid{stroke:#30363d}.promise,.cut{stroke:#ff7b72}.kcut{fill:#ff7b72}
.c0{stroke:#58a6ff}.c1{stroke:#bc8cff}.c2,.back{stroke:#3fb950}.c3{stroke:#d29922}.k0{fill:#58a6ff}.k1{fill:#bc8cff}.k2,.kback{fill:#3fb950}.k3{fill:#d29922}}
</style>
`

type drawing struct {
	res   *Result
	total time.Duration
	b     strings.Builder
}

func (d *drawing) printf(format string, args ...any) { fmt.Fprintf(&d.b, format, args...) }

func (d *drawing) x(t time.Duration) float64 {
	return left + (right-left)*float64(t)/float64(d.total)
}

// waits is the upper panel, logarithmic.
func (d *drawing) waits() {
	low, high := 50.0, 2000.0
	for _, l := range d.res.Online {
		for i := range l.P99 {
			high = max(high, l.P99[i]*1.2, l.Objective[i]*1.5)
		}
	}
	y := func(us float64) float64 {
		us = min(max(us, low), high)
		return waitBottom - (waitBottom-waitTop)*math.Log(us/low)/math.Log(high/low)
	}
	for us := 100.0; us <= high; us *= 10 {
		d.grid(y(us), time.Duration(us*1e3).String())
	}
	for _, f := range d.res.Scenario.Faults {
		to := d.total
		if f.For > 0 {
			to = min(to, f.At.D()+f.For.D())
		}
		d.printf(`<rect class="fault" x="%.1f" y="%d" width="%.1f" height="%d"/><text x="%.1f" y="%d">%s</text>`+"\n",
			d.x(f.At.D()), waitTop, d.x(to)-d.x(f.At.D()), turnBottom-waitTop, d.x(f.At.D())+3, waitBottom-4, f.Kind)
	}
	if len(d.res.Online) > 0 {
		d.line("promise", d.res.Online[0].Objective, y)
	}
	for i, l := range d.res.Online {
		d.line(fmt.Sprintf("line c%d", i%4), l.P99, y)
	}
	x := 250.0
	x = d.label(x, "kcut", "objective")
	for i, l := range d.res.Online {
		x = d.label(x, fmt.Sprintf("k%d", i%4), "p99 wait of "+l.Pod)
	}
}

// grants is the middle panel.
func (d *drawing) grants() {
	high := float64(d.res.Scenario.Node.CPUs)
	y := func(cpus float64) float64 { return grantBottom - (grantBottom-grantTop)*min(cpus, high)/high }
	d.grid(y(0), "0")
	d.grid(y(high/2), fmt.Sprintf("%g CPUs", high/2))
	d.grid(y(high), fmt.Sprintf("%g CPUs", high))
	lines := d.res.Offline
	if len(lines) > 4 {
		lines = []Line{sum(lines)}
	}
	x := 64.0
	for i, l := range lines {
		d.line(fmt.Sprintf("thin c%d", i%4), l.Wanted, y)
		d.line(fmt.Sprintf("line c%d", i%4), l.Used, y)
		x = d.label2(x, fmt.Sprintf("k%d", i%4), l.Pod)
	}
	d.label2(x, "grid", "(thick: CPUs used, thin: wanted)")
}

// turns is the lane of decisions.
func (d *drawing) turns() {
	var cut, back strings.Builder
	lastCut, lastBack := -10.0, -10.0
	for i := range d.res.Notes {
		n := &d.res.Notes[i]
		x := d.x(n.T)
		switch {
		case score.IsCut(&n.Note) && x-lastCut >= 1:
			fmt.Fprintf(&cut, "M%.0f %dv-8", x, turnBottom)
			lastCut = x
		case n.From != n.To && (n.Rule == control.RuleRegrow || n.Rule == control.RuleTakeBack || n.Rule == control.RuleRelease) && x-lastBack >= 1:
			fmt.Fprintf(&back, "M%.0f %dv8", x, turnTop)
			lastBack = x
		}
	}
	d.printf(`<path class="cut" d="%s"/><path class="back" d="%s"/>`+"\n", cut.String(), back.String())
	d.printf(`<text class="kback" x="4" y="%d">given back</text><text class="kcut" x="4" y="%d">cut</text>`+"\n", turnTop+7, turnBottom+1)
}

// axis is the time.
func (d *drawing) axis() {
	for i := range 7 {
		t := d.total * time.Duration(i) / 6
		anchor := "middle"
		if i == 6 {
			anchor = "end"
		}
		d.printf(`<text x="%.0f" y="318" text-anchor="%s">%s</text>`, d.x(t), anchor, t.Round(time.Second))
	}
	d.b.WriteByte('\n')
}

func (d *drawing) grid(y float64, text string) {
	d.printf(`<path class="grid" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y, right, left-5, y+4, text)
}

func (d *drawing) label(x float64, class, text string) float64 { return d.labelAt(x, 18, class, text) }

func (d *drawing) label2(x float64, class, text string) float64 {
	return d.labelAt(x, grantTop-8, class, text)
}

func (d *drawing) labelAt(x float64, y int, class, text string) float64 {
	d.printf(`<text class="%s" x="%.0f" y="%d">%s</text>`+"\n", class, x, y, html.EscapeString(text))
	return x + 6.3*float64(len(text)) + 12
}

// line draws values; of those that share a point the largest counts. Of level stretches only the ends are drawn.
func (d *drawing) line(class string, values []float64, y func(float64) float64) {
	var path strings.Builder
	each := max(1, (len(values)+points-1)/points)
	var at []float64 // NaN: nothing
	for from := 0; from < len(values); from += each {
		v := values[from]
		for _, o := range values[from:min(from+each, len(values))] {
			v = max(v, o)
		}
		if v < 0 {
			at = append(at, math.NaN())
		} else {
			at = append(at, math.Round(y(v)*10)/10)
		}
	}
	for i, v := range at {
		x := d.x(time.Duration(i*each) * d.res.Every)
		switch before, after := i > 0 && !math.IsNaN(at[i-1]), i+1 < len(at) && !math.IsNaN(at[i+1]); {
		case math.IsNaN(v):
		case !before:
			fmt.Fprintf(&path, "M%.1f %.1f", x, v)
		case at[i-1] == v && after && at[i+1] == v:
		default:
			fmt.Fprintf(&path, "L%.1f %.1f", x, v)
		}
	}
	d.printf(`<path class="%s" d="%s"/>`+"\n", class, path.String())
}

// sum adds the lines of pods up, where there are too many to tell apart.
func sum(lines []Line) Line {
	out := Line{Pod: fmt.Sprintf("all %d batch pods", len(lines))}
	for i := range lines[0].Used {
		used, wanted := 0.0, 0.0
		for _, l := range lines {
			used += max(0, l.Used[i])
			wanted += max(0, l.Wanted[i])
		}
		out.Used, out.Wanted = append(out.Used, used), append(out.Wanted, wanted)
	}
	return out
}
