// Package daemon runs the real binary for tests, benches and the demo: it starts `qos-agent run`, waits until the daemon is
// ready, asks its HTTP API, and stops or kills it.
package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
)

// Options are the flags of the daemon that differ from one use to the next.
type Options struct {
	Binary     string // path of qos-agent
	PolicyDir  string
	StaticPods string // file of the static source; empty: CRI
	CRI        string // endpoint
	CgroupRoot string // empty: /sys/fs/cgroup
	RunDir     string
	Interval   time.Duration // 0: the default
	Mode       string        // empty: the policy's
	Extra      []string      // more flags
	Env        []string      // added to the environment
}

// Daemon is a running qos-agent.
type Daemon struct {
	Addr string // of its HTTP server
	cmd  *exec.Cmd
	log  *syncBuffer
	done chan struct{} // closed when the process has been waited for
}

// Start starts the daemon and returns at once; see WaitReady.
func Start(o Options) (*Daemon, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{"run", "--policy-dir", o.PolicyDir, "--run-dir", o.RunDir, "--listen", addr}
	if o.StaticPods != "" {
		args = append(args, "--pods", "static", "--static-pods", o.StaticPods)
	} else {
		args = append(args, "--pods", "cri", "--cri-endpoint", o.CRI)
	}
	if o.CgroupRoot != "" {
		args = append(args, "--cgroup-root", o.CgroupRoot)
	}
	if o.Interval != 0 {
		args = append(args, "--interval", o.Interval.String())
	}
	if o.Mode != "" {
		args = append(args, "--mode", o.Mode)
	}
	d := &Daemon{Addr: addr, log: new(syncBuffer), done: make(chan struct{})}
	d.cmd = exec.Command(o.Binary, append(args, o.Extra...)...)
	d.cmd.Env = append(os.Environ(), o.Env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	// The daemon must not outlive whoever started it.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait() // the exit code is read from ProcessState
	}()
	return d, nil
}

// freeAddr is a loopback address that nobody listened on a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// PID is the daemon's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log is what the daemon has printed so far.
func (d *Daemon) Log() string { return d.log.String() }

// WaitReady waits until /readyz says yes. The error holds what it said last, and the log.
func (d *Daemon) WaitReady(ctx context.Context) error {
	var last string
	for {
		status, body, err := d.Get(ctx, "/readyz")
		if err == nil && status == http.StatusOK {
			return nil
		}
		if err != nil {
			last = err.Error()
		} else {
			last = fmt.Sprintf("%d %s", status, body)
		}
		select {
		case <-d.done:
			return fmt.Errorf("daemon ended (%v) before it was ready; log:\n%s", d.cmd.ProcessState, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("daemon is not ready: %s; log:\n%s", last, d.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Get asks the daemon's HTTP server.
func (d *Daemon) Get(ctx context.Context, path string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// State is the answer of /api/v1/state.
func (d *Daemon) State(ctx context.Context) (*server.State, error) {
	status, body, err := d.Get(ctx, "/api/v1/state")
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("state: %d %s", status, body)
	}
	var s server.State
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return &s, nil
}

// WaitState waits until ok likes the state. The error tells what was waited for and holds the log.
func (d *Daemon) WaitState(ctx context.Context, what string, ok func(*server.State) bool) (*server.State, error) {
	for {
		s, err := d.State(ctx)
		if err == nil && ok(s) {
			return s, nil
		}
		select {
		case <-d.done:
			return s, fmt.Errorf("daemon ended (%v) while waiting for %s; log:\n%s", d.cmd.ProcessState, what, d.Log())
		case <-ctx.Done():
			text, _ := json.MarshalIndent(s, "", " ")
			return s, fmt.Errorf("waiting for %s: %w; state: %s; log:\n%s", what, ctx.Err(), text, d.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop sends SIGTERM and waits for the end. A daemon that does not end within the context's time is killed.
func (d *Daemon) Stop(ctx context.Context) error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop daemon: %w", err)
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		d.Kill()
		return fmt.Errorf("daemon did not end after SIGTERM: %w; log:\n%s", ctx.Err(), d.Log())
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("daemon ended with %v; log:\n%s", d.cmd.ProcessState, d.Log())
	}
	return nil
}

// Kill is kill -9, and waits until the process is gone.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill() // it may have ended
	<-d.done
}

// Wait waits for the end of a daemon that is expected to end by itself, and gives its exit code.
func (d *Daemon) Wait(ctx context.Context) (int, error) {
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("daemon goes on running: %w; log:\n%s", ctx.Err(), d.Log())
	}
}

// Build compiles the binary for the machine at hand from the module that holds the working directory, unless QOS_AGENT_BIN
// names one that is there already.
func Build(dir string) (string, error) {
	if bin := os.Getenv("QOS_AGENT_BIN"); bin != "" {
		return bin, nil
	}
	bin := filepath.Join(dir, "qos-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/qos-agent/qos-agent/cmd/qos-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build qos-agent: %w\n%s", err, out)
	}
	return bin, nil
}

// Pod is a line of the static pod file.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	Cgroup          string
}

// WriteStaticPods writes the static pod file, by rename as an operator's tools would.
func WriteStaticPods(file string, pods ...Pod) error {
	var b strings.Builder
	b.WriteString("pods:\n")
	if len(pods) == 0 {
		b.Reset()
		b.WriteString("pods: []\n")
	}
	for _, p := range pods {
		fmt.Fprintf(&b, "- namespace: %q\n  name: %q\n  cgroup: %q\n", p.Namespace, p.Name, p.Cgroup)
		if len(p.Labels) > 0 {
			b.WriteString("  labels:\n")
		}
		for k, v := range p.Labels {
			fmt.Fprintf(&b, "    %q: %q\n", k, v)
		}
	}
	return Replace(file, b.String())
}

// Replace writes a file under another name and renames it into place.
func Replace(file, text string) error {
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(tmp, file)
}

// syncBuffer is a buffer that two goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
