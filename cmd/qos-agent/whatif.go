package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/report"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

// asked is what --what-if says of one trace.
type asked struct {
	Trace   string         `json:"trace"`
	Result  *whatif.Result `json:"result"`
	HoldOut whatif.Error   `json:"holdOut"`
	Windows int            `json:"windows"`
	Pairs   int            `json:"pairs"`
	Varied  float64        `json:"variedPercent"`
	// Axes is what the answer knows of each resource, over all traces; Memory is a model of the CPI of online pods.
	Axes   []whatif.Axis   `json:"axes"`
	Memory []whatif.Memory `json:"memory,omitempty"`

	model *whatif.Model
}

// ask fits the response model to all traces and lets the other policy act on each.
func (c *replayCmd) ask(ctx context.Context, series []replay.Series, other *policy.Compiled) ([]asked, error) {
	var recs []whatif.Recording
	for _, s := range series {
		from, to, err := c.span(s)
		if err != nil {
			return nil, err
		}
		recs = append(recs, whatif.Recorded(ctx, s, from, to))
	}
	m, err := whatif.Fit(recs, nil)
	if err != nil {
		return nil, err
	}
	learn, test := whatif.Halves()
	half, err := whatif.Fit(recs, learn)
	if err != nil {
		return nil, err
	}
	held, err := half.Validate(recs, test)
	if err != nil {
		return nil, err
	}
	axes, err := whatif.Axes(recs)
	if err != nil {
		return nil, err
	}
	memory, err := whatif.FitMemory(recs)
	if err != nil {
		return nil, err
	}
	var out []asked
	for _, rec := range recs {
		res, err := whatif.Run(rec, m, []*policy.Compiled{other}, whatif.Options{})
		if err != nil {
			return nil, err
		}
		out = append(out, asked{Trace: rec.Name(), Result: res, HoldOut: held, Windows: m.Windows, Pairs: m.Pairs(), Varied: m.Varied(), Axes: axes, Memory: memory, model: m})
	}
	return out, nil
}

func printAsked(w io.Writer, a *asked) {
	was, is := &a.Result.Recorded.Figures, &a.Result.Policies[0]
	fmt.Fprintf(w, "%s: what if policy %s had been in force (a response model's estimate; ranges hold nine times in ten, as far as the model goes)\n", a.Trace, is.Policy)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "  \trecorded\testimated\tdifference\t")
	for _, r := range []struct {
		name    string
		a, b, d whatif.Interval
	}{
		{"online beyond objective, % of time", was.Violation, is.Violation, is.Difference.Violation},
		{"offline work, CPUs", was.Work, is.Work, is.Difference.Work},
		{"knobs turned an hour", was.Churn, is.Churn, is.Difference.Churn},
		{"cuts of innocent pods an hour", was.False, is.False, is.Difference.False},
		{"beyond objective with nobody held, %", was.Missed, is.Missed, is.Difference.Missed},
	} {
		fmt.Fprintf(tw, "  %s\t%.2f\t%.2f [%.2f, %.2f]\t%+.2f [%+.2f, %+.2f]\t\n", r.name, r.a.Point, r.b.Point, r.b.Low, r.b.High, r.d.Point, r.d.Low, r.d.High)
	}
	_ = tw.Flush() // to stdout: there is nobody left to tell
	fmt.Fprintf(w, "  rests on the model for %.0f %% of the time; fitted from %d windows of %d pairs, of which %.0f %% show how the effect changes with the grant\n",
		is.Diverged, a.Windows, a.Pairs, a.Varied)
	if n := len(a.Result.Assumed); n > 0 {
		fmt.Fprintf(w, "  offline work under a looser policy is an upper bound: %d pods never ran without a limit for long (%s), and are taken to want all of the node\n",
			n, strings.Join(a.Result.Assumed[:min(n, 3)], ", "))
	}
	if a.HoldOut.Blocks > 0 && !math.IsNaN(a.HoldOut.Relative) {
		fmt.Fprintf(w, "  fitted on half of the time, it is off by %.0f %% on the other half (waits behind offline pods, %d blocks of 10 s; bias %+.0f %%)\n",
			100*a.HoldOut.Relative, a.HoldOut.Blocks, 100*a.HoldOut.Bias)
	}
	printAxes(w, a)
}

// printAxes says what the estimate covers, and what is known of the rest.
func printAxes(w io.Writer, a *asked) {
	for _, x := range a.Axes {
		state := "not in this estimate"
		if x.Followed {
			state = "in this estimate"
		}
		fmt.Fprintf(w, "  %s: %s (%d cuts recorded): %s\n", x.Axis, state, x.Cuts, x.Why)
	}
	for i := range a.Memory {
		m := &a.Memory[i]
		fmt.Fprintf(w, "  CPI of %s, by a model of misses and bandwidth: recorded %.2f; %.2f with half of offline pods' traffic and cache, %.2f with none\n", m.Pod, m.CPI, m.Half, m.Without)
		how := "as the recording shows"
		if m.Assumed {
			how = "assumed: what the pod holds was not measured or hardly varied"
		}
		fmt.Fprintf(w, "    from %d windows of 1 s: core %.2f, %.0f cycles a miss, bus full at %.0f MB/s, misses fall with cache to the power of %.2f (%s)\n", m.Windows, m.Core, m.Miss, m.Bus, m.Exponent, how)
		if m.Blocks > 0 {
			fmt.Fprintf(w, "    fitted on half of the time, it is off by %.1f %% on the other half (%d blocks of 10 s); the mean CPI is off by %.1f %%\n", 100*m.Relative, m.Blocks, 100*m.Naive)
		}
	}
}

// writeReport writes the page about one trace.
func (c *replayCmd) writeReport(ctx context.Context, s replay.Series, other *policy.Compiled, a *asked) (err error) {
	from, to, err := c.span(s)
	if err != nil {
		return err
	}
	rep, err := report.Build(ctx, s, from, to, other)
	if err != nil {
		return err
	}
	if a != nil {
		rep.SetWhatIf(a.Result, a.model, &a.HoldOut)
	}
	f, err := os.Create(c.Report)
	if err != nil {
		return err
	}
	if err := rep.Write(f); err != nil {
		_ = f.Close() // the error that counts is the first
		return fmt.Errorf("%s: %w", c.Report, err)
	}
	return f.Close()
}

// more does what goes beyond the exact replay.
func (c *replayCmd) more(e env, series []replay.Series, other *policy.Compiled) error {
	var answers []asked
	if c.WhatIf {
		var err error
		if answers, err = c.ask(e.ctx, series, other); err != nil {
			return err
		}
		if c.JSON {
			enc := json.NewEncoder(e.stdout)
			enc.SetIndent("", "  ")
			if err := enc.Encode(answers); err != nil {
				return err
			}
		} else {
			for i := range answers {
				printAsked(e.stdout, &answers[i])
			}
		}
	}
	if c.Report == "" {
		return nil
	}
	if len(series) != 1 {
		return fmt.Errorf("--report: %d traces were given: want one, a page is about one node", len(series))
	}
	var a *asked
	if len(answers) == 1 {
		a = &answers[0]
	}
	if err := c.writeReport(e.ctx, series[0], other, a); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "report: %s\n", c.Report)
	return nil
}
