package top

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/server"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC // golden files show local times
	os.Exit(m.Run())
}

// node has a violated online pod, one with two containers, and offline pods that are held.
func node(offline int) *server.State {
	s := &server.State{
		At:    time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
		Agent: server.Agent{Mode: "enforce", Scheduling: server.Scheduling{Class: "realtime"}}, Policy: server.Policy{Name: "default", Reload: server.PolicyReload{OK: true}},
		PodSource: server.PodSource{Connected: true},
		Node: server.Node{Hostname: "node-1", CPUs: make([]server.CPU, 8), Signals: server.NodeSignals{
			CPU: &server.NodeCPU{BusyRatio: 0.92, StealRatio: 0.01}, Pressure: &server.Pressure{CPUSomeRatio: 0.5, IOSomeRatio: 0.04}}},
		Loop: server.Loop{Tick: server.Latency{P99Seconds: 0.0011}, Reaction: server.Latency{Count: 3, P99Seconds: 0.00052}},
	}
	add := func(ns, name, class string, containers ...server.Container) {
		s.Pods = append(s.Pods, server.Pod{Namespace: ns, Name: name, Class: class, Containers: containers})
	}
	c := func(name string, p99, cpu float64, mib uint64) server.Container {
		return server.Container{Name: name, Signals: server.Signals{Wait: &server.Wait{Count: 1, P99Seconds: p99}, CPU: &server.CPUUse{UsageCores: cpu}, Memory: &server.Memory{WorkingSetBytes: mib << 20}}}
	}
	add("shop", "web", "online", c("nginx", 0.0213, 1.5, 64))
	add("shop", "cart", "online", c("app", 0.0004, 0.3, 900), c("proxy", 0.0002, 0.1, 30))
	add("misc", "cron\x1b[2J", "unclassified", server.Container{Name: "x"})
	for i := range offline {
		add("jobs", fmt.Sprintf("spark-%d", i), "offline", c("exec", 0.08, 3.2, 2048))
		s.Knobs = append(s.Knobs, server.HeldKnob{Pod: fmt.Sprintf("jobs/spark-%d", i), Knob: "cpu.idle", Current: "1"})
	}
	s.Knobs = append(s.Knobs, server.HeldKnob{Pod: "jobs/spark-0", Knob: "cpuset.cpus", Current: "0-3", Victim: "shop/web"})
	s.Verdicts = []server.Verdict{
		{Namespace: "shop", Pod: "web", Container: "nginx", Axis: "cpu", Level: "violated", Reason: "contention",
			Blame: []server.Blame{{Culprit: server.Party{Namespace: "jobs", Name: "spark-0"}, Ratio: 0.62}, {Culprit: server.Party{Name: "system"}, Ratio: 0.2}}},
		{Namespace: "shop", Pod: "cart", Container: "app", Axis: "cpu", Level: "ok"},
		{Namespace: "shop", Pod: "cart", Container: "proxy", Axis: "cpu", Level: "unknown", Reason: "few-samples"},
	}
	return s
}

func TestRender(t *testing.T) {
	for name, tt := range map[string]struct {
		v             view
		width, height int
		err           error
	}{
		"plain":  {v: view{sort: 's'}},
		"narrow": {v: view{sort: 'c'}, width: 80, height: 14},
		"wide":   {v: view{sort: 'n', reverse: true}, width: 160, height: 16},
		"stale":  {v: view{sort: 's'}, width: 100, height: 16, err: errors.New("the daemon has gone")},
	} {
		t.Run(name, func(t *testing.T) {
			lines := tt.v.render(node(3), tt.err, tt.width, tt.height, time.Time{})
			got := strings.Join(lines, "\n") + "\n"
			for i, l := range lines {
				if tt.height > 0 && (utf8.RuneCountInString(strings.ReplaceAll(l, "\x1b", "")) > tt.width || i >= tt.height) {
					t.Errorf("line %d is beyond the screen: %q", i, l)
				}
			}
			if strings.Contains(got, "\x1b") {
				t.Error("a name brings escape sequences")
			}
			file := "testdata/" + name + ".txt"
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (go test ./internal/top -update), -want +got:\n%s", file, diff)
			}
		})
	}
}

func names(v *view, s *server.State) string {
	var out []string
	for _, r := range v.rows(s) {
		_, name, _ := strings.Cut(r.name, "/")
		out = append(out, name)
	}
	return strings.Join(out, ",")
}

func TestKeys(t *testing.T) {
	s := node(2)
	v := view{sort: 's'}
	for _, tt := range []struct{ keys, want string }{
		{"", "web,cart proxy,cart app,spark-0,spark-1,cron\uFFFD[2J"},
		{"w", "spark-0,spark-1,web,cart app,cart proxy,cron\uFFFD[2J"},
		{"m", "spark-0,spark-1,cart app,web,cart proxy,cron\uFFFD[2J"},
		{"n", "spark-0,spark-1,cron\uFFFD[2J,cart app,cart proxy,web"},
		{"r", "web,cart proxy,cart app,cron\uFFFD[2J,spark-1,spark-0"},
		{"/car\r", "cart proxy,cart app"},
		{"\x1b", "web,cart proxy,cart app,cron\uFFFD[2J,spark-1,spark-0"},
		{"oo", "spark-1,spark-0"},
		{"o/x\x7fspark-1\r", ""},
	} {
		if v.press([]byte(tt.keys)) {
			t.Fatalf("%q quits", tt.keys)
		}
		if got := names(&v, s); got != tt.want {
			t.Errorf("after %q: %s, want %s", tt.keys, got, tt.want)
		}
	}
	for _, quit := range []string{"q", "\x03", "jjj\x1b[Bq"} {
		if !(&view{}).press([]byte(quit)) {
			t.Errorf("%q does not quit", quit)
		}
	}
}

func TestScroll(t *testing.T) {
	s := node(200)
	v := view{sort: 'n'}
	first := func() string { return v.render(s, nil, 100, 24, time.Time{})[5] }
	if !strings.HasPrefix(first(), "jobs/spark-0 ") {
		t.Errorf("top: %q", first())
	}
	v.press([]byte("\x1b[B\x1b[B"))
	if !strings.HasPrefix(first(), "jobs/spark-10 ") {
		t.Errorf("two down: %q", first())
	}
	v.press([]byte("\x1b[F"))
	if lines := v.render(s, nil, 100, 24, time.Time{}); !strings.HasPrefix(lines[22], "shop/web ") || !strings.Contains(lines[23], "187-204 of 204") {
		t.Errorf("end: %q, %q", lines[22], lines[23])
	}
	v.press([]byte("g"))
	if !strings.HasPrefix(first(), "jobs/spark-0 ") {
		t.Errorf("back at the top: %q", first())
	}
}
