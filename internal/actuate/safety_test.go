package actuate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

// A killed agent's freeze ends when the next one starts, not when the container runtime first answers it.
func testOpenThaws(_ *testing.T, b *bench) {
	b.mkdir("pod")
	before := cgrouptest.Snapshot(b.w)
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.Freeze, n(1))}, b.policy)
	b.kill()
	b.open()
	b.is("pod", pick(b, "freezer.state", "cgroup.freeze"), pick(b, "THAWED", "0"))
	b.is("pod", "cpu.idle", "1")
	b.apply(results{knob.Restored: 1}, b.want("pod", knob.CPUIdle, n(1)))
	b.e.RestoreAll()
	b.unchanged(before)
}

// What this agent does not understand of a journal is kept for those who might.
func TestDamagedJournalIsKept(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.kill()
	j, err := journal.Create(filepath.Join(b.runDir, journalName), []record{
		{Op: opBoot, Boot: "this-boot"}, {Op: opHold, Group: "/pod", Knob: "memory.high", ID: 1, Original: "max", Now: "1000"},
	}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
	b.open()
	text, err := os.ReadFile(filepath.Join(b.runDir, damagedName))
	if err != nil || !strings.Contains(string(text), "memory.high") {
		t.Errorf("kept %q, %v", text, err)
	}
}

func TestNeverWritten(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("agent", "agent/main", "beside")
	b.e.own = []string{b.abs("agent/main")}
	before := cgrouptest.Snapshot(b.w)
	plan := []knob.Want{
		b.want("agent", knob.Freeze, n(1)), b.want("agent/main", knob.CPUIdle, n(1)),
		{Target: knob.Target{Cgroup: "/system.slice", Kind: knob.CPUIdle}, Value: n(1), Owner: "cpu"},
		{Target: knob.Target{Cgroup: "/init.scope", Kind: knob.Freeze}, Value: n(1), Owner: "cpu"},
	}
	b.apply(results{knob.Failed: 4}, plan...)
	b.unchanged(before)
	b.apply(results{knob.Written: 1}, b.want("beside", knob.CPUIdle, n(1)))
}

// A journal is believed about values, not about which groups may be written.
func TestJournalOfForbiddenGroup(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	w := b.w
	if err := w.Mkdir("/kubepods"); err != nil {
		t.Fatal(err)
	}
	g, err := w.FS().OpenGroup(filepath.Join(w.Hierarchy().Root(), "kubepods"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	b.kill()
	j, err := journal.Create(filepath.Join(b.runDir, journalName), []record{
		{Op: opBoot, Boot: "this-boot", Root: w.Hierarchy().Root()},
		{Op: opHold, Group: "/kubepods", Knob: "cpu.weight", ID: g.ID(), Original: "1", Now: "100"},
	}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
	b.open()
	b.results(results{}, b.e.RestoreAll())
	if text, _ := w.Read("/kubepods", "cpu.weight"); text != "100\n" {
		t.Errorf("the kubelet's weight is %q now", text)
	}
}

// On cgroup v1 the kernel takes CPUs that go offline out of every cpuset, and refuses them from then on.
func TestCPUGoesOffline(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Legacy))
	b.mkdir("pod", "pod/a", "wide")
	plan := []knob.Want{b.want("pod", knob.CPUSet, cpus(2, 3)), b.want("wide", knob.CPUSet, cpus(0))}
	b.e.Apply(plan, b.policy)

	b.write("pod/a", "cpuset.cpus", "2")
	b.write("pod", "cpuset.cpus", "2")
	dir, _ := b.w.Hierarchy().Dir(cgroup.CPUSet, "/")
	if err := os.WriteFile(filepath.Join(dir, "cpuset.cpus"), []byte("0-2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.results(results{}, b.auditAll())
	b.results(results{knob.Restored: 3}, b.e.RestoreAll())
	for _, group := range []string{"pod", "pod/a", "wide"} {
		b.is(group, "cpuset.cpus", "0-2")
	}
	if held := b.held(); len(held) > 0 {
		t.Errorf("still held: %v", held)
	}
}

func TestAuditOfVeryManyKnobs(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.e.batch = 1
	var plan []knob.Want
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		b.mkdir(name)
		plan = append(plan, b.want(name, knob.CPUWeight, n(1)))
	}
	plan = append(plan, b.want("a", knob.CPUSet, cpus(0)), b.want("b", knob.CPUSet, cpus(0)), b.want("c", knob.CPUSet, cpus(0)), b.want("d", knob.CPUSet, cpus(0)))
	b.e.Apply(plan, b.policy)
	for _, name := range []string{"a", "f", "l"} {
		b.write(name, "cpu.weight", "50")
	}
	found := 0
	for range auditRounds {
		found += len(b.e.Audit())
	}
	if found != 3 {
		t.Errorf("found %d of 3 edits in %d audits", found, auditRounds)
	}
}
