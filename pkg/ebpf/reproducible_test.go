package ebpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The objects in the repository are what the sources give. Other versions of clang make other bytes, so this one is asked for.
func TestObjectsAreReproducible(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil || !bytes.Contains(version, []byte("clang version 14.")) {
		t.Skip("needs clang: version 14, which made the committed objects")
	}
	if _, err := exec.LookPath("llvm-strip"); err != nil {
		t.Skip("needs clang: llvm-strip is not installed")
	}
	directives, err := os.ReadFile("generate.go")
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	for line := range strings.Lines(string(directives)) {
		args, ok := strings.CutPrefix(line, "//go:generate go tool bpf2go ")
		if !ok {
			continue
		}
		cmd := exec.Command("go", append([]string{"tool", "bpf2go", "-output-dir", tmp}, strings.Fields(args)...)...)
		cmd.Env = append(os.Environ(), "GOPACKAGE=ebpf")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	made, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 4 {
		t.Errorf("%d files made, want 4", len(made))
	}
	for _, f := range made {
		want, err := os.ReadFile(filepath.Join(tmp, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(f.Name())
		if err != nil {
			t.Errorf("%v: run go generate ./pkg/ebpf", err)
		} else if !bytes.Equal(have, want) {
			t.Errorf("%s is not what bpf/ gives: run go generate ./pkg/ebpf", f.Name())
		}
	}
}
