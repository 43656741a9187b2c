package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/qos-agent/qos-agent/internal/actuate"
	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/knob"
)

type restoreCmd struct {
	RunDir string `default:"${run_dir}" help:"Run directory of the daemon that was killed."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (c restoreCmd) Run(e env) error {
	knobs, err := actuate.Restore(actuate.Options{RunDir: c.RunDir})
	resctrl, resctrlErr := classes.Restore(classes.Options{RunDir: c.RunDir})
	err = errors.Join(err, resctrlErr)
	r := newRestored(knobs, resctrl, err)
	if c.JSON {
		return errors.Join(err, printJSON(e, r))
	}
	r.print(e.stdout)
	return err
}

// restored is what became of everything that a killed daemon had left.
type restored struct {
	OK      bool         `json:"ok"`
	Knobs   []undone     `json:"knobs"`
	Resctrl []undone     `json:"resctrl"`
	Dropped droppedKnobs `json:"droppedFromBeforeReboot"`
	// Unmounted says that resctrl, which the agent had mounted, is not mounted any more.
	Unmounted bool `json:"resctrlUnmounted"`
}

type droppedKnobs struct {
	Knobs   int `json:"knobs"`
	Resctrl int `json:"resctrl"`
}

// undone is one thing that was put back, or not. What is one of restored, gone (with its group), left (somebody else has changed it),
// failed, removed (a group of resctrl).
type undone struct {
	What   string `json:"what"`
	Cgroup string `json:"cgroup,omitempty"`
	Knob   string `json:"knob,omitempty"`
	Group  string `json:"group,omitempty"` // of resctrl
	Old    string `json:"old,omitempty"`
	New    string `json:"new,omitempty"`
	Error  string `json:"error,omitempty"`
}

func newRestored(knobs actuate.Summary, resctrl classes.Summary, err error) *restored {
	r := &restored{
		OK: err == nil, Knobs: []undone{}, Resctrl: []undone{}, Unmounted: resctrl.Unmounted,
		Dropped: droppedKnobs{Knobs: knobs.OtherBoot, Resctrl: resctrl.OtherBoot},
	}
	add := func(what string, outcomes []knob.Outcome) {
		for _, o := range outcomes {
			r.Knobs = append(r.Knobs, undone{What: what, Cgroup: o.Cgroup, Knob: o.Kind.String(), Old: o.Old, New: o.New, Error: text(o.Err)})
		}
	}
	add("restored", knobs.Restored)
	add("gone", knobs.Gone)
	add("left", knobs.Left)
	add("failed", knobs.Failed)
	for _, o := range resctrl.Removed {
		r.Resctrl = append(r.Resctrl, undone{What: "removed", Group: o.Group})
	}
	for _, o := range resctrl.Failed {
		r.Resctrl = append(r.Resctrl, undone{What: "failed", Knob: o.Resource, Group: o.Group, Error: text(o.Err)})
	}
	return r
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// print is for people. It ends with a count where all went well; what did not is told by the error.
func (r *restored) print(w io.Writer) {
	count := map[string]int{}
	for _, u := range r.Knobs {
		count[u.What]++
		what := u.What
		if what == "left" {
			what = "left, because somebody else has changed it,"
		}
		fmt.Fprintf(w, "%s %s %s", what, u.Cgroup, u.Knob)
		if u.Old != u.New {
			fmt.Fprintf(w, ": %s -> %s", u.Old, u.New)
		}
		if u.Error != "" {
			fmt.Fprintf(w, ": %s", u.Error)
		}
		fmt.Fprintln(w)
	}
	if n := r.Dropped.Knobs; n > 0 {
		fmt.Fprintf(w, "dropped %d knobs from before the machine was started anew\n", n)
	}
	for _, u := range r.Resctrl {
		if u.What == "removed" {
			fmt.Fprintf(w, "removed resctrl group %s\n", u.Group)
		} else {
			fmt.Fprintf(w, "failed resctrl %s %s: %s\n", u.Knob, u.Group, u.Error)
		}
	}
	if r.Unmounted {
		fmt.Fprintln(w, "unmounted resctrl, which the agent had mounted")
	}
	if n := r.Dropped.Resctrl; n > 0 {
		fmt.Fprintf(w, "dropped %d resctrl groups from before the machine was started anew\n", n)
	}
	if r.OK {
		fmt.Fprintf(w, "%d restored, %d gone with their groups\n", count["restored"], count["gone"])
	}
}
