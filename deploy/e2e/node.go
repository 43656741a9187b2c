package e2e

import (
	"cmp"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/qos-agent/qos-agent/deploy/chart"
	"github.com/qos-agent/qos-agent/deploy/image"
	"github.com/qos-agent/qos-agent/test/containerd"
)

// NewNode starts a containerd that knows the agent's image as the chart names it.
func NewNode(t testing.TB) *Node {
	t.Helper()
	r := containerd.Start(t)
	dir := t.TempDir()
	ds := DaemonSet(t, "")
	name := "docker.io/library/" + ds.Spec.Template.Spec.Containers[0].Image
	archive := filepath.Join(deployDir(), "qos-agent.tar")
	if os.Getenv(deployEnv) == "" {
		archive = filepath.Join(dir, "qos-agent.tar")
		err := image.Write(t.Context(), archive, image.Options{
			Source: "../..", Version: "e2e", Name: name, Platforms: []string{runtime.GOARCH}, Created: time.Unix(0, 0),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.Import(archive, name)
	n := &Node{
		Runtime: r, Name: "node-1", Dir: dir, ConfigMaps: map[string]string{},
		HostPaths: map[string]string{
			"/run/containerd": filepath.Dir(strings.TrimPrefix(r.Endpoint, "unix://")),
			"/run/qos-agent":  filepath.Join(dir, "run"),
		},
	}
	return n
}

// deployEnv names the directory that holds the chart and the image's archive where neither sources nor a compiler are: in a virtual
// machine (see test/runner).
const deployEnv = "QOS_AGENT_DEPLOY"

func deployDir() string { return cmp.Or(os.Getenv(deployEnv), "..") }

// DaemonSet is the one of the pool "default" under the given values.
func DaemonSet(t testing.TB, values string) *appsv1.DaemonSet {
	t.Helper()
	text, err := chart.Render(filepath.Join(deployDir(), "helm/qos-agent"), []byte(values))
	if err != nil {
		t.Fatal(err)
	}
	ds, err := chart.DaemonSet(text, chart.Release)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

// ConfigMap writes one as a kubelet lays it out: the files are links into ..data, which is itself a link to a directory that is
// replaced as a whole.
func (n *Node) ConfigMap(t testing.TB, name string, files map[string]string) {
	t.Helper()
	dir := filepath.Join(n.Dir, "configmap-"+name)
	version, err := os.MkdirTemp(mkdir(t, dir), "..v")
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(version, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, file)
		if _, err := os.Lstat(link); err != nil {
			if err := os.Symlink(filepath.Join("..data", file), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	tmp := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(filepath.Base(version), tmp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	n.ConfigMaps[name] = dir
}

func mkdir(t testing.TB, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
