package rdt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MountOptions are options of resctrl's mount.
type MountOptions struct {
	CDP   bool // code and data prioritisation of L3
	CDPL2 bool // the same of L2
	// MBps has the kernel keep bandwidth limits in MiB/s by a loop of its own, which works against any other loop.
	MBps bool
}

func (o MountOptions) String() string {
	var list []string
	for _, opt := range []struct {
		on   bool
		name string
	}{{o.CDP, "cdp"}, {o.CDPL2, "cdpl2"}, {o.MBps, "mba_MBps"}} {
		if opt.on {
			list = append(list, opt.name)
		}
	}
	return strings.Join(list, ",")
}

// ErrUnsupported says that this machine has no resctrl: its CPU or its kernel lacks it.
var ErrUnsupported = errors.New("this CPU or this kernel has no resctrl")

// Mounted tells whether resctrl is mounted at dir, and how; proc is where the process file system is.
func Mounted(proc string, dir Dir) (options string, ok bool, err error) {
	text, err := os.ReadFile(filepath.Join(proc, "self/mounts"))
	if err != nil {
		return "", false, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "resctrl" && f[1] == string(dir) {
			return f[3], true, nil
		}
	}
	return "", false, nil
}

// Mount mounts resctrl at dir. That switches allocation and monitoring on for the whole machine. The error matches ErrUnsupported
// where there is none, and unix.EBUSY where it is mounted already, maybe elsewhere.
func Mount(dir Dir, o MountOptions) error {
	err := unix.Mount("resctrl", string(dir), "resctrl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, o.String())
	switch {
	case errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount resctrl on %s: %w", dir, ErrUnsupported)
	case errors.Is(err, unix.EINVAL) && o != (MountOptions{}):
		return fmt.Errorf("mount resctrl on %s: options %s: this machine has not got them: %w", dir, o, err)
	case err != nil:
		return fmt.Errorf("mount resctrl on %s: %w", dir, err)
	}
	return nil
}

// Unmount unmounts resctrl. All groups go with it, whoever made them, and all limits.
func Unmount(dir Dir) error {
	if err := unix.Unmount(string(dir), 0); err != nil {
		return fmt.Errorf("unmount resctrl from %s: %w", dir, err)
	}
	return nil
}
