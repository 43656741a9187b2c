// Package cgrouptest gives tests a tree of control groups: the kernel's (Real), or one on a temporary directory that enforces
// the kernel's rules (Fake). Both are a World, so that one test can run on both, and one table of operations shows that the
// fake behaves as the kernel does.
package cgrouptest

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// World is a tree of groups that a test owns. Groups are named as everywhere else, by their path relative to a controller's
// mount; all of them are below Base.
type World interface {
	Hierarchy() *cgroup.Hierarchy
	FS() cgroup.FS
	Base() string
	// Mkdir makes a group in every hierarchy. Its parent must exist.
	Mkdir(group string) error
	// Rmdir removes a group from every hierarchy. It must have no children and no processes.
	Rmdir(group string) error
	Read(group, file string) (string, error)
	Write(group, file, text string) error
}

// Populate makes a group as a container runtime does: on cgroup v1 it takes over its parent's CPUs and memory nodes.
func Populate(w World, group string) error {
	if err := w.Mkdir(group); err != nil {
		return err
	}
	if w.Hierarchy().V2(cgroup.CPUSet) {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := w.Read(path.Dir(group), file)
		if err != nil {
			return err
		}
		if err := w.Write(group, file, text); err != nil {
			return err
		}
	}
	return nil
}

// RemoveAll removes a group and everything below it.
func RemoveAll(w World, group string) error {
	var groups []string
	for _, c := range controllersOf(w.Hierarchy()) {
		err := w.Hierarchy().Walk(c, group, func(g string) error { groups = append(groups, g); return nil })
		if err != nil {
			return err
		}
	}
	slices.Sort(groups)
	for _, g := range slices.Backward(slices.Compact(groups)) {
		if err := w.Rmdir(g); err != nil && !cgroup.Gone(err) {
			return err
		}
	}
	return nil
}

// Snapshot is the text of every file below Base that somebody could have written to, by controller directory, group and file.
func Snapshot(w World) map[string]string {
	out := make(map[string]string)
	h := w.Hierarchy()
	for _, c := range controllersOf(h) {
		mount, _, _ := h.Mount(c)
		h.Walk(c, w.Base(), func(group string) error {
			dir, _ := h.Dir(c, group)
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				info, err := e.Info()
				if err != nil || !info.Mode().IsRegular() || info.Mode()&0o222 == 0 || fleeting(e.Name()) {
					continue
				}
				text, err := w.Read(group, e.Name())
				if err != nil {
					text = "unreadable: " + errors.Unwrap(err).Error()
				}
				out[filepath.Base(mount)+":"+group+"/"+e.Name()] = text
			}
			return nil
		})
	}
	return out
}

// fleeting reports whether a writable file shows something else than what was written to it.
func fleeting(name string) bool {
	return name == "tasks" || strings.HasPrefix(name, "cgroup.") && name != "cgroup.freeze" ||
		strings.HasSuffix(name, ".pressure") || strings.HasPrefix(name, "memory.") || strings.HasPrefix(name, "cpuacct.")
}

// controllersOf is one controller for each directory that matters here.
func controllersOf(h *cgroup.Hierarchy) []cgroup.Controller {
	byDir := make(map[string]cgroup.Controller)
	for _, c := range []cgroup.Controller{cgroup.CPU, cgroup.CPUSet, cgroup.Freezer, cgroup.Memory, cgroup.CPUAcct, cgroup.Blkio, cgroup.Pressure} {
		if dir, _, ok := h.Mount(c); ok {
			if _, seen := byDir[dir]; !seen {
				byDir[dir] = c
			}
		}
	}
	return slices.Sorted(maps.Values(byDir))
}

// controllerOf is the controller whose directory holds a file.
func controllerOf(file string) cgroup.Controller {
	switch prefix, _, _ := strings.Cut(file, "."); {
	case strings.HasSuffix(file, ".pressure"):
		return cgroup.Pressure
	case prefix == "cpuset":
		return cgroup.CPUSet
	case prefix == "cpuacct":
		return cgroup.CPUAcct
	case prefix == "freezer" || file == "cgroup.freeze":
		return cgroup.Freezer
	case prefix == "memory":
		return cgroup.Memory
	case prefix == "blkio" || prefix == "io":
		return cgroup.Blkio
	default:
		return cgroup.CPU
	}
}

func missing(h *cgroup.Hierarchy, file string) error {
	return &fs.PathError{Op: "find controller of", Path: filepath.Join(h.Root(), file), Err: fs.ErrNotExist}
}
