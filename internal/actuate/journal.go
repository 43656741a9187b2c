package actuate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/knob"
)

const (
	journalName = "journal"
	damagedName = "journal.damaged" // a copy of one that was not understood as a whole
	// compactAt is the size from which the journal is rewritten, if it is mostly history.
	compactAt = 256 << 10
	// perKnob is a generous guess at what one held knob takes in a journal without history.
	perKnob = 512
)

// The journal is lines of a checksum and a record. A torn last line is what a crash leaves and is dropped. Records of one
// batch are appended by one write, before the batch begins; opDone says that the batch is over, and until then each knob of it
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

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumLen is eight digits and a blank.
const checksumLen = 9

func appendRecord(b []byte, r record) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return b, err
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(text, castagnoli))
	return append(append(b, text...), '\n'), nil
}

// parseRecord reads one line without its newline.
func parseRecord(line []byte) (record, error) {
	var r record
	if len(line) < checksumLen || line[checksumLen-1] != ' ' {
		return r, errors.New("no checksum")
	}
	sum, text := line[:checksumLen-1], line[checksumLen:]
	if want := fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli)); want != string(sum) {
		return r, errors.New("checksum is wrong")
	}
	return r, json.Unmarshal(text, &r)
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
		r, err := parseRecord(line)
		if err != nil {
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

// journal is the open file. It is only ever appended to, or replaced as a whole.
type journal struct {
	dir  string
	file *os.File
	size int64
	buf  []byte
	// crash is a hook for tests that kill the process between two steps.
	crash func(point string)
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

// newJournal replaces the journal in dir by one with these records.
func newJournal(dir string, records []record, crash func(string)) (*journal, error) {
	j := &journal{dir: dir, crash: crash}
	return j, j.replace(records)
}

// reopenJournal goes on with the journal in dir as it is.
func reopenJournal(dir string, crash func(string)) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, journalName), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	whole := bytes.LastIndexByte(text, '\n') + 1 // without a torn last line
	return &journal{dir: dir, file: f, size: int64(whole), crash: crash}, nil
}

// replace writes a new file beside the old one and puts it into its place, so that there is a whole journal at any time.
func (j *journal) replace(records []record) error {
	text, err := j.encode(records)
	if err != nil {
		return err
	}
	name := filepath.Join(j.dir, journalName)
	tmp, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Sync()
	}
	j.crash("journal written anew")
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		tmp.Close()
		os.Remove(tmp.Name()) // half a file is of no use, and the room may be what is missing
		return fmt.Errorf("journal: %w", err)
	}
	j.crash("journal replaced")
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size = tmp, int64(len(text))
	return j.syncDir()
}

func (j *journal) syncDir() error {
	d, err := os.Open(j.dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (j *journal) encode(records []record) ([]byte, error) {
	b := j.buf[:0]
	var err error
	for _, r := range records {
		if b, err = appendRecord(b, r); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	j.buf = b
	return b, nil
}

// append adds records by one write, and waits until they are on the disk if sync is set. After an error the journal is as it
// was before.
func (j *journal) append(records []record, sync bool) error {
	text, err := j.encode(records)
	if err != nil {
		return err
	}
	if _, err = j.file.WriteAt(text, j.size); err == nil && sync {
		err = unix.Fdatasync(int(j.file.Fd()))
	}
	if err != nil {
		j.file.Truncate(j.size) // what is left of a torn line is dropped by the reader, too
		return fmt.Errorf("journal: %w", err)
	}
	j.size += int64(len(text))
	j.crash("journal appended")
	return nil
}

// bloated reports whether the journal is mostly history.
func (j *journal) bloated(held int) bool { return j.size > compactAt && j.size > 4*perKnob*int64(held) }

func (j *journal) close() error { return j.file.Close() }
