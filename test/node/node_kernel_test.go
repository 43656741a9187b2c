// Package node tests the whole daemon, as the binary that is shipped, on a real kernel: what it sees, what it writes, and above all
// that everything it has written is undone, whatever happens to it.
package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/features"
	"github.com/qos-agent/qos-agent/test/groups"
	"github.com/qos-agent/qos-agent/test/work"
)

// patience bounds every wait. It is long because the same tests run on an emulated CPU.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	work.MaybeRun()
	os.Exit(m.Run())
}

// fixture is a machine with one online pod, two offline pods and one that nobody has labelled.
type fixture struct {
	t      *testing.T
	ctx    context.Context
	h      *cgroup.Hierarchy
	tree   *groups.Tree
	opts   daemon.Options
	pods   []daemon.Pod
	before map[string]string
	load   []*work.Process
}

const (
	web    = "shop/web"
	batch  = "jobs/batch"
	report = "jobs/report"
	other  = "misc/other"
)

func newFixture(t *testing.T, policy string) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runs the daemon on real control groups")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := groups.New(h, fmt.Sprintf("qos-agent-test-node-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, ctx: ctx, h: h, tree: tree}
	t.Cleanup(func() {
		for _, p := range f.load {
			p.Stop()
		}
		if err := tree.Remove(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	dir := t.TempDir()
	bin, err := daemon.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.opts = daemon.Options{
		Binary: bin, PolicyDir: filepath.Join(dir, "policy"), StaticPods: filepath.Join(dir, "pods.yaml"), RunDir: filepath.Join(dir, "run"),
	}
	if err := os.Mkdir(f.opts.PolicyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.policy(policy)
	for key, class := range map[string]string{web: "online", batch: "offline", report: "offline", other: ""} {
		ns, name, _ := strings.Cut(key, "/")
		group, err := tree.Make(name)
		if err != nil {
			t.Fatal(err)
		}
		pod := daemon.Pod{Namespace: ns, Name: name, Cgroup: group}
		if class != "" {
			pod.Labels = map[string]string{"qos-agent.io/class": class}
		}
		f.pods = append(f.pods, pod)
	}
	// A nested group below an offline pod, as a container with an init system of its own has; and a weight that is not the default.
	if _, err := tree.Make("batch/inner"); err != nil {
		t.Fatal(err)
	}
	if err := tree.SetWeight(tree.Path("batch"), 30); err != nil {
		t.Fatal(err)
	}
	f.writePods()
	f.before = f.snapshot()
	return f
}

func (f *fixture) policy(spec string) {
	f.t.Helper()
	text := "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: test}\nspec:\n" + spec
	if err := daemon.Replace(filepath.Join(f.opts.PolicyDir, "policy.yaml"), text); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) writePods() {
	f.t.Helper()
	if err := daemon.WriteStaticPods(f.opts.StaticPods, f.pods...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) snapshot() map[string]string {
	f.t.Helper()
	s, err := f.tree.Snapshot()
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// asBefore checks that every settings file reads what it read before the agent came.
func (f *fixture) asBefore(when string) {
	f.t.Helper()
	if diff := groups.Changed(f.before, f.snapshot()); diff != "" {
		f.t.Errorf("%s, settings differ (- before, + now):\n%s", when, diff)
	}
}

func (f *fixture) start() *daemon.Daemon {
	f.t.Helper()
	d, err := daemon.Start(f.opts)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		d.Kill()
		if f.t.Failed() {
			f.t.Logf("log of the daemon:\n%s", d.Log())
		}
	})
	f.ready(d)
	return d
}

func (f *fixture) ready(d *daemon.Daemon) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	if err := d.WaitReady(ctx); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) stop(d *daemon.Daemon) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) wait(d *daemon.Daemon, what string, ok func(*server.State) bool) *server.State {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	s, err := d.WaitState(ctx, what, ok)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// run starts loads in a pod's group.
func (f *fixture) run(name string, loads ...work.Load) []*work.Process {
	f.t.Helper()
	var out []*work.Process
	group := f.tree.Path(name)
	if name == "batch" { // its processes are in the nested group, as v2 wants it
		group = f.tree.Path(name, "inner")
	}
	for _, l := range loads {
		p, err := work.Start(l, f.tree.Joiner(group))
		if err != nil {
			f.t.Fatal(err)
		}
		f.load = append(f.load, p)
		out = append(out, p)
	}
	return out
}

// holds reports whether the agent holds a knob of a pod.
func holds(s *server.State, pod, knob string) bool {
	for _, k := range s.Knobs {
		if k.Pod == pod && (knob == "" || k.Knob == knob) {
			return true
		}
	}
	return false
}

func postureHeld(s *server.State) bool {
	return holds(s, batch, "cpu.idle") && holds(s, report, "cpu.idle")
}

func (f *fixture) idle(name string) string {
	f.t.Helper()
	text, err := f.tree.Read(cgroup.CPU, f.tree.Path(name), "cpu.idle")
	if err != nil {
		f.t.Skipf("needs cpu.idle (Linux 5.15): %v", err)
	}
	return text
}

func TestPostureIsTakenAndGivenBackOnStop(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	s := f.wait(d, "the posture of both offline pods", postureHeld)
	if f.idle("batch") != "1" || f.idle("report") != "1" || f.idle("web") != "0" || f.idle("other") != "0" {
		t.Errorf("cpu.idle: batch %s, report %s, web %s, other %s", f.idle("batch"), f.idle("report"), f.idle("web"), f.idle("other"))
	}
	for _, pod := range []string{web, other} {
		if holds(s, pod, "") {
			t.Errorf("the agent holds a knob of %s", pod)
		}
	}
	classes := map[string]string{}
	for _, p := range s.Pods {
		classes[p.Namespace+"/"+p.Name] = p.Class
	}
	want := map[string]string{web: "online", batch: "offline", report: "offline", other: "unclassified"}
	if !maps.Equal(classes, want) {
		t.Errorf("classes %v, want %v", classes, want)
	}
	f.stop(d)
	f.asBefore("after SIGTERM")
}

func TestKillAndRestore(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	d.Kill()
	if f.idle("batch") != "1" {
		t.Error("kill -9 has undone the posture: who did that?")
	}
	for _, round := range []string{"first", "second"} { // the second has nothing left to do
		out, err := exec.Command(f.opts.Binary, "restore", "--run-dir", f.opts.RunDir).CombinedOutput()
		if err != nil {
			t.Fatalf("%s restore: %v\n%s", round, err, out)
		}
		f.asBefore("after the " + round + " restore")
	}
}

func TestKillAndRestart(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	for range 3 {
		d := f.start()
		f.wait(d, "the posture", postureHeld)
		d.Kill()
	}
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	f.stop(d)
	f.asBefore("after three kills, a restart and SIGTERM")
}

func TestRestoreRefusesBesideALivingAgent(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	out, err := exec.Command(f.opts.Binary, "restore", "--run-dir", f.opts.RunDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprint(d.PID())) {
		t.Errorf("restore beside a living agent: %v\n%s", err, out)
	}
	f.stop(d)
}

func TestChangedClassIsUndone(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	for i := range f.pods {
		if f.pods[i].Name == "batch" {
			f.pods[i].Labels = map[string]string{"qos-agent.io/class": "online"}
		}
	}
	f.writePods()
	f.wait(d, "batch to be let go", func(s *server.State) bool { return !holds(s, batch, "") && holds(s, report, "cpu.idle") })
	if f.idle("batch") != "0" {
		t.Error("batch is online now and still idle-class")
	}
	for i := range f.pods {
		f.pods[i].Labels = nil
	}
	f.writePods()
	f.wait(d, "everything to be let go", func(s *server.State) bool { return len(s.Knobs) == 0 })
	f.asBefore("with no classified pod left")
	f.stop(d)
}

func TestRemovedPolicyIsUndone(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	if err := os.Remove(filepath.Join(f.opts.PolicyDir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	f.wait(d, "everything to be let go", func(s *server.State) bool { return len(s.Knobs) == 0 })
	f.asBefore("without a policy")
	f.policy("  mode: enforce\n")
	f.wait(d, "the posture again", postureHeld)
	f.policy("  mode: observe\n")
	f.wait(d, "everything to be let go", func(s *server.State) bool { return len(s.Knobs) == 0 })
	f.asBefore("in observe mode")
	f.stop(d)
	f.asBefore("after SIGTERM")
}

func TestObserveWritesNothing(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n  objectives: {cpuWaitP99: 1ms, cpuWaitEvent: 2ms}\n")
	f.opts.Mode = "observe" // the command line is stronger than the policy
	d := f.start()
	f.run("web", work.Pulse(3*time.Millisecond, time.Millisecond).On(0))
	f.run("batch", work.Spin.On(0), work.Spin.On(0), work.Spin.On(0))
	s := f.wait(d, "a verdict on web", func(s *server.State) bool {
		for _, v := range s.Verdicts {
			if v.Pod == "web" && v.Level == "violated" {
				return true
			}
		}
		return false
	})
	if len(s.Knobs) != 0 {
		t.Errorf("knobs held in observe mode: %+v", s.Knobs)
	}
	f.asBefore("in observe mode")
	f.stop(d)
}

// TestCulpritIsCutAndInnocentIsNot first only watches, until there is enough blame to compare, and then lets the agent act.
func TestCulpritIsCutAndInnocentIsNot(t *testing.T) {
	const rules = `
  objectives: {cpuWaitP99: 1ms, cpuWaitEvent: 2ms}
  cpu: {posture: none, ladder: [idle, quota], hold: 60s, verify: {after: 1m}}
`
	f := newFixture(t, "  mode: observe"+rules)
	d := f.start()
	// The start of a process is a burst of its own: everybody has started before anybody is hurt.
	f.run("report", work.Pulse(50*time.Microsecond, 50*time.Millisecond).On(0))
	culprits := f.run("batch", work.Spin.On(0), work.Spin.On(0), work.Spin.On(0))
	for _, p := range culprits {
		if err := p.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	f.wait(d, "the innocent pod to have settled", func(s *server.State) bool { return s.Loop.Ticks > 5 })
	f.run("web", work.Pulse(3*time.Millisecond, time.Millisecond).On(0))
	for _, p := range culprits {
		if err := p.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	var guilty, innocent time.Duration
	f.wait(d, "half a second of blame", func(*server.State) bool {
		guilty, innocent = f.blame(d, web, batch), f.blame(d, web, report)
		return guilty > time.Second/2
	})
	t.Logf("batch is blamed for %v and has used %v; report for %v and %v", guilty, f.used("batch"), innocent, f.used("report"))
	if innocent > guilty/5 && !features.Emulated() {
		t.Errorf("the culprit is blamed for %v and the innocent pod for %v", guilty, innocent)
	}
	// Some of web's threads may have waited for the same.
	for name, blamed := range map[string]time.Duration{"batch": guilty, "report": innocent} {
		if used := f.used(name); blamed > 2*used+50*time.Millisecond {
			t.Errorf("%s is blamed for %v and has used %v", name, blamed, used)
		}
	}
	f.policy("  mode: enforce" + rules)
	s := f.wait(d, "batch to be cut", func(s *server.State) bool { return holds(s, batch, "cpu.idle") })
	for _, k := range s.Knobs {
		if k.Pod != batch {
			continue
		}
		if k.Victim != web {
			t.Errorf("batch was cut for the sake of %q, want %s", k.Victim, web)
		}
		if k.Rule == control.RuleEventCut && s.Loop.Reaction.Count == 0 {
			t.Error("no reaction time was measured")
		}
	}
	// QEMU emulates all CPUs by one thread, and goes on to the next when a task sets a timer, as one does that is about to sleep. In
	// the guest that is time which this task has used: now and then the innocent pod really has all of a long wait.
	if holds(s, report, "") && !features.Emulated() {
		t.Errorf("the innocent pod was cut: %+v", s.Knobs)
	}
	_, metrics, err := d.Get(f.ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"qosagent_cpu_wait_seconds_bucket", "qosagent_cpu_wait_blame_seconds_total", "qosagent_verdict", "qosagent_knob_writes_total",
		"qosagent_reaction_seconds_bucket", "qosagent_tick_seconds_bucket", "qosagent_policy_reload_success 1", "qosagent_capability", "qosagent_bpf_run_seconds_total"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	for _, p := range culprits {
		p.Stop()
	}
	f.stop(d)
	f.asBefore("after SIGTERM")
}

// used is the CPU time that a pod's group has used.
func (f *fixture) used(name string) time.Duration {
	f.t.Helper()
	r, err := cgroup.OpenCPU(f.h, f.tree.Path(name))
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	var s cgroup.Scratch
	var st cgroup.CPUStat
	if err := r.Stat(&s, &st); err != nil {
		f.t.Fatal(err)
	}
	return time.Duration(st.UsageNS)
}

// blame is how long the victim has waited while the culprit ran, by the metric.
func (f *fixture) blame(d *daemon.Daemon, victim, culprit string) time.Duration {
	f.t.Helper()
	_, text, err := d.Get(f.ctx, "/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	vns, vname, _ := strings.Cut(victim, "/")
	cns, cname, _ := strings.Cut(culprit, "/")
	series := fmt.Sprintf(`qosagent_cpu_wait_blame_seconds_total{culprit_namespace=%q,culprit_pod=%q,victim_namespace=%q,victim_pod=%q} `, cns, cname, vns, vname)
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series); ok {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				f.t.Fatal(err)
			}
			return time.Duration(seconds * float64(time.Second))
		}
	}
	return 0
}

func TestBadPolicyKeepsTheLastGoodOne(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	file := filepath.Join(f.opts.PolicyDir, "policy.yaml")
	for name, text := range map[string]string{
		"garbage":       "\x00\x01\xffnot yaml: [",
		"an empty file": "",
		"10 MB":         strings.Repeat("# ten megabytes of nothing\n", 10<<20/27),
		"a typo":        "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nspec: {mode: enforce, cpu: {postur: idle}}\n",
	} {
		if err := daemon.Replace(file, text); err != nil {
			t.Fatal(err)
		}
		s := f.wait(d, name+" to be refused", func(s *server.State) bool { return !s.Policy.Reload.OK })
		if !postureHeld(s) {
			t.Errorf("%s: the posture is gone", name)
		}
		if len(s.Policy.Reload.Errors) == 0 || !strings.Contains(s.Policy.Reload.Errors[0], "policy.yaml") {
			t.Errorf("%s: errors %q do not name the file", name, s.Policy.Reload.Errors)
		}
		f.policy("  mode: enforce\n")
		f.wait(d, "the good policy again", func(s *server.State) bool { return s.Policy.Reload.OK })
	}
	f.stop(d)
	f.asBefore("after SIGTERM")
}

func TestStartRefusals(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	running := f.start()
	empty := t.TempDir()
	file := filepath.Join(empty, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*daemon.Options)
		want   []string
	}{
		"second agent":           {func(o *daemon.Options) {}, []string{f.opts.RunDir, fmt.Sprint(running.PID())}},
		"port in use":            {func(o *daemon.Options) { o.RunDir = empty; o.Extra = []string{"--listen", running.Addr} }, []string{running.Addr}},
		"unwritable run dir":     {func(o *daemon.Options) { o.RunDir = filepath.Join(file, "run") }, []string{file}},
		"no cgroup root":         {func(o *daemon.Options) { o.RunDir = empty; o.CgroupRoot = "/nonexistent" }, []string{"/nonexistent"}},
		"not a cgroup root":      {func(o *daemon.Options) { o.RunDir = empty; o.CgroupRoot = "/proc" }, []string{"/proc"}},
		"no policy":              {func(o *daemon.Options) { o.RunDir = empty; o.PolicyDir = t.TempDir() }, []string{"policy"}},
		"missing policy dir":     {func(o *daemon.Options) { o.RunDir = empty; o.PolicyDir = "/nonexistent" }, []string{"/nonexistent"}},
		"interval out of bounds": {func(o *daemon.Options) { o.RunDir = empty; o.Interval = time.Millisecond }, []string{"--interval", "10ms"}},
		"unknown mode":           {func(o *daemon.Options) { o.RunDir = empty; o.Mode = "dry" }, []string{"--mode", "observe"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := f.opts
			c.change(&o)
			d, err := daemon.Start(o)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Kill()
			ctx, cancel := context.WithTimeout(f.ctx, patience)
			defer cancel()
			code, err := d.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if code == 0 {
				t.Errorf("exit code 0")
			}
			for _, want := range c.want {
				if !strings.Contains(d.Log(), want) {
					t.Errorf("the error does not name %q:\n%s", want, d.Log())
				}
			}
		})
	}
	f.stop(running)
	f.asBefore("after all refusals")
}

// TestObserveUndoesWhatAKilledAgentHeld starts in observe mode after an agent that acted was killed.
func TestObserveUndoesWhatAKilledAgentHeld(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	d.Kill()
	f.opts.Mode = "observe"
	d = f.start()
	f.wait(d, "everything to be let go", func(s *server.State) bool { return len(s.Knobs) == 0 })
	f.asBefore("in observe mode after a kill")
	f.stop(d)
}

// TestAdoptedKnobsWaitForPods starts beside a container runtime that is not there: nobody knows what the knobs of a killed agent were
// held for, and so they stay, until the agent is stopped.
func TestAdoptedKnobsWaitForPods(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	d.Kill()
	o := f.opts
	o.StaticPods, o.CRI = "", "unix://"+filepath.Join(t.TempDir(), "nobody.sock")
	d, err := daemon.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Kill()
	s := f.wait(d, "some ticks", func(s *server.State) bool { return s.Loop.Ticks >= 5 })
	if !postureHeld(s) || f.idle("batch") != "1" {
		t.Errorf("the posture was given up before anybody said which pods there are: %+v", s.Knobs)
	}
	if status, body, err := d.Get(f.ctx, "/readyz"); err != nil || status == 200 || !strings.Contains(body, "nobody.sock") {
		t.Errorf("readyz without pods: %d %v\n%s", status, err, body)
	}
	f.stop(d)
	f.asBefore("after SIGTERM")
}

// TestSurvivesSignals sends what the kernel sends when the reader of the log is gone and when the loop has run for
// too long: the daemon goes on, and undoes everything in the end.
func TestSurvivesSignals(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	for _, sig := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGXCPU} {
		if err := syscall.Kill(d.PID(), sig); err != nil {
			t.Fatal(err)
		}
	}
	s := f.wait(d, "the loop to leave the real-time class", func(s *server.State) bool { return s.Agent.Scheduling.Class != "realtime" })
	if !postureHeld(s) {
		t.Error("the posture is gone")
	}
	hangUp := syscall.SIGHUP
	if signal.Ignored(hangUp) { // these tests run under nohup, and so does the daemon
		hangUp = syscall.SIGTERM
	}
	if err := syscall.Kill(d.PID(), hangUp); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	if code, err := d.Wait(ctx); err != nil || code != 0 {
		t.Errorf("after %v: exit code %d, %v", hangUp, code, err)
	}
	f.asBefore("after " + hangUp.String())
}

// TestChurn makes and removes 500 pods in ten generations, with what happens in between left to chance: groups vanish before the file
// says so, and the other way round.
func TestChurn(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	d := f.start()
	f.wait(d, "the posture", postureHeld)
	lasting := f.pods
	var early, late uint64
	const generations, size = 10, 50
	for g := range generations {
		f.pods = lasting
		for i := range size {
			name := fmt.Sprintf("churn-%d-%d", g, i)
			group, err := f.tree.Make(name)
			if err != nil {
				t.Fatal(err)
			}
			class := []string{"online", "offline"}[i%2]
			f.pods = append(f.pods[:len(f.pods):len(f.pods)], daemon.Pod{
				Namespace: "churn", Name: name, Cgroup: group, Labels: map[string]string{"qos-agent.io/class": class},
			})
		}
		f.writePods()
		f.wait(d, "all pods of a generation", func(s *server.State) bool { return len(s.Pods) == len(f.pods) && len(s.Knobs) >= size/2 })
		if g%2 == 0 {
			f.pods = lasting
			f.writePods()
		}
		for i := range size {
			if err := f.tree.RemoveGroup(fmt.Sprintf("churn-%d-%d", g, i)); err != nil {
				t.Fatal(err)
			}
		}
		s := f.wait(d, "the end of a generation", func(s *server.State) bool { return len(s.Pods) == len(lasting) && !churning(s) })
		if s.Loop.Lost.Unmeasured != 0 {
			t.Errorf("generation %d: %d containers are not measured", g, s.Loop.Lost.Unmeasured)
		}
		rss := f.rss(d)
		if g == 2 {
			early = rss
		}
		late = rss
	}
	t.Logf("resident memory: %d KiB after 3 generations, %d KiB after %d", early, late, generations)
	if late > early+early/2 {
		t.Errorf("memory grows with pods that have come and gone: %d KiB after 3 generations, %d KiB after %d", early, late, generations)
	}
	f.pods = lasting
	f.writePods()
	f.stop(d)
	f.asBefore("after 500 pods")
}

// churning reports whether a knob of a pod of TestChurn is held.
func churning(s *server.State) bool {
	return slices.ContainsFunc(s.Knobs, func(k server.HeldKnob) bool { return strings.HasPrefix(k.Pod, "churn/") })
}

// rss is the daemon's resident memory in KiB.
func (f *fixture) rss(d *daemon.Daemon) uint64 {
	f.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		f.t.Fatal(err)
	}
	var kib uint64
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib
		}
	}
	f.t.Fatal("no VmRSS")
	return 0
}
