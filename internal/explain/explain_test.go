package explain

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/server"
)

var update = flag.Bool("update", false, "rewrite golden files")

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) {
	time.Local = time.UTC // golden files show local times
	os.Exit(m.Run())
}

// state is a node on which jobs/spark hurts shop/web and is cut for it.
func state() *server.State {
	return &server.State{
		At: noon, Agent: server.Agent{Mode: "enforce"}, Policy: server.Policy{Name: "default"},
		Node: server.Node{Capabilities: []capability.Probe{{Name: "bpf", OK: true}, {Name: "perf", Detail: "no PMU", Fix: "a machine with a PMU"}}},
		Pods: []server.Pod{
			{Namespace: "jobs", Name: "spark", Class: "offline", ClassRule: "preset qos-agent", Cgroup: "/kubepods/besteffort/podu2",
				Containers: []server.Container{{Name: "exec", Signals: server.Signals{CPU: &server.CPUUse{SpanSeconds: 1, UsageCores: 3.2}}}}},
			{Namespace: "misc", Name: "other", Class: "unclassified"},
			{Namespace: "shop", Name: "web", Class: "online", ClassRule: "preset qos-agent", QoSClass: "Guaranteed", Cgroup: "/kubepods/podu1",
				Containers: []server.Container{{Name: "nginx", Signals: server.Signals{
					Wait:   &server.Wait{SpanSeconds: 1, Count: 5000, P50Seconds: 0.0001, P99Seconds: 0.0151},
					CPU:    &server.CPUUse{SpanSeconds: 1, UsageCores: 0.8, QuotaCores: 2, Periods: 10, ThrottledPeriods: 1},
					Memory: &server.Memory{WorkingSetBytes: 64 << 20}}}}},
		},
		Verdicts: []server.Verdict{
			{Namespace: "shop", Pod: "web", Container: "nginx", Axis: "cpu", Level: "violated", SinceSeconds: 2.5, Reason: "contention",
				Evidence: server.Evidence{Samples: 5000, WindowSeconds: 1, P99Seconds: 0.0151, ObjectiveSeconds: 0.005, AttributedSeconds: 3.2},
				Blame:    []server.Blame{{Culprit: server.Party{Namespace: "jobs", Name: "spark"}, Ratio: 0.9, Seconds: 2.9}, {Culprit: server.Party{Name: "kernel"}, Ratio: 0.1, Seconds: 0.3}},
				Culprits: []server.Party{{Namespace: "jobs", Name: "spark"}}},
			{Namespace: "shop", Pod: "web", Container: "nginx", Axis: "memory", Level: "ok", SinceSeconds: 300},
		},
		Knobs: []server.HeldKnob{
			{Cgroup: "/kubepods/besteffort/podu2", Knob: "cpu.idle", Original: "0", Current: "1", Owner: "cpu", Rule: "posture", Pod: "jobs/spark", Since: noon.Add(-time.Hour)},
			{Cgroup: "/kubepods/besteffort/podu2", Knob: "cpuset.cpus", Original: "0-3", Current: "0", Owner: "cpu", Rule: "event-cut", Pod: "jobs/spark", Victim: "shop/web", Since: noon.Add(-2 * time.Second)},
		},
	}
}

var log = []decisionlog.Entry{
	{ID: 1, At: noon.Add(-time.Hour), Kind: "write", Rule: "posture", Pod: "jobs/spark", Knob: "cpu.idle", Old: "0", New: "1", Result: "written"},
	{ID: 2, At: noon.Add(-2 * time.Second), Kind: "decision", Rule: "event-cut", Pod: "jobs/spark", Victim: "shop/web", Old: "posture", New: "cores 1",
		Inputs: &decisionlog.Inputs{WaitSeconds: 0.0151, ObjectiveSeconds: 0.005, ShareRatio: 0.9}},
}

func TestText(t *testing.T) {
	for name, change := range map[string]func(*server.State){
		"victim":       nil,
		"culprit":      nil,
		"observe":      func(s *server.State) { s.Agent.Mode, s.Knobs = "observe", nil },
		"unclassified": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := state()
			if change != nil {
				change(s)
			}
			pod := map[string]string{"victim": "shop/web", "culprit": "spark", "observe": "web", "unclassified": "misc/other"}[name]
			p, err := Find(s, pod)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := Of(s, p, log).WriteText(&b); err != nil {
				t.Fatal(err)
			}
			file := "testdata/" + name + ".txt"
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("%s (go test ./internal/explain -update), -want +got:\n%s", file, diff)
			}
		})
	}
}

func TestFind(t *testing.T) {
	s := state()
	for name, want := range map[string]string{"shop/web": "web", "web": "web", "spar": "spark", "misc": "other"} {
		if p, err := Find(s, name); err != nil || p.Name != want {
			t.Errorf("%s: %v %v", name, p, err)
		}
	}
	for name, want := range map[string]string{"s": "fits several pods: jobs/spark, misc/other, shop/web", "nothing": "there is no pod nothing on this node among the 3"} {
		if _, err := Find(s, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every reason that somebody is not well for leads to some advice.
func TestEveryReasonHasAdvice(t *testing.T) {
	for _, reason := range []string{"contention", "own-queue", "self-throttled", "steal", "kernel", "system", "idle-wakeup", "scattered", "unexplained", "pressure", "own-phase"} {
		s := state()
		s.Verdicts[0].Reason = reason
		if a := Of(s, &s.Pods[2], nil).Advice; len(a) != 1 || strings.Contains(a[0], "Nothing needs") || strings.Contains(a[0], "%!") {
			t.Errorf("%s: %q", reason, a)
		}
	}
	for change, want := range map[string]func(*server.State){
		"of class online: only offline pods":   func(s *server.State) { s.Pods[0].Class = "online" },
		"the mode is observe":                  func(s *server.State) { s.Agent.Mode = "observe" },
		"is not held at all":                   func(s *server.State) { s.Knobs = nil },
		"is held at cpu.idle 1, cpuset.cpus 0": func(*server.State) {},
		"has ended meanwhile":                  func(s *server.State) { s.Verdicts[0].Culprits[0].Name = "gone" },
	} {
		s := state()
		want(s)
		if a := Of(s, &s.Pods[2], nil).Advice; len(a) != 1 || !strings.Contains(a[0], change) {
			t.Errorf("%s: %q", change, a)
		}
	}
}

func TestJSONHasNoNullLists(t *testing.T) {
	s := state()
	text, err := json.Marshal(Of(s, &s.Pods[1], []decisionlog.Entry{}))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ReplaceAll(string(text), `"containers":null`, ""), "null") {
		t.Error(string(text))
	}
}
