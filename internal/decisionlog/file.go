package decisionlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Files say where the log is written and how much of it is kept. With Dir "" nothing is written.
type Files struct {
	Dir      string
	MaxBytes int64 // of one file
	Count    int   // of files, at least 1
}

// maxLine bounds a line when reading: what is longer was not written by us.
const maxLine = 1 << 20

// name is decisions.jsonl for the file that is written, decisions.1.jsonl for the one before, and so on.
func (f *Files) name(i int) string {
	if i == 0 {
		return filepath.Join(f.Dir, "decisions.jsonl")
	}
	return filepath.Join(f.Dir, fmt.Sprintf("decisions.%d.jsonl", i))
}

// scan calls fn for every entry in the files, oldest first. Lines that are not entries, such as the torn last one of a daemon that was
// killed, are passed over.
func (f *Files) scan(fn func(*Entry)) error {
	var errs []error
	for i := f.Count - 1; i >= 0; i-- {
		if err := scanFile(f.name(i), fn); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// scan is Files.scan while the files are written.
func (w *file) scan(fn func(*Entry)) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.o.scan(fn)
}

func scanFile(name string, fn func(*Entry)) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.ID != 0 {
			fn(&e)
		}
	}
	return lines.Err()
}

// file is the one that is written. A nil file takes everything and keeps nothing.
type file struct {
	o    Files
	mu   sync.RWMutex // held for a rotation, so that a reader meets every file once
	f    *os.File
	size int64
	buf  bytes.Buffer
}

func openFile(o Files) (*file, error) {
	if o.Count < 1 || o.MaxBytes < 1 {
		return nil, fmt.Errorf("decision log: %d files of %d bytes: want at least one of each", o.Count, o.MaxBytes)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("decision log: %w", err)
	}
	w := &file{o: o}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("decision log: %w", err)
	}
	return w, nil
}

func (w *file) open() error {
	f, err := os.OpenFile(w.o.name(0), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.f, w.size = f, size
	return w.endLine()
}

// endLine ends the torn last line of a daemon that was killed.
func (w *file) endLine() error {
	if w.size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := w.f.ReadAt(last, w.size-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	n, err := w.f.Write([]byte{'\n'})
	w.size += int64(n)
	return err
}

// write appends entries, in one write a batch, and begins a new file before the present one would grow too long.
func (w *file) write(batch []Entry) error {
	if w == nil {
		return nil
	}
	w.buf.Reset()
	for i := range batch {
		line, err := json.Marshal(&batch[i])
		if err != nil {
			return err
		}
		if grown := w.size + int64(w.buf.Len()+len(line)+1); grown > w.o.MaxBytes && w.size+int64(w.buf.Len()) > 0 {
			if err := w.flush(); err != nil {
				return err
			}
			if err := w.rotate(); err != nil {
				return err
			}
		}
		w.buf.Write(append(line, '\n'))
	}
	return w.flush()
}

// flush writes what is buffered. If the disk took only a part, that part is taken back: the next line must not be glued to it.
func (w *file) flush() error {
	if w.buf.Len() == 0 {
		return nil
	}
	if w.f == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	n, err := w.f.Write(w.buf.Bytes())
	w.buf.Reset()
	if err != nil {
		return errors.Join(err, w.f.Truncate(w.size))
	}
	w.size += int64(n)
	return nil
}

func (w *file) rotate() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := w.o.Count - 1; i > 0; i-- {
		if err := os.Rename(w.o.name(i-1), w.o.name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if w.o.Count == 1 {
		if err := os.Remove(w.o.name(0)); err != nil {
			return err
		}
	}
	err := w.f.Close()
	w.f, w.size = nil, 0
	if err != nil {
		return err
	}
	return w.open()
}

func (w *file) close() error {
	if w == nil || w.f == nil {
		return nil
	}
	return w.f.Close()
}
