package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/test/features"
	"github.com/qos-agent/qos-agent/test/rig"
	"github.com/qos-agent/qos-agent/test/vm"
)

// Tests that want RDT and a PMU are in files named *_rig_test.go, and their names begin with rigPrefix. Such a file may say on which
// kinds of the machine its tests run, by a line of its own (see rig.Variants); without one it is the plain kind:
//
//	//rig:variants plain two-sockets
const (
	rigPrefix    = "TestRig"
	rigLong      = "TestRigLong" // names that begin so are run with -long only
	rigDirective = "//rig:variants "
)

// rigPrograms are programs of this machine that tests in the rig use, where it has them.
var rigPrograms = []string{"pqos", "perf"}

// rig runs the tests that want RDT or a PMU: the plain machine on every kernel, its other kinds on the last.
func (r *runner) rig(ctx context.Context, kernels []string) error {
	wanted, err := r.rigTests()
	if err != nil {
		r.tally.fail("rig", err.Error())
		return nil
	}
	if len(wanted) == 0 {
		return nil
	}
	if !features.Probe()["qemu"] {
		r.tally.skip("rig", "needs qemu: qemu-system-x86_64 is not installed, nor probably what it needs")
		return nil
	}
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	start := time.Now()
	machine, err := rig.Open(ctx, cache, new(bytes.Buffer))
	if errors.Is(err, rig.ErrMissing) {
		r.tally.skip("rig", "needs the rig: "+err.Error())
		return nil
	}
	if err != nil {
		r.tally.fail("rig", err.Error())
		return nil
	}
	if took := time.Since(start); took > time.Second {
		fmt.Printf("     built in %v\n", took.Round(time.Second))
	}
	for i, series := range kernels {
		kernel, err := vm.DebianKernel(ctx, cache, series)
		if errors.Is(err, vm.ErrNoKernel) {
			r.tally.skip("rig linux-"+series, "needs a kernel: "+err.Error())
			continue
		}
		if err != nil {
			r.tally.fail("rig linux-"+series, err.Error())
			continue
		}
		for j, v := range rig.Variants {
			if len(wanted[v.Name]) == 0 || j > 0 && i < len(kernels)-1 {
				continue
			}
			layer := fmt.Sprintf("rig-%s-linux-%s ", v.Name, series)
			m := machine.Machine(v)
			m.Kernel = kernel.Image
			jobs, err := r.rigJobs(ctx, m, wanted[v.Name])
			if err != nil {
				r.tally.fail(strings.TrimSpace(layer), err.Error())
				return nil
			}
			if err := r.boot(ctx, layer, m, jobs); err != nil {
				return err
			}
		}
	}
	return nil
}

// rigTest is the tests of one package on one kind of the machine.
type rigTest struct {
	pkg   *pkg
	names []string
}

// rigTests finds out what is to run on which kind of the machine.
func (r *runner) rigTests() (map[string][]rigTest, error) {
	wanted := map[string][]rigTest{}
	for _, p := range slices.Concat(r.packages, r.deploy) {
		byVariant := map[string][]string{}
		for _, file := range p.filesNamed("_rig_test.go") {
			names, err := testNames([]string{file})
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if !strings.HasPrefix(name, rigPrefix) {
					return nil, fmt.Errorf("%s: %s: want a name that begins with %s", file, name, rigPrefix)
				}
			}
			names = slices.DeleteFunc(names, func(n string) bool { return !r.long && strings.HasPrefix(n, rigLong) || !r.named.MatchString(n) })
			variants, err := rigVariants(file)
			if err != nil {
				return nil, err
			}
			for _, v := range variants {
				if len(names) == 0 {
					continue
				}
				byVariant[v] = append(byVariant[v], names...)
			}
		}
		for v, names := range byVariant {
			wanted[v] = append(wanted[v], rigTest{&p, names})
		}
	}
	return wanted, nil
}

// rigVariants are the kinds of the machine that a file of tests asks for.
func rigVariants(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		list, ok := strings.CutPrefix(line, rigDirective)
		if !ok {
			continue
		}
		variants := strings.Fields(list)
		for _, name := range variants {
			if !slices.ContainsFunc(rig.Variants, func(v rig.Variant) bool { return v.Name == name }) {
				return nil, fmt.Errorf("%s: no variant %q of the rig", file, name)
			}
		}
		return variants, nil
	}
	return []string{rig.Variants[0].Name}, nil
}

func (r *runner) rigJobs(ctx context.Context, m *vm.Machine, tests []rigTest) ([]vm.Job, error) {
	if err := r.programs(ctx, m); err != nil {
		return nil, err
	}
	work := filepath.Join(r.dir, "work")
	if err := build(ctx, "build", "-o", work, "./test/rig/work"); err != nil {
		return nil, err
	}
	m.Files["/bin/work"] = work
	for _, name := range rigPrograms {
		if path, err := lookup(name); err == nil {
			if err := m.AddProgram(ctx, path); err != nil {
				return nil, err
			}
		}
	}
	if slices.ContainsFunc(tests, func(t rigTest) bool { return isE2E(*t.pkg) }) {
		if err := r.podPrograms(ctx, m); err != nil {
			return nil, err
		}
	}
	var jobs []vm.Job
	for _, t := range tests {
		job := t.pkg.job(t.names)
		if err := r.testJob(ctx, &job); err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	return jobs, nil
}

// lookup finds a program also where root's are, which are not in everybody's PATH.
func lookup(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}
