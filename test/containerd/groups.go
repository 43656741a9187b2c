package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RemoveGroups kills what is in a group and removes it from every hierarchy, as the kubelet does with a pod's that has ended.
func (r *Runtime) RemoveGroups(group string) error { return removeGroups(group) }

// removeGroups kills what is in a group and removes it from every hierarchy of the machine. runc makes its groups in all of
// them, also in those that the agent has no use for (devices, pids, the named one of systemd), so this looks at directories and
// not at controllers.
func removeGroups(group string) error {
	tops := []string{filepath.Join(cgroupRoot, group)}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		tops = append(tops, filepath.Join(cgroupRoot, e.Name(), group))
	}
	deadline := time.Now().Add(patience)
	for {
		var errs []error
		for _, top := range tops {
			errs = append(errs, removeGroup(top))
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond) // killed processes leave within moments
	}
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	thaw(dir) // before its children: a group below a frozen one stays frozen
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove group: %w", err)
	}
	return nil
}

// thawBelow thaws every group in every hierarchy of a group: containerd cannot stop what is frozen.
func thawBelow(group string) {
	for _, pattern := range []string{cgroupRoot + group, cgroupRoot + "/*" + group} {
		tops, _ := filepath.Glob(pattern) // the pattern is a good one
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					thaw(name)
				}
				return nil // what cannot be read has gone
			})
		}
	}
}

// thaw lets frozen processes die.
func thaw(dir string) {
	for file, text := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		if f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(text)
			_ = f.Close()
		}
	}
}
