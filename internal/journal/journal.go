// Package journal keeps what has to outlive a killed agent: a file of records that is only ever appended to, or replaced as a whole,
// and the lock of the directory that it is in.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A journal is lines of a checksum and a record. A torn last line is what a crash leaves; a reader drops it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumLen is eight digits and a blank.
const checksumLen = 9

// Encode appends a record's line to b.
func Encode[R any](b []byte, r R) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return b, err
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(text, castagnoli))
	return append(append(b, text...), '\n'), nil
}

// Parse reads one line without its newline into r.
func Parse(line []byte, r any) error {
	if len(line) < checksumLen || line[checksumLen-1] != ' ' {
		return errors.New("no checksum")
	}
	sum, text := line[:checksumLen-1], line[checksumLen:]
	if want := fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli)); want != string(sum) {
		return errors.New("checksum is wrong")
	}
	return json.Unmarshal(text, r)
}

// File is an open journal of records of type R.
type File[R any] struct {
	path string
	file *os.File
	size int64
	buf  []byte
	// crash is a hook for tests that kill the process between two steps.
	crash func(point string)
}

// Create replaces the journal at path by one with these records. crash, which may be nil, is called between two steps, for tests that
// kill the process there.
func Create[R any](path string, records []R, crash func(point string)) (*File[R], error) {
	if crash == nil {
		crash = func(string) {}
	}
	f := &File[R]{path: path, crash: crash}
	return f, f.Replace(records)
}

// Reopen goes on with the journal at path as it is.
func Reopen[R any](path string, crash func(point string)) (*File[R], error) {
	if crash == nil {
		crash = func(string) {}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	whole := bytes.LastIndexByte(text, '\n') + 1 // without a torn last line
	return &File[R]{path: path, file: f, size: int64(whole), crash: crash}, nil
}

// Replace writes a new file beside the old one and puts it into its place, so that there is a whole journal at any time.
func (f *File[R]) Replace(records []R) error {
	text, err := f.encode(records)
	if err != nil {
		return err
	}
	name := f.path
	tmp, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Sync()
	}
	f.crash("journal written anew")
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		tmp.Close()
		os.Remove(tmp.Name()) // half a file is of no use, and the room may be what is missing
		return fmt.Errorf("journal: %w", err)
	}
	f.crash("journal replaced")
	if f.file != nil {
		f.file.Close()
	}
	f.file, f.size = tmp, int64(len(text))
	return f.syncDir()
}

func (f *File[R]) syncDir() error {
	d, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func (f *File[R]) encode(records []R) ([]byte, error) {
	b := f.buf[:0]
	var err error
	for _, r := range records {
		if b, err = Encode(b, r); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	f.buf = b
	return b, nil
}

// Append adds records by one write, and waits until they are on the disk if sync is set. After an error the journal is as it
// was before.
func (f *File[R]) Append(records []R, sync bool) error {
	text, err := f.encode(records)
	if err != nil {
		return err
	}
	if _, err = f.file.WriteAt(text, f.size); err == nil && sync {
		err = unix.Fdatasync(int(f.file.Fd()))
	}
	if err != nil {
		f.file.Truncate(f.size) // what is left of a torn line is dropped by the reader, too
		return fmt.Errorf("journal: %w", err)
	}
	f.size += int64(len(text))
	f.crash("journal appended")
	return nil
}

// Size of the file, bytes.
func (f *File[R]) Size() int64 { return f.size }

// Close closes the file.
func (f *File[R]) Close() error { return f.file.Close() }

// Swap has the journal write to another file and gives back the one that it had: for tests of a disk that fails.
func (f *File[R]) Swap(file *os.File) *os.File {
	f.file, file = file, f.file
	return file
}
