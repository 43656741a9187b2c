package ebpf

import "fmt"

// Missing names what the machine or the process lacks.
type Missing string

const (
	MissingBTF        Missing = "kernel BTF"
	MissingKernel     Missing = "a newer kernel"
	MissingConfig     Missing = "a kernel option"
	MissingPermission Missing = "permission"
)

// UnsupportedError says why run-queue waits cannot be measured here.
type UnsupportedError struct {
	Missing Missing
	Need    string // what would make it work
	Err     error  // what the kernel or the library said
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("eBPF run-queue tracing needs %s (%s): %v; without it nobody can be blamed for CPU waits", e.Missing, e.Need, e.Err)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }
