package actuate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
)

const (
	lockName    = "lock"
	journalName = "journal"
	damagedName = "journal.damaged" // a copy of one that was not understood as a whole
	// compactAt is the size from which the journal is rewritten, if it is mostly history.
	compactAt = 256 << 10
	// perKnob is a generous guess at what one held knob takes in a journal without history.
	perKnob = 512
)

// Records of one batch are appended by one write, before the batch begins; opDone says that the batch is over, and until then each knob of it
// may show any of the values on its way.
const (
	opBoot = "boot" // first line: which run of the machine, which cgroup root
	opHold = "hold" // a knob is held from now on, or its original has changed
	opSet  = "set"  // the knob is about to get these values, one after the other
	opNow  = "now"  // it did not get the last of them but this
	opDone = "done" // the batch is over
	opDrop = "drop" // the knob is not held any more
)

type record struct {
	Op string `json:"op"`

	Boot string `json:"boot,omitempty"`
	Root string `json:"root,omitempty"`

	Group    string   `json:"group,omitempty"`
	Knob     string   `json:"knob,omitempty"`
	ID       uint64   `json:"id,omitempty"` // inode of the group in the knob's hierarchy
	Original string   `json:"original,omitempty"`
	Now      string   `json:"now,omitempty"`
	Maybe    []string `json:"maybe,omitempty"` // other values that it may show
	To       []string `json:"to,omitempty"`

	Owner  string `json:"owner,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Pod    string `json:"pod,omitempty"`
	Victim string `json:"victim,omitempty"`
	Since  int64  `json:"since,omitempty"` // ns since 1970
}

var kindOf = func() map[string]knob.Kind {
	m := make(map[string]knob.Kind)
	for _, k := range knob.Kinds() {
		m[k.String()] = k
	}
	return m
}()

func (r *record) target() (knob.Target, bool) {
	kind, ok := kindOf[r.Knob]
	return knob.Target{Cgroup: r.Group, Kind: kind}, ok
}

// history is what a journal says in the end.
type history struct {
	boot, root string
	held       map[knob.Target]*record // opHold records brought up to date
	order      []knob.Target           // in which they were held first
	damaged    int                     // lines in the middle that could not be read
}

// readHistory makes sense of a journal, whatever a crash has left of it.
func readHistory(text []byte) history {
	h := history{held: make(map[knob.Target]*record)}
	var open []*record // the knobs of the batch that has not ended
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		text = rest
		var r record
		if err := journal.Parse(line, &r); err != nil {
			if whole && len(rest) > 0 {
				h.damaged++
			}
			continue
		}
		t, known := r.target()
		switch r.Op {
		case opBoot:
			h.boot, h.root = r.Boot, r.Root
		case opHold:
			if !known {
				h.damaged++
				continue
			}
			if h.held[t] == nil {
				h.order = append(h.order, t)
			}
			h.held[t] = &r
		case opSet:
			if k := h.held[t]; k != nil && len(r.To) > 0 {
				k.Maybe = append(append(k.Maybe, k.Now), r.To[:len(r.To)-1]...)
				k.Now = r.To[len(r.To)-1]
				open = append(open, k)
			}
		case opNow:
			if k := h.held[t]; k != nil {
				k.Now = r.Now
			}
		case opDone:
			for _, k := range open {
				k.Maybe = nil
			}
			open = open[:0]
		case opDrop:
			delete(h.held, t)
		}
	}
	// A knob that was dropped and held again is in order twice.
	kept := h.order[:0]
	seen := make(map[knob.Target]bool)
	for _, t := range h.order {
		if h.held[t] != nil && !seen[t] {
			seen[t] = true
			kept = append(kept, t)
		}
	}
	h.order = kept
	return h
}

func loadHistory(dir string) (history, error) {
	text, err := os.ReadFile(filepath.Join(dir, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return readHistory(nil), nil
	}
	if err != nil {
		return history{}, fmt.Errorf("journal: %w", err)
	}
	return readHistory(text), nil
}

// bloated reports whether the journal is mostly history.
func bloated(j *journal.File[record], held int) bool {
	return j.Size() > compactAt && j.Size() > 4*perKnob*int64(held)
}
