package kubeevents

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

// apiServer is a server with TLS that takes Events as strictly as Kubernetes does (ValidateEventCreate, validateV1EventSeries).
type apiServer struct {
	*httptest.Server
	t      *testing.T
	token  string
	mu     sync.Mutex
	status int // 0: create
	got    []map[string]any
	seen   int
}

func newAPIServer(t *testing.T) (*apiServer, Options) {
	a := &apiServer{t: t, token: "token-1"}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{URL: a.URL, TokenFile: filepath.Join(dir, "token"), CAFile: ca, Node: "node-1",
		UID: func(ns, name string) string { return "uid-of-" + ns + "-" + name }, Log: slog.New(slog.DiscardHandler)}
	a.writeToken(o.TokenFile, a.token)
	return a, o
}

func (a *apiServer) writeToken(file, token string) {
	a.t.Helper()
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *apiServer) set(status int, token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status, a.token = status, token
}

var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	qualified = regexp.MustCompile(`^[a-z0-9.-]+/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
)

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen++
	if r.Header.Get("Authorization") != "Bearer "+a.token {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	if a.status != 0 {
		http.Error(w, "no", a.status)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	if err := a.check(r, body); err != nil {
		a.t.Errorf("%v: %s", err, body)
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(body)
}

func (a *apiServer) check(r *http.Request, body []byte) error {
	var e map[string]any
	if err := json.Unmarshal(body, &e); err != nil {
		return err
	}
	known := map[string]bool{"apiVersion": true, "kind": true, "metadata": true, "eventTime": true, "series": true, "reportingController": true,
		"reportingInstance": true, "action": true, "reason": true, "regarding": true, "related": true, "note": true, "type": true}
	for k := range e {
		if !known[k] {
			return fmt.Errorf("strict decoding error: unknown field %q", k)
		}
	}
	text := func(k string) string { s, _ := e[k].(string); return s }
	meta, _ := e["metadata"].(map[string]any)
	about, _ := e["regarding"].(map[string]any)
	name, _ := meta["name"].(string)
	ns, _ := meta["namespace"].(string)
	if _, err := time.Parse("2006-01-02T15:04:05.000000Z", text("eventTime")); err != nil {
		return fmt.Errorf("eventTime: %w", err)
	}
	for what, ok := range map[string]bool{
		"method and path":     r.Method == http.MethodPost && r.URL.Path == "/apis/events.k8s.io/v1/namespaces/"+ns+"/events",
		"content type":        r.Header.Get("Content-Type") == "application/json",
		"version":             text("apiVersion") == "events.k8s.io/v1" && text("kind") == "Event",
		"name":                subdomain.MatchString(name) && len(name) <= 253,
		"namespace":           ns != "" && about["namespace"] == ns,
		"regarding":           about["kind"] == "Pod" && about["apiVersion"] == "v1" && about["name"] != "" && about["uid"] != "",
		"reportingController": qualified.MatchString(text("reportingController")),
		"reportingInstance":   text("reportingInstance") != "" && len(text("reportingInstance")) <= 128,
		"action":              text("action") != "" && len(text("action")) <= 128,
		"reason":              text("reason") != "" && len(text("reason")) <= 128,
		"note":                len(text("note")) <= 1024,
		"type":                text("type") == "Normal" || text("type") == "Warning",
	} {
		if !ok {
			return fmt.Errorf("invalid: %s", what)
		}
	}
	a.got = append(a.got, e)
	return nil
}

// cutOf is a decision to cut a pod.
func cutOf(pod string) *decisionlog.Entry {
	return &decisionlog.Entry{At: time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC), Kind: decisionlog.KindDecision, Owner: "cpu", Rule: "event-cut", Pod: pod, Victim: "shop/web",
		Old: "posture", New: "cores 1", Inputs: &decisionlog.Inputs{WaitSeconds: 0.0213, ObjectiveSeconds: 0.005, ShareRatio: 0.62}}
}

// feed lets p work through entries.
func feed(t *testing.T, p *Poster, entries ...*decisionlog.Entry) {
	t.Helper()
	for _, e := range entries {
		p.Sink(e)
	}
	for len(p.queue) > 0 {
		e := <-p.queue
		for _, ev := range p.events(&e) {
			p.post(t.Context(), ev)
		}
	}
}

func newPoster(t *testing.T, o Options) *Poster {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p.now = func() time.Time { return now }
	return p
}

func TestCutAndReturn(t *testing.T) {
	a, o := newAPIServer(t)
	p := newPoster(t, o)
	back := cutOf("jobs/spark")
	back.Rule, back.Old, back.New, back.Victim = "regrow", "cores 1", "posture", ""
	part := cutOf("jobs/spark")
	part.Rule, part.Old, part.New = "regrow", "cores 1", "cores 2"
	observed := cutOf("jobs/other")
	observed.Result = "observed"
	long := cutOf("jobs/" + strings.Repeat("x", 253))
	long.Victim = ""
	long.Owner = strings.Repeat("ü", 1000)
	feed(t, p, cutOf("jobs/spark"), part, back, observed, &decisionlog.Entry{Kind: "write", Pod: "jobs/spark"}, long)
	var reasons []string
	for _, e := range a.got {
		reasons = append(reasons, e["reason"].(string)+" "+e["type"].(string))
	}
	if got := strings.Join(reasons, ", "); got != "QoSHeldBack Warning, QoSInterference Warning, QoSGivenBack Normal, QoSHeldBack Warning" {
		t.Fatal(got)
	}
	if note := a.got[0]["note"]; note != "cpu: posture -> cores 1 by rule event-cut (wait 21.3ms, promised 5ms, share 62%), for shop/web" {
		t.Errorf("%s", note)
	}
	if about := a.got[1]["regarding"].(map[string]any); about["name"] != "web" || about["uid"] != "uid-of-shop-web" {
		t.Errorf("%v", about)
	}
}

func TestLimits(t *testing.T) {
	a, o := newAPIServer(t)
	p := newPoster(t, o)
	now := time.Now()
	p.now = func() time.Time { return now }
	feed(t, p, cutOf("jobs/spark"), cutOf("jobs/spark"), cutOf("jobs/spark"))
	if len(a.got) != 2 { // the pod's and its victim's
		t.Errorf("%d events within a minute, want 2", len(a.got))
	}
	now = now.Add(again)
	feed(t, p, cutOf("jobs/spark"))
	if len(a.got) != 4 {
		t.Errorf("%d events after a minute, want 4", len(a.got))
	}
	for i := range 50 {
		feed(t, p, cutOf(fmt.Sprint("jobs/other-", i)))
	}
	if n := len(a.got); n > 4+burst {
		t.Errorf("%d events at once, beyond a burst of %d", n, burst)
	}
	posted, dropped := p.Counts()
	if posted != uint64(len(a.got)) || dropped == 0 {
		t.Errorf("posted %d, dropped %d, the server has %d", posted, dropped, len(a.got))
	}
}

// Tokens change; a server that refuses or is away costs events and nothing else.
func TestTrouble(t *testing.T) {
	a, o := newAPIServer(t)
	var log strings.Builder
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	p := newPoster(t, o)
	a.set(0, "token-2")
	feed(t, p, cutOf("jobs/a"))
	if !strings.Contains(log.String(), "needs the verb create on events of group events.k8s.io") {
		t.Errorf("log: %s", &log)
	}
	a.writeToken(o.TokenFile, "token-2")
	feed(t, p, cutOf("jobs/b"))
	if posted, _ := p.Counts(); posted == 0 {
		t.Error("the new token is not used")
	}
	a.set(http.StatusInternalServerError, "token-2")
	feed(t, p, cutOf("jobs/c"))
	a.Close()
	feed(t, p, cutOf("jobs/d"))
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d complaints:\n%s", n, &log)
	}
}

func TestSinkNeverBlocks(t *testing.T) {
	_, o := newAPIServer(t)
	p := newPoster(t, o)
	for range 10 * queueLen {
		p.Sink(cutOf("jobs/a"))
	}
	if _, dropped := p.Counts(); dropped != 9*queueLen {
		t.Errorf("dropped %d", dropped)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.Run(ctx); close(done) }()
	cancel()
	<-done
}

func TestInClusterSaysWhatIsMissing(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Error(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	if _, err := os.Stat(account); err == nil {
		t.Skip("needs a machine that is no pod: there is a service account")
	}
	if _, err := InCluster(); err == nil || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Error(err)
	}
}
