// Package features finds out, independently of the code under test, what the machine at hand can do. The test runner uses it to
// tell a test that was skipped for good reason ("needs pmu: ...") from one that has no excuse.
package features

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/test/rig/channel"
)

// Probe looks at every feature by which a test may excuse its absence. Names are, in lower case, what stands between "needs "
// and the colon of a skip, remarks in parentheses aside.
func Probe() map[string]bool {
	root := os.Geteuid() == 0
	unified := exists("/sys/fs/cgroup/cgroup.controllers")
	legacy := exists("/sys/fs/cgroup/cpu/cgroup.procs")
	group := probeGroup()
	return map[string]bool{
		"root":                   root,
		"leave to use sched_rr":  root,
		"btf":                    exists("/sys/kernel/btf/vmlinux"),
		"bpf":                    root && exists("/sys/kernel/btf/vmlinux"),
		"bpf timers":             root && sinceLinux(5, 15),
		"sysfs":                  exists("/sys/devices/system/cpu"),
		"smt":                    read("/sys/devices/system/cpu/smt/active") == "1",
		"two cpus":               cpus() >= 2,
		"cgroups":                unified || legacy,
		"control groups":         unified || legacy,
		"cgroup v2":              unified,
		"cgroup v1":              !unified && legacy,
		"hybrid cgroups":         exists("/sys/fs/cgroup/unified/cgroup.procs"),
		"to make groups":         group != nil,
		"cpu.idle":               group["cpu.idle"],
		"cpu quotas":             group["cpu.max"] || group["cpu.cfs_quota_us"],
		"psi":                    exists("/proc/pressure/cpu"),
		"pmu":                    hasPMU(),
		"resctrl":                hasFilesystem("resctrl"),
		"the time zone database": exists("/usr/share/zoneinfo/Europe/Berlin"),
		"busybox":                exists("/bin/busybox"),
		"containerd":             root && hasPrograms("containerd", "runc"),
		"go":                     hasPrograms("go"),
		"nginx":                  hasPrograms("nginx"),
		"promtool":               hasPrograms("promtool"),
		"prometheus":             hasPrograms("prometheus"),
		"qemu-user":              hasPrograms("qemu-aarch64", "qemu-x86_64"),
		"qemu":                   hasPrograms("qemu-system-x86_64"),
		"chromium":               hasPrograms("chromium"),
		"tmux":                   hasPrograms("tmux"),
		"apt":                    hasPrograms("apt-get", "apt-cache", "dpkg-deb"),
		"runqlat":                hasPrograms("runqlat"),
		"stress-ng":              hasPrograms("stress-ng"),
		"the command sleep":      hasPrograms("sleep"),
		"the rig":                channel.Present(),
		"pqos":                   hasPrograms("pqos"),
		"perf":                   hasPrograms("perf"),
	}
}

// Emulated reports whether the CPU is emulated (QEMU without KVM): there single waits take longer, shares of the CPU are rough, and
// what the host takes away is charged to whoever runs in the guest.
func Emulated() bool {
	return os.Getenv("QOS_AGENT_TEST_VM") != "" || strings.Contains(read("/proc/cpuinfo"), "QEMU TCG")
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func read(name string) string {
	text, _ := os.ReadFile(name) // absent reads as empty
	return strings.TrimSpace(string(text))
}

// hasPrograms looks also where root's programs are, which are not in everybody's PATH.
func hasPrograms(names ...string) bool {
	for _, name := range names {
		_, err := exec.LookPath(name)
		if err != nil && !exists(filepath.Join("/usr/sbin", name)) {
			return false
		}
	}
	return true
}

func hasFilesystem(name string) bool {
	for line := range strings.Lines(read("/proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

func sinceLinux(major, minor int) bool {
	var u unix.Utsname
	var a, b int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 1
	}
	return set.Count()
}

// probeGroup makes a group of the cpu controller, lists its files and removes it; the root group has not got them. It is nil
// if no group can be made.
func probeGroup() map[string]bool {
	for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		if !exists(root + "/cgroup.procs") {
			continue
		}
		dir, err := os.MkdirTemp(root, "qos-agent-probe-")
		if err != nil {
			continue
		}
		entries, _ := os.ReadDir(dir)
		_ = os.Remove(dir) // it is empty
		files := map[string]bool{}
		for _, e := range entries {
			files[e.Name()] = true
		}
		return files
	}
	return nil
}

// hasPMU tries to count cycles of this process in hardware.
func hasPMU() bool {
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_HARDWARE,
		Config: unix.PERF_COUNT_HW_CPU_CYCLES,
		Size:   unix.PERF_ATTR_SIZE_VER0,
		Bits:   unix.PerfBitDisabled,
	}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
