package trace

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Ext is how the names of recordings end.
const Ext = ".qostrace"

// fileName is made so that names sort by time.
func fileName(start time.Time, run string, part int) string {
	return fmt.Sprintf("%s-%s-%04d%s", start.UTC().Format("20060102T150405Z"), run, part, Ext)
}

// dir keeps the files of a directory below a size and an age.
type dir struct {
	path     string
	maxBytes int64
	maxAge   time.Duration
	files    []dirFile // oldest first; the one that is being written is not among them
	bytes    int64     // of files
}

type dirFile struct {
	name  string
	size  int64
	mtime time.Time
}

var errFull = errors.New("no room is left below the bound of the directory")

func openDir(path string, maxBytes int64, maxAge time.Duration) (*dir, error) {
	d := &dir{path: path, maxBytes: maxBytes, maxAge: maxAge}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), Ext) || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		d.files = append(d.files, dirFile{e.Name(), info.Size(), info.ModTime()})
		d.bytes += info.Size()
	}
	slices.SortFunc(d.files, func(a, b dirFile) int { return cmp.Or(a.mtime.Compare(b.mtime), strings.Compare(a.name, b.name)) })
	return d, nil
}

// room removes the oldest files until need more bytes fit.
func (d *dir) room(need int64) error {
	for d.bytes+need > d.maxBytes {
		if len(d.files) == 0 {
			return errFull
		}
		if err := d.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

// expire removes files that are too old.
func (d *dir) expire(now time.Time) error {
	for d.maxAge > 0 && len(d.files) > 0 && now.Sub(d.files[0].mtime) > d.maxAge {
		if err := d.removeOldest(); err != nil {
			return err
		}
	}
	return nil
}

func (d *dir) removeOldest() error {
	f := d.files[0]
	if err := os.Remove(filepath.Join(d.path, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make room: %w", err)
	}
	d.files, d.bytes = d.files[1:], d.bytes-f.size
	return nil
}

// file is a recording that is being written, and counts against the bound as it grows.
type file struct {
	*os.File
	dir     *dir
	name    string
	size    int64
	counted int64 // of size, in the recorder's statistics
}

func (d *dir) create(name string) (*file, error) {
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	return &file{File: f, dir: d, name: name}, nil
}

// Write makes room first, so that the directory is never larger than it may be.
func (f *file) Write(b []byte) (int, error) {
	if err := f.dir.room(f.size + int64(len(b))); err != nil {
		return 0, err
	}
	n, err := f.File.Write(b)
	f.size += int64(n)
	return n, err
}

// done closes the file and leaves it to the directory.
func (f *file) done() error {
	err := errors.Join(f.Sync(), f.Close())
	f.dir.files = append(f.dir.files, dirFile{f.name, f.size, time.Now()})
	f.dir.bytes += f.size
	return err
}

// Files lists the recordings in the given files and directories: files as they are given, those of a directory oldest first. It is an error if
// there is none.
func Files(paths ...string) ([]string, error) {
	var out []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, p)
			continue
		}
		names, err := filepath.Glob(filepath.Join(escapeGlob(p), "*"+Ext))
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("%s: there is no file *%s in it", p, Ext)
		}
		slices.Sort(names)
		out = append(out, names...)
	}
	return out, nil
}

func escapeGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}
