//go:build amd64

package rdt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigMountByPolicy has the daemon mount resctrl because the policy says so: in order it unmounts it when it stops, and after a kill
// restore does; without that word in the policy it leaves resctrl alone and works on.
func TestRigMountByPolicy(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	group := "qos-agent-mount/batch"
	guest.Start(t, guest.Group(t, group), "hog", "-profile", "100,64,900,10")
	pods := filepath.Join(dir, "pods.yaml")
	err := daemon.WriteStaticPods(pods, daemon.Pod{Namespace: "batch", Name: "hog", Labels: map[string]string{"qos-agent.io/class": "offline"}, Cgroup: "/" + group})
	if err != nil {
		t.Fatal(err)
	}
	start := func(spec string) *daemon.Daemon {
		t.Helper()
		policies := filepath.Join(dir, "policy")
		if err := os.MkdirAll(policies, 0o755); err != nil {
			t.Fatal(err)
		}
		text := "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: mount}\nspec:\n  mode: enforce\n" + spec
		if err := daemon.Replace(filepath.Join(policies, "mount.yaml"), text); err != nil {
			t.Fatal(err)
		}
		d, err := daemon.Start(daemon.Options{Binary: os.Getenv("QOS_AGENT_BIN"), PolicyDir: policies, StaticPods: pods, RunDir: filepath.Join(dir, "run")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Kill)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.WaitReady(ctx); err != nil {
			t.Fatalf("%v\n%s", err, d.Log())
		}
		return d
	}
	mounted := func() bool {
		t.Helper()
		_, on, err := rdt.Mounted("/proc", guest.Resctrl)
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	inClass := func(d *daemon.Daemon) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := d.WaitState(ctx, "a class with the pod in it", func(s *server.State) bool {
			r := s.Node.RDT
			return r != nil && len(r.Classes) == 1 && r.Classes[0].Group == "qos-agent.offline" && len(r.Classes[0].Pods) == 1
		}); err != nil {
			t.Fatalf("%v\n%s", err, d.Log())
		}
	}
	stop := func(d *daemon.Daemon) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Errorf("%v\n%s", err, d.Log())
		}
	}

	d := start("")
	if mounted() {
		t.Error("mounted although the policy does not say so")
	}
	stop(d)

	d = start("  rdt: {mount: true}\n")
	inClass(d)
	stop(d)
	if mounted() {
		t.Errorf("still mounted after the daemon has stopped\n%s", d.Log())
	}

	d = start("  rdt: {mount: true}\n")
	inClass(d)
	d.Kill()
	if !mounted() {
		t.Fatal("a kill has unmounted it: this test proves nothing")
	}
	out, err := exec.Command(os.Getenv("QOS_AGENT_BIN"), "restore", "--run-dir", filepath.Join(dir, "run")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "removed resctrl group qos-agent.offline") || !strings.Contains(string(out), "unmounted resctrl") {
		t.Errorf("restore: %v\n%s", err, out)
	}
	if mounted() {
		t.Error("still mounted after restore")
	}
}
