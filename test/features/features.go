// Package features finds out, independently of the code under test, what the machine at hand can do. The test runner uses it to
// tell a test that was skipped for good reason ("needs pmu: ...") from one that has no excuse.
package features

import (
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Probe looks at every feature by which a test may excuse its absence. Names are what stands between "needs " and the colon of
// a skip.
func Probe() map[string]bool {
	unified := exists("/sys/fs/cgroup/cgroup.controllers")
	return map[string]bool{
		"root":       os.Geteuid() == 0,
		"btf":        exists("/sys/kernel/btf/vmlinux"),
		"bpf":        os.Geteuid() == 0 && exists("/sys/kernel/btf/vmlinux"),
		"cgroup v2":  unified,
		"cgroup v1":  !unified && exists("/sys/fs/cgroup/cpu/cgroup.procs"),
		"hybrid":     exists("/sys/fs/cgroup/unified/cgroup.procs"),
		"cpu.idle":   fileBelow("cpu.idle"),
		"psi":        exists("/proc/pressure/cpu"),
		"pmu":        hasPMU(),
		"resctrl":    hasFilesystem("resctrl"),
		"two cpus":   cpus() >= 2,
		"containerd": os.Geteuid() == 0 && hasPrograms("containerd", "runc", "ctr"),
		"qemu":       hasPrograms("qemu-system-x86_64"),
		"nginx":      hasPrograms("nginx"),
		"runqlat":    hasPrograms("runqlat"),
		"stress-ng":  hasPrograms("stress-ng"),
		"busybox":    exists("/bin/busybox"),
		"go":         hasPrograms("go"),
		"smt":        read("/sys/devices/system/cpu/smt/active") == "1",
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func read(name string) string {
	text, _ := os.ReadFile(name) // absent reads as empty
	return strings.TrimSpace(string(text))
}

func hasPrograms(names ...string) bool {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return false
		}
	}
	return true
}

func hasFilesystem(name string) bool {
	for line := range strings.Lines(read("/proc/filesystems") + "\n") {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 1
	}
	return set.Count()
}

// fileBelow tells whether a group of the cpu controller has the file; the root group never has it.
func fileBelow(file string) bool {
	for _, root := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		dir := root + "/qos-agent-test-probe"
		if !exists(root+"/cgroup.procs") || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		found := exists(dir + "/" + file)
		_ = os.Remove(dir) // it is empty
		return found
	}
	return false
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
