// Package rdt works with resctrl, the kernel's file system for cache allocation (CAT), memory bandwidth allocation (MBA) and their
// monitoring (CMT, MBM) on Intel, AMD and others. It reads what the machine can do, reads and writes schemata domain by domain,
// makes and removes control and monitoring groups, moves tasks, and reads counters through descriptors that stay open.
//
// It decides nothing and remembers nothing: which groups there should be is its caller's business. References are to the kernel's
// Documentation/arch/x86/resctrl.rst.
package rdt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// Tree is a mounted resctrl. Names are relative to the mount; "" is the mount itself. In production it is a Dir; package rdttest has
// one that plays the kernel.
type Tree interface {
	// Read reads a whole file into buf, which is large enough for any but the lists of tasks; it may give another slice if it is not.
	Read(name string, buf []byte) ([]byte, error)
	// Write writes a whole text in one system call.
	Write(name string, text []byte) error
	// Open opens a file to be read often.
	Open(name string) (File, error)
	// Dirs names the directories in a directory, sorted.
	Dirs(name string) ([]string, error)
	Mkdir(name string) error
	Rmdir(name string) error
	Rename(from, to string) error
}

// File is an open file of the tree.
type File interface {
	// ReadInto reads the whole file from its start into buf and returns the filled part; no allocation.
	ReadInto(buf []byte) ([]byte, error)
	Close() error
}

// Dir is the resctrl that is mounted at this path.
type Dir string

// DefaultDir is where resctrl belongs.
const DefaultDir Dir = "/sys/fs/resctrl"

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

func (d Dir) Read(name string, buf []byte) ([]byte, error) {
	f, err := cgroup.OpenFile(d.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := f.ReadInto(buf)
	if err == nil {
		return text, nil
	}
	return os.ReadFile(d.path(name)) // it does not fit
}

func (d Dir) Open(name string) (File, error) { return cgroup.OpenFile(d.path(name)) }

func (d Dir) Write(name string, text []byte) error {
	fd, err := unix.Open(d.path(name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: d.path(name), Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, text); err != nil {
		return &fs.PathError{Op: "write", Path: d.path(name), Err: err}
	}
	return nil
}

func (d Dir) Dirs(name string) ([]string, error) {
	entries, err := os.ReadDir(d.path(name))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (d Dir) Mkdir(name string) error { return os.Mkdir(d.path(name), 0o755) }

func (d Dir) Rmdir(name string) error {
	if err := unix.Rmdir(d.path(name)); err != nil {
		return &fs.PathError{Op: "rmdir", Path: d.path(name), Err: err}
	}
	return nil
}

// Rename is rename(2).
func (d Dir) Rename(from, to string) error {
	if err := unix.Rename(d.path(from), d.path(to)); err != nil {
		return &os.LinkError{Op: "rename", Old: d.path(from), New: d.path(to), Err: err}
	}
	return nil
}

// Reasons for which the kernel refuses a new group. They are told apart by its text, since the errno is ENOSPC for the first two.
var (
	// ErrNoCLOSID: every class of service is in use.
	ErrNoCLOSID = errors.New("no class of service (CLOSID) is left")
	// ErrNoRMID: every monitoring id is in use.
	ErrNoRMID = errors.New("no monitoring id (RMID) is left")
	// ErrLimbo: monitoring ids are free, but lines in the cache still carry them; one is usable after seconds.
	ErrLimbo = errors.New("free monitoring ids (RMIDs) are still in limbo")
)

// Refused is a request that the kernel did not carry out. It keeps both what the system call said and what the kernel wrote about it
// into info/last_cmd_status.
type Refused struct {
	Op     string // write, mkdir, rename, rmdir
	Name   string // of the file or group
	Text   string // that was written
	Err    error  // holds the errno
	Status string // what last_cmd_status says about it; "" if nothing
}

func (e *Refused) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "resctrl: %s %s", e.Op, cmpName(e.Name))
	if e.Text != "" {
		fmt.Fprintf(&b, " %q", e.Text)
	}
	fmt.Fprintf(&b, ": %v", cause(e.Err))
	if e.Status != "" {
		fmt.Fprintf(&b, " (%s)", e.Status)
	}
	return b.String()
}

func cmpName(name string) string {
	if name == "" {
		return "/"
	}
	return name
}

func (e *Refused) Unwrap() error { return e.Err }

// Is makes the error match what it is about.
func (e *Refused) Is(target error) bool {
	switch target {
	case ErrNoCLOSID:
		return e.Op == "mkdir" && errors.Is(e.Err, unix.ENOSPC) && !strings.Contains(e.Status, "RMID")
	case ErrNoRMID:
		return e.Op == "mkdir" && errors.Is(e.Err, unix.ENOSPC) && strings.Contains(e.Status, "RMID")
	case ErrLimbo:
		return e.Op == "mkdir" && errors.Is(e.Err, unix.EBUSY)
	}
	return false
}

// cause is the bare errno of a file error whose path the message names already.
func cause(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	var c *cgroup.FileError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	case errors.As(err, &c):
		return c.Err
	}
	return err
}

// Gone reports whether err tells that a group is not there (any more).
func Gone(err error) bool { return cgroup.Gone(err) || errors.Is(err, fs.ErrNotExist) }

// FS is resctrl in use. It is not for concurrent use.
type FS struct {
	tree Tree
	Info Info
	buf  [4096]byte
}

// ErrNotMounted says that resctrl is not mounted.
var ErrNotMounted = errors.New("resctrl is not mounted")

// Open reads what the mounted resctrl can do. The error wraps ErrNotMounted if none is.
func Open(tree Tree) (*FS, error) {
	f := &FS{tree: tree}
	if _, err := tree.Read("schemata", f.buf[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMounted, err)
	}
	var err error
	f.Info, err = readInfo(tree)
	return f, err
}

// status is the kernel's word about a request that it refused: of a mkdir the last line, for what it says is added to what was there;
// other requests begin anew, and may say more than one line.
func (f *FS) status(op string) string {
	var buf [1024]byte
	text, err := f.tree.Read("info/last_cmd_status", buf[:])
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if op == "mkdir" {
		lines = lines[len(lines)-1:]
	}
	if said := strings.Join(lines, "; "); said != "ok" {
		return said
	}
	return ""
}

func (f *FS) refused(op, name, text string, err error) error {
	if err == nil {
		return nil
	}
	return &Refused{Op: op, Name: name, Text: strings.TrimSpace(text), Err: err, Status: f.status(op)}
}

func (f *FS) write(name, text string) error {
	return f.refused("write", name, text, f.tree.Write(name, []byte(text)))
}

// Names in a group's directory that are not groups.
const (
	infoDir = "info"
	monDir  = "mon_groups"
	dataDir = "mon_data"
)

// Groups lists the control groups beside the default one, sorted.
func (f *FS) Groups() ([]string, error) {
	names, err := f.tree.Dirs("")
	if err != nil {
		return nil, fmt.Errorf("resctrl: list groups: %w", err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == infoDir || n == monDir || n == dataDir }), nil
}

// MonGroups lists the monitoring groups of a control group (""  is the default one), by their names relative to the mount.
func (f *FS) MonGroups(group string) ([]string, error) {
	dir := path.Join(group, monDir)
	names, err := f.tree.Dirs(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && f.Info.Mon == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("resctrl: list %s: %w", dir, err)
	}
	for i := range names {
		names[i] = path.Join(dir, names[i])
	}
	return names, nil
}

// MonGroup is the name, relative to the mount, of a monitoring group of a control group.
func MonGroup(group, name string) string { return path.Join(group, monDir, name) }

// CheckName says why the kernel, or a reader of lists, would not take name for a group.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || name == infoDir || name == monDir || name == dataDir:
		return fmt.Errorf("resctrl: group name %q: reserved", name)
	case len(name) > 255:
		return fmt.Errorf("resctrl: group name %.20q...: longer than 255 bytes", name)
	case strings.ContainsAny(name, "/\n\x00"):
		return fmt.Errorf("resctrl: group name %q: has a slash, a newline or NUL", name)
	}
	return nil
}

// Make makes a control group, or a monitoring group if name is one's (MonGroup). The error matches ErrNoCLOSID, ErrNoRMID or
// ErrLimbo if the machine has no more of what it takes, and fs.ErrExist if it is there.
func (f *FS) Make(name string) error {
	if err := CheckName(path.Base(name)); err != nil {
		return err
	}
	return f.refused("mkdir", name, "", f.tree.Mkdir(name))
}

// Remove removes a group. Its tasks go to the default group, or those of a monitoring group to its control group; its id may not be
// usable again at once (ErrLimbo). A group that is not there is no error.
func (f *FS) Remove(name string) error {
	err := f.tree.Rmdir(name)
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return f.refused("rmdir", name, "", err)
}

// Rename moves a monitoring group to another control group with its tasks and its counters. Linux can since 6.6; before that, the
// error matches fs.ErrPermission. Control groups cannot be renamed.
func (f *FS) Rename(from, to string) error {
	return f.refused("rename", from, to, f.tree.Rename(from, to))
}

// Mode of a control group: "shareable", "exclusive", "pseudo-locksetup" or "pseudo-locked".
func (f *FS) Mode(group string) (string, error) {
	text, err := f.tree.Read(path.Join(group, "mode"), f.buf[:])
	if err != nil {
		return "", fmt.Errorf("resctrl: mode of %s: %w", cmpName(group), err)
	}
	return strings.TrimSpace(string(text)), nil
}
