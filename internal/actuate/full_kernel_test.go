package actuate

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

// On a full tmpfs nothing new is touched, but what is held goes back, with the agent and without it.
func TestFullRunDir(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("qos-agent-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.kill()
	b.runDir = dir
	b.open()
	b.mkdir("a", "b")
	before := cgrouptest.Snapshot(b.w)
	b.e.Apply([]knob.Want{b.want("a", knob.CPUIdle, n(1))}, b.policy)
	b.kill()

	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	b.open()
	held := b.want("a", knob.CPUIdle, n(1))
	// The rest of the journal's last page takes some records; a group for each until it is full.
	for range 40 {
		b.e.Apply([]knob.Want{held, b.want("b", knob.CPUWeight, n(1))}, b.policy)
		b.e.Apply([]knob.Want{held}, b.policy)
	}
	out := b.e.Apply([]knob.Want{held, b.want("b", knob.CPUWeight, n(1))}, b.policy)
	b.results(results{knob.Failed: 1}, out)
	b.is("b", "cpu.weight", "100")
	b.is("a", "cpu.idle", "1")
	b.kill()

	sum, err := Restore(b.options())
	if err != nil || len(sum.Restored) == 0 {
		t.Errorf("restored %v, %v", sum.Restored, err)
	}
	b.unchanged(before)
}
