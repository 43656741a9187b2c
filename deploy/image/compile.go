package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// compile builds the agent for an architecture: static, without paths of this machine, with the database of time zones in it
// (policies have time windows, and the image has no files of its own for that).
func compile(ctx context.Context, o Options, arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "qos-agent-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "qos-agent")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-tags=timetzdata", "-ldflags=-s -w -buildid= -X main.version=" + o.Version}
	args = append(append(args, o.GoFlags...), "-o", out, "./cmd/qos-agent")
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = o.Source
	// GOFLAGS and GOAMD64 of this machine must not show in the result.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build for %s: %w\n%s", arch, err, text)
	}
	return os.ReadFile(out)
}
