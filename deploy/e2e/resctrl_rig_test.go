//go:build amd64

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/deploy/e2e"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/containerd"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// On a kind of the machine on which nothing else runs, and so on one kernel only: pods take their time.
//
//rig:variants twenty-ways

// work is the rig's load.
const work = "/bin/work"

// service lives in the cache, and hog streams through it (see test/rig/work).
var (
	service = []string{work, "service", "-profile", "2500,16384,600,50"}
	hog     = []string{work, "hog", "-profile", "9000,262144,700,8", "-threads", "2"}
)

// TestRigDaemonSet runs the pod that the chart renders for nodes with RDT: it learns what is normal for the service, finds the culprit by
// cache misses and moves it into a class of its own with fewer ways, and takes all of that back.
func TestRigDaemonSet(t *testing.T) {
	resctrl := guest.Mount(t)
	s := newStageOf(t, containerd.Container{Name: "main", Command: service, Mounts: []string{work}})
	s.values += "pools: {default: {resctrl: true}}\n"
	s.node.ConfigMap(t, "qos-agent-policy", map[string]string{"10-cluster.yaml": `apiVersion: qos-agent.io/v1alpha1
kind: QoSPolicy
metadata: {name: caches}
spec:
  mode: enforce
  objectives: {cpuWaitP99: 0, cpuWaitEvent: 0}
`})
	before := classes(t, resctrl)

	cutBy := func(p *e2e.Pod) {
		t.Helper()
		s.wait(p, "what is normal for web", func(st *server.State) bool {
			return slices.ContainsFunc(st.Verdicts, func(v server.Verdict) bool {
				return v.Pod == "web" && v.Axis == "cache" && v.Evidence.CPI != nil && v.Evidence.CPI.CPIFence > 0
			})
		})
		c := s.batch.StartContainer(containerd.Container{Name: "main", Command: hog, Mounts: []string{work}})
		s.wait(p, "fewer ways for batch", func(st *server.State) bool {
			return slices.ContainsFunc(st.Pods, func(p server.Pod) bool { return p.Name == "batch" && p.Limits != nil && p.Limits.Ways > 0 })
		})
		pids, err := s.node.Runtime.PIDs(c)
		if err != nil || len(pids) == 0 {
			t.Fatalf("processes of batch: %v %v", pids, err)
		}
		var in string
		for class := range classes(t, resctrl) {
			if text, err := os.ReadFile(filepath.Join(resctrl, class, "tasks")); err == nil && slices.Contains(strings.Fields(string(text)), strconv.Itoa(pids[0])) {
				in = class
			}
		}
		if _, was := before[in]; in == "" || was {
			t.Errorf("batch is in class %q of resctrl; want one that is new", in)
		}
	}
	p := s.start()
	cutBy(p)
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; log:\n%s", code, p.Log())
	}
	if diff := cmp.Diff(before, classes(t, resctrl)); diff != "" {
		t.Errorf("classes of resctrl after SIGTERM (- before the agent, + now):\n%s", diff)
	}

	// Killed, and none comes any more.
	s.batch.StopContainer("main")
	p = s.start()
	cutBy(p)
	p.Kill()
	if cmp.Equal(before, classes(t, resctrl)) {
		t.Error("kill -9 has put classes back, which nobody can have done")
	}
	ds := e2e.DaemonSet(t, s.values)
	ds.Spec.Template.Spec.Containers[0].Args = []string{"restore", "--run-dir=/run/qos-agent"}
	p = s.node.Run(t, ds, nil)
	if code := p.Wait(); code != 0 {
		t.Errorf("restore: exit code %d\n%s", code, p.Log())
	}
	if diff := cmp.Diff(before, classes(t, resctrl)); diff != "" {
		t.Errorf("classes of resctrl after a crash and qos-agent restore (- before the agent, + now):\n%s", diff)
	}
}

// classes are the groups of resctrl with their schemata. "" is the one for all others.
func classes(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob(filepath.Join(root, "*/schemata"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, filepath.Join(root, "schemata")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		class, _ := filepath.Rel(root, filepath.Dir(name))
		out[class] = string(text)
	}
	return out
}

// TestRigCapabilities shows what the capability that the chart adds for counters and for resctrl is good for, and when it is not needed.
func TestRigCapabilities(t *testing.T) {
	guest.Mount(t)
	const sysctl = "/proc/sys/kernel/perf_event_paranoid"
	n := e2e.NewNode(t)
	n.ConfigMap(t, "qos-agent-policy", nil)
	asDebian := guest.ReadNumber(t, sysctl)
	if asDebian != 3 {
		t.Fatalf("%s is %d; want Debian's 3", sysctl, asDebian)
	}
	for _, c := range []struct {
		name, values string
		paranoid     int
		less         string // capability that is taken away
		has, lacks   []string
	}{
		{"by default", "", 3, "", []string{"bpf"}, []string{"perf", "resctrl"}},
		{"by default, and the kernel lets PERFMON count", "", 2, "", []string{"bpf", "perf"}, nil},
		{"for paranoid kernels", "{perfParanoid: true}", 3, "", []string{"bpf", "perf"}, nil},
		{"for RDT", "{resctrl: true}", 3, "", []string{"bpf", "perf", "resctrl", "cache_allocation", "bandwidth_monitoring"}, nil},
		{"for RDT, without DAC_OVERRIDE", "{resctrl: true}", 3, "DAC_OVERRIDE", []string{"bpf", "perf", "resctrl"}, []string{"cache_allocation", "bandwidth_allocation"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(sysctl, []byte(strconv.Itoa(c.paranoid)), 0); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.WriteFile(sysctl, []byte(strconv.FormatUint(asDebian, 10)), 0) })
			values := ""
			if c.values != "" {
				values = fmt.Sprintf("pools: {default: %s}\n", c.values)
			}
			ds := e2e.DaemonSet(t, values)
			got := works(t, n, ds, slices.DeleteFunc(granted(ds), func(name string) bool { return name == c.less }), confined)
			for _, f := range c.has {
				if !slices.Contains(got, f) {
					t.Errorf("%s does not work", f)
				}
			}
			for _, f := range c.lacks {
				if slices.Contains(got, f) {
					t.Errorf("%s works all the same", f)
				}
			}
		})
	}
}
