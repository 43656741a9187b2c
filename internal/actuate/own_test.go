package actuate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestOwnGroups(t *testing.T) {
	proc := filepath.Join(t.TempDir(), "cgroup")
	for _, c := range []struct {
		what, text, seen string
		mode             cgroup.Mode
		want             []string
	}{
		{"a service on cgroup v2", "0::/system.slice/qos-agent.service\n", "", cgroup.Unified, []string{"/system.slice/qos-agent.service"}},
		{"a container on cgroup v2 with a namespace of its own", "0::/\n", "kubepods/pod1/agent", cgroup.Unified, []string{"/kubepods/pod1/agent"}},
		{"a process at the top", "0::/\n", "", cgroup.Unified, []string{"/"}},
		{"a hybrid machine", "4:cpu,cpuacct:/kubepods/pod1/agent\n1:name=systemd:/x\n0::/\n", "kubepods/pod1/agent", cgroup.Hybrid,
			[]string{"/kubepods/pod1/agent", "/x", "/"}},
	} {
		b := newBench(t, cgrouptest.NewFake(t, c.mode))
		b.mkdir("kubepods", "kubepods/pod1", "kubepods/pod1/agent", "kubepods/pod2")
		if err := os.WriteFile(proc, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		dir, _ := b.e.h.Dir(cgroup.CPU, b.abs(c.seen))
		want := c.want
		if c.seen != "" && c.mode == cgroup.Unified {
			want = []string{b.abs(c.seen)}
		}
		if diff := cmp.Diff(want, ownGroups(b.e.h, proc, dir)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}
