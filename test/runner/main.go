// Runner runs the project's tests in their layers: pure Go, the kernel of this machine, other kernels in virtual machines, and a
// machine with RDT and a PMU. It
// ends with the skipped tests and their reasons, and with a line "N passed, N failed, N skipped".
//
// A skip counts as a failure unless the machine really lacks what the test says it needs (see package features); so do
// processes, control groups and mounts that tests leave behind, and a run without any test.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/test/features"
)

func main() {
	layers := flag.String("layers", "unit,kernel,vm,rig", "which layers to run, comma-separated")
	kernels := flag.String("kernels", "6.1,6.12", "series of Debian's kernels for the vm and rig layers, comma-separated")
	only := flag.String("only", "", "only packages whose import path matches this `regexp`")
	match := flag.String("run", "", "only rig tests whose name matches this `regexp`")
	long := flag.Bool("long", false, "also run rig tests named TestRigLong..., and let all of them take their time")
	keep := flag.String("keep", "", "print lines of tests' output that begin with this `prefix`, passed or not")
	verbose := flag.Bool("v", false, "print what passed tests say, too")
	flag.Parse()
	filter, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner: -only:", err)
		os.Exit(2)
	}
	named, err := regexp.Compile(*match)
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner: -run:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := run(ctx, strings.Split(*layers, ","), strings.Split(*kernels, ","), filter, named, *long, *verbose, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context, layers, kernels []string, filter, named *regexp.Regexp, long, verbose bool, keep string) (bool, error) {
	start := time.Now()
	dir, err := os.MkdirTemp("", "qos-agent-runner-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	packages, err := listPackages(ctx, ".", filter)
	if err != nil {
		return false, err
	}
	deploy, err := listPackages(ctx, deployDir, filter)
	if err != nil {
		return false, err
	}
	parquet, err := listPackages(ctx, parquetDir, filter)
	if err != nil {
		return false, err
	}
	r := &runner{dir: dir, packages: packages, deploy: deploy, parquet: parquet, tally: newTally(os.Stdout), jobTime: jobTimeout, long: long, named: named}
	r.tally.keep, r.tally.verbose = keep, verbose
	if long {
		r.jobTime, r.env = longTimeout, []string{"QOS_AGENT_RDT=full"}
	}
	for _, layer := range layers {
		fmt.Printf("\n==== %s\n", layer)
		switch layer {
		case "unit":
			err = r.unit(ctx)
		case "kernel":
			err = r.kernel(ctx)
		case "vm":
			for i, series := range kernels {
				if err = r.virtual(ctx, series, i == 0); err != nil {
					break
				}
			}
		case "rig":
			err = r.rig(ctx, kernels)
		default:
			err = fmt.Errorf("no layer %q; there are unit, kernel, vm, rig", layer)
		}
		if err != nil {
			return false, err
		}
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
	}
	return r.tally.close(time.Since(start)), nil
}

// Other modules: what they import (helm, Kubernetes, registries; the format of data lakes) is to stay out of the agent's.
const (
	deployDir  = "deploy"
	parquetDir = "tools/parquet"
)

type runner struct {
	dir      string // for what is built; removed at the end
	packages []pkg  // of the agent's module
	deploy   []pkg  // of the module that holds the image, the chart, dashboards and alerts
	parquet  []pkg  // of the module of the converter of traces
	tally    *tally

	long    bool
	named   *regexp.Regexp // tests in the rig that are to run
	jobTime time.Duration  // of one package's tests in a virtual machine
	env     []string       // of tests in a virtual machine
}

// pkg is what `go list -json` says of a package.
type pkg struct {
	Dir          string
	ImportPath   string
	Name         string
	TestGoFiles  []string
	XTestGoFiles []string
	TestImports  []string
	XTestImports []string
}

func listPackages(ctx context.Context, module string, filter *regexp.Regexp) ([]pkg, error) {
	// -e: a package that does not compile is a failure of that package's tests, not of the run.
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-mod="+modMode(module), "-json=Dir,ImportPath,Name,TestGoFiles,XTestGoFiles,TestImports,XTestImports", "./...")
	cmd.Dir = module
	out, err := output(cmd)
	if err != nil {
		return nil, err
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if filter.MatchString(p.ImportPath) {
			all = append(all, p)
		}
	}
}

// kernelFiles are the test files that want a real kernel: those that can disturb each other, and that are worth running on
// other kernels.
func (p *pkg) kernelFiles() []string { return p.filesNamed("_kernel_test.go") }

// filesNamed are the test files that end like this.
func (p *pkg) filesNamed(end string) []string {
	var files []string
	for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
		if strings.HasSuffix(name, end) {
			files = append(files, filepath.Join(p.Dir, name))
		}
	}
	return files
}

// unit runs the packages whose tests are pure Go, several at a time.
func (r *runner) unit(ctx context.Context) error {
	paths, _ := split(r.packages)
	if err := r.goTest(ctx, ".", nil, []string{"-race"}, paths); err != nil {
		return err
	}
	// Without -race: there is one goroutine, and what it imports is big.
	paths, _ = split(r.deploy)
	if err := r.goTest(ctx, deployDir, nil, nil, paths); err != nil {
		return err
	}
	paths, _ = split(r.parquet)
	return r.goTest(ctx, parquetDir, nil, []string{"-race"}, paths)
}

// modMode lets the other modules follow when the agent's module comes to need something new.
func modMode(module string) string {
	if module == "." {
		return "readonly"
	}
	return "mod"
}

// split gives the import paths of the packages whose tests are pure Go, and of those that use the kernel.
func split(packages []pkg) (pure, kernel []string) {
	for _, p := range packages {
		if len(p.kernelFiles()) > 0 {
			kernel = append(kernel, p.ImportPath)
		} else {
			pure = append(pure, p.ImportPath)
		}
	}
	return pure, kernel
}

// kernel runs the packages whose tests use this machine's kernel, one at a time: what one of them does to the run queues would
// show in the measurements of another. The daemon that some of them start has the race detector too.
func (r *runner) kernel(ctx context.Context) error {
	_, paths := split(r.packages)
	_, deploy := split(r.deploy)
	if len(paths)+len(deploy) == 0 {
		return nil
	}
	bin := filepath.Join(r.dir, "qos-agent-race")
	if out, err := exec.CommandContext(ctx, "go", "build", "-race", "-o", bin, "./cmd/qos-agent").CombinedOutput(); err != nil {
		r.tally.fail("build cmd/qos-agent", string(out))
	}
	mark := fmt.Sprintf("QOS_AGENT_TEST_RUN=%d", os.Getpid())
	before := groups()
	err := r.goTest(ctx, ".", []string{"QOS_AGENT_BIN=" + bin, mark}, []string{"-race", "-p", "1"}, paths)
	if err == nil { // the image's agent is the one that is rolled out
		err = r.goTest(ctx, deployDir, []string{mark}, []string{"-p", "1"}, deploy)
	}
	if left := leftovers(mark, before); len(left) > 0 {
		r.tally.fail("left behind by the tests", strings.Join(left, "\n"))
	}
	return err
}

// goTest runs `go test` on packages of a module and counts what it says. Results are never taken from a cache.
func (r *runner) goTest(ctx context.Context, module string, env, flags, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	args := slices.Concat([]string{"test", "-json", "-count=1", "-timeout=15m", "-skip=^" + rigPrefix, "-mod=" + modMode(module)}, flags, packages)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // go test passes it on
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	has := features.Probe()
	readErr := readEvents(out, func(e event) { r.tally.event("", has, e) })
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("go test: %w", err)
	}
	// Without a failure to show for it, an exit code is go test's own trouble.
	if exit != nil && len(r.tally.failures) == 0 {
		r.tally.fail("go test", exit.Error())
	}
	return readErr
}

func readEvents(r io.Reader, on func(event)) error {
	for dec := json.NewDecoder(r); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("test events: %w", err)
		}
		on(e)
	}
}

// output is the standard output of a command; the error holds the other one.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return out, nil
}
