package grafana_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/deploy/grafana"
)

const files = "../helm/qos-agent/files/dashboards"

func TestGenerated(t *testing.T) {
	boards := grafana.Boards()
	if found, err := filepath.Glob(files + "/*.json"); err != nil || len(found) != len(boards) {
		t.Errorf("%d files for %d boards %v", len(found), len(boards), err)
	}
	for _, b := range boards {
		want, err := b.JSON()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(files, strings.TrimPrefix(b.UID, "qos-agent-")+".json"))
		if err != nil || !bytes.Equal(want, got) {
			t.Errorf("%s is not what is generated: go generate ./... in deploy/ (%v)", b.UID, err)
		}
	}
}

// TestMetricsExist holds queries and rules against the reference: a metric that is renamed is missed here at once.
func TestMetricsExist(t *testing.T) {
	reference, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../helm/qos-agent/files/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(rules)}
	for _, b := range grafana.Boards() {
		text, err := b.JSON()
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	n := 0
	for _, text := range texts {
		for _, name := range regexp.MustCompile(`\bqosagent_[a-z_]+`).FindAllString(text, -1) {
			n++
			base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if !bytes.Contains(reference, []byte("`"+name+"`")) && !bytes.Contains(reference, []byte("`"+base+"`")) {
				t.Errorf("%s is not in docs/metrics.md", name)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d uses of metrics found", n)
	}
}
