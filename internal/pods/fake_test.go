package pods

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// fakeRuntime is a CRI runtime whose pods the test writes down. It can be slow, silly or dead.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	socket string

	mu         sync.Mutex
	server     *grpc.Server
	served     chan struct{} // closed when the server has ended
	sandboxes  map[string]*fakeSandbox
	containers map[string]*fakeContainer
	calls      map[string]int
	err        error         // of every call
	delay      time.Duration // of every call
	stuck      string        // container whose status takes for ever
}

type fakeSandbox struct {
	ID, Namespace, Name, UID string
	Labels                   map[string]string
	Created                  int64
	NotReady                 bool
	Info                     string // of a verbose status
}

type fakeContainer struct {
	ID, Sandbox, Name string
	Info              string // of a verbose status
	Exited            bool
}

func newFakeRuntime(t testing.TB) *fakeRuntime {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRuntime{
		socket:     filepath.Join(dir, "s"),
		sandboxes:  map[string]*fakeSandbox{},
		containers: map[string]*fakeContainer{},
		calls:      map[string]int{},
	}
	f.start(t)
	t.Cleanup(func() {
		f.stop()
		os.RemoveAll(dir)
	})
	return f
}

func (f *fakeRuntime) endpoint() string { return "unix://" + f.socket }

func (f *fakeRuntime) start(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxSendMsgSize(maxAnswer), grpc.UnaryInterceptor(f.intercept))
	runtimeapi.RegisterRuntimeServiceServer(server, f)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server, f.served = server, served
}

func (f *fakeRuntime) stop() {
	f.mu.Lock()
	server, served := f.server, f.served
	f.mu.Unlock()
	server.Stop()
	<-served // a server that is stopped before it has begun leaves its socket for a moment
}

func (f *fakeRuntime) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	f.mu.Lock()
	f.calls[path.Base(info.FullMethod)]++
	delay, err := f.delay, f.err
	if q, ok := req.(*runtimeapi.ContainerStatusRequest); ok && q.ContainerId == f.stuck {
		delay = time.Hour
	}
	f.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return next(ctx, req)
}

// change lets the test change anything while the runtime answers.
func (f *fakeRuntime) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fakeRuntime) called(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *fakeRuntime) add(s fakeSandbox, containers ...fakeContainer) {
	f.change(func() {
		f.sandboxes[s.ID] = &s
		for _, c := range containers {
			c.Sandbox, c.Name = s.ID, cmp.Or(c.Name, "main")
			f.containers[c.ID] = &c
		}
	})
}

func (f *fakeRuntime) remove(sandbox string) {
	f.change(func() {
		delete(f.sandboxes, sandbox)
		for id, c := range f.containers {
			if c.Sandbox == sandbox {
				delete(f.containers, id)
			}
		}
	})
}

func (f *fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1.0", RuntimeApiVersion: "v1"}, nil
}

func (s *fakeSandbox) meta() *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: s.Name, Namespace: s.Namespace, Uid: s.UID}
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	answer := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		if s.NotReady && req.GetFilter().GetState() != nil || req.GetFilter().GetId() != "" {
			continue
		}
		answer.Items = append(answer.Items, &runtimeapi.PodSandbox{Id: s.ID, Metadata: s.meta(), CreatedAt: s.Created, Labels: s.Labels})
	}
	return answer, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s := f.sandboxes[req.PodSandboxId]
	if s == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &runtimeapi.PodSandboxStatusResponse{
		Status: &runtimeapi.PodSandboxStatus{Id: s.ID, Metadata: s.meta(), CreatedAt: s.Created, Labels: s.Labels},
		Info:   map[string]string{"info": s.Info},
	}, nil
}

func (f *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	answer := &runtimeapi.ListContainersResponse{}
	for _, c := range f.containers {
		if !c.Exited {
			answer.Containers = append(answer.Containers, &runtimeapi.Container{
				Id: c.ID, PodSandboxId: c.Sandbox, State: runtimeapi.ContainerState_CONTAINER_RUNNING,
				Metadata: &runtimeapi.ContainerMetadata{Name: c.Name},
			})
		}
	}
	return answer, nil
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c := f.containers[req.ContainerId]
	if c == nil {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &runtimeapi.ContainerStatusResponse{
		Status: &runtimeapi.ContainerStatus{Id: c.ID, Metadata: &runtimeapi.ContainerMetadata{Name: c.Name}},
		Info:   map[string]string{"info": c.Info},
	}, nil
}

// info is what containerd and CRI-O say in a verbose status.
func info(pid int, cgroupsPath string) string {
	return fmt.Sprintf(`{"pid": %d, "sandboxID": "x", "runtimeSpec": {"ociVersion": "1.0.2", "linux": {"cgroupsPath": %q, "namespaces": []}}}`, pid, cgroupsPath)
}

// id makes a container ID as runtimes do: 64 hexadecimal digits.
func id(n int) string { return fmt.Sprintf("%064x", n) }

// newCRI makes a source that the test may tune before it runs it. It lists once at the start and then only when the tree asks
// for it, unless the test sets another period.
func newCRI(t testing.TB, endpoint string, h *cgroup.Hierarchy) *CRI {
	t.Helper()
	c, err := NewCRI(CRIOptions{Endpoints: []string{endpoint}, Hierarchy: h, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	c.timing.steady = time.Hour
	c.timing.backoff = time.Millisecond
	c.timing.backMax = 20 * time.Millisecond
	return c
}

// patience bounds every wait of the tests. It is long because the same tests run on an emulated CPU.
const patience = 60 * time.Second

// runningCRI is a source that runs as long as the test.
type runningCRI struct {
	*CRI
	t *testing.T
}

func runCRI(t *testing.T, c *CRI) *runningCRI {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &runningCRI{c, t}
}

func (s *runningCRI) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no %s after %v\nstatus: %+v\npods: %+v", what, patience, s.Status(), s.Pods())
		}
	}
}

// containers are the IDs of all containers.
func (s *runningCRI) containers() []string {
	var ids []string
	for _, p := range s.Pods() {
		for _, c := range p.Containers {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

func (s *runningCRI) has(id string) bool {
	for _, known := range s.containers() {
		if known == id {
			return true
		}
	}
	return false
}
