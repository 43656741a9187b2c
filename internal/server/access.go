package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// SocketName is the unix socket in the run directory on which the agent's own tools ask it.
const SocketName = "api.sock"

// Endpoint is a listener and what is served there to whom.
type Endpoint struct {
	Listener net.Listener
	// Everything adds the state API and the page to metrics and health.
	Everything bool
	Access     Access
}

// Access says who may ask. The zero value is: whoever reaches the listener.
type Access struct {
	// WebConfig is a file in the format of Prometheus's exporter toolkit: TLS, client certificates, users. It is read anew for
	// every connection, so that certificates can be renewed.
	WebConfig string
	// TokenFile holds a bearer token; it is read anew for every request, so that the token can be changed.
	TokenFile string
}

// Listen opens addr ("127.0.0.1:9460", ":9460"). It is apart from Serve so that a port in use ends the program before it has
// touched anything.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: another program has this port; stop it or choose another address with --listen or --api-listen", addr)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// ListenUnix opens the socket in dir, for root alone. A socket that a dead agent left is replaced: whoever calls holds the lock of the
// run directory.
func ListenUnix(dir string) (net.Listener, error) {
	name := filepath.Join(dir, SocketName)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode of the socket itself is that of the file which bind makes (see unix_bind in the kernel): there is no moment
		// in which others could connect.
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := inDir(dir, func(path string) (net.Listener, error) { return lc.Listen(context.Background(), "unix", path) })
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its name was good for bind only
	return &socket{Listener: l, name: name}, nil
}

// DialUnix connects to the agent whose run directory is dir.
func DialUnix(ctx context.Context, dir string) (net.Conn, error) {
	return inDir(dir, func(path string) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) })
}

// inDir lets fn use the socket in dir by a short path: a socket's address has room for 107 bytes only.
func inDir[T any](dir string, fn func(path string) (T, error)) (out T, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return out, err
	}
	defer d.Close()
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName))
}

// socket is a listener that takes its file with it.
type socket struct {
	net.Listener
	name string
	once sync.Once
}

func (s *socket) Close() error {
	// Once only: later it could be the next agent's.
	s.once.Do(func() { _ = os.Remove(s.name) }) // the next agent would remove it too
	return s.Listener.Close()
}

func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.name, Net: "unix"} }

// Loopback reports whether only this machine, or the pod, can reach the listener.
func Loopback(l net.Listener) bool {
	switch a := l.Addr().(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// Check refuses an endpoint that would show everything to everybody, and files that cannot work. flag is how the operator named
// the address.
func (e *Endpoint) Check(flag string) error {
	who := fmt.Sprintf("%s %s", flag, e.Listener.Addr())
	var c web.Config
	if e.Access.WebConfig != "" {
		if err := web.Validate(e.Access.WebConfig); err != nil {
			return fmt.Errorf("%s: %s: %w", who, e.Access.WebConfig, err)
		}
		text, err := os.ReadFile(e.Access.WebConfig)
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if err := yaml.Unmarshal(text, &c); err != nil {
			return fmt.Errorf("%s: %s: %w", who, e.Access.WebConfig, err)
		}
	}
	if e.Access.TokenFile != "" {
		if _, err := readToken(e.Access.TokenFile); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if len(c.Users) > 0 {
			return fmt.Errorf("%s: %s has basic_auth_users, and a token is wanted as well: a request cannot bring both; choose one", who, e.Access.WebConfig)
		}
	}
	if !e.Everything || Loopback(e.Listener) {
		return nil
	}
	tls := c.TLSConfig.IsEnabled()
	clients := c.TLSConfig.ClientAuth == "RequireAndVerifyClientCert"
	switch {
	case !clients && len(c.Users) == 0 && e.Access.TokenFile == "":
		return fmt.Errorf("%s: names of pods and images of the node's load would be open to everybody who reaches this address: "+
			"listen on 127.0.0.1, or give --api-web-config with client certificates (client_auth_type: RequireAndVerifyClientCert) or "+
			"basic_auth_users, or --api-token-file", who)
	case !tls:
		return fmt.Errorf("%s: passwords and tokens would cross the network in the clear: give --api-web-config with tls_server_config", who)
	}
	return nil
}

// guard wraps a handler in what the endpoint asks of its readers. TLS and users are package web's business.
func (e *Endpoint) guard(h http.Handler) http.Handler {
	if e.Access.TokenFile != "" {
		h = needToken(e.Access.TokenFile, h)
	}
	if _, tcp := e.Listener.Addr().(*net.TCPAddr); tcp && e.Everything && Loopback(e.Listener) {
		h = needLocalHost(h)
	}
	return h
}

func readToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < 16 {
		return "", fmt.Errorf("token: %s: %d characters, want at least 16", file, len(token))
	}
	return token, nil
}

// needToken lets nobody in who does not bring the token, and nobody at all while it cannot be read.
func needToken(file string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want, err := readToken(file)
		got, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(got))
		if err != nil || !isBearer || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="qos-agent"`)
			http.Error(w, "a valid bearer token is needed", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// needLocalHost refuses requests whose Host is a name other than localhost: a page of some web site whose name was made to lead to
// 127.0.0.1 (DNS rebinding) could otherwise read the node's state in the browser of whoever has a port forwarded.
func needLocalHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil {
			http.Error(w, fmt.Sprintf("this address is for localhost only, not for %q", host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
