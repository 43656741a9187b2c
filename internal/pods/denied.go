package pods

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// denied says why a socket may not be used: it names what on the way to it is closed to the calling thread, and to whom it is open. To
// be root is not enough without CAP_DAC_OVERRIDE, which the agent gives up.
func denied(socket string) string {
	way := []string{socket}
	for dir := path.Dir(socket); dir != "/"; dir = path.Dir(dir) {
		way = append(way, dir)
	}
	for i, file := range slices.Backward(way) {
		need := uint32(unix.X_OK)
		if i == 0 {
			need = unix.W_OK // to connect
		}
		if unix.Faccessat(unix.AT_FDCWD, file, need, unix.AT_EACCESS) == nil {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			return err.Error()
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok || allows(info.Mode(), owner, fs.FileMode(need)) {
			break
		}
		return fmt.Sprintf("permission denied: %s is %v of user %d, group %d, and the agent is user %d, group %d without CAP_DAC_OVERRIDE: "+
			"set owner or mode as the runtime makes them by itself (root's), or start the agent anew, which keeps that capability if it needs it then",
			file, info.Mode(), owner.Uid, owner.Gid, os.Geteuid(), os.Getegid())
	}
	return "permission denied although owner and mode allow it: does a security module forbid it? (SELinux: the chart's seLinuxOptions: {type: spc_t}; its log is in the node's audit log)"
}

// allows reports whether a file's mode alone lets this process do what is needed.
func allows(mode fs.FileMode, owner *syscall.Stat_t, need fs.FileMode) bool {
	groups, _ := os.Getgroups() // none, if they cannot be had
	switch {
	case int(owner.Uid) == os.Geteuid():
		mode >>= 6
	case int(owner.Gid) == os.Getegid() || slices.Contains(groups, int(owner.Gid)):
		mode >>= 3
	}
	return mode&need == need
}
