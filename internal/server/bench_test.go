package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/qos-agent/qos-agent/internal/policy"
)

// BenchmarkScrape is a node of 150 containers, 50 of them online, each of which has met every offline one.
func BenchmarkScrape(b *testing.B) {
	m := &Metrics{}
	for i := range 150 {
		row := ContainerMetrics{Namespace: "ns", Pod: fmt.Sprint("pod-", i), Container: "main", Class: policy.Offline,
			Wait: waits(1e5, 1e6, 1e7), CPU: &CPUTotals{UsageNS: 1}, Memory: &MemoryLevels{WorkingSetBytes: 1}}
		if i < 50 {
			row.Class = policy.Online
			for j := 50; j < 150; j++ {
				m.Blame = append(m.Blame, BlameMetrics{"ns", row.Pod, "ns", fmt.Sprint("pod-", j), uint64(j)})
			}
		}
		m.Containers = append(m.Containers, row)
	}
	s, err := New(Options{Provider: &fakeProvider{metrics: m}, Decisions: &fakeDecisions{}, Page: http.NotFoundHandler(), Instruments: &Instruments{}, Log: discard()})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		b.ReportMetric(float64(w.Body.Len()), "bytes/scrape")
	}
}
