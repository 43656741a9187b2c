package pods

import (
	"log/slog"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/containerd"
)

// TestContainerd follows real pods through their life. The issue wants containers known and gone within 1 s; the test allows for
// a machine that is slow, and logs what it took.
func TestContainerd(t *testing.T) {
	r := containerd.Start(t)
	src := startCRI(t, r.Endpoint, nil)

	web := r.RunPod(containerd.Pod{
		Namespace: "shop", Name: "web", UID: "11111111-2222-3333-4444-555555555555",
		Labels:      map[string]string{"qos-agent.io/class": "online"},
		Annotations: map[string]string{"note": "x"},
		Containers:  []containerd.Container{{Name: "main"}, {Name: "helper"}},
	})
	src.until("the pod with both containers", func() bool { return len(src.containers()) == 2 })
	main, helper := web.Container("main"), web.Container("helper")
	want := []signal.Pod{{
		UID: web.UID, Namespace: "shop", Name: "web", Labels: web.Labels, Annotations: web.Annotations, Cgroup: web.Parent,
		Containers: []signal.Container{
			{ID: helper.ID, Name: "helper", PID: pid(t, r, helper), Cgroup: helper.Group},
			{ID: main.ID, Name: "main", PID: pid(t, r, main), Cgroup: main.Group},
		},
	}}
	if diff := cmp.Diff(want, src.Pods()); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	if st := src.Status(); !st.Connected || !strings.HasPrefix(st.Runtime, "containerd ") || st.Error != "" {
		t.Errorf("status: %+v", st)
	}

	began := time.Now()
	again := web.StartContainer(containerd.Container{Name: "main"})
	src.until("the restarted container", func() bool { return src.has(again.ID) && !src.has(main.ID) })
	t.Logf("restart of a container to knowing: %v", time.Since(began))

	began = time.Now()
	web.StopContainer("helper")
	src.until("the stopped container to be gone", func() bool { return !src.has(helper.ID) })
	t.Logf("stop of a container to its being gone: %v", time.Since(began))

	began = time.Now()
	batch := r.RunPod(containerd.Pod{Namespace: "jobs", Name: "batch", Containers: []containerd.Container{{Name: "main"}}})
	src.until("a second pod", func() bool { return src.has(batch.Container("main").ID) })
	t.Logf("start of a pod to knowing its container: %v", time.Since(began))

	r.Kill()
	src.until("the status to tell", func() bool { return !src.Status().Connected })
	if st := src.Status(); !strings.Contains(st.Error, r.Endpoint) || !src.has(again.ID) || !src.has(batch.Container("main").ID) {
		t.Errorf("containerd killed: status %+v, containers %v; want the known ones", st, src.containers())
	}
	r.Restart()
	src.until("the connection to be back", func() bool { return src.Status().Connected })
	if !src.has(again.ID) || !src.has(batch.Container("main").ID) {
		t.Errorf("containerd restarted: containers %v; want the known ones", src.containers())
	}
	batch.Remove()
	src.until("the removed pod to be gone", func() bool { return len(src.Pods()) == 1 })

	// A pod whose group is shared with others has no group of its own.
	shared := path.Join(r.Group, "shared")
	for _, name := range []string{"a", "b"} {
		r.RunPod(containerd.Pod{Namespace: "z", Name: name, Parent: shared, Containers: []containerd.Container{{Name: "main"}}})
	}
	src.until("pods that share a group", func() bool { return len(src.containers()) == 3 })
	for _, p := range src.Pods()[1:] {
		if p.Cgroup != "" || path.Dir(p.Containers[0].Cgroup) != shared {
			t.Errorf("pod in a shared group: %+v; want no group of its own", p)
		}
	}
}

func pid(t *testing.T, r *containerd.Runtime, c *containerd.RunningContainer) int {
	t.Helper()
	pids, err := r.PIDs(c)
	if err != nil || len(pids) == 0 {
		t.Fatalf("processes of %s: %v, %v", c.Name, pids, err)
	}
	return pids[0]
}

// startCRI runs a source on the machine's groups, after setup has had its way with it.
func startCRI(t *testing.T, endpoint string, setup func(*CRI)) *runningCRI {
	t.Helper()
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	c, err := NewCRI(CRIOptions{Endpoint: endpoint, Hierarchy: h, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if setup != nil {
		setup(c)
	}
	return runCRI(t, c)
}
