package groups

import (
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

func TestTreeOnThisKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := New(h, "qos-agent-test-groups")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tree.Remove(); err != nil {
			t.Error(err)
		}
	}()
	group, err := tree.Make("pod/main")
	if err != nil {
		t.Fatal(err)
	}
	before, err := tree.Snapshot()
	if err != nil || len(before) == 0 {
		t.Fatalf("snapshot: %d files, %v", len(before), err)
	}
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Skipf("needs the command sleep: %v", err)
	}
	if err := tree.Join(group, sleeper.Process.Pid); err != nil {
		t.Fatal(err)
	}
	after, err := tree.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("a task that joins is no change of settings:\n%s", diff)
	}
	file, text := "cpu.shares", "77"
	if h.V2(cgroup.CPU) {
		file = "cpu.weight"
	}
	if err := tree.Write(cgroup.CPU, group, file, text); err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Read(cgroup.CPU, group, file); err != nil || got != text {
		t.Fatalf("%s = %q, %v", file, got, err)
	}
	if after, err = tree.Snapshot(); err != nil || cmp.Equal(before, after) {
		t.Fatalf("a changed weight does not show in the snapshot (%v)", err)
	}
	if err := tree.Remove(); err != nil {
		t.Fatal(err)
	}
	_ = sleeper.Wait() // killed by Remove
	if left, err := tree.Snapshot(); err == nil {
		t.Fatalf("after Remove: %d files are left", len(left))
	}
}
