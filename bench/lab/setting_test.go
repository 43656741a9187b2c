package lab

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChangedSettings(t *testing.T) {
	dir := t.TempDir()
	file, record := filepath.Join(dir, "cpumask"), filepath.Join(dir, "record")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(want string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if got := strings.TrimSpace(string(text)); err != nil || got != want {
			t.Fatalf("the setting is %q (%v), want %q", got, err, want)
		}
	}
	put("3\n")
	var said bytes.Buffer
	undo, err := change(record, file, "1", &said)
	if err != nil {
		t.Fatal(err)
	}
	holds("1")
	if hint := "echo '3' > " + file; !strings.Contains(said.String(), hint) {
		t.Errorf("%q does not say %q", said.String(), hint)
	}
	if _, err := change(record, file, "2", &said); err == nil {
		t.Error("what is to be put back is forgotten for a second change")
	}
	holds("1")
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	holds("3")

	// A bench that is killed has no time for that: the next one does it.
	if _, err := change(record, file, "1", &said); err != nil {
		t.Fatal(err)
	}
	if s, err := putBack(record); err != nil || s != (setting{file, "3"}) {
		t.Fatalf("put back %+v: %v", s, err)
	}
	holds("3")
	if s, err := putBack(record); err != nil || s != (setting{}) {
		t.Fatalf("once more %+v: %v", s, err)
	}

	// What cannot be put back stays on record.
	if _, err := change(record, file, "1", &said); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := putBack(record); err == nil || !strings.Contains(err.Error(), record) {
		t.Errorf("error %v, want one that names %s", err, record)
	}
	if _, err := os.Stat(record); errors.Is(err, fs.ErrNotExist) {
		t.Error("the record is gone")
	}
}
