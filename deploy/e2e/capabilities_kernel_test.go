package e2e_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/deploy/e2e"
	"github.com/qos-agent/qos-agent/internal/capability"
)

// lost is what fails without each capability that the chart adds: the table of docs/security.md.
var lost = map[string][]string{
	"BPF":          {"bpf"},
	"PERFMON":      {"bpf", "perf"},
	"SYS_NICE":     {"realtime"},
	"DAC_OVERRIDE": {"cpu_weight", "cpu_idle", "cpuset", "cpu_quota", "cpu_burst", "freezer", "memory", "io", "psi_group"},
}

const confined, unconfined = runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined

// TestCapabilities runs `qos-agent doctor` in a container with what the chart gives the agent, with each capability less, and with
// all there are. Doctor tries each feature by using it.
func TestCapabilities(t *testing.T) {
	n := e2e.NewNode(t)
	n.RealtimeShare = 50 * time.Millisecond
	n.ConfigMap(t, "qos-agent-policy", nil)
	ds := e2e.DaemonSet(t, "")
	all := granted(ds)
	if len(all) != len(lost) {
		t.Fatalf("the chart adds %v, and this test knows what fails without %v", all, lost)
	}
	full := works(t, n, ds, []string{"ALL"}, unconfined)
	if !slices.Contains(full, "bpf") || !slices.Contains(full, "cri") || !slices.Contains(full, "cpu_weight") {
		t.Fatalf("with all capabilities only %v work", full)
	}
	t.Run("nothing is missing with what the chart adds", func(t *testing.T) {
		if diff := cmp.Diff(full, works(t, n, ds, all, confined)); diff != "" {
			t.Errorf("features (- with all capabilities and no seccomp filter, + with the chart's):\n%s", diff)
		}
	})
	for name, want := range lost {
		t.Run("without "+name, func(t *testing.T) {
			got := works(t, n, ds, slices.DeleteFunc(slices.Clone(all), func(c string) bool { return c == name }), confined)
			var gone []string
			for _, feature := range full {
				if !slices.Contains(got, feature) {
					gone = append(gone, feature)
				}
			}
			// What this machine has not got cannot go.
			want = slices.DeleteFunc(slices.Clone(want), func(f string) bool { return !slices.Contains(full, f) })
			if diff := cmp.Diff(want, gone); diff != "" {
				t.Errorf("features that fail (- documented, + seen):\n%s", diff)
			}
		})
	}
}

// works lists the features that `qos-agent doctor` finds in a container of a DaemonSet's pod with the given capabilities and seccomp
// profile instead of its own.
func works(t *testing.T, n *e2e.Node, ds *appsv1.DaemonSet, capabilities []string, seccomp runtimeapi.SecurityProfile_ProfileType) []string {
	t.Helper()
	p := n.Run(t, ds, func(c *runtimeapi.ContainerConfig) {
		c.Args = []string{"doctor", "--json"}
		for _, arg := range ds.Spec.Template.Spec.Containers[0].Args {
			if strings.HasPrefix(arg, "--cgroup-root=") || strings.HasPrefix(arg, "--cri-endpoint=") {
				c.Args = append(c.Args, arg)
			}
		}
		s := c.Linux.SecurityContext
		s.Capabilities.AddCapabilities = capabilities
		if slices.Contains(capabilities, "ALL") {
			s.Capabilities.DropCapabilities = nil
		}
		s.Seccomp.ProfileType = seccomp
	})
	p.Wait() // 1 if something that is needed is missing
	var doc capability.Document
	if err := json.Unmarshal([]byte(p.Log()), &doc); err != nil {
		t.Fatalf("doctor: %v\n%s", err, p.Log())
	}
	var ok []string
	for _, probe := range doc.Probes {
		if probe.OK {
			ok = append(ok, probe.Name)
		} else {
			t.Logf("missing with %v: %s: %s", capabilities, probe.Name, probe.Detail)
		}
	}
	return ok
}

// granted is what a DaemonSet adds.
func granted(ds *appsv1.DaemonSet) (out []string) {
	for _, c := range ds.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		out = append(out, string(c))
	}
	return out
}
