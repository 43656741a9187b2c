package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

// Validate checks a policy that a program made; loaded ones are valid. The error is an ErrorList without files and lines.
func Validate(p *Policy) error {
	errs := strictyaml.Validate(p)
	for _, r := range relations(p, &Machine{}) {
		if !r.spoilt(errs) {
			errs = append(errs, FieldError{Path: r.path, Problem: r.problem, Fix: r.fix})
		}
	}
	return errs.Tidy().AsError()
}

// relation is a rule between fields that a policy breaks.
type relation struct {
	path         string   // the field to change
	others       []string // the fields that it depends on
	problem, fix string
}

// spoilt reports whether a field of the relation is wrong by itself, which makes the relation meaningless.
func (r relation) spoilt(errs ErrorList) bool {
	return errs.About(r.path) || slices.ContainsFunc(r.others, errs.About)
}

// relations lists the rules between fields that p breaks, and what it asks that a machine has not.
func relations(p *Policy, m *Machine) []relation {
	var c relationChecker
	s := &p.Spec
	c.classes(&s.Classes)
	c.eventBound("spec.objectives", s.Objectives.CPUWaitP99, s.Objectives.CPUWaitEvent)
	c.judge(&s.Judge)
	c.cpu(&s.CPU, &s.Judge)
	c.rdt(&s.RDT, &s.Judge)
	c.windows(s)
	if len(c.broken) == 0 {
		c.machine(&s.RDT, m)
	}
	return c.broken
}

type relationChecker struct{ broken []relation }

func (c *relationChecker) add(path, problem, fix string, others ...string) {
	c.broken = append(c.broken, relation{path, others, problem, fix})
}

func (c *relationChecker) classes(cl *Classes) {
	names := make(map[string]bool)
	for i, r := range cl.Rules {
		path := fmt.Sprintf("spec.classes.rules[%d]", i)
		if names[r.Name] {
			c.add(path+".name", fmt.Sprintf("is %q again", r.Name), "a name of its own for each rule")
		}
		names[r.Name] = true
		if r.Match.empty() {
			c.add(path+".match", "matches nothing", "at least one of labels, annotations, namespaces, qosClasses or cgroups")
		}
	}
	once(c, "spec.classes.presets", cl.Presets)
}

func (m *Match) empty() bool {
	return len(m.Labels) == 0 && len(m.Annotations) == 0 && len(m.Namespaces) == 0 && len(m.QoSClasses) == 0 && len(m.Cgroups) == 0
}

func (c *relationChecker) eventBound(path string, p99, event Duration, others ...string) {
	if p99 > 0 && event > 0 && event < p99 {
		c.add(path+".cpuWaitEvent", fmt.Sprintf("is %v, below cpuWaitP99 (%v): waits that are allowed would raise alarms", event, p99),
			fmt.Sprintf("%v or more, or 0", p99), append(others, path+".cpuWaitP99")...)
	}
}

func (c *relationChecker) judge(j *Judge) {
	if j.JointPercent < j.CulpritPercent {
		c.add("spec.judge.jointPercent", fmt.Sprintf("is %d, below culpritPercent (%d)", j.JointPercent, j.CulpritPercent),
			fmt.Sprintf("%d or more: several culprits together explain at least what one alone must", j.CulpritPercent), "spec.judge.culpritPercent")
	}
}

func (c *relationChecker) cpu(cpu *CPU, j *Judge) {
	c.ladder("spec.cpu.ladder", cpu.Ladder)
	const kernelLeast = time.Millisecond // of any quota
	if floor := cpu.Quota.Period.D() * time.Duration(cpu.Quota.FloorPercent) / 100; floor < kernelLeast {
		c.add("spec.cpu.quota.floorPercent", fmt.Sprintf("is %d %% of a period of %v, which is %v", cpu.Quota.FloorPercent, cpu.Quota.Period, floor),
			fmt.Sprintf("%v or more, the kernel's least quota: a higher floorPercent or a longer period", kernelLeast), "spec.cpu.quota.period")
	}
	c.verify("spec.cpu.verify", &cpu.Verify, "spec.judge.window", j.Window)
}

func (c *relationChecker) verify(path string, v *Verify, windowPath string, window Duration) {
	if v.BackoffMin > v.BackoffMax {
		c.add(path+".backoffMin", fmt.Sprintf("is %v, above backoffMax (%v)", v.BackoffMin, v.BackoffMax),
			fmt.Sprintf("%v or less", v.BackoffMax), path+".backoffMax")
	}
	if v.After < window {
		c.add(path+".after", fmt.Sprintf("is %v, below the judge's window (%v), which would still hold waits from before the cut", v.After, window),
			fmt.Sprintf("%v or more", window), windowPath)
	}
}

func (c *relationChecker) rdt(r *RDT, j *Judge) {
	c.ranges(&r.Cache)
	c.verify("spec.rdt.verify", &r.Verify, "spec.judge.cpi.window", j.CPI.Window)
	if b := &r.Bandwidth; b.AbundantPercent >= b.StressedPercent {
		c.add("spec.rdt.bandwidth.abundantPercent", fmt.Sprintf("is %d, not below stressedPercent (%d): limits would swing", b.AbundantPercent, b.StressedPercent),
			fmt.Sprintf("less than %d", b.StressedPercent), "spec.rdt.bandwidth.stressedPercent")
	}
}

// ladder wants rungs in the order of the harm that they do, none twice.
func (c *relationChecker) ladder(path string, ladder []Rung) {
	order := []Rung{RungIdle, RungCPUs, RungQuota, RungFreeze}
	if !slices.IsSortedFunc(ladder, func(a, b Rung) int { return slices.Index(order, a) - slices.Index(order, b) }) {
		c.add(path, fmt.Sprintf("is %v, out of order", ladder), "its rungs in the order idle, cpus, quota, freeze")
		return
	}
	once(c, path, ladder)
}

func (c *relationChecker) windows(s *Spec) {
	names := make(map[string]bool)
	for i, w := range s.Windows {
		path := fmt.Sprintf("spec.windows[%d]", i)
		if names[w.Name] {
			c.add(path+".name", fmt.Sprintf("is %q again", w.Name), "a name of its own for each window")
		}
		names[w.Name] = true
		if w.From == w.To {
			c.add(path+".to", fmt.Sprintf("is %s, when the window begins", w.To), "another time; from 00:00 to 24:00 is the whole day", path+".from")
		}
		once(c, path+".days", w.Days)
		c.ladder(path+".ladder", w.Ladder)
		if w.CPUWaitP99 != nil || w.CPUWaitEvent != nil {
			o := w.apply(s).Objectives
			c.eventBound(path, o.CPUWaitP99, o.CPUWaitEvent, "spec.objectives.cpuWaitP99", "spec.objectives.cpuWaitEvent")
		}
	}
}

// once wants no value twice.
func once[T ~string](c *relationChecker, path string, list []T) {
	for i, v := range list {
		if slices.Contains(list[:i], v) {
			c.add(fmt.Sprintf("%s[%d]", path, i), fmt.Sprintf("is %s again", v), "each "+singular(path)+" once")
		}
	}
}

func singular(path string) string {
	word := path[strings.LastIndexByte(path, '.')+1:]
	if word == "ladder" {
		return "rung"
	}
	return strings.TrimSuffix(word, "s")
}
