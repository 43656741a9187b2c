package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
)

// drain reads all that can be read and insists on errors that say where.
func drain(t *testing.T, data []byte) {
	r, err := NewReader("fuzz.qostrace", bytes.NewReader(data), int64(len(data)))
	if err == nil {
		defer r.Close()
		_, _, _ = r.Range()
		for n := 0; err == nil; n++ {
			var s *Step
			if s, err = r.Next(); err == nil {
				use(t, s)
			}
			if n > 1<<20 {
				t.Fatalf("%d steps in %d bytes", n, len(data))
			}
		}
		if err == io.EOF {
			return
		}
	}
	var fe *FormatError
	if !errors.As(err, &fe) || fe.File != "fuzz.qostrace" || fe.Offset < 0 || fe.Offset > int64(len(data)) {
		t.Fatalf("an error that does not say where: %v", err)
	}
}

// use does with a step what a replay does: it must not matter what was in the file.
func use(t *testing.T, s *Step) {
	if s.Policy == nil {
		return
	}
	decide.New().Step(s.Snapshot, s.Policy)
	state, err := s.Checkpoint()
	if fe := new(FormatError); err != nil && !errors.As(err, &fe) {
		t.Fatalf("an error that does not say where: %v", err)
	}
	if state != nil {
		_, _ = decide.Restore(decide.StateLayout(), state)
	}
}

func sample(t testing.TB) []byte {
	w := newWalk(t, 11)
	var steps []*Step
	for range 12 {
		steps = append(steps, w.step())
	}
	return write(t, WriterOptions{KeyEvery: time.Second}, steps...)
}

// repair makes all checksums right, so that what the fuzzer changes is looked at.
func repair(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < preambleLen {
		return data
	}
	fixPreamble(data)
	le := binary.LittleEndian
	for at := preambleLen; at+headerLen <= len(data); {
		le.PutUint32(data[at:], syncWord)
		n := min(int(le.Uint32(data[at+8:])), len(data)-at-headerLen)
		le.PutUint32(data[at+8:], uint32(n))
		le.PutUint32(data[at+12:], crc32.Checksum(data[at+headerLen:at+headerLen+n], castagnoli))
		le.PutUint32(data[at+44:], crc32.Checksum(data[at:at+44], castagnoli))
		at += headerLen + n
	}
	return data
}

// FuzzReader changes a file as such: what it gets is cut, flipped, foreign.
func FuzzReader(f *testing.F) {
	data := sample(f)
	f.Add(data)
	f.Add(data[:len(data)-40])
	f.Add(data[:len(data)/2])
	flipped := bytes.Clone(data)
	flipped[len(flipped)/3] ^= 0x40
	f.Add(flipped)
	f.Fuzz(func(t *testing.T, data []byte) {
		drain(t, data)
		drain(t, repair(data))
	})
}

// FuzzSteps puts what it gets behind checksums, and begins with streams that are not compressed.
func FuzzSteps(f *testing.F) {
	valid := sample(f)
	r := open(f, valid)
	if _, err := r.Next(); err != nil {
		f.Fatal(err)
	}
	for i := 0; i < 3; i++ {
		var payload []byte
		for k, b := range r.streams {
			if k == streamBits {
				b = b[:len(b)-bitPadding]
			}
			payload = plain(payload, b)
		}
		f.Add(r.header.steps, payload)
		for r.left > 0 {
			if _, err := r.Next(); err != nil {
				f.Fatal(err)
			}
		}
		if _, err := r.Next(); err == io.EOF {
			break
		} else if err != nil {
			f.Fatal(err)
		}
	}
	// What goes before: the facts about the node and a policy.
	head := valid[:r.Index()[len(r.Index())-1].Offset]
	for _, e := range r.Index() {
		if !e.Policy && e.Offset < int64(len(head)) {
			head = valid[:e.Offset]
		}
	}
	f.Fuzz(func(t *testing.T, steps uint32, payload []byte) {
		h := frameHeader{kind: frameSteps, flags: flagKey, length: uint32(len(payload)), crc: crc32.Checksum(payload, castagnoli), steps: steps}
		drain(t, append(h.append(bytes.Clone(head)), payload...))
	})
}

func TestHostileSchemas(t *testing.T) {
	for _, schema := range []string{
		"{a:^1}", "[2]^1", "[65536][65536][65536]b", "[]{}", "*^1", "[]^1", "{", "{a", "{a:", "{a:i", "[", "[9", "<s", "<s>", "^1", "^0", "",
		"[99999999999999999999]b", "{a:i,,}", "z", "{a:{a:{a:{a:^2}}}}",
	} {
		if d, err := podType.Bind(schema); err == nil {
			t.Errorf("%q was bound to a pod: %v", schema, d)
		}
	}
}
