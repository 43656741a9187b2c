package actuate

import (
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/test/crash"
)

// What the process that gets killed works on.
const (
	envTree   = "ACTUATE_CRASH_TREE" // "fake DIRECTORY" or "real BASE"
	envRunDir = "ACTUATE_CRASH_RUN_DIR"
)

func TestMain(m *testing.M) { crash.Main(m, victim) }

// victim is the agent that gets killed: it carries out plan after plan.
func victim(hook func(string), round func()) error {
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
	e, err := Open(Options{Hierarchy: w.Hierarchy(), FS: w.FS(), RunDir: os.Getenv(envRunDir), BootID: "this-boot", crash: hook})
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
		round()
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
	c := crash.Test{
		Env: []string{envTree + "=" + tree, envRunDir + "=" + b.runDir}, Step: step, Least: 5, Random: 20 / step, Within: 60 * time.Millisecond, Restore: restore,
	}
	c.Run(t)
}
