//go:build amd64

package rdt_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/channel"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

func release(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// makeGroup waits for ids that a test before this one has freed: 6.12 gives them out again only after a second.
func makeGroup(t *testing.T, f *rdt.FS, name string) {
	t.Helper()
	err := f.Make(name)
	for range 100 {
		if !errors.Is(err, rdt.ErrLimbo) {
			break
		}
		time.Sleep(100 * time.Millisecond)
		err = f.Make(name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// moveAll moves a load that has just been started with all of its threads.
func moveAll(t *testing.T, f *rdt.FS, group string, pid int) {
	t.Helper()
	time.Sleep(200 * time.Millisecond) // its threads start
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Move(group, tid); err != nil {
			t.Fatal(err)
		}
	}
}

// sleeper is the PID of a process that does nothing and ends with the test.
func sleeper(t *testing.T) int {
	t.Helper()
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleep.Process.Kill() // it may have ended
		_ = sleep.Wait()
	})
	return sleep.Process.Pid
}

// TestRigRules holds the fake's rules against the kernel's.
func TestRigRules(t *testing.T) {
	root := guest.Mount(t)
	testRules(t, world{rdt.Dir(root), sleeper(t), !strings.HasPrefix(release(t), "6.1.")})
}

func TestRigCounters(t *testing.T) {
	f, err := rdt.Open(rdt.Dir(guest.Mount(t)))
	if err != nil {
		t.Fatal(err)
	}
	makeGroup(t, f, "hogs")
	hog := guest.Start(t, guest.Group(t, "qos-agent-test-hogs"), "hog", "-profile", "9000,65536,700,8", "-threads", "2")
	moveAll(t, f, "hogs", hog.PID())
	c, err := f.Counters("hogs")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func() rdt.Reading {
		t.Helper()
		r, err := c.Read(nil)
		if err != nil || len(r) != 1 {
			t.Fatalf("read %+v, %v", r, err)
		}
		return r[0]
	}
	first := read()
	time.Sleep(time.Second)
	second := read()
	t.Logf("occupancy %d KiB, %d MB in a second", second.Occupancy>>10, (second.Total-first.Total)/1e6)
	if second.State() != rdt.OK || second.Occupancy < 1<<20 || second.Total-first.Total < 100e6 {
		t.Errorf("two hogs: %+v, a second later %+v", first, second)
	}

	for fault, want := range map[channel.Fault]rdt.State{channel.Unavailable: rdt.Unavailable, channel.Error: rdt.Error} {
		for rmid := range 64 {
			channel.Break(rmid, 400*time.Millisecond, fault)
		}
		if r := read(); r.State() != want {
			t.Errorf("a failing counter reads %+v, want state %v", r, want)
		}
		time.Sleep(600 * time.Millisecond)
		if r := read(); r.State() != rdt.OK {
			t.Errorf("a counter that works again reads %+v", r)
		}
	}
	hog.Stop()
	if err := f.Remove("hogs"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(nil); !rdt.Gone(err) {
		t.Errorf("reading a removed group's counters: %v", err)
	}
}

func TestRigMount(t *testing.T) {
	guest.Require(t)
	dir := rdt.Dir(guest.Resctrl)
	if _, ok, err := rdt.Mounted("/proc", dir); ok || err != nil {
		t.Fatalf("mounted before: %v, %v", ok, err)
	}
	if err := rdt.Mount(dir, rdt.MountOptions{CDP: true}); err == nil {
		t.Error("mounted with CDP, which this CPU has not got")
	}
	if err := rdt.Mount(dir, rdt.MountOptions{MBps: true}); err != nil {
		t.Fatal(err)
	}
	defer rdt.Unmount(dir)
	if options, ok, err := rdt.Mounted("/proc", dir); !ok || err != nil || !strings.Contains(options, "mba_MBps") {
		t.Errorf("mounted: %v, %v, %q", ok, err, options)
	}
	f, err := rdt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if mb := f.Info.MB; mb == nil || mb.Unit != rdt.MiBps {
		t.Errorf("bandwidth %+v", mb)
	}
	makeGroup(t, f, "g")
	if _, now, err := f.SetLimits("g", []rdt.Line{{"MB", []rdt.Domain{{0, 3000}}}}); err != nil || now.Values("MB")[0].Value != 3000 {
		t.Errorf("3000 MiB/s: %v, %v", now, err)
	}
	if _, now, err := f.SetLimits("g", []rdt.Line{{"MB", []rdt.Domain{{0, 3004}}}}); err != nil || now.Values("MB")[0].Value != 3010 {
		t.Errorf("3004 MiB/s: %v, %v", now, err)
	}
	for range 2 {
		if _, now, err := f.SetLimits("g", []rdt.Line{{"MB", []rdt.Domain{{0, rdt.Unlimited}}}}); err != nil || now.Values("MB")[0].Value < rdt.Unlimited-10 {
			t.Errorf("no limit: %v, %v", now, err)
		}
	}
}
