// Package human writes figures for people, short and with three digits at most.
package human

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

// Seconds is a time in the unit that fits: "350µs", "21.3ms", "3s", "26h".
func Seconds(s float64) string {
	switch a := math.Abs(s); {
	case s == 0:
		return "0"
	case a < 1e-3:
		return digits(s*1e6) + "µs"
	case a < 1:
		return digits(s*1e3) + "ms"
	case a < 120:
		return digits(s) + "s"
	case a < 7200:
		return strconv.Itoa(int(math.Round(s/60))) + "min"
	}
	return strconv.Itoa(int(math.Round(s/3600))) + "h"
}

// Percent is a ratio in hundredths: "0", "0.4%", "62%".
func Percent(ratio float64) string {
	v := ratio * 100
	switch {
	case v == 0:
		return "0%"
	case math.Abs(v) < 9.95:
		return strconv.FormatFloat(v, 'f', 1, 64) + "%"
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + "%"
}

// Bytes is an amount of memory: "64MiB", "1.5GiB".
func Bytes(n uint64) string {
	switch v := float64(n); {
	case n >= 1<<30:
		return digits(v/(1<<30)) + "GiB"
	case n >= 1<<20:
		return digits(v/(1<<20)) + "MiB"
	}
	return strconv.FormatUint(n>>10, 10) + "KiB"
}

// digits keeps three digits and no zeros after the point that say nothing.
func digits(v float64) string {
	decimals := 2
	switch a := math.Abs(v); {
	case a >= 99.95:
		decimals = 0
	case a >= 9.995:
		decimals = 1
	}
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// Clean takes out of a text what a terminal would obey: names of pods come from whoever makes pods.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// Inputs are the figures behind a decision: "wait 21.3ms, promised 5ms, share 62%".
func Inputs(in *decisionlog.Inputs) string {
	if in == nil {
		return ""
	}
	var out []string
	add := func(name string, present bool, text string) {
		if present {
			out = append(out, name+" "+text)
		}
	}
	add("wait", in.WaitSeconds != 0, Seconds(in.WaitSeconds))
	add("before", in.BeforeSeconds != 0, Seconds(in.BeforeSeconds))
	add("promised", in.ObjectiveSeconds != 0, Seconds(in.ObjectiveSeconds))
	add("CPI", in.CPI != 0, digits(in.CPI))
	add("before", in.CPIBefore != 0, digits(in.CPIBefore))
	add("normal up to", in.CPIFence != 0, digits(in.CPIFence))
	add("share", in.ShareRatio != 0, Percent(in.ShareRatio))
	add("belief", in.Belief != 0, strconv.Itoa(in.Belief))
	add("not again for", in.PauseSeconds != 0, Seconds(in.PauseSeconds))
	return strings.Join(out, ", ")
}

// Entry is a line of the decision log.
func Entry(e *decisionlog.Entry, layout string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-8s", e.At.Local().Format(layout), e.Kind)
	for _, part := range []string{e.Rule, e.Pod} {
		if part != "" {
			fmt.Fprintf(&b, " %s", part)
		}
	}
	if e.Old != "" || e.New != "" {
		b.WriteString(":")
		if e.Knob != "" {
			fmt.Fprintf(&b, " %s", e.Knob)
		}
		fmt.Fprintf(&b, " %s -> %s", cmp.Or(e.Old, "-"), cmp.Or(e.New, "-"))
	}
	if e.Victim != "" {
		fmt.Fprintf(&b, ", for %s", e.Victim)
	}
	if in := Inputs(e.Inputs); in != "" {
		fmt.Fprintf(&b, " (%s)", in)
	}
	if e.Result != "" {
		fmt.Fprintf(&b, " [%s]", e.Result)
	}
	if e.Message != "" && e.Kind != decisionlog.KindDecision {
		fmt.Fprintf(&b, " %s", e.Message)
	}
	return Clean(b.String())
}

// Ago is how long ago t was.
func Ago(now, t time.Time) string { return Seconds(math.Round(max(now.Sub(t), 0).Seconds())) + " ago" }
