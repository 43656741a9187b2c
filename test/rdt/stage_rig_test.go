//go:build amd64

// Package rdt holds the stories of cache and memory bandwidth: an online service beside offline work on a machine with RDT and a PMU,
// the real daemon between them. They run in the rig. Each story asserts on direction and bounds, and prints its figures as a line that
// bench/rdt gathers. With QOS_AGENT_RDT=full they take their time.
package rdt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// Profiles of the rig's loads (see test/rig/work).
const (
	// cached lives in the cache: 16 MiB of 22.
	cached = "2500,16384,600,50"
	// roomy has grown out of it.
	roomy = "2500,40960,600,50"
	// missing goes to memory all the time, moves little, and waits for it.
	missing = "600,1048576,600,200"
	// greedy streams: 9 GB/s through as much cache as it is given.
	greedy = "9000,262144,700,8"
	// flood streams as fast as a core can.
	flood = "12000,262144,500,4"
	// calm works in its own small cache.
	calm = "60,512,900,20"
)

func full() bool { return os.Getenv("QOS_AGENT_RDT") == "full" }

// length is a time that a full run takes, or a short one.
func length(short, long time.Duration) time.Duration {
	if full() {
		return long
	}
	return short
}

// actor is a pod of a story.
type actor struct {
	pod   daemon.Pod
	group string // directory
	load  *guest.Load
}

// stage is a story that is being told.
type stage struct {
	t      *testing.T
	dir    string
	policy string
	actors []*actor
	agent  *daemon.Daemon
	watch  *watcher
}

// newStage mounts resctrl for the length of the test, unless options say that the agent is to.
func newStage(t *testing.T) *stage {
	t.Helper()
	guest.Mount(t)
	s := &stage{t: t, dir: t.TempDir()}
	s.setPolicy("")
	return s
}

// setPolicy is the default with more lines below spec.
func (s *stage) setPolicy(spec string) {
	s.t.Helper()
	dir := filepath.Join(s.dir, "policy")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	// The services of the stories have a thread each and four CPUs between them: what they wait for is memory. The CPU controller's own
	// stories are told elsewhere.
	text := "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: story}\nspec:\n  objectives: {cpuWaitP99: 0, cpuWaitEvent: 0}\n" + spec
	if err := daemon.Replace(filepath.Join(dir, "story.yaml"), text); err != nil {
		s.t.Fatal(err)
	}
}

// cast makes a pod; its load is started later.
func (s *stage) cast(name, class string) *actor {
	s.t.Helper()
	group := "qos-agent-story/" + name
	a := &actor{group: guest.Group(s.t, group), pod: daemon.Pod{
		Namespace: "story", Name: name, Labels: map[string]string{"qos-agent.io/class": class}, Cgroup: "/" + group,
	}}
	s.actors = append(s.actors, a)
	return a
}

func (a *actor) start(t *testing.T, args ...string) { a.load = guest.Start(t, a.group, args...) }

func (a *actor) stop() {
	if a.load != nil {
		a.load.Stop()
		a.load = nil
	}
}

// told is a story of one online service and some hogs beside it.
type told struct {
	*stage
	web     *actor
	hogs    []*actor
	result  lab.Story
	alone   float64    // CPI beside the daemon, before the hogs
	online  *watcher   // of the service
	offline []*watcher // of the hogs
}

// castHogs makes the pods of a story: web, online, and hoga, hogb and so on, offline.
func (s *stage) castHogs(scenario string, hogs int) *told {
	s.t.Helper()
	o := &told{stage: s, web: s.cast("web", "online"), result: lab.Story{Scenario: scenario}}
	for i := range hogs {
		o.hogs = append(o.hogs, s.cast("hog"+string(rune('a'+i)), "offline"))
	}
	return o
}

// open starts the service, and begins to count for all pods.
func (o *told) open(profile string) {
	o.t.Helper()
	o.web.start(o.t, "service", "-profile", profile)
	o.online = watchCPI(o.t, o.web.group)
	for _, h := range o.hogs {
		o.offline = append(o.offline, watchTraffic(o.t, h.group))
	}
}

// startHogs has all hogs do the same.
func (o *told) startHogs(profile string) {
	o.t.Helper()
	for _, h := range o.hogs {
		h.start(o.t, "hog", "-profile", profile)
	}
}

func (o *told) stopHogs() {
	for _, h := range o.hogs {
		h.stop()
	}
}

// moved is what the hogs moved from a to b, MB/s.
func (o *told) moved(a, b time.Time) (sum float64) {
	for _, w := range o.offline {
		sum += w.mbps(a, b)
	}
	return sum
}

// run starts the daemon.
func (s *stage) run(extra ...string) {
	s.t.Helper()
	var pods []daemon.Pod
	for _, a := range s.actors {
		pods = append(pods, a.pod)
	}
	file := filepath.Join(s.dir, "pods.yaml")
	if err := daemon.WriteStaticPods(file, pods...); err != nil {
		s.t.Fatal(err)
	}
	d, err := daemon.Start(daemon.Options{
		Binary: os.Getenv("QOS_AGENT_BIN"), PolicyDir: filepath.Join(s.dir, "policy"), StaticPods: file, RunDir: filepath.Join(s.dir, "run"), Extra: extra,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.agent = d
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Log(d.Log())
		}
		d.Kill()
	})
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := d.WaitReady(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// end stops the daemon and fails if it does not end well.
func (s *stage) end() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	if err := s.agent.Stop(ctx); err != nil {
		s.t.Error(err)
	}
}

// state is what the daemon says now.
func (s *stage) state() *server.State {
	s.t.Helper()
	st, err := s.agent.State(s.t.Context())
	if err != nil {
		s.t.Fatalf("%v; log:\n%s", err, s.agent.Log())
	}
	return st
}

// learned waits until the daemon knows what is normal for every online pod.
func (s *stage) learned() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	_, err := s.agent.WaitState(ctx, "a baseline of every online pod", func(st *server.State) bool {
		n := 0
		for _, v := range st.Verdicts {
			if v.Axis == "cache" && v.Evidence.CPI != nil && v.Evidence.CPI.CPIFence > 0 {
				n++
			}
		}
		online := 0
		for _, a := range s.actors {
			if a.pod.Labels["qos-agent.io/class"] == "online" && a.load != nil {
				online++
			}
		}
		return n == online
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// limits is how far the daemon wants a pod to be held back.
func limitsOf(st *server.State, a *actor) server.Limits {
	for _, p := range st.Pods {
		if p.Name == a.pod.Name && p.Limits != nil {
			return *p.Limits
		}
	}
	return server.Limits{}
}

// verdict is what the daemon says of a pod on an axis.
func verdictOf(st *server.State, a *actor, axis string) server.Verdict {
	for _, v := range st.Verdicts {
		if v.Pod == a.pod.Name && v.Axis == axis {
			return v
		}
	}
	return server.Verdict{}
}

// everCut reports whether a decision has ever cut a pod.
func (s *stage) everCut(a *actor) bool {
	for _, n := range s.state().Notes {
		if n.Pod == "story/"+a.pod.Name && (strings.HasSuffix(n.Rule, "-cut") || n.Rule == "plea") {
			return true
		}
	}
	return false
}

// anyCut reports whether a decision has ever cut any of the hogs.
func (o *told) anyCut() bool { return slices.ContainsFunc(o.hogs, o.everCut) }

// logNotes shows what the daemon decided.
func (s *stage) logNotes() {
	s.t.Helper()
	for _, n := range s.state().Notes {
		if n.Kind == "decision" {
			s.t.Logf("%s %s", n.At.Format("15:04:05.000"), n.Message)
		}
	}
}

// follow waits, and shows every second what the daemon sees and holds.
func (s *stage) follow(length time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(min(time.Second, max(0, time.Until(end)))) {
		st, err := s.agent.State(s.t.Context())
		if err != nil {
			s.t.Log(err) // on a busy host it may not answer in time
			continue
		}
		line := ""
		for _, v := range st.Verdicts {
			if e := v.Evidence.CPI; e != nil && v.Axis == "cache" {
				b := verdictOf(st, s.actorNamed(v.Pod), "bandwidth")
				line += fmt.Sprintf("  %s: CPI %.3f, baseline %.3f, fence %.3f, MPKI %.2f of %.2f, bus %.2f, %s/%s %s/%s", v.Pod, e.CPI, e.CPIBaseline, e.CPIFence,
					e.MPKI, e.MPKIFence, e.BusRatio, v.Level, b.Level, v.Reason, b.Reason)
			}
		}
		for _, a := range s.actors {
			if l := limitsOf(st, a); l != (server.Limits{}) {
				line += fmt.Sprintf("  %s: %d ways, %d %%, %d cores", a.pod.Name, l.Ways, l.BandwidthPercent, l.Cores)
			}
		}
		s.t.Logf("%s%s", time.Now().Format("15:04:05"), line)
	}
}

func (s *stage) actorNamed(name string) *actor {
	for _, a := range s.actors {
		if a.pod.Name == name {
			return a
		}
	}
	return &actor{}
}

// reportStory puts the figures of a story where bench/rdt finds them.
func reportStory(t *testing.T, s *lab.Story) {
	t.Helper()
	s.Kernel = lab.Kernel()
	report(t, lab.StoryLine{Story: s})
}

// report puts figures where bench/rdt finds them.
func report(t *testing.T, line lab.StoryLine) {
	t.Helper()
	if err := line.Print(os.Stdout); err != nil {
		t.Error(err)
	}
}

// p95 is the median of the 95th percentiles that a service told of its last seconds, ms: as the clock has it, and at the pace at which
// memory let it run (see test/rig/work).
func (a *actor) p95(last int) (clock, paced float64) {
	var all, pure []float64
	lines := a.load.Lines()
	for _, l := range lines[max(0, len(lines)-last):] {
		var s struct {
			P95   float64 `json:"p95_ms"`
			Paced float64 `json:"p95_paced_ms"`
		}
		if json.Unmarshal([]byte(l), &s) == nil {
			all, pure = append(all, s.P95), append(pure, s.Paced)
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	slices.Sort(pure)
	return all[len(all)/2], pure[len(pure)/2]
}
