package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// image collects the files of an initial file system and writes them as a cpio archive in the kernel's "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst). The archive is not compressed: the guest would inflate it
// under emulation, which takes longer than reading it does.
type image struct {
	files map[string]entry
}

type entry struct {
	mode uint32 // type and permission bits, as in stat(2)
	host string // regular file with the content of this file of the host
	data []byte // or this content; of a symbolic link, its target
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

func newImage() *image { return &image{files: map[string]entry{}} }

// addHost puts a copy of a file of the host at the absolute path name, with the permissions perm.
func (m *image) addHost(name, host string, perm uint32) {
	m.add(name, entry{typeFile | perm, host, nil})
}

func (m *image) addData(name string, data []byte) { m.add(name, entry{typeFile | 0o644, "", data}) }

func (m *image) addLink(name, target string) {
	m.add(name, entry{typeLink | 0o777, "", []byte(target)})
}

func (m *image) addDir(name string) { m.add(name, entry{mode: typeDir | 0o755}) }

// add makes the directories above name too, as the kernel does not.
func (m *image) add(name string, e entry) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := m.files[dir]; ok {
			break
		}
		m.files[dir] = entry{mode: typeDir | 0o755}
	}
	m.files[name] = e
}

// writeTo writes the archive. Names are in order, so a directory comes before what is in it.
func (m *image) writeTo(w io.Writer) error {
	names := make([]string, 0, len(m.files))
	for name := range m.files {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		if err := writeEntry(w, uint32(i+1), name, m.files[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", entry{})
}

func writeEntry(w io.Writer, inode uint32, name string, e entry) error {
	var (
		content io.Reader = strings.NewReader(string(e.data))
		size              = int64(len(e.data))
	)
	if e.host != "" {
		f, err := os.Open(e.host)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if size = info.Size(); size > 1<<32-1 {
			return fmt.Errorf("%d bytes are too many for the format", size)
		}
		content = io.LimitReader(f, size)
	}
	links := 1
	if e.mode&typeDir != 0 && e.mode&typeFile == 0 {
		links = 2
	}
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name with its NUL, checksum
	if _, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, e.mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name); err != nil {
		return err
	}
	if err := pad(w, 110+int64(len(name))+1); err != nil {
		return err
	}
	n, err := io.Copy(w, content)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("became shorter while it was read: %d of %d bytes", n, size)
	}
	return pad(w, size)
}

// pad fills up to a multiple of four bytes.
func pad(w io.Writer, n int64) error {
	_, err := w.Write(make([]byte, -n&3))
	return err
}

// addTree puts a copy of a directory of the host at the absolute path name. Only regular files are taken.
func (m *image) addTree(name, host string) error {
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		m.addHost(path.Join(name, filepath.ToSlash(rel)), p, uint32(info.Mode().Perm()))
		return nil
	})
}
