package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is what the error of a reader matches (errors.Is) when the group is there but the kernel does not offer the
// signal: the controller is not mounted or not enabled, or pressure accounting is off. It may be offered later.
var ErrUnsupported = errors.New("not offered by the kernel")

// Scratch is the buffer that readers read into. One serves any number of readers, one after the other. The zero value is ready.
type Scratch struct{ buf []byte }

const (
	scratchStart = 4 << 10
	// scratchMax bounds what a broken or hostile file can make us allocate. The longest file read here, memory.stat, has 2 KiB.
	scratchMax = 1 << 20
)

// read returns what f holds; it is valid until the next read. The kernel makes up files of this kind as a whole at each pread,
// so a read that does not fill the buffer has seen all of it, and the second pread that would say "end of file", and cost as much
// as the first, is left out.
func (s *Scratch) read(f *File) ([]byte, error) {
	if s.buf == nil {
		s.buf = make([]byte, scratchStart)
	}
	for {
		n, err := unix.Pread(f.fd, s.buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, fileError("read", f.path, err)
		case n < len(s.buf):
			return s.buf[:n], nil
		case len(s.buf) >= scratchMax:
			return nil, fmt.Errorf("read %s: longer than %d bytes", f.path, scratchMax)
		}
		s.buf = make([]byte, 2*len(s.buf))
	}
}

// openStat opens a file of the group at dir. If the group is there and the file is not, the error matches ErrUnsupported.
func openStat(dir, name string) (*File, error) {
	f, err := OpenFile(filepath.Join(dir, name))
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, fs.ErrNotExist) && exists(dir):
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, name), ErrUnsupported)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("%w: %w", err, ErrUnsupported)
	default:
		return nil, err
	}
}

// openOptional is openStat for a file without which the reader still makes sense: nil if it is not offered.
func openOptional(dir, name string) (*File, error) {
	f, err := openStat(dir, name)
	if errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	return f, err
}

// dirOf is Dir with an error for a controller that is not mounted.
func (h *Hierarchy) dirOf(c Controller, group string) (string, error) {
	dir, ok := h.Dir(c, group)
	if !ok {
		return "", fmt.Errorf("controller %s under %s: %w", c, h.root, ErrUnsupported)
	}
	return dir, nil
}

// nextLine cuts the first line off; the line comes without its end.
func nextLine(text []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(text, []byte{'\n'})
	return line, rest
}

// parseUint reads a decimal number that fills text but for white space around it.
func parseUint(text []byte) (v uint64, ok bool) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if v > (1<<64-1-d)/10 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

// parseInt is parseUint with a sign.
func parseInt(text []byte) (v int64, ok bool) {
	text = bytes.TrimSpace(text)
	digits, negative := bytes.CutPrefix(text, []byte{'-'})
	if len(digits) != 0 && (digits[0] < '0' || digits[0] > '9') {
		return 0, false
	}
	u, ok := parseUint(digits)
	switch {
	case !ok:
		return 0, false
	case negative && u <= 1<<63:
		return -int64(u), true
	case !negative && u < 1<<63:
		return int64(u), true
	default:
		return 0, false
	}
}

// parseError quotes the part of a file that makes no sense, not all of it.
func parseError(f *File, want string, text []byte) error {
	const most = 64
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Errorf("%s: %q: want %s", f.path, text, want)
}
