package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Compiled is a policy made ready for use: validated, its time windows applied, its class rules prepared. It never changes and
// may be shared.
type Compiled struct {
	id     string
	forced Mode // by WithMode; "": none
	policy Policy
	always Spec      // outside of every window
	opened []variant // one for each window, in their order
	rules  []rule
	preset []preset
}

// variant is the policy during a window.
type variant struct {
	window window
	spec   Spec
}

// Compile prepares p, of which it keeps no part. The error is an ErrorList.
func Compile(p *Policy) (*Compiled, error) {
	if err := Validate(p); err != nil {
		return nil, err
	}
	canonical, err := json.Marshal(normalize(*p))
	if err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	c := &Compiled{id: contentID(canonical)}
	if err := json.Unmarshal(canonical, &c.policy); err != nil { // a deep copy
		return nil, fmt.Errorf("copy policy: %w", err)
	}
	c.always = c.policy.Spec
	for i := range c.policy.Spec.Windows {
		w := &c.policy.Spec.Windows[i]
		c.opened = append(c.opened, variant{compileWindow(w), w.apply(&c.policy.Spec)})
	}
	c.rules = compileRules(c.policy.Spec.Classes.Rules)
	for _, name := range c.policy.Spec.Classes.Presets {
		c.preset = append(c.preset, presets[name])
	}
	return c, nil
}

// MustCompile is Compile for policies that are known to be valid. It panics otherwise.
func MustCompile(p Policy) *Compiled {
	c, err := Compile(&p)
	if err != nil {
		panic("policy: " + err.Error())
	}
	return c
}

// normalize makes policies that mean the same the same: an absent list is an empty one.
func normalize(p Policy) Policy {
	if p.Spec.Classes.Presets == nil {
		p.Spec.Classes.Presets = []string{}
	}
	if p.Spec.CPU.Ladder == nil {
		p.Spec.CPU.Ladder = []Rung{}
	}
	return p
}

func contentID(canonical []byte) string {
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:6])
}

// ID is 12 hex digits made from the policy's content. Comments, formatting and the split into files don't count; the name does.
func (c *Compiled) ID() string { return c.id }

// Name is the policy's name.
func (c *Compiled) Name() string { return c.policy.Metadata.Name }

// Policy is a copy of the whole policy, defaults filled in. Its lists must not be changed.
func (c *Compiled) Policy() Policy { return c.policy }

// At is what holds at a time, windows applied. The day and the hour are those that wall shows in its own location, so that a
// recording gives the same anywhere. It does not allocate. The Spec must not be changed.
func (c *Compiled) At(wall time.Time) *Spec {
	if v := c.open(wall); v != nil {
		return &v.spec
	}
	return &c.always
}

// Window is the name of the window that is open at a time, "" for none.
func (c *Compiled) Window(wall time.Time) string {
	if v := c.open(wall); v != nil {
		return v.window.name
	}
	return ""
}

func (c *Compiled) open(wall time.Time) *variant {
	if len(c.opened) == 0 {
		return nil
	}
	hour, minute, _ := wall.Clock()
	for i := range c.opened {
		if v := &c.opened[i]; v.window.contains(wall.Weekday(), hour*60+minute) {
			return v
		}
	}
	return nil
}

// WithMode is the policy with a mode that holds always, whatever its windows say. Its ID stays.
func (c *Compiled) WithMode(m Mode) *Compiled {
	d := *c
	d.forced = m
	d.policy.Spec.Mode = m
	d.always.Mode = m
	d.opened = slices.Clone(c.opened)
	for i := range d.opened {
		d.opened[i].spec.Mode = m
	}
	return &d
}

// window is a Window made ready. It works on what the wall clock shows, never on intervals, so that days of 23 or 25 hours need
// no care.
type window struct {
	name     string
	days     [7]bool
	from, to int // minutes of the day; to <= from runs over midnight
}

func compileWindow(w *Window) window {
	out := window{name: w.Name, from: minutes(w.From), to: minutes(w.To)}
	for d := time.Sunday; d <= time.Saturday; d++ {
		short := [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}[d]
		out.days[d] = len(w.Days) == 0 || slices.Contains(w.Days, short)
	}
	return out
}

// minutes of a time that is known to be valid.
func minutes(hhmm string) int {
	h, m := hhmm[:2], hhmm[3:]
	return (int(h[0]-'0')*10+int(h[1]-'0'))*60 + int(m[0]-'0')*10 + int(m[1]-'0')
}

func (w *window) contains(day time.Weekday, minute int) bool {
	if w.from < w.to {
		return w.days[day] && w.from <= minute && minute < w.to
	}
	yesterday := (day + 6) % 7
	return w.days[day] && minute >= w.from || w.days[yesterday] && minute < w.to
}

// apply is s with what the window overrides.
func (w *Window) apply(s *Spec) Spec {
	out := *s
	if w.Mode != "" {
		out.Mode = w.Mode
	}
	if w.CPUWaitP99 != nil {
		out.Objectives.CPUWaitP99 = *w.CPUWaitP99
	}
	if w.CPUWaitEvent != nil {
		out.Objectives.CPUWaitEvent = *w.CPUWaitEvent
	}
	if w.Posture != "" {
		out.CPU.Posture = w.Posture
	}
	if w.Ladder != nil {
		out.CPU.Ladder = w.Ladder
	}
	return out
}
