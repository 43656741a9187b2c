package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Prometheus is a running server that lives as long as the test.
type Prometheus struct {
	url string
	log string
}

// StartPrometheus starts Debian's, scraping the agent on a port each second as the chart's PodMonitor would have it scraped.
func StartPrometheus(t testing.TB, port, agentPort int, node, rules string) *Prometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("needs prometheus: apt-get install prometheus")
	}
	dir := t.TempDir()
	rules, err = filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 2s}
rule_files: [%q]
scrape_configs:
- job_name: qos-agent
  honor_labels: true
  static_configs: [{targets: ["127.0.0.1:%d"], labels: {node: %q}}]
`, rules, agentPort, node)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &Prometheus{url: fmt.Sprintf("http://127.0.0.1:%d", port), log: filepath.Join(dir, "log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		if _, err := p.get(ctx, "/-/ready"); err == nil {
			return p
		} else if ctx.Err() != nil {
			text, _ := os.ReadFile(p.log)
			t.Fatalf("prometheus: %v\n%s", err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *Prometheus) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return text, err
}

// Sample is one series of an instant query's answer.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query evaluates PromQL now. Warnings are errors.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Sample, error) {
	text, err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Warnings []string
		Data     struct {
			ResultType string
			Result     []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	if len(answer.Warnings) > 0 || answer.Data.ResultType != "vector" {
		return nil, fmt.Errorf("%s, warnings %v", answer.Data.ResultType, answer.Warnings)
	}
	var out []Sample
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, Sample{r.Metric, v})
	}
	return out, nil
}

// Finite reports whether a value is a number that can be drawn.
func (s Sample) Finite() bool { return !math.IsNaN(s.Value) && !math.IsInf(s.Value, 0) }

// Rule is what Prometheus says of a rule.
type Rule struct {
	Type, Name, Query, Health, LastError, State string
}

// Rules lists all that are loaded.
func (p *Prometheus) Rules(ctx context.Context) ([]Rule, error) {
	text, err := p.get(ctx, "/api/v1/rules")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Groups []struct{ Rules []Rule }
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	var out []Rule
	for _, g := range answer.Data.Groups {
		out = append(out, g.Rules...)
	}
	return out, nil
}
