package classes

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/pkg/rdt/rdttest"
)

// bench is an executor on a fake resctrl, with pods that are lists of threads.
type bench struct {
	t      *testing.T
	fake   *rdttest.Fake
	e      *Executor
	runDir string
	pods   map[string][]int // group of a pod -> its threads
	now    time.Time
	crash  func(string)
	policy Policy
}

var full = rdttest.Machine{Ways: 11, CLOSIDs: 8, RMIDs: 64, MB: rdt.Percent}

func newBench(t *testing.T, m rdttest.Machine) *bench {
	t.Helper()
	b := &bench{t: t, fake: rdttest.New(m), runDir: t.TempDir(), pods: map[string][]int{}, now: time.Unix(1000, 0), policy: Policy{Enforce: true, Cache: policy.CacheControl{FloorWays: 1}, FloorPercent: 10}}
	b.fake.Spawn(1, 2, 3) // the system's
	b.open()
	t.Cleanup(func() {
		if b.e != nil {
			if err := b.e.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

func (b *bench) options() Options {
	return Options{
		Tree: b.fake, RunDir: b.runDir, BootID: "this-boot", crash: b.crash, Now: func() time.Time { return b.now },
		Threads: func(group string, tids []int) ([]int, error) { return append(tids, b.pods[group]...), nil },
	}
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.e, err = Open(b.options()); err != nil {
		b.t.Fatal(err)
	}
}

// kill is kill -9: nothing is put back, and the locks are free.
func (b *bench) kill() {
	b.e.journal.Close()
	b.e.lock.Close()
	b.e = nil
}

// pod makes a pod with threads.
func (b *bench) pod(role knob.Role, name string, tids ...int) knob.Share {
	s := knob.Share{Pod: "ns/" + name, Cgroup: "/kubepods/pod-" + name, Role: role}
	b.pods[s.Cgroup] = append(b.pods[s.Cgroup], tids...)
	b.fake.Spawn(tids...)
	return s
}

func limited(s knob.Share, ways, mb int) knob.Share {
	s.Ways = knob.Part{N: ways, Owner: "cache", Rule: "cut", Victim: "ns/web"}
	if mb > 0 {
		s.MB = knob.Part{N: mb, Owner: "bandwidth", Rule: "cut", Victim: "ns/web"}
	}
	return s
}

// apply carries shares out and returns what was done, a line each.
func (b *bench) apply(shares ...knob.Share) []string {
	b.t.Helper()
	return lines(b.e.Apply(shares, b.policy))
}

// audit is a second of the agent's life.
func (b *bench) audit() []knob.ClassOutcome {
	out := slices.Clone(b.e.Audit())
	for range 10 {
		out = append(out, b.e.Scan()...)
	}
	return out
}

func lines(outcomes []knob.ClassOutcome) []string {
	var out []string
	for _, o := range outcomes {
		s := fmt.Sprintf("%s %s", strings.TrimPrefix(o.Group, Prefix), o.Resource)
		if o.Pod != "" {
			s += " " + o.Pod
		}
		s += fmt.Sprintf(" %s>%s %v", strings.TrimPrefix(o.Old, Prefix), strings.TrimPrefix(o.New, Prefix), o.Result)
		if o.Err != nil {
			s += ": " + o.Err.Error()
		}
		out = append(out, s)
	}
	return out
}

func (b *bench) did(got []string, want ...string) {
	b.t.Helper()
	if !slices.Equal(got, want) {
		b.t.Errorf("did\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// at is where a thread is, without our prefix.
func (b *bench) at(tid int) string {
	group := b.fake.At(tid)
	control, _, _ := strings.Cut(group, "/mon_groups/")
	if strings.HasPrefix(group, "mon_groups/") {
		control = ""
	}
	return strings.TrimPrefix(control, Prefix)
}

func (b *bench) monitored(tid int) bool {
	return strings.Contains(b.fake.At(tid), "mon_groups/"+Prefix)
}

func (b *bench) schemata(class string) string {
	b.t.Helper()
	text, err := b.fake.Read(Prefix+class+"/schemata", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

func TestPodsComeIntoTheirClasses(t *testing.T) {
	b := newBench(t, full)
	web, hog, good := b.pod(knob.RoleOnline, "web", 10, 11), b.pod(knob.RoleOffline, "hog", 20, 21), b.pod(knob.RoleOffline, "good", 30)
	b.did(b.apply(web, hog, good), "offline group >made written", "offline tasks ns/good >offline written", "offline tasks ns/hog >offline written")
	for tid, want := range map[int]string{1: "", 10: "", 11: "", 20: "offline", 21: "offline", 30: "offline"} {
		if got := b.at(tid); got != want {
			t.Errorf("thread %d is in %q, want %q", tid, got, want)
		}
		if b.monitored(tid) != (tid > 3) {
			t.Errorf("thread %d: monitored: %v", tid, b.monitored(tid))
		}
	}
	if n := testing.AllocsPerRun(10, func() { b.e.Apply([]knob.Share{web, hog, good}, b.policy) }); n > 1 {
		t.Errorf("%v allocations for nothing", n)
	}
	before := b.fake.Writes

	b.did(b.apply(web, limited(hog, 2, 25), good),
		"offline-2 group >made written", "offline-2 L3 0=7ff>0=3 written", "offline-2 MB 0=100>0=30 written", "offline-2 tasks ns/hog offline>offline-2 written")
	if b.at(20) != "offline-2" || b.at(21) != "offline-2" || b.at(30) != "offline" || !b.monitored(20) {
		t.Error("the culprit alone was to move")
	}
	if writes := b.fake.Writes - before; writes > 8 {
		t.Errorf("%d writes to cut one pod", writes)
	}
	before = b.fake.Writes
	b.did(b.apply(web, limited(hog, 1, 25), good), "offline-2 L3 0=3>0=1 written")
	if writes := b.fake.Writes - before; writes != 1 {
		t.Errorf("%d writes to cut it deeper", writes)
	}
	b.did(b.apply(web, hog, good), "offline tasks ns/hog offline-2>offline written", "offline-2 group MB:0=30 L3:0=1> restored")
	b.did(b.apply(web, good), "offline tasks ns/hog offline> restored")
	if b.at(20) != "" || b.monitored(20) {
		t.Errorf("a pod that is not wanted any more is in %q", b.fake.At(20))
	}
}

// TestNamedWays: a division of the cache is made so in one write for each class, and one that does not fit the machine is taken back whole.
func TestNamedWays(t *testing.T) {
	b := newBench(t, full)
	web, hog := b.pod(knob.RoleOnline, "web", 10), limited(b.pod(knob.RoleOffline, "hog", 20), 1, 50)
	b.policy.Cache.Ways, b.policy.Cache.OnlineWays, b.policy.Cache.OfflineWays = 0x1ff, 0x180, 0x003
	b.apply(web, hog)
	for class, want := range map[string]string{"offline": "MB:0= 50 L3:0=3", "online": "MB:0= 100 L3:0=1fc"} {
		if got := b.schemata(class); got != want {
			t.Errorf("%s: %s, want %s", class, got, want)
		}
	}
	if b.at(10) != "online" || b.at(20) != "offline" {
		t.Errorf("the pods are in %q and %q", b.at(10), b.at(20))
	}
	b.policy.Cache.Ways = 0xfff
	b.apply(web, hog)
	if got := b.schemata("offline"); got != "MB:0= 50 L3:0=7ff" || b.at(10) != "" {
		t.Errorf("more ways than there are: %s, the online pod is in %q", got, b.at(10))
	}
	if n := b.e.Notes(); len(n) != 1 || !strings.Contains(n[0].Text, "it has 11 ways (cbm_mask 7ff)") {
		t.Errorf("notes: %+v", n)
	}
	b.policy.Cache.Ways, b.policy.Cache.OnlineWays, b.policy.Cache.OfflineWays = 0, 0x600, 0
	b.did(b.apply(web, hog), "offline L3 0=7ff>0=1 written")
}

func TestOldKernelsMoveThreadByThread(t *testing.T) {
	m := full
	m.Old = true
	b := newBench(t, m)
	hog, good := b.pod(knob.RoleOffline, "hog", 20, 21), b.pod(knob.RoleOffline, "good", 30)
	b.apply(hog, good)
	b.apply(limited(hog, 2, 0), good)
	if b.at(20) != "offline-2" || b.at(21) != "offline-2" || !b.monitored(21) || b.at(30) != "offline" {
		t.Errorf("threads are in %q %q %q", b.fake.At(20), b.fake.At(21), b.fake.At(30))
	}
}

func TestNewThreadsAreCaught(t *testing.T) {
	b := newBench(t, full)
	hog := b.pod(knob.RoleOffline, "hog", 20)
	forked := 0
	// While the first thread is being moved it forks.
	b.fake.Before = func(op, name, text string) error {
		if op == "write" && strings.HasSuffix(name, "tasks") && forked < 3 {
			forked++
			b.fake.Fork(20, 20+forked)
			b.pods[hog.Cgroup] = append(b.pods[hog.Cgroup], 20+forked)
		}
		return nil
	}
	b.apply(hog)
	for tid := 20; tid <= 23; tid++ {
		if b.at(tid) != "offline" {
			t.Errorf("thread %d is in %q", tid, b.at(tid))
		}
	}
	// One comes from outside: kubectl exec.
	b.pod(knob.RoleOffline, "hog", 50)
	b.audit()
	if b.at(50) != "offline" || !b.monitored(50) {
		t.Errorf("a new process is in %q", b.fake.At(50))
	}
	// One leaves the pod's group, and another one's number was known before.
	b.pods[hog.Cgroup] = []int{20, 50, 51}
	b.fake.Spawn(51)
	b.audit()
	if b.at(21) != "" || b.at(51) != "offline" {
		t.Errorf("who left is in %q, who came in %q", b.at(21), b.at(51))
	}
	b.fake.Kill(51)
	b.fake.Spawn(51) // the number is used again, outside
	b.audit()
	if b.at(51) != "offline" {
		t.Errorf("a thread with a number that was known is in %q", b.at(51))
	}
}

func TestGroupsOfOthersAreLeftAlone(t *testing.T) {
	b := newBench(t, full)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.fake.Mkdir("kubelet"))
	must(b.fake.Write("kubelet/schemata", []byte("L3:0=600\n")))
	must(b.fake.Write("kubelet/mode", []byte("shareable\n")))
	must(b.fake.Mkdir("mon_groups/theirs"))
	hog := b.pod(knob.RoleOffline, "hog", 20, 21, 22)
	must(b.fake.Write("kubelet/tasks", []byte("20\n")))
	must(b.fake.Write("mon_groups/theirs/tasks", []byte("21\n")))
	before := b.fake.Snapshot()
	b.apply(hog)
	if b.fake.At(20) != "kubelet" || b.fake.At(21) != "mon_groups/theirs" || b.at(22) != "offline" {
		t.Errorf("threads are in %q %q %q", b.fake.At(20), b.fake.At(21), b.fake.At(22))
	}
	if got := b.schemata("offline"); got != "MB:0= 100 L3:0=1ff" {
		t.Errorf("schemata %s: ours keep out of their ways", got)
	}
	// They make another one; the next plan has one class less, and their ways.
	must(b.fake.Mkdir("more"))
	must(b.fake.Write("more/schemata", []byte("L3:0=100\n")))
	b.audit()
	b.apply(hog)
	if got := b.schemata("offline"); got != "MB:0= 100 L3:0=ff" {
		t.Errorf("schemata %s", got)
	}
	must(b.fake.Rmdir("more"))
	// What they let go of is put where it belongs.
	web := b.pod(knob.RoleOnline, "web", 40)
	must(b.fake.Mkdir("mon_groups/theirs-too"))
	must(b.fake.Write("mon_groups/theirs-too/tasks", []byte("40\n")))
	b.audit()
	b.apply(web, hog)
	if b.fake.At(40) != "mon_groups/theirs-too" {
		t.Errorf("thread 40 is in %q", b.fake.At(40))
	}
	must(b.fake.Rmdir("mon_groups/theirs-too"))
	b.audit()
	if !b.monitored(40) {
		t.Errorf("thread 40 is in %q", b.fake.At(40))
	}
	b.fake.Kill(40)
	b.e.RestoreAll()
	if after := b.fake.Snapshot(); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

func TestEditsByOthers(t *testing.T) {
	for _, c := range []struct {
		edits policy.ExternalEdits
		did   string
		shows string
	}{
		{policy.Reapply, "offline L3 0=7>0=3 reapplied", "MB:0= 100 L3:0=3"},
		{policy.Yield, "offline limits MB:0=100 L3:0=3>MB:0=100 L3:0=7 yielded", "MB:0= 100 L3:0=7"},
	} {
		b := newBench(t, full)
		b.policy.Edits = c.edits
		hog := limited(b.pod(knob.RoleOffline, "hog", 20), 2, 0)
		b.apply(hog)
		if err := b.fake.Write(Prefix+"offline/schemata", []byte("L3:0=7\n")); err != nil {
			t.Fatal(err)
		}
		b.did(lines(b.audit()), c.did)
		b.did(lines(b.audit()))
		if got := b.schemata("offline"); got != c.shows {
			t.Errorf("%s: shows %s", c.edits, got)
		}
		// Another want is another matter.
		hog.Ways.N = 5
		b.apply(hog)
		if got := b.schemata("offline"); got != "MB:0= 100 L3:0=1f" {
			t.Errorf("%s: shows %s", c.edits, got)
		}
	}
}

func TestARemovedGroupIsMadeAgain(t *testing.T) {
	b := newBench(t, full)
	hog := limited(b.pod(knob.RoleOffline, "hog", 20), 2, 0)
	b.apply(hog)
	if err := b.fake.Rmdir(Prefix + "offline"); err != nil {
		t.Fatal(err)
	}
	b.did(lines(b.audit()), "offline group MB:0=100 L3:0=3> gone")
	b.apply(hog)
	if b.at(20) != "offline" || b.schemata("offline") != "MB:0= 100 L3:0=3" {
		t.Errorf("the thread is in %q", b.fake.At(20))
	}
}

func TestFewIDs(t *testing.T) {
	m := full
	m.RMIDs, m.Limbo = 6, 3
	b := newBench(t, m)
	var shares []knob.Share
	for i := range 6 {
		shares = append(shares, b.pod(knob.RoleOffline, fmt.Sprint("batch", i), 20+i))
	}
	web := b.pod(knob.RoleOnline, "web", 10)
	shares = append(shares, web)
	b.apply(shares...)
	count := 0
	for i := range 6 {
		if b.at(20+i) != "offline" {
			t.Errorf("thread %d is in %q", 20+i, b.fake.At(20+i))
		}
		if b.monitored(20 + i) {
			count++
		}
	}
	// Of six ids one is the default group's and one the class's.
	if !b.monitored(10) || count != 3 {
		t.Errorf("the online pod is monitored: %v, and %d offline ones", b.monitored(10), count)
	}
	// A new online pod takes an id from an offline one, when it has come out of limbo.
	api := b.pod(knob.RoleOnline, "api", 11)
	shares = append(shares, api)
	b.apply(shares...)
	for range 10 {
		b.now = b.now.Add(time.Minute)
		b.apply(shares...)
	}
	if !b.monitored(11) || !b.monitored(10) {
		t.Error("an online pod is not monitored, and offline ones are")
	}
}

func TestFailuresAreToldOnceAndTriedAgain(t *testing.T) {
	b := newBench(t, full)
	hog := limited(b.pod(knob.RoleOffline, "hog", 20), 2, 0)
	fails := true
	b.fake.Before = func(op, name, text string) error {
		if fails && strings.HasSuffix(name, "schemata") {
			return unix.EIO
		}
		return nil
	}
	if got := b.apply(hog); len(got) != 3 || !strings.Contains(got[1], "failed: resctrl: write qos-agent.offline/schemata") {
		t.Errorf("did %q", got)
	}
	b.did(b.apply(hog))
	b.now = b.now.Add(2 * time.Second)
	b.did(b.apply(hog))
	fails = false
	b.did(b.apply(hog)) // not yet
	b.now = b.now.Add(2 * time.Second)
	b.did(b.apply(hog), "offline L3 0=7ff>0=3 written")
}

// TestUnmet: whose limits are not in force is told as long as it is so, and nobody else.
func TestUnmet(t *testing.T) {
	b := newBench(t, full)
	hog, calm := limited(b.pod(knob.RoleOffline, "hog", 20), 2, 0), b.pod(knob.RoleOffline, "calm", 21)
	refuse := ""
	b.fake.Before = func(op, name, text string) error {
		if refuse != "" && strings.HasSuffix(name, refuse) {
			return unix.EIO
		}
		return nil
	}
	want := func(reason string) {
		t.Helper()
		got := b.e.Unmet(nil)
		switch {
		case reason == "" && len(got) == 0:
		case len(got) != 1 || got[0].Cgroup != hog.Cgroup || got[0].Knob != signal.KnobResctrl || reason == "" || !strings.Contains(got[0].Reason, reason):
			t.Errorf("unmet: %+v, want %q of the hog", got, reason)
		}
	}
	want("")
	b.apply(hog, calm)
	want("")
	refuse = "schemata"
	b.apply(limited(hog, 1, 0), calm)
	want("input/output error")
	b.apply(limited(hog, 1, 0), calm)
	want("input/output error")
	refuse = ""
	b.now = b.now.Add(2 * time.Second)
	b.apply(limited(hog, 1, 0), calm)
	want("")

	b.policy.Edits = policy.Yield
	b.apply(limited(hog, 1, 0), calm)
	for _, c := range b.e.Held() {
		if c.Ways == 1 {
			if err := b.fake.Write(c.Group+"/schemata", []byte("L3:0=ff\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.e.Audit()
	want("someone else")
}

func TestObserveOnlyMonitors(t *testing.T) {
	b := newBench(t, full)
	b.policy.Enforce = false
	hog := limited(b.pod(knob.RoleOffline, "hog", 20), 2, 0)
	b.did(b.apply(hog))
	if b.at(20) != "" || !b.monitored(20) || len(b.e.Held()) != 0 {
		t.Errorf("in observe mode the thread is in %q", b.fake.At(20))
	}
	if group, ok := b.e.MonitorGroup(hog.Cgroup); !ok || group != b.fake.At(20) {
		t.Errorf("monitoring group %q, %v", group, ok)
	}
	if plan := b.e.Plan(); len(plan.Classes) != 1 || plan.Classes[0].Ways != 2 {
		t.Errorf("the plan that would be: %+v", plan)
	}
	b.policy.Enforce = true
	b.apply(hog)
	if b.at(20) != "offline" || !b.monitored(20) {
		t.Errorf("in enforce mode the thread is in %q", b.fake.At(20))
	}
	b.policy.Enforce = false
	b.apply(hog)
	if b.at(20) != "" || !b.monitored(20) {
		t.Errorf("back in observe mode the thread is in %q", b.fake.At(20))
	}
}

func TestTwoAgents(t *testing.T) {
	b := newBench(t, full)
	var busy *journal.Busy
	if _, err := Open(b.options()); !errors.As(err, &busy) {
		t.Errorf("a second agent: %v", err)
	}
	b.apply(b.pod(knob.RoleOffline, "hog", 20))
	if _, err := Restore(b.options()); !errors.As(err, &busy) {
		t.Errorf("restore beside an agent: %v", err)
	}
}

// crashed is what a test throws to die at a point.
type crashed struct{}

// story is the life of an agent that is killed at some point of it.
func (b *bench) story(hog, good, web knob.Share) {
	own := web
	own.Own, own.Ways = true, knob.Part{N: 4, Owner: "cache", Rule: "own"}
	for _, shares := range [][]knob.Share{
		{web, hog, good}, {web, limited(hog, 2, 0), good}, {own, limited(hog, 1, 20), good}, {web, hog}, {own, good}, {web, limited(good, 3, 0), limited(hog, 2, 0)},
	} {
		b.e.Apply(shares, b.policy)
		b.audit()
	}
	b.e.RestoreAll()
}

// TestCrash kills the agent at every point of its life; a restore, or the next agent, leaves no trace.
func TestCrash(t *testing.T) {
	for _, old := range []bool{true, false} {
		m := full
		m.Old, m.Limbo = old, 1
		killed := 0
		for at := 1; ; at++ {
			b := newBench(t, m)
			web, hog, good := b.pod(knob.RoleOnline, "web", 10, 11), b.pod(knob.RoleOffline, "hog", 20, 21, 22), b.pod(knob.RoleOffline, "good", 30)
			before := b.fake.Snapshot()
			points := 0
			b.e.crash = func(string) {
				if points++; points == at {
					panic(crashed{})
				}
			}
			died := func() (died bool) {
				defer func() {
					if r := recover(); r != nil {
						if _, ok := r.(crashed); !ok {
							panic(r)
						}
						died = true
					}
				}()
				b.story(hog, good, web)
				return false
			}()
			if !died {
				if after := b.fake.Snapshot(); !maps.Equal(before, after) {
					t.Errorf("not killed: before %v\nafter %v", before, after)
				}
				break
			}
			killed++
			b.kill()
			if at%2 == 0 { // the next agent takes over, and leaves in order
				b.open()
				b.apply(web, limited(hog, 2, 0), good)
				if b.at(20) == "" || b.at(10) != "" || b.at(1) != "" {
					t.Fatalf("killed at %d: the next agent has 20 in %q, 10 in %q", at, b.fake.At(20), b.fake.At(10))
				}
				b.e.RestoreAll()
			} else if sum, err := Restore(b.options()); err != nil || len(sum.Failed) > 0 {
				t.Fatalf("killed at %d: restore: %+v, %v", at, sum, err)
			}
			if after := b.fake.Snapshot(); !maps.Equal(before, after) {
				t.Fatalf("killed at %d: before %v\nafter %v", at, before, after)
			}
		}
		t.Logf("killed at each of %d points", killed)
		if killed < 20 {
			t.Errorf("killed at %d points only", killed)
		}
	}
}

// TestRandomLife throws random plans, forks and failures at an executor: in the end everything is as before, and in between no thread
// is in a class of another pod.
func TestRandomLife(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := rdttest.Machine{Ways: 4 + r.IntN(8), CLOSIDs: 2 + r.IntN(6), RMIDs: 4 + r.IntN(30), MB: rdt.Percent, Old: r.IntN(2) == 0, Limbo: r.IntN(3)}
		b := newBench(t, m)
		var shares []knob.Share
		for i := range 8 {
			role := knob.RoleOffline
			if i%3 == 0 {
				role = knob.RoleOnline
			}
			shares = append(shares, b.pod(role, fmt.Sprint(i), 100*i+100, 100*i+101))
		}
		flaky := false
		b.fake.Before = func(op, name, text string) error {
			if flaky && r.IntN(10) == 0 {
				return unix.EIO
			}
			return nil
		}
		next := 10000
		for range 40 {
			flaky = r.IntN(4) == 0
			i := r.IntN(len(shares))
			s := &shares[i]
			if s.Role == knob.RoleOnline {
				s.Own, s.Ways = r.IntN(2) == 0, knob.Part{N: r.IntN(4), Owner: "cache"}
			} else {
				s.Ways, s.MB = knob.Part{N: r.IntN(6), Owner: "cache"}, knob.Part{N: 10 * r.IntN(11), Owner: "bandwidth"}
			}
			parent := b.pods[s.Cgroup][0]
			next++
			b.fake.Fork(parent, next)
			b.pods[s.Cgroup] = append(b.pods[s.Cgroup], next)
			some := slices.Clone(shares)
			if r.IntN(3) == 0 {
				k := r.IntN(len(some))
				some = slices.Delete(some, k, k+1)
			}
			b.now = b.now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
			b.e.Apply(some, b.policy)
			b.audit()
		}
		flaky = false
		for range 4 {
			b.now = b.now.Add(2 * time.Minute)
			b.e.Apply(shares, b.policy)
			for range 10 {
				b.audit()
			}
		}
		home := map[string]string{}
		for _, c := range b.e.Plan().Classes {
			for _, p := range c.Pods {
				home[p.Cgroup] = c.Name
			}
		}
		for cgroup, tids := range b.pods {
			for _, tid := range tids {
				if b.at(tid) != home[cgroup] {
					t.Fatalf("seed %d: thread %d of %s is in %q, want %q\n%v", seed, tid, cgroup, b.at(tid), home[cgroup], b.e.said)
				}
			}
		}
		b.e.RestoreAll()
		for name := range b.fake.Snapshot() {
			if strings.Contains(name, Prefix) {
				t.Fatalf("seed %d: %s is left", seed, name)
			}
		}
	}
}
