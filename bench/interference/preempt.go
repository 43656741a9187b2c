package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/test/vm"
	"github.com/qos-agent/qos-agent/test/vm/wire"
	"golang.org/x/sys/unix"
)

type (
	preemptCmd struct {
		Kernel string `default:"6.12" help:"Series of Debian's kernels."`
	}
	// guestCmd is what preempt runs in the machines that it boots.
	guestCmd struct {
		Disk string `default:"/dev/nvme0n1"`
	}
)

// preemptResult tells how much of what a writer of files does to others is the kernel's model of preemption: the same kernel is booted with each
// of them, in an emulated machine with one CPU and a disk, where a real-time thread wakes up every few milliseconds beside a SCHED_IDLE writer. The
// machine is tens of times slower than a real one: what counts is how models compare.
type preemptResult struct {
	lab.Machine
	Guest string       `json:"guest_kernel"`
	Rows  []preemptRow `json:"rows"`
}

type preemptRow struct {
	Model   string   `json:"preemption"` // as the guest's kernel said at its start
	Beside  string   `json:"beside"`
	Late    lateness `json:"late"`
	Written float64  `json:"written_mib_per_second"`
}

const (
	guestView  = 8 * time.Second
	guestEvery = 2 * time.Millisecond
	guestFile  = 64 << 20
)

// Run boots a machine for each model.
func (c preemptCmd) Run(ctx context.Context, o *options) (err error) {
	if _, err := online.Find("qemu-system-x86_64", "qemu-system-x86"); err != nil {
		return err
	}
	mkfs, err := online.Find("mkfs.ext4", "e2fsprogs")
	if err != nil {
		return err
	}
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	kernel, err := vm.DebianKernel(ctx, cache, c.Kernel)
	if err != nil {
		return err
	}
	l, err := lab.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	init, self, disk := filepath.Join(l.Dir, "init"), filepath.Join(l.Dir, "guest"), filepath.Join(l.Dir, "disk")
	for out, pkg := range map[string]string{init: "./test/vm/init", self: "./bench/interference"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	out := preemptResult{Machine: lab.ThisMachine()}
	for _, model := range []string{"none", "voluntary", "full"} {
		if err := errors.Join(os.WriteFile(disk, nil, 0o644), os.Truncate(disk, 256<<20)); err != nil {
			return err
		}
		if text, err := exec.CommandContext(ctx, mkfs, "-q", "-F", disk).CombinedOutput(); err != nil {
			return fmt.Errorf("mkfs.ext4: %w: %s", err, text)
		}
		m := vm.Machine{
			Kernel: kernel.Image, Init: init, SMP: "1", Append: []string{"preempt=" + model},
			QEMUArgs: []string{"-drive", "if=none,id=disk,format=raw,file=" + disk, "-device", "nvme,serial=1,drive=disk"},
		}
		rows, release, err := runGuest(ctx, &m, self)
		if err != nil {
			return fmt.Errorf("preempt=%s: %w", model, err)
		}
		out.Guest, out.Rows = release, append(out.Rows, rows...)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Linux %s, emulated, one CPU\nmodel\tbeside\treal-time thread late: p99\tp99.9\tmax\tover 1 ms\twritten\n", out.Guest)
	for _, r := range out.Rows {
		fmt.Fprintf(t, "%s\t%s\t%.1f ms\t%.1f ms\t%.1f ms\t%d of %d\t%.0f MiB/s\n", r.Model, r.Beside, r.Late.P99/1e3, r.Late.P999/1e3, r.Late.Max/1e3, r.Late.Over, r.Late.N, r.Written)
	}
	t.Flush()
	return lab.WriteResult(o.Out, "preempt.json", out)
}

// runGuest boots a machine, in which self measures.
func runGuest(ctx context.Context, m *vm.Machine, self string) (rows []preemptRow, release string, err error) {
	var said bytes.Buffer
	exit := -1
	err = m.Run(ctx, []vm.Job{{Name: "guest", Binary: self, Args: []string{"guest"}}}, func(r wire.Record) {
		switch r.Kind {
		case wire.Hello:
			release = r.Release
		case wire.Output:
			said.Write(r.Data)
		case wire.End:
			exit = r.Exit
		}
	})
	if err != nil {
		return nil, "", err
	}
	if err := json.Unmarshal(said.Bytes(), &rows); err != nil || exit != 0 {
		return nil, "", fmt.Errorf("the guest ended with %d and said %q", exit, said.String())
	}
	return rows, release, nil
}

// Run measures in the guest, and prints rows.
func (c guestCmd) Run(ctx context.Context) error {
	const mount = "/disk"
	if err := os.Mkdir(mount, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(c.Disk, mount, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.Disk, err)
	}
	var rows []preemptRow
	for _, w := range []struct {
		beside, dir string
		flags       int
	}{{"nothing", "", 0}, {"writer to memory", "/run", 0}, {"writer to ext4", mount, 0}, {"writer to ext4, O_DIRECT", mount, unix.O_DIRECT}} {
		row, err := beside(ctx, w.dir, w.flags)
		if err != nil {
			return fmt.Errorf("%s: %w", w.beside, err)
		}
		row.Model, row.Beside = preemption(), w.beside
		rows = append(rows, row)
	}
	if err := unix.Unmount(mount, 0); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(rows)
}

// beside wakes up in the real-time class while files are written.
func beside(ctx context.Context, dir string, flags int) (row preemptRow, err error) {
	var stop atomic.Bool
	var written atomic.Int64
	ended := make(chan error, 1)
	if dir == "" {
		ended <- nil
	} else {
		go func() { ended <- write(filepath.Join(dir, "written"), flags, &stop, &written) }()
		if err := lab.Sleep(ctx, guestView/8); err != nil {
			return row, err
		}
	}
	before := written.Load()
	row.Late = newLateness(wakeups(0, guestView, guestEvery))
	row.Written = float64(written.Load()-before) / (1 << 20) / guestView.Seconds()
	stop.Store(true)
	return row, <-ended
}

// write replaces a file again and again, as SCHED_IDLE. Closing a file that was cut short before has ext4 send it to the disk.
func write(name string, flags int, stop *atomic.Bool, written *atomic.Int64) error {
	runtime.LockOSThread() // and the thread ends with the goroutine
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
		return err
	}
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE) // aligned, as O_DIRECT wants it
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	for !stop.Load() {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|flags, 0o600)
		if err != nil {
			return err
		}
		for range guestFile / len(buf) {
			n, err := f.Write(buf)
			if written.Add(int64(n)); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return os.Remove(name)
}
