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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/perf"
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

// watcher counts a group by itself, every 50 ms, whatever the daemon sees.
type watcher struct {
	mu     sync.Mutex
	points []point
	stop   chan struct{}
	done   chan struct{}
}

// point is the counters of one group between two looks.
type point struct {
	at            time.Time
	span          time.Duration
	ran           time.Duration // CPU time of the group
	cycles, instr uint64
	misses        uint64
}

// The rig's PMU has four counters beside two that can count only cycles and instructions. The daemon takes two of the four, so what we
// count beside it has to do with the others; else the kernel would let both run half of the time. Software events cost nothing.
func events(hardware ...perf.Event) *[perf.EventsPerCPU]perf.Event {
	var out [perf.EventsPerCPU]perf.Event
	for i := range out {
		out[i] = perf.Event{Name: "task-clock", Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK}
	}
	copy(out[:], hardware)
	return &out
}

// watchCPI begins to count cycles and instructions of a group, watchTraffic its misses.
func watchCPI(t *testing.T, dir string) *watcher {
	hw := perf.Hardware()
	return watchGroup(t, dir, events(hw[0], hw[1]), func(p *point, n, before *perf.Counts) {
		p.cycles, p.instr = n.Cycles-before.Cycles, n.Instructions-before.Instructions
	})
}

func watchTraffic(t *testing.T, dir string) *watcher {
	return watchGroup(t, dir, events(perf.Hardware()[3]), func(p *point, n, before *perf.Counts) { p.misses = n.Cycles - before.Cycles })
}

func cpus() (out []int) {
	for cpu := range 64 {
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", cpu)); err == nil {
			out = append(out, cpu)
		}
	}
	return out
}

// watchGroup begins to count for a group.
func watchGroup(t *testing.T, dir string, events *[perf.EventsPerCPU]perf.Event, take func(p *point, n, before *perf.Counts)) *watcher {
	t.Helper()
	pool := perf.NewPool(perf.Options{CPUs: cpus(), Events: events})
	g, err := pool.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer pool.Close()
		var before, now perf.Counts
		last := time.Now()
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if err := g.Read(&now); err != nil {
				return // the group is gone, with the test
			}
			at := time.Now()
			p := point{at: at, span: at.Sub(last), ran: now.Enabled - before.Enabled}
			take(&p, &now, &before)
			w.mu.Lock()
			w.points = append(w.points, p)
			w.mu.Unlock()
			before, last = now, at
		}
	}()
	t.Cleanup(w.end)
	return w
}

func (w *watcher) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

// windows is CPI over three looks each, for the time from a to b.
func (w *watcher) windows(a, b time.Time) (at []time.Time, cpi []float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.points {
		if i < 2 || w.points[i].at.Before(a) || w.points[i].at.After(b) {
			continue
		}
		var c, n uint64
		for _, p := range w.points[i-2 : i+1] {
			c += p.cycles
			n += p.instr
		}
		if n > 0 {
			at = append(at, w.points[i].at)
			cpi = append(cpi, float64(c)/float64(n))
		}
	}
	return at, cpi
}

// cpi is cycles per instruction from a to b.
func (w *watcher) cpi(a, b time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var c, n uint64
	for _, p := range w.points {
		if !p.at.Before(a) && !p.at.After(b) {
			c += p.cycles
			n += p.instr
		}
	}
	if n == 0 {
		return 0
	}
	return float64(c) / float64(n)
}

// mean is the mean over time of CPI from a to b.
func (w *watcher) mean(a, b time.Time) float64 {
	_, cpi := w.windows(a, b)
	sum := 0.0
	for _, c := range cpi {
		sum += c
	}
	return sum / float64(max(1, len(cpi)))
}

// cpus is how many CPUs the group used from a to b.
func (w *watcher) cpus(a, b time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ran, span time.Duration
	for _, p := range w.points {
		if !p.at.Before(a) && !p.at.After(b) {
			ran += p.ran
			span += p.span
		}
	}
	return ran.Seconds() / max(span.Seconds(), 1e-9)
}

// mbps is what the group moved from a to b, by its misses, MB/s.
func (w *watcher) mbps(a, b time.Time) float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var n uint64
	var d time.Duration
	for _, p := range w.points {
		if !p.at.Before(a) && !p.at.After(b) {
			n += p.misses
			d += p.span
		}
	}
	if d == 0 {
		return 0
	}
	return float64(n) * 64 / 1e6 / d.Seconds()
}

// reportStory puts the figures of a story where bench/rdt finds them.
func reportStory(t *testing.T, s *lab.Story) {
	t.Helper()
	s.Kernel = release()
	report(t, lab.StoryLine{Story: s})
}

// report puts figures where bench/rdt finds them.
func report(t *testing.T, line lab.StoryLine) {
	t.Helper()
	if err := line.Print(os.Stdout); err != nil {
		t.Error(err)
	}
}

// release is the kernel's.
func release() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

// beyond is the part of the time from a to b in which CPI is beyond bound.
func (w *watcher) beyond(a, b time.Time, bound float64) float64 {
	_, cpi := w.windows(a, b)
	n := 0
	for _, c := range cpi {
		if c > bound {
			n++
		}
	}
	return float64(n) / float64(max(1, len(cpi)))
}

// since how long and for how much of the time CPI is inside bound after the hogs' start; took is the time until it first is for good half
// a second, -1 if never.
func (w *watcher) recovered(start, end time.Time, bound float64) (took time.Duration, over float64) {
	at, cpi := w.windows(start, end)
	took = -1
	good := time.Time{}
	hurt, n := false, 0
	for i := range at {
		if cpi[i] > bound {
			n++
			hurt = true
			good = time.Time{}
			continue
		}
		if !hurt {
			continue // the load has not begun to bite
		}
		if good.IsZero() {
			good = at[i]
		}
		if took < 0 && at[i].Sub(good) >= 500*time.Millisecond {
			took = good.Sub(start)
		}
	}
	if len(at) > 0 {
		over = float64(n) / float64(len(at))
	}
	if !hurt {
		took = 0
	}
	return took, over
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
