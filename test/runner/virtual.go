package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/test/features"
	"github.com/qos-agent/qos-agent/test/vm"
	"github.com/qos-agent/qos-agent/test/vm/wire"
)

const (
	module      = "github.com/qos-agent/qos-agent/"
	jobTimeout  = 8 * time.Minute
	longTimeout = 40 * time.Minute
)

// forGuest tells whether the package's kernel tests can run in the guest, which has neither a container runtime nor nginx nor a browser, and in
// which nobody runs benches.
func (p *pkg) forGuest() bool {
	const containerd, demo, page, lab = module + "test/containerd", module + "demo", module + "internal/page", module + "bench/lab"
	return len(p.kernelFiles()) > 0 && !slices.Contains([]string{containerd, demo, page, lab}, p.ImportPath) &&
		!slices.Contains(p.TestImports, containerd) && !slices.Contains(p.XTestImports, containerd)
}

// isE2E tells whether the package is the one that runs the agent's own pod.
func isE2E(p pkg) bool { return p.ImportPath == module+deployDir+"/e2e" }

// virtual runs the kernel tests on a kernel of Debian in a virtual machine with cgroup v2.
func (r *runner) virtual(ctx context.Context, series string, first bool) error {
	name := "linux-" + series
	if !features.Probe()["qemu"] {
		r.tally.skip(name, "needs qemu: qemu-system-x86_64 is not installed")
		return nil
	}
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	kernel, err := vm.DebianKernel(ctx, cache, series)
	if errors.Is(err, vm.ErrNoKernel) {
		r.tally.skip(name, "needs a kernel: "+err.Error())
		return nil
	}
	if err != nil {
		r.tally.fail(name, err.Error())
		return nil
	}
	// Pods have a machine of their own, on the first kernel: what they need is as big as everything else.
	machines := []func(context.Context) ([]vm.Job, *vm.Machine, error){r.guest}
	if first {
		machines = append(machines, r.podGuest)
	}
	for _, prepare := range machines {
		jobs, machine, err := prepare(ctx)
		if err != nil {
			r.tally.fail(name, err.Error())
			return nil
		}
		if len(jobs) == 0 {
			continue
		}
		machine.Kernel = kernel.Image
		if err := r.boot(ctx, name+" ", machine, jobs); err != nil {
			return err
		}
	}
	return nil
}

// build runs go for what is static, as the guest has no libraries.
func build(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(cmd)
	return err
}

// programs builds init and the agent into the machine.
func (r *runner) programs(ctx context.Context, m *vm.Machine) error {
	m.Init = filepath.Join(r.dir, "init")
	if err := build(ctx, "build", "-o", m.Init, "./test/vm/init"); err != nil {
		return err
	}
	agent := filepath.Join(r.dir, "qos-agent")
	if err := build(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "./cmd/qos-agent"); err != nil {
		return err
	}
	m.Files = map[string]string{"/bin/qos-agent": agent}
	return nil
}

// guest builds what goes into the machine.
func (r *runner) guest(ctx context.Context) ([]vm.Job, *vm.Machine, error) {
	m := new(vm.Machine)
	if err := r.programs(ctx, m); err != nil {
		return nil, nil, err
	}
	// The guest's own tests come first: when they fail, the others' failures mean nothing.
	jobs := []vm.Job{{Name: module + "test/vm/smoke"}}
	for _, p := range r.packages {
		if !p.forGuest() {
			continue
		}
		names, err := testNames(p.kernelFiles())
		if err != nil {
			return nil, nil, err
		}
		jobs = append(jobs, p.job(names))
	}
	for i := range jobs {
		if err := r.testJob(ctx, &jobs[i]); err != nil {
			return nil, nil, err
		}
	}
	return jobs, m, nil
}

// podTests are those of package deploy/e2e that run in the guest, where starting a container takes some seconds: what differs there is
// the hierarchy of control groups, and what a container sees of it.
var podTests = []string{"TestDaemonSet"}

// podGuest builds what goes into the machine that runs pods.
func (r *runner) podGuest(ctx context.Context) ([]vm.Job, *vm.Machine, error) {
	i := slices.IndexFunc(r.deploy, isE2E)
	if i < 0 {
		return nil, nil, nil // not asked for
	}
	m := new(vm.Machine)
	if err := errors.Join(r.programs(ctx, m), r.podPrograms(ctx, m)); err != nil {
		return nil, nil, err
	}
	jobs := []vm.Job{r.deploy[i].job(podTests)}
	return jobs, m, r.testJob(ctx, &jobs[0])
}

// job runs the named tests of the package.
func (p *pkg) job(names []string) vm.Job {
	job := vm.Job{Name: p.ImportPath, Args: []string{"-test.run=^(" + strings.Join(names, "|") + ")$"}}
	if data := filepath.Join(p.Dir, "testdata"); isDir(data) {
		job.Data = data
	}
	return job
}

// podPrograms adds what runs pods, where this machine has it, and what is rolled out: the image and the chart.
func (r *runner) podPrograms(ctx context.Context, m *vm.Machine) error {
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"} {
		path, err := lookup(name)
		if err != nil {
			return nil // the guest lacks it like this machine
		}
		if err := m.AddProgram(ctx, path); err != nil {
			return err
		}
	}
	m.MemoryMB = 2048 // images are unpacked in memory, once more for each container
	image := filepath.Join(r.dir, "qos-agent.tar")
	if _, err := os.Stat(image); err != nil {
		tag, err := chartVersion()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "run", "-mod=mod", "./image/mkimage", "-out="+image, "-version=e2e", "-platforms="+runtime.GOARCH, "-name=docker.io/library/qos-agent:"+tag)
		cmd.Dir = deployDir
		if _, err := output(cmd); err != nil {
			return err
		}
	}
	m.Files[guestDeploy+"/qos-agent.tar"] = image
	m.Trees = map[string]string{guestDeploy + "/helm": filepath.Join(deployDir, "helm")}
	return nil
}

// guestDeploy is where package deploy/e2e finds in the guest what it builds for itself elsewhere.
const guestDeploy = "/deploy"

// chartVersion is the tag of the image that the chart wants.
func chartVersion() (string, error) {
	text, err := os.ReadFile(filepath.Join(deployDir, "helm", "qos-agent", "Chart.yaml"))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^appVersion: *"(.*)"$`).FindSubmatch(text)
	if m == nil {
		return "", errors.New("Chart.yaml: no appVersion")
	}
	return string(m[1]), nil
}

// testJob builds the tests of the package that is the job's name.
func (r *runner) testJob(ctx context.Context, job *vm.Job) error {
	job.Binary = filepath.Join(r.dir, "tests", filepath.FromSlash(job.Name)+".test")
	if err := os.MkdirAll(filepath.Dir(job.Binary), 0o755); err != nil {
		return err
	}
	dir := "."
	if strings.HasPrefix(job.Name, module+deployDir+"/") {
		dir = deployDir
	}
	// Stripped: the guest has to hold it all in memory.
	if err := build(ctx, "-C", dir, "test", "-c", "-mod="+modMode(dir), "-tags=vmguest", "-ldflags=-s -w", "-o", job.Binary, job.Name); err != nil {
		return err
	}
	job.Timeout = r.jobTime
	job.Args = append(job.Args, "-test.v=test2json", fmt.Sprint("-test.timeout=", r.jobTime-30*time.Second))
	job.Env = append([]string{"QOS_AGENT_TEST_VM=1", "QOS_AGENT_BIN=/bin/qos-agent", "QOS_AGENT_DEPLOY=" + guestDeploy}, r.env...)
	return nil
}

// testNames are the test functions in the files.
func testNames(files []string) ([]string, error) {
	var names []string
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") && f.Name.Name != "TestMain" {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names, nil
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// boot runs the jobs and counts what their tests say. layer, which ends with a blank, stands before their names.
func (r *runner) boot(ctx context.Context, layer string, machine *vm.Machine, jobs []vm.Job) error {
	var (
		has   map[string]bool
		conv  *converter
		ended = make([]bool, len(jobs))
		start time.Time
		fault error
	)
	err := machine.Run(ctx, jobs, func(rec wire.Record) {
		switch rec.Kind {
		case wire.Hello:
			fmt.Printf("     %s is up\n", rec.Release)
			has = rec.Features
		case wire.Start:
			start = time.Now()
			c, err := newConverter(ctx, jobs[rec.Job].Name, func(e event) { r.tally.event(layer, has, e) })
			if err != nil {
				fault = errors.Join(fault, err)
			}
			conv = c
		case wire.Output:
			if conv != nil {
				conv.write(rec.Data)
			}
		case wire.End:
			ended[rec.Job] = true
			job := jobs[rec.Job].Name
			if conv != nil {
				fault = errors.Join(fault, conv.close())
			}
			action := "pass"
			if rec.Timeout {
				r.tally.event(layer, has, event{Action: "output", Package: job, Output: fmt.Sprintf("killed after %v\n", r.jobTime)})
			}
			if rec.Exit != 0 || rec.Timeout {
				action = "fail"
				r.tally.event(layer, has, event{Action: "output", Package: job, Output: fmt.Sprintf("exit code %d\n", rec.Exit)})
			}
			r.tally.event(layer, has, event{Action: action, Package: job, Elapsed: time.Since(start).Seconds()})
			if len(rec.Left) > 0 {
				r.tally.fail(layer+job+" left behind", strings.Join(rec.Left, "\n"))
			}
		}
	})
	if context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	if err = errors.Join(err, fault); err != nil {
		r.tally.fail(strings.TrimSpace(layer), err.Error())
	}
	for i, job := range jobs {
		if !ended[i] {
			r.tally.event(layer, has, event{Action: "output", Package: job.Name, Output: "the machine ended before these tests did\n"})
			r.tally.event(layer, has, event{Action: "fail", Package: job.Name})
		}
	}
	return nil
}

// converter turns the output of a test binary into events, by Go's own test2json.
type converter struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan error
}

func newConverter(ctx context.Context, pkg string, on func(event)) (*converter, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", pkg)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &converter{cmd, in, make(chan error, 1)}
	go func() {
		c.done <- readEvents(out, func(e event) {
			// The end of the package is told by its exit code, which the converter does not know.
			if e.Test != "" || e.Action == "output" {
				on(e)
			}
		})
	}()
	return c, nil
}

func (c *converter) write(p []byte) {
	_, _ = c.in.Write(p) // its end is noticed by close
}

func (c *converter) close() error {
	_ = c.in.Close()
	return errors.Join(<-c.done, c.cmd.Wait())
}
