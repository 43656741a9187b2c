package cgroup_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestDetect(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Hybrid, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) {
			h := cgrouptest.NewFake(t, mode).Hierarchy()
			if h.Mode() != mode {
				t.Errorf("mode %v", h.Mode())
			}
			where := func(c cgroup.Controller) string {
				dir, ok := h.Dir(c, "/a/b")
				if !ok {
					return "none"
				}
				return strings.TrimPrefix(dir, h.Root())
			}
			got := make(map[string]string)
			for _, c := range []cgroup.Controller{cgroup.CPU, cgroup.CPUAcct, cgroup.CPUSet, cgroup.Memory, cgroup.Freezer, cgroup.Blkio, cgroup.PerfEvent, cgroup.Pressure} {
				got[c.String()] = where(c)
			}
			want := map[string]string{
				"cpu": "/cpu,cpuacct/a/b", "cpuacct": "/cpu,cpuacct/a/b", "cpuset": "/cpuset/a/b", "memory": "/memory/a/b", "freezer": "/freezer/a/b",
				"blkio": "/blkio/a/b", "perf_event": "none", "pressure": "none",
			}
			if mode == cgroup.Hybrid {
				want["perf_event"], want["pressure"] = "/unified/a/b", "/unified/a/b"
			}
			if mode == cgroup.Unified {
				for c := range want {
					want[c] = "/a/b"
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("directories (-want +got):\n%s", diff)
			}
			if v2 := h.V2(cgroup.CPU); v2 != (mode == cgroup.Unified) {
				t.Errorf("cpu is v2: %v", v2)
			}
			if dir, _ := h.Dir(cgroup.CPU, "/../../etc"); !strings.HasPrefix(dir, h.Root()) {
				t.Errorf("a group leads out of the mount: %s", dir)
			}
		})
	}
}

// A controller that was taken away from v1 is looked for in the unified tree of a hybrid machine.
func TestDetectMixed(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Hybrid)
	root := f.Hierarchy().Root()
	if err := os.RemoveAll(filepath.Join(root, "memory")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "unified", "cgroup.controllers"), []byte("memory\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "perf_event"), 0o755); err != nil { // nothing is mounted there
		t.Fatal(err)
	}
	h, err := cgroup.Detect(root)
	if err != nil {
		t.Fatal(err)
	}
	if dir, v2, ok := h.Mount(cgroup.Memory); !ok || !v2 || filepath.Base(dir) != "unified" {
		t.Errorf("memory is at %s, v2 %v", dir, v2)
	}
	if dir, _, _ := h.Mount(cgroup.PerfEvent); filepath.Base(dir) != "unified" {
		t.Errorf("perf_event is at %s", dir)
	}
	if h.V2(cgroup.CPU) {
		t.Error("cpu is v2")
	}
}

func TestDetectErrors(t *testing.T) {
	empty, noCPU := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(noCPU, "cgroup.controllers"), []byte("memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(empty, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for root, want := range map[string]string{
		filepath.Join(empty, "no"): "no such file",
		file:                       "not a directory",
		empty:                      "is cgroupfs mounted there?",
		noCPU:                      "cpu controller is not available",
	} {
		h, err := cgroup.Detect(root)
		var rootErr *cgroup.RootError
		if !errors.As(err, &rootErr) || rootErr.Root != root || !strings.Contains(err.Error(), want) || h != nil {
			t.Errorf("%s: %v", root, err)
		}
	}
}

func TestWalkAndID(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Hybrid)
	h := f.Hierarchy()
	for _, g := range []string{"/b", "/a", "/a/y", "/a/x", "/a/x/deep"} {
		if err := f.Mkdir(g); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := h.Walk(cgroup.CPU, "/a", func(g string) error {
		got = append(got, g)
		if g == "/a/x" {
			if err := cgrouptest.RemoveAll(f, "/a/y"); err != nil { // vanishes under the walk
				t.Fatal(err)
			}
			return fs.SkipDir
		}
		return nil
	})
	if diff := cmp.Diff([]string{"/a", "/a/x"}, got[:2]); diff != "" || err != nil {
		t.Errorf("walk: %v (-want +got):\n%s", err, diff)
	}
	if err := h.Walk(cgroup.CPU, "/none", func(string) error { t.Error("walked a group that is not there"); return nil }); err != nil {
		t.Error(err)
	}
	stop := errors.New("stop")
	if err := h.Walk(cgroup.CPU, "/", func(string) error { return stop }); err != stop {
		t.Errorf("walk ends with %v", err)
	}
	if id, err := h.ID("/a"); err != nil || id == 0 {
		t.Errorf("ID of /a: %d, %v", id, err)
	}
	if _, err := h.ID("/none"); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("ID of no group: %v", err)
	}
}
