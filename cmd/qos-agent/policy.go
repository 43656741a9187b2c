package main

import (
	"fmt"

	"github.com/qos-agent/qos-agent/internal/policy"
)

type policyCmd struct {
	Check   policyCheckCmd   `cmd:"" help:"Load policies as the daemon would, and say everything that is wrong with them."`
	Default policyDefaultCmd `cmd:"" help:"Print the default policy, with comments."`
}

type policyCheckCmd struct {
	Paths []string `arg:"" name:"path" help:"Policy files, or directories as given to --policy-dir."`
}

func (c policyCheckCmd) Run(e env) error {
	failed := false
	for _, r := range policy.CheckPaths(c.Paths...) {
		switch {
		case r.Err != nil:
			failed = true
			fmt.Fprintln(e.stderr, r.Err)
		case r.Policy != nil:
			fmt.Fprintf(e.stdout, "%s: ok\n%s", r.Path, policy.Summary(r.Policy))
		}
		if r.Note != "" {
			fmt.Fprintf(e.stdout, "%s: %s\n", r.Path, r.Note)
		}
	}
	if failed {
		return silentError(exitFailure)
	}
	return nil
}

type policyDefaultCmd struct{}

func (policyDefaultCmd) Run(e env) error {
	_, err := fmt.Fprint(e.stdout, policy.DefaultYAML())
	return err
}
