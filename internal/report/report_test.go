package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/sim"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

// crowd is a node with many pods.
func crowd(t *testing.T, online, offline int) *sim.Scenario {
	t.Helper()
	sc, err := sim.Load("constant-harm-rests")
	if err != nil {
		t.Fatal(err)
	}
	sc.Node.CPUs = 64
	web, forks := sc.Pods[0], sc.Pods[1]
	sc.Pods = nil
	for i := range online {
		p := web
		p.Name, p.CPU, p.Wakeups = fmt.Sprintf("web-%03d", i), 0.1, 3000
		sc.Pods = append(sc.Pods, p)
	}
	for i := range offline {
		p := forks
		p.Name, p.CPU = fmt.Sprintf("batch-%03d", i), max(0.5, 40/float64(offline))
		p.Harm.Hits = 0.05 * float64(1+i%3)
		sc.Pods = append(sc.Pods, p)
	}
	return sc
}

// page records a scenario and makes the page about it, with another policy and what the model says of that.
func page(t *testing.T, sc *sim.Scenario, d time.Duration) string {
	t.Helper()
	sc.Duration = policy.Duration(d)
	file := filepath.Join(t.TempDir(), "node"+trace.Ext)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sim.Record(sc, nil, f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p := policy.Default()
	p.Metadata.Name = "posture-only"
	p.Spec.CPU.Ladder = []policy.Rung{}
	other, err := policy.Compile(&p)
	if err != nil {
		t.Fatal(err)
	}
	s := replay.Series{Files: []string{file}}
	rep, err := Build(context.Background(), s, time.Time{}, time.Time{}, other)
	if err != nil {
		t.Fatal(err)
	}
	rec := whatif.Recorded(context.Background(), s, time.Time{}, time.Time{})
	m, err := whatif.Fit([]whatif.Recording{rec}, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := whatif.Run(rec, m, []*policy.Compiled{other}, whatif.Options{Draws: 2})
	if err != nil {
		t.Fatal(err)
	}
	rep.SetWhatIf(res, m, &whatif.Error{Blocks: 3, Relative: 0.2})
	var out bytes.Buffer
	if err := rep.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPage(t *testing.T) {
	html := page(t, crowd(t, 1, 1), 30*time.Second)
	for _, want := range []string{"qos-agent report of simulated", "online/web-000", "offline/batch-000", "What if: posture-only", "event-cut",
		"spec.cpu.ladder", "Who hurts whom", "not a measurement", "off by 20 %", "Differing decisions", "Leon Sorokin"} {
		if !strings.Contains(html, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	// Nothing is fetched: neither by the page nor by what is embedded in it.
	if m := regexp.MustCompile(`(?i)(src|href)="?(https?:)?//|@import|url\(|fetch\(|XMLHttpRequest`).FindString(html); m != "" {
		t.Errorf("the page reaches out: %s", m)
	}
}

func TestHostileNamesAreText(t *testing.T) {
	rep := New(nil)
	rep.SetInfo(&trace.Info{Hostname: `<script>alert(1)</script>`})
	rep.pods["x"] = &pod{key: `</script><img src=x onerror=alert(1)>`, class: policy.Online, reasons: map[string]float64{}}
	rep.order = []string{"x"}
	var out bytes.Buffer
	if err := rep.Write(&out); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Contains(s, "<img") || strings.Contains(s, "<script>alert") {
		t.Error("a name became part of the page")
	}
}

func TestLinesHaveBoundedLength(t *testing.T) {
	r := New(nil)
	for i := range 100_000 {
		b := r.bin(time.Duration(i) * 100 * time.Millisecond)
		p := r.pods["a"]
		if p == nil {
			p = &pod{key: "a", class: policy.Online}
			r.pods["a"] = p
			r.order = append(r.order, "a")
		}
		v := float32(1)
		if i == 54_321 {
			v = 9
		}
		p.p99 = put(p.p99, b, v, larger)
	}
	p := r.pods["a"]
	if len(p.p99) > points || len(p.p99) < points/2 {
		t.Errorf("%d points", len(p.p99))
	}
	at := -1
	for i, v := range p.p99 {
		if v == 9 {
			at = i
		}
	}
	if want := int(54_321 * 100 * time.Millisecond / r.width); at != want {
		t.Errorf("the peak is at point %d, want %d", at, want)
	}
	data, err := json.Marshal(numbers{1, gap, 1234567, 0.00123456})
	if err != nil || string(data) != `[1,null,1.23e+06,0.00123]` {
		t.Errorf("%s %v", data, err)
	}
}

func TestPolicyDifferences(t *testing.T) {
	a, b := policy.Default(), policy.Default()
	b.Spec.CPU.CPUs.Floor = 3
	b.Spec.Mode = policy.Observe
	got := diff(policy.MustCompile(a), policy.MustCompile(b))
	want := []Change{{"spec.cpu.cpus.floor", "1", "3"}, {"spec.mode", "enforce", "observe"}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v", got)
	}
}
