package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/sim"
)

type simulateCmd struct {
	Scenarios []string `arg:"" optional:"" name:"scenario" help:"Scenario files, or names from the library (see --list)."`
	Policy    string   `placeholder:"FILE" help:"Run under this policy instead of the scenario's own. Objectives for the score remain the scenario's."`
	List      bool     `help:"List the library."`
	SVG       string   `placeholder:"FILE" help:"Also draw the run; with one scenario only."`
	Record    string   `placeholder:"FILE" help:"Also write a recording, as of a node, for replay, tune and reports; with one scenario only."`
	Notes     bool     `help:"Also print the decision log."`
}

func (c simulateCmd) Run(e env) error {
	if c.List {
		for _, name := range sim.Library() {
			sc, err := sim.Load(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.stdout, "%-24s %s\n", name, sc.About)
		}
		return nil
	}
	if len(c.Scenarios) == 0 {
		return fmt.Errorf("simulate: no scenario: give a file, or a name that --list shows")
	}
	if (c.SVG != "" || c.Record != "") && len(c.Scenarios) != 1 {
		return fmt.Errorf("simulate: --svg and --record take one scenario, not %d", len(c.Scenarios))
	}
	var pol *policy.Compiled
	if c.Policy != "" {
		p, err := policy.LoadFile(c.Policy)
		if err != nil {
			return err
		}
		if pol, err = policy.Compile(p); err != nil {
			return err
		}
	}
	failed := false
	for _, name := range c.Scenarios {
		sc, err := sim.Load(name)
		if err != nil {
			return err
		}
		r, err := c.run(sc, pol)
		if err != nil {
			return err
		}
		fmt.Fprint(e.stdout, r.Summary())
		if c.Notes {
			for _, n := range r.Notes {
				fmt.Fprintf(e.stdout, "%9.2fs %s\n", n.T.Seconds(), n.Note)
			}
		}
		if c.SVG != "" {
			if err := os.WriteFile(c.SVG, r.SVG(), 0o644); err != nil {
				return err
			}
		}
		wrong := r.Check()
		if pol != nil {
			wrong = r.Broken // expectations are about the scenario's own policy
		}
		for _, w := range wrong {
			failed = true
			fmt.Fprintf(e.stderr, "%s: not as expected: %s\n", name, w)
		}
	}
	if failed {
		return silentError(exitFailure)
	}
	return nil
}

func (c simulateCmd) run(sc *sim.Scenario, pol *policy.Compiled) (*sim.Result, error) {
	if c.Record == "" {
		return sim.Run(sc, pol)
	}
	f, err := os.Create(c.Record)
	if err != nil {
		return nil, err
	}
	r, err := sim.Record(sc, pol, f)
	return r, errors.Join(err, f.Close())
}
