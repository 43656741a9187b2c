//go:build vmguest

// Package smoke checks the test machine itself: what other packages' tests rely on in the guest. It is compiled for the guest only.
package smoke

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKernelFiles(t *testing.T) {
	for _, name := range []string{
		"/proc/self/stat", "/sys/kernel/btf/vmlinux", "/sys/fs/bpf", "/sys/kernel/tracing/events/sched/sched_switch", "/dev/null", "/proc/pressure/cpu",
	} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

func TestUnifiedControllers(t *testing.T) {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		t.Skip("needs cgroup v2: ", err)
	}
	dir := filepath.Join(root, "qos-agent-test-smoke")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"cpu.weight", "cpu.idle", "cpu.max", "cpu.max.burst", "cpuset.cpus", "memory.high", "cgroup.freeze", "cpu.pressure"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestSerialPortPassesBytes(t *testing.T) {
	// The records carry any byte; a port that mangled them would show as a decoding error on the host.
	t.Log("\x00\x01\r\x16\xff" + strings.Repeat("long line ", 1000))
}
