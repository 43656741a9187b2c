package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/online"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

const webEnv = "QOS_AGENT_DEMO_WEB"

// page is what the service sends, compressed anew for every request: work of about half a millisecond, as a service does it
// that makes its answers. (A few bytes from memory would cost the one who asks more than the one who answers.)
func page() string { return online.Prose(24 << 10) }

// web is the online service.
type web struct {
	what string // for the report
	addr string
	cmd  *exec.Cmd
	log  string // file
}

// startWeb starts nginx, or the server that is built in if nginx cannot be had.
func startWeb(ctx context.Context, dir string, cpus cpuset.Set, join func(pid int) error) (*web, error) {
	nginx, err := findNginx(ctx)
	if err != nil {
		fmt.Printf("nginx cannot be had (%v): the HTTP server of Go stands in for it\n", err)
	}
	return startServer(ctx, dir, nginx, cpus, join)
}

// startServer starts the given nginx, or the built-in server if it is empty, in a directory of ours, with a worker for each CPU.
func startServer(ctx context.Context, dir, nginx string, cpus cpuset.Set, join func(pid int) error) (*web, error) {
	addr, err := online.FreeAddr()
	if err != nil {
		return nil, err
	}
	w := &web{addr: addr, log: filepath.Join(dir, "web.log")}
	log, err := os.Create(w.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var args, env []string
	if nginx != "" {
		if w.what, err = nginxVersion(ctx, nginx); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "page.txt"), []byte(page()), 0o644); err != nil {
			return nil, err
		}
		conf := filepath.Join(dir, "nginx.conf")
		text := workerAffinity(cpus) + online.NginxConf(dir, filepath.Base(w.log), addr, cpus.Len(), "gzip_comp_level 6;", "location = / { rewrite ^ /page.txt last; }")
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return nil, err
		}
		args = []string{nginx, "-e", w.log, "-p", dir, "-c", conf}
	} else {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		w.what = "Go's HTTP server (nginx could not be had)"
		args = []string{self}
		env = []string{webEnv + "=" + addr, fmt.Sprint("GOMAXPROCS=", cpus.Len())}
	}
	// The shell waits until it is in the group: what it then becomes, and every child of that, is in it from the start.
	w.cmd = exec.Command("/bin/sh", append([]string{"-c", `read -r go && exec "$@"`, "sh"}, args...)...)
	w.cmd.Env = append(os.Environ(), env...)
	w.cmd.Stdout, w.cmd.Stderr = log, log
	// A process group of its own: Ctrl-C is for the demo, which then stops everything in order.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	gate, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("online service: %w", err)
	}
	err = join(w.cmd.Process.Pid)
	if err == nil {
		_, err = io.WriteString(gate, "go\n")
	}
	if err == nil {
		err = w.answers(ctx)
	}
	if err != nil {
		text, _ := os.ReadFile(w.log)
		w.stop()
		return nil, fmt.Errorf("online service: %w\n%s", err, text)
	}
	return w, nil
}

// workerAffinity is nginx's setting that gives each worker a CPU of its own. Where the scheduler may put them on one, a busy service also waits
// for itself, now more, now less, and nobody can say who is to blame.
func workerAffinity(cpus cpuset.Set) string {
	list := cpus.List()
	masks := make([]string, len(list))
	for i, cpu := range list {
		masks[i] = "1" + strings.Repeat("0", cpu) // bits; CPU 0 is the last one
	}
	return "worker_cpu_affinity " + strings.Join(masks, " ") + ";\n"
}

// answers waits until the service answers.
func (w *web) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		resp, err := http.Get("http://" + w.addr + "/")
		if err == nil {
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && string(text) == page() {
				return nil
			}
			return fmt.Errorf("answered %d with %d bytes (%w)", resp.StatusCode, len(text), err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop asks first: nginx then ends its workers itself, and they do not become orphans.
func (w *web) stop() {
	_ = w.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	late := time.AfterFunc(3*time.Second, func() { _ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL) })
	_ = w.cmd.Wait() // says that it was killed
	late.Stop()
}

// findNginx looks for nginx, and on Debian with root installs it.
func findNginx(ctx context.Context) (string, error) {
	if path, err := lookNginx(); err == nil {
		return path, nil
	}
	out, err := exec.CommandContext(ctx, "test/deps.sh", "nginx-light").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return lookNginx()
}

func lookNginx() (string, error) {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/nginx") // not in everybody's PATH
}

func nginxVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "-v").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nginx -v: %w: %s", err, out)
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), "nginx version: ")
	return version, nil
}

// maybeWeb is the built-in server: in a process that startWeb has started it serves until it is killed.
func maybeWeb() {
	addr, ok := os.LookupEnv(webEnv)
	if !ok {
		return
	}
	text := page()
	err := http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, text) // to memory
		_ = z.Close()
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
		_, _ = w.Write(b.Bytes()) // a client that has gone
	}))
	fmt.Fprintln(os.Stderr, "web:", err)
	os.Exit(1)
}
