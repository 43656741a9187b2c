package pods

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestParseStatic(t *testing.T) {
	got, err := ParseStatic("pods.yaml", []byte(`# online
pods:
- namespace: demo
  name: web
  labels: {qos-agent.io/class: online}
  annotations: {owner: "shop"}
  cgroup: /demo/web
- {namespace: demo, name: postgres-15.main, cgroup: /system.slice/system-postgresql.slice/postgresql@15-main.service}
`))
	want := []StaticPod{
		{Namespace: "demo", Name: "web", Labels: map[string]string{"qos-agent.io/class": "online"}, Annotations: map[string]string{"owner": "shop"}, Cgroup: "/demo/web"},
		{Namespace: "demo", Name: "postgres-15.main", Cgroup: "/system.slice/system-postgresql.slice/postgresql@15-main.service"},
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := ParseStatic("pods.yaml", []byte("pods: []\n")); err != nil || len(got) != 0 {
		t.Errorf("no pods: %v, %v", got, err)
	}
}

func TestParseStaticErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string // one for each line
	}{
		"empty":         {"", []string{"f: holds 0 YAML documents; want one"}},
		"comment":       {"# nothing\n", []string{"f: holds 0 YAML documents; want one"}},
		"two":           {"pods: []\n---\npods: []\n", []string{"f: holds 2 YAML documents; want one"}},
		"no pods":       {"pod: []\n", []string{`f:1: pod: is not a known field; want perhaps pods`, `f:1: pods: is missing`}},
		"null":          {"pods:\n", []string{"f:1: pods: is empty; want a list, [] for none"}},
		"missing":       {"pods:\n- namespace: a\n", []string{"f:2: pods[0].name: is missing", "f:2: pods[0].cgroup: is missing; want a path under the cgroup mount such as /demo/web"}},
		"unknown":       {"pods:\n- {namespace: a, name: b, cgroup: /c, lables: {}}\n", []string{`f:2: pods[0].lables: is not a known field; want perhaps labels`}},
		"relative":      {"pods:\n- {namespace: a, name: b, cgroup: c/d}\n", []string{`f:2: pods[0].cgroup: is "c/d"; want a path under the cgroup mount`}},
		"climbing":      {"pods:\n- {namespace: a, name: b, cgroup: /c/../d}\n", []string{`f:2: pods[0].cgroup: is "/c/../d": must be a plain path`}},
		"root":          {"pods:\n- {namespace: a, name: b, cgroup: /}\n", []string{`f:2: pods[0].cgroup: is "/": the root group is never written; want a path under the cgroup mount`}},
		"the kubelet's": {"pods:\n- {namespace: a, name: b, cgroup: /kubepods.slice}\n", []string{`f:2: pods[0].cgroup: is "/kubepods.slice": belongs to the kubelet`}},
		"names":         {"pods:\n- {namespace: A, name: b/c, cgroup: /c}\n", []string{`f:2: pods[0].namespace: is "A"; want a name of small letters`, `f:2: pods[0].name: is "b/c"; want a name`}},
		"same name":     {"pods:\n- {namespace: a, name: b, cgroup: /c}\n- {namespace: a, name: b, cgroup: /d}\n", []string{`f:3: pods[1].name: is a/b, which pods[0] on line 2 is too; want another namespace or name`}},
		"same group":    {"pods:\n- {namespace: a, name: b, cgroup: /c}\n- {namespace: a, name: d, cgroup: /c}\n", []string{`f:3: pods[1].cgroup: is /c, which pods[0] on line 2 has too; want a group of its own`}},
		"nested":        {"pods:\n- {namespace: a, name: b, cgroup: /c/d/e}\n- {namespace: a, name: d, cgroup: /c}\n- {namespace: a, name: e, cgroup: /cc}\n", []string{`f:2: pods[0].cgroup: is /c/d/e, which lies in /c of pods[1] on line 3; want groups that do not contain one another`}},
		"label":         {"pods:\n- {namespace: a, name: b, cgroup: /c, labels: {x: true}}\n", []string{`f:2: pods[0].labels.x: is the boolean true; want text in quotes: "true"`}},
		"all at once":   {"pods:\n- {namespace: a, name: b, cgroup: c}\n- {namespace: a, name: b, cgroup: /}\n- 7\n", []string{"f:2: pods[0].cgroup", "f:3: pods[1].name", "f:3: pods[1].cgroup", "f:4: pods[2]: is the number 7"}},
		"no YAML":       {"pods: [\n", []string{"f:1: is not valid YAML"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseStatic("f", []byte(tc.text))
			var list strictyaml.ErrorList
			if !errors.As(err, &list) {
				t.Fatalf("error is %v (%T)", err, err)
			}
			lines := strings.Split(err.Error(), "\n")
			ok := len(lines) == len(tc.want)
			for i := range tc.want {
				ok = ok && strings.HasPrefix(lines[i], tc.want[i])
			}
			if !ok {
				t.Errorf("errors:\n%s\nwant:\n%s", err, strings.Join(tc.want, "\n"))
			}
		})
	}
}

func FuzzParseStatic(f *testing.F) {
	f.Add("pods: [{namespace: a, name: b, labels: {}, annotations: {}, cgroup: /demo/web}]")
	f.Add("pods: &x [*x]")
	f.Add("pods: [{cgroup: /a}, {cgroup: /a/b}]")
	f.Fuzz(func(t *testing.T, text string) {
		pods, err := ParseStatic("f", []byte(text))
		for _, p := range pods {
			if err == nil && (cgroup.CheckWritable(p.Cgroup) != nil || p.Name == "" || p.Namespace == "") {
				t.Errorf("%+v is taken", p)
			}
		}
	})
}

// staticNode runs the static source on a fake tree with /demo/web in it.
type staticNode struct {
	*Static
	t    *testing.T
	tree *cgrouptest.Fake
	file string
}

func newStatic(t *testing.T, text string, file string) *staticNode {
	t.Helper()
	tree := cgrouptest.NewFake(t, cgroup.Unified)
	mkdirs(t, tree, "/demo/web")
	if text != "" {
		write(t, file, text)
	}
	s, err := NewStatic(StaticOptions{File: file, Hierarchy: tree.Hierarchy(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.every = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &staticNode{s, t, tree, file}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *staticNode) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("no %s: %+v, %+v", what, s.Pods(), s.Status())
		}
	}
}

func (s *staticNode) names() string {
	var names []string
	for _, p := range s.Pods() {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

const (
	webOnly = "pods: [{namespace: demo, name: web, cgroup: /demo/web}]\n"
	both    = "pods:\n- {namespace: demo, name: web, labels: {a: b}, cgroup: /demo/web}\n- {namespace: demo, name: batch, cgroup: /demo/batch}\n"
)

func TestStaticGroups(t *testing.T) {
	s := newStatic(t, both, filepath.Join(t.TempDir(), "pods.yaml"))
	pods := s.Pods()
	if len(pods) != 1 || len(pods[0].Containers) != 1 {
		t.Fatalf("right after the start: %+v", pods)
	}
	first := pods[0].Containers[0].ID
	want := signal.Pod{
		UID: "static:demo/web", Namespace: "demo", Name: "web", Labels: map[string]string{"a": "b"}, Cgroup: "/demo/web",
		Containers: []signal.Container{{ID: first, Name: "web", Cgroup: "/demo/web"}},
	}
	if diff := cmp.Diff(want, pods[0]); diff != "" || !strings.HasPrefix(first, "static:demo/web@") {
		t.Errorf("container %s: %s", first, diff)
	}
	s.until("status", func() bool { return s.Status().Connected && s.Status().Unresolved == 1 })
	mkdirs(t, s.tree, "/demo/batch")
	s.until("the pod whose group was made", func() bool { return s.names() == "batch web" && s.Status().Unresolved == 0 })
	rmdir(t, s.tree, "/demo/web")
	s.until("the pod whose group is gone to be gone", func() bool { return s.names() == "batch" })
	mkdirs(t, s.tree, "/demo/web")
	s.until("it again, as another container", func() bool { return s.names() == "batch web" && s.Pods()[1].Containers[0].ID != first })
}

func TestStaticFileChanges(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, file, text string){
		"written in place": write,
		"renamed over": func(t *testing.T, file, text string) {
			write(t, file+".new", text)
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		},
		"removed and made": func(t *testing.T, file, text string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			write(t, file, text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStatic(t, webOnly, filepath.Join(t.TempDir(), "pods.yaml"))
			mkdirs(t, s.tree, "/demo/batch")
			replace(t, s.file, both)
			s.until("the new pod", func() bool { return s.names() == "batch web" })
			replace(t, s.file, "pods: [{nmae: x}]\n")
			s.until("the refusal", func() bool {
				return strings.Contains(s.Status().Error, s.file+":1: pods[0].nmae: is not a known field")
			})
			if st := s.Status(); st.Connected || s.names() != "batch web" {
				t.Errorf("after a bad change: %+v, pods %s", st, s.names())
			}
			rmdir(t, s.tree, "/demo/batch")
			s.until("groups to be looked at all the same", func() bool { return s.names() == "web" })
			replace(t, s.file, strings.ReplaceAll(webOnly, "name: web", "name: wob")) // the same size as before
			s.until("the good change", func() bool { return s.names() == "wob" && s.Status().Connected && s.Status().Error == "" })
			replace(t, s.file, webOnly)
			s.until("a change of the same size", func() bool { return s.names() == "web" })
		})
	}
}

// A mounted ConfigMap is a link to a link that is swapped.
func TestStaticConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "pods.yaml"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", webOnly)
	if err := os.Symlink("..data/pods.yaml", filepath.Join(dir, "pods.yaml")); err != nil {
		t.Fatal(err)
	}
	s := newStatic(t, "", filepath.Join(dir, "pods.yaml"))
	mkdirs(t, s.tree, "/demo/batch")
	version("..2", both)
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	s.until("the new version", func() bool { return s.names() == "batch web" })
}

func TestStaticBadAtStart(t *testing.T) {
	tree := cgrouptest.NewFake(t, cgroup.Hybrid)
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	write(t, big, strings.Repeat("# 10 MB\n", 10<<17))
	for file, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "cannot be read",
		dir:                             "is a directory",
		big:                             "has 10485760 bytes; want at most",
	} {
		_, err := NewStatic(StaticOptions{File: file, Hierarchy: tree.Hierarchy(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", file, err, want)
		}
	}
}

func TestExampleFile(t *testing.T) {
	const file = "../../examples/static/pods.yaml"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if pods, err := ParseStatic(file, data); err != nil || len(pods) != 2 {
		t.Errorf("%d pods, %v", len(pods), err)
	}
}
