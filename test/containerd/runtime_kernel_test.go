package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRuntime(t *testing.T) {
	var dir, group, socket string
	t.Run("pods", func(t *testing.T) {
		r := Start(t)
		dir, group, socket = r.dir, r.Group, r.socket()
		p := r.RunPod(Pod{Name: "web", Labels: map[string]string{"a": "b"}, Containers: []Container{{Name: "one"}, {Name: "two"}}})
		first := *p.Container("one")
		pids, err := r.PIDs(&first)
		if err != nil || len(pids) != 1 {
			t.Fatalf("PIDs: %v, %v; want one", pids, err)
		}
		again := p.StartContainer(Container{Name: "one", Command: []string{"sh", "-c", "while :; do sleep 1; done"}, Shares: 2})
		if again.ID == first.ID {
			t.Error("a restarted container has the ID of the old one")
		}
		r.Kill()
		if pids, err := r.PIDs(again); err != nil || len(pids) == 0 {
			t.Errorf("PIDs after containerd was killed: %v, %v; want containers to live on", pids, err)
		}
		r.Restart()
		p.StopContainer("two")
		p.Remove()
		r.RunPod(Pod{Name: "left", Containers: []Container{{Name: "main"}}})
		r.Kill() // cleaning must work without it
	})
	if t.Failed() || dir == "" {
		return
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind (%v)", dir, err)
	}
	for _, pattern := range []string{cgroupRoot + group, cgroupRoot + "/*" + group} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("groups are left behind: %v", left)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(mounts), dir) {
		t.Error("mounts are left behind")
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		if text, _ := os.ReadFile(l); strings.Contains(string(text), socket) {
			t.Errorf("a process is left behind: %q", text)
		}
	}
}
