package ebpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoadWithoutPermissionSaysSo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to become somebody else")
	}
	// Somebody else may not be able to read the directory that this binary is in.
	dir, err := os.MkdirTemp("/tmp", "qos-agent-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "load")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied)
	cmd.Env = append(os.Environ(), loadOnly+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil || Missing(out) != MissingPermission {
		t.Errorf("%s (%v), want %s", out, err, MissingPermission)
	}
}

func TestUnsupportedErrorTellsAll(t *testing.T) {
	err := explain(fmt.Errorf("load program: %w", unix.EPERM))
	missing, ok := errors.AsType[*UnsupportedError](err)
	if !ok {
		t.Fatalf("%v is not an UnsupportedError", err)
	}
	for _, part := range []string{string(missing.Missing), missing.Need, "load program", "nobody can be blamed"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("%v is not EPERM", err)
	}
}
