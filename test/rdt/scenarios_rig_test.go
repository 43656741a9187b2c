//go:build amd64

package rdt

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/pkg/perf"
	"github.com/qos-agent/qos-agent/test/rig/channel"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// story is the plain one: a service alone, beside loads without the daemon, and with it.
type story struct {
	name    string
	service string     // profile
	hogs    [][]string // arguments of each load
	policy  string
	bound   float64 // of CPI alone that is to be reached
	set     func(*stage)
	more    bool // the figures are not complete when the story has been told
}

func streams(n int) [][]string { return loads(n, greedy) }

func loads(n int, profile string) (out [][]string) {
	for range n {
		out = append(out, []string{"-profile", profile})
	}
	return out
}

// tell tells the story. How long the daemon took is printed and not judged: that is for a quiet machine (make bench-rdt).
func (y *story) tell(t *testing.T) *told {
	t.Helper()
	s := newStage(t)
	s.setPolicy(y.policy)
	o := s.castHogs(y.name, len(y.hogs))
	if y.set != nil {
		y.set(s)
	}
	o.open(y.service)
	r, w := &o.result, o.online
	begin := func() time.Time {
		for i, h := range o.hogs {
			h.start(t, append([]string{"hog"}, y.hogs[i]...)...)
		}
		return time.Now()
	}

	// Alone, then beside loads that nobody holds back.
	time.Sleep(length(3*time.Second, 6*time.Second))
	now := time.Now()
	r.CPIAlone = w.cpi(now.Add(-2*time.Second), now)
	r.P95Alone, r.PacedAlone = o.web.p95(4)
	start := begin()
	time.Sleep(length(3*time.Second, 8*time.Second))
	r.CPIUnprotected = w.cpi(start.Add(time.Second), time.Now())
	r.OfflineFreeMBps = o.moved(start.Add(time.Second), time.Now())
	_, r.PacedUnprotected = o.web.p95(int(length(1, 6)))
	o.stopHogs()

	// With the daemon.
	s.run()
	s.learned()
	now = time.Now()
	quiet := now.Add(-length(2*time.Second, 5*time.Second))
	o.alone = w.cpi(quiet, now) // the daemon uses a little of the machine, too
	r.CPIBeside, r.TimeOverAlone = o.alone, w.beyond(quiet, now, y.bound*o.alone)
	start = begin()
	if full() {
		s.follow(30 * time.Second)
	} else {
		time.Sleep(10 * time.Second)
	}
	end := time.Now()
	took, over := w.recovered(start, end, y.bound*o.alone)
	settled := end.Add(-length(4*time.Second, 26*time.Second))
	r.RecoveryMS = float64(took.Milliseconds())
	if took < 0 {
		r.RecoveryMS = -1
	}
	r.CPIAgent = w.cpi(settled, end)
	r.OfflineMBps = o.moved(settled, end)
	r.TimeOverObjective = over
	r.P95Agent, r.PacedAgent = o.web.p95(int(end.Sub(settled) / time.Second))
	t.Logf("%+v", *r)
	if r.CPIUnprotected < 1.15*r.CPIAlone {
		t.Errorf("the load does not hurt: CPI %.3f alone, %.3f beside it", r.CPIAlone, r.CPIUnprotected)
	}
	if excess, before := r.CPIAgent-o.alone, r.CPIUnprotected-r.CPIAlone; y.bound < 2 && excess > before/3 {
		t.Errorf("CPI with the daemon %.3f, %.3f alone, %.3f without: want a third of the harm at most", r.CPIAgent, o.alone, r.CPIUnprotected)
	}
	if full() {
		s.logNotes()
	}
	if !y.more {
		reportStory(t, r)
	}
	return o
}

func TestRigThreeHogs(t *testing.T) {
	y := story{name: "three-hogs", service: cached, hogs: streams(3), bound: 1.1, more: true}
	o := y.tell(t)
	st := o.state()
	for _, h := range o.hogs {
		if l := limitsOf(st, h); l.Ways == 0 || l.Cores > 0 {
			t.Errorf("%s: %+v, want fewer ways and all cores", h.pod.Name, l)
		}
	}
	o.end()
	if full() {
		o.split()
	}
	reportStory(t, &o.result)
}

// TestRigLongBandwidthOnly: a service that misses all the time, so that nobody can take its cache.
func TestRigLongBandwidthOnly(t *testing.T) {
	y := story{name: "bandwidth", service: missing, hogs: loads(3, flood), bound: 1.1, policy: "  rdt: {bandwidth: {totalMBps: 20000}}\n"}
	o := y.tell(t)
	st := o.state()
	limited := 0
	for _, h := range o.hogs {
		if l := limitsOf(st, h); l.BandwidthPercent > 0 {
			limited++
		}
	}
	if limited == 0 {
		t.Error("nobody has less bandwidth")
	}
	o.end()
}

// TestRigLongBoth: one service lives in the cache, the other on the memory bus.
func TestRigLongBoth(t *testing.T) {
	var far *actor
	y := story{name: "both", service: cached, hogs: streams(2), bound: 1.1, policy: "  rdt: {bandwidth: {totalMBps: 20000}}\n", set: func(s *stage) {
		far = s.cast("xfar", "online")
		far.start(s.t, "service", "-profile", missing)
	}}
	o := y.tell(t)
	for _, n := range o.state().Notes {
		if n.Pod == "story/xfar" && strings.HasSuffix(n.Rule, "-cut") {
			t.Errorf("an online pod was cut: %s", n.Message)
		}
	}
	if !o.everCut(o.hogs[0]) || !o.everCut(o.hogs[1]) {
		t.Error("a hog was never cut")
	}
	o.end()
}

// TestRigInnocent: a neighbour who works in its own registers keeps its grant, though it was there at every moment of trouble.
func TestRigInnocent(t *testing.T) {
	var calmer *actor
	y := story{name: "innocent", service: cached, hogs: streams(2), bound: 1.1, set: func(s *stage) {
		calmer = s.cast("calm", "offline")
		calmer.start(s.t, "hog", "-profile", calm)
	}}
	o := y.tell(t)
	if o.everCut(calmer) {
		t.Error("the innocent neighbour was cut")
	}
	if !o.anyCut() {
		t.Error("the culprits were not")
	}
	o.end()
}

// TestRigLongOwnPhase: the service itself changes what it does, and nobody is blamed.
func TestRigLongOwnPhase(t *testing.T) {
	s := newStage(t)
	web, calmer := s.cast("web", "online"), s.cast("calm", "offline")
	web.start(t, "service", "-phases", cached+"@40s "+roomy+"@1h")
	born := time.Now()
	calmer.start(t, "hog", "-profile", calm)
	w := watchCPI(t, web.group)
	s.run()
	s.learned()
	alone := w.cpi(time.Now().Add(-2*time.Second), time.Now())
	time.Sleep(time.Until(born.Add(41 * time.Second)))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := map[string]bool{}
	for ctx.Err() == nil && !seen["own-phase"] {
		v := verdictOf(s.state(), web, "cache")
		seen[v.Reason] = true
		time.Sleep(50 * time.Millisecond)
	}
	r := lab.Story{Scenario: "own-phase", CPIAlone: alone, CPIUnprotected: w.cpi(time.Now().Add(-time.Second), time.Now())}
	r.CPIAgent = r.CPIUnprotected
	if r.CPIUnprotected < 1.2*alone {
		t.Errorf("the phase makes no difference: CPI %.3f, then %.3f", alone, r.CPIUnprotected)
	}
	if !seen["own-phase"] || seen["contention"] {
		t.Errorf("reasons seen: %v, want own-phase and not contention", seen)
	}
	if s.everCut(calmer) {
		t.Error("the neighbour was cut")
	}
	reportStory(t, &r)
	s.end()
}

// TestRigLongCountersUnavailable: resctrl's counters fail for a while; the hardware counters carry on.
func TestRigLongCountersUnavailable(t *testing.T) {
	y := story{name: "counters-unavailable", service: cached, hogs: streams(2), bound: 1.1, set: func(s *stage) {
		for rmid := range 64 {
			channel.Break(rmid, 10*time.Minute, channel.Unavailable)
		}
		s.t.Cleanup(func() {
			for rmid := range 64 {
				channel.Break(rmid, time.Millisecond, channel.Unavailable)
			}
		})
	}}
	o := y.tell(t)
	if !o.anyCut() {
		t.Error("nobody was cut")
	}
	o.end()
}

// TestRigLongForking: the culprit's processes live for a fifth of a second.
func TestRigLongForking(t *testing.T) {
	y := story{name: "forking", service: cached, hogs: [][]string{{"-profile", greedy, "-churn", "50ms"}}, bound: 1.3}
	y.tell(t).end()
}

// TestRigForeignGroup: a group that somebody else has made stays as it is, while the daemon works and after.
func TestRigForeignGroup(t *testing.T) {
	theirs := filepath.Join(guest.Resctrl, "theirs")
	var before map[string]string
	y := story{name: "foreign-group", service: cached, hogs: streams(2), bound: 1.1, set: func(s *stage) {
		if err := os.Mkdir(theirs, 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(theirs, "schemata"), []byte("L3:0=3\nMB:0=50\n"), 0); err != nil {
			s.t.Fatal(err)
		}
		before = tree(s.t)
	}}
	o := y.tell(t)
	if now := tree(t); now["theirs/schemata"] != before["theirs/schemata"] {
		t.Errorf("their schemata are %q, were %q", now["theirs/schemata"], before["theirs/schemata"])
	}
	o.end()
	same(t, before, tree(t))
}

// TestRigKilled: kill -9 in the middle, then restore: resctrl is as before.
func TestRigKilled(t *testing.T) {
	s := newStage(t)
	before := tree(t)
	web, hog := s.cast("web", "online"), s.cast("hog", "offline")
	web.start(t, "service", "-profile", cached)
	s.run()
	s.learned()
	hog.start(t, "hog", "-profile", greedy, "-threads", "2")
	for i := range int(length(3, 12)) {
		time.Sleep(time.Duration(700+i*333) * time.Millisecond)
		s.agent.Kill()
		out, err := exec.Command(os.Getenv("QOS_AGENT_BIN"), "restore", "--run-dir", filepath.Join(s.dir, "run")).CombinedOutput()
		if err != nil {
			t.Fatalf("restore: %v\n%s", err, out)
		}
		same(t, before, tree(t))
		s.run()
	}
	s.end()
	same(t, before, tree(t))
}

// TestRigLongVaryingLoad: hogs that come and go for two minutes.
func TestRigLongVaryingLoad(t *testing.T) {
	s := newStage(t)
	o := s.castHogs("varying", 3)
	o.open(cached)
	s.run()
	s.learned()
	r, w, now := &o.result, o.online, time.Now()
	quiet := now.Add(-length(3*time.Second, 5*time.Second))
	alone := w.cpi(quiet, now)
	r.CPIAlone, r.CPIBeside, r.TimeOverAlone = alone, alone, w.beyond(quiet, now, 1.1*alone)
	for i, h := range o.hogs {
		h.start(t, "hog", "-phases", fmt.Sprintf("%s@%ds idle@%ds", greedy, 3+i, 4+i))
	}
	start := time.Now()
	time.Sleep(2 * time.Minute)
	end := time.Now()
	took, over := w.recovered(start, end, 1.1*alone)
	r.TimeOverObjective, r.RecoveryMS = over, float64(took.Milliseconds())
	r.CPIAgent, r.OfflineMBps = w.cpi(start, end), o.moved(start, end)
	reportStory(t, r)
	t.Logf("%+v", *r)
	s.logNotes()
	s.end()
}

// TestRigPerfAgrees: `perf stat` counts the same cycles and instructions of a group. It reports every second; at its first report and at
// its last we read too, so that both count over the same time.
func TestRigPerfAgrees(t *testing.T) {
	guest.Require(t)
	program, err := exec.LookPath("perf")
	if err != nil {
		t.Skip("needs perf: the program is not in the machine")
	}
	name := "qos-agent-perf"
	group := guest.Group(t, name)
	load := guest.Start(t, group, "service", "-profile", cached)
	defer load.Stop()
	pool := perf.NewPool(perf.Options{CPUs: cpus()})
	defer pool.Close()
	// Both at once: four counters and the two that can only count cycles and instructions are enough.
	g, err := pool.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	const seconds = 8
	cmd := exec.Command(program, "stat", "-j", "-a", "-I", "1000", "-e", "cycles", "-e", "instructions", "-G", name+","+name, "--", "sleep", strconv.Itoa(seconds+3))
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var before, after perf.Counts
	var all []string
	theirs := map[string]float64{}
	reports := 0
	for lines := bufio.NewScanner(pipe); reports < seconds && lines.Scan(); {
		all = append(all, lines.Text())
		var row struct {
			Value string `json:"counter-value"`
			Event string `json:"event"`
		}
		if json.Unmarshal(lines.Bytes(), &row) != nil {
			continue
		}
		event, _, _ := strings.Cut(row.Event, ":")
		if reports > 0 { // the first is of the time before we read
			n, err := strconv.ParseFloat(row.Value, 64)
			if err != nil {
				t.Errorf("perf's report %q: %v", lines.Text(), err)
			}
			theirs[event] += n
		}
		if event != "instructions" {
			continue // the report's second line is to come
		}
		if reports++; reports == 1 {
			err = g.Read(&before)
		} else {
			err = g.Read(&after)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if reports < seconds {
		t.Fatalf("perf reported %d times:\n%s", reports, strings.Join(all, "\n"))
	}
	ours := map[string]float64{"cycles": float64(after.Cycles - before.Cycles), "instructions": float64(after.Instructions - before.Instructions)}
	t.Logf("ours %v, perf's %v", ours, theirs)
	for event, n := range ours {
		if ratio := n / theirs[event]; !(ratio > 0.95 && ratio < 1.05) {
			t.Errorf("%s: %.0f by us, %.0f by perf, in the same %d s", event, n, theirs[event], seconds-1)
		}
	}
}

// tree is every file of resctrl that a reader can compare.
func tree(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(guest.Resctrl, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(guest.Resctrl, path)
		if d.IsDir() {
			if d.Name() == "mon_data" {
				return filepath.SkipDir // counters count
			}
			out[name+"/"] = ""
			return nil
		}
		if name == "info/last_cmd_status" || filepath.Base(name) == "tasks" {
			return nil // the one is about writes, the other full of threads that come and go
		}
		text, err := os.ReadFile(path)
		out[name] = fmt.Sprintf("%s%v", text, err)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name, text := range before {
		if after[name] != text {
			t.Errorf("%s: %q, was %q", name, after[name], text)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}
