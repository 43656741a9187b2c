// Package apiserver tests against a real kube-apiserver, compiled into the test with a real etcd: what the chart renders is accepted by
// it, and the Events of --kube-events arrive with the one right that the chart gives. It is a module of its own and no part of
// `make test`: compiling it takes minutes (make test-apiserver).
package apiserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/kubeevents"
)

// namespace and account are those of the golden renders.
const namespace, account = "qos-agent", "qos-agent"

func TestChartAndEvents(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	s := start(t, ctx)
	admin, err := kubernetes.NewForConfig(s.admin)
	if err != nil {
		t.Fatal(err)
	}
	create := func(ns string) {
		t.Helper()
		if _, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create(namespace)
	create("jobs")
	create("shop")

	t.Run("what the chart renders by default", func(t *testing.T) { s.apply(t, ctx, "default") })
	out := new(bytes.Buffer)
	poster := func() *kubeevents.Poster {
		t.Helper()
		answer, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(answer.Status.Token), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := kubeevents.New(kubeevents.Options{
			URL: s.admin.Host, TokenFile: file, CAFile: s.admin.CAFile, Node: "node-1",
			UID: func(string, string) string { return "7f1b" }, Log: slog.New(slog.NewTextHandler(out, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		go p.Run(ctx)
		return p
	}
	cut := decisionlog.Entry{
		Kind: decisionlog.KindDecision, At: time.Now(), Pod: "jobs/batch", Victim: "shop/web", Owner: "cpu", Rule: control.RuleEventCut, Old: "4 CPUs", New: "2 CPUs",
	}
	ended := func(p *kubeevents.Poster) (posted, dropped uint64) {
		t.Helper()
		for posted+dropped < 2 {
			if ctx.Err() != nil {
				t.Fatal("events were neither posted nor dropped")
			}
			time.Sleep(20 * time.Millisecond)
			posted, dropped = p.Counts()
		}
		return posted, dropped
	}

	t.Run("no right by default", func(t *testing.T) {
		p := poster()
		p.Sink(&cut)
		if posted, _ := ended(p); posted != 0 {
			t.Errorf("%d events were posted", posted)
		}
		if !strings.Contains(out.String(), "the API server refuses (403 Forbidden)") {
			t.Errorf("log: %s", out)
		}
	})
	t.Run("what the chart renders with everything on", func(t *testing.T) { s.apply(t, ctx, "everything") })
	t.Run("events", func(t *testing.T) {
		p := poster()
		p.Sink(&cut)
		if _, dropped := ended(p); dropped != 0 {
			t.Fatalf("%d events were dropped: %s", dropped, out)
		}
		for _, want := range []struct{ ns, reason, pod, related string }{{"jobs", "QoSHeldBack", "batch", "web"}, {"shop", "QoSInterference", "web", "batch"}} {
			list, err := admin.EventsV1().Events(want.ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
				return e.Reason == want.reason && e.Regarding.Name == want.pod && e.Regarding.UID == "7f1b" && e.Related.Name == want.related && e.ReportingInstance == "node-1"
			}) {
				t.Errorf("events of %s: %+v", want.ns, list.Items)
			}
		}
	})
	t.Run("nothing else is allowed", func(t *testing.T) {
		agent := rest.CopyConfig(s.admin)
		answer, err := admin.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		agent.BearerToken = answer.Status.Token
		client, err := kubernetes.NewForConfig(agent)
		if err != nil {
			t.Fatal(err)
		}
		_, pods := client.CoreV1().Pods("jobs").List(ctx, metav1.ListOptions{})
		_, events := client.EventsV1().Events("jobs").List(ctx, metav1.ListOptions{})
		_, secrets := client.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{})
		for what, err := range map[string]error{"pods": pods, "events": events, "secrets": secrets} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("the agent's account lists %s: %v", what, err)
			}
		}
	})
}

// server is a running API server.
type server struct{ admin *rest.Config }

// start starts etcd and the API server, which end with the process: neither can be started a second time in one.
func start(t *testing.T, ctx context.Context) *server {
	t.Helper()
	dir := t.TempDir()
	store := embed.NewConfig()
	store.Dir, store.LogLevel = filepath.Join(dir, "etcd"), "error"
	client, peer := address(t), address(t)
	store.ListenClientUrls, store.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	store.ListenPeerUrls, store.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	store.InitialCluster = store.InitialClusterFromName(store.Name)
	etcd, err := embed.StartEtcd(store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	select {
	case <-etcd.Server.ReadyNotify():
	case <-ctx.Done():
		t.Fatal("etcd does not start")
	}

	key := filepath.Join(dir, "account.key")
	tokens := filepath.Join(dir, "tokens.csv")
	secure := address(t)
	if err := errors.Join(writeKey(key), os.WriteFile(tokens, []byte("admin-token,admin,0,system:masters\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := app.NewAPIServerCommand()
	cmd.SetArgs([]string{
		"--etcd-servers=" + client.String(), "--bind-address=127.0.0.1", "--secure-port=" + secure.Port(), "--cert-dir=" + filepath.Join(dir, "certs"),
		"--authorization-mode=RBAC", "--token-auth-file=" + tokens, "--service-cluster-ip-range=10.0.0.0/24",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key, "--service-account-signing-key-file=" + key,
		"--disable-admission-plugins=ServiceAccount", "--v=0",
	})
	cmd.SetOut(io.Discard)
	failed := make(chan error, 1)
	go func() { failed <- cmd.ExecuteContext(ctx) }()
	s := &server{&rest.Config{Host: "https://" + secure.Host, BearerToken: "admin-token", TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "certs", "apiserver.crt")}}}
	for {
		err := s.ready(ctx)
		if err == nil {
			return s
		}
		select {
		case err := <-failed:
			t.Fatalf("the API server ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("the API server is not ready: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *server) ready(ctx context.Context) error {
	if _, err := os.Stat(s.admin.CAFile); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(s.admin)
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// apply applies a golden render of the chart as `kubectl apply --server-side` does, with unknown fields refused. Kinds that come with
// Prometheus's operator are left out: the server does not know them.
func (s *server) apply(t *testing.T, ctx context.Context, name string) {
	text, err := os.ReadFile(filepath.Join("../../deploy/chart/testdata", name+".golden.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(s.admin)
	if err != nil {
		t.Fatal(err)
	}
	known, err := kubernetes.NewForConfig(s.admin)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(known.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	applied := map[string]int{}
	for dec := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var o unstructured.Unstructured
		if err := dec.Decode(&o.Object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) == 0 || o.GroupVersionKind().Group == "monitoring.coreos.com" {
			continue
		}
		m, err := mapper.RESTMapping(o.GroupVersionKind().GroupKind(), o.GroupVersionKind().Version)
		if err != nil {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
			continue
		}
		var to dynamic.ResourceInterface = client.Resource(m.Resource)
		if m.Scope.Name() == meta.RESTScopeNameNamespace {
			to = client.Resource(m.Resource).Namespace(o.GetNamespace())
		}
		data, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		force := true
		_, err = to.Patch(ctx, o.GetName(), "application/apply-patch+yaml", data, metav1.PatchOptions{FieldManager: "test", Force: &force, FieldValidation: "Strict"})
		if err != nil {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
			continue
		}
		applied[o.GetKind()]++
	}
	t.Logf("applied %v", applied)
	for _, kind := range []string{"DaemonSet", "ConfigMap", "ServiceAccount", "NetworkPolicy"} {
		if applied[kind] == 0 {
			t.Errorf("no %s was applied", kind)
		}
	}
}

func address(t *testing.T) url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

// writeKey writes a key for signing tokens.
func writeKey(file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
