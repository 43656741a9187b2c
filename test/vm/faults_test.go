package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/test/vm/wire"
)

// These tests boot real machines and break them: a harness that took a broken machine for a good one would prove nothing.

func testMachine(t *testing.T) *Machine {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu: ", err)
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox: ", err)
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := DebianKernel(t.Context(), cache, "6.1")
	if errors.Is(err, ErrNoKernel) {
		t.Skip("needs apt: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	init := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-o", init, "./init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	return &Machine{Kernel: kernel.Image, Init: init, MemoryMB: 256}
}

func shell(script string) Job {
	return Job{Name: script, Binary: "/bin/busybox", Args: []string{"sh", "-c", script}, Timeout: time.Minute}
}

func TestJobsThatMisbehave(t *testing.T) {
	m := testMachine(t)
	slow := shell("echo begun; sleep 1000")
	slow.Timeout = 2 * time.Second
	jobs := []Job{
		shell("echo out; echo err >&2; exit 3"),
		slow,
		shell("sleep 1000 & mkdir /sys/fs/cgroup/stray; mount -t tmpfs stray /mnt || { mkdir /mnt; mount -t tmpfs stray /mnt; }"),
		shell("kill -9 $$"),
		shell("printf 'no end of line \\001\\377'"),
	}
	out := make([]string, len(jobs))
	ends := make([]wire.Record, len(jobs))
	var release string
	err := m.Run(t.Context(), jobs, func(r wire.Record) {
		switch r.Kind {
		case wire.Hello:
			release = r.Release
			if !r.Features["cgroup v2"] || !r.Features["cpu.idle"] || r.Features["pmu"] {
				t.Errorf("features %v", r.Features)
			}
		case wire.Output:
			out[r.Job] += string(r.Data)
		case wire.End:
			ends[r.Job] = r
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(release, "6.1.") {
		t.Errorf("kernel %q", release)
	}
	for i, want := range []wire.Record{{Exit: 3}, {Exit: 128 + 9, Timeout: true}, {}, {Exit: 128 + 9}, {}} {
		if ends[i].Kind != wire.End || ends[i].Exit != want.Exit || ends[i].Timeout != want.Timeout {
			// SIGQUIT may be enough for the one that runs out of time.
			if !want.Timeout || !ends[i].Timeout || ends[i].Exit == 0 {
				t.Errorf("%s: %+v", jobs[i].Name, ends[i])
			}
		}
		if i != 2 && len(ends[i].Left) > 0 {
			t.Errorf("%s: left %q", jobs[i].Name, ends[i].Left)
		}
	}
	if out[0] != "out\nerr\n" || out[1] != "begun\n" || out[4] != "no end of line \x01\xff" {
		t.Errorf("output %q", out)
	}
	left := strings.Join(ends[2].Left, "\n")
	for _, want := range []string{"process ", "group /sys/fs/cgroup/stray", "mount /mnt tmpfs"} {
		if !strings.Contains(left, want) {
			t.Errorf("what was left behind does not tell of %q:\n%s", want, left)
		}
	}
}

func TestMachinesThatBreak(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		silent time.Duration
		want   string
	}{
		"panic":         {"echo c > /proc/sysrq-trigger; sleep 100", 0, "panic"},
		"hang":          {"kill -STOP $PPID; sleep 100", 5 * time.Second, "no sign of life"},
		"out of memory": {"dd if=/dev/zero of=/tmp/fill bs=1M; cat /dev/zero | sort > /dev/null", 0, "Out of memory"},
		"power cut":     {"echo o > /proc/sysrq-trigger; sleep 100", 0, "ended before its jobs did"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t)
			m.Silent = c.silent
			err := m.Run(t.Context(), []Job{shell(c.script)}, func(wire.Record) {})
			var fault *Error
			if !errors.As(err, &fault) || !strings.Contains(fault.What, c.want) {
				t.Fatalf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}
