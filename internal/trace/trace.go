// Package trace is the recording format: what a node saw, what was decided, and what became of it, step by step, in a form from
// which every decision can be made again (package replay).
//
// A recording is a series of files, one after the other in time (see Dir). Each file stands alone: it begins with facts about the
// node, the policy in force and a checkpoint of everything that the controllers remember. Steps are written as differences from the
// step before, in compressed frames of two seconds or so with checksums; about once a minute a key frame can be read without those
// before it. A file that ends in the middle of a frame has lost that frame and no other.
package trace

import (
	"reflect"
	"sync"
	"time"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
)

// Step is one step of the loop: what went in, what came out, and what became of it.
type Step struct {
	// Snapshot is what was seen. As read, it is valid until the second next step is read: the pods in it for good, the containers and
	// what they point to until the next.
	Snapshot *signal.Snapshot
	// Policy is what was in force; nil: there was none, nothing was judged and nothing wanted.
	Policy *policy.Compiled

	// Decision is what the step came to. As read, Spec, Verdicts and Findings are missing: they are not recorded in full, and can be made
	// again from a checkpoint on. The rest holds until the next step is read.
	Decision decide.Decision
	// Digest stands for all of the decision.
	Digest Digest

	// Outcomes is what the executor did because of the decision, and by its own rounds since the step before.
	Outcomes []Outcome

	// Dropped is how many steps are missing right before this one, because the recorder could not keep up. Unless State is there as well,
	// decisions from here on cannot be made again exactly.
	Dropped uint64
	// State is a checkpoint of the brain before this step, to be written; nil: there is none here. See decide.Restore and Info.StateLayout. As read
	// it is nil: see Checkpoint.
	State []byte
	// packed has the checkpoint in the file that the step was read from.
	packed *Reader

	// quiet says that an event's containers are left out, because they are those of the last tick without their waits.
	quiet bool
}

// HasState reports whether there is a checkpoint before this step.
func (s *Step) HasState() bool { return s.State != nil || s.packed != nil }

// Checkpoint is State, also of a step that was read: it is decompressed only when asked for, and valid until the next step is read.
func (s *Step) Checkpoint() ([]byte, error) {
	if s.State == nil && s.packed != nil {
		var err error
		if s.State, err = s.packed.checkpoint(); err != nil {
			return nil, err
		}
	}
	return s.State, nil
}

// Outcome is one change that the executor made or tried.
type Outcome struct {
	knob.Want
	// Resource is what of a resctrl group was changed ("L3", "MB", "tasks", "group", "mon"), whose name is in Cgroup; "" for a knob.
	Resource string
	Old, New string // as the kernel shows it
	Result   knob.Result
	Err      string // with Failed and Mismatch
	Audit    bool   // found on a round, not done for this step's plan
}

// Info is what a file says about itself.
type Info struct {
	Agent    string    `json:"agent"`  // version
	Run      string    `json:"run"`    // the same for all files of one run of the daemon, and for no other
	Part     int       `json:"part"`   // of the run, from 0
	Started  time.Time `json:"start"`  // of this file; local time of the node
	Arch     string    `json:"arch"`   // GOARCH
	Hostname string    `json:"host"`   //
	Kernel   string    `json:"kernel"` // release
	// Interval is the time between ticks.
	Interval time.Duration `json:"interval"`
	// Capabilities are the results of the probes that the node went through.
	Capabilities []Capability `json:"capabilities,omitempty"`
	// Note says where a recording comes from that no daemon made.
	Note string `json:"note,omitempty"`

	StateLayout string `json:"stateLayout"`
	Schema      schema `json:"schema"`
}

// Capability is the result of a probe.
type Capability struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// schema is what the writer's types looked like.
type schema struct {
	Records map[string][]partSchema `json:"records"`
	Pod     string                  `json:"pod"`
	// Container is a whole container, for events that bring their own.
	Container string        `json:"container"`
	Outcome   string        `json:"outcome"`
	Decision  []fieldSchema `json:"decision"`
}

// fieldSchema is a field of a decision.
type fieldSchema struct {
	Name string `json:"name"`
	Kept bool   `json:"kept"` // in full; else only its digest
	Type string `json:"type"`
}

// types are the plans of everything that is recorded.
type types struct {
	container, node, lost, event *recordType
	pod, outcome                 *wire.Type
	decision                     []decisionField
}

// newTypes makes them, once: they are plans, which nobody changes.
var newTypes = sync.OnceValues(makeTypes)

func makeTypes() (t types, err error) {
	if t.container, err = newRecordType[signal.ContainerSample]("Wait"); err != nil {
		return t, err
	}
	if t.node, err = newRecordType[signal.Node](); err != nil {
		return t, err
	}
	if t.lost, err = newRecordType[signal.Lost](); err != nil {
		return t, err
	}
	if t.event, err = newRecordType[signal.WaitEvent](); err != nil {
		return t, err
	}
	if t.pod, err = wire.Compile(reflect.TypeFor[signal.Pod]()); err != nil {
		return t, err
	}
	if t.outcome, err = wire.Compile(reflect.TypeFor[Outcome]()); err != nil {
		return t, err
	}
	t.decision, err = decisionFields()
	return t, err
}

func (t *types) schema() schema {
	s := schema{
		Records: map[string][]partSchema{
			"container": t.container.schema(), "node": t.node.schema(), "lost": t.lost.schema(), "event": t.event.schema(),
		},
		Pod: t.pod.Schema(), Outcome: t.outcome.Schema(), Container: wholeType.Schema(),
	}
	for _, f := range t.decision {
		s.Decision = append(s.Decision, fieldSchema{f.name, f.kept, f.t.Schema()})
	}
	return s
}

// decisionField is a field of decide.Decision.
type decisionField struct {
	name   string
	offset uintptr
	t      *wire.Type
	kept   bool
}

// decisionFields is every field but Spec, which is the policy's. Verdicts and findings are many and new at each step; their digests
// tell whether a replay comes to the same.
func decisionFields() ([]decisionField, error) {
	t, err := wire.Compile(reflect.TypeFor[decide.Decision]())
	if err != nil {
		return nil, err
	}
	var out []decisionField
	for _, f := range t.Fields() {
		if f.Name != "Spec" {
			out = append(out, decisionField{f.Name, f.Offset, f.Type, f.Name != "Verdicts" && f.Name != "Findings"})
		}
	}
	return out, nil
}

// Digest is a hash of each field of a decision, in the order of Digester.Fields. Equal decisions have equal digests on every machine.
type Digest []uint64

// Digester makes digests. It remembers the last decision, most of which is that of the next.
type Digester struct {
	fields []decisionField
	last   decide.Decision // the kept fields
	digest Digest          // of last
}

// NewDigester makes a digester.
func NewDigester() (*Digester, error) {
	t, err := newTypes()
	return &Digester{fields: t.decision}, err
}

// Fields is the names of the fields of a decision that have a digest.
func (d *Digester) Fields() []string {
	out := make([]string, len(d.fields))
	for i, f := range d.fields {
		out[i] = f.name
	}
	return out
}

// Digest makes the digest of a decision, using the memory of into.
func (d *Digester) Digest(into Digest, of *decide.Decision) Digest {
	into = into[:0]
	first := len(d.digest) == 0
	if first {
		d.digest = make(Digest, len(d.fields))
	}
	for i := range d.fields {
		f := &d.fields[i]
		now := unsafe.Add(unsafe.Pointer(of), f.offset)
		if !f.kept {
			into = append(into, f.t.Hash(0, now))
			continue
		}
		// Comparing is cheaper than hashing: strings are mostly the same ones.
		if last := unsafe.Add(unsafe.Pointer(&d.last), f.offset); first || !f.t.Equal(now, last) {
			f.t.Copy(last, now)
			d.digest[i] = f.t.Hash(0, now)
		}
		into = append(into, d.digest[i])
	}
	return into
}
