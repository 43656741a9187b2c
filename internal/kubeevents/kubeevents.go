// Package kubeevents tells Kubernetes what was done to a pod, as Events of the pod: `kubectl describe pod` shows them. It is off by
// default, because it is the only thing for which the agent needs the API server.
//
// Events are few by design: a cut, its end, and the interference that led to it, each at most once a minute a pod and within a budget
// for the node. An API server that is slow or away costs events, never decisions.
package kubeevents

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/human"
)

const (
	// controller is who reports, a qualified name.
	controller = "qos-agent.io/agent"
	// account is where a service account is mounted.
	account = "/var/run/secrets/kubernetes.io/serviceaccount"

	queueLen = 64
	// again is the least time between two events of the same reason for a pod.
	again = time.Minute
	// every and burst are the budget of a node.
	every = 6 * time.Second
	burst = 10
	// requestTimeout bounds a request, and complainEvery how often the log tells that they fail.
	requestTimeout = 5 * time.Second
	complainEvery  = 10 * time.Minute
	// Limits of the API (see ValidateEventCreate in Kubernetes).
	maxNote     = 1024
	maxInstance = 128
	maxName     = 253
)

// Options of a Poster. All but CA are required.
type Options struct {
	URL       string // of the API server
	TokenFile string // read anew for every request: tokens are short-lived
	CAFile    string // who signs the server's certificate; "": the system's authorities
	Node      string
	// UID gives the UID of a running pod; "" if it is not known. It may be called from any goroutine.
	UID func(namespace, name string) string
	Log *slog.Logger
}

// InCluster fills in what a pod with a service account finds.
func InCluster() (Options, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Options{}, errors.New("--kube-events: KUBERNETES_SERVICE_HOST and _PORT are not set: this is for a pod with a service account")
	}
	o := Options{URL: "https://" + net.JoinHostPort(host, port), TokenFile: account + "/token", CAFile: account + "/ca.crt"}
	if _, err := os.Stat(o.TokenFile); err != nil {
		return Options{}, fmt.Errorf("--kube-events: no service account token: set automountServiceAccountToken: %w", err)
	}
	return o, nil
}

// Poster posts events.
type Poster struct {
	o       Options
	client  *http.Client
	queue   chan decisionlog.Entry
	budget  *rate.Limiter
	last    map[string]time.Time // by reason and pod
	now     func() time.Time
	seq     uint64
	quiet   time.Time // no complaint before
	posted  atomic.Uint64
	dropped atomic.Uint64
}

// New makes a poster. Run starts it.
func New(o Options) (*Poster, error) {
	transport := &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("kube events: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kube events: %s holds no certificate", o.CAFile)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &Poster{
		o: o, client: &http.Client{Transport: transport, Timeout: requestTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		queue: make(chan decisionlog.Entry, queueLen), budget: rate.NewLimiter(rate.Every(every), burst), last: map[string]time.Time{}, now: time.Now,
	}, nil
}

// Sink takes an entry of the decision log. It never waits.
func (p *Poster) Sink(e *decisionlog.Entry) {
	if e.Kind != decisionlog.KindDecision || e.Result == "observed" || e.Pod == "" {
		return
	}
	select {
	case p.queue <- *e:
	default:
		p.dropped.Add(1)
	}
}

// Counts says how many events were posted, and how many were not because of a queue, a limit or the API server.
func (p *Poster) Counts() (posted, dropped uint64) { return p.posted.Load(), p.dropped.Load() }

// Run posts until ctx is done.
func (p *Poster) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-p.queue:
			for _, ev := range p.events(&e) {
				p.post(ctx, ev)
			}
		}
	}
}

// event is an Event of events.k8s.io/v1.
type event struct {
	APIVersion          string     `json:"apiVersion"`
	Kind                string     `json:"kind"`
	Metadata            metadata   `json:"metadata"`
	EventTime           string     `json:"eventTime"`
	ReportingController string     `json:"reportingController"`
	ReportingInstance   string     `json:"reportingInstance"`
	Action              string     `json:"action"`
	Reason              string     `json:"reason"`
	Regarding           reference  `json:"regarding"`
	Related             *reference `json:"related,omitempty"`
	Note                string     `json:"note"`
	Type                string     `json:"type"` // Normal or Warning
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
}

// events makes of a decision what is worth telling: nothing, or one event for the pod and one for its victim.
func (p *Poster) events(e *decisionlog.Entry) []*event {
	pod, ok := p.reference(e.Pod)
	if !ok {
		return nil
	}
	change := fmt.Sprintf("%s: %s -> %s by rule %s", e.Owner, e.Old, e.New, e.Rule)
	if in := human.Inputs(e.Inputs); in != "" {
		change += " (" + in + ")"
	}
	switch e.Rule {
	case control.RuleEventCut, control.RuleTickCut, control.RuleJointCut, control.RuleWidenCut:
		victim, ok := p.reference(e.Victim)
		if !ok {
			return []*event{p.event(pod, nil, e, "QoSHeldBack", "HoldBack", "Warning", change)}
		}
		what := fmt.Sprintf("waits for CPUs while %s runs", e.Pod)
		if in := human.Inputs(e.Inputs); in != "" {
			what += " (" + in + ")"
		}
		return []*event{
			p.event(pod, &victim, e, "QoSHeldBack", "HoldBack", "Warning", change+", for "+e.Victim),
			p.event(victim, &pod, e, "QoSInterference", "Protect", "Warning", what),
		}
	case control.RuleRegrow, control.RuleTakeBack, control.RuleRelease, control.RulePolicy:
		if e.New == (control.Grant{}).String() { // all of it
			return []*event{p.event(pod, nil, e, "QoSGivenBack", "GiveBack", "Normal", change)}
		}
	}
	return nil
}

// reference is a pod of Kubernetes.
func (p *Poster) reference(key string) (reference, bool) {
	ns, name, ok := strings.Cut(key, "/")
	if !ok || ns == "" || name == "" {
		return reference{}, false
	}
	return reference{APIVersion: "v1", Kind: "Pod", Namespace: ns, Name: name, UID: p.o.UID(ns, name)}, true
}

func (p *Poster) event(about reference, related *reference, e *decisionlog.Entry, reason, action, kind, note string) *event {
	p.seq++
	suffix := "." + strconv.FormatInt(e.At.UnixNano(), 36) + strconv.FormatUint(p.seq, 36)
	return &event{
		APIVersion: "events.k8s.io/v1", Kind: "Event",
		Metadata:            metadata{Name: strings.TrimRight(cut(about.Name, maxName-len(suffix)), "-.") + suffix, Namespace: about.Namespace},
		EventTime:           e.At.UTC().Format("2006-01-02T15:04:05.000000Z"),
		ReportingController: controller, ReportingInstance: cut(p.o.Node, maxInstance),
		Action: action, Reason: reason, Regarding: about, Related: related, Note: cut(note, maxNote), Type: kind,
	}
}

// cut keeps at most n bytes, and no half of a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// allowed keeps to the limits.
func (p *Poster) allowed(ev *event) bool {
	now := p.now()
	key := ev.Reason + " " + ev.Regarding.Namespace + "/" + ev.Regarding.Name
	if last, ok := p.last[key]; ok && now.Sub(last) < again {
		return false
	}
	if !p.budget.AllowN(now, 1) {
		return false
	}
	for k, t := range p.last {
		if now.Sub(t) >= again {
			delete(p.last, k)
		}
	}
	p.last[key] = now
	return true
}

func (p *Poster) post(ctx context.Context, ev *event) {
	if !p.allowed(ev) {
		p.dropped.Add(1)
		return
	}
	if err := p.send(ctx, ev); err != nil {
		p.dropped.Add(1)
		if now := p.now(); now.After(p.quiet) && ctx.Err() == nil {
			p.quiet = now.Add(complainEvery)
			p.o.Log.Warn("events of pods are not told to Kubernetes", "error", err)
		}
		return
	}
	p.posted.Add(1)
}

func (p *Poster) send(ctx context.Context, ev *event) error {
	token, err := os.ReadFile(p.o.TokenFile)
	if err != nil {
		return fmt.Errorf("service account: %w", err)
	}
	body, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	target := p.o.URL + "/apis/events.k8s.io/v1/namespaces/" + url.PathEscape(ev.Metadata.Namespace) + "/events"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "qos-agent")
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 2000)) // for the message only
	switch {
	case resp.StatusCode == http.StatusCreated:
		return nil
	case resp.StatusCode == http.StatusForbidden, resp.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("the API server refuses (%s): the service account needs the verb create on events of group events.k8s.io", resp.Status)
	}
	return fmt.Errorf("the API server says %s: %s", resp.Status, strings.Join(strings.Fields(string(text)), " "))
}
