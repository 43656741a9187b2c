package vm

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/test/vm/wire"
)

func TestImageIsReadByCpio(t *testing.T) {
	if _, err := exec.LookPath("/bin/busybox"); err != nil {
		t.Skip("needs busybox: its cpio reads the archive: ", err)
	}
	host := filepath.Join(t.TempDir(), "program")
	content := bytes.Repeat([]byte("odd"), 1001) // a length that needs padding
	if err := os.WriteFile(host, content, 0o600); err != nil {
		t.Fatal(err)
	}
	img := newImage()
	img.addHost("/bin/deep/program", host, 0o755)
	img.addData("/config.json", []byte("{}"))
	img.addLink("/bin/sh", "deep/program")
	img.addDir("/proc")
	var archive bytes.Buffer
	if err := img.writeTo(&archive); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	cmd := exec.Command("/bin/busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "bin/sh")) // through the link
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("content differs")
	}
	info, err := os.Stat(filepath.Join(dir, "bin/deep/program"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o755 {
		t.Errorf("permissions %v", info.Mode())
	}
	if info, err := os.Stat(filepath.Join(dir, "proc")); err != nil || !info.IsDir() {
		t.Errorf("proc: %v %v", info, err)
	}
}

func TestNewestKernelWins(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64",
		"linux-image-6.1.0-56-cloud-amd64-unsigned",
		"linux-image-6.1.0-47-cloud-amd64-unsigned",
		"linux-image-6.1.0-56-cloud-amd64",
	}
	slices.SortFunc(names, compareVersions)
	want := []string{names[0], "linux-image-6.1.0-47-cloud-amd64-unsigned", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64-unsigned"}
	if diff := cmp.Diff(want, names); diff != "" || names[0] != "linux-image-6.1.0-9-cloud-amd64" {
		t.Errorf("order (- want, + got):\n%s", diff)
	}
}

func TestFollow(t *testing.T) {
	line := func(r wire.Record) string {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text) + "\n"
	}
	hello, done := line(wire.Record{Kind: wire.Hello}), line(wire.Record{Kind: wire.Done})
	for _, c := range []struct {
		name, in string
		done     bool
		err      string
	}{
		{"all is well", hello + done, true, ""},
		{"ends early", hello, false, ""},
		{"cut in the middle of a record", hello + done[:5], false, "unexpected end"},
		{"not a record", "panic\n", false, "panic"},
		{"init gives up", line(wire.Record{Kind: wire.Fatal, Data: []byte("no /sys")}), false, "no /sys"},
		{"nothing at all", "", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := follow(strings.NewReader(c.in), func(wire.Record) {})
			if got != c.done || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("done %v, error %v", got, err)
			}
		})
	}
}

func TestFaultsOfTheKernel(t *testing.T) {
	for line, want := range map[string]bool{
		"[    3.1] Kernel panic - not syncing: VFS":                            true,
		"[    3.1] BUG: kernel NULL pointer dereference, address: 0":           true,
		"[    3.1] Oops: 0000 [#1] PREEMPT SMP":                                true,
		"[   12.4] Out of memory: Killed process 77 (init)":                    true,
		"[   12.4] INFO: task x:1 blocked for more than 120 seconds":           true,
		"[   12.4] Memory cgroup out of memory: Killed process 77 (x)":         false,
		"[    0.1] x86/cpu: User Mode Instruction Prevention (UMIP) activated": false,
		"[    0.1] DEBUG: not a bug, nor is DEBUG: this":                       false,
	} {
		var c tail
		for _, part := range []string{"before\r\n", line[:8], line[8:], "\r\nafter\r\n"} {
			_, _ = c.Write([]byte(part))
		}
		if got := c.fault() != ""; got != want {
			t.Errorf("%q: fault %q", line, c.fault())
		}
	}
}

func TestTailIsBounded(t *testing.T) {
	var c tail
	for range 1000 {
		_, _ = c.Write(bytes.Repeat([]byte("x\n"), 100))
	}
	if len(c.buf) > 2*tailBytes || strings.Count(c.String(), "\n") > 40 {
		t.Errorf("%d bytes kept", len(c.buf))
	}
}
