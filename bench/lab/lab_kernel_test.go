package lab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/groups"
)

// testLab has a lock of its own, so that it does not mind a bench that runs.
func testLab(t *testing.T) (*Lab, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	lock := filepath.Join(t.TempDir(), "lock")
	l, err := open(lock, lock+".setting")
	if err != nil {
		t.Fatal(err)
	}
	return l, lock
}

func TestTwoBenchesRefuse(t *testing.T) {
	l, lock := testLab(t)
	defer l.Close()
	second, err := open(lock, lock+".setting")
	if err == nil {
		second.Close()
		t.Fatal("two benches at once")
	}
	if !strings.Contains(err.Error(), "another bench is running") {
		t.Errorf("error %q", err)
	}
}

// TestNothingStays closes a lab in which processes run, and looks for all of it.
func TestNothingStays(t *testing.T) {
	l, _ := testLab(t)
	group, err := l.Tree.Make("work")
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.Tree.Command(group, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // says that it was killed
	waitFor(t, "the command to join its group", func() bool {
		text, _ := l.Tree.Read(cgroup.CPU, group, "cgroup.procs")
		return text != ""
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{l.Dir, l.Disk, l.Tree.File(cgroup.CPU, l.Tree.Path(), "")} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

// TestWhatAKilledBenchLeftIsCleared makes what a bench makes, under the id of a process that has ended.
func TestWhatAKilledBenchLeftIsCleared(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	name := prefix + strconv.Itoa(gone.ProcessState.Pid())
	left, err := groups.New(h, name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := left.Command(left.Path(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	dir := filepath.Join("/dev/shm", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, _ := testLab(t)
	defer l.Close()
	for _, dir := range []string{dir, left.File(cgroup.CPU, left.Path(), "")} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("what ran in it still runs")
		_ = cmd.Process.Kill()
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
