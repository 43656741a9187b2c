package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func get(t *testing.T, s *Server, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func recorded(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w
}

func TestState(t *testing.T) {
	w := get(t, newTestServer(t, fixture(), &Instruments{}), "/api/v1/state")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", w.Code, w.Header().Get("Content-Type"))
	}
	golden(t, "testdata/state.json", w.Body.Bytes())
}

// Readers of the API may range over every list without asking whether it is there.
func TestStateHasNoNullLists(t *testing.T) {
	p := &fakeProvider{state: &State{Pods: []Pod{{}}}}
	body := get(t, newTestServer(t, p, &Instruments{}), "/api/v1/state").Body.String()
	if strings.Contains(body, "null") {
		t.Error(body)
	}
	if p.state.Pods[0].Containers != nil || p.state.Notes != nil {
		t.Error("the provider's value was changed")
	}
}

func TestRoutes(t *testing.T) {
	alive := Health{SinceTick: 50 * time.Millisecond, Interval: 100 * time.Millisecond}
	stuck := Health{SinceTick: 6 * time.Second, Interval: 100 * time.Millisecond}
	slow := Health{SinceTick: 40 * time.Second, Interval: 10 * time.Second}
	with := func(h Health, c ...Condition) *fakeProvider {
		h.Conditions = c
		return &fakeProvider{health: h, state: &State{}, metrics: &Metrics{}}
	}
	good := Condition{Name: "policy", OK: true, Required: true, Detail: "default"}
	bad := Condition{Name: "pods", Required: true, Detail: "never listed"}
	lost := Condition{Name: "ebpf", Detail: "no BTF"}
	tests := []struct {
		name   string
		p      *fakeProvider
		target string
		status int
		body   string
	}{
		{"nothing there", with(alive), "/nothing", 404, ""},
		{"alive", with(alive), "/healthz", 200, "ok: last tick 50ms ago, bound 5s\n"},
		{"stuck", with(stuck), "/healthz", 503, "stuck: last tick 6s ago, bound 5s\n"},
		{"long interval", with(slow), "/healthz", 200, "ok: last tick 40s ago, bound 50s\n"},
		{"ready", with(alive, good), "/readyz", 200, "ready\nok        loop: ticks every 100ms\nok        policy: default\n"},
		{"degraded", with(alive, good, lost), "/readyz", 200, "degraded\nok        loop: ticks every 100ms\nok        policy: default\ndegraded  ebpf: no BTF\n"},
		{"not ready", with(alive, lost, bad), "/readyz", 503, "not ready\nok        loop: ticks every 100ms\ndegraded  ebpf: no BTF\nmissing   pods: never listed\n"},
		{"not ready when stuck", with(stuck, good), "/readyz", 503, "not ready\nmissing   loop: last tick 6s ago, bound 5s\nok        policy: default\n"},
		{"state without the loop", &fakeProvider{err: errHung}, "/api/v1/state", 503, "the loop does not answer: no answer\n"},
		{"metrics without the loop", &fakeProvider{err: errHung}, "/metrics", 200, "qosagent_snapshot_success 0"},
		{"metrics with runtime and process", with(alive), "/metrics", 200, "process_cpu_seconds_total"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := get(t, newTestServer(t, tt.p, &Instruments{}), tt.target)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.body) {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body.String(), tt.status, tt.body)
			}
		})
	}
}

func TestReadyzJSON(t *testing.T) {
	s := newTestServer(t, fixture(), &Instruments{})
	for name, w := range map[string]*httptest.ResponseRecorder{
		"query":  get(t, s, "/readyz?format=json"),
		"accept": get(t, s, "/readyz", "Accept", "application/json, */*;q=0.5"),
	} {
		var got readiness
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Status != "degraded" || len(got.Conditions) != 4 || got.Conditions[3].Name != "psi" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	s := newTestServer(t, fixture(), &Instruments{})
	for _, target := range []string{"/", "/metrics", "/healthz", "/readyz", "/api/v1/state", "/api/v1/decisions", "/nothing"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"} {
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest(method, target, nil))
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, target, w.Code, w.Header().Get("Allow"))
			}
		}
	}
}

// slowProvider lets a test hold requests inside.
type slowProvider struct {
	fakeProvider
	inside  chan struct{}
	release chan struct{}
}

func (p *slowProvider) State(context.Context) (*State, error) {
	p.inside <- struct{}{}
	<-p.release
	return &State{}, nil
}

func TestStateRequestsAreBounded(t *testing.T) {
	p := &slowProvider{inside: make(chan struct{}), release: make(chan struct{})}
	s := newTestServer(t, p, &Instruments{})
	var wg sync.WaitGroup
	for range maxStates {
		wg.Go(func() {
			if w := get(t, s, "/api/v1/state"); w.Code != http.StatusOK {
				t.Errorf("held request: %d", w.Code)
			}
		})
		<-p.inside
	}
	if w := get(t, s, "/api/v1/state"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one too many: %d", w.Code)
	}
	if w := get(t, s, "/healthz"); w.Code != http.StatusOK {
		t.Errorf("health behind slow readers: %d", w.Code)
	}
	close(p.release)
	wg.Wait()
}

func TestServe(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := newTestServer(t, fixture(), &Instruments{})
	go func() { done <- s.Serve(ctx, Endpoint{Listener: l, Everything: true}) }()

	if _, err := Listen(l.Addr().String()); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "another program has this port") {
		t.Errorf("port in use: %v", err)
	}
	resp, err := http.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "ok") {
		t.Errorf("%d %q %v", resp.StatusCode, body, err)
	}
	_ = resp.Body.Close()
	stop()
	if err := <-done; err != nil {
		t.Errorf("after stop: %v", err)
	}
}

// A running request is answered although the server is being stopped.
func TestServeLetsRequestsFinish(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &slowProvider{inside: make(chan struct{}), release: make(chan struct{})}
	s, err := New(Options{Provider: p, Decisions: &fakeDecisions{}, Page: http.NotFoundHandler(), Instruments: &Instruments{}, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done, status := make(chan error, 1), make(chan int, 1)
	go func() { done <- s.Serve(ctx, Endpoint{Listener: l, Everything: true}) }()
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/api/v1/state")
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		_ = resp.Body.Close()
		status <- resp.StatusCode
	}()
	<-p.inside
	stop()
	close(p.release)
	if got := <-status; got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListenRefusesNonsense(t *testing.T) {
	for _, addr := range []string{"nonsense", "127.0.0.1:99999", "256.0.0.1:1"} {
		if l, err := Listen(addr); err == nil {
			_ = l.Close()
			t.Errorf("%s: no error", addr)
		} else if !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
