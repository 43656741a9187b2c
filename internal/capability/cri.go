package capability

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultEndpoints is where container runtimes listen unless they are told otherwise, the most common first.
func DefaultEndpoints() []string {
	return []string{"unix:///run/containerd/containerd.sock", "unix:///run/crio/crio.sock", "unix:///run/cri-dockerd.sock"}
}

// criTimeout bounds the only probe that waits for somebody else; a runtime that hangs must not keep the next from being asked.
const criTimeout = 600 * time.Millisecond

// cri gives the version of the first runtime that answers.
func (p *prober) cri(ctx context.Context) (string, error) {
	var failed []string
	for _, endpoint := range p.CRIEndpoints {
		version, err := runtimeVersion(ctx, endpoint)
		if err == nil {
			return fmt.Sprintf("%s at %s", version, endpoint), nil
		}
		failed = append(failed, fmt.Sprintf("%s: %v", endpoint, err))
	}
	return "", fmt.Errorf("no runtime answers (%s)", strings.Join(failed, ", "))
}

func runtimeVersion(ctx context.Context, endpoint string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	if strings.HasPrefix(endpoint, "/") { // as package pods takes it too
		endpoint = "unix://" + endpoint
	}
	if err := dial(ctx, endpoint); err != nil {
		return "", err
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	v, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return "", errors.New(status.Convert(err).Message())
	}
	return fmt.Sprintf("%s %s, CRI %s", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion()), nil
}

// dial finds out in plain words whether somebody listens; gRPC's are five times as long.
func dial(ctx context.Context, endpoint string) error {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		return nil // TCP, or something that gRPC may know
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	if err != nil {
		return err
	}
	return conn.Close()
}
