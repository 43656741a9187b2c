package report

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

//go:embed assets/uPlot.iife.min.js
var plotJS string

//go:embed assets/uPlot.min.css
var plotCSS string

//go:embed assets/LICENSE
var plotLicence string

//go:embed page.html
var pageText string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// view is what the page shows.
type view struct {
	Title, Host, Kernel, Agent, From, To, Duration string
	Recorded                                       string // policies
	Other                                          string
	Ticks, Events, Changes                         int
	Verdict                                        string // the summary in a sentence
	Online                                         []onlineRow
	Offline                                        []offlineRow
	Victims, Culprits                              []string
	Matrix                                         [][]cell
	MatrixLeft                                     string
	Notes                                          []noteRow
	NotesLeft                                      int
	Diffs                                          []diffRow
	DiffsAll, DiffsLeft                            uint64
	Changed                                        []Change
	Figures                                        []figureRow
	Fit                                            string
	CSS                                            template.CSS
	JS                                             template.JS
	Data                                           template.JS
	Licence                                        string
}

type onlineRow struct {
	Pod, Violated, Percent, Worst, Promise, Unknown, Reasons, Culprit, Others string
	Bad                                                                       bool
}

type offlineRow struct {
	Pod, CPUs, Held string
	Cuts            int
}

type cell struct {
	Text  string
	Shade int // 0 to 10
}

type noteRow struct{ T, Rule, Text, Kind string }

type diffRow struct{ T, Text string }

type figureRow struct{ Name, Recorded, New, Difference string }

// Write writes the page.
func (r *Report) Write(out io.Writer) error {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return err
	}
	v, err := r.view()
	if err != nil {
		return err
	}
	return t.Execute(out, v)
}

func (r *Report) view() (*view, error) {
	data, err := r.lines()
	if err != nil {
		return nil, err
	}
	v := &view{
		Title: "qos-agent report", From: r.first.Format(time.RFC3339), To: r.last.Format(time.RFC3339),
		Duration: round(time.Duration(r.seconds * 1e9)), Ticks: r.ticks, Events: r.events, Changes: r.changes,
		NotesLeft: r.left, CSS: template.CSS(plotCSS + pageCSS), JS: template.JS(plotJS + "\n" + pageJS), Data: template.JS(data), Licence: plotLicence,
	}
	if r.info != nil {
		v.Host, v.Kernel, v.Agent = r.info.Hostname, r.info.Kernel, r.info.Agent
		v.Title += " of " + r.info.Hostname
	}
	var names []string
	for _, id := range r.recOrd {
		names = append(names, r.recs[id].Name()+" "+id)
	}
	v.Recorded = strings.Join(names, ", ")
	if r.other != nil {
		v.Other = r.other.Name() + " " + r.other.ID()
		if len(r.recOrd) > 0 {
			v.Changed = diff(r.recs[r.recOrd[len(r.recOrd)-1]], r.other)
		}
	}
	r.rows(v)
	r.fillMatrix(v)
	for _, n := range r.notes {
		kind := ""
		switch {
		case n.Cut:
			kind = "cut"
		case n.Back:
			kind = "back"
		}
		v.Notes = append(v.Notes, noteRow{clock(n.T), n.Rule, n.Text, kind})
	}
	for _, d := range r.diffs {
		v.Diffs = append(v.Diffs, diffRow{clock(d.At.Sub(r.first).Seconds()), d.String()})
	}
	v.DiffsAll, v.DiffsLeft = r.undiff, r.undiff-uint64(len(r.diffs))
	r.fillFigures(v)
	return v, nil
}

func (r *Report) rows(v *view) {
	bad, elsewhere, total := 0, 0, 0
	for _, p := range r.online() {
		row := onlineRow{Pod: p.key, Violated: fmt.Sprintf("%.1f s", p.violated), Worst: round(p.worst), Promise: round(p.promise), Bad: p.violated > 0}
		var others []string
		for axis, s := range p.other {
			if s > 0 {
				others = append(others, fmt.Sprintf("%s %.1f s", judge.Axis(axis), s))
			}
		}
		row.Others = strings.Join(others, ", ")
		if known := p.judged - p.unknown; known > 0 {
			row.Percent = fmt.Sprintf("%.1f %%", 100*p.violated/known)
		}
		if p.unknown > 0 {
			row.Unknown = fmt.Sprintf("%.1f s", p.unknown)
		}
		reasons := slices.Collect(maps.Keys(p.reasons))
		slices.SortFunc(reasons, func(a, b string) int {
			if p.reasons[a] != p.reasons[b] {
				return int(1000 * (p.reasons[b] - p.reasons[a]))
			}
			return strings.Compare(a, b)
		})
		for i, name := range reasons {
			reasons[i] = fmt.Sprintf("%s %.1f s", name, p.reasons[name])
		}
		row.Reasons = strings.Join(reasons, ", ")
		most, all := 0.0, 0.0
		for k, ns := range r.matrix {
			if k[0] == p.key {
				all += ns
				if k[1][0] != '(' && (ns > most || ns == most && k[1] < row.Culprit) {
					most, row.Culprit = ns, k[1]
				}
			}
		}
		if row.Culprit != "" {
			row.Culprit = fmt.Sprintf("%s (%.0f %%)", row.Culprit, 100*most/all)
		}
		total++
		if p.violated > 0 {
			bad++
		}
		if p.violated < p.beyond() {
			elsewhere++
		}
		v.Online = append(v.Online, row)
	}
	for _, p := range r.offline() {
		row := offlineRow{Pod: p.key, Cuts: p.cuts}
		if p.alive > 0 {
			row.CPUs = fmt.Sprintf("%.2f", p.usedSeconds/p.alive)
			row.Held = fmt.Sprintf("%.1f %%", 100*p.heldSeconds/p.alive)
		}
		v.Offline = append(v.Offline, row)
	}
	switch {
	case total == 0:
		v.Verdict = "No online pod was seen."
	case bad == 0 && elsewhere == 0:
		v.Verdict = fmt.Sprintf("All %d online pods stayed inside their objectives.", total)
	case bad == 0:
		v.Verdict = fmt.Sprintf("All %d online pods stayed inside their objective of run-queue wait.", total)
	default:
		worst := slices.MaxFunc(r.online(), func(a, b *pod) int { return cmp.Compare(a.violated, b.violated) })
		v.Verdict = fmt.Sprintf("%d of %d online pods were beyond their objective of run-queue wait at some time; %s the longest: %.1f s, %.1f %% of what was judged.",
			bad, total, worst.key, worst.violated, 100*worst.violated/max(worst.judged-worst.unknown, 1e-9))
	}
	if elsewhere > 0 {
		v.Verdict += fmt.Sprintf(" %d were beyond one of cache, bandwidth, memory or IO.", elsewhere)
	}
	cuts := 0
	for _, p := range r.pods {
		cuts += p.cuts
	}
	v.Verdict += fmt.Sprintf(" Offline pods were cut %d times.", cuts)
}

// fillMatrix makes the matrix of who hurts whom from the largest on each side.
func (r *Report) fillMatrix(v *view) {
	const rows, columns = 20, 12
	byVictim, byCulprit := make(map[string]float64), make(map[string]float64)
	for k, ns := range r.matrix {
		byVictim[k[0]] += ns
		byCulprit[k[1]] += ns
	}
	largest := func(of map[string]float64, n int) []string {
		keys := slices.Collect(maps.Keys(of))
		slices.SortFunc(keys, func(a, b string) int {
			switch pa, pb := a[0] == '(', b[0] == '('; {
			case pa != pb && pb:
				return -1
			case pa != pb:
				return 1
			case of[a] > of[b]:
				return -1
			case of[a] < of[b]:
				return 1
			}
			return strings.Compare(a, b)
		})
		return keys[:min(n, len(keys))]
	}
	v.Victims, v.Culprits = largest(byVictim, rows), largest(byCulprit, columns)
	if n, m := len(byVictim)-len(v.Victims), len(byCulprit)-len(v.Culprits); n > 0 || m > 0 {
		v.MatrixLeft = fmt.Sprintf("The largest on each side; %d victims and %d causes are left out.", n, m)
	}
	for _, victim := range v.Victims {
		var row []cell
		for _, c := range v.Culprits {
			ns := r.matrix[[2]string{victim, c}]
			share := ns / max(byVictim[victim], 1)
			x := cell{}
			if c[0] != '(' { // nobody else's doing is nothing to look at
				x.Shade = int(share*10 + 0.5)
			}
			if ns > 0 {
				x.Text = fmt.Sprintf("%.0f %%", share*100)
				if share < 0.01 {
					x.Text = "<1 %"
				}
			}
			row = append(row, x)
		}
		row = append(row, cell{Text: round(time.Duration(byVictim[victim]))})
		v.Matrix = append(v.Matrix, row)
	}
}

func (r *Report) fillFigures(v *view) {
	if r.figures == nil || len(r.figures.Policies) == 0 {
		return
	}
	was, is := &r.figures.Recorded.Figures, &r.figures.Policies[0]
	row := func(name, format string, a, b, d whatif.Interval) {
		v.Figures = append(v.Figures, figureRow{
			name, fmt.Sprintf(format, a.Point),
			fmt.Sprintf(format+" ["+format+", "+format+"]", b.Point, b.Low, b.High),
			fmt.Sprintf("%+.2f [%+.2f, %+.2f]", d.Point, d.Low, d.High),
		})
	}
	row("online time beyond the objective, %", "%.2f", was.Violation, is.Violation, is.Difference.Violation)
	row("offline work, CPUs", "%.2f", was.Work, is.Work, is.Difference.Work)
	row("knobs turned an hour", "%.0f", was.Churn, is.Churn, is.Difference.Churn)
	row("cuts of innocent pods an hour", "%.1f", was.False, is.False, is.Difference.False)
	row("online time beyond the objective with nobody held for it, %", "%.2f", was.Missed, is.Missed, is.Difference.Missed)
	v.Fit = fmt.Sprintf("This is a response model's estimate, not a measurement; ranges hold nine times in ten, as far as the model goes. "+
		"%.0f %% of the time rests on it. It learned from %d windows of %d pairs; for %.0f %% of them the recording shows how the offline pod's effect "+
		"changes with what it gets, for the rest priors stand in.", is.Diverged, r.fit.Windows, r.fit.Pairs(), r.fit.Varied())
	if n := len(r.figures.Assumed); n > 0 {
		v.Fit += fmt.Sprintf(" Offline work under a looser policy is an upper bound: %s never ran without a limit for long, and is taken to want all of the node.", few(r.figures.Assumed))
	}
	if r.held != nil && r.held.Blocks > 0 {
		v.Fit += fmt.Sprintf(" Fitted on half of the recording, it is off by %.0f %% on the other half (waits behind offline pods, blocks of 10 s; bias %+.0f %%).",
			100*r.held.Relative, 100*r.held.Bias)
	}
}

// few names a few of many.
func few(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// clock is a time since the start, for people.
func clock(s float64) string {
	d := time.Duration(s * 1e9)
	return fmt.Sprintf("%d:%02d:%06.3f", int(d.Hours()), int(d.Minutes())%60, d.Seconds()-60*float64(int(d.Minutes())))
}

// round gives a duration with three digits or so.
func round(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}
