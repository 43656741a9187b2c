package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/tune"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

type tuneCmd struct {
	Search tuneSearchCmd `cmd:"" default:"withargs" help:"Search policies on recordings (the default)."`
	Merge  tuneMergeCmd  `cmd:"" help:"Join what the shards of a search found out."`
}

// tuneSpace is what every part of a search has to be told the same.
type tuneSpace struct {
	Policy string `required:"" placeholder:"FILE" help:"The policy to begin with."`
	Space  string `required:"" placeholder:"FILE" help:"What may be changed: see docs/tuning.md."`
	Out    string `required:"" placeholder:"DIR" help:"Where results go. A search that was stopped goes on from there."`
}

func (t *tuneSpace) load() (*tune.Base, *tune.Space, error) {
	space, err := tune.LoadSpace(t.Space)
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(t.Policy)
	if err != nil {
		return nil, nil, err
	}
	if _, err := policy.Parse(t.Policy, data); err != nil {
		return nil, nil, err
	}
	return &tune.Base{File: t.Policy, Data: data}, space, nil
}

type tuneSearchCmd struct {
	tuneSpace
	Traces []string `required:"" placeholder:"PATH" help:"Recordings, or directories of them."`
	Points int      `default:"64" help:"Points of the space to begin with."`
	Rounds int      `default:"2" help:"Rounds of refinement around the front."`
	Shard  string   `placeholder:"I/N" help:"Evaluate only part I (from 0) of N of the recordings; see tune merge."`
	Refine string   `placeholder:"FILE" help:"Evaluate the points of this file, which tune merge wrote, instead of the first ones."`
}

// Validate is called by kong.
func (c *tuneSearchCmd) Validate() error {
	if c.Points < 1 || c.Rounds < 0 {
		return errors.New("--points, --rounds: want at least 1 point and no negative number of rounds")
	}
	_, _, err := c.shard()
	return err
}

// shard is which part of how many; 0 of 0 is the whole.
func (c *tuneSearchCmd) shard() (i, n int, err error) {
	if c.Shard == "" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(c.Shard, "/")
	i, err1 := strconv.Atoi(a)
	n, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || n < 1 || i < 0 || i >= n {
		return 0, 0, fmt.Errorf("--shard %q: want I/N with I from 0 to N-1", c.Shard)
	}
	return i, n, nil
}

func (c *tuneSearchCmd) Run(e env) error {
	base, space, err := c.load()
	if err != nil {
		return err
	}
	files, err := trace.Files(c.Traces...)
	if err != nil {
		return err
	}
	series, err := replay.Group(files)
	if err != nil {
		return err
	}
	s := &tune.Search{Base: base, Space: space, Points: c.Points, Rounds: c.Rounds, Out: c.Out, Refine: c.Refine}
	s.Shard, s.Shards, _ = c.shard()
	s.Log = func(format string, args ...any) { fmt.Fprintf(e.stderr, "tune: "+format+"\n", args...) }
	var names []string
	for _, x := range series {
		r := whatif.Recorded(e.ctx, x, time.Time{}, time.Time{})
		s.Recordings = append(s.Recordings, r)
		names = append(names, r.Name())
	}
	found, err := s.Run()
	if err != nil {
		return err
	}
	if s.Shards > 0 {
		fmt.Fprintf(e.stdout, "shard %d of %d: %d policies evaluated; run tune merge when all are done\n", s.Shard, s.Shards, len(found))
		return nil
	}
	was, front, chosen := tune.Choose(found)
	for i := range chosen { // intervals, for those that are worth it
		out, err := s.Estimate(&chosen[i].Found)
		if err != nil {
			return err
		}
		chosen[i].Outcome = out
	}
	return finish(e, c.Out, space, was, front, chosen, names)
}

// finish shows the front and writes the chosen policies.
func finish(e env, dir string, space *tune.Space, base *tune.Found, front []tune.Found, chosen []tune.Chosen, names []string) error {
	fmt.Fprint(e.stdout, tune.Table(space, base, front))
	if len(chosen) == 0 {
		fmt.Fprintln(e.stdout, "nothing on the front but the base policy: it stays")
		return nil
	}
	files, err := tune.Write(dir, space, base, chosen, names)
	if err != nil {
		return err
	}
	for i, f := range files {
		fmt.Fprintf(e.stdout, "%s: policy %s, %s\n", f, chosen[i].ID(), chosen[i].Why)
	}
	return nil
}

type tuneMergeCmd struct {
	tuneSpace
}

func (c *tuneMergeCmd) Run(e env) error {
	base, space, err := c.load()
	if err != nil {
		return err
	}
	found, err := tune.Merge(c.Out, base, space)
	if err != nil {
		return err
	}
	was, front, chosen := tune.Choose(found)
	next := filepath.Join(c.Out, "refine.json")
	if err := os.WriteFile(next, tune.Next(found, 0.1), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "tune: %s: points around the front, for another round of shards with --refine and another --out\n", next)
	return finish(e, c.Out, space, was, front, chosen, nil)
}
