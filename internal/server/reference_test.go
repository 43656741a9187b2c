package server

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestReference writes docs/metrics.md with -update and otherwise proves that it is what the collector does.
func TestReference(t *testing.T) {
	golden(t, "../../docs/metrics.md", []byte(reference()))
}

func reference() string {
	var b strings.Builder
	b.WriteString(`# Metrics

Generated from the descriptions in internal/server by ` + "`go test ./internal/server -run TestReference -update`" + `. Do not edit.

` + "`GET /metrics`" + ` of ` + "`qos-agent run`" + ` serves these families, and those of the Go runtime (` + "`go_*`" + `) and of the process (` + "`process_*`" + `).

- Time is in seconds, memory in bytes. Series whose labels are known beforehand are there from the start, at 0.
- The series of a pod end with the pod. Of pods that no class matches only the number is shown.
- ` + "`namespace`, `pod` and `container`" + ` say whom a figure is about, not where it comes from: scrape with ` + "`honorLabels: true`" + `.
- Histograms are cut from the kernel side's log-linear counts at exact bounds, nothing is interpolated (a wait of exactly a bound
  counts in the bucket above it):
`)
	fmt.Fprintf(&b, "  %s.\n", strings.Join(bounds(), ", "))
	b.WriteString(`- A scrape copies the loop's figures and never holds the loop up. When the loop does not answer within 2 s,
  ` + "`qosagent_snapshot_success`" + ` is 0, and only the loop's own instruments, the process and the runtime are shown.
- At most 4 scrapes are served at once; more get 503.
`)
	section := ""
	for _, f := range newFamilies().all {
		if f.section != section {
			section = f.section
			fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | series | meaning |\n|---|---|---|---|---|\n", section)
		}
		labels := "–"
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.name, f.kind, labels, f.series, strings.ReplaceAll(f.help, "|", `\|`))
	}
	return b.String()
}

func bounds() []string {
	var out []string
	for _, e := range bucketExps {
		out = append(out, time.Duration(1<<e).String())
	}
	return append(out, "+Inf")
}
