package capability

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/pods"
)

// DefaultEndpoints is where container runtimes listen unless they are told otherwise, the most common first.
func DefaultEndpoints() []string {
	return []string{"unix:///run/containerd/containerd.sock", "unix:///run/crio/crio.sock", "unix:///run/cri-dockerd.sock"}
}

// criTimeout bounds the only probe that waits for somebody else; a runtime that hangs must not keep the next from being asked.
const criTimeout = 600 * time.Millisecond

// cri gives the version of the first runtime that answers.
func (p *prober) cri(ctx context.Context) (string, error) {
	var failed, absent []string
	for _, endpoint := range p.CRIEndpoints {
		version, err := pods.Probe(ctx, endpoint, criTimeout)
		switch {
		case err == nil:
			return fmt.Sprintf("%s at %s", version, endpoint), nil
		case errors.Is(err, fs.ErrNotExist):
			absent = append(absent, endpoint)
		default:
			failed = append(failed, err.Error())
		}
	}
	if len(absent) > 0 {
		failed = append(failed, "no socket at "+strings.Join(absent, ", "))
	}
	return "", fmt.Errorf("no runtime answers: %s", strings.Join(failed, "; "))
}
