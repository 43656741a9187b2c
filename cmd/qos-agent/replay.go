package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
)

type replayCmd struct {
	Traces []string `arg:"" name:"trace" help:"Recordings, or directories of them. Files of one run of a daemon are one trace."`
	Verify bool     `help:"See whether every recorded decision comes out byte by byte; exit code 1 if not."`
	Policy string   `placeholder:"PATH" help:"Decide by this policy (file or directory) instead of the recorded one, and list the decisions that differ."`
	From   string   `placeholder:"TIME" help:"Leave out what is before: RFC 3339, \"2006-01-02 15:04:05\" or \"15:04:05\" in the recording's zone, or +1h30m from its start."`
	To     string   `placeholder:"TIME" help:"Leave out what is after."`
	Limit  int      `default:"50" help:"How many differences to list for each trace; 0: all."`
	Jobs   int      `default:"0" help:"How many traces to replay at once; 0: one for each CPU."`
	WhatIf bool     `help:"Also estimate, by a response model, what would have come of --policy: violation, work, churn, wrong and missed cuts, with ranges."`
	Report string   `placeholder:"FILE" help:"Write a page about the trace, with the differences under --policy and the answer to --what-if, if they were given."`
	JSON   bool     `name:"json" help:"Print the results as JSON."`
}

// Validate is called by kong.
func (c *replayCmd) Validate() error {
	if c.Verify && c.Policy != "" {
		return errors.New("--verify --policy: another policy decides otherwise, there is nothing to verify")
	}
	if c.WhatIf && c.Policy == "" {
		return errors.New("--what-if: what if what? Give --policy")
	}
	if c.Limit < 0 || c.Jobs < 0 {
		return errors.New("--limit, --jobs: want no negative number")
	}
	return nil
}

// played is what came of one trace.
type played struct {
	result *replay.Result
	diffs  []*replay.Difference
	err    error
}

func (c *replayCmd) Run(e env) error {
	files, err := trace.Files(c.Traces...)
	if err != nil {
		return err
	}
	series, err := replay.Group(files)
	if err != nil {
		return err
	}
	var other *policy.Compiled
	if c.Policy != "" {
		if other, err = loadPolicy(c.Policy); err != nil {
			return err
		}
	}
	undo := replay.Spare()
	out := c.all(e, series, other)
	undo()
	if c.JSON && !c.WhatIf {
		if err := c.printJSON(e.stdout, out); err != nil {
			return err
		}
	} else if !c.JSON {
		for i := range out {
			c.print(e.stdout, &out[i], other)
		}
	}
	var errs []error
	failed := false
	for i := range out {
		if out[i].err != nil {
			errs = append(errs, out[i].err)
		}
		failed = failed || c.Verify && out[i].result != nil && out[i].result.Differences > 0
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if failed {
		return silentError(exitFailure)
	}
	return c.more(e, series, other)
}

// loadPolicy reads a policy as the daemon would.
func loadPolicy(path string) (*policy.Compiled, error) {
	load := policy.LoadFile
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		load = policy.Load
	}
	p, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return policy.Compile(p)
}

// all replays the traces, several at once, with a bar if somebody is watching.
func (c *replayCmd) all(e env, series []replay.Series, other *policy.Compiled) []played {
	out := make([]played, len(series))
	bar := newBar(e.stderr, len(series))
	jobs := c.Jobs
	if jobs == 0 {
		jobs = runtime.NumCPU()
	}
	next := atomic.Int64{}
	var wg sync.WaitGroup
	for range min(jobs, len(series)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= len(series) {
					return
				}
				out[i] = c.one(e.ctx, series[i], other, func(done, total int64) { bar.set(i, done, total) })
			}
		})
	}
	wg.Wait()
	bar.end()
	return out
}

func (c *replayCmd) one(ctx context.Context, s replay.Series, other *policy.Compiled, progress func(done, total int64)) (p played) {
	o := replay.Options{Policy: other, Verify: c.Verify, Progress: progress}
	o.Differs = func(d *replay.Difference) {
		if c.Limit > 0 && len(p.diffs) >= c.Limit {
			return
		}
		p.diffs = append(p.diffs, d)
	}
	if o.From, o.To, p.err = c.span(s); p.err != nil {
		return p
	}
	p.result, p.err = replay.Run(ctx, s, o)
	return p
}

func (c *replayCmd) span(s replay.Series) (from, to time.Time, err error) {
	if c.From == "" && c.To == "" {
		return from, to, nil
	}
	start, err := startOf(s.Files[0])
	if err != nil {
		return from, to, err
	}
	if from, err = parseTime("--from", c.From, start); err != nil {
		return from, to, err
	}
	to, err = parseTime("--to", c.To, start)
	return from, to, err
}

// startOf is the time of a file's first step, in the recording's zone.
func startOf(file string) (time.Time, error) {
	r, err := trace.Open(file)
	if err != nil {
		return time.Time{}, err
	}
	defer r.Close()
	s, err := r.Next()
	if err == io.EOF {
		return r.Info().Started, nil
	} else if err != nil {
		return time.Time{}, err
	}
	return s.Snapshot.Wall, nil
}

// parseTime reads a time of a recording that begins at start; "" is the zero time.
func parseTime(flag, text string, start time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if rest, ok := strings.CutPrefix(text, "+"); ok {
		d, err := time.ParseDuration(rest)
		if err == nil {
			return start.Add(d), nil
		}
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, text, start.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.Parse(layout, text); err == nil {
			day := time.Date(start.Year(), start.Month(), start.Day(), t.Hour(), t.Minute(), t.Second(), 0, start.Location())
			if day.Before(start.Truncate(time.Minute)) {
				day = day.AddDate(0, 0, 1)
			}
			return day, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s %q: want a time such as 2006-01-02T15:04:05+01:00, \"2006-01-02 15:04\", 15:04 or +1h30m", flag, text)
}

func (c *replayCmd) printJSON(w io.Writer, out []played) error {
	type doc struct {
		*replay.Result
		List  []*replay.Difference `json:"list,omitempty"`
		Error string               `json:"error,omitempty"`
	}
	docs := make([]doc, len(out))
	for i := range out {
		docs[i] = doc{Result: out[i].result, List: out[i].diffs}
		if out[i].err != nil {
			docs[i].Error = out[i].err.Error()
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(docs)
}

func (c *replayCmd) print(w io.Writer, p *played, other *policy.Compiled) {
	r := p.result
	if r == nil {
		return
	}
	fmt.Fprintf(w, "%s: %s, run %s, %d files, %s to %s\n", r.Trace, r.Host, r.Run, r.Files, r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339))
	speed := 0.0
	if r.Took > 0 {
		speed = float64(r.Recorded) / float64(r.Took)
	}
	fmt.Fprintf(w, "  %d ticks and %d events, %v recorded, replayed in %v: %.0f times real time\n",
		r.Ticks, r.Events, r.Recorded.Round(time.Millisecond), r.Took.Round(time.Millisecond), speed)
	for _, text := range r.Warnings {
		fmt.Fprintf(w, "  note: %s\n", text)
	}
	if r.Dropped > 0 {
		fmt.Fprintf(w, "  note: %d steps are missing, because the recorder could not keep up\n", r.Dropped)
	}
	switch {
	case c.Verify && r.Differences == 0 && r.Compared > 0:
		fmt.Fprintf(w, "  verified: %d decisions and %d checkpoints are byte for byte what was recorded", r.Compared, r.Checkpoints)
		if r.Inexact > 0 {
			fmt.Fprintf(w, "; %d decisions after holes could not be compared", r.Inexact)
		}
		fmt.Fprintln(w)
	case c.Verify && r.Differences == 0:
		fmt.Fprintln(w, "  nothing could be compared")
	case c.Verify:
		fmt.Fprintf(w, "  NOT verified: after %d decisions that are the same, one differs (- recorded, + replayed):\n", r.Same)
	case other != nil:
		fmt.Fprintf(w, "  policy %s %s instead of %s: %d differences (- recorded, + replayed)\n", other.Name(), other.ID(), strings.Join(r.Policies, ", "), r.Differences)
	}
	for _, d := range p.diffs {
		fmt.Fprint(w, indent(d.String()))
	}
	if n := r.Differences - uint64(len(p.diffs)); n > 0 {
		fmt.Fprintf(w, "  and %d more (--limit 0 lists all)\n", n)
	}
	printRules(w, r)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n    ") + "\n"
}

func printRules(w io.Writer, r *replay.Result) {
	if len(r.Rules) == 0 {
		return
	}
	keys := make([]string, 0, len(r.Rules))
	for k := range r.Rules {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "  what was decided\trecorded\treplayed\t")
	for _, k := range keys {
		fmt.Fprintf(tw, "  %s\t%d\t%d\t\n", k, r.Rules[k].Recorded, r.Rules[k].Replayed)
	}
	_ = tw.Flush() // to stdout: there is nobody left to tell
}

// bar shows how far work has come, if it is shown on a terminal.
type bar struct {
	w    io.Writer
	mu   sync.Mutex
	done []int64
	all  []int64
	last time.Time
	from time.Time
}

func newBar(w io.Writer, n int) *bar {
	b := &bar{from: time.Now(), done: make([]int64, n), all: make([]int64, n)}
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			b.w = w
		}
	}
	return b
}

func (b *bar) set(i int, done, total int64) {
	if b.w == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done[i], b.all[i] = done, total
	if time.Since(b.last) < 100*time.Millisecond {
		return
	}
	b.last = time.Now()
	var sum, all int64
	for k := range b.done {
		sum += b.done[k]
		all += b.all[k]
	}
	const width = 40
	part := float64(sum) / float64(max(all, 1))
	n := int(part * width)
	left := ""
	if spent := time.Since(b.from); part > 0.02 {
		left = fmt.Sprintf(", %v left", time.Duration(float64(spent)*(1-part)/part).Round(time.Second))
	}
	fmt.Fprintf(b.w, "\r[%s%s] %3.0f %%%s   ", strings.Repeat("#", n), strings.Repeat(".", width-n), part*100, left)
}

func (b *bar) end() {
	if b.w != nil && !b.last.IsZero() {
		fmt.Fprintf(b.w, "\r%70s\r", "")
	}
}
