package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

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
	JSON      bool     `name:"json" help:"Print it as JSON."`
}

// simulated is what simulate --json prints of each scenario. Ratios are percent, times are seconds since the run began; what never
// happened is absent.
type simulated struct {
	Scenario    string            `json:"scenario"`
	Policy      string            `json:"policy"`
	Seconds     float64           `json:"seconds"`
	CPUs        int               `json:"cpus"`
	Violation   float64           `json:"onlineBeyondObjectivePercent"`
	Missed      float64           `json:"onlineBeyondObjectiveNobodyHeldPercent"`
	WorkPercent float64           `json:"offlineWorkPercent"`
	Work        float64           `json:"offlineWorkCPUs"`
	CPIRise     *float64          `json:"cpiRisePercent,omitempty"`
	Changes     int               `json:"knobsTurned"`
	Reversals   int               `json:"reversals"`
	Cuts        int               `json:"cuts"`
	FalseCuts   int               `json:"cutsOfInnocents"`
	FirstHurt   *float64          `json:"firstHarmSeconds,omitempty"`
	FirstCut    *float64          `json:"firstCutSeconds,omitempty"`
	LastChange  *float64          `json:"lastChangeSeconds,omitempty"`
	Held        []string          `json:"held"`      // below the posture at the end
	Rules       map[string]int    `json:"decisions"` // how many by which rule
	Notes       []simulatedChange `json:"notes,omitempty"`
	Wrong       []string          `json:"notAsExpected"`
}

type simulatedChange struct {
	Seconds float64 `json:"seconds"`
	Text    string  `json:"text"`
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
	out := []simulated{}
	for _, name := range c.Scenarios {
		sc, err := sim.Load(name)
		if err != nil {
			return err
		}
		r, err := c.run(sc, pol)
		if err != nil {
			return err
		}
		if !c.JSON {
			c.print(e.stdout, r)
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
		out = append(out, c.json(r, wrong))
		for _, w := range wrong {
			failed = true
			fmt.Fprintf(e.stderr, "%s: not as expected: %s\n", name, w)
		}
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(out); err != nil {
			return err
		}
	}
	if failed {
		return silentError(exitFailure)
	}
	return nil
}

func (c simulateCmd) print(w io.Writer, r *sim.Result) {
	fmt.Fprint(w, r.Summary())
	if c.Notes {
		for _, n := range r.Notes {
			fmt.Fprintf(w, "%9.2fs %s\n", n.T.Seconds(), n.Note)
		}
	}
}

func (c simulateCmd) json(r *sim.Result, wrong []string) simulated {
	s := &r.Score
	at := func(t time.Duration) *float64 {
		if t < 0 {
			return nil
		}
		seconds := t.Seconds()
		return &seconds
	}
	out := simulated{
		Scenario: r.Scenario.Name, Policy: r.Policy, Seconds: r.Scenario.Duration.D().Seconds(), CPUs: r.Scenario.Node.CPUs,
		Violation: s.Violation(), Missed: s.Missed(), WorkPercent: s.WorkPercent(), Work: s.Work(),
		Changes: s.Changes, Reversals: r.Reversals, Cuts: s.Cuts, FalseCuts: s.FalseCuts,
		FirstHurt: at(r.FirstHurt), FirstCut: at(r.FirstCut), LastChange: at(r.LastChange),
		Held: append([]string{}, r.Held...), Rules: map[string]int{}, Wrong: append([]string{}, wrong...),
	}
	if r.Scenario.Node.Ways > 0 {
		out.CPIRise = &r.CPIRise
	}
	for i := range r.Notes {
		n := &r.Notes[i]
		out.Rules[n.Rule]++
		if c.Notes {
			out.Notes = append(out.Notes, simulatedChange{n.T.Seconds(), n.Note.String()})
		}
	}
	return out
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
