package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrGone is what the error of an access matches (errors.Is) when the group has vanished: normal, groups come and go.
var ErrGone = errors.New("group is gone")

// FileError is an access to a group's file that the kernel refused or that found the group gone.
type FileError struct {
	Op   string // open, read, write, stat, list
	Path string
	Err  error // a syscall.Errno
}

func (e *FileError) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Err) }

func (e *FileError) Unwrap() error { return e.Err }

// Is makes the error match ErrGone when it tells of a vanished group.
func (e *FileError) Is(target error) bool { return target == ErrGone && goneErrno(e.Err) }

// Gone reports whether err tells that a file's group has vanished: ENOENT when it is opened, ENODEV on a descriptor that was
// opened before. A file that the kernel does not have gives ENOENT as well; who must tell the two apart looks at the group.
func Gone(err error) bool { return errors.Is(err, ErrGone) || goneErrno(err) }

func goneErrno(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

func fileError(op, path string, err error) error { return &FileError{Op: op, Path: path, Err: err} }

// File is a group's file that is kept open: reading it again is one system call and no allocation. It stays with the group
// that it was opened in; when another group takes the same path, the file says ErrGone. It is not for concurrent use.
type File struct {
	fd   int
	path string
}

// OpenFile opens a file of a group for reading.
func OpenFile(path string) (*File, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, fileError("open", path, err)
	}
	return &File{fd: fd, path: path}, nil
}

// Path is the name that the file was opened by.
func (f *File) Path() string { return f.path }

// ReadInto reads the file from its start into buf and returns the part that was filled. A file that does not fit is
// io.ErrShortBuffer (with the part that did fit).
func (f *File) ReadInto(buf []byte) ([]byte, error) {
	n := 0
	for n < len(buf) {
		m, err := ignoringEINTR(func() (int, error) { return unix.Pread(f.fd, buf[n:], int64(n)) })
		if err != nil {
			return buf[:n], fileError("read", f.path, err)
		}
		if m == 0 {
			return buf[:n], nil
		}
		n += m
	}
	return buf, fmt.Errorf("read %s: %w", f.path, io.ErrShortBuffer)
}

// WriteText writes text in one system call, as the kernel wants it. The file must have been opened by a Group.
func (f *File) WriteText(text []byte) error {
	if _, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(f.fd, text, 0) }); err != nil {
		return fileError("write", f.path, err)
	}
	return nil
}

// Close closes the file. It may be called twice.
func (f *File) Close() error {
	if f == nil || f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil {
		return os.NewSyscallError("close", err)
	}
	return nil
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
