package classes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

const (
	lockName    = "lock.resctrl"
	journalName = "journal.resctrl"
	// compactAt is the size from which the journal is rewritten; without history it is a few kilobytes.
	compactAt = 64 << 10
)

// Operations of the journal.
const (
	opBoot = "boot" // first line: which run of the machine, where resctrl is, whether we mount it
	opMake = "make" // the group is about to be made
	opDrop = "drop" // the group is no more
)

type record struct {
	Op      string `json:"op"`
	Boot    string `json:"boot,omitempty"`
	Dir     string `json:"dir,omitempty"`
	Mounted bool   `json:"mounted,omitempty"`
	Group   string `json:"group,omitempty"`
}

// history is what a journal says in the end.
type history struct {
	boot    string
	dir     rdt.Dir
	mounted bool
	groups  map[string]bool
}

func loadHistory(runDir string) (history, error) {
	text, err := os.ReadFile(filepath.Join(runDir, journalName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return history{}, fmt.Errorf("journal: %w", err)
	}
	return readHistory(text), nil
}

func readHistory(text []byte) history {
	h := history{groups: map[string]bool{}}
	for line := range bytes.Lines(text) {
		var r record
		if journal.Parse(bytes.TrimSuffix(line, []byte("\n")), &r) != nil {
			continue // torn, or damaged: our groups are known by their names, too
		}
		switch r.Op {
		case opBoot:
			h.boot, h.dir, h.mounted = r.Boot, rdt.Dir(r.Dir), r.Mounted
		case opMake:
			h.groups[r.Group] = true
		case opDrop:
			delete(h.groups, r.Group)
		}
	}
	return h
}

// state is the journal without history.
func (e *Executor) state() []record {
	out := []record{{Op: opBoot, Boot: e.boot, Dir: string(e.dir), Mounted: e.mounted}}
	groups := maps.Clone(e.owed)
	for _, c := range e.classes {
		groups[c.group()] = true
	}
	for _, p := range e.pods {
		if p.mon != "" {
			groups[p.dest()] = true
		}
	}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		out = append(out, record{Op: opMake, Group: g})
	}
	return out
}

// announce writes that a group is about to be made, and waits until that is on the disk.
func (e *Executor) announce(group string) error {
	if e.journal.Size() > compactAt {
		if err := e.journal.Replace(e.state()); err != nil {
			return err
		}
	}
	return e.journal.Append([]record{{Op: opMake, Group: group}}, true)
}

// forget writes that a group is no more. Nothing bad happens without it.
func (e *Executor) forget(group string) {
	if err := e.journal.Append([]record{{Op: opDrop, Group: group}}, false); err != nil {
		e.log.Error("journal cannot be written", "error", err)
	}
}
