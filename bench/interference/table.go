package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// tableCmd prints what a run has left, as Markdown, for the documentation.
type tableCmd struct {
	Of string `arg:"" name:"run" default:"interference" enum:"interference,quick,knobs,again" help:"Whose results (${enum})."`
}

// Run prints tables.
func (c tableCmd) Run(o *options) error {
	text, err := os.ReadFile(filepath.Join(o.Out, c.Of+".json"))
	if err != nil {
		return err
	}
	r := &result{}
	if err := json.Unmarshal(text, r); err != nil {
		return fmt.Errorf("%s: %w", c.Of, err)
	}
	if c.Of == "again" {
		earlier := &result{}
		lab.ReadResult(o.Out, "interference.json", earlier)
		r.pairwise(os.Stdout, earlier)
		return nil
	}
	r.markdown(os.Stdout)
	return nil
}

// pairwise prints each pair, with what an earlier run had.
func (r *result) pairwise(w io.Writer, earlier *result) {
	before := map[cellKey]float64{}
	for _, p := range earlier.Pairs {
		before[cellKey{p.Online, p.Load, p.Offline, p.Protection}] = p.Ratio
	}
	fmt.Fprintf(w, "%d windows of %.0f ms, %d thrown away as noisy (%d because the whole machine stood still).\n\n", r.Windows, 1e3*r.WindowSeconds, r.Thrown, r.Stalled)
	fmt.Fprintln(w, "| pair | under | p99 / alone: then | again | p99 (95 %) | CPU of a request | windows, thrown |\n|---|---|---|---|---|---|---|")
	for _, p := range r.Pairs {
		fmt.Fprintf(w, "| %s %s x %s | %s | %.2f | %.2f | %s (%s - %s) | %.0f us | %d, %d |\n", p.Online, p.Load, p.Offline, p.Protection,
			before[cellKey{p.Online, p.Load, p.Offline, p.Protection}], p.Ratio, us(p.P99), us(p.P99Low), us(p.P99High), p.RequestUS, p.Windows, p.Thrown)
	}
	fmt.Fprintln(w, "\n| alone | p99 | each phase, in order: p99, CPU of a request |\n|---|---|---|")
	for _, ref := range r.References {
		var each []string
		for _, p := range ref.Phases {
			each = append(each, fmt.Sprintf("%s, %.0f us", us(p.P99), p.RequestUS))
		}
		fmt.Fprintf(w, "| %s %s | %s | %s |\n", ref.Online, ref.Load, us(ref.AloneP99), strings.Join(each, "; "))
	}
}

// order is the values of a field in the order in which pairs have them.
func order(pairs []pair, of func(pair) string) (out []string) {
	for _, p := range pairs {
		if v := of(p); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func (r *result) markdown(w io.Writer) {
	prots := order(r.Pairs, func(p pair) string { return p.Protection })
	fmt.Fprintf(w, "%d windows of %.0f ms, %d thrown away as noisy (%d because the whole machine stood still).\n\n", r.Windows, 1e3*r.WindowSeconds, r.Thrown, r.Stalled)
	fmt.Fprintln(w, "| all pairs | p99 / alone (95 %) | worst pair | pairs over 2 | offline kept (95 %) | pairs |\n|---|---|---|---|---|---|")
	for _, p := range prots {
		s, ok := r.Summary[p]
		if !ok {
			continue
		}
		fmt.Fprintf(w, "| %s | %.2f (%.2f - %.2f) | %.1f, %s | %d | %.2f (%.2f - %.2f) | %d |\n", p, s.Ratio, s.RatioLow, s.RatioHigh, s.Worst, s.WorstPair, s.Over2,
			s.Kept, s.KeptLow, s.KeptHigh, s.Pairs)
	}
	for title, by := range map[string]map[string]summary{"without disk writers": r.WithoutDisk, "disk writers alone": r.DiskOnly} {
		fmt.Fprintf(w, "\n| %s | %s |\n|---%s|\n", title, strings.Join(prots, " | "), strings.Repeat("|---", len(prots)))
		fmt.Fprint(w, "| p99 / alone")
		for _, p := range prots {
			fmt.Fprintf(w, " | %.2f", by[p].Ratio)
		}
		fmt.Fprint(w, " |\n| offline kept")
		for _, p := range prots {
			fmt.Fprintf(w, " | %.2f", by[p].Kept)
		}
		fmt.Fprintln(w, " |")
	}
	r.cells(w, "offline work", prots, func(p pair) string { return p.Offline })
	r.cells(w, "service and load", prots, func(p pair) string { return p.Online + " " + p.Load })
	fmt.Fprintln(w, "\n| reference | requests/s | p99 alone | beside an idle-class spinner |\n|---|---|---|---|")
	for _, ref := range r.References {
		fmt.Fprintf(w, "| %s %s | %.0f | %s | %s |\n", ref.Online, ref.Load, ref.Rate, us(ref.AloneP99), us(ref.SpinnerP99))
	}
}

// cells prints "ratio (kept)" by a field and protection, each a geometric mean over the rest.
func (r *result) cells(w io.Writer, title string, prots []string, of func(pair) string) {
	fmt.Fprintf(w, "\n| %s: p99 / alone (offline kept) | %s |\n|---%s|\n", title, strings.Join(prots, " | "), strings.Repeat("|---", len(prots)))
	for _, v := range order(r.Pairs, of) {
		fmt.Fprintf(w, "| %s", v)
		for _, prot := range prots {
			var ratio, kept []float64
			for _, p := range r.Pairs {
				if of(p) == v && p.Protection == prot && !p.TooNoisy && p.Ratio > 0 && p.Kept > 0 {
					ratio, kept = append(ratio, p.Ratio), append(kept, p.Kept)
				}
			}
			if len(ratio) == 0 {
				fmt.Fprint(w, " | -")
				continue
			}
			fmt.Fprintf(w, " | %.2f (%.0f %%)", geomean(ratio), 100*geomean(kept))
		}
		fmt.Fprintln(w, " |")
	}
}
