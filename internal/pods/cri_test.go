package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

const uid = "0f3c2a1e-aaaa-bbbb-cccc-0123456789ab"

// layout is how a kubelet and a runtime name the groups of a burstable pod.
type layout struct {
	name      string
	pod       string
	container func(id string) string
	spec      func(id string) string // cgroupsPath
	helpers   func(id string) []string
}

var layouts = []layout{
	{
		name:      "containerd, cgroupfs",
		pod:       "/kubepods/burstable/pod" + uid,
		container: func(id string) string { return "/kubepods/burstable/pod" + uid + "/" + id },
		spec:      func(id string) string { return "/kubepods/burstable/pod" + uid + "/" + id },
	}, {
		name: "containerd, systemd",
		pod:  "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice",
		container: func(id string) string {
			return "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/cri-containerd-" + id + ".scope"
		},
		spec: func(id string) string {
			return "kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice:cri-containerd:" + id
		},
	}, {
		name: "CRI-O, systemd, below a cgroup root of the kubelet",
		pod:  "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice",
		container: func(id string) string {
			return "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/crio-" + id + ".scope"
		},
		spec: func(id string) string {
			return "kubelet-kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice:crio:" + id
		},
		helpers: func(id string) []string { return []string{"crio-conmon-" + id + ".scope"} },
	},
}

// mkdirs makes a group and the groups around it.
func mkdirs(t testing.TB, f cgrouptest.World, group string) {
	t.Helper()
	at := ""
	for part := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		at += "/" + part
		if !exists(f.Hierarchy(), at) {
			if err := f.Mkdir(at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func rmdir(t testing.TB, f cgrouptest.World, group string) {
	t.Helper()
	if err := f.Rmdir(group); err != nil {
		t.Fatal(err)
	}
}

// TestLife follows a pod from its sandbox to its end, noticing everything through the tree alone.
func TestLife(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Hybrid, cgroup.Unified} {
		for _, l := range layouts {
			t.Run(fmt.Sprintf("%s, %s", mode, l.name), func(t *testing.T) {
				tree, rt := cgrouptest.NewFake(t, mode), newFakeRuntime(t)
				mkdirs(t, tree, path.Dir(l.pod)) // the kubelet's
				src := runCRI(t, newCRI(t, rt.endpoint(), tree.Hierarchy()))
				src.until("first answer", func() bool { return src.Status().Connected })

				mkdirs(t, tree, l.pod)
				mkdirs(t, tree, l.container(id(1))) // the sandbox
				rt.add(fakeSandbox{ID: id(1), Namespace: "ns", Name: "web", UID: uid, Labels: map[string]string{"a": "b"}, Info: info(1, l.spec(id(1)))})
				want := []signal.Pod{{UID: uid, Namespace: "ns", Name: "web", Labels: map[string]string{"a": "b"}, QoS: signal.QoSBurstable, Cgroup: l.pod}}
				src.untilPods("a pod without containers", want)

				// Its group appears some time before the runtime says that it runs.
				mkdirs(t, tree, l.container(id(2)))
				if l.helpers != nil {
					for _, h := range l.helpers(id(2)) {
						mkdirs(t, tree, path.Join(l.pod, h))
					}
				}
				time.Sleep(50 * time.Millisecond)
				rt.add(fakeSandbox{ID: id(1), Namespace: "ns", Name: "web", UID: uid, Labels: map[string]string{"a": "b"}},
					fakeContainer{ID: id(2), Name: "main", Info: info(42, l.spec(id(2)))})
				want[0].Containers = []signal.Container{{ID: id(2), Name: "main", PID: 42, Cgroup: l.container(id(2))}}
				src.untilPods("the container", want)

				// The runtime still lists what has gone from the tree.
				rmdir(t, tree, l.container(id(2)))
				want[0].Containers = nil
				src.untilPods("no container", want)
				if l.helpers != nil {
					for _, h := range l.helpers(id(2)) {
						rmdir(t, tree, path.Join(l.pod, h))
					}
				}
				rmdir(t, tree, l.container(id(1)))
				rmdir(t, tree, l.pod)
				src.untilPods("no pod", []signal.Pod{})
			})
		}
	}
}

func (s *runningCRI) untilPods(what string, want []signal.Pod) {
	s.t.Helper()
	s.until(what, func() bool { return cmp.Equal(s.Pods(), want) })
}

// node is a source on a machine with one kubelet tree of the cgroupfs driver.
type node struct {
	*runningCRI
	t    *testing.T
	tree *cgrouptest.Fake
	rt   *fakeRuntime
}

func newNode(t *testing.T, setup func(*CRI)) *node {
	tree, rt := cgrouptest.NewFake(t, cgroup.Unified), newFakeRuntime(t)
	mkdirs(t, tree, "/kubepods/burstable")
	mkdirs(t, tree, "/kubepods/besteffort")
	return startNode(t, tree, rt, setup)
}

func startNode(t *testing.T, tree *cgrouptest.Fake, rt *fakeRuntime, setup func(*CRI)) *node {
	c := newCRI(t, rt.endpoint(), tree.Hierarchy())
	if setup != nil {
		setup(c)
	}
	return &node{runCRI(t, c), t, tree, rt}
}

// run makes pod n with one container, as far as the machine is concerned.
func (n *node) run(i int, infos ...string) (pod, container string) {
	n.t.Helper()
	pod = fmt.Sprintf("/kubepods/burstable/pod%d", i)
	container = pod + "/" + id(2*i+1)
	text := info(i, container)
	if len(infos) > 0 {
		text = infos[0]
	}
	mkdirs(n.t, n.tree, pod+"/"+id(2*i))
	mkdirs(n.t, n.tree, container)
	n.rt.add(fakeSandbox{ID: id(2 * i), Namespace: "ns", Name: fmt.Sprint("p", i), UID: fmt.Sprint(i)}, fakeContainer{ID: id(2*i + 1), Info: text})
	return pod, container
}

func TestVerboseGarbage(t *testing.T) {
	for name, text := range map[string]string{
		"none":          ``,
		"cut off":       `{"pid": 1, "runtimeSpec": {"linux": {"cgroupsPath": "/kubepo`,
		"no JSON":       `pid=1`,
		"wrong types":   `{"pid": "many", "runtimeSpec": {"linux": {"cgroupsPath": 7}}}`,
		"another form":  `[1, 2]`,
		"climbing out":  info(1, "/kubepods/../../etc"),
		"the root":      info(1, "/"),
		"a tier":        info(1, "/kubepods/burstable"),
		"not a group":   info(1, "/somewhere/else"),
		"broken slice":  info(1, "a--b.slice:x:y"),
		"negative pid":  info(-7, ""),
		"a dot-dot uid": info(1, "/kubepods/burstable/pod1/.."),
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			_, group := n.run(1, text)
			n.until("the container, by its group's name", func() bool {
				p := n.Pods()
				return len(p) == 1 && len(p[0].Containers) == 1 && p[0].Containers[0].Cgroup == group && p[0].Containers[0].PID >= 0
			})
		})
	}
}

func TestUnresolved(t *testing.T) {
	n := newNode(t, func(c *CRI) { c.timing.patience = 50 * time.Millisecond })
	n.run(1)
	n.rt.add(fakeSandbox{ID: id(8), Namespace: "vm", Name: "kata", UID: "8"}, fakeContainer{ID: id(9), Info: info(1, "/kubepods/burstable/pod8/gone")})
	n.run(2)
	n.until("the containers that have a group", func() bool { return len(n.containers()) == 2 && n.Status().Unresolved == 1 })
	// It is asked about a while, and then left alone.
	n.until("rest", func() bool {
		before := n.rt.called("ListContainers")
		time.Sleep(200 * time.Millisecond)
		return n.rt.called("ListContainers") == before
	})
}

func TestLabelsChange(t *testing.T) {
	n := newNode(t, func(c *CRI) { c.timing.steady = 10 * time.Millisecond })
	n.run(1)
	n.until("the container", func() bool { return len(n.containers()) == 1 })
	before := n.Pods()
	n.rt.change(func() { n.rt.sandboxes[id(2)].Labels = map[string]string{"new": "yes"} })
	n.until("the new label", func() bool { return n.Pods()[0].Labels["new"] == "yes" })
	if before[0].Labels != nil {
		t.Errorf("a list that was handed out has changed: %+v", before)
	}
	if n.rt.called("ContainerStatus") != 1 {
		t.Errorf("asked %d times about one container", n.rt.called("ContainerStatus"))
	}
}

func TestRuntimeDies(t *testing.T) {
	n := newNode(t, nil)
	_, first := n.run(1)
	_, second := n.run(2)
	n.until("both", func() bool { return len(n.containers()) == 2 })
	connected := n.Status()
	if !connected.Connected || connected.Runtime != "fake 1.0" || connected.LastSuccess.IsZero() || connected.Error != "" {
		t.Errorf("status: %+v", connected)
	}

	n.rt.stop()
	n.until("the status to tell", func() bool { return !n.Status().Connected })
	st := n.Status()
	if !strings.Contains(st.Error, n.rt.endpoint()) || !st.Since.After(connected.Since) || st.LastSuccess != connected.LastSuccess {
		t.Errorf("status %+v after %+v", st, connected)
	}
	rmdir(t, n.tree, first)
	n.until("the vanished one to be gone", func() bool { return len(n.containers()) == 1 })
	if got := n.Pods(); len(got) != 2 || got[1].Containers[0].Cgroup != second {
		t.Errorf("pods: %+v", got)
	}
	n.run(3) // nobody can tell what it is yet

	n.rt.start(t)
	n.until("the new one", func() bool { return slices.Contains(n.containers(), id(7)) && n.Status().Connected })
	if n.has(id(3)) {
		t.Error("a container without a group is back because the runtime still lists it")
	}
}

// A runtime that comes back without its memory does not make pods disappear that run.
func TestRuntimeForgets(t *testing.T) {
	n := newNode(t, func(c *CRI) { c.timing.steady = 10 * time.Millisecond })
	_, alive := n.run(1)
	n.run(2)
	if err := n.tree.Put(alive, "cgroup.procs", "1\n"); err != nil {
		t.Fatal(err)
	}
	n.until("both", func() bool { return len(n.containers()) == 2 })
	n.rt.remove(id(2))
	n.rt.remove(id(4))
	n.until("the empty one to be gone", func() bool { return len(n.containers()) == 1 })
	if p := n.Pods(); len(p) != 1 || p[0].Name != "p1" {
		t.Errorf("pods: %+v", p)
	}
	if err := n.tree.Put(alive, "cgroup.procs", ""); err != nil {
		t.Fatal(err)
	}
	n.until("it to be gone", func() bool { return len(n.Pods()) == 0 })
}

func TestNotReadySandbox(t *testing.T) {
	n := newNode(t, nil)
	n.run(1)
	n.rt.change(func() { n.rt.sandboxes[id(2)].NotReady = true })
	n.until("the container of a dead sandbox", func() bool { return n.has(id(3)) && n.Pods()[0].Name == "p1" })
}

// While the kubelet replaces a pod's sandbox there are two.
func TestTwoSandboxes(t *testing.T) {
	n := newNode(t, nil)
	n.run(1)
	mkdirs(t, n.tree, "/kubepods/burstable/pod1/"+id(20))
	mkdirs(t, n.tree, "/kubepods/burstable/pod1/"+id(21))
	n.rt.add(fakeSandbox{ID: id(20), Namespace: "ns", Name: "p1", UID: "1", Created: 5, Labels: map[string]string{"v": "2"}},
		fakeContainer{ID: id(21), Info: info(21, "/kubepods/burstable/pod1/"+id(21))})
	n.until("one pod with the containers of both", func() bool {
		p := n.Pods()
		return len(p) == 1 && len(p[0].Containers) == 2 && p[0].Labels["v"] == "2"
	})
}

func TestSlowRuntime(t *testing.T) {
	n := newNode(t, func(c *CRI) { c.timing.budget = 100 * time.Millisecond })
	n.rt.change(func() { n.rt.delay = 30 * time.Millisecond })
	for i := range 40 {
		n.run(i + 1)
	}
	n.until("some of them", func() bool { return len(n.containers()) > 0 })
	if got := len(n.containers()); got == 40 {
		t.Log("all at once: the machine is too slow to see steps")
	}
	n.until("all of them", func() bool { return len(n.containers()) == 40 })
	// What has gone does not wait for an answer.
	n.rt.change(func() { n.rt.delay = time.Hour })
	rmdir(t, n.tree, "/kubepods/burstable/pod1/"+id(3))
	n.until("one to be gone", func() bool { return len(n.containers()) == 39 })
}

// An agent that was killed holds knobs of pods that its successor must not take for gone.
func TestHalfAListIsNotConfirmed(t *testing.T) {
	tree, rt := cgrouptest.NewFake(t, cgroup.Unified), newFakeRuntime(t)
	mkdirs(t, tree, "/kubepods/burstable")
	before := &node{t: t, tree: tree, rt: rt}
	for i := range 40 {
		before.run(i + 1)
	}
	rt.change(func() { rt.delay = 30 * time.Millisecond })
	n := startNode(t, tree, rt, func(c *CRI) { c.timing.budget = 100 * time.Millisecond })
	n.until("a whole list", func() bool { return !n.Status().LastSuccess.IsZero() })
	if got := len(n.containers()); got != 40 {
		t.Errorf("a list of %d containers is confirmed, want 40", got)
	}
}

// A runtime that hangs over one container tells of the others, and the tree knows where that one is.
func TestStuckContainer(t *testing.T) {
	n := newNode(t, func(c *CRI) { c.timing.status = 50 * time.Millisecond })
	n.rt.change(func() { n.rt.stuck = id(3) })
	n.run(1)
	n.run(2)
	n.until("both", func() bool { return n.has(id(3)) && n.has(id(5)) })
	if n.rt.called("ContainerStatus") > 3 {
		t.Errorf("asked %d times about two containers", n.rt.called("ContainerStatus"))
	}
}

func TestBigAnswer(t *testing.T) {
	n := newNode(t, nil)
	n.run(1)
	n.rt.change(func() { n.rt.sandboxes[id(2)].Labels = map[string]string{"big": strings.Repeat("x", 8<<20)} })
	n.until("8 MiB of labels", func() bool { return len(n.Pods()) == 1 && len(n.Pods()[0].Labels["big"]) == 8<<20 })
}

func TestHostileNames(t *testing.T) {
	n := newNode(t, nil)
	n.run(1)
	for i, s := range []fakeSandbox{
		{UID: "../../../etc", Name: "..", Namespace: "/"},
		{UID: "", Name: "", Namespace: ""},
		{UID: "\x00\n", Name: "a\nb", Namespace: strings.Repeat("n", 10000)},
		{UID: "1", Name: "thief", Namespace: "other"}, // another pod's UID
	} {
		s.ID = id(100 + i)
		s.Info = `{"config": {"linux": {"cgroup_parent": "/../../x"}}}`
		n.rt.add(s, fakeContainer{ID: id(200 + i), Name: "../c", Info: info(1, "/kubepods/burstable/../../../x")})
	}
	n.run(2)
	n.until("the honest ones", func() bool { return n.has(id(3)) && n.has(id(5)) })
	for _, p := range n.Pods() {
		if p.Namespace != "ns" {
			t.Errorf("listed: %+v", p)
		}
	}
}

// Without the kubelet's tree, and without inotify, the runtime is asked often.
func TestWithoutHelp(t *testing.T) {
	t.Run("raw CRI", func(t *testing.T) {
		tree, rt := cgrouptest.NewFake(t, cgroup.Hybrid), newFakeRuntime(t)
		n := startNode(t, tree, rt, func(c *CRI) { c.timing.fast = 20 * time.Millisecond })
		for i := range 3 {
			group := fmt.Sprintf("/custom/deep/pod%d/%s", i, id(i))
			mkdirs(t, tree, path.Dir(group)+"/"+id(10+i))
			mkdirs(t, tree, group)
			rt.add(fakeSandbox{ID: id(10 + i), Namespace: "ns", Name: "raw", UID: fmt.Sprint(i)}, fakeContainer{ID: id(i), Info: info(1, group)})
			n.until("a raw pod", func() bool { return n.has(id(i)) && n.Pods()[i].Cgroup == path.Dir(group) })
		}
		rmdir(t, tree, fmt.Sprintf("/custom/deep/pod0/%s", id(0)))
		n.until("it to be gone", func() bool { return !n.has(id(0)) })
	})
	t.Run("watches used up", func(t *testing.T) {
		n := newNode(t, func(c *CRI) { c.timing.fast, c.timing.watches = 20*time.Millisecond, 5 })
		for i := range 6 {
			n.run(i + 1)
		}
		n.until("all", func() bool { return len(n.containers()) == 6 && n.Status().Degraded != "" })
		rmdir(t, n.tree, "/kubepods/burstable/pod6/"+id(13))
		rmdir(t, n.tree, "/kubepods/burstable/pod1/"+id(3))
		n.until("two to be gone", func() bool { return len(n.containers()) == 4 })
		n.rt.stop()
		n.until("the status to tell", func() bool { return !n.Status().Connected })
		rmdir(t, n.tree, "/kubepods/burstable/pod5/"+id(11))
		n.until("another to be gone, without the runtime", func() bool { return len(n.containers()) == 3 })
	})
	t.Run("no kubelet tree yet", func(t *testing.T) {
		tree, rt := cgrouptest.NewFake(t, cgroup.Unified), newFakeRuntime(t)
		n := startNode(t, tree, rt, func(c *CRI) { c.timing.fast = time.Hour })
		n.until("first answer", func() bool { return n.Status().Connected })
		n.run(1) // the kubelet makes its tree
		n.until("its first pod", func() bool { return n.has(id(3)) })
	})
}

func TestEndpointErrors(t *testing.T) {
	tree := cgrouptest.NewFake(t, cgroup.Unified)
	rt := newFakeRuntime(t)
	for name, tc := range map[string]struct {
		endpoint string
		setup    func()
		want     string
	}{
		"no socket":       {endpoint: "unix:///nowhere/x.sock", want: "unix:///nowhere/x.sock: no such socket: is the runtime running, and --cri-endpoint right?"},
		"no CRI":          {setup: func() { rt.err = status.Error(codes.Unimplemented, "unknown service runtime.v1.RuntimeService") }, want: "speaks no CRI v1"},
		"not initialized": {setup: func() { rt.err = status.Error(codes.Unknown, "server is not initialized yet") }, want: "server is not initialized yet"},
		"silent":          {setup: func() { rt.err, rt.delay = nil, time.Hour }, want: "no answer within 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.setup != nil {
				tc.endpoint = rt.endpoint()
				rt.change(tc.setup)
			}
			c := newCRI(t, tc.endpoint, tree.Hierarchy())
			c.timing.call = 50 * time.Millisecond
			src := runCRI(t, c)
			src.until("error", func() bool { return strings.Contains(src.Status().Error, tc.want) && !src.Status().Connected })
		})
	}
	for _, bad := range []string{"", "tcp://127.0.0.1:1", "containerd.sock", "unix://run/x.sock", "/" + strings.Repeat("x", 200), "/a\x00b"} {
		if _, err := NewCRI(CRIOptions{Endpoints: []string{bad}, Hierarchy: tree.Hierarchy()}); err == nil {
			t.Errorf("endpoint %q is taken", bad)
		}
	}
	for _, good := range []string{"unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock", "unix:////run//x.sock"} {
		if got, err := parseEndpoint(good); err != nil || got != "unix:///run/x.sock" {
			t.Errorf("endpoint %q: %q, %v", good, got, err)
		}
	}
}

// The runtime is found wherever it begins to listen, also after another one of the usual places has answered.
func TestRuntimeIsFoundLater(t *testing.T) {
	tree := cgrouptest.NewFake(t, cgroup.Unified)
	first, second := newFakeRuntime(t), newFakeRuntime(t)
	first.stop()
	second.stop()
	c, err := NewCRI(CRIOptions{Endpoints: []string{first.endpoint(), second.endpoint()}, Hierarchy: tree.Hierarchy(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.timing.backoff, c.timing.backMax = time.Millisecond, 20*time.Millisecond
	src := runCRI(t, c)
	src.until("nobody answers", func() bool { return !src.Status().Connected && src.Status().Error != "" })
	second.start(t)
	src.until("the second answers", func() bool { s := src.Status(); return s.Connected && s.Source == second.endpoint() })
	second.stop()
	first.start(t)
	src.until("the first answers", func() bool { s := src.Status(); return s.Connected && s.Source == first.endpoint() })
}

func TestProbe(t *testing.T) {
	rt := newFakeRuntime(t)
	if got, err := Probe(t.Context(), rt.endpoint(), time.Minute); got != "fake 1.0" || err != nil {
		t.Errorf("Probe: %q, %v", got, err)
	}
	if _, err := Probe(t.Context(), "unix:///nowhere", time.Minute); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no such socket") {
		t.Errorf("Probe without a socket: %v", err)
	}
}

// Of several usual places, the error that is told is that of the one where something is.
func TestErrorOfTheSocketThatIsThere(t *testing.T) {
	rt := newFakeRuntime(t)
	rt.change(func() { rt.err = status.Error(codes.Unknown, "server is not initialized yet") })
	c, err := NewCRI(CRIOptions{Endpoints: []string{"unix:///nowhere", rt.endpoint()}, Hierarchy: cgrouptest.NewFake(t, cgroup.Unified).Hierarchy(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	src := runCRI(t, c)
	src.until("error", func() bool { return strings.Contains(src.Status().Error, "server is not initialized yet") })
}

func TestBackoff(t *testing.T) {
	for n, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		want *= time.Millisecond
		if got := backoff(n, 100*time.Millisecond, 5*time.Second); got < want*8/10 || got > want*12/10 {
			t.Errorf("after %d failures: %v, want about %v", n, got, want)
		}
	}
	if got := backoff(1000, 100*time.Millisecond, 5*time.Second); got > 6*time.Second || got < 4*time.Second {
		t.Errorf("after many failures: %v", got)
	}
}

func TestNamesPod(t *testing.T) {
	for _, tc := range []struct {
		group, uid string
		want       bool
	}{
		{"/kubepods/pod1-2", "1-2", true},
		{"/kubepods/burstable/pod1-2", "1-2", true},
		{"/kubepods.slice/kubepods-pod1_2.slice", "1-2", true},
		{"/kubepods/besteffort/pod1-2", "1-3", false},
		{"/kubepods/besteffort", "besteffort", false},
		{"/kubepods/pod1/abcdefabcdef", "1", false},
		{"/x/pod1-2", "1-2", true},
		{"/x/1-2", "1-2", true},
		{"/x/y-pod1_2.slice", "1-2", true},
		{"/x/pod1_2.slice", "1-2", true},
		{"/x/data", "a", false},
		{"/x/pod", "", false},
		{"", "1", false},
		{"/", "/", false},
	} {
		if got := namesPod(tc.group, tc.uid); got != tc.want {
			t.Errorf("namesPod(%q, %q) = %v", tc.group, tc.uid, got)
		}
	}
}

func FuzzVerbose(f *testing.F) {
	f.Add(info(1, "/kubepods/pod1/x"))
	f.Add(info(1, "a-b.slice:cri-containerd:x"))
	f.Add(`{"config": {"linux": {"cgroup_parent": "a.slice"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		v := parseVerbose(map[string]string{"info": text})
		for _, g := range []string{v.group(), v.parent()} {
			if g != "" && cgroup.CheckWritable(g) != nil {
				t.Errorf("group %q of %q", g, text)
			}
		}
	})
}
