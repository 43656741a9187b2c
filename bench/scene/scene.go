// Package scene is a small node that is real: nginx under an open-loop load, xz again and again beside it, and the daemon, which can
// record what happens under a policy. Benches of recording, model and tuning use it.
package scene

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/whatif"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
)

// Scene is the node made ready: the service under load and the batch work run until Close.
type Scene struct {
	*lab.Lab
	Rate float64 // requests a second

	o       daemon.Options
	service *online.Service
	batch   string // group of the batch work
	xz      *exec.Cmd
	read    chan struct{} // all that xz printed was read
	pieces  atomic.Uint64
	cpu     *cgroup.CPUReader
}

// xzBytes is a piece of batch work: small enough that some seconds see hundreds.
const xzBytes = 512 << 10

// Open makes a scene with a load of the service that is a part of what it carries alone. Needs root.
func Open(ctx context.Context, share float64) (_ *Scene, err error) {
	l, err := lab.Open()
	if err != nil {
		return nil, err
	}
	s := &Scene{Lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	bin, err := daemon.Build(s.Dir)
	if err != nil {
		return nil, err
	}
	if s.service, err = online.Start(ctx, online.Kinds[0], s.Tree, s.Dir, runtime.NumCPU(), 1); err != nil {
		return nil, err
	}
	if err := s.service.Connect(2); err != nil {
		return nil, err
	}
	if err := s.service.SetLoad(share); err != nil {
		return nil, err
	}
	s.Rate = math.Round(share * s.service.Capacity)
	if s.batch, err = s.Tree.Make("batch"); err != nil {
		return nil, err
	}
	if s.cpu, err = cgroup.OpenCPU(s.H, s.batch); err != nil {
		return nil, err
	}
	s.o = daemon.Options{Binary: bin, PolicyDir: filepath.Join(s.Dir, "policy"), StaticPods: filepath.Join(s.Dir, "pods.yaml"), RunDir: filepath.Join(s.Dir, "run")}
	if err := os.MkdirAll(s.o.PolicyDir, 0o755); err != nil {
		return nil, err
	}
	if err := daemon.WriteStaticPods(s.o.StaticPods,
		daemon.Pod{Namespace: "shop", Name: "web", Cgroup: s.service.Group, Labels: map[string]string{"qos-agent.io/class": "online"}},
		daemon.Pod{Namespace: "jobs", Name: "batch", Cgroup: s.batch, Labels: map[string]string{"qos-agent.io/class": "offline"}}); err != nil {
		return nil, err
	}
	return s, s.startBatch()
}

// Batch is a command that runs two loops of xz for each CPU in a group, of which every piece prints a line. It keeps its input in dir.
func Batch(tree *groups.Tree, group, dir string) (*exec.Cmd, error) {
	xz, err := online.Find("xz", "xz-utils")
	if err != nil {
		return nil, err
	}
	input := filepath.Join(dir, "xz.in")
	if err := os.WriteFile(input, []byte(online.Prose(xzBytes)), 0o644); err != nil {
		return nil, err
	}
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do (while :; do %s -1 -c %s >/dev/null; echo; done) & i=$((i+1)); done; wait`, 2*runtime.NumCPU(), xz, input)
	return tree.Command(group, "/bin/sh", "-c", script), nil
}

func (s *Scene) startBatch() error {
	cmd, err := Batch(s.Tree, s.batch, s.Dir)
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.xz, s.read = cmd, make(chan struct{})
	go func() {
		defer close(s.read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.pieces.Add(1)
		}
	}()
	return nil
}

// Close ends everything and clears up.
func (s *Scene) Close() error {
	var errs []error
	if s.xz != nil {
		errs = append(errs, s.Tree.Empty(s.batch))
		<-s.read
		_ = s.xz.Wait() // it was killed
	}
	if s.service != nil {
		s.service.Stop()
	}
	if s.cpu != nil {
		errs = append(errs, s.cpu.Close())
	}
	return errors.Join(append(errs, s.Lab.Close())...)
}

// Policy puts a policy in force, at once where the daemon runs already.
func (s *Scene) Policy(text string) error {
	return daemon.Replace(filepath.Join(s.o.PolicyDir, "policy.yaml"), text)
}

// Under runs the daemon with a policy and records into a directory while do runs.
func (s *Scene) Under(ctx context.Context, policy, record string, do func() error) error {
	if err := s.Policy(policy); err != nil {
		return err
	}
	o := s.o
	o.Extra = []string{"--record", record}
	d, err := daemon.Start(o)
	if err != nil {
		return err
	}
	if err := d.WaitReady(ctx); err != nil {
		d.Kill()
		return fmt.Errorf("%w\n%s", err, d.Log())
	}
	if err := do(); err != nil {
		d.Kill()
		return err
	}
	return d.Stop(ctx)
}

// Window is what was measured for a while.
type Window struct {
	load.Window
	CPUs   float64 // that the batch work used
	Pieces float64 // of it that were done a second
}

// Measure measures the service, from outside, and the batch work.
func (s *Scene) Measure(ctx context.Context, length time.Duration) (w Window, err error) {
	if _, err := s.service.Client.Collect(); err != nil {
		return w, err
	}
	used, pieces, began := uint64(0), s.pieces.Load(), time.Now()
	if used, err = s.used(); err != nil {
		return w, err
	}
	if err := lab.Sleep(ctx, length); err != nil {
		return w, err
	}
	after, err := s.used()
	if err != nil {
		return w, err
	}
	seconds := time.Since(began).Seconds()
	w.CPUs, w.Pieces = float64(after-used)/1e9/seconds, float64(s.pieces.Load()-pieces)/seconds
	w.Window, err = s.service.Client.Collect()
	return w, err
}

// used is the batch work's CPU time so far, ns.
func (s *Scene) used() (uint64, error) {
	var scratch cgroup.Scratch
	var st cgroup.CPUStat
	err := s.cpu.Stat(&scratch, &st)
	return st.UsageNS, err
}

// Recordings opens what was recorded into directories.
func Recordings(ctx context.Context, dirs ...string) (out []whatif.Recording, err error) {
	files, err := trace.Files(dirs...)
	if err != nil {
		return nil, err
	}
	series, err := replay.Group(files)
	if err != nil {
		return nil, err
	}
	for _, s := range series {
		out = append(out, whatif.Recorded(ctx, s, time.Time{}, time.Time{}))
	}
	return out, nil
}
