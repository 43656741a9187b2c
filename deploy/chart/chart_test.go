package chart_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/qos-agent/qos-agent/deploy/chart"
	"github.com/qos-agent/qos-agent/internal/policy"
)

const dir = "../helm/qos-agent"

var update = flag.Bool("update", false, "write the golden files and the kustomize base anew")

func TestLint(t *testing.T) {
	for _, values := range valueFiles(t) {
		t.Run(name(values), func(t *testing.T) {
			var v map[string]any
			if err := yaml.Unmarshal(read(t, values), &v); err != nil {
				t.Fatal(err)
			}
			r := lint.AllWithKubeVersion(dir, v, chart.Namespace, nil)
			for _, m := range r.Messages {
				// That there is no icon is an INFO and right.
				if m.Severity > support.InfoSev {
					t.Error(m)
				}
			}
		})
	}
}

// TestRender holds what is rendered against golden files: a change of the chart shows in review as what it does to objects.
func TestRender(t *testing.T) {
	for _, values := range valueFiles(t) {
		t.Run(name(values), func(t *testing.T) {
			got := render(t, read(t, values))
			golden(t, strings.TrimSuffix(values, ".values.yaml")+".golden.yaml", got)
			check(t, got)
		})
	}
}

func TestValuesAreChecked(t *testing.T) {
	for what, values := range map[string]string{
		"misspelt key":         "defaults: {mod: enforce}",
		"misspelt key in pool": "pools: {batch: {nodeselector: {a: b}}}",
		"bad mode":             "defaults: {mode: on}",
		"bad duration":         "defaults: {interval: 100}",
		"no pool":              "pools: {default: null}",
		"policy's file name":   "policies: {site.txt: x}",
		"flag":                 "defaults: {extraArgs: [mode=enforce]}",
		"digest":               "image: {digest: sha256:12}",
		"little time to stop":  "terminationGracePeriodSeconds: 0",
	} {
		if _, err := chart.Render(dir, []byte(values)); err == nil || !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %s: error is %v", what, values, err)
		}
	}
}

// TestNoAPIRights: by default nothing that is rendered could give the agent a right in the API.
func TestNoAPIRights(t *testing.T) {
	text := string(render(t, nil))
	for _, kind := range []string{"kind: ClusterRole", "kind: Role", "kind: ClusterRoleBinding", "kind: RoleBinding"} {
		if strings.Contains(text, kind) {
			t.Errorf("there is a %s", kind)
		}
	}
	ds := daemonSet(t, render(t, nil), "qos-agent")
	if m := ds.Spec.Template.Spec.AutomountServiceAccountToken; m == nil || *m {
		t.Error("a token is mounted")
	}
}

// TestKustomizeBase: the base is the chart with its own values, and it and the overlays build.
func TestKustomizeBase(t *testing.T) {
	golden(t, "../kustomize/base/qos-agent.yaml", render(t, nil))
	overlays, err := filepath.Glob("../kustomize/*/*/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(overlays, "../kustomize/base/kustomization.yaml") {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Dir(file))
			if err != nil {
				t.Fatal(err)
			}
			text, err := m.AsYaml()
			if err != nil {
				t.Fatal(err)
			}
			check(t, text)
			if args := daemonSet(t, text, "qos-agent").Spec.Template.Spec.Containers[0].Args; filepath.Base(filepath.Dir(file)) == "enforce" &&
				(!slices.Contains(args, "--mode=enforce") || slices.Contains(args, "--mode=observe")) {
				t.Errorf("the overlay enforce has %q", args)
			}
		})
	}
}

// TestExamples are the ones for Kubernetes.
func TestExamples(t *testing.T) {
	check(t, render(t, read(t, "../../examples/kubernetes/pools.values.yaml")))
	restore := daemonSet(t, read(t, "../../examples/kubernetes/restore-daemonset.yaml"), "qos-agent-restore")
	want := daemonSet(t, render(t, nil), "qos-agent").Spec.Template.Spec.Containers[0]
	if got := restore.Spec.Template.Spec.InitContainers[0].Image; got != want.Image {
		t.Errorf("restore uses image %s, the chart %s", got, want.Image)
	}
}

// check decodes every document strictly into the type that Kubernetes has for it, and holds what only we know against it.
func check(t *testing.T, text []byte) {
	t.Helper()
	docs, err := chart.Documents(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) < 3 {
		t.Errorf("%d documents", len(docs))
	}
	seen := map[string]bool{}
	for _, doc := range docs {
		var head metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatal(err)
		}
		key := head.APIVersion + " " + head.Kind
		if seen[key+head.Name] {
			t.Errorf("%s %s is there twice", key, head.Name)
		}
		seen[key+head.Name] = true
		make := map[string]func() any{
			"v1 Namespace":      func() any { return new(corev1.Namespace) },
			"v1 ServiceAccount": func() any { return new(corev1.ServiceAccount) },
			"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return new(rbacv1.ClusterRole) },
			"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return new(rbacv1.ClusterRoleBinding) },
			"v1 ConfigMap":                            func() any { return new(corev1.ConfigMap) },
			"v1 Service":                              func() any { return new(corev1.Service) },
			"apps/v1 DaemonSet":                       func() any { return new(appsv1.DaemonSet) },
			"networking.k8s.io/v1 NetworkPolicy":      func() any { return new(networkingv1.NetworkPolicy) },
			"monitoring.coreos.com/v1 PodMonitor":     func() any { return new(monitoringv1.PodMonitor) },
			"monitoring.coreos.com/v1 ServiceMonitor": func() any { return new(monitoringv1.ServiceMonitor) },
			"monitoring.coreos.com/v1 PrometheusRule": func() any { return new(monitoringv1.PrometheusRule) },
		}[key]
		if make == nil {
			t.Errorf("%s: nobody expected that", key)
			continue
		}
		object := make()
		if err := yaml.UnmarshalStrict(doc, object); err != nil {
			t.Errorf("%s %s: %v", key, head.Name, err)
		}
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			want := []rbacv1.PolicyRule{{APIGroups: []string{"events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create"}}}
			if diff := cmp.Diff(want, o.Rules); diff != "" {
				t.Errorf("rights (- the only one there may be, + rendered):\n%s", diff)
			}
		case *corev1.ConfigMap:
			checkPolicies(t, o)
		case *appsv1.DaemonSet:
			checkDaemonSet(t, o)
		}
	}
}

// checkPolicies loads a policy ConfigMap as the daemon would.
func checkPolicies(t *testing.T, c *corev1.ConfigMap) {
	t.Helper()
	if !strings.HasSuffix(c.Name, "-policy") {
		return
	}
	dir := t.TempDir()
	for file, text := range c.Data {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := policy.Load(dir)
	if err == nil {
		_, err = policy.Compile(p)
	}
	if err != nil {
		t.Errorf("ConfigMap %s: %v", c.Name, err)
	}
}

func checkDaemonSet(t *testing.T, ds *appsv1.DaemonSet) {
	t.Helper()
	for key, value := range ds.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[key] != value {
			t.Errorf("%s: pods lack label %s of the selector", ds.Name, key)
		}
	}
	volumes := map[string]bool{}
	for _, v := range ds.Spec.Template.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range ds.Spec.Template.Spec.Containers {
		if p := c.SecurityContext.Privileged; p == nil || *p {
			t.Errorf("%s: privileged", ds.Name)
		}
		if _, ok := c.Resources.Limits[corev1.ResourceCPU]; ok {
			t.Errorf("%s: a CPU limit would stop the agent when it is needed", ds.Name)
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: no volume %s", ds.Name, m.Name)
			}
			if m.SubPath != "" {
				t.Errorf("%s: %s is mounted by subPath, which does not follow changes", ds.Name, m.Name)
			}
		}
	}
}

func daemonSet(t *testing.T, text []byte, name string) *appsv1.DaemonSet {
	t.Helper()
	ds, err := chart.DaemonSet(text, name)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

func valueFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no values", err)
	}
	return files
}

func name(file string) string { return strings.TrimSuffix(filepath.Base(file), ".values.yaml") }

func render(t *testing.T, values []byte) []byte {
	t.Helper()
	text, err := chart.Render(dir, values)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, file); !bytes.Equal(want, got) {
		t.Errorf("%s differs (- file, + now); if it should: go test ./chart -update\n%s", file, cmp.Diff(string(want), string(got)))
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
