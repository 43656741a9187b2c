package cgroup

import (
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// FS is how knobs are reached. In production it is the kernel's files; package cgrouptest has one that plays the kernel.
type FS interface {
	// OpenGroup opens the group whose directory is dir. The error matches ErrGone if there is none.
	OpenGroup(dir string) (Group, error)
}

// Group is a group that was opened. It remains that group: after the group is removed, accesses say ErrGone even if another
// group has taken the same path.
type Group interface {
	// ID is the inode of the group's directory, which the kernel does not give out again.
	ID() uint64
	// Open opens a file of the group. The error matches ErrGone when the group is gone, and fs.ErrNotExist but not ErrGone
	// when the group is there and the file is not: the kernel lacks the feature or the controller is not enabled.
	Open(name string) (RW, error)
	// Children names the groups right below, sorted.
	Children() ([]string, error)
	Close() error
}

// RW is an open file of a group.
type RW interface {
	// ReadInto reads the whole file into buf and returns the filled part; no allocation.
	ReadInto(buf []byte) ([]byte, error)
	// WriteText writes the whole text in one system call.
	WriteText(text []byte) error
	Close() error
}

// Kernel is the FS of the running kernel.
var Kernel FS = kernelFS{}

type kernelFS struct{}

type kernelGroup struct {
	fd  int
	id  uint64
	dir string
}

func (kernelFS) OpenGroup(dir string) (Group, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fileError("open", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fileError("stat", dir, err)
	}
	return &kernelGroup{fd: fd, id: st.Ino, dir: dir}, nil
}

func (g *kernelGroup) ID() uint64 { return g.id }

func (g *kernelGroup) Open(name string) (RW, error) {
	path := g.dir + "/" + name
	open := func(flags int) (int, error) {
		return ignoringEINTR(func() (int, error) { return unix.Openat(g.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	}
	fd, err := open(unix.O_RDWR)
	if err == unix.EACCES || err == unix.EPERM || err == unix.EROFS { // some files are for reading only
		fd, err = open(unix.O_RDONLY)
	}
	if err == unix.ENOENT && g.alive() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNoFile{}}
	}
	if err != nil {
		return nil, fileError("open", path, err)
	}
	return &File{fd: fd, path: path}, nil
}

// alive reports whether the group has not been removed: every group has cgroup.procs.
func (g *kernelGroup) alive() bool { return unix.Faccessat(g.fd, "cgroup.procs", unix.F_OK, 0) == nil }

func (g *kernelGroup) Children() ([]string, error) {
	// A descriptor of its own, since reading a directory moves the descriptor's position.
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(g.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fileError("list", g.dir, err)
	}
	dir := os.NewFile(uintptr(fd), g.dir)
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (g *kernelGroup) Close() error { return unix.Close(g.fd) }

// errNoFile is the cause of an open that found the group but not the file.
type errNoFile struct{}

func (errNoFile) Error() string        { return "the kernel has no such file in this group" }
func (errNoFile) Is(target error) bool { return target == fs.ErrNotExist }
