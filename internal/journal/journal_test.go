package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

type entry struct {
	N int `json:"n"`
}

func read(t *testing.T, path string) (numbers []int, bad int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var e entry
		if Parse(bytes.TrimSuffix(line, []byte("\n")), &e) != nil {
			bad++
			continue
		}
		numbers = append(numbers, e.N)
	}
	return numbers, bad
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	f, err := Create(path, []entry{{1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Append([]entry{{2}, {3}}, true))
	must(f.Close())
	// A crash in the middle of a write leaves half a line; whoever goes on writes over it.
	raw, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(err)
	_, err = raw.WriteString("deadbeef {\"n\":")
	must(errors.Join(err, raw.Close()))
	if n, bad := read(t, path); !slices.Equal(n, []int{1, 2, 3}) || bad != 1 {
		t.Errorf("read %v and %d bad lines", n, bad)
	}
	f, err = Reopen[entry](path, nil)
	must(err)
	must(f.Append([]entry{{4}}, false))
	if n, _ := read(t, path); !slices.Equal(n, []int{1, 2, 3, 4}) {
		t.Errorf("after it went on: %v", n)
	}
	must(f.Replace([]entry{{9}}))
	must(f.Append([]entry{{10}}, false))
	if n, bad := read(t, path); !slices.Equal(n, []int{9, 10}) || bad != 0 {
		t.Errorf("after it was replaced: %v, %d bad", n, bad)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != f.Size() {
		t.Errorf("size %v, %d, %v", info, f.Size(), err)
	}
	must(f.Close())
}

func TestADiskThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	f, err := Create(path, []entry{{1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	good := f.Swap(readOnly)
	if err := f.Append([]entry{{2}}, true); err == nil {
		t.Error("written to a file that is for reading only")
	}
	f.Swap(good)
	if err := errors.Join(readOnly.Close(), f.Append([]entry{{3}}, true), f.Close()); err != nil {
		t.Fatal(err)
	}
	if n, bad := read(t, path); !slices.Equal(n, []int{1, 3}) || bad != 0 {
		t.Errorf("read %v and %d bad lines", n, bad)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	line, err := Encode(nil, entry{7})
	if err != nil {
		t.Fatal(err)
	}
	line = bytes.TrimSuffix(line, []byte("\n"))
	for i := range line {
		bad := bytes.Clone(line)
		bad[i] ^= 4
		var e entry
		if Parse(bad, &e) == nil {
			t.Errorf("byte %d changed, and read as %+v", i, e)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	lock, err := Lock(dir, "lock")
	if err != nil {
		t.Fatal(err)
	}
	var busy *Busy
	if _, err := Lock(dir, "lock"); !errors.As(err, &busy) || busy.PID != os.Getpid() {
		t.Errorf("a second time: %v", err)
	}
	other, err := Lock(dir, "other")
	if err != nil {
		t.Errorf("another lock: %v", err)
	}
	other.Close()
	lock.Close()
	if lock, err = Lock(dir, "lock"); err != nil {
		t.Fatal(err)
	}
	lock.Close()
}
