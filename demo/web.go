package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const webEnv = "QOS_AGENT_DEMO_WEB"

// page is what the service sends, compressed anew for every request: work of about half a millisecond, as a service does it
// that makes its answers. (A few bytes from memory would cost the one who asks more than the one who answers.)
func page() string {
	words := strings.Fields("order basket price stock customer offer colour size delivery tomorrow payment review rating similar seller return")
	rng := rand.New(rand.NewPCG(1, 1))
	var b strings.Builder
	for b.Len() < 24<<10 {
		fmt.Fprintf(&b, "%s %d\n", words[rng.IntN(len(words))], rng.IntN(1e6))
	}
	return b.String()
}

// web is the online service.
type web struct {
	what string // for the report
	addr string
	cmd  *exec.Cmd
	log  string // file
}

// startWeb starts nginx, or the server that is built in if nginx cannot be had.
func startWeb(ctx context.Context, dir string, workers int, join func(pid int) error) (*web, error) {
	nginx, err := findNginx(ctx)
	if err != nil {
		fmt.Printf("nginx cannot be had (%v): the HTTP server of Go stands in for it\n", err)
	}
	return startServer(ctx, dir, nginx, workers, join)
}

// startServer starts the given nginx, or the built-in server if it is empty, in a directory of ours.
func startServer(ctx context.Context, dir, nginx string, workers int, join func(pid int) error) (*web, error) {
	addr, err := freeAddr()
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
		if err := os.WriteFile(conf, []byte(nginxConf(dir, addr, workers)), 0o644); err != nil {
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
		env = []string{webEnv + "=" + addr, fmt.Sprint("GOMAXPROCS=", workers)}
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

// nginxConf keeps everything that nginx writes in dir, and its connections open for ever.
func nginxConf(dir, addr string, workers int) string {
	var temp strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "  %s_temp_path %s/%s;\n", name, dir, name)
	}
	return fmt.Sprintf(`user root root;
daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log %s/web.log warn;
events { worker_connections 1024; }
http {
%s  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  server {
    listen %s reuseport;
    root %s;
    gzip on;
    gzip_types text/plain;
    gzip_comp_level 6;
    location = / { rewrite ^ /page.txt last; }
  }
}
`, workers, dir, dir, temp.String(), addr, dir)
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

// freeAddr is a loopback address that nobody listened on a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
