package server

import (
	"bytes"
	"fmt"
	"math"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

func registry(t *testing.T, c prometheus.Collector) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	return r
}

func collectorOf(p Provider) *collector {
	return newCollector(p, fixtureInstruments(), "v1.2.3", discard())
}

// text gathers and encodes; the Go version is taken out, because it is not the fixture's.
func text(t *testing.T, g prometheus.Gatherer) []byte {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if f.GetName() == prefix+"build_info" {
			for _, l := range f.Metric[0].Label {
				if l.GetName() == "goversion" {
					l.Value = new("go1.x")
				}
			}
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestMetricsText(t *testing.T) {
	golden(t, "testdata/metrics.txt", text(t, registry(t, collectorOf(fixture()))))
}

func TestMetricsLint(t *testing.T) {
	for name, p := range map[string]*fakeProvider{"full": fixture(), "empty": {metrics: &Metrics{}}, "hung": {err: errHung}} {
		t.Run(name, func(t *testing.T) {
			problems, err := testutil.GatherAndLint(registry(t, collectorOf(p)))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range problems {
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
		})
	}
}

func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool: package prometheus is not installed")
	}
	for name, p := range map[string]*fakeProvider{"full": fixture(), "empty": {metrics: &Metrics{}}} {
		t.Run(name, func(t *testing.T) {
			body := get(t, newTestServer(t, p, fixtureInstruments()), "/metrics").Body
			cmd := exec.Command(promtool, "check", "metrics")
			cmd.Stdin = body
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("promtool check metrics: %v\n%s", err, out)
			}
		})
	}
}

// Series whose labels are known must be there before anything happens: a counter that appears with 1 never shows a rate.
func TestMetricsSeeded(t *testing.T) {
	p := &fakeProvider{metrics: &Metrics{Containers: []ContainerMetrics{{Namespace: "n", Pod: "p", Container: "c", Class: policy.Online, Wait: &WaitTotals{}}}}}
	got := string(text(t, registry(t, collectorOf(p))))
	var want []string
	for _, k := range knob.Kinds() {
		for _, r := range knob.Results() {
			want = append(want, fmt.Sprintf(`qosagent_knob_writes_total{knob=%q,result=%q} 0`, k.String(), r.String()))
		}
	}
	for _, c := range PseudoCulprits() {
		want = append(want, fmt.Sprintf(`qosagent_cpu_wait_blame_seconds_total{culprit_namespace="",culprit_pod=%q,victim_namespace="n",victim_pod="p"} 0`, c))
	}
	for _, c := range []string{"online", "offline", "unclassified"} {
		want = append(want, fmt.Sprintf(`qosagent_pods{class=%q} 0`, c))
	}
	for _, line := range want {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no series %s", line)
		}
	}
}

func TestMetricsWithoutTheLoop(t *testing.T) {
	got := string(text(t, registry(t, collectorOf(&fakeProvider{err: errHung}))))
	for _, line := range []string{"qosagent_snapshot_success 0", "qosagent_tick_seconds_count 100"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no series %s", line)
		}
	}
	if strings.Contains(got, "qosagent_pods") {
		t.Error("shows figures that the loop did not hand over")
	}
}

func TestBlamePairsAreBounded(t *testing.T) {
	m := &Metrics{}
	for i := range 10 {
		m.Blame = append(m.Blame, BlameMetrics{"n", "victim", "n", fmt.Sprint("c", i), uint64(i)}) // c0 is 0 ns: no pair
	}
	m.Blame = append(m.Blame, BlameMetrics{"n", "victim", "", CulpritOwn, 1})
	c := collectorOf(&fakeProvider{metrics: m})
	c.maxBlamePairs = 4
	got := string(text(t, registry(t, c)))
	for _, line := range []string{
		`qosagent_blame_pairs_hidden 5`,
		`qosagent_cpu_wait_blame_seconds_total{culprit_namespace="n",culprit_pod="c6",victim_namespace="n",victim_pod="victim"} 6e-09`,
		`qosagent_cpu_wait_blame_seconds_total{culprit_namespace="",culprit_pod="own",victim_namespace="n",victim_pod="victim"} 1e-09`,
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no series %s in\n%s", line, got)
		}
	}
	if strings.Contains(got, `culprit_pod="c5"`) {
		t.Error("c5 is smaller than four others and still shown")
	}
}

// One label that is not UTF-8 must not cost the operator the scrape.
func TestMetricsWithBrokenNames(t *testing.T) {
	p := fixture()
	p.metrics.Containers[0].Pod = "web\xff"
	problems, err := testutil.GatherAndLint(registry(t, collectorOf(p)))
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
}

// The classic buckets must be the log-linear ones moved, not estimated.
func TestClassicBuckets(t *testing.T) {
	for _, e := range bucketExps {
		if i := histogram.Index(1 << e); histogram.Lower(i) != 1<<e {
			t.Errorf("2^%d ns is no bound of package histogram", e)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		values := rapid.SliceOf(rapid.Custom(func(t *rapid.T) uint64 {
			return rapid.Uint64Range(0, 1<<rapid.IntRange(1, 40).Draw(t, "magnitude")).Draw(t, "ns")
		})).Draw(rt, "values")
		var c histogram.Counts
		for _, v := range values {
			c[histogram.Index(v)]++
		}
		buckets, count := classic(&c)
		if count != uint64(len(values)) || len(buckets) != len(bucketExps) {
			rt.Fatalf("count %d of %d values, %d buckets", count, len(values), len(buckets))
		}
		for i, bound := range bucketBounds() {
			var want uint64
			for _, v := range values {
				if v < 1<<bucketExps[i] {
					want++
				}
			}
			if buckets[bound] != want {
				rt.Fatalf("le=%g: %d, want %d", bound, buckets[bound], want)
			}
		}
	})
}

func TestDurations(t *testing.T) {
	var d Durations
	for range 99 {
		d.Observe(time.Millisecond)
	}
	d.Observe(10 * time.Millisecond)
	d.Observe(-5)
	got := d.Latency()
	if got.Count != 101 || math.Abs(got.P50Seconds-0.001) > 0.0002 {
		t.Errorf("%+v", got)
	}
	if n := testing.AllocsPerRun(100, func() { d.Observe(1000) }); n != 0 {
		t.Errorf("Observe allocates %v times", n)
	}
	var empty Durations
	if got := empty.Latency(); got != (Latency{}) {
		t.Errorf("empty: %+v", got)
	}
}

// The reference and the golden file must not drift apart: every family of the reference appears in the fixture's
// scrape, with its type and its labels.
func TestEveryFamilyIsShown(t *testing.T) {
	families, err := registry(t, collectorOf(fixture())).Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]*dto.MetricFamily{}
	for _, f := range families {
		shown[f.GetName()] = f
	}
	for _, f := range newFamilies().all {
		got, ok := shown[f.name]
		if !ok {
			t.Errorf("%s is described and never shown", f.name)
			continue
		}
		if !strings.EqualFold(got.GetType().String(), string(f.kind)) || len(got.Metric[0].Label) != len(f.labels) {
			t.Errorf("%s: %v with %d labels, described as %s with %d", f.name, got.GetType(), len(got.Metric[0].Label), f.kind, len(f.labels))
		}
	}
}
