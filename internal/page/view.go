package page

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/server"
)

// Limits of what a frame holds. Beyond them the page says how many more there are; the state API has all.
const (
	maxVictims  = 60
	maxCulprits = 60
	maxKnobs    = 1000
	blameShown  = 6
)

// troublesShown is how many verdicts of each level the page lists; the table of pods has them all.
var troublesShown = map[string]int{"violated": 20, "watch": 8, "unknown": 4}

// axes is the order of levels in a row. What else there is of axes is shown in the list of troubles only.
var axes = []string{"cpu", "memory", "io", "cache", "bandwidth"}

// view is the state as the page shows it, cut into sections of which only those that changed are sent.
type view struct {
	at       time.Time
	sections map[string][]byte // JSON by name
	rows     []string          // JSON, by container in the order of the section pods
	notes    []note            // oldest first

	of *server.State
}

// note is an entry of the decision log, encoded.
type note struct {
	id   uint64
	json []byte
}

// podView is a pod's identity: what changes rarely.
type podView struct {
	Name       string   `json:"n"` // namespace/name
	Class      string   `json:"c"`
	Rule       string   `json:"r"`
	QoS        string   `json:"q,omitempty"`
	Containers []string `json:"k"`
}

// trouble is a verdict that is not ok.
type trouble struct {
	Pod       string       `json:"pod"`
	Container string       `json:"container"`
	Axis      string       `json:"axis"`
	Level     string       `json:"level"`
	Reason    string       `json:"reason"`
	Since     int64        `json:"since"` // s since 1970, so that it changes only when the level does
	P99       float64      `json:"p99,omitempty"`
	Objective float64      `json:"objective,omitempty"`
	Stall     float64      `json:"stall,omitempty"`
	StallMax  float64      `json:"stallMax,omitempty"`
	CPI       float64      `json:"cpi,omitempty"`
	CPIFence  float64      `json:"cpiFence,omitempty"`
	Blame     []blameShare `json:"blame,omitempty"`
	Culprits  []string     `json:"culprits,omitempty"`
}

// classView is a class of service.
type classView struct {
	Group    string   `json:"group"`
	Schemata string   `json:"schemata"`
	Ways     int      `json:"ways,omitempty"`
	Percent  int      `json:"percent,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	Victim   string   `json:"victim,omitempty"`
	Pods     []string `json:"pods"`
	Since    int64    `json:"since"` // s since 1970
}

func classes(s *server.State) []classView {
	out := []classView{}
	if s.Node.RDT == nil {
		return out
	}
	for i := range s.Node.RDT.Classes {
		c := &s.Node.RDT.Classes[i]
		out = append(out, classView{c.Group, c.Schemata, c.Ways, c.BandwidthPercent, c.Rule, c.Victim, notNil(c.Pods), ago(s.At, c.AgeSeconds)})
	}
	return out
}

// ago is when something began, in s since 1970: it changes only when what began does.
func ago(now time.Time, seconds float64) int64 {
	return now.Add(-time.Duration(seconds * float64(time.Second))).Round(time.Second).Unix()
}

type blameShare struct {
	Name  string  `json:"name"`
	Ratio float64 `json:"ratio"`
}

// nowView is what changes every second.
type nowView struct {
	CPU      *server.NodeCPU  `json:"cpu,omitempty"`
	Pressure *server.Pressure `json:"pressure,omitempty"`
	Loop     server.Loop      `json:"loop"`
}

// newView cuts a state up. What is as in the last view, if there is one, is taken over from it instead of encoded again: on a node of
// many pods most of it is.
func newView(s *server.State, last *view) (*view, error) {
	if last == nil {
		last = &view{of: &server.State{}}
	}
	v := &view{at: s.At, sections: make(map[string][]byte, 16), rows: make([]string, 0, len(last.rows)), of: s}
	node := s.Node
	node.Signals, node.Capabilities, node.RDT = server.NodeSignals{}, nil, nil
	now := nowView{Loop: s.Loop}
	if c := s.Node.Signals.CPU; c != nil {
		now.CPU = &server.NodeCPU{AgeSeconds: round(c.AgeSeconds, 1), BusyRatio: round(c.BusyRatio, 3), StealRatio: round(c.StealRatio, 3),
			SoftirqRatio: round(c.SoftirqRatio, 3), IRQRatio: round(c.IRQRatio, 3)}
	}
	if p := s.Node.Signals.Pressure; p != nil {
		q := *p
		now.Pressure = &q
	}
	list, counts := troubles(s)
	knobs := s.Knobs
	if len(knobs) > maxKnobs {
		knobs = knobs[:maxKnobs]
	}
	var buf []byte
	levels := levelsOf(s)
	for i := range s.Pods {
		p := &s.Pods[i]
		for j := range p.Containers {
			c := &p.Containers[j]
			buf = row(buf[:0], levels[levelKey{p.Namespace, p.Name, c.Name}], &c.Signals)
			v.rows = append(v.rows, same(buf, last.rows, len(v.rows)))
		}
	}
	sections := map[string]any{
		"agent": s.Agent, "node": node, "policy": s.Policy, "source": s.PodSource, "now": now,
		"classes": classes(s), "troubles": map[string]any{"list": list, "counts": counts},
	}
	switch text := last.sections["pods"]; {
	case text != nil && slices.EqualFunc(s.Pods, last.of.Pods, samePod):
		v.sections["pods"] = text
	default:
		sections["pods"] = podViews(s)
	}
	switch text := last.sections["capabilities"]; {
	case text != nil && slices.Equal(s.Node.Capabilities, last.of.Node.Capabilities):
		v.sections["capabilities"] = text
	default:
		sections["capabilities"] = s.Node.Capabilities
	}
	switch text := last.sections["knobs"]; {
	case text != nil && slices.Equal(s.Knobs, last.of.Knobs):
		v.sections["knobs"] = text
	default:
		sections["knobs"] = map[string]any{"list": notNil(knobs), "hidden": len(s.Knobs) - len(knobs)}
	}
	for name, value := range sections {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		v.sections[name] = text
	}
	var err error
	v.notes, err = encodeNotes(s.Notes, last.notes)
	return v, err
}

// same is text as a string: the one at i of the last rows if that says the same.
func same(text []byte, last []string, i int) string {
	if i < len(last) && last[i] == string(text) {
		return last[i]
	}
	return string(text)
}

func podViews(s *server.State) []podView {
	pods := make([]podView, len(s.Pods))
	for i := range s.Pods {
		p := &s.Pods[i]
		pods[i] = podView{Name: p.Namespace + "/" + p.Name, Class: p.Class, Rule: p.ClassRule, QoS: p.QoSClass, Containers: []string{}}
		for j := range p.Containers {
			pods[i].Containers = append(pods[i].Containers, p.Containers[j].Name)
		}
	}
	return pods
}

// samePod tells whether the podView of both is the same.
func samePod(a, b server.Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Class == b.Class && a.ClassRule == b.ClassRule && a.QoSClass == b.QoSClass &&
		slices.EqualFunc(a.Containers, b.Containers, func(a, b server.Container) bool { return a.Name == b.Name })
}

// encodeNotes encodes entries, newest first, to notes, oldest first. Those that are among the last notes are taken from there.
func encodeNotes(entries []decisionlog.Entry, last []note) ([]note, error) {
	out := make([]note, 0, len(entries))
	for i := len(entries) - 1; i >= 0; i-- {
		id := entries[i].ID
		for len(last) > 0 && last[0].id < id {
			last = last[1:]
		}
		if len(last) > 0 && last[0].id == id {
			out = append(out, last[0])
			continue
		}
		text, err := json.Marshal(&entries[i])
		if err != nil {
			return nil, err
		}
		out = append(out, note{id, text})
	}
	return out, nil
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// troubles are the verdicts that are not ok: some of each level, and how many of each there are.
func troubles(s *server.State) (list []trouble, counts map[string]int) {
	list, counts = []trouble{}, map[string]int{"violated": 0, "watch": 0, "unknown": 0}
	for i := range s.Verdicts {
		v := &s.Verdicts[i]
		if v.Level == "ok" {
			continue
		}
		if counts[v.Level]++; counts[v.Level] > troublesShown[v.Level] {
			continue
		}
		e := &v.Evidence
		t := trouble{Pod: v.Namespace + "/" + v.Pod, Container: v.Container, Axis: v.Axis, Level: v.Level, Reason: v.Reason,
			Since: ago(s.At, v.SinceSeconds),
			P99:   round(e.P99Seconds, 6), Objective: e.ObjectiveSeconds, Stall: round(e.StallRatio, 3), StallMax: e.StallObjectiveRatio}
		if e.CPI != nil {
			t.CPI, t.CPIFence = round(e.CPI.CPI, 2), round(e.CPI.CPIFence, 2)
		}
		for _, b := range v.Blame[:min(len(v.Blame), blameShown)] {
			t.Blame = append(t.Blame, blameShare{partyName(b.Culprit), round(b.Ratio, 3)})
		}
		for _, c := range v.Culprits {
			t.Culprits = append(t.Culprits, partyName(c))
		}
		list = append(list, t)
	}
	return list, counts
}

func partyName(p server.Party) string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

type levelKey struct{ namespace, pod, container string }

// levelsOf is each container's level on each axis, one letter an axis: o, w, v, u, or - where nothing is judged.
func levelsOf(s *server.State) map[levelKey]string {
	out := make(map[levelKey]string)
	for i := range s.Verdicts {
		v := &s.Verdicts[i]
		at := slices.Index(axes, v.Axis)
		if at < 0 || v.Level == "" {
			continue
		}
		key := levelKey{v.Namespace, v.Pod, v.Container}
		text := []byte(cmp.Or(out[key], "-----"))
		text[at] = v.Level[0]
		out[key] = string(text)
	}
	return out
}

// row appends a container's figures as a JSON array of whole numbers, null where nothing was measured. The order is known to page.js.
// Rounding keeps a container that idles from changing.
func row(b []byte, levels string, s *server.Signals) []byte {
	b = append(b, `["`...)
	b = append(append(b, cmp.Or(levels, "-----")...), '"')
	num := func(ok bool, v float64) {
		b = append(b, ',')
		if !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			b = append(b, "null"...)
			return
		}
		b = strconv.AppendInt(b, int64(math.Round(v)), 10)
	}
	w, c, m, p, h, r := s.Wait, s.CPU, s.Memory, s.Pressure, s.Perf, s.RDT
	if w == nil {
		w = &server.Wait{}
	}
	if c == nil {
		c = &server.CPUUse{}
	}
	if m == nil {
		m = &server.Memory{}
	}
	if p == nil {
		p = &server.Pressure{}
	}
	if h == nil {
		h = &server.Perf{}
	}
	if r == nil {
		r = &server.RDT{}
	}
	num(s.Wait != nil && w.Count > 0, w.P99Seconds*1e6)                          // µs
	num(s.Wait != nil && w.SpanSeconds > 0, w.SumSeconds/w.SpanSeconds*1000)     // ms of waiting a second, all tasks
	num(s.CPU != nil, c.UsageCores*1000)                                         // thousandths of a CPU
	num(s.CPU != nil && c.QuotaCores > 0, c.QuotaCores*1000)                     // likewise
	num(s.CPU != nil && c.Periods > 0, ratio(c.ThrottledPeriods, c.Periods)*100) // %
	num(s.Memory != nil, float64(m.WorkingSetBytes)/(1<<20))                     // MiB
	num(s.Pressure != nil, p.CPUSomeRatio*1000)                                  // thousandths
	num(s.Pressure != nil, p.MemorySomeRatio*1000)
	num(s.Pressure != nil, p.IOSomeRatio*1000)
	num(s.Perf != nil && h.CPI > 0, h.CPI*100)                            // hundredths
	num(s.Perf != nil && h.CPI > 0, h.MPKI*100)                           // hundredths
	num(r.State == "ok", float64(r.OccupancyBytes)/(1<<10))               // KiB
	num(r.State == "ok", r.BandwidthBytesPerSecond/1e6)                   // MB/s
	num(s.Wait != nil && w.AgeSeconds > staleRow.Seconds(), w.AgeSeconds) // s; only when it matters
	return append(b, ']')
}

// staleRow is the age from which a container's figures are shown as old.
const staleRow = 3 * time.Second

func ratio(a, b uint64) float64 { return float64(a) / float64(b) }

// round keeps so many decimals.
func round(v float64, decimals int) float64 {
	f := math.Pow10(decimals)
	return math.Round(v*f) / f
}
