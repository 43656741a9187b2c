package tune

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/sim"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

// simulated is a recording of a simulated node.
type simulated struct {
	sc  *sim.Scenario
	pol *policy.Compiled
	n   *atomic.Int32 // how often it was read; several are at once
}

func (s simulated) Name() string { return s.sc.Name }

func (s simulated) Steps(give func(*whatif.Step) error) error {
	s.n.Add(1)
	var failed error
	_, err := sim.Watch(s.sc, s.pol, func(snap *signal.Snapshot, d *decide.Decision) {
		if failed == nil {
			failed = give(&whatif.Step{Snapshot: snap, Policy: s.pol, Plan: d.Plan, Notes: d.Notes})
		}
	})
	if err != nil {
		return err
	}
	return failed
}

const badPolicy = `apiVersion: qos-agent.io/v1alpha1
kind: QoSPolicy
metadata: {name: bad}
spec:
  objectives: {cpuWaitEvent: 0}
  judge: {window: 10s}
  cpu:
    posture: none
    ladder: [quota]
    cooldown: 20s
    quota: {cutPercent: 10}
    verify: {after: 10s}
`

const spaceText = `apiVersion: qos-agent.io/v1alpha1
kind: TuneSpace
parameters:
- {path: cpu.posture, choices: [none, weight, idle]}
- {path: cpu.ladder, choices: ["[quota]", "[cpus]", "[cpus, quota]"]}
- {path: cpu.cooldown, from: 100ms, to: 20s, scale: log}
- {path: cpu.quota.cutPercent, from: "10", to: "90"}
- {path: judge.window, from: 1s, to: 10s, scale: log}
`

func setUp(t *testing.T) (*Base, *Space, []whatif.Recording, *atomic.Int32) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "space.yaml")
	if err := os.WriteFile(file, []byte(spaceText), 0o600); err != nil {
		t.Fatal(err)
	}
	space, err := LoadSpace(file)
	if err != nil {
		t.Fatal(err)
	}
	base := &Base{"bad.yaml", []byte(badPolicy)}
	c, err := base.at(space, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := new(atomic.Int32)
	var recs []whatif.Recording
	for _, name := range []string{"calm", "constant-harm-rests"} {
		sc, err := sim.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		sc.Duration = policy.Duration(40 * time.Second)
		recs = append(recs, simulated{sc, c.Compiled, n})
	}
	return base, space, recs, n
}

// TestTuneFindsABetterPolicy: from recordings under a bad policy it finds one that is better when it really runs (on the simulated node).
func TestTuneFindsABetterPolicy(t *testing.T) {
	base, space, recs, n := setUp(t)
	out := t.TempDir()
	s := &Search{Base: base, Space: space, Recordings: recs, Points: 16, Rounds: 1, Out: out, Log: t.Logf}
	found, err := s.Run()
	if err != nil {
		t.Fatal(err)
	}
	b, front, chosen := Choose(found)
	t.Log("\n" + Table(space, b, front))
	if b == nil || len(chosen) == 0 {
		t.Fatalf("base %v, %d chosen", b, len(chosen))
	}
	best := chosen[0]
	for _, r := range recs {
		was, err := sim.Run(r.(simulated).sc, b.Compiled)
		if err != nil {
			t.Fatal(err)
		}
		now, err := sim.Run(r.(simulated).sc, best.Compiled)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: violation %.1f -> %.1f %%, work %.2f -> %.2f", r.Name(), was.Score.Violation(), now.Score.Violation(), was.Score.Work(), now.Score.Work())
		if now.Score.Violation() > was.Score.Violation()/4 {
			t.Errorf("%s: violation %.1f %%, with the bad policy %.1f %%", r.Name(), now.Score.Violation(), was.Score.Violation())
		}
	}

	files, err := Write(out, space, b, chosen, []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		checkConfigMap(t, f)
	}

	// A search that was killed goes on where it was, even if its last line was cut off.
	state := filepath.Join(out, "evaluations.jsonl")
	data, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	if err := os.WriteFile(state, []byte(strings.Join(lines[:len(lines)-2], "")+`{"search":"`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Store(0)
	again := &Search{Base: base, Space: space, Recordings: recs, Points: 16, Rounds: 1, Out: out}
	found2, err := again.Run()
	if err != nil {
		t.Fatal(err)
	}
	if len(found2) != len(found) {
		t.Errorf("%d found, before %d", len(found2), len(found))
	}
	if n.Load() > 2+1 { // one reading each for the model, one for the evaluation that was lost
		t.Errorf("the recordings were read %d times after a resumption", n.Load())
	}
	if data2, err := os.ReadFile(state); err != nil || len(data2) != len(data) {
		t.Errorf("%d bytes of state, before %d (%v)", len(data2), len(data), err)
	}
	other := &Search{Base: &Base{"bad.yaml", []byte(badPolicy + "# changed\n")}, Space: space, Recordings: recs, Points: 4, Out: out}
	if _, err := other.Run(); err == nil || !strings.Contains(err.Error(), "another base policy") {
		t.Errorf("another search took over: %v", err)
	}
}

// checkConfigMap checks that a ConfigMap holds a policy that loads.
func checkConfigMap(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cm struct {
		Kind string            `yaml:"kind"`
		Data map[string]string `yaml:"data"`
	}
	if err := yaml.Unmarshal(data, &cm); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	p, err := policy.Parse("policy.yaml", []byte(cm.Data["policy.yaml"]))
	if cm.Kind != "ConfigMap" || err != nil {
		t.Fatalf("%s: %s %v", file, cm.Kind, err)
	}
	c, err := policy.Compile(p)
	if err != nil || !strings.Contains(string(data), "# Policy "+c.ID()) {
		t.Errorf("%s does not hold the policy that it names: %v\n%s", file, err, data)
	}
	if !strings.Contains(string(data), "not a measurement") || !strings.Contains(string(data), "base policy:") {
		t.Errorf("no evidence in\n%s", data)
	}
}

func TestShardsMergeToTheWhole(t *testing.T) {
	base, space, recs, _ := setUp(t)
	out := t.TempDir()
	if _, err := Merge(out, base, space); err == nil {
		t.Error("nothing was merged")
	}
	run := func(i int) {
		s := &Search{Base: base, Space: space, Recordings: recs, Points: 6, Out: out, Shard: i, Shards: 2}
		if _, err := s.Run(); err != nil {
			t.Fatal(err)
		}
	}
	run(0)
	if _, err := Merge(out, base, space); err == nil || !strings.Contains(err.Error(), "shards 1 of 2 are missing") {
		t.Errorf("a part was taken for the whole: %v", err)
	}
	run(1)
	found, err := Merge(out, base, space)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 4 {
		t.Errorf("%d found", len(found))
	}
	for _, f := range found {
		if f.Score.Seconds < 79 || f.Score.Seconds > 81 {
			t.Errorf("%s was tried on %.1f s, want both recordings' 80", f.ID(), f.Score.Seconds)
		}
	}
	next := filepath.Join(out, "next.json")
	if err := os.WriteFile(next, Next(found, 0.1), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Search{Base: base, Space: space, Recordings: recs[:1], Out: t.TempDir(), Shard: 0, Shards: 1, Refine: next}
	if _, err := s.Run(); err != nil {
		t.Errorf("a second round: %v", err)
	}
}

// TestNoPointIsAPolicy: where a space and a policy do not go together, the error says why.
func TestNoPointIsAPolicy(t *testing.T) {
	base, _, recs, _ := setUp(t)
	file := filepath.Join(t.TempDir(), "space.yaml")
	text := "apiVersion: qos-agent.io/v1alpha1\nkind: TuneSpace\nparameters:\n- {path: judge.window, from: 40s, to: 50s}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	space, err := LoadSpace(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&Search{Base: base, Space: space, Recordings: recs, Points: 4, Out: t.TempDir(), Log: t.Logf}).Run()
	if err == nil || !strings.Contains(err.Error(), "none of 4 points") || !strings.Contains(err.Error(), "verify.after") {
		t.Errorf("got %v", err)
	}
}

func TestSobolFillsEvenly(t *testing.T) {
	for d := range dimensions {
		var seen [64]int
		for n := range uint32(64) {
			seen[int(sobol(n, dimensions)[d]*64)]++
		}
		if slices.ContainsFunc(seen[:], func(n int) bool { return n != 1 }) {
			t.Errorf("dimension %d: %v", d, seen)
		}
	}
	// The first points of the sequence in the literature.
	want := [][]float64{{0, 0, 0}, {0.5, 0.5, 0.5}, {0.75, 0.25, 0.25}, {0.25, 0.75, 0.75}, {0.375, 0.375, 0.625}, {0.875, 0.875, 0.125}}
	for n, w := range want {
		if got := sobol(uint32(n), 3); !slices.Equal(got, w) {
			t.Errorf("point %d is %v, want %v", n, got, w)
		}
	}
}

func TestFront(t *testing.T) {
	got := Front([]float64{1, 2, 0.5, 2, 1}, []float64{5, 6, 1, 4, 5})
	if !slices.Equal(got, []int{2, 0, 1}) {
		t.Errorf("got %v", got)
	}
}

func TestBadSpaces(t *testing.T) {
	const head = "apiVersion: qos-agent.io/v1alpha1\nkind: TuneSpace\nparameters:\n"
	file := filepath.Join(t.TempDir(), "s.yaml")
	for body, want := range map[string]string{
		"- {path: objectives.cpuWaitP99, from: 1ms, to: 9ms}": "does not get better by promising less",
		"- {path: mode, choices: [observe]}":                  "does not get better by promising less",
		"- {path: cpu.hold, from: 5s, to: 1s}":                "parameters[0].to: is 1s, from is 5s",
		"- {path: cpu.hold, from: x, to: 1s}":                 `parameters[0].from: is "x"`,
		"- {path: cpu.hold, from: 0s, to: 1s, scale: log}":    "on a logarithmic scale",
		"- {path: cpu.posture, choices: [idle], from: 1s}":    "stand beside from and to",
		"- {path: cpu.hold, from: 1s, to: 2s, stale: log}":    "stale: is not a known field",
	} {
		if err := os.WriteFile(file, []byte(head+body), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSpace(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", body, err)
		}
	}
}
