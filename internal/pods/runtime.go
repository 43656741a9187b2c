package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// maxAnswer is how large an answer of the runtime may be; the kubelet's own limit.
const maxAnswer = 16 << 20

// runtimeClient is a connection to a CRI runtime. A connection that broke is not used again.
type runtimeClient struct {
	endpoint string
	conn     *grpc.ClientConn
	api      runtimeapi.RuntimeServiceClient
	name     string // "containerd 1.6.20"
	broken   atomic.Bool

	mu      sync.Mutex
	dialErr error // why the last dial failed; gRPC's own text buries it
}

// dialRuntime connects and asks the runtime who it is. lost is called, once and from another goroutine, when the connection
// breaks later on.
func dialRuntime(ctx context.Context, endpoint string, timeout time.Duration, lost func()) (*runtimeClient, error) {
	c := &runtimeClient{endpoint: endpoint}
	conn, err := grpc.NewClient("passthrough:///runtime",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
		grpc.WithAuthority("localhost"), // what the unix scheme sends; servers refuse a path
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0), // an idle connection tells at once when the runtime dies
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", endpoint, err)
	}
	c.conn, c.api = conn, runtimeapi.NewRuntimeServiceClient(conn)
	answer, err := call(ctx, c, timeout, c.api.Version, &runtimeapi.VersionRequest{Version: "0.1.0"}) // the kubelet API version that CRI wants here
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.name = strings.TrimSpace(answer.RuntimeName + " " + answer.RuntimeVersion)
	go func() {
		// Returns on any change: broken, or closed by us. gRPC would connect again, but without saying so.
		for s := conn.GetState(); s == connectivity.Ready; s = conn.GetState() {
			conn.WaitForStateChange(context.Background(), s)
		}
		c.broken.Store(true)
		lost()
	}()
	return c, nil
}

func (c *runtimeClient) close() { c.conn.Close() }

func (c *runtimeClient) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(c.endpoint, unixScheme))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialErr = err
	return conn, err
}

// call makes one call with a time-out and explains its error.
func call[Q, A any](ctx context.Context, c *runtimeClient, timeout time.Duration, fn func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := fn(ctx, q)
	if err != nil {
		err = c.explain(err, timeout)
	}
	return answer, err
}

// explain says in people's words what is wrong with the runtime, and what to do. The result wraps err, and why it could not connect.
func (c *runtimeClient) explain(err error, timeout time.Duration) error {
	c.mu.Lock()
	dialErr := c.dialErr
	c.mu.Unlock()
	var reason string
	switch code := status.Code(err); {
	case code == codes.Unavailable && errors.Is(dialErr, fs.ErrNotExist):
		reason = "no such socket: is the runtime running, and --cri-endpoint right? (containerd: unix:///run/containerd/containerd.sock, CRI-O: unix:///run/crio/crio.sock)"
	case code == codes.Unavailable && errors.Is(dialErr, syscall.ECONNREFUSED):
		reason = "nobody listens: is the runtime running?"
	case code == codes.Unavailable && errors.Is(dialErr, fs.ErrPermission):
		reason = denied(strings.TrimPrefix(c.endpoint, unixScheme))
	case code == codes.Unavailable && dialErr != nil:
		reason = dialErr.Error()
	case code == codes.Unimplemented:
		reason = "speaks no CRI v1: containerd must be 1.6 or newer with the cri plugin enabled (disabled_plugins in its config.toml), CRI-O 1.23 or newer"
	case code == codes.DeadlineExceeded:
		reason = fmt.Sprintf("no answer within %v: is the runtime overloaded or stuck, and is this a CRI socket?", timeout)
	default:
		reason = status.Convert(err).Message()
	}
	errs := []error{err}
	if code := status.Code(err); code == codes.Unavailable && dialErr != nil {
		errs = append(errs, dialErr)
	}
	return &runtimeError{text: fmt.Sprintf("%s: %s", c.endpoint, reason), errs: errs}
}

type runtimeError struct {
	text string
	errs []error // what gRPC says, and why it could not connect if so
}

func (e *runtimeError) Error() string   { return e.text }
func (e *runtimeError) Unwrap() []error { return e.errs }

const unixScheme = "unix://"

// parseEndpoint makes "unix:///path" of what Socket takes.
func parseEndpoint(endpoint string) (string, error) {
	file, err := Socket(endpoint)
	if err != nil {
		return "", err
	}
	return unixScheme + file, nil
}

// Socket is the path of a CRI endpoint: of "unix:///path", "unix:/path" or "/path".
func Socket(endpoint string) (string, error) {
	file := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//")
	if !path.IsAbs(file) || strings.ContainsRune(file, 0) {
		return "", fmt.Errorf("CRI endpoint %q: must be a unix socket: unix:///run/containerd/containerd.sock", endpoint)
	}
	if len(file) > len(syscall.RawSockaddrUnix{}.Path)-1 {
		return "", fmt.Errorf("CRI endpoint %q: longer than the %d bytes that a unix socket's path may have", endpoint, len(syscall.RawSockaddrUnix{}.Path)-1)
	}
	return path.Clean(file), nil
}

// Probe asks the runtime at endpoint who it is ("containerd 1.6.20") and whether it lists pods, with a time-out for each of the two. The
// error is one clear text; where no socket is it is fs.ErrNotExist.
func Probe(ctx context.Context, endpoint string, timeout time.Duration) (string, error) {
	endpoint, err := parseEndpoint(endpoint)
	if err != nil {
		return "", err
	}
	c, err := dialRuntime(ctx, endpoint, timeout, func() {})
	if err != nil {
		return "", err
	}
	defer c.close()
	_, err = call(ctx, c, timeout, c.api.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "none"}})
	return c.name, err
}

// verbose is what is of use in the JSON that runtimes add to a verbose status under the key "info". CRI does not define it;
// containerd and CRI-O agree on these fields, and fields that are missing are empty.
type verbose struct {
	PID         int `json:"pid"`
	RuntimeSpec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	} `json:"runtimeSpec"`
	Config struct { // of a sandbox, containerd only
		Linux struct {
			CgroupParent string `json:"cgroup_parent"`
		} `json:"linux"`
	} `json:"config"`
}

// group is where the runtime says that a container's group is; "" if it does not say, or says nonsense.
func (v *verbose) group() string {
	g, err := cgroup.ExpandCgroupsPath(v.RuntimeSpec.Linux.CgroupsPath)
	if err != nil || cgroup.CheckWritable(g) != nil {
		return ""
	}
	return g
}

// parent is where the runtime says that a pod's group is, from the status of its sandbox; "" as above.
func (v *verbose) parent() string {
	if g := v.group(); g != "" {
		return plain(path.Dir(g))
	}
	parent := v.Config.Linux.CgroupParent
	if slice, err := cgroup.ExpandSlice(parent); err == nil {
		return plain(slice)
	}
	if path.IsAbs(parent) {
		return plain(path.Clean(parent))
	}
	return ""
}

func plain(group string) string {
	if cgroup.CheckWritable(group) != nil {
		return ""
	}
	return group
}

// parseVerbose never fails: of garbage it takes what it can use, and for the rest the tree is asked instead.
func parseVerbose(info map[string]string) verbose {
	var v verbose
	var wrongType *json.UnmarshalTypeError
	if err := json.Unmarshal([]byte(info["info"]), &v); err != nil && !errors.As(err, &wrongType) {
		return verbose{}
	}
	v.PID = max(v.PID, 0)
	return v
}
