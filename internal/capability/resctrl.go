package capability

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// resctrlProbe is the name of the probe's control group, which the process id follows. The agent takes what begins like this for its
// own, so one that was left behind by a kill is swept away.
const resctrlProbe = "qos-agent.probe-"

// resctrl is what the probes of resctrl share.
type resctrl struct {
	fs  *rdt.FS
	err error // why there is none
}

func (p *prober) openResctrl() *resctrl {
	if p.rdt != nil {
		return p.rdt
	}
	p.rdt = new(resctrl)
	tree := p.Resctrl
	if tree == nil {
		tree = rdt.Dir(p.resctrlDir())
	}
	p.rdt.fs, p.rdt.err = rdt.Open(tree)
	return p.rdt
}

func (p *prober) resctrlDir() string { return filepath.Join(p.Sys, "fs/resctrl") }

// resctrl looks for the mounted file system. It never mounts: that would switch the feature on for the machine.
func (p *prober) resctrl(context.Context) (string, error) {
	r := p.openResctrl()
	if errors.Is(r.err, rdt.ErrNotMounted) {
		known, err := os.ReadFile(filepath.Join(p.Proc, "filesystems"))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(known)) {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "resctrl" {
				return "", advise(errors.New("the CPU and the kernel have it, but it is not mounted"),
					"mount -t resctrl resctrl "+p.resctrlDir()+", or rdt.mount: true in the policy")
			}
		}
		return "", errors.New("this CPU or this kernel does not have it")
	}
	if r.err != nil {
		return "", r.err
	}
	if info := &r.fs.Info; len(info.Caches) == 0 && info.MB == nil && info.Mon == nil {
		return "", errors.New("mounted, but it controls and monitors nothing")
	}
	found := "mounted"
	if options, ok, err := rdt.Mounted(p.Proc, rdt.Dir(p.resctrlDir())); err == nil && ok && options != "" {
		found += " (" + options + ")"
	}
	if n := r.fs.Info.CLOSIDs; n > 1 {
		found += fmt.Sprintf(", %d classes of service", n)
	}
	groups, err := r.fs.Groups()
	if err != nil {
		return "", err
	}
	groups = slices.DeleteFunc(groups, func(g string) bool { return strings.HasPrefix(g, resctrlProbe) })
	if len(groups) > 0 {
		found += ", of which in use: " + strings.Join(groups, " ")
	}
	return found, nil
}

// withGroup makes a control group, lets a probe use it, and removes it. tried is false if no class is left to try it with.
func (p *prober) withGroup(fs *rdt.FS, use func(group string) error) (tried bool, err error) {
	group := fmt.Sprint(resctrlProbe, p.PID)
	err = fs.Make(group)
	if errors.Is(err, rdt.ErrNoCLOSID) || errors.Is(err, rdt.ErrNoRMID) || errors.Is(err, rdt.ErrLimbo) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, errors.Join(use(group), fs.Remove(group))
}

const untried = "; not tried, as no class is free"

// cacheAllocation limits a group that holds no task to the fewest ways.
func (p *prober) cacheAllocation(context.Context) (string, error) {
	r := p.openResctrl()
	if r.err != nil {
		return "", errors.New("there is no resctrl")
	}
	var found []string
	var lines []rdt.Line
	for i := range r.fs.Info.Caches {
		c := &r.fs.Info.Caches[i]
		text := fmt.Sprintf("%s: %d ways, masks of %d or more", c.Name, c.Ways(), c.MinBits)
		if c.Sparse {
			text += ", with gaps"
		}
		if c.Shareable != 0 {
			text += fmt.Sprintf(", %x shared with devices", c.Shareable)
		}
		found = append(found, text)
		lines = append(lines, rdt.Line{Resource: c.Name, Domains: []rdt.Domain{{Value: 1<<c.MinBits - 1}}})
	}
	if len(lines) == 0 {
		return "", errors.New("the CPU cannot partition its caches (CAT)")
	}
	if r.fs.Info.Cache("L3CODE") != nil {
		found = append(found, "code and data apart (CDP)")
	}
	return p.tryLimits(r.fs, strings.Join(found, "; "), lines)
}

// bandwidthAllocation limits a group that holds no task to the least bandwidth.
func (p *prober) bandwidthAllocation(context.Context) (string, error) {
	r := p.openResctrl()
	if r.err != nil {
		return "", errors.New("there is no resctrl")
	}
	mb := r.fs.Info.MB
	if mb == nil {
		return "", errors.New("the CPU cannot limit memory bandwidth (MBA)")
	}
	found := fmt.Sprintf("from %d in steps of %d, in %s", mb.Min, mb.Gran, mb.Unit)
	if mb.Throttle == "max" {
		found += "; threads of a core share the strictest limit"
	}
	if mb.Unit == rdt.MiBps {
		found += "; the kernel's own loop keeps to it (mba_MBps)"
	}
	return p.tryLimits(r.fs, found, []rdt.Line{{Resource: "MB", Domains: []rdt.Domain{{Value: max(mb.Min, 1)}}}})
}

// tryLimits writes limits for the first domain that there is.
func (p *prober) tryLimits(fs *rdt.FS, found string, lines []rdt.Line) (string, error) {
	tried, err := p.withGroup(fs, func(group string) error {
		have, err := fs.Schemata(group)
		if err != nil {
			return err
		}
		for i := range lines {
			domains := have.Values(lines[i].Resource)
			if len(domains) == 0 {
				return fmt.Errorf("schemata has no %s", lines[i].Resource)
			}
			lines[i].Domains[0].ID = domains[0].ID
		}
		_, _, err = fs.SetLimits(group, lines)
		return err
	})
	if err != nil {
		return "", err
	}
	if !tried {
		found += untried
	}
	return found, nil
}

func (p *prober) cacheMonitoring(context.Context) (string, error) {
	return p.monitoring(func(m *rdt.Monitoring) bool { return m.Occupancy }, "the CPU does not tell how much cache a group holds (CMT)")
}

func (p *prober) bandwidthMonitoring(context.Context) (string, error) {
	return p.monitoring(func(m *rdt.Monitoring) bool { return m.Total }, "the CPU does not tell how much memory bandwidth a group uses (MBM)")
}

// monitoring reads the counters of the default group.
func (p *prober) monitoring(has func(*rdt.Monitoring) bool, missing string) (string, error) {
	r := p.openResctrl()
	if r.err != nil {
		return "", errors.New("there is no resctrl")
	}
	m := r.fs.Info.Mon
	if m == nil || !has(m) {
		return "", errors.New(missing)
	}
	c, err := r.fs.Counters("")
	if err != nil {
		return "", err
	}
	defer c.Close()
	readings, err := c.Read(nil)
	if err != nil {
		return "", err
	}
	if len(readings) == 0 {
		return "", errors.New("there are no counters")
	}
	return fmt.Sprintf("%d domains, %d groups at most", len(readings), m.RMIDs), nil
}
