package main

import (
	"errors"
	"fmt"

	"github.com/qos-agent/qos-agent/internal/actuate"
	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/knob"
)

type restoreCmd struct {
	RunDir string `default:"${run_dir}" help:"Run directory of the daemon that was killed."`
}

func (c restoreCmd) Run(e env) error {
	sum, err := actuate.Restore(actuate.Options{RunDir: c.RunDir})
	list := func(what string, outcomes []knob.Outcome) {
		for _, o := range outcomes {
			fmt.Fprintf(e.stdout, "%s %s %s", what, o.Cgroup, o.Kind)
			if o.Old != o.New {
				fmt.Fprintf(e.stdout, ": %s -> %s", o.Old, o.New)
			}
			fmt.Fprintln(e.stdout)
		}
	}
	list("restored", sum.Restored)
	list("gone", sum.Gone)
	list("left, because somebody else has changed it,", sum.Left)
	list("failed", sum.Failed)
	if sum.OtherBoot > 0 {
		fmt.Fprintf(e.stdout, "dropped %d knobs from before the machine was started anew\n", sum.OtherBoot)
	}
	resctrl, resctrlErr := classes.Restore(classes.Options{RunDir: c.RunDir})
	for _, o := range resctrl.Removed {
		fmt.Fprintf(e.stdout, "removed resctrl group %s\n", o.Group)
	}
	for _, o := range resctrl.Failed {
		fmt.Fprintf(e.stdout, "failed resctrl %s %s: %v\n", o.Resource, o.Group, o.Err)
	}
	if resctrl.Unmounted {
		fmt.Fprintln(e.stdout, "unmounted resctrl, which the agent had mounted")
	}
	if resctrl.OtherBoot > 0 {
		fmt.Fprintf(e.stdout, "dropped %d resctrl groups from before the machine was started anew\n", resctrl.OtherBoot)
	}
	if err = errors.Join(err, resctrlErr); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%d restored, %d gone with their groups\n", len(sum.Restored), len(sum.Gone))
	return nil
}
