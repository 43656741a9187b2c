package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
	"golang.org/x/sys/unix"
)

// The pods of the demo, as namespace/name.
const (
	webPod    = "shop/web"
	heavyPod  = "jobs/transcode" // the culprit
	lightPod  = "jobs/report"    // offline too, but innocent
	groupName = "qos-agent-demo-"
)

// stage is the machine as the demo has set it up.
type stage struct {
	o      options
	dir    string
	cpus   cpuset.Set
	tree   *groups.Tree
	web    *web
	heavy  *batch
	light  *batch
	load   *load.Client
	rate   float64 // requests per second
	agent  *daemon.Daemon
	policy string            // file
	before map[string]string // settings of the groups before the agent came
}

// newStage sets everything up, or nothing.
func newStage(ctx context.Context, o options) (_ *stage, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: it makes control groups and runs the agent")
	}
	s := &stage{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", groupName+strconv.Itoa(os.Getpid())+"-*"); err != nil {
		return nil, err
	}
	fmt.Println("building qos-agent ...")
	bin, err := daemon.Build(s.dir)
	if err != nil {
		return nil, err
	}
	if err := s.makeGroups(); err != nil {
		return nil, err
	}
	if err := s.startWork(ctx); err != nil {
		return nil, err
	}
	if s.before, err = s.tree.Snapshot(); err != nil {
		return nil, err
	}
	return s, s.startAgent(ctx, bin)
}

// makeGroups makes a group for each pod, all of the same weight, as batch pods that ask for CPU have, on two of the machine's
// CPUs: on a large machine a demo could not otherwise fill what it has.
func (s *stage) makeGroups() error {
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	if err := removeStale(h); err != nil {
		return err
	}
	if s.tree, err = groups.New(h, groupName+strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	if s.cpus, err = twoCPUs(); err != nil {
		return err
	}
	if _, ok := h.Dir(cgroup.CPUSet, "/"); ok {
		if err := s.tree.Write(cgroup.CPUSet, s.tree.Path(), "cpuset.cpus", s.cpus.String()); err != nil {
			return err
		}
	}
	for _, pod := range []string{webPod, heavyPod, lightPod} {
		if _, err := s.tree.Make(groupOf(pod)); err != nil {
			return err
		}
	}
	return nil
}

func groupOf(pod string) string { return pod[strings.IndexByte(pod, '/')+1:] }

// twoCPUs are the first two that we may use.
func twoCPUs() (cpuset.Set, error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return cpuset.Set{}, fmt.Errorf("affinity: %w", err)
	}
	var set cpuset.Set
	for cpu := 0; cpu < 1024 && set.Len() < 2; cpu++ {
		if may.IsSet(cpu) {
			set.Add(cpu)
		}
	}
	return set, nil
}

// removeStale removes the groups and files of demos that were killed and could not do it themselves.
func removeStale(h *cgroup.Hierarchy) error {
	errs := []error{groups.RemoveStale(h, groupName)}
	for _, dir := range groups.Stale(os.TempDir(), groupName) {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func (s *stage) startWork(ctx context.Context) (err error) {
	join := func(pod string) func(int) error {
		return func(pid int) error { return s.tree.Join(s.tree.Path(groupOf(pod)), pid) }
	}
	n := s.cpus.Len()
	if s.web, err = startWeb(ctx, s.dir, s.cpus, join(webPod)); err != nil {
		return err
	}
	if s.heavy, err = startBatch(filepath.Join(s.dir, "heavy"), 2*n, 1, 0, join(heavyPod)); err != nil {
		return err
	}
	// A few per cent of a CPU.
	if s.light, err = startBatch(filepath.Join(s.dir, "light"), 1, 4, 20*time.Millisecond, join(lightPod)); err != nil {
		return err
	}
	s.load, err = load.Start(load.Options{Addr: s.web.addr, Seed: s.o.seed, RealTime: true})
	return err
}

func (s *stage) startAgent(ctx context.Context, bin string) (err error) {
	pods := filepath.Join(s.dir, "pods.yaml")
	var all []daemon.Pod
	for pod, class := range map[string]string{webPod: "online", heavyPod: "offline", lightPod: "offline"} {
		ns, name, _ := strings.Cut(pod, "/")
		all = append(all, daemon.Pod{
			Namespace: ns, Name: name, Cgroup: s.tree.Path(name), Labels: map[string]string{"qos-agent.io/class": class},
		})
	}
	if err := daemon.WriteStaticPods(pods, all...); err != nil {
		return err
	}
	policies := filepath.Join(s.dir, "policy")
	if err := os.Mkdir(policies, 0o755); err != nil {
		return err
	}
	s.policy = filepath.Join(policies, "policy.yaml")
	if err := s.writePolicy("mode: observe"); err != nil {
		return err
	}
	if err := os.RemoveAll(s.o.traces()); err != nil { // of the last demo
		return err
	}
	s.agent, err = daemon.Start(daemon.Options{
		Binary: bin, PolicyDir: policies, StaticPods: pods, RunDir: filepath.Join(s.dir, "run"), Extra: []string{"--record", s.o.traces()},
	})
	if err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.agent.WaitReady(ready)
}

// writePolicy changes the agent's policy as an operator would: by its file. What spec leaves out is the default.
func (s *stage) writePolicy(spec string) error {
	return daemon.Replace(s.policy, "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: demo}\nspec:\n  "+spec+"\n")
}

// setPolicy waits until the policy is in force and the agent's hold on the groups is as expected.
func (s *stage) setPolicy(ctx context.Context, spec, what string, ok func(*server.State) bool) (*server.State, error) {
	if err := s.writePolicy(spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	return s.agent.WaitState(ctx, what, ok)
}

func (s *stage) observe(ctx context.Context) error {
	_, err := s.setPolicy(ctx, "mode: observe", "observe mode with nothing held", func(st *server.State) bool {
		return st.Agent.Mode == "observe" && len(st.Knobs) == 0
	})
	return err
}

func (s *stage) enforce(ctx context.Context) error {
	_, err := s.setPolicy(ctx, "mode: enforce", "both offline pods to be held", func(st *server.State) bool {
		return st.Agent.Mode == "enforce" && held(st, heavyPod) && held(st, lightPod)
	})
	return err
}

func held(st *server.State, pod string) bool {
	for _, k := range st.Knobs {
		if k.Pod == pod {
			return true
		}
	}
	return false
}

// changed lists the settings files that do not read as they did before the agent came.
func (s *stage) changed() ([]string, error) {
	now, err := s.tree.Snapshot()
	if err != nil {
		return nil, err
	}
	var diff []string
	for file, text := range s.before {
		if now[file] != text {
			diff = append(diff, fmt.Sprintf("%s: %q, was %q", file, strings.TrimSpace(now[file]), strings.TrimSpace(text)))
		}
	}
	for file := range now {
		if _, ok := s.before[file]; !ok {
			diff = append(diff, file+" is new")
		}
	}
	return diff, nil
}

// close takes everything away, whatever state it is in. The agent goes first, so that it can restore.
func (s *stage) close() error {
	var errs []error
	if s.agent != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		errs = append(errs, s.agent.Stop(ctx))
	}
	if s.load != nil {
		errs = append(errs, s.load.Close())
	}
	for _, b := range []*batch{s.heavy, s.light} {
		if b != nil {
			b.stop()
		}
	}
	if s.web != nil {
		s.web.stop()
	}
	if s.tree != nil {
		errs = append(errs, s.tree.Remove())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
