// Package apiserver tests against a real API server of Kubernetes, with the real kubectl and helm, all compiled from the module proxy: the
// commands of docs/operating.md do what they say, whatever is in deploy/ and examples/ is accepted, and the Events of --kube-events arrive
// with the one right that the chart gives for them. It is a module of its own and no part of `make test`: compiling all that takes minutes
// the first time (make test-apiserver).
package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/kubeevents"
)

const (
	top = "../.." // of the repository, where commands of the docs are run
	// patience bounds the test once everything is compiled; the machine may be busy.
	patience = 8 * time.Minute
)

func TestRollOut(t *testing.T) {
	c := start(t)
	c.documented("kubectl create namespace qos-agent")
	c.documented("kubectl label namespace qos-agent pod-security.kubernetes.io/enforce=privileged")
	c.documented("helm install qos-agent deploy/helm/qos-agent -n qos-agent --set image.repository=REGISTRY/qos-agent")
	if out := c.documented("kubectl -n qos-agent get daemonset"); !strings.Contains(out, "qos-agent") {
		t.Errorf("no DaemonSet:\n%s", out)
	}

	t.Run("the pod is admitted where the level is privileged", func(t *testing.T) {
		c := c.in(t)
		c.run("kubectl create -f -", c.podOf("qos-agent", "qos-agent")...)
		c.run("kubectl create namespace strict")
		c.run("kubectl create serviceaccount qos-agent -n strict")
		c.run("kubectl label namespace strict pod-security.kubernetes.io/enforce=baseline")
		_, err := c.try("kubectl create --dry-run=server -f -", c.podOf("qos-agent", "strict"))
		for _, want := range []string{`violates PodSecurity "baseline`, "non-default capabilities", "hostPath volumes"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in the answer of a namespace with the level baseline: %v", want, err)
			}
		}
	})

	pods := map[string]string{} // UIDs by name
	for _, pod := range []string{"shop/web", "jobs/batch"} {
		ns, name, _ := strings.Cut(pod, "/")
		c.run("kubectl create namespace " + ns)
		c.run("kubectl create serviceaccount default -n " + ns) // a controller's work, and none runs here
		c.run("kubectl run " + name + " -n " + ns + " --image=nothing")
		pods[pod] = c.run("kubectl get pod " + name + " -n " + ns + " -o jsonpath={.metadata.uid}")
	}
	t.Run("no right to post events by default", func(t *testing.T) {
		c := c.in(t)
		posted, dropped, log := c.postCut(pods)
		if posted != 0 || dropped != 2 || !strings.Contains(log, "the API server refuses (403 Forbidden)") {
			t.Errorf("%d posted, %d dropped\n%s", posted, dropped, log)
		}
	})
	t.Run("kubeEvents", func(t *testing.T) {
		c := c.in(t)
		c.run("helm upgrade qos-agent deploy/helm/qos-agent -n qos-agent --set kubeEvents=true")
		if posted, dropped, log := c.postCut(pods); posted != 2 || dropped != 0 {
			t.Fatalf("%d posted, %d dropped\n%s", posted, dropped, log)
		}
		for pod, want := range map[string]string{"jobs/batch": "QoSHeldBack", "shop/web": "QoSInterference"} {
			ns, name, _ := strings.Cut(pod, "/")
			out := c.run("kubectl describe pod " + name + " -n " + ns)
			_, events, _ := strings.Cut(out, "Events:")
			if !strings.Contains(events, want) || !strings.Contains(events, "qos-agent.io/agent") {
				t.Errorf("kubectl describe pod %s does not tell of %s:\n%s", pod, want, out)
			}
			t.Logf("kubectl describe pod %s:\nEvents:%s", pod, events)
		}
	})
	t.Run("and no other right", func(t *testing.T) {
		c := c.in(t)
		may := func(account string) (rights []string) {
			for line := range strings.Lines(c.run("kubectl auth can-i --list --no-headers -n jobs --as=system:serviceaccount:" + account)) {
				rights = append(rights, strings.Join(strings.Fields(line), " "))
			}
			return rights
		}
		everybody := may("jobs:default") // discovery, health, "who am I"
		more := slices.DeleteFunc(may("qos-agent:qos-agent"), func(right string) bool { return slices.Contains(everybody, right) })
		if len(everybody) == 0 || !slices.Equal(more, []string{"events.events.k8s.io [] [] [create]"}) {
			t.Errorf("beyond what every account may, the agent's may %q", more)
		}
	})

	t.Run("pools", func(t *testing.T) {
		c := c.in(t)
		c.run("helm upgrade qos-agent deploy/helm/qos-agent -n qos-agent -f examples/kubernetes/pools.values.yaml")
		if got := c.run("kubectl -n qos-agent get daemonset -o name"); got != "daemonset.apps/qos-agent\ndaemonset.apps/qos-agent-batch" {
			t.Errorf("DaemonSets: %s", got)
		}
	})
	t.Run("with everything that the chart has", func(t *testing.T) {
		c := c.in(t)
		// As the operator's own Makefile makes them; it publishes its types as a module, and the definitions not.
		c.run("cd deploy && GOFLAGS=-mod=mod go tool controller-gen crd:crdVersions=v1,maxDescLen=0 output:crd:dir=" + c.dir + "/crd" +
			" paths=github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1")
		c.run("kubectl create -f " + c.dir + "/crd")
		c.run("kubectl wait --for=condition=Established --timeout=1m crd --all")
		c.run("helm upgrade qos-agent deploy/helm/qos-agent -n qos-agent -f deploy/chart/testdata/everything.values.yaml --set prometheusRule.enabled=true --set dashboards.enabled=true")
		if got := c.run("kubectl -n qos-agent get podmonitors,servicemonitors,prometheusrules -o name"); strings.Count(got, "\n") != 2 {
			t.Errorf("of Prometheus's operator: %s", got)
		}
	})
	t.Run("uninstall leaves nothing", func(t *testing.T) {
		c := c.in(t)
		c.documented("helm uninstall qos-agent -n qos-agent")
		kinds := strings.ReplaceAll(c.run("kubectl api-resources --verbs=list,delete -o name"), "\n", ",")
		if left := c.run("kubectl get " + kinds + " -A -o name -l app.kubernetes.io/instance=qos-agent"); left != "pod/qos-agent" { // which we have made
			t.Errorf("there is left: %s", left)
		}
	})

	t.Run("kustomize and examples", func(t *testing.T) {
		c := c.in(t)
		c.documented("kubectl apply -k deploy/kustomize/base")
		c.run("kubectl apply -k deploy/kustomize/overlays/enforce")
		if got := c.run("kubectl -n qos-agent get daemonset qos-agent -o jsonpath={.spec.template.spec.containers[0].args}"); !strings.Contains(got, `"--mode=enforce"`) {
			t.Errorf("the overlay enforce has %s", got)
		}
		c.run("kubectl apply -f deploy/tune/")
		for _, verb := range []string{"apply", "delete"} {
			c.run("kubectl " + verb + " -f examples/kubernetes/restore-daemonset.yaml")
		}
	})
}

// cluster is a running API server, and the programs to talk to it with.
type cluster struct {
	t    testing.TB
	ctx  context.Context
	dir  string
	bin  string
	logs string
}

// start compiles what is not in the cache yet, and starts the server.
func start(t *testing.T) *cluster {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, ctx: t.Context(), dir: t.TempDir(), bin: filepath.Join(cache, "qos-agent", "apiserver")}
	for name, pkg := range map[string]string{"server": "./server", "kubectl": "k8s.io/kubernetes/cmd/kubectl", "helm": "helm.sh/helm/v3/cmd/helm"} {
		cmd := exec.CommandContext(c.ctx, "go", "build", "-mod=mod", "-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+c.version("k8s.io/kubernetes"), "-o", filepath.Join(c.bin, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	c.ctx, c.logs = ctx, filepath.Join(c.dir, "server.log")
	log, err := os.Create(c.logs)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	server := exec.Command(filepath.Join(c.bin, "server"), c.dir)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		_ = server.Process.Signal(os.Interrupt) // it may have ended
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = server.Process.Kill()
		}
	})
	for {
		if out, err := c.try("kubectl get --raw=/readyz", nil); err == nil && out == "ok" {
			t.Logf("%s", c.run("kubectl version"))
			return c
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the API server ended: %v\n%s", err, c.tail())
		case <-ctx.Done():
			t.Fatalf("the API server is not ready\n%s", c.tail())
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// in is the cluster for a part of the test.
func (c *cluster) in(t testing.TB) *cluster {
	part := *c
	part.t = t
	return &part
}

// tail is the end of the server's log.
func (c *cluster) tail() []byte {
	text, _ := os.ReadFile(c.logs) // only to say more
	return text[max(0, len(text)-4000):]
}

// try runs a command line at the top of the repository, with our kubectl and helm. What it says on stderr is in the error.
func (c *cluster) try(command string, stdin []byte) (string, error) {
	cmd := exec.CommandContext(c.ctx, "sh", "-c", command)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stderr = top, bytes.NewReader(stdin), &stderr
	cmd.Env = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"), "KUBECONFIG="+filepath.Join(c.dir, "kubeconfig"), "KUBECACHEDIR="+c.dir+"/cache",
		"HELM_CACHE_HOME="+c.dir+"/helm", "HELM_CONFIG_HOME="+c.dir+"/helm", "HELM_DATA_HOME="+c.dir+"/helm")
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// run is try for what has to work.
func (c *cluster) run(command string, stdin ...byte) string {
	c.t.Helper()
	out, err := c.try(command, stdin)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// documented is run for a command that docs/operating.md has, word by word.
func (c *cluster) documented(command string) string {
	c.t.Helper()
	docs, err := os.ReadFile(filepath.Join(top, "docs/operating.md"))
	if err != nil || !bytes.Contains(docs, []byte(command)) {
		c.t.Errorf("docs/operating.md does not say: %s (%v)", command, err)
	}
	return c.run(command)
}

// podOf is the pod that a DaemonSet's controller would make.
func (c *cluster) podOf(daemonSet, namespace string) []byte {
	c.t.Helper()
	var ds struct {
		Spec struct {
			Template struct {
				Metadata map[string]any `json:"metadata"`
				Spec     map[string]any `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(c.run("kubectl get daemonset "+daemonSet+" -n qos-agent -o json")), &ds); err != nil {
		c.t.Fatal(err)
	}
	pod := ds.Spec.Template
	pod.Metadata["name"], pod.Metadata["namespace"] = daemonSet, namespace
	text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": pod.Metadata, "spec": pod.Spec})
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

// postCut has a cut of jobs/batch for shop/web told by the agent's own code with the token of its service account, and says what became
// of the two events.
func (c *cluster) postCut(uids map[string]string) (posted, dropped uint64, log string) {
	c.t.Helper()
	token := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(c.run("kubectl create token qos-agent -n qos-agent")), 0o600); err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := kubeevents.New(kubeevents.Options{
		URL: c.run("kubectl config view -o jsonpath={.clusters[0].cluster.server}"), TokenFile: token, CAFile: filepath.Join(c.dir, "certs/apiserver.crt"),
		Node: "node-1", UID: func(ns, name string) string { return uids[ns+"/"+name] }, Log: slog.New(slog.NewTextHandler(&out, nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	ended := make(chan struct{})
	go func() { p.Run(ctx); close(ended) }()
	p.Sink(&decisionlog.Entry{
		Kind: decisionlog.KindDecision, At: time.Now(), Pod: "jobs/batch", Victim: "shop/web", Owner: "cpu", Rule: control.RuleEventCut, Old: "posture", New: "2 CPUs",
		Inputs: &decisionlog.Inputs{WaitSeconds: 0.021, ObjectiveSeconds: 0.005, ShareRatio: 0.62},
	})
	for posted+dropped < 2 && c.ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		posted, dropped = p.Counts()
	}
	cancel()
	<-ended
	return posted, dropped, out.String()
}

// version is that of a module that this one requires.
func (c *cluster) version(module string) string {
	c.t.Helper()
	out, err := exec.CommandContext(c.ctx, "go", "list", "-mod=mod", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		c.t.Fatalf("%s: %v", module, err)
	}
	return strings.TrimSpace(string(out))
}
