// Package nodecri tests the whole daemon beside real containerd pods. It is apart from package node, which runs on bare virtual
// machines too.
package nodecri

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/containerd"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
)

// TestContainerdPods runs the daemon beside real pods: online by one label, offline by another, one of nobody's.
func TestContainerdPods(t *testing.T) {
	r := containerd.Start(t)
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	// Two pods of the burstable tier, where batch pods with CPU requests stand beside online ones, and one of the besteffort tier.
	spin := []string{"sh", "-c", "while :; do :; done"}
	pulse := []string{"sh", "-c", "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; usleep 1000; done"}
	web := r.RunPod(containerd.Pod{
		Namespace: "shop", Name: "web", UID: "1", Parent: r.Group + "/kubepods/burstable/pod1", Labels: map[string]string{"qos-agent.io/class": "online"},
		Containers: []containerd.Container{{Name: "main", Command: pulse, Shares: 512}},
	})
	batch := r.RunPod(containerd.Pod{
		Namespace: "jobs", Name: "batch", UID: "2", Parent: r.Group + "/kubepods/burstable/pod2", Labels: map[string]string{"koordinator.sh/qosClass": "BE"},
		Containers: []containerd.Container{{Name: "main", Command: spin, Shares: 300, Quota: 150000}, {Name: "second", Command: spin}},
	})
	other := r.RunPod(containerd.Pod{
		Namespace: "misc", Name: "other", UID: "3", Parent: r.Group + "/kubepods/besteffort/pod3", Containers: []containerd.Container{{Name: "main"}},
	})
	tree := groups.At(h, r.Group)
	before, err := tree.Snapshot()
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	bin, err := daemon.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := daemon.Options{Binary: bin, PolicyDir: filepath.Join(dir, "policy"), CRI: r.Endpoint, RunDir: filepath.Join(dir, "run")}
	if err := os.Mkdir(o.PolicyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Objectives that the batch pod is sure to break through its posture, so that every rung of the ladder comes to use.
	policy := `apiVersion: qos-agent.io/v1alpha1
kind: QoSPolicy
metadata: {name: test}
spec:
  objectives: {cpuWaitP99: 100us, cpuWaitEvent: 200us}
  judge: {minSamples: 5, watchPercent: 50}
  cpu: {ladder: [cpus, quota], verify: {after: 1m}, hold: 1h}
`
	if err := os.WriteFile(filepath.Join(o.PolicyDir, "policy.yaml"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := daemon.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := d.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, ok func(*server.State) bool) *server.State {
		t.Helper()
		s, err := d.WaitState(ctx, what, ok)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	s := wait("three pods with their classes and the posture", func(s *server.State) bool {
		return len(s.Pods) == 3 && idle(s, "jobs/batch")
	})
	want := map[string]string{"shop/web": "online", "jobs/batch": "offline", "misc/other": "unclassified"}
	got := map[string]string{}
	for _, p := range s.Pods {
		got[p.Namespace+"/"+p.Name] = p.Class
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("classes (-want +got):\n%s", diff)
	}
	read := func(group, file string) string {
		text, err := tree.Read(cgroup.CPU, group, file)
		if err != nil {
			t.Error(err)
		}
		return text
	}
	if got := read(batch.Parent, "cpu.idle"); got != "1" {
		t.Errorf("the batch pod's group has cpu.idle %q", got)
	}
	for _, group := range []string{r.Group + "/kubepods", r.Group + "/kubepods/burstable", r.Group + "/kubepods/besteffort", web.Parent, other.Parent} {
		if got := read(group, "cpu.idle"); got != "0" {
			t.Errorf("%s has cpu.idle %q: tiers and other pods are not to be touched", group, got)
		}
	}

	// A container that comes later is known, and a runtime that dies changes nothing for those that run.
	batch.StartContainer(containerd.Container{Name: "third", Command: spin})
	wait("the third container of batch", func(s *server.State) bool { return containers(s, "batch") == 3 })
	r.Kill()
	s = wait("the loss of the runtime to be told", func(s *server.State) bool { return !s.PodSource.Connected && s.PodSource.Error != "" })
	if !idle(s, "jobs/batch") || containers(s, "batch") != 3 {
		t.Errorf("without the runtime: %d containers of batch, knobs %+v", containers(s, "batch"), s.Knobs)
	}
	if status, body, err := d.Get(t.Context(), "/readyz"); err != nil || status != 200 {
		t.Errorf("without the runtime the agent goes on: /readyz %d %s %v", status, body, err)
	}
	r.Restart()
	wait("the runtime again", func(s *server.State) bool { return s.PodSource.Connected })
	batch.StopContainer("third")
	wait("the end of the third container", func(s *server.State) bool { return containers(s, "batch") == 2 })

	if err := d.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := tree.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if diff := groups.Changed(before, after); diff != "" {
		t.Errorf("after SIGTERM, settings differ (- before, + now):\n%s", diff)
	}
}

// idle reports whether the agent holds the posture of the pod.
func idle(s *server.State, pod string) bool {
	return slices.ContainsFunc(s.Knobs, func(k server.HeldKnob) bool { return k.Pod == pod && k.Knob == "cpu.idle" })
}

func containers(s *server.State, pod string) int {
	for _, p := range s.Pods {
		if p.Name == pod {
			return len(p.Containers)
		}
	}
	return 0
}
