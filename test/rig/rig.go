// Package rig is a test machine that has what our own have not: Intel RDT (CAT, MBA, CMT, MBM) and a PMU. It is QEMU with a patch
// that emulates both, with a model of cache and bandwidth contention behind the counters; the kernel in it is Debian's, and all of
// its side is real. See README.md.
package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the patch and the recipe
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/test/vm"
)

//go:embed rdt-pmu.patch
var patch []byte

//go:embed build.sh
var recipe []byte

// Rig is a built machine.
type Rig struct{ dir string }

// ErrMissing says that the machine is not in the cache and cannot be built here.
var ErrMissing = errors.New("the rig cannot be built")

// key changes with everything that the build depends on.
func key() string {
	h := sha256.New()
	h.Write(patch)
	h.Write(recipe)
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Open gives the machine from the cache, after building it there on the first call, which takes some minutes. What the build says
// goes to log. The error wraps ErrMissing where Debian's tools or sources are not to be had.
func Open(ctx context.Context, cache string, log io.Writer) (*Rig, error) {
	top := filepath.Join(cache, "rig")
	r := &Rig{filepath.Join(top, key())}
	if r.whole() {
		return r, nil
	}
	for _, program := range []string{"apt-get", "dpkg-source", "patch", "ninja", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMissing, err)
		}
	}
	if err := os.MkdirAll(top, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(top, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("rig: lock: %w", err)
	}
	if r.whole() { // another run was first
		return r, nil
	}
	return r, r.build(ctx, top, log)
}

func (r *Rig) whole() bool {
	_, err := os.Stat(r.Program())
	return err == nil
}

// Program is the path of the patched QEMU.
func (r *Rig) Program() string { return filepath.Join(r.dir, "qemu-system-x86_64") }

// build makes the directory appear in one step, so a run that was cut short leaves no half.
func (r *Rig) build(ctx context.Context, top string, log io.Writer) error {
	tmp, err := os.MkdirTemp(top, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	scripts := filepath.Join(tmp, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		return err
	}
	script := filepath.Join(scripts, "build.sh")
	err = errors.Join(os.WriteFile(script, recipe, 0o755), os.WriteFile(filepath.Join(scripts, "rdt-pmu.patch"), patch, 0o644))
	if err != nil {
		return err
	}
	out := filepath.Join(tmp, "out")
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", script, out)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(log, &said), io.MultiWriter(log, &said)
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		last := strings.Join(lines[max(0, len(lines)-15):], "\n")
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == noSource {
			return fmt.Errorf("%w: %s", ErrMissing, last)
		}
		return fmt.Errorf("rig: build: %w\n%s", err, last)
	}
	return os.Rename(out, r.dir)
}

// noSource is the exit code of build.sh when the archives do not have the source.
const noSource = 3

// Variant is a kind of the machine.
type Variant struct {
	Name   string
	SMP    string // of -smp
	CPU    string // more properties of the CPU, comma-separated; see README.md
	Append []string
}

// Variants are the kinds on which tests can run. A file of tests names those that it wants (see the runner).
var Variants = []Variant{
	{Name: "plain", SMP: "4"},
	{Name: "two-sockets", SMP: "4,sockets=2,cores=2"},
	{Name: "four-closids", SMP: "4", CPU: "rdt-closids=4,rdt-mba-closids=4"},
	{Name: "few-rmids", SMP: "4", CPU: "rdt-rmids=12"},
	{Name: "forty-rmids", SMP: "4", CPU: "rdt-rmids=40"},
	{Name: "many-rmids", SMP: "4", CPU: "rdt-rmids=256"},
	{Name: "no-mba", SMP: "4", CPU: "rdt-mba=off"},
	{Name: "no-cat", SMP: "4", CPU: "rdt-cat=off"},
	{Name: "no-monitoring", SMP: "4", CPU: "rdt-cmt=off,rdt-mbm=off"},
	{Name: "sparse", SMP: "4", CPU: "rdt-noncontig=on"},
	{Name: "twenty-ways", SMP: "4", CPU: "rdt-cbm-len=20,rdt-way-kib=1100,rdt-shareable=786432"},
}

// Machine is the machine of a variant. Kernel, Init and files are to be filled in.
func (r *Rig) Machine(v Variant) *vm.Machine {
	// Model 106 is Ice Lake server: on 85 (Skylake) the kernel turns RDT features off by its errata list. monitor=off: otherwise
	// an idle guest CPU spins in MWAIT on the host. The patch mends what makes several threads of emulation unsafe in QEMU 7.2,
	// and they are needed: a CPU that works by the side channel sleeps on the host and would stop the others.
	cpu := "max,vendor=GenuineIntel,family=6,model=106,stepping=6,monitor=off,svm=off,la57=off,rdt=on"
	if v.CPU != "" {
		cpu += "," + v.CPU
	}
	return &vm.Machine{
		QEMU:     r.Program(),
		QEMUArgs: []string{"-L", filepath.Join(r.dir, "share/qemu"), "-L", filepath.Join(r.dir, "share/seabios")},
		Accel:    "tcg,thread=multi",
		CPU:      cpu,
		SMP:      v.SMP,
		Append:   v.Append,
	}
}
