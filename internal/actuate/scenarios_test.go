package actuate

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func testEverything(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a", "pod/a/nested", "pod/b", "other")
	b.write("pod", pick(b, "cpu.shares", "cpu.weight"), "300")
	b.write("pod/b", "cpuset.cpus", "1")
	before := cgrouptest.Snapshot(b.w)
	plan := []knob.Want{
		b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0)), b.want("pod", knob.CPUQuota, quota(50000, 100000)),
		b.want("pod", knob.Freeze, n(1)), b.want("other", knob.CPUWeight, n(1)), b.want("other", knob.CPUBurst, n(0)),
	}
	b.e.Apply(plan, b.policy)
	b.is("pod", "cpu.idle", "1")
	b.is("pod", "cpuset.cpus", "0")
	b.is("pod", pick(b, "freezer.state", "cgroup.freeze"), pick(b, "FROZEN", "1"))
	b.is("other", pick(b, "cpu.shares", "cpu.weight"), pick(b, "2", "1"))
	b.is("pod/b", "cpuset.cpus", pick(b, "0", "1"))
	for _, h := range b.e.Held() {
		if h.Owner != "cpu" || h.Rule != "test" || h.Since.IsZero() {
			t.Errorf("held without telling why: %+v", h)
		}
	}
	for _, o := range b.e.RestoreAll() {
		if o.Result != knob.Restored {
			t.Errorf("%v %v: %v", o.Target, o.Result, o.Err)
		}
	}
	b.unchanged(before)
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

func testIdleWeight(t *testing.T, b *bench) {
	file := pick(b, "cpu.shares", "cpu.weight")
	b.mkdir("pod")
	b.write("pod", file, "300")
	before := cgrouptest.Snapshot(b.w)

	b.apply(results{knob.Written: 1}, b.want("pod", knob.CPUIdle, n(1)))
	b.is("pod", "cpu.idle", "1")
	// A weight cannot be set while the group is idle: it waits.
	b.apply(results{}, b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUWeight, n(10)))
	out := b.apply(results{knob.Written: 1, knob.Restored: 1}, b.want("pod", knob.CPUWeight, n(10)))
	if len(out) == 2 && (out[0].Kind != knob.CPUIdle || out[0].Old != "1" || out[0].New != "0") {
		t.Errorf("idle was not restored first: %+v", out[0])
	}
	b.is("pod", file, pick(b, "50", "10"))
	b.apply(results{knob.Restored: 1})
	b.unchanged(before)
	// Idle alone, the weight comes back by itself.
	b.apply(results{knob.Written: 1}, b.want("pod", knob.CPUIdle, n(1)))
	b.apply(results{knob.Restored: 2})
	b.unchanged(before)
}

func testCPUSet(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a", "pod/a/nested", "pod/own", "pod/own/nested", "pod/late")
	b.write("pod/own/nested", "cpuset.cpus", "1")
	b.write("pod/own", "cpuset.cpus", "1")
	before := cgrouptest.Snapshot(b.w)

	// Six groups on v1, the pod alone on v2.
	b.apply(pick(b, results{knob.Written: 6}, results{knob.Written: 1}), b.want("pod", knob.CPUSet, cpus(0)))
	for _, g := range []string{"pod", "pod/a", "pod/a/nested", "pod/own", "pod/own/nested"} {
		if !b.v2 || g == "pod" {
			b.is(g, "cpuset.cpus", "0")
		}
	}
	// To the other CPU: through both on v1.
	b.apply(pick(b, results{knob.Written: 6}, results{knob.Written: 1}), b.want("pod", knob.CPUSet, cpus(1)))
	b.is("pod", "cpuset.cpus", "1")
	b.is("pod/own/nested", "cpuset.cpus", "1")
	// Both: who has its own, narrower set keeps it.
	b.apply(pick(b, results{knob.Written: 4}, results{knob.Written: 1}), b.want("pod", knob.CPUSet, cpus(0, 1)))
	b.is("pod/own/nested", "cpuset.cpus", "1")
	if !b.v2 {
		b.is("pod/a/nested", "cpuset.cpus", "0-1")
	}
	// A container wants less than its pod.
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUSet, cpus(0, 1)), b.want("pod/a", knob.CPUSet, cpus(1))}, b.policy)
	b.is("pod/a", "cpuset.cpus", "1")
	if !b.v2 {
		b.is("pod/a/nested", "cpuset.cpus", "1")
	}
	// The pod's want ends, the container's stays.
	b.e.Apply([]knob.Want{b.want("pod/a", knob.CPUSet, cpus(0))}, b.policy)
	b.is("pod/a", "cpuset.cpus", "0")
	b.e.Apply(nil, b.policy)
	b.unchanged(before)
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

func testQuotaBurst(t *testing.T, b *bench) {
	b.mkdir("pod")
	setQuota := func(q, period string) {
		if b.v2 {
			b.write("pod", "cpu.max", q+" "+period)
			return
		}
		b.write("pod", "cpu.cfs_period_us", period)
		b.write("pod", "cpu.cfs_quota_us", q)
	}
	isQuota := func(q, period string) {
		t.Helper()
		if b.v2 {
			b.is("pod", "cpu.max", q+" "+period)
			return
		}
		b.is("pod", "cpu.cfs_period_us", period)
		b.is("pod", "cpu.cfs_quota_us", q)
	}
	burst := pick(b, "cpu.cfs_burst_us", "cpu.max.burst")
	setQuota("80000", "100000")
	b.write("pod", burst, "60000")
	before := cgrouptest.Snapshot(b.w)

	// The quota shrinks below the burst, which has to go first.
	out := b.apply(results{knob.Written: 2}, b.want("pod", knob.CPUQuota, quota(20000, 100000)))
	if len(out) == 2 && out[0].Kind != knob.CPUBurst {
		t.Errorf("burst was not lowered first: %v", out)
	}
	isQuota("20000", "100000")
	b.is("pod", burst, "20000")
	// Another period.
	b.apply(results{knob.Written: 2}, b.want("pod", knob.CPUQuota, quota(5000, 10000)))
	isQuota("5000", "10000")
	b.is("pod", burst, "5000")
	// The limit is lifted: the burst has room again.
	b.apply(results{knob.Written: 2}, b.want("pod", knob.CPUQuota, n(-1)))
	isQuota(pick(b, "-1", "max"), "100000")
	b.is("pod", burst, "60000")
	// A burst is wanted beside a quota that is too small for it.
	b.apply(results{knob.Written: 2}, b.want("pod", knob.CPUQuota, quota(30000, 100000)), b.want("pod", knob.CPUBurst, n(90000)))
	b.is("pod", burst, "30000")
	b.apply(results{knob.Written: 1, knob.Restored: 1}, b.want("pod", knob.CPUBurst, n(70000)))
	b.is("pod", burst, "70000")
	b.apply(results{knob.Restored: 1})
	b.unchanged(before)
}

func testQuotaTree(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a", "pod/a/nested", "pod/free")
	limit := func(group, q string) {
		b.write(group, pick(b, "cpu.cfs_quota_us", "cpu.max"), q)
	}
	limit("pod/a", "50000")
	limit("pod/a/nested", "40000")
	before := cgrouptest.Snapshot(b.w)

	b.apply(pick(b, results{knob.Written: 3}, results{knob.Written: 1}), b.want("pod", knob.CPUQuota, quota(20000, 100000)))
	b.is("pod", pick(b, "cpu.cfs_quota_us", "cpu.max"), pick(b, "20000", "20000 100000"))
	// Between the two children's: the inner one fits again.
	b.apply(pick(b, results{knob.Written: 2}, results{knob.Written: 1}), b.want("pod", knob.CPUQuota, quota(45000, 100000)))
	if !b.v2 {
		b.is("pod/a/nested", "cpu.cfs_quota_us", "40000")
		b.is("pod/a", "cpu.cfs_quota_us", "-1")
	}
	b.apply(pick(b, results{knob.Written: 2}, results{knob.Written: 1}), b.want("pod", knob.CPUQuota, quota(1000, 1000000)))
	b.e.Apply(nil, b.policy)
	b.unchanged(before)
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

func testNewContainers(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a")
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUSet, cpus(0))}, b.policy)
	b.mkdir("pod/b", "pod/b/nested") // a copy of what the pod has now, on v1
	if err := b.w.Mkdir(b.abs("pod/raw")); err != nil {
		t.Fatal(err)
	}
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUSet, cpus(1))}, b.policy)
	if !b.v2 {
		b.is("pod/b/nested", "cpuset.cpus", "1")
		b.is("pod/raw", "cpuset.cpus", "")
		b.write("pod/raw", "cpuset.cpus", "1") // the runtime comes to set it up
	}
	b.mkdir("pod/c")
	all, _ := b.w.Read(b.w.Base(), "cpuset.cpus")
	b.e.Apply(nil, b.policy)
	for _, g := range []string{"pod", "pod/a", "pod/b", "pod/b/nested", "pod/c", "pod/raw"} {
		got, err := b.w.Read(b.abs(g), "cpuset.cpus")
		if want := pick(b, all, "\n"); err != nil || got != want {
			t.Errorf("%s has CPUs %q, %v, want %q", g, got, err, want)
		}
	}
}

func testFreezer(t *testing.T, b *bench) {
	file, frozen, thawed := pick(b, "freezer.state", "cgroup.freeze"), pick(b, "FROZEN", "1"), pick(b, "THAWED", "0")
	b.mkdir("pod", "pod/a")
	before := cgrouptest.Snapshot(b.w)
	b.apply(results{knob.Written: 1}, b.want("pod", knob.Freeze, n(1)))
	b.is("pod", file, frozen)
	// A container that is wanted frozen inside a frozen pod was not frozen itself.
	b.apply(results{knob.Written: 1}, b.want("pod", knob.Freeze, n(1)), b.want("pod/a", knob.Freeze, n(1)))
	b.apply(results{knob.Restored: 1}, b.want("pod/a", knob.Freeze, n(1)))
	b.is("pod", file, thawed)
	b.is("pod/a", file, frozen)
	// Freezing comes last, thawing first.
	plan := []knob.Want{b.want("pod", knob.Freeze, n(1)), b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUQuota, quota(50000, 100000))}
	out := b.e.Apply(plan, b.policy)
	if o := out[len(out)-1]; o.Kind != knob.Freeze || o.Result != knob.Written {
		t.Errorf("frozen before the end: %v", out)
	}
	if out = b.e.RestoreAll(); out[0].Kind != knob.Freeze {
		t.Errorf("thawed late: %v", out)
	}
	b.unchanged(before)
}

func testReapply(t *testing.T, b *bench) {
	file := pick(b, "cpu.shares", "cpu.weight")
	b.reapply()
	b.mkdir("pod", "pod/a", "w")
	b.write("w", file, "300")
	plan := []knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0)), b.want("w", knob.CPUWeight, n(1))}
	b.e.Apply(plan, b.policy)
	b.results(results{}, b.auditAll())

	b.write("w", file, "70")
	b.write("pod", "cpuset.cpus", "0-1")
	b.write("pod", "cpu.idle", "0") // sets the weight to its default on the way
	b.results(results{knob.Reapplied: 3}, b.auditAll())
	b.is("w", file, pick(b, "2", "1"))
	b.is("pod", "cpuset.cpus", "0")
	b.is("pod", "cpu.idle", "1")
	b.results(results{}, b.auditAll())

	// A change that is found only when the knob goes back stands as well.
	b.write("w", file, "80")
	b.e.Apply(nil, b.policy)
	b.is("w", file, "80")
	b.is("pod", "cpuset.cpus", "0-1")
	b.is("pod", "cpu.idle", "0")
	b.is("pod", file, pick(b, "1024", "100"))
}

// testTighter has others limit more than we want to, before and while a knob is held: that is never loosened.
func testTighter(t *testing.T, b *bench) {
	b.reapply()
	b.mkdir("before", "meanwhile")
	limit := func(group, us string) {
		if b.v2 {
			b.write(group, "cpu.max", us+" 100000")
		} else {
			b.write(group, "cpu.cfs_quota_us", us)
		}
	}
	isLimit := func(group, us string) {
		t.Helper()
		b.is(group, pick(b, "cpu.cfs_quota_us", "cpu.max"), pick(b, us, us+" 100000"))
	}
	limit("before", "20000")
	b.write("before", "cpuset.cpus", "1")
	before := cgrouptest.Snapshot(b.w)
	var plan []knob.Want
	for _, group := range []string{"before", "meanwhile"} {
		plan = append(plan, b.want(group, knob.CPUQuota, quota(50000, 100000)), b.want(group, knob.CPUSet, cpus(0)))
	}
	b.e.Apply(plan, b.policy)
	isLimit("before", "20000")
	b.is("before", "cpuset.cpus", "1")
	isLimit("meanwhile", "50000")
	b.is("meanwhile", "cpuset.cpus", "0")

	limit("meanwhile", "10000")
	b.results(results{knob.Yielded: 1}, b.auditAll())
	isLimit("meanwhile", "10000")
	limit("meanwhile", "70000") // theirs is the looser one now
	b.results(results{knob.Reapplied: 1}, b.auditAll())
	isLimit("meanwhile", "50000")
	b.results(results{}, b.auditAll())

	b.e.Apply(nil, b.policy)
	isLimit("meanwhile", "70000")
	limit("meanwhile", pick(b, "-1", "max"))
	b.unchanged(before)
}

func testYield(t *testing.T, b *bench) {
	file := pick(b, "cpu.shares", "cpu.weight")
	b.yield()
	b.mkdir("pod", "pod/a", "w")
	b.write("w", file, "300")
	b.write("pod", file, "300")
	plan := []knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0)), b.want("w", knob.CPUWeight, n(1))}
	b.e.Apply(plan, b.policy)
	b.write("w", file, "70")
	b.write("pod", "cpuset.cpus", "0-1")
	b.write("pod", "cpu.idle", "0")
	// The weight that idle had wiped out is restored, and on v1 the container's CPUs.
	b.results(pick(b, results{knob.Yielded: 3, knob.Restored: 2}, results{knob.Yielded: 3, knob.Restored: 1}), b.auditAll())
	b.is("w", file, "70")
	b.is("pod", "cpuset.cpus", "0-1")
	b.is("pod", file, "300")
	if !b.v2 {
		b.is("pod/a", "cpuset.cpus", "0-1")
	}
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
	// Theirs until the want goes and comes back, whatever else is wanted.
	plan[2].Value = n(2)
	b.apply(results{}, plan...)
	b.is("w", file, "70")
	b.apply(results{}, plan[:2]...)
	b.apply(results{knob.Written: 1}, plan...)
	b.is("w", file, pick(b, "5", "2"))
}

func testGone(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a", "stays")
	plan := []knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("stays", knob.CPUIdle, n(1)), b.want("never", knob.CPUIdle, n(1))}
	out := b.apply(results{knob.Written: 2, knob.Gone: 1}, plan...)
	for _, o := range out {
		if o.Err != nil {
			t.Errorf("a group that is not there is an error: %v", o.Err)
		}
	}
	b.rmdir("pod")
	b.results(results{knob.Gone: 1}, b.auditAll())
	b.results(results{}, b.auditAll())
	if diff := cmp.Diff([]string{"/stays cpu.idle 0 -> 1"}, onlyIdle(b.held())); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	// Another group in its place is looked for now and then, and is a group of its own.
	b.mkdir("pod")
	b.apply(results{}, plan...)
	b.now = b.now.Add(time.Minute)
	b.apply(results{knob.Written: 1}, plan...)
	b.is("pod", "cpu.idle", "1")
	// Killed, the group replaced, opened again: the new group does not get the old one's values.
	b.kill()
	b.rmdir("pod")
	b.mkdir("pod")
	b.write("pod", "cpu.idle", "1")
	b.open()
	b.e.RestoreAll()
	b.is("pod", "cpu.idle", "1")
	b.is("stays", "cpu.idle", "0")
	// Gone while it is written.
	b.apply(results{knob.Written: 1}, b.want("stays", knob.CPUQuota, quota(50000, 100000)))
	b.rmdir("stays")
	b.apply(results{knob.Gone: 1}, b.want("stays", knob.CPUQuota, quota(40000, 100000)))
	b.e.RestoreAll()
}

func onlyIdle(held []string) []string {
	var out []string
	for _, h := range held {
		if h[len(h)-6:] == "0 -> 1" {
			out = append(out, h)
		}
	}
	return out
}

func testAdopt(t *testing.T, b *bench) {
	file := pick(b, "cpu.shares", "cpu.weight")
	b.mkdir("pod", "pod/a", "w")
	b.write("pod", file, "300")
	b.write("w", file, "200")
	before := cgrouptest.Snapshot(b.w)
	plan := []knob.Want{
		b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0)), b.want("pod", knob.CPUQuota, quota(50000, 100000)),
		b.want("w", knob.CPUWeight, n(1)),
	}
	b.e.Apply(plan, b.policy)
	held := b.held()

	b.kill()
	b.open()
	if got := b.e.Adopted(); got != len(held) {
		t.Errorf("adopted %d knobs of %d", got, len(held))
	}
	if diff := cmp.Diff(held, b.held()); diff != "" {
		t.Errorf("held after the crash (-want +got):\n%s", diff)
	}
	b.apply(results{}, plan...) // nothing has to be written
	b.kill()
	b.open()
	b.apply(results{knob.Restored: pick(b, 5, 4)}, plan[3])
	b.kill()
	b.write("w", file, "70") // by someone else while we are away
	b.open()
	b.apply(results{knob.Reapplied: 1}, plan[3])
	b.e.RestoreAll()
	b.is("w", file, "70")
	b.write("w", file, "200")
	b.unchanged(before)
}

func testRestore(t *testing.T, b *bench) {
	b.mkdir("pod", "pod/a", "w", "x")
	before := cgrouptest.Snapshot(b.w)
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("w", knob.CPUSet, cpus(0)), b.want("x", knob.CPUIdle, n(1))}, b.policy)

	var busy *journal.Busy
	if _, err := Restore(b.options()); !errors.As(err, &busy) || busy.PID == 0 {
		t.Errorf("restore beside an agent gives %v, want Busy with a pid", err)
	}
	b.kill()
	b.rmdir("x")
	o := b.options()
	o.Hierarchy = nil // the journal knows the root
	sum, err := Restore(o)
	if err != nil || len(sum.Restored) != 2 || len(sum.Gone) == 0 || len(sum.Failed) > 0 {
		t.Errorf("restore: %+v, %v", sum, err)
	}
	b.mkdir("x")
	b.unchanged(before)
	if sum, err = Restore(o); err != nil || len(sum.Restored) > 0 {
		t.Errorf("a second restore: %+v, %v", sum, err)
	}

	// Nothing is restored across a boot.
	b.open()
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUIdle, n(1))}, b.policy)
	b.kill()
	o.BootID = "another"
	if sum, err = Restore(o); err != nil || sum.OtherBoot != 2 || len(sum.Restored) > 0 {
		t.Errorf("restore after a reboot: %+v, %v", sum, err)
	}
	b.is("pod", "cpu.idle", "1")
	b.open()
	if b.e.Adopted() > 0 {
		t.Error("adopted knobs of another boot")
	}
}
