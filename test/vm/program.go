package vm

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// AddProgram puts a program of the host with its shared libraries into the guest, below /bin by its name.
func (m *Machine) AddProgram(ctx context.Context, program string) error {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return err
	}
	if m.Files == nil {
		m.Files = map[string]string{}
	}
	m.Files["/bin/"+filepath.Base(program)] = real
	out, err := exec.CommandContext(ctx, "ldd", real).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "not a dynamic executable") {
			return nil
		}
		return fmt.Errorf("ldd %s: %w: %s", real, err, lastLine(out))
	}
	// "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)", "/lib64/ld-linux-x86-64.so.2 (0x...)"
	for line := range strings.Lines(string(out)) {
		for field := range strings.FieldsSeq(line) {
			if filepath.IsAbs(field) {
				host, err := filepath.EvalSymlinks(field)
				if err != nil {
					return fmt.Errorf("library of %s: %w", real, err)
				}
				m.Files[field] = host
			}
		}
	}
	return nil
}
