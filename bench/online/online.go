// Package online runs real online services from Debian packages for benches, with configurations of their own in groups of their own, and
// makes an open-loop load on them relative to what each carries alone on the machine at hand.
package online

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/test/groups"
)

// Kind is an online service from a Debian package, with a configuration of ours that touches nothing outside its directory and listens
// on the loopback only.
type Kind struct {
	Name     string
	program  string
	pkg      string // Debian's
	protocol string
	path     string // or key
	args     func(dir, host, port string, cpus int) ([]string, error)
	fill     func(addr string) error // puts in what will be asked for; nil: nothing
}

// A request is of the order of 100 µs of work, so that at a high load the service is busy and its clients, who are not on the node in
// real life, are not: with the cheapest requests that there are, the load generator would use as much of the machine as the
// service.
const (
	pageBytes  = 20 << 10 // nginx compresses it anew for every request
	listItems  = 300      // redis sorts them and sends the first ten
	cacheItems = 200      // asked of memcached at once
	itemBytes  = 24
)

const key = "bench"

// Kinds are all services that there are.
var Kinds = []Kind{
	{
		Name: "nginx", program: "nginx", pkg: "nginx-light", protocol: "http", path: "/page.txt",
		args: func(dir, host, port string, cpus int) ([]string, error) {
			conf := filepath.Join(dir, "nginx.conf")
			if err := os.WriteFile(conf, []byte(NginxConf(dir, "nginx.log", net.JoinHostPort(host, port), cpus, "open_file_cache max=16;")), 0o644); err != nil {
				return nil, err
			}
			return []string{"-e", filepath.Join(dir, "nginx.log"), "-p", dir, "-c", conf},
				os.WriteFile(filepath.Join(dir, "page.txt"), []byte(Prose(pageBytes)), 0o644)
		},
	},
	{
		Name: "redis", program: "redis-server", pkg: "redis-server", protocol: "redis", path: key,
		args: func(dir, host, port string, _ int) ([]string, error) {
			return []string{"--bind", host, "--port", port, "--dir", dir, "--save", "", "--appendonly", "no", "--daemonize", "no"}, nil
		},
		fill: func(addr string) error {
			request := fmt.Sprintf("*%d\r\n$5\r\nRPUSH\r\n$%d\r\n%s\r\n", 2+listItems, len(key), key)
			for i := range listItems {
				request += fmt.Sprintf("$%d\r\n%0*d\r\n", itemBytes, itemBytes, (i*7919)%listItems)
			}
			return tell(addr, request, fmt.Sprintf(":%d", listItems))
		},
	},
	{
		Name: "memcached", program: "memcached", pkg: "memcached", protocol: "memcached", path: cacheKeys(),
		args: func(dir, host, port string, cpus int) ([]string, error) {
			return []string{"-u", "root", "-l", host, "-p", port, "-U", "0", "-t", fmt.Sprint(cpus), "-m", "64", "-R", "1000"}, nil
		},
		fill: func(addr string) error {
			for k := range strings.FieldsSeq(cacheKeys()) {
				if err := tell(addr, fmt.Sprintf("set %s 0 0 %d\r\n%s\r\n", k, itemBytes, strings.Repeat("x", itemBytes)), "STORED"); err != nil {
					return err
				}
			}
			return nil
		},
	},
}

func cacheKeys() string {
	keys := make([]string, cacheItems)
	for i := range keys {
		keys[i] = key + strconv.Itoa(i)
	}
	return strings.Join(keys, " ")
}

// NginxConf is a configuration with which nginx keeps everything that it writes in dir, and its connections open for ever, and compresses text
// anew for every request. server is lines for the block of that name.
func NginxConf(dir, log, addr string, workers int, server ...string) string {
	var temp strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "  %s_temp_path %s/%s;\n", name, dir, name)
	}
	return fmt.Sprintf(`user root root;
daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log %s/%s warn;
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
    %s
  }
}
`, workers, dir, dir, log, temp.String(), addr, dir, strings.Join(server, "\n    "))
}

// tell sends one request and looks whether the answer begins as wanted.
func tell(addr, request, want string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != want {
		return fmt.Errorf("answered %q, want %q", buf, want)
	}
	return nil
}

// Service is a running service with its load generator.
type Service struct {
	Kind
	Group    string
	Client   *load.Client // between Connect and Disconnect
	Capacity float64      // requests per second that it carries alone here

	addr string
	cmd  *exec.Cmd
	log  string
}

// Start starts a service in a group of its own and measures what it carries.
func Start(ctx context.Context, s Kind, tree *groups.Tree, dir string, cpus int, seed uint64) (_ *Service, err error) {
	program, err := Find(s.program, s.pkg)
	if err != nil {
		return nil, err
	}
	o := &Service{Kind: s, log: filepath.Join(dir, s.Name+".out")}
	defer func() {
		if err != nil {
			text, _ := os.ReadFile(o.log) // only to say more
			err = fmt.Errorf("%s: %w\n%s", s.Name, err, text)
			o.Stop()
		}
	}()
	if o.Group, err = tree.Make(s.Name); err != nil {
		return nil, err
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(addr)
	args, err := s.args(dir, host, port, cpus)
	if err != nil {
		return nil, err
	}
	out, err := os.Create(o.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := tree.Command(o.Group, program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// nginx's master then ends its workers, which do not become orphans.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	o.cmd = cmd
	if err := o.answers(ctx, addr); err != nil {
		return nil, err
	}
	o.addr = addr
	if err := o.Connect(seed); err != nil {
		return nil, err
	}
	defer o.Disconnect()
	return o, o.calibrate(ctx)
}

// Connect starts the load generator; each begins the same sequence of arrivals.
func (o *Service) Connect(seed uint64) (err error) {
	o.Client, err = load.Start(load.Options{Addr: o.addr, Protocol: o.protocol, Path: o.path, Seed: seed, RealTime: true, Patience: Patience})
	return err
}

// Patience is how long a window waits for its last answers. What is still open then took at least so long.
const Patience = 400 * time.Millisecond

// Disconnect ends the load generator.
func (o *Service) Disconnect() {
	if o.Client != nil {
		_ = o.Client.Close() // it is killed
		o.Client = nil
	}
}

// answers waits until the service takes connections, and fills it.
func (o *Service) answers(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			if o.fill == nil {
				return nil
			}
			return o.fill(addr)
		}
		if lab.Sleep(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// calibrate asks for more than anybody could answer and counts the answers, several times in short turns. The best counts: others can
// only make it less.
func (o *Service) calibrate(ctx context.Context) error {
	const (
		turn = 300 * time.Millisecond
		many = 1e6 // requests per second
	)
	for range 7 {
		if _, err := o.Client.Collect(); err != nil {
			return err
		}
		if err := o.Client.SetRate(many); err != nil {
			return err
		}
		if err := lab.Sleep(ctx, turn); err != nil {
			return err
		}
		if err := o.Client.SetRate(0); err != nil { // and forget what is overdue, which nobody could answer in time
			return err
		}
		w, err := o.Client.Collect()
		if err != nil {
			return err
		}
		o.Capacity = max(o.Capacity, w.Rate)
	}
	if o.Capacity == 0 {
		return fmt.Errorf("answers nothing")
	}
	return nil
}

// SetLoad makes a load of a share of what the service carries, and forgets what was overdue.
func (o *Service) SetLoad(share float64) error {
	return o.Client.SetRate(math.Round(o.Capacity * share))
}

// Stop ends the service.
func (o *Service) Stop() {
	o.Disconnect()
	if o.cmd == nil {
		return
	}
	end(o.cmd, syscall.SIGTERM, 3*time.Second)
}

// end asks a command to end, waits for it, and kills its process group if that takes too long.
func end(cmd *exec.Cmd, ask syscall.Signal, patience time.Duration) {
	_ = cmd.Process.Signal(ask) // it may have ended
	late := time.AfterFunc(patience, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait() // says how it ended, which is known
	late.Stop()
}

// FreeAddr is a loopback address that nobody listened on a moment ago.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Find looks for a program also where root's programs are, which are not in everybody's PATH.
func Find(program, pkg string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", program))
	}
	if err != nil {
		return "", fmt.Errorf("needs %s: install Debian's package %s, or run `make deps`", program, pkg)
	}
	return path, nil
}

// Prose is text with some order in it, the same in every run.
func Prose(size int) string {
	rng := rand.New(rand.NewPCG(1, 1))
	words := strings.Fields("order basket price stock customer offer colour size delivery tomorrow payment review rating similar seller return")
	var b strings.Builder
	for b.Len() < size {
		fmt.Fprintf(&b, "%s %d\n", words[rng.IntN(len(words))], rng.IntN(1e6))
	}
	return b.String()[:size]
}
