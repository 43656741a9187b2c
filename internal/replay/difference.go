package replay

import (
	"fmt"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Difference is a step in which the replay decided otherwise than the recording agent.
type Difference struct {
	At     time.Time `json:"at"`
	Seq    uint64    `json:"seq"`
	Event  bool      `json:"event"`
	Fields []string  `json:"fields,omitempty"` // of the decision; for Verify
	// Recorded and Replayed are what only the one or the other decided, with the reasons: lines of the decision log, and settings.
	Recorded []string `json:"recorded,omitempty"`
	Replayed []string `json:"replayed,omitempty"`
	Text     []string `json:"text,omitempty"`
}

func (d *Difference) String() string {
	var b strings.Builder
	kind := "tick"
	if d.Event {
		kind = "event"
	}
	fmt.Fprintf(&b, "%s step %d (%s)", d.At.Format("2006-01-02T15:04:05.000Z07:00"), d.Seq, kind)
	if len(d.Fields) > 0 {
		fmt.Fprintf(&b, ": %s differ", strings.Join(d.Fields, ", "))
	}
	b.WriteByte('\n')
	for _, t := range d.Text {
		fmt.Fprintf(&b, "  %s\n", t)
	}
	for _, t := range d.Recorded {
		fmt.Fprintf(&b, "  - %s\n", t)
	}
	for _, t := range d.Replayed {
		fmt.Fprintf(&b, "  + %s\n", t)
	}
	return b.String()
}

// comparer finds out what differs between two decisions. It remembers which settings are known to differ, so that each is told once.
type comparer struct {
	known map[knob.Target]pairOf // settings that differ
	next  map[knob.Target]pairOf
}

type pairOf struct{ recorded, replayed string }

// effective is what a decision wants, or would want if it only watches.
func effective(d *decide.Decision) []knob.Want {
	if d.Would != nil {
		return d.Would
	}
	return d.Plan
}

// policies compares a decision under another policy with the recorded one. It is nil if nothing differs that was not told before.
func (c *comparer) policies(s *trace.Step, d *decide.Decision) *Difference {
	if len(s.Decision.Notes) == 0 && len(d.Notes) == 0 && !d.Changed && !s.Decision.Changed && c.known != nil {
		return nil
	}
	out := difference(s)
	out.Recorded, out.Replayed = notes(s.Decision.Notes, d.Notes)
	c.settings(out, effective(&s.Decision), effective(d))
	if len(out.Recorded)+len(out.Replayed) == 0 {
		return nil
	}
	return out
}

// exactly tells what differs between decisions whose digests differ.
func (c *comparer) exactly(s *trace.Step, d *decide.Decision, fields []string) *Difference {
	out := difference(s)
	out.Fields = fields
	out.Recorded, out.Replayed = notes(s.Decision.Notes, d.Notes)
	c.settings(out, effective(&s.Decision), effective(d))
	for i := range max(len(s.Decision.Class), len(d.Class)) {
		if i >= len(s.Snapshot.Pods) {
			break
		}
		pod := s.Snapshot.Pods[i].Key()
		if i < len(s.Decision.Class) && i < len(d.Class) && s.Decision.Class[i] != d.Class[i] {
			out.Recorded = append(out.Recorded, fmt.Sprintf("class of %s: %s, %s", pod, s.Decision.Class[i], s.Decision.ClassRule[i]))
			out.Replayed = append(out.Replayed, fmt.Sprintf("class of %s: %s, %s", pod, d.Class[i], d.ClassRule[i]))
		}
		if i < len(s.Decision.Grant) && i < len(d.Grant) && s.Decision.Grant[i] != d.Grant[i] {
			out.Recorded = append(out.Recorded, fmt.Sprintf("grant of %s: %s", pod, s.Decision.Grant[i]))
			out.Replayed = append(out.Replayed, fmt.Sprintf("grant of %s: %s", pod, d.Grant[i]))
		}
	}
	if s.Decision.Wake != d.Wake {
		out.Recorded = append(out.Recorded, fmt.Sprintf("wake at %v", s.Decision.Wake))
		out.Replayed = append(out.Replayed, fmt.Sprintf("wake at %v", d.Wake))
	}
	if len(out.Recorded)+len(out.Replayed) == 0 {
		out.Text = append(out.Text, "of what differs only the digest was recorded; the replay came to:")
		for i := range d.Verdicts {
			v := &d.Verdicts[i]
			out.Text = append(out.Text, fmt.Sprintf("%s %s %s %s p99 %v of %v, %d waits", s.Snapshot.Pods[v.Pod].Key(), v.Axis, v.Level, v.Reason, v.P99, v.Objective, v.Samples))
			if i == 20 {
				break
			}
		}
	}
	return out
}

func difference(s *trace.Step) *Difference {
	return &Difference{At: s.Snapshot.Wall, Seq: s.Snapshot.Seq, Event: s.Snapshot.Trigger == signal.Event}
}

// notes are the lines of the decision log that only one side has.
func notes(recorded, replayed []control.Note) (a, b []string) {
	return only(recorded, replayed), only(replayed, recorded)
}

func only(of, not []control.Note) (out []string) {
	for i := range of {
		found := false
		for j := range not {
			found = found || of[i] == not[j]
		}
		if !found {
			out = append(out, of[i].String())
		}
	}
	return out
}

// settings adds knobs that are now wanted otherwise, and were not, or not like that, at the step before.
func (c *comparer) settings(out *Difference, recorded, replayed []knob.Want) {
	if c.next == nil {
		c.known, c.next = map[knob.Target]pairOf{}, map[knob.Target]pairOf{}
	}
	clear(c.next)
	i, j := 0, 0
	add := func(w *knob.Want, p pairOf) {
		if p.recorded == p.replayed {
			return
		}
		c.next[w.Target] = p
		if c.known[w.Target] == p {
			return
		}
		name := fmt.Sprintf("%s of %s (%s, %s)", w.Kind, w.Pod, w.Owner, w.Rule)
		out.Recorded = append(out.Recorded, name+": "+p.recorded)
		out.Replayed = append(out.Replayed, name+": "+p.replayed)
	}
	for i < len(recorded) || j < len(replayed) {
		switch {
		case j == len(replayed) || i < len(recorded) && before(&recorded[i], &replayed[j]):
			add(&recorded[i], pairOf{recorded[i].Value.Format(recorded[i].Kind), "as it is"})
			i++
		case i == len(recorded) || before(&replayed[j], &recorded[i]):
			add(&replayed[j], pairOf{"as it is", replayed[j].Value.Format(replayed[j].Kind)})
			j++
		default:
			add(&replayed[j], pairOf{recorded[i].Value.Format(recorded[i].Kind), replayed[j].Value.Format(replayed[j].Kind)})
			i++
			j++
		}
	}
	c.known, c.next = c.next, c.known
}

// before is the order of plans.
func before(a, b *knob.Want) bool {
	return a.Cgroup < b.Cgroup || a.Cgroup == b.Cgroup && a.Kind < b.Kind
}
