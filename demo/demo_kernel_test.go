package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
)

func TestMain(m *testing.M) {
	load.MaybeRun()
	maybeBatch()
	maybeWeb()
	os.Exit(m.Run())
}

// TestStageWithoutAgent sets up everything but the agent, uses it, and looks whether all of it goes away again.
func TestStageWithoutAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes control groups")
	}
	if _, err := lookNginx(); err != nil {
		t.Skip("needs nginx: ", err)
	}
	s := &stage{o: options{seed: 1}, dir: t.TempDir()}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(s.makeGroups(), s.startWork(t.Context())); err != nil {
		t.Fatal(err)
	}
	capacity, err := s.calibrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if capacity <= 0 {
		t.Fatal("the service answers nothing")
	}
	if err := s.load.SetRate(capacity / 2); err != nil {
		t.Fatal(err)
	}
	before := s.heavy.bytes()
	w, err := s.window(t.Context(), 100*time.Millisecond, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: capacity %.0f/s; alone p50 %s, p99 %s, p99.9 %s, %d errors, queued %d of %d, %+v", s.web.what, capacity, us(w.P50), us(w.P99), us(w.P999), w.Errors, w.Queued, w.Offered, w.Self)
	if s.heavy.bytes() != before {
		t.Error("paused work goes on")
	}
	s.heavy.resume()
	s.light.resume()
	if w, err = s.window(t.Context(), 100*time.Millisecond, 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	t.Logf("beside offline work p50 %s, p99 %s, p99.9 %s, %d errors, queued %d of %d, %+v", us(w.P50), us(w.P99), us(w.P999), w.Errors, w.Queued, w.Offered, w.Self)
	if s.heavy.bytes() == before || s.light.bytes() == 0 {
		t.Error("resumed work does nothing")
	}

	pid, group := s.web.cmd.Process.Pid, s.tree.Path()
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the online service is still there: %v", err)
	}
	if found, _ := filepath.Glob("/sys/fs/cgroup/*" + group); len(found) > 0 {
		t.Errorf("groups are still there: %v", found)
	}
}

// TestBuiltInService starts what stands in for nginx where it cannot be had.
func TestBuiltInService(t *testing.T) {
	w, err := startServer(t.Context(), t.TempDir(), "", cpuset.Of(0), func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
}
