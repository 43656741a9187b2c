package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

type policyCmd struct {
	Check   policyCheckCmd   `cmd:"" help:"Load policies as the daemon would, and say everything that is wrong with them."`
	Default policyDefaultCmd `cmd:"" help:"Print the default policy, with comments."`
}

type policyCheckCmd struct {
	Paths   []string `arg:"" name:"path" help:"Policy files, or directories as given to --policy-dir."`
	Resctrl string   `name:"resctrl" placeholder:"DIR" help:"Also refuse what this machine cannot give: a mounted resctrl, or a copy of a node's, of which info and schemata are read. Default: this machine's, if it is mounted."`
	JSON    bool     `name:"json" help:"Print JSON."`
}

func (c policyCheckCmd) Run(e env) error {
	m, err := c.machine()
	if err != nil {
		return err
	}
	results := policy.CheckPaths(m, c.Paths...)
	if err := c.print(e, results); err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(r policy.Checked) bool { return r.Err != nil }) {
		return silentError(exitFailure)
	}
	return nil
}

// machine is what is known of the machine on which the policies are to hold: nothing, if there is no resctrl and none was named.
func (c policyCheckCmd) machine() (policy.Machine, error) {
	fs, err := rdt.Open(rdt.Dir(cmp.Or(c.Resctrl, string(rdt.DefaultDir))))
	switch {
	case err == nil:
		return classes.Machine(&fs.Info), nil
	case c.Resctrl == "" && errors.Is(err, rdt.ErrNotMounted):
		return policy.Machine{}, nil
	}
	return policy.Machine{}, fmt.Errorf("--resctrl: %w", err)
}

func (c policyCheckCmd) print(e env, results []policy.Checked) error {
	if c.JSON {
		out := make([]checkedPolicy, len(results))
		for i, r := range results {
			out[i] = newCheckedPolicy(r)
		}
		return printJSON(e, out)
	}
	for _, r := range results {
		switch {
		case r.Err != nil:
			fmt.Fprintln(e.stderr, r.Err)
		case r.Policy != nil:
			fmt.Fprintf(e.stdout, "%s: ok\n%s", r.Path, policy.Summary(r.Policy))
		}
		if r.Note != "" {
			fmt.Fprintf(e.stdout, "%s: %s\n", r.Path, r.Note)
		}
	}
	return nil
}

// checkedPolicy is what became of one path.
type checkedPolicy struct {
	Path   string           `json:"path"`
	OK     bool             `json:"ok"` // the agent would take it, by itself
	Name   string           `json:"name,omitempty"`
	ID     string           `json:"id,omitempty"`
	Mode   policy.Mode      `json:"mode,omitempty"`
	Errors policy.ErrorList `json:"errors,omitempty"`
	Note   string           `json:"note,omitempty"`
}

func newCheckedPolicy(r policy.Checked) checkedPolicy {
	out := checkedPolicy{Path: r.Path, OK: r.Policy != nil, Note: r.Note}
	if r.Policy != nil {
		p := r.Policy.Policy()
		out.Name, out.ID, out.Mode = r.Policy.Name(), r.Policy.ID(), p.Spec.Mode
	}
	errors.As(r.Err, &out.Errors) // by its contract it is one
	return out
}

type policyDefaultCmd struct{}

func (policyDefaultCmd) Run(e env) error {
	_, err := fmt.Fprint(e.stdout, policy.DefaultYAML())
	return err
}
