package pods

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

// startWatch watches a fake tree with one pod, whose sandbox and container are there already.
func startWatch(t *testing.T) (*cgrouptest.Fake, *groupWatch) {
	tree := cgrouptest.NewFake(t, cgroup.Unified)
	mkdirs(t, tree, "/kubepods/burstable/pod1/"+id(1))
	w := watchGroups(tree.Hierarchy(), 100)
	t.Cleanup(w.close)
	if got, _ := w.take(); !slices.Equal(got, []string{"/kubepods/burstable/pod1/" + id(1)}) {
		t.Fatalf("at the start: %q", got)
	}
	return tree, w
}

// seen waits until the watch has told of exactly these groups.
func seen(t *testing.T, w *groupWatch, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		created, _ := w.take()
		got = append(got, created...)
		slices.Sort(got)
		if got = slices.Compact(got); cmp.Equal(got, want) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("saw %q, want %q", got, want)
		}
	}
}

func (w *groupWatch) watching() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for g := range w.byGroup {
		out = append(out, g)
	}
	slices.Sort(out)
	return out
}

func waitWatching(t *testing.T, w *groupWatch, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got := w.watching()
		if cmp.Equal(got, want) && kernelWatches(t, w) == len(want) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("watching %q with %d watches of the kernel, want %q", got, kernelWatches(t, w), want)
		}
	}
}

// kernelWatches counts the watches that the kernel has for w.
func kernelWatches(t testing.TB, w *groupWatch) int {
	t.Helper()
	var text []byte
	if err := w.withFD(func(fd int) { text, _ = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) }); err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "inotify wd:")
}

func TestWatch(t *testing.T) {
	tree, w := startWatch(t)
	base := []string{"/", "/kubepods", "/kubepods/burstable"}
	waitWatching(t, w, append(base, "/kubepods/burstable/pod1")...)

	mkdirs(t, tree, "/kubepods/pod2/"+id(2)) // guaranteed
	mkdirs(t, tree, "/kubepods/burstable/pod1/"+id(3))
	mkdirs(t, tree, "/kubepods/burstable/pod1/"+id(3)+"/init.scope") // inside a container: its own business
	mkdirs(t, tree, "/kubepods/burstable/pod1/crio-conmon-"+id(3)+".scope")
	mkdirs(t, tree, "/system.slice/x.service")
	seen(t, w, "/kubepods/burstable/pod1/"+id(3), "/kubepods/pod2/"+id(2))
	waitWatching(t, w, append(base, "/kubepods/burstable/pod1", "/kubepods/pod2")...)

	rmdir(t, tree, "/kubepods/pod2/"+id(2))
	rmdir(t, tree, "/kubepods/pod2")
	waitWatching(t, w, append(base, "/kubepods/burstable/pod1")...)
	if _, removed := w.take(); !removed {
		t.Error("a removal is not told")
	}

	// The same name again is another group.
	mkdirs(t, tree, "/kubepods/pod2/"+id(2))
	seen(t, w, "/kubepods/pod2/"+id(2))

	// Another driver's tree, and what only the runtime knows of.
	mkdirs(t, tree, "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7.slice/cri-containerd-"+id(7)+".scope")
	seen(t, w, "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7.slice/cri-containerd-"+id(7)+".scope")
	mkdirs(t, tree, "/raw/pod8/"+id(8))
	w.follow("/raw/pod8")
	seen(t, w, "/raw/pod8/"+id(8))
	mkdirs(t, tree, "/raw/pod9/"+id(9))
	seen(t, w, "/raw/pod9/"+id(9))
	mkdirs(t, tree, "/shared/"+id(10))
	w.followContainers("/shared")
	mkdirs(t, tree, "/shared/"+id(11))
	seen(t, w, "/shared/"+id(10), "/shared/"+id(11))

	// Nobody watches the parent of /raw/deep; a rescan finds out.
	mkdirs(t, tree, "/a/b/pod1/"+id(12))
	w.follow("/a/b/pod1")
	seen(t, w, "/a/b/pod1/"+id(12))
	before := w.watching()
	rmdir(t, tree, "/a/b/pod1/"+id(12))
	rmdir(t, tree, "/a/b/pod1")
	rmdir(t, tree, "/a/b")
	w.rescan()
	want := slices.DeleteFunc(before, func(g string) bool { return strings.HasPrefix(g, "/a/") })
	waitWatching(t, w, want...)
}

// When the kernel's queue of events overflows, the watch looks for itself.
func TestWatchOverflow(t *testing.T) {
	tree, w := startWatch(t)
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Skipf("needs the length of the inotify queue: %v", err)
	}
	var limit int
	if _, err := fmt.Sscan(string(text), &limit); err != nil || limit > 100_000 {
		t.Skipf("needs a queue of inotify that can be filled: %d events (%v)", limit, err)
	}
	dir, _ := tree.Hierarchy().Dir(cgroup.CPU, "/kubepods/burstable/pod1")
	w.mu.Lock() // the reader waits
	for range limit/2 + 100 {
		if err := os.Mkdir(filepath.Join(dir, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "x")); err != nil {
			t.Fatal(err)
		}
	}
	mkdirs(t, tree, "/kubepods/burstable/pod5/"+id(5))
	rmdir(t, tree, "/kubepods/burstable/pod1/"+id(1))
	rmdir(t, tree, "/kubepods/burstable/pod1")
	w.mu.Unlock()
	var got []string
	for deadline := time.Now().Add(patience); !slices.Contains(got, "/kubepods/burstable/pod5/"+id(5)); time.Sleep(time.Millisecond) {
		created, _ := w.take()
		got = append(got, created...)
		if time.Now().After(deadline) {
			t.Fatalf("saw %q", got)
		}
	}
	waitWatching(t, w, "/", "/kubepods", "/kubepods/burstable", "/kubepods/burstable/pod5")
}

func TestWatchLimit(t *testing.T) {
	tree := cgrouptest.NewFake(t, cgroup.Unified)
	for i := range 20 {
		mkdirs(t, tree, path.Join("/kubepods", fmt.Sprint("pod", i), id(i)))
	}
	w := watchGroups(tree.Hierarchy(), 8)
	t.Cleanup(w.close)
	if n := kernelWatches(t, w); n != 8 {
		t.Errorf("%d watches, want 8", n)
	}
	if problem, kubelet := w.state(); problem == "" || !kubelet {
		t.Errorf("state: %q, %v", problem, kubelet)
	}
	for i := range 20 {
		rmdir(t, tree, path.Join("/kubepods", fmt.Sprint("pod", i), id(i)))
		rmdir(t, tree, path.Join("/kubepods", fmt.Sprint("pod", i)))
	}
	waitWatching(t, w, "/", "/kubepods")
	w.rescan()
	if problem, _ := w.state(); problem != "" {
		t.Errorf("state after all is gone: %q", problem)
	}
}
