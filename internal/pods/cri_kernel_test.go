package pods

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/test/containerd"
)

// TestContainerd follows real pods through their life. The issue wants containers known and gone within 1 s; the test allows for
// a machine that is slow, and logs what it took.
func TestContainerd(t *testing.T) {
	t.Run("raw", func(t *testing.T) { testContainerd(t, "", signal.QoSUnknown, nil) })
	// In the kubelet's tree inotify has to do, once the source has seen it.
	t.Run("kubelet", func(t *testing.T) {
		testContainerd(t, "kubepods/besteffort", signal.QoSBestEffort, func(c *CRI) { c.timing.steady = time.Hour })
	})
}

func testContainerd(t *testing.T, parent string, qos signal.QoSClass, setup func(*CRI)) {
	r := containerd.Start(t)
	src := startCRI(t, r.Endpoint, setup)
	parent = path.Join(r.Group, parent)

	web := r.RunPod(containerd.Pod{
		Namespace: "shop", Name: "web", UID: "11111111-2222-3333-4444-555555555555",
		Parent:      path.Join(parent, "pod11111111-2222-3333-4444-555555555555"),
		Labels:      map[string]string{"qos-agent.io/class": "online"},
		Annotations: map[string]string{"note": "x"},
		Containers:  []containerd.Container{{Name: "main"}, {Name: "helper"}},
	})
	src.until("the pod with both containers", func() bool { return len(src.containers()) == 2 })
	main, helper := web.Container("main"), web.Container("helper")
	want := []signal.Pod{{
		UID: web.UID, Namespace: "shop", Name: "web", Labels: web.Labels, Annotations: web.Annotations, QoS: qos, Cgroup: web.Parent,
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
	batch := r.RunPod(containerd.Pod{Namespace: "jobs", Name: "batch", UID: "7", Parent: path.Join(parent, "pod7"), Containers: []containerd.Container{{Name: "main"}}})
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

	if qos != signal.QoSUnknown {
		return
	}
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
	c, err := NewCRI(CRIOptions{Endpoints: []string{endpoint}, Hierarchy: h, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if setup != nil {
		setup(c)
	}
	return runCRI(t, c)
}

// TestChurn makes and removes 500 pods with real groups, as a node under a broken job controller sees them within a minute.
// Afterwards nothing of them is left in the process.
func TestChurn(t *testing.T) {
	tree, rt := cgrouptest.NewReal(t), newFakeRuntime(t)
	tier := tree.Base() + "/kubepods/burstable"
	mkdirs(t, tree, tier)
	baseGoroutines, baseFiles := runtime.NumGoroutine(), openFiles(t)
	c := newCRI(t, rt.endpoint(), tree.Hierarchy())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, func() {}) }()
	src := &runningCRI{c, t}
	src.until("first answer", func() bool { return src.Status().Connected })
	baseWatches := inotifyWatches(t)

	const batch = 20
	var heap, mostHeap uint64
	for round := range 500 / batch {
		for i := range batch {
			pod := round*batch + i
			group := fmt.Sprintf("%s/pod%d", tier, pod)
			mkdirs(t, tree, group+"/"+id(2*pod))
			mkdirs(t, tree, group+"/"+id(2*pod+1))
			rt.add(fakeSandbox{ID: id(2 * pod), Namespace: "ns", Name: fmt.Sprint("p", pod), UID: fmt.Sprint(pod), Labels: map[string]string{"x": strings.Repeat("y", 1000)}},
				fakeContainer{ID: id(2*pod + 1), Info: info(1, group+"/"+id(2*pod+1))})
		}
		src.until("the pods of this round", func() bool { return len(src.containers()) == batch })
		for i := range batch {
			pod := round*batch + i
			group := fmt.Sprintf("%s/pod%d", tier, pod)
			rmdir(t, tree, group+"/"+id(2*pod+1))
			if i%2 == 0 { // the runtime may know before or after
				rt.remove(id(2 * pod))
			}
			rmdir(t, tree, group+"/"+id(2*pod))
			rmdir(t, tree, group)
			rt.remove(id(2 * pod))
		}
		src.until("no pods", func() bool { return len(src.Pods()) == 0 })
		if round == 4 {
			heap = heapInUse()
		}
	}
	if mostHeap = heapInUse(); mostHeap > heap+4<<20 {
		t.Errorf("heap grew from %d to %d bytes over 400 pods", heap, mostHeap)
	}
	for deadline := time.Now().Add(patience); inotifyWatches(t) != baseWatches; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d inotify watches, %d at the start", inotifyWatches(t), baseWatches)
		}
	}
	t.Logf("heap %d KiB, before %d KiB; %d listings, %d statuses", mostHeap>>10, heap>>10, rt.called("ListContainers"), rt.called("ContainerStatus"))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > baseGoroutines || openFiles(t) > baseFiles; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d at the start; %d open files, %d at the start", runtime.NumGoroutine(), baseGoroutines, openFiles(t), baseFiles)
		}
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// inotifyWatches counts those of the whole process.
func inotifyWatches(t *testing.T) (n int) {
	t.Helper()
	names, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, _ := os.ReadFile(name) // may be closed by now
		n += strings.Count(string(text), "inotify wd:")
	}
	return n
}
