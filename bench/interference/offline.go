package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/test/groups"
)

// offline is a kind of offline work. It is sized by the number of CPUs so that it could use all of them, and more.
type offline struct {
	name    string
	unit    string // of its throughput
	program string
	pkg     string // Debian's
	disk    bool   // writes files: what it hurts is not only a matter of CPUs
	command func(m *materials, cpus int) []string
}

// materials are the files that offline work reads and writes.
type materials struct {
	dir  string // on a tmpfs
	disk string // on a disk
}

// Sizes of the real jobs' work, small enough that a window sees many pieces.
const (
	xzBytes   = 512 << 10
	zstdBytes = 4 << 20
	cFuncs    = 6
)

var offlines = []offline{
	stressNG("cpu", "ops/s", "--cpu", "2n"),
	stressNG("vm", "ops/s", "--vm", "n", "--vm-bytes", "32M", "--vm-keep", "--vm-method", "incdec"),
	stressNG("memcpy", "ops/s", "--memcpy", "2n"),
	stressNG("cache", "ops/s", "--cache", "n"),
	stressNG("stream", "ops/s", "--stream", "n", "--stream-l3-size", "8M"),
	stressNG("fork", "forks/s", "--fork", "2n"),
	stressNG("exec", "execs/s", "--exec", "n"),
	stressNG("mmap", "ops/s", "--mmap", "n", "--mmap-bytes", "4M"),
	stressNG("switch", "ops/s", "--switch", "n"),
	hdd(),
	stressNG("udp", "ops/s", "--udp", "n"),
	job("xz", "MB/s", "xz", "xz-utils", float64(xzBytes)/1e6, 1, "xz -T0 -1 -c %s/xz.in >/dev/null"),
	job("compile", "files/s", "gcc", "gcc", 1, 1, "gcc -O1 -c -o /dev/null %s/unit.c"),
	job("zstd-sha", "MB/s", "zstd", "zstd", float64(zstdBytes)/1e6, 1, "zstd -q -3 -c %s/zstd.in | sha256sum >/dev/null"),
}

func (o offline) writes() offline {
	o.disk = true
	return o
}

// stressNG is a stressor; "n" and "2n" among the arguments become that many processes per CPU. Sizes are such that an operation is
// short beside a window. It runs as nobody: some stressors refuse to be root.
func stressNG(name, unit string, args ...string) offline {
	return offline{name: name, unit: unit, program: "stress-ng", pkg: "stress-ng", command: func(m *materials, cpus int) []string {
		out := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stress-ng", "--temp-path", m.disk, "--metrics-brief", "--no-rand-seed"}
		for _, a := range args {
			switch a {
			case "n":
				a = strconv.Itoa(cpus)
			case "2n":
				a = strconv.Itoa(2 * cpus)
			}
			out = append(out, a)
		}
		return out
	}}
}

// job is a real job: a shell command done again and again by a number of loops per CPU. Each piece done prints a line.
func job(name, unit, program, pkg string, per float64, perCPU int, line string) offline {
	return offline{name: name, unit: unit, program: program, pkg: pkg, command: func(m *materials, cpus int) []string {
		return []string{"/bin/sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do (while :; do %s; echo %g; done) & i=$((i+1)); done; wait`,
			perCPU*cpus, fmt.Sprintf(line, m.dir), per)}
	}}
}

// prepare makes the files that the jobs read.
func prepare(dir, disk string) (*materials, error) {
	m := &materials{dir: dir, disk: disk}
	text := online.Prose(zstdBytes)
	var unit strings.Builder
	for i := range cFuncs {
		fmt.Fprintf(&unit, "int f%d(int *a, int n) { int s = %d; for (int i = 0; i < n; i++) { if (a[i] %% %d) s += a[i] * i; else s ^= a[n - i - 1]; a[i] = s; } return s; }\n", i, i, i+2)
	}
	for name, content := range map[string]string{"xz.in": text[:xzBytes], "zstd.in": text[:zstdBytes], "unit.c": unit.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// running is offline work that runs.
type running struct {
	kind  offline
	cmd   *exec.Cmd
	start time.Time
	out   bytes.Buffer
	done  atomic.Uint64 // of a job, in thousandths of its unit
	read  chan struct{}

	stopped bool
}

// startOffline starts work in a group.
func startOffline(o offline, m *materials, tree *groups.Tree, group string, cpus int) (*running, error) {
	args := o.command(m, cpus)
	r := &running{kind: o, read: make(chan struct{})}
	r.cmd = tree.Command(group, args[0], args[1:]...)
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.cmd.Stderr = r.cmd.Stdout
	r.start = time.Now()
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.name, err)
	}
	go r.listen(out)
	return r, nil
}

// listen reads what the work prints: pieces done, or the report at the end.
func (r *running) listen(out io.Reader) {
	defer close(r.read)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if n, err := strconv.ParseFloat(lines.Text(), 64); err == nil {
			r.done.Add(uint64(n * 1000))
			continue
		}
		r.out.Write(append(lines.Bytes(), '\n'))
	}
}

// stop ends the work and tells its throughput, from its first moment to its last: what a protection takes or leaves while it
// gets going is part of that.
func (r *running) stop(tree tree, group string) (perSecond float64, err error) {
	stress := r.kind.program == "stress-ng"
	took := time.Since(r.start).Seconds()
	done := float64(r.done.Load()) / 1000
	ask := syscall.SIGKILL
	if stress {
		ask = syscall.SIGINT // it reports then
	}
	if !stress {
		if err := tree.Empty(group); err != nil {
			return 0, err
		}
	}
	// The pipe closes when the last of its processes is gone.
	_ = r.cmd.Process.Signal(ask)
	select {
	case <-r.read:
	case <-time.After(5 * time.Second):
		if err := tree.Empty(group); err != nil {
			return 0, err
		}
		<-r.read
	}
	_ = r.cmd.Wait() // says how it ended, which is known
	r.stopped = true
	if err := tree.Empty(group); err != nil {
		return 0, err
	}
	if !stress {
		return done / took, nil
	}
	return parseStress(r.out.Bytes(), r.kind.name)
}

// abandon ends work of which nothing is wanted any more.
func (r *running) abandon() {
	if r.stopped {
		return
	}
	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) // what is left is killed with its group
	_ = r.cmd.Process.Kill()
}

// tree is who can kill what is in a group.
type tree interface{ Empty(group string) error }

// parseStress finds the operations per second of real time in stress-ng's report.
func parseStress(out []byte, stressor string) (float64, error) {
	for line := range bytes.Lines(out) {
		f := bytes.Fields(line)
		// stress-ng: metrc: [123] cpu 543 1.01 0.30 0.01 535.55 1724.90
		for i := range f {
			if string(f[i]) == stressor && i >= 2 && len(f) >= i+6 {
				if n, err := strconv.ParseFloat(string(f[i+5]), 64); err == nil {
					return n, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("stress-ng reported no operations of %s:\n%s", stressor, out)
}
