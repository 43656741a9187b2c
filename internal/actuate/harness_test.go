package actuate

import (
	"path"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

var modes = []cgroup.Mode{cgroup.Legacy, cgroup.Hybrid, cgroup.Unified}

// scenarios are tests that run on fake trees of every mode and on the kernel's.
var scenarios = []struct {
	name string
	run  func(t *testing.T, b *bench)
}{
	{"everything and back", testEverything},
	{"weight survives idle", testIdleWeight},
	{"cpuset of a pod with containers", testCPUSet},
	{"quota and burst", testQuotaBurst},
	{"quota below a child's", testQuotaTree},
	{"containers that appear in a held pod", testNewContainers},
	{"freezer", testFreezer},
	{"changes by others are undone", testReapply},
	{"tighter limits of others stand", testTighter},
	{"changes by others stand", testYield},
	{"groups come and go", testGone},
	{"journal adopted", testAdopt},
	{"frozen by a killed agent", testOpenThaws},
	{"restore without agent", testRestore},
}

func TestFake(t *testing.T) {
	for _, mode := range modes {
		for _, s := range scenarios {
			t.Run(mode.String()+"/"+s.name, func(t *testing.T) { s.run(t, newBench(t, cgrouptest.NewFake(t, mode))) })
		}
	}
}

// bench is an executor on a tree of groups.
type bench struct {
	t      *testing.T
	w      cgrouptest.World
	v2     bool
	runDir string
	now    time.Time
	e      *Executor
	policy Policy
}

func newBench(t *testing.T, w cgrouptest.World) *bench {
	b := &bench{t: t, w: w, v2: w.Hierarchy().V2(cgroup.CPU), runDir: t.TempDir(), now: time.Unix(1e9, 0)}
	b.open()
	t.Cleanup(func() {
		if b.e != nil {
			b.e.Close()
		}
	})
	return b
}

func (b *bench) options() Options {
	return Options{Hierarchy: b.w.Hierarchy(), FS: b.w.FS(), RunDir: b.runDir, BootID: "this-boot", Now: func() time.Time { return b.now }}
}

func (b *bench) open() {
	b.t.Helper()
	e, err := Open(b.options())
	if err != nil {
		b.t.Fatal(err)
	}
	b.e = e
}

// kill ends the executor as kill -9 does: nothing is written any more, and the kernel closes its files.
func (b *bench) kill() {
	b.e.closeKnobs()
	b.e.journal.Close()
	b.e.lock.Close()
	b.e = nil
}

func (b *bench) abs(group string) string { return path.Join(b.w.Base(), group) }

// mkdir makes groups, parents first, as a runtime does.
func (b *bench) mkdir(groups ...string) {
	b.t.Helper()
	for _, g := range groups {
		if err := cgrouptest.Populate(b.w, b.abs(g)); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) rmdir(group string) {
	b.t.Helper()
	if err := cgrouptest.RemoveAll(b.w, b.abs(group)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) write(group, file, text string) {
	b.t.Helper()
	if err := b.w.Write(b.abs(group), file, text); err != nil {
		b.t.Fatal(err)
	}
}

// is checks the text of a file.
func (b *bench) is(group, file, want string) {
	b.t.Helper()
	got, err := b.w.Read(b.abs(group), file)
	if err != nil || got != want+"\n" {
		b.t.Errorf("%s/%s is %q, %v, want %q", group, file, got, err, want)
	}
}

// pick is the first on cgroup v1 and the second on v2.
func pick[T any](b *bench, v1, v2 T) T {
	if b.v2 {
		return v2
	}
	return v1
}

func (b *bench) want(group string, k knob.Kind, v knob.Value) knob.Want {
	return knob.Want{Target: knob.Target{Cgroup: b.abs(group), Kind: k}, Value: v, Owner: "cpu", Rule: "test", Pod: "ns/" + group}
}

func n(v int64) knob.Value             { return knob.Value{N: v} }
func quota(q, period int64) knob.Value { return knob.Value{N: q, Period: period} }
func cpus(c ...int) knob.Value         { return knob.Value{CPUs: cpuset.Of(c...)} }

// apply applies a plan and checks how often there was each result.
func (b *bench) apply(want map[knob.Result]int, plan ...knob.Want) []knob.Outcome {
	b.t.Helper()
	out := b.e.Apply(plan, b.policy)
	b.results(want, out)
	if again := b.e.Apply(plan, b.policy); len(again) > 0 {
		b.t.Errorf("the same plan again did something: %v", again)
	}
	return out
}

func (b *bench) results(want map[knob.Result]int, out []knob.Outcome) {
	b.t.Helper()
	got := make(map[knob.Result]int)
	for _, o := range out {
		got[o.Result]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("results (-want +got):\n%s", diff)
		for _, o := range out {
			b.t.Logf("%v %s %v: %q -> %q %v", o.Result, o.Cgroup, o.Kind, o.Old, o.New, o.Err)
		}
	}
}

type results = map[knob.Result]int

// unchanged checks that the tree is as before, file by file.
func (b *bench) unchanged(before map[string]string) {
	b.t.Helper()
	if diff := diffTrees(before, cgrouptest.Snapshot(b.w)); diff != "" {
		b.t.Errorf("tree (-before +after):\n%s", diff)
	}
}

func diffTrees(before, after map[string]string) string { return cmp.Diff(before, after) }

// held lists what is held, without the base.
func (b *bench) held() []string {
	out := []string{}
	for _, h := range b.e.Held() {
		out = append(out, h.Cgroup[len(b.w.Base())-btoi(b.w.Base() == "/"):]+" "+h.Kind.String()+" "+h.Original+" -> "+h.Current)
	}
	return out
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (b *bench) reapply() { b.policy = Policy{Edits: policy.Reapply} }
func (b *bench) yield()   { b.policy = Policy{Edits: policy.Yield} }

// auditAll looks at every held knob.
func (b *bench) auditAll() []knob.Outcome {
	var out []knob.Outcome
	for range len(b.e.order)/b.e.batch + 1 {
		out = append(out, b.e.Audit()...)
	}
	return out
}
