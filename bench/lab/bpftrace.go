package lab

import "os/exec"

// Bpftrace is a command that runs a program with bpftrace, and with more of its flags. It finds tracepoints by the files of tracefs, which not
// every machine has mounted: so it gets a mount namespace of its own that has.
func Bpftrace(program string, flags ...string) *exec.Cmd {
	const mount = `mount -t tracefs tracefs /sys/kernel/tracing && mount -t debugfs debugfs /sys/kernel/debug && exec bpftrace "$@"`
	return exec.Command("unshare", append(append([]string{"--mount", "sh", "-c", mount, "bpftrace"}, flags...), "-e", program)...)
}
