package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serveOn serves everything on an endpoint until the test ends.
func serveOn(t *testing.T, e Endpoint) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := newTestServer(t, fixture(), &Instruments{})
	go func() { done <- s.Serve(ctx, e) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func listenAny(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// status asks and returns the status code; 0 and the error if there was no answer.
func status(t *testing.T, c *http.Client, url string, header ...string) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Body.Close()
}

// What may be open on the pod network is metrics and health, and nothing else.
func TestOpenHandlerShowsNoPods(t *testing.T) {
	h := newTestServer(t, fixture(), &Instruments{}).OpenHandler()
	for target, want := range map[string]int{
		"/metrics": 200, "/healthz": 200, "/readyz": 200, "/": 200, "/api/v1/state": 404, "/api/v1/decisions": 404, "/api/v1/stream": 404, "/assets/page.js": 404,
	} {
		if w := recorded(h, target); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

func TestLoopbackRefusesForeignNames(t *testing.T) {
	l := listenAny(t, "127.0.0.1:0")
	serveOn(t, Endpoint{Listener: l, Everything: true})
	for host, want := range map[string]int{
		"localhost:9476": 200, "127.0.0.1": 200, "[::1]:9476": 200, "10.1.2.3:80": 200, "evil.example:9476": 403, "localhost.evil.example": 403,
	} {
		if got, err := status(t, http.DefaultClient, "http://"+l.Addr().String()+"/api/v1/state", "Host", host); got != want {
			t.Errorf("Host %s: %d %v, want %d", host, got, err, want)
		}
	}
}

func TestTokenIsAskedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "0123456789abcdef0123\n")
	l := listenAny(t, "127.0.0.1:0")
	serveOn(t, Endpoint{Listener: l, Everything: true, Access: Access{TokenFile: file}})
	url := "http://" + l.Addr().String() + "/api/v1/state"
	ask := func(auth string) int {
		got, err := status(t, http.DefaultClient, url, "Authorization", auth)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for auth, want := range map[string]int{
		"Bearer 0123456789abcdef0123": 200, "Bearer 0123456789abcdef012": 401, "Bearer ": 401, "": 401, "0123456789abcdef0123": 401, "Basic MDEyMzQ1Njc4OWFiY2RlZg==": 401,
	} {
		if got := ask(auth); got != want {
			t.Errorf("%q: %d, want %d", auth, got, want)
		}
	}
	writeFile(t, file, "another-token-of-some-length")
	if old, fresh := ask("Bearer 0123456789abcdef0123"), ask("Bearer another-token-of-some-length"); old != 401 || fresh != 200 {
		t.Errorf("after a change: old %d, new %d", old, fresh)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := ask("Bearer "); got != 401 {
		t.Errorf("without a token file an empty token gets %d", got)
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	ca.issue(t, dir, "server")
	client := ca.issue(t, dir, "client")
	stranger := newAuthority(t, dir, "other-ca").issue(t, dir, "stranger")
	config := filepath.Join(dir, "web.yaml")
	writeFile(t, config, `tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt, client_auth_type: RequireAndVerifyClientCert}`)
	e := Endpoint{Listener: listenAny(t, "0.0.0.0:0"), Everything: true, Access: Access{WebConfig: config}}
	if err := e.Check("--api-listen"); err != nil {
		t.Fatal(err)
	}
	serveOn(t, e)
	url := fmt.Sprintf("https://127.0.0.1:%d/api/v1/state", e.Listener.Addr().(*net.TCPAddr).Port)
	with := func(c ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, Certificates: c}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	if got, err := status(t, with(client), url); got != 200 {
		t.Errorf("with a certificate: %d %v", got, err)
	}
	for name, c := range map[string]*http.Client{"without a certificate": with(), "of another authority": with(stranger)} {
		if got, err := status(t, c, url); err == nil {
			t.Errorf("%s: %d", name, got)
		}
	}
	if got, _ := status(t, http.DefaultClient, strings.Replace(url, "https", "http", 1)); got != 400 {
		t.Errorf("without TLS: %d", got)
	}
}

func TestCheckRefusesOpenDoors(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "ca").issue(t, dir, "server")
	token, short := filepath.Join(dir, "token"), filepath.Join(dir, "short")
	writeFile(t, token, "0123456789abcdef")
	writeFile(t, short, "123")
	file := func(name, text string) string {
		writeFile(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	const pair = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
	const users = "basic_auth_users: {ann: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi}\n"
	onlyTLS, onlyUsers, both := file("tls.yaml", pair), file("users.yaml", users), file("both.yaml", pair+users)
	world, local := listenAny(t, "0.0.0.0:0"), listenAny(t, "127.0.0.1:0")
	tests := []struct {
		name string
		e    Endpoint
		want string // in the error; "": none
	}{
		{"metrics only", Endpoint{Listener: world}, ""},
		{"loopback", Endpoint{Listener: local, Everything: true}, ""},
		{"everything, open", Endpoint{Listener: world, Everything: true}, "--api-token-file"},
		{"TLS, but anybody", Endpoint{Listener: world, Everything: true, Access: Access{WebConfig: onlyTLS}}, "--api-token-file"},
		{"users in the clear", Endpoint{Listener: world, Everything: true, Access: Access{WebConfig: onlyUsers}}, "tls_server_config"},
		{"token in the clear", Endpoint{Listener: world, Everything: true, Access: Access{TokenFile: token}}, "tls_server_config"},
		{"users", Endpoint{Listener: world, Everything: true, Access: Access{WebConfig: both}}, ""},
		{"token", Endpoint{Listener: world, Everything: true, Access: Access{WebConfig: onlyTLS, TokenFile: token}}, ""},
		{"token and users", Endpoint{Listener: world, Everything: true, Access: Access{WebConfig: both, TokenFile: token}}, "cannot bring both"},
		{"short token", Endpoint{Listener: local, Everything: true, Access: Access{TokenFile: short}}, "at least 16"},
		{"no token", Endpoint{Listener: local, Everything: true, Access: Access{TokenFile: dir + "/none"}}, "no such file"},
		{"unknown field", Endpoint{Listener: local, Everything: true, Access: Access{WebConfig: file("bad.yaml", "tls: {}\n")}}, "bad.yaml"},
		{"no certificate", Endpoint{Listener: local, Everything: true, Access: Access{WebConfig: file("nocert.yaml", "tls_server_config: {cert_file: x, key_file: y}\n")}}, "nocert.yaml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.e.Check("--api-listen")
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestUnixSocketIsForRootAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // longer than a socket's address has room for
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, SocketName)
	writeFile(t, name, "what a dead agent left")
	l, err := ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	t.Run("serve", func(t *testing.T) {
		serveOn(t, Endpoint{Listener: l, Everything: true})
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return DialUnix(ctx, dir) }
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
		if got, err := status(t, c, "http://qos-agent/api/v1/state"); got != 200 {
			t.Errorf("%d %v", got, err)
		}
	})
	if _, err := os.Stat(name); err == nil {
		t.Error("the socket stays")
	}
	writeFile(t, name, "the next agent's")
	_ = l.Close()
	if _, err := os.Stat(name); err != nil {
		t.Error("a second Close takes the next agent's socket")
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// authority is a certificate authority of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert, a.key = a.sign(t, dir, name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.pool.AddCert(a.cert)
	return a
}

// issue writes NAME.crt and NAME.key into dir.
func (a *authority) issue(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	a.sign(t, dir, name, &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (a *authority) sign(t *testing.T, dir, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// The examples are what an operator may start from: they are complete, and they let in whom they say.
func TestExamples(t *testing.T) {
	for _, name := range []string{"mtls.yaml", "users.yaml"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile("../../examples/access/" + name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			ca := newAuthority(t, dir, "ca")
			ca.issue(t, dir, "server")
			writeFile(t, filepath.Join(dir, name), string(text))
			e := Endpoint{Listener: listenAny(t, "0.0.0.0:0"), Everything: true, Access: Access{WebConfig: filepath.Join(dir, name)}}
			if err := e.Check("--api-listen"); err != nil {
				t.Fatal(err)
			}
			serveOn(t, e)
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool}, DisableKeepAlives: true}}
			url := fmt.Sprintf("https://127.0.0.1:%d/healthz", e.Listener.Addr().(*net.TCPAddr).Port)
			if got, err := status(t, c, url); name == "mtls.yaml" && err == nil || name == "users.yaml" && got != 401 {
				t.Errorf("a stranger gets %d %v", got, err)
			}
			if name == "users.yaml" {
				if got, err := status(t, c, url, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("oncall:change me"))); got != 200 {
					t.Errorf("the user gets %d %v", got, err)
				}
			}
		})
	}
}
