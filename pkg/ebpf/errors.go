package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Missing names what the machine or the process lacks.
type Missing string

// What may be missing.
const (
	MissingKernel     Missing = "a newer kernel"
	MissingBTF        Missing = "kernel type information (BTF)"
	MissingPermission Missing = "permission to load BPF programs"
	MissingField      Missing = "scheduler fields in the kernel"
)

// UnsupportedError says why run-queue waits cannot be measured here.
type UnsupportedError struct {
	Missing Missing
	Need    string // what would make it work
	Err     error  // what the kernel or the library said
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("run-queue tracing lacks %s (needs %s): %v; without it no wait for a CPU is seen and nobody can be blamed",
		e.Missing, e.Need, e.Err)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

const btfPath = "/sys/kernel/btf/vmlinux"

// explain finds the reason behind a failed load. The load itself was the probe; only now is it worth asking what the machine is.
func explain(err error) error {
	unsupported := func(m Missing, need string) error { return &UnsupportedError{Missing: m, Need: need, Err: err} }

	if major, minor, ok := kernelVersion(); ok && (major < 5 || major == 5 && minor < 14) {
		return unsupported(MissingKernel, "Linux 5.14 or later")
	}
	if _, statErr := os.Stat(btfPath); errors.Is(statErr, os.ErrNotExist) {
		return unsupported(MissingBTF, "a kernel with CONFIG_DEBUG_INFO_BTF=y")
	}
	// The verifier's refusals are EACCES too: ask for it first.
	if verdict, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		// The library replaces an instruction that needs a type or field which the kernel has not by a call to this number.
		if strings.Contains(fmt.Sprintf("%+v", verdict), "195896080") {
			return unsupported(MissingField, "CONFIG_FAIR_GROUP_SCHED, CONFIG_SCHED_INFO and CONFIG_CFS_BANDWIDTH")
		}
		return fmt.Errorf("load BPF programs: %w", err)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return unsupported(MissingPermission, "root or CAP_BPF and CAP_PERFMON, and neither lockdown nor a seccomp filter that forbids bpf(2)")
	}
	return fmt.Errorf("load BPF programs: %w", err)
}

func kernelVersion() (major, minor int, ok bool) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0, 0, false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major, minor, n == 2
}
