package explain

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/human"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/server"
)

// decisionsShown is how many entries of the log the text holds.
const decisionsShown = 12

// WriteText writes the explanation for people.
func (e *Explanation) WriteText(w io.Writer) error {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(human.Clean(fmt.Sprintf(format, args...)) + "\n") }
	head := func(text string) { b.WriteString("\n" + text + "\n") }

	line("%s/%s", e.Pod.Namespace, e.Pod.Name)
	head("WHAT IT IS")
	line("  class %s, by %s; mode %s, policy %s", cmp.Or(e.Pod.Class, "none"), cmp.Or(e.Pod.ClassRule, "no rule"), e.Mode, cmp.Or(e.Policy, "none"))
	line("  QoS class %s, group %s", cmp.Or(e.Pod.QoSClass, "unknown"), cmp.Or(e.Pod.Cgroup, "unknown"))

	head("HOW IT IS")
	for i := range e.Pod.Containers {
		c := &e.Pod.Containers[i]
		line("  %s: %s", c.Name, signals(&c.Signals))
	}
	if len(e.Pod.Containers) == 0 {
		line("  no container of it runs")
	}
	for i := range e.Verdicts {
		line("  %s", verdict(&e.Verdicts[i]))
	}
	for _, m := range e.missing {
		line("  not measured: %s (%s)", m.what, m.why)
	}

	if policy.Class(e.Pod.Class) == policy.Online {
		head("WHO HURTS IT")
		e.writeBlame(line)
	}
	if len(e.Hurts) > 0 {
		head("WHOM IT HURTS")
		for _, h := range e.Hurts {
			line("  %s (%s %s): ran during %s of its wait%s", h.Victim, h.Axis, h.Level, human.Percent(h.Ratio), map[bool]string{true: ", named as a culprit"}[h.Named])
		}
	}

	head("WHAT WAS DONE, AND WHY")
	for _, k := range e.Held {
		line("  held: %s %s instead of %s, by rule %s%s, since %s (%s)", k.Knob, k.Current, k.Original, cmp.Or(k.Rule, "none"), forWhom(k.Victim), k.Since.Local().Format(time.TimeOnly), human.Ago(e.At, k.Since))
	}
	for _, c := range e.Classes {
		line("  in class of service %s (%s)%s, since %s", c.Group, cmp.Or(c.Schemata, "no limits"), forWhom(c.Victim), human.Seconds(c.AgeSeconds))
	}
	if len(e.Held)+len(e.Classes) == 0 {
		line("  nothing of it is held: its settings are as they would be without the agent")
	}
	log := e.Log
	if more := len(log) - decisionsShown; more > 0 {
		log = log[more:]
		line("  (%d earlier decisions: qos-agent events --pod %s/%s)", more, e.Pod.Namespace, e.Pod.Name)
	}
	for i := range log {
		line("  %s", human.Entry(&log[i], time.TimeOnly))
	}

	head("WHAT WOULD HELP")
	for _, a := range e.Advice {
		line("  %s", a)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func forWhom(victim string) string {
	if victim == "" {
		return ""
	}
	return " for " + victim
}

func (e *Explanation) writeBlame(line func(string, ...any)) {
	some := false
	for i := range e.Verdicts {
		v := &e.Verdicts[i]
		if len(v.Blame) == 0 {
			continue
		}
		some = true
		if v.Evidence.CPI != nil {
			line("  suspects on %s of %s:", v.Axis, v.Container)
		} else {
			line("  of the %s that %s waited over the last %s:", human.Seconds(v.Evidence.AttributedSeconds), v.Container, human.Seconds(v.Evidence.WindowSeconds))
		}
		for _, b := range v.Blame {
			if b.Ratio < 0.005 {
				continue
			}
			named := ""
			for _, c := range v.Culprits {
				if c == b.Culprit {
					named = "  named"
				}
			}
			line("  %6s  %-32s %s%s", human.Percent(b.Ratio), party(b.Culprit), strings.Repeat("█", int(b.Ratio*20+0.5)), named)
		}
	}
	if !some {
		line("  nobody: blame is told where an objective is violated, or nearly so")
	}
}

// signals is a container's figures in one line.
func signals(s *server.Signals) string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if w := s.Wait; w != nil {
		add("wait p99 %s, p50 %s (%d dispatches in %s)", human.Seconds(w.P99Seconds), human.Seconds(w.P50Seconds), w.Count, human.Seconds(w.SpanSeconds))
	}
	if u := s.CPU; u != nil {
		quota := ""
		if u.QuotaCores > 0 {
			quota = fmt.Sprintf(" of %.3g", u.QuotaCores)
		}
		add("CPUs %.2f%s", u.UsageCores, quota)
		if u.ThrottledPeriods > 0 {
			add("throttled in %d of %d periods", u.ThrottledPeriods, u.Periods)
		}
	}
	if m := s.Memory; m != nil {
		add("memory %s", human.Bytes(m.WorkingSetBytes))
	}
	if p := s.Pressure; p != nil {
		add("stalls cpu %s, memory %s, io %s", human.Percent(p.CPUSomeRatio), human.Percent(p.MemorySomeRatio), human.Percent(p.IOSomeRatio))
	}
	if p := s.Perf; p != nil && p.CPI > 0 {
		add("CPI %.2f, %.2f LLC misses per 1000 instructions", p.CPI, p.MPKI)
	}
	if r := s.RDT; r != nil && r.State != "ok" {
		add("LLC and memory bandwidth %s", r.State)
	} else if r != nil {
		add("LLC %s, memory bandwidth %.0f MB/s", human.Bytes(r.OccupancyBytes), r.BandwidthBytesPerSecond/1e6)
	}
	if len(out) == 0 {
		return "nothing is measured"
	}
	return strings.Join(out, ", ")
}

func verdict(v *server.Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s: %s for %s", v.Container, v.Axis, v.Level, human.Seconds(v.SinceSeconds))
	switch e := &v.Evidence; {
	case e.P99Seconds > 0:
		fmt.Fprintf(&b, ", p99 %s, promised %s", human.Seconds(e.P99Seconds), human.Seconds(e.ObjectiveSeconds))
	case e.CPI != nil:
		fmt.Fprintf(&b, ", CPI %.2f", e.CPI.CPI)
		if e.CPI.CPIFence > 0 {
			fmt.Fprintf(&b, ", normal %.2f, at most %.2f", e.CPI.CPIBaseline, e.CPI.CPIFence)
		}
	case e.StallObjectiveRatio > 0:
		fmt.Fprintf(&b, ", stalls %s of the time, promised %s", human.Percent(e.StallRatio), human.Percent(e.StallObjectiveRatio))
	}
	if v.Reason != "" {
		fmt.Fprintf(&b, " (%s)", v.Reason)
	}
	return b.String()
}
