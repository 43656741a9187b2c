// Command agent measures what the daemon costs and how fast it reacts, on this machine's kernel:
//
//	cost      CPU time and memory of the daemon beside many containers
//	reaction  from the start of an offline burst to the agent's first cut, and from the kernel's event to the completed write,
//	          on an idle node and on a saturated one, with and without the real-time class for the agent's loop
//
// Both drive the binary that is shipped, on real groups, and leave nothing behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

type cli struct {
	Out      string      `default:"bench/results" help:"Directory for the results."`
	Cost     costCmd     `cmd:"" help:"CPU time and memory of the daemon beside many containers."`
	Reaction reactionCmd `cmd:"" help:"Time from the start of a burst to the first cut."`
}

func main() {
	work.MaybeRun()
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	kctx := kong.Parse(&c, kong.BindTo(ctx, (*context.Context)(nil)))
	kctx.FatalIfErrorf(kctx.Run())
}

// Run measures and writes the result.
func (c *costCmd) Run(ctx context.Context, top *cli) error {
	return bench(ctx, top, "agent-cost.json", c.measure)
}

// Run measures and writes the result.
func (c *reactionCmd) Run(ctx context.Context, top *cli) error {
	return bench(ctx, top, "reaction.json", c.measure)
}

// machine says where figures come from.
type machine struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Date   string `json:"date"`
}

// site is what a bench needs: a binary, a directory, groups, and all of it gone at the end.
type site struct {
	dir  string
	bin  string
	tree *groups.Tree
	load []*work.Process
}

// bench makes the site, measures, writes the result, and clears up also when ctx ends early.
func bench(ctx context.Context, top *cli, file string, measure func(context.Context, *site) (any, error)) (err error) {
	if os.Getuid() != 0 {
		return errors.New("needs root: makes control groups and runs the daemon")
	}
	// On a node the run directory is below /run, a tmpfs: there the journal waits for no disk. Not every machine that builds has
	// that, but /dev/shm is one everywhere.
	dir, err := os.MkdirTemp("/dev/shm", "qos-agent-bench-")
	if err != nil {
		return err
	}
	s := &site{dir: dir}
	defer func() { err = errors.Join(err, s.remove()) }()
	if s.bin, err = daemon.Build(dir); err != nil {
		return err
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	if s.tree, err = groups.New(h, fmt.Sprintf("qos-agent-bench-%d", os.Getpid())); err != nil {
		return err
	}
	result, err := measure(ctx, s)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(top.Out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(top.Out, file), append(text, '\n'), 0o644)
}

func (s *site) remove() error {
	for _, p := range s.load {
		p.Stop()
	}
	var errs []error
	if s.tree != nil {
		errs = append(errs, s.tree.Remove())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// start starts a load in a group.
func (s *site) start(group string, l work.Load) (*work.Process, error) {
	p, err := work.Start(l)
	if err != nil {
		return nil, err
	}
	s.load = append(s.load, p)
	return p, s.tree.Join(group, p.PID())
}

// stopAll ends all loads.
func (s *site) stopAll() {
	for _, p := range s.load {
		p.Stop()
	}
	s.load = nil
}

// options are the daemon's, with a policy of the given spec.
func (s *site) options(spec string) (daemon.Options, error) {
	o := daemon.Options{
		Binary: s.bin, PolicyDir: filepath.Join(s.dir, "policy"), StaticPods: filepath.Join(s.dir, "pods.yaml"), RunDir: filepath.Join(s.dir, "run"),
	}
	if err := os.MkdirAll(o.PolicyDir, 0o755); err != nil {
		return o, err
	}
	text := "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: bench}\nspec:\n" + spec
	return o, daemon.Replace(filepath.Join(o.PolicyDir, "policy.yaml"), text)
}

func thisMachine() machine {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease") // empty if it cannot be read: then nobody knows the kernel
	return machine{Kernel: strings.TrimSpace(string(release)), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly)}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
