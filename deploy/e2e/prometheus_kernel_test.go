package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/deploy/e2e"
	"github.com/qos-agent/qos-agent/internal/server"
)

// swinging is a policy under which the batch pod is cut and soon let go again, all the time, so that everything that can be measured
// about reactions is. Its objectives are above what other work on the machine does to the web pod: it must be well again when cut.
const swinging = `apiVersion: qos-agent.io/v1alpha1
kind: QoSPolicy
metadata: {name: swinging}
spec:
  mode: enforce
  objectives: {cpuWaitP99: 1ms, cpuWaitEvent: 2ms}
  judge: {minSamples: 5, watchPercent: 50}
  cpu: {ladder: [cpus, quota], cooldown: 100ms, hold: 500ms, regrowEvery: 500ms, verify: {backoffMin: 1s, backoffMax: 1s}}
`

// TestPrometheus runs Debian's Prometheus against the agent's pod beside pods under load, and evaluates every query of every
// dashboard and every rule: each must have an answer that can be drawn, and where the truth is known it must be that.
func TestPrometheus(t *testing.T) {
	s := newStage(t)
	s.node.ConfigMap(t, "qos-agent-policy", map[string]string{"10-cluster.yaml": swinging})
	p := s.start()
	prom := e2e.StartPrometheus(t, freePort(t), s.port, "node-1", "../helm/qos-agent/files/rules.yaml")
	state := s.wait(p, "the batch pod to be cut", cut)
	has := map[string]bool{}
	for _, c := range state.Node.Capabilities {
		has[c.Name] = c.OK
	}
	// Rates over 30 s that have seen events and their answers, and at this very moment something that is held.
	s.waitQuery(prom, `sum(increase(qosagent_reaction_seconds_count[30s])) > 2 and sum(count_over_time(qosagent_build_info[30s])) > 25`)
	s.wait(p, "the batch pod to be held again", cut)
	s.waitQuery(prom, `sum(qosagent_pod_knobs_held{victim="shop/web"})`)

	t.Run("dashboards", func(t *testing.T) {
		files, err := filepath.Glob("../helm/qos-agent/files/dashboards/*.json")
		if err != nil || len(files) < 4 {
			t.Fatalf("dashboards: %v %v", files, err)
		}
		n := 0
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) { n += s.checkDashboard(t, prom, file, has) })
		}
		if n < 60 {
			t.Errorf("only %d queries were evaluated", n)
		}
	})
	t.Run("rules", func(t *testing.T) { s.checkRules(t, prom) })
	t.Run("truths", func(t *testing.T) { s.checkTruths(t, prom, state) })
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d; log:\n%s", code, p.Log())
	}
}

// waitQuery waits until a query has an answer.
func (s *stage) waitQuery(prom *e2e.Prometheus, expr string) {
	s.t.Helper()
	for {
		got, err := prom.Query(s.ctx, expr)
		if err == nil && len(got) > 0 && got[0].Value > 0 {
			return
		}
		select {
		case <-s.ctx.Done():
			for part := range strings.SplitSeq(expr, " and ") {
				whole, err := prom.Query(context.WithoutCancel(s.ctx), strings.Split(part, " > ")[0])
				s.t.Logf("%s: %v %v", part, whole, err)
			}
			s.t.Fatalf("waiting for %s: %v %v", expr, got, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type dashboardFile struct {
	Title      string
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []struct {
		Title   string
		Type    string
		Targets []struct{ Expr, LegendFormat string }
	}
}

// absentWithout are the metrics that only some machines have, by the probe that says so.
var absentWithout = map[string]*regexp.Regexp{
	"perf":    regexp.MustCompile(`qosagent_(cpi|mpki)`),
	"resctrl": regexp.MustCompile(`qosagent_(llc_occupancy|memory_bandwidth|domain_memory)`),
}

func (s *stage) checkDashboard(t *testing.T, prom *e2e.Prometheus, file string, has map[string]bool) (queries int) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboardFile
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	choice := map[string]string{"node": "node-1", "namespace": "shop", "pod": "web"}
	if strings.Contains(file, "offline") {
		choice["namespace"], choice["pod"] = "jobs", "batch"
	}
	fill := func(expr string) string {
		expr = strings.ReplaceAll(expr, "$__rate_interval", "30s")
		for name, value := range choice {
			expr = strings.ReplaceAll(expr, "$"+name, value)
		}
		return expr
	}
	for _, v := range d.Templating.List {
		query, _ := v.Query.(string)
		if v.Type != "query" {
			continue
		}
		m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(query)
		if m == nil {
			t.Errorf("variable %s: query %q", v.Name, query)
			continue
		}
		got, err := prom.Query(s.ctx, fmt.Sprintf("count by (%s) (%s)", m[2], fill(m[1])))
		if err != nil || !slices.ContainsFunc(got, func(g e2e.Sample) bool { return g.Labels[m[2]] == choice[v.Name] }) {
			t.Errorf("variable %s: %v %v, want %s among them", v.Name, got, err, choice[v.Name])
		}
	}
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			queries++
			expr := fill(target.Expr)
			got, err := prom.Query(s.ctx, expr)
			if err != nil {
				t.Errorf("%s: %s: %v", panel.Title, expr, err)
				continue
			}
			missing := false
			for probe, metrics := range absentWithout {
				missing = missing || !has[probe] && metrics.MatchString(expr)
			}
			if missing {
				continue
			}
			if len(got) == 0 {
				t.Errorf("%s: no answer: %s", panel.Title, expr)
			}
			for _, g := range got {
				if !g.Finite() || g.Value < 0 {
					t.Errorf("%s: %v %v: %s", panel.Title, g.Labels, g.Value, expr)
				}
				for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.LegendFormat, -1) {
					// Culprits that are no pods have no namespace, settings of the posture no victim; "or vector(0)" has no label at all.
					if g.Labels[m[1]] == "" && len(g.Labels) > 0 && m[1] != "culprit_namespace" && m[1] != "victim" {
						t.Errorf("%s: the legend %q names a label that is not there: %v", panel.Title, target.LegendFormat, g.Labels)
					}
				}
			}
		}
	}
	return queries
}

// selector finds what a rule reads.
var selector = regexp.MustCompile(`\b(?:qosagent_\w+|process_\w+|up)(?:\{[^}]*\})?`)

func (s *stage) checkRules(t *testing.T, prom *e2e.Prometheus) {
	rules, err := prom.Rules(s.ctx)
	if err != nil || len(rules) < 15 {
		t.Fatalf("%d rules, %v", len(rules), err)
	}
	for _, r := range rules {
		if r.Health != "ok" || r.LastError != "" {
			t.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
		}
		if r.State == "firing" {
			t.Errorf("%s fires on a node where nothing is wrong", r.Name)
		}
		if r.Type == "recording" {
			if got, err := prom.Query(s.ctx, r.Name); err != nil || len(got) == 0 {
				t.Errorf("%s: %v %v", r.Name, got, err)
			}
		}
		// An alert that reads series which do not exist never fires.
		found := selector.FindAllString(r.Query, -1)
		if len(found) == 0 {
			t.Errorf("%s reads nothing: %s", r.Name, r.Query)
		}
		for _, sel := range found {
			if got, err := prom.Query(s.ctx, "count("+sel+")"); err != nil || len(got) == 0 {
				t.Errorf("%s reads %s, which has no series: %v", r.Name, sel, err)
			}
		}
	}
}

// checkTruths holds figures against what is known otherwise.
func (s *stage) checkTruths(t *testing.T, prom *e2e.Prometheus, state *server.State) {
	one := func(expr string) float64 {
		t.Helper()
		got, err := prom.Query(s.ctx, expr)
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %v %v, want one value", expr, got, err)
			return math.NaN()
		}
		return got[0].Value
	}
	for expr, want := range map[string]float64{
		`count(qosagent_build_info{node="node-1"})`: 1,
		`qosagent_enforcing`:                        1,
		`qosagent_pods{class="online"}`:             1,
		`qosagent_pods{class="offline"}`:            1,
		`qosagent_policy_info{name="swinging"}`:     1,
		// The posture is on the pod's group, which both containers are in.
		`count(qosagent_pod_knobs_held{namespace="jobs", pod="batch", knob="cpu.idle", rule="posture"})`: 1,
		`count(qosagent_pod_knobs_held{namespace="shop"}) or vector(0)`:                                  0,
	} {
		if got := one(expr); got != want {
			t.Errorf("%s is %v, want %v", expr, got, want)
		}
	}
	cpus := float64(len(state.Node.CPUs))
	if got := one(`sum(rate(qosagent_cpu_usage_seconds_total[30s]))`); got <= 0 || got > cpus*1.1 {
		t.Errorf("pods used %v of %v CPUs", got, cpus)
	}
	// Who waits can only be blamed on others for as long as it waited.
	if got := one(`sum(rate(qosagent_cpu_wait_blame_seconds_total{victim_pod="web"}[30s])) / sum(rate(qosagent_cpu_wait_seconds_sum{pod="web"}[30s]))`); got <= 0 || got > 1.05 {
		t.Errorf("blame adds up to %v of the wait", got)
	}
}
