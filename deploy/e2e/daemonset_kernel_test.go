package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	dto "github.com/prometheus/client_model/go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/deploy/e2e"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/containerd"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/groups"
)

// eager is a policy whose objectives the batch pod is sure to break through its posture, so that there is something to see. Its
// mode is left to be said.
const eager = `apiVersion: qos-agent.io/v1alpha1
kind: QoSPolicy
metadata: {name: %s}
spec:
  mode: %s
  objectives: {cpuWaitP99: 100us, cpuWaitEvent: 200us}
  judge: {minSamples: 5, watchPercent: 50}
  cpu: {ladder: [cpus, quota], verify: {after: 1m}, hold: 1h}
`

// stage is a node with an online and an offline pod, and the agent's own DaemonSet beside them.
type stage struct {
	t          *testing.T
	ctx        context.Context
	node       *e2e.Node
	web, batch *containerd.RunningPod
	tree       *groups.Tree
	values     string
	port, api  int
}

// newStage has one pod that is busy and pauses all the time, and one that spins.
func newStage(t *testing.T) *stage {
	spin := []string{"sh", "-c", "while :; do :; done"}
	pulse := []string{"sh", "-c", "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; usleep 1000; done"}
	return newStageOf(t,
		containerd.Container{Name: "main", Command: pulse, Shares: 512},
		containerd.Container{Name: "main", Command: spin, Shares: 300}, containerd.Container{Name: "second", Command: spin})
}

func newStageOf(t *testing.T, web containerd.Container, batch ...containerd.Container) *stage {
	n := e2e.NewNode(t)
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Minute)
	t.Cleanup(cancel)
	s := &stage{t: t, ctx: ctx, node: n, port: freePort(t), api: freePort(t)}
	s.values = fmt.Sprintf("port: %d\napiPort: %d\ndefaults: {mode: policy}\n", s.port, s.api)
	s.web = n.Runtime.RunPod(containerd.Pod{
		Namespace: "shop", Name: "web", UID: "1", Parent: n.Runtime.Group + "/kubepods/burstable/pod1",
		Labels:     map[string]string{"qos-agent.io/class": "online"},
		Containers: []containerd.Container{web},
	})
	s.batch = n.Runtime.RunPod(containerd.Pod{
		Namespace: "jobs", Name: "batch", UID: "2", Parent: n.Runtime.Group + "/kubepods/burstable/pod2",
		Labels:     map[string]string{"qos-agent.io/class": "offline"},
		Containers: batch,
	})
	s.tree = groups.At(h, n.Runtime.Group)
	return s
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *stage) policy(name, mode string) {
	s.node.ConfigMap(s.t, "qos-agent-policy", map[string]string{"10-cluster.yaml": fmt.Sprintf(eager, name, mode)})
}

func (s *stage) start() *e2e.Pod { return s.node.Run(s.t, e2e.DaemonSet(s.t, s.values), nil) }

// settings are those of the two pods and of what is above them. The agent's own groups come and go.
func (s *stage) settings() map[string]string {
	s.t.Helper()
	all, err := s.tree.Snapshot()
	if err != nil {
		s.t.Fatal(err)
	}
	for key := range all {
		if strings.Contains(key, "/podlog-") {
			delete(all, key)
		}
	}
	return all
}

func (s *stage) restored(when string, before map[string]string) {
	s.t.Helper()
	if diff := groups.Changed(before, s.settings()); diff != "" {
		s.t.Errorf("%s, settings differ (- before the agent, + now):\n%s", when, diff)
	}
}

// wait asks the state API, as the page does over `kubectl port-forward`.
func (s *stage) wait(p *e2e.Pod, what string, ok func(*server.State) bool) *server.State {
	s.t.Helper()
	var last string
	for {
		status, body, err := get(s.ctx, s.api, "/api/v1/state")
		if err == nil && status == http.StatusOK {
			var state server.State
			if err := json.Unmarshal([]byte(body), &state); err != nil {
				s.t.Fatal(err)
			}
			if ok(&state) {
				return &state
			}
		}
		last = fmt.Sprintf("%d %v\n%s", status, err, body)
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("waiting for %s: %s\nlog:\n%s", what, last, p.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, port int, path string) (int, string, error) {
	d := daemon.Daemon{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	return d.Get(ctx, path)
}

// cut reports whether the batch pod has been cut for the web pod's sake.
func cut(s *server.State) bool {
	return slices.ContainsFunc(s.Knobs, func(k server.HeldKnob) bool {
		return k.Pod == "jobs/batch" && k.Victim == "shop/web" && k.Knob != "cpu.idle"
	})
}

func TestDaemonSet(t *testing.T) {
	s := newStage(t)
	s.policy("eager", "enforce")
	before := s.settings()

	p := s.start()
	state := s.wait(p, "the batch pod to be cut", cut)
	if state.Agent.Mode != "enforce" || state.Policy.Name != "eager" || state.Node.Hostname != "node-1" {
		t.Errorf("mode %s, policy %s, node %s", state.Agent.Mode, state.Policy.Name, state.Node.Hostname)
	}
	classes := map[string]string{}
	for _, pod := range state.Pods {
		classes[pod.Namespace+"/"+pod.Name] = pod.Class
	}
	want := map[string]string{"shop/web": "online", "jobs/batch": "offline", "qos-agent/qos-agent-e2e": "unclassified"}
	if diff := cmp.Diff(want, classes); diff != "" {
		t.Errorf("classes (-want +got):\n%s", diff)
	}
	if got := s.read(s.batch.Parent, "cpu.idle"); got != "1" {
		t.Errorf("the batch pod's group has cpu.idle %q", got)
	}
	t.Run("probes and scrape", func(t *testing.T) { s.checkPort(t) })
	t.Run("few capabilities are left", func(t *testing.T) { checkCapabilities(t, p) })
	t.Run("doctor by kubectl exec", func(t *testing.T) {
		if out, code := p.Exec("qos-agent", "doctor", "--cgroup-root=/host/sys/fs/cgroup"); code != 0 || !strings.Contains(out, "The main job can run.") {
			t.Errorf("doctor: exit code %d\n%s", code, out)
		}
	})

	// A ConfigMap that changes.
	s.policy("careful", "observe")
	s.wait(p, "the new policy", func(st *server.State) bool {
		return st.Policy.Name == "careful" && st.Agent.Mode == "observe" && len(st.Knobs) == 0
	})
	s.restored("in observe mode", before)
	s.policy("eager", "enforce")
	s.wait(p, "cuts again", cut)

	// An upgrade, a roll-out or an uninstallation: the pod is stopped in the regular way.
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; log:\n%s", code, p.Log())
	}
	s.restored("after SIGTERM", before)

	// The kernel kills the agent for want of memory. The kubelet starts the next one. These have the option that wants SYS_ADMIN on any
	// node, and the first has not got it.
	s.values = strings.Replace(s.values, "{mode: policy}", "{mode: policy, bpfStats: true}", 1)
	p = s.node.Run(t, e2e.DaemonSet(t, s.values), func(c *runtimeapi.ContainerConfig) {
		add := &c.Linux.SecurityContext.Capabilities.AddCapabilities
		*add = slices.DeleteFunc(*add, func(name string) bool { return name == "SYS_ADMIN" })
	})
	s.wait(p, "cuts by the next agent", cut)
	if log := p.Log(); !strings.Contains(log, "the cost of the BPF programs is not shown") {
		t.Errorf("without SYS_ADMIN the log does not say that the cost of BPF programs is not shown:\n%s", log)
	}
	p.Kill()
	if s.read(s.batch.Parent, "cpu.idle") != "1" {
		t.Error("kill -9 has put things back, which nobody can have done")
	}
	p = s.start()
	s.wait(p, "cuts by the agent after a crash", cut)
	t.Run("what the BPF programs cost", func(t *testing.T) {
		for end := time.Now().Add(30 * time.Second); sum(s.families(t)["qosagent_bpf_run_seconds_total"]) <= 0; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("with bpfStats qosagent_bpf_run_seconds_total stays 0; log:\n%s", p.Log())
				break
			}
		}
		checkCapabilities(t, p) // and SYS_ADMIN has gone again
	})
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; log:\n%s", code, p.Log())
	}
	s.restored("after a crash, a new agent and SIGTERM", before)
}

// TestRestore: the agent is killed, and none comes any more. `qos-agent restore` is what cleans up (docs/operating.md).
func TestRestore(t *testing.T) {
	s := newStage(t)
	s.policy("eager", "enforce")
	before := s.settings()
	p := s.start()
	s.wait(p, "the batch pod to be cut", cut)
	p.Kill()
	ds := e2e.DaemonSet(t, s.values)
	ds.Spec.Template.Spec.Containers[0].Args = []string{"restore", "--run-dir=/run/qos-agent"}
	p = s.node.Run(t, ds, nil)
	if code := p.Wait(); code != 0 {
		t.Errorf("restore: exit code %d\n%s", code, p.Log())
	}
	s.restored("after a crash and qos-agent restore in a container", before)

	// The same on the node itself, which has its groups elsewhere than the container had.
	p = s.start()
	s.wait(p, "cuts by one more agent", cut)
	p.Kill()
	bin := os.Getenv("QOS_AGENT_BIN")
	if bin == "" {
		bin = filepath.Join(t.TempDir(), "qos-agent")
		build := exec.CommandContext(s.ctx, "go", "build", "-o", bin, "./cmd/qos-agent")
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	out, err := exec.CommandContext(s.ctx, bin, "restore", "--run-dir="+s.node.HostPaths["/run/qos-agent"]).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "restored ") {
		t.Errorf("restore: %v\n%s", err, out)
	}
	s.restored("after a crash and qos-agent restore on the node", before)
}

func (s *stage) read(group, file string) string {
	s.t.Helper()
	text, err := s.tree.Read(cgroup.CPU, group, file)
	if err != nil {
		s.t.Error(err)
	}
	return text
}

// checkPort asks what the kubelet's probes and Prometheus ask, where they do.
func (s *stage) checkPort(t *testing.T) {
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body, err := get(s.ctx, s.port, path); err != nil || status != http.StatusOK {
			t.Errorf("%s: %d %s %v", path, status, body, err)
		}
	}
	if status, _, err := get(s.ctx, s.port, "/api/v1/state"); err != nil || status != http.StatusNotFound {
		t.Errorf("the state API on the pod network: %d %v; want it to be on loopback only", status, err)
	}
	// Rates and blame come with the ticks after the first.
	var missing []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if missing = s.missing(t); len(missing) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, what := range missing {
		t.Errorf("%s: 0", what)
	}
}

// families is a scrape.
func (s *stage) families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	_, body, err := get(s.ctx, s.port, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// missing lists what a scrape should show and does not.
func (s *stage) missing(t *testing.T) (out []string) {
	families := s.families(t)
	for what, value := range map[string]float64{
		"waits of web":          sum(families["qosagent_cpu_wait_seconds"], "pod", "web"),
		"blame of web on batch": sum(families["qosagent_cpu_wait_blame_seconds_total"], "victim_pod", "web", "culprit_pod", "batch"),
		"CPU time of batch":     sum(families["qosagent_cpu_usage_seconds_total"], "pod", "batch", "class", "offline"),
		"knobs held":            sum(families["qosagent_knobs_held"]),
		"knobs written":         sum(families["qosagent_knob_writes_total"], "result", "written"),
		"enforcing":             sum(families["qosagent_enforcing"]),
	} {
		if value <= 0 {
			out = append(out, what)
		}
	}
	return out
}

// sum adds the series of a family that have the given labels (name, value, name, value); of histograms the number of observations.
func sum(f *dto.MetricFamily, labels ...string) float64 {
	var total float64
	for _, m := range f.GetMetric() {
		match := 0
		for _, l := range m.GetLabel() {
			for i := 0; i < len(labels); i += 2 {
				if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
					match++
				}
			}
		}
		if match == len(labels)/2 {
			total += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return total
}

// checkCapabilities looks at every thread of the running agent.
func checkCapabilities(t *testing.T, p *e2e.Pod) {
	pids, err := p.PIDs()
	if err != nil || len(pids) != 1 {
		t.Fatalf("processes: %v %v", pids, err)
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pids[0]))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads: %v %v", threads, err)
	}
	const sysNice, perfmon = 1 << 23, 1 << 38
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			for _, set := range []string{"CapPrm:", "CapEff:", "CapAmb:"} {
				var bits uint64
				if _, err := fmt.Sscanf(line, set+"%x", &bits); err == nil && bits&^(sysNice|perfmon) != 0 {
					t.Errorf("%s has %s; want SYS_NICE, and PERFMON where there are counters", name, strings.TrimSpace(line))
				}
			}
			if got, ok := strings.CutPrefix(line, "NoNewPrivs:"); ok && strings.TrimSpace(got) != "1" {
				t.Errorf("%s: no_new_privs is %s", name, got)
			}
			if got, ok := strings.CutPrefix(line, "Seccomp:"); ok && strings.TrimSpace(got) != "2" {
				t.Errorf("%s: no seccomp filter", name)
			}
		}
	}
	if log := p.Log(); !strings.Contains(log, `"msg":"gave up"`) {
		t.Errorf("the log does not say what was given up:\n%s", log)
	}
}
