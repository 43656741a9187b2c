package sim

import (
	"reflect"
	"strings"
	"testing"
)

// TestLibrary runs every scenario and holds it to what it expects.
func TestLibrary(t *testing.T) {
	names := Library()
	if len(names) < 15 {
		t.Errorf("%d scenarios", len(names))
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, name)
			for _, w := range r.Check() {
				t.Error(w)
			}
			if t.Failed() || testing.Verbose() {
				t.Log(r.Summary())
			}
			if t.Failed() {
				for _, n := range r.Notes[:min(len(r.Notes), 40)] {
					t.Logf("%9.2fs %s", n.T.Seconds(), n)
				}
			}
		})
	}
}

func run(t *testing.T, name string) *Result {
	t.Helper()
	sc, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(sc, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestEveryScenarioExpectsSomething: a scenario that nothing can fail shows nothing.
func TestEveryScenarioExpectsSomething(t *testing.T) {
	for _, name := range Library() {
		sc, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if reflect.ValueOf(sc.Expect).IsZero() {
			t.Errorf("%s expects nothing", name)
		}
	}
}

func TestSameSeedSameRun(t *testing.T) {
	a, b := run(t, "bursts"), run(t, "bursts")
	if !reflect.DeepEqual(a, b) {
		t.Error("two runs of one scenario differ")
	}
}

func TestExpectationsCanFail(t *testing.T) {
	sc, err := Load("observe-mode")
	if err != nil {
		t.Fatal(err)
	}
	zero, much := 0.0, 1e9
	sc.Expect = Expect{ViolationPercent: Bounds{Max: &zero}, Changes: Bounds{Min: &much}, Cut: []string{"web"}, NeverCut: []string{"forks"},
		Rules: []string{"release"}, NoRules: []string{"event-cut"}, WellFrom: 1e9, FreeAtEnd: true}
	r, err := Run(sc, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(r.Check(), "\n")
	for _, want := range []string{"violationPercent is", "changes is 0, want at least", "web was not cut", "forks was cut",
		"rule release was not used", "rule event-cut was used", "web is beyond its objective", "forks still held"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestBadScenarios(t *testing.T) {
	const head = "apiVersion: qos-agent.io/v1alpha1\nkind: Scenario\nname: x\nabout: y\n"
	for name, tt := range map[string]struct{ body, want string }{
		"unknown field": {"pods: [{name: a, class: online, cpus: 3}]", "pods[0].cpus: is not a known field"},
		"twice":         {"pods: [{name: a, class: online}, {name: a, class: online}]", `pods[1].name: is "a" again`},
		"load":          {"pods: [{name: a, class: online, load: [{at: 2s, ramp: 5s, cpu: 1}, {at: 3s, cpu: 2}]}]", "pods[0].load[1].at: is before"},
		"topology":      {"node: {cpus: 6, threads: 4}\npods: [{name: a, class: online}]", "node.cpus: is 6"},
		"policy":        {"policy: {judge: {jointPercent: 10}}\npods: [{name: a, class: online}]", "policy.judge.jointPercent: is 10"},
		"expectation":   {"pods: [{name: a, class: online}]\nexpect: {cut: [b]}", `names the pod "b"`},
		"name":          {"pods: [{name: a, class: online}]\n", ""},
	} {
		_, err := parse("x.yaml", []byte(head+tt.body))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
