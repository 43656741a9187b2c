package trace

import (
	"fmt"

	"github.com/qos-agent/qos-agent/internal/wire"
)

// newPlan finds out how to read what a writer with that schema wrote.
func newPlan(s *schema) (p plan, err error) {
	t, err := newTypes()
	if err != nil {
		return p, err
	}
	for _, r := range []struct {
		name string
		ours *recordType
		to   **recordType
	}{{"container", t.container, &p.container}, {"node", t.node, &p.node}, {"lost", t.lost, &p.lost}, {"event", t.event, &p.event}} {
		bound, missing, dropped, err := r.ours.bind(s.Records[r.name])
		if err != nil {
			return p, err
		}
		if len(bound.parts) > 8 || r.name == "container" && len(bound.parts) > 7 {
			return p, fmt.Errorf("schema of %s: %d parts", r.name, len(bound.parts))
		}
		*r.to = bound
		p.missing, p.dropped = append(p.missing, missing...), append(p.dropped, dropped...)
	}
	for _, v := range []struct {
		name, schema string
		ours         *wire.Type
		to           **wire.Decoder
	}{{"pod", s.Pod, t.pod, &p.pod}, {"outcome", s.Outcome, t.outcome, &p.outcome}, {"container", s.Container, wholeType, &p.whole}} {
		d, err := v.ours.Bind(v.schema)
		if err != nil {
			return p, fmt.Errorf("schema of %s: %w", v.name, err)
		}
		*v.to = d
		for _, m := range d.Missing {
			p.missing = append(p.missing, v.name+m)
		}
		for _, m := range d.Dropped {
			p.dropped = append(p.dropped, v.name+m)
		}
	}
	p.ours = t.decision
	return p, p.bindDecision(s.Decision, t.decision)
}

func (p *plan) bindDecision(file []fieldSchema, ours []decisionField) error {
	if len(file) > maxLeaves {
		return fmt.Errorf("schema of decision: %d fields", len(file))
	}
	for _, fs := range file {
		f := readField{index: -1}
		for i := range ours {
			if ours[i].name == fs.Name {
				f.index, f.offset = i, ours[i].offset
				// A digest is of the value as it was then: with other fields in it, it cannot be compared.
				f.known = ours[i].t.Schema() == fs.Type
			}
		}
		if fs.Kept {
			var err error
			if f.index >= 0 {
				f.d, err = ours[f.index].t.Bind(fs.Type)
			} else {
				f.d, err = wire.Skip(fs.Type)
			}
			if err != nil {
				return fmt.Errorf("schema of decision.%s: %w", fs.Name, err)
			}
		}
		p.decision = append(p.decision, f)
	}
	return nil
}

// Comparable is which fields of a digest mean the same in this file and in this version, in the order of Digester.Fields.
func (r *Reader) Comparable() []bool {
	out := make([]bool, len(r.digest))
	for _, f := range r.plan.decision {
		if f.index >= 0 {
			out[f.index] = f.known
		}
	}
	return out
}
