package actuate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

// The test binary runs itself as the agent that gets killed; these variables tell it so.
const (
	envTree   = "ACTUATE_CRASH_TREE" // "fake DIRECTORY" or "real BASE"
	envRunDir = "ACTUATE_CRASH_RUN_DIR"
	envPoint  = "ACTUATE_CRASH_POINT" // the point at which it kills itself; 0 for never, and then it does not end by itself
)

func TestMain(m *testing.M) {
	if os.Getenv(envTree) != "" {
		fmt.Println(victim())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// victim is the agent that gets killed: it carries out plan after plan.
func victim() error {
	var w cgrouptest.World
	var err error
	kind, where, _ := strings.Cut(os.Getenv(envTree), " ")
	if kind == "fake" {
		w, err = cgrouptest.OpenFake(where)
	} else {
		w, err = cgrouptest.OpenReal(where)
	}
	if err != nil {
		return err
	}
	at, err := strconv.Atoi(os.Getenv(envPoint))
	if err != nil {
		return err
	}
	points := 0
	e, err := Open(Options{
		Hierarchy: w.Hierarchy(), FS: w.FS(), RunDir: os.Getenv(envRunDir), BootID: "this-boot",
		crash: func(string) {
			if points++; points == at {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		return err
	}
	b := &bench{w: w, v2: w.Hierarchy().V2(cgroup.CPU)}
	for {
		for _, plan := range crashPlans(b) {
			for _, o := range e.Apply(plan, Policy{}) {
				if o.Err != nil {
					return o.Err
				}
			}
		}
		if at != 0 {
			fmt.Println("end of plans")
			os.Exit(0)
		}
	}
}

func crashPlans(b *bench) [][]knob.Want {
	idle, weight := b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUWeight, n(7))
	cpu0, cpu1 := b.want("pod", knob.CPUSet, cpus(0)), b.want("pod", knob.CPUSet, cpus(1))
	half, period := b.want("pod", knob.CPUQuota, quota(20000, 100000)), b.want("pod", knob.CPUQuota, quota(3000, 10000))
	frozen, other := b.want("pod", knob.Freeze, n(1)), b.want("other", knob.CPUIdle, n(1))
	return [][]knob.Want{
		{idle}, {idle, cpu0, other}, {idle, cpu1, half, frozen}, {weight, cpu1, period}, {other}, {weight, half}, {idle, cpu0, frozen}, nil,
	}
}

func TestFakeCrash(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Hybrid, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) {
			dir := t.TempDir()
			w, err := cgrouptest.MakeFake(dir, mode)
			if err != nil {
				t.Fatal(err)
			}
			testCrash(t, w, "fake "+dir)
		})
	}
}

// testCrash kills an agent at every point between two steps, and at random instants, and each time has the tree restored.
func testCrash(t *testing.T, w cgrouptest.World, tree string) {
	b := &bench{t: t, w: w, v2: w.Hierarchy().V2(cgroup.CPU), runDir: path.Join(t.TempDir(), "run")}
	b.mkdir("pod", "pod/a", "pod/a/nested", "pod/own", "other")
	b.write("pod", pick(b, "cpu.shares", "cpu.weight"), "300")
	b.write("pod/own", "cpuset.cpus", "1")
	b.write("pod", pick(b, "cpu.cfs_quota_us", "cpu.max"), "90000")
	b.write("pod", pick(b, "cpu.cfs_burst_us", "cpu.max.burst"), "60000")
	b.write("pod/a", pick(b, "cpu.cfs_quota_us", "cpu.max"), "50000")
	before := cgrouptest.Snapshot(w)

	restore := func(after string) {
		t.Helper()
		o := b.options()
		o.FS, o.Now = w.FS(), nil
		sum, err := Restore(o)
		if err != nil || len(sum.Failed) > 0 {
			t.Fatalf("killed %s: restore: %+v, %v", after, sum, err)
		}
		if diff := diffTrees(before, cgrouptest.Snapshot(w)); diff != "" {
			t.Fatalf("killed %s: tree (-before +after):\n%s", after, diff)
		}
	}
	step := 1
	if testing.Short() {
		step = 5
	}
	killed := 0
	for point := 1; ; point += step {
		cmd := b.victim(tree, point)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Logf("killed at each of %d points", killed)
			break
		}
		if !wasKilled(err) {
			t.Fatalf("victim at point %d: %v: %s", point, err, out)
		}
		killed++
		if point%3 != 0 { // else the next agent takes over what this one left
			restore(fmt.Sprintf("at point %d", point))
		}
	}
	if killed < 5 {
		t.Errorf("killed at %d points only", killed)
	}
	for i := range 20 / step {
		cmd := b.victim(tree, 0)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.IntN(60)) * time.Millisecond
		time.Sleep(after)
		cmd.Process.Kill()
		if err := cmd.Wait(); !wasKilled(err) {
			t.Fatalf("victim: %v", err)
		}
		if i%3 != 0 {
			restore("after " + after.String())
		}
	}
	restore("and restored in the end")
}

func (b *bench) victim(tree string, point int) *exec.Cmd {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envTree+"="+tree, envRunDir+"="+b.runDir, envPoint+"="+strconv.Itoa(point))
	return cmd
}

func wasKilled(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}
