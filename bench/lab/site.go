package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

// Site is a lab with the daemon's binary and loads that run in its groups.
type Site struct {
	*Lab
	Bin  string
	load []*work.Process
}

// OpenSite opens a lab and compiles the daemon into it.
func OpenSite() (*Site, error) {
	l, err := Open()
	if err != nil {
		return nil, err
	}
	s := &Site{Lab: l}
	if s.Bin, err = daemon.Build(l.Dir); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// Remove ends all loads and closes the lab.
func (s *Site) Remove() error {
	s.StopAll()
	return s.Close()
}

// Start starts a load in a group.
func (s *Site) Start(group string, l work.Load) (*work.Process, error) {
	p, err := work.Start(l, s.Tree.Joiner(group))
	if err != nil {
		return nil, err
	}
	s.load = append(s.load, p)
	return p, nil
}

// StopAll ends all loads.
func (s *Site) StopAll() {
	for _, p := range s.load {
		p.Stop()
	}
	s.load = nil
}

// Options are the daemon's, with a policy of the given spec.
func (s *Site) Options(spec string) (daemon.Options, error) {
	o := daemon.Options{
		Binary: s.Bin, PolicyDir: filepath.Join(s.Dir, "policy"), StaticPods: filepath.Join(s.Dir, "pods.yaml"), RunDir: filepath.Join(s.Dir, "run"),
	}
	if err := os.MkdirAll(o.PolicyDir, 0o755); err != nil {
		return o, err
	}
	text := "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: bench}\nspec:\n" + spec
	return o, daemon.Replace(filepath.Join(o.PolicyDir, "policy.yaml"), text)
}

// Populate makes n single-container pods, a third of them online, each with a process that wakes 20 times a second, and the file that lists
// them for the daemon.
func (s *Site) Populate(n int) error {
	pods := make([]daemon.Pod, n)
	for i := range pods {
		name := fmt.Sprintf("pod%04d", i)
		group, err := s.Tree.Make(name)
		if err != nil {
			return err
		}
		class := "offline"
		if i%3 == 0 {
			class = "online"
		}
		pods[i] = daemon.Pod{Namespace: "bench", Name: name, Cgroup: group, Labels: map[string]string{"qos-agent.io/class": class}}
		if _, err := s.Start(group, work.Pulse(50*time.Microsecond, 50*time.Millisecond)); err != nil {
			return err
		}
	}
	o, err := s.Options("  mode: enforce\n")
	if err != nil {
		return err
	}
	return daemon.WriteStaticPods(o.StaticPods, pods...)
}
