package tracetable

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/trace/tracetest"
)

func recording(t *testing.T) []replay.Series {
	t.Helper()
	dir := t.TempDir()
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 1 << 30, Wait: true, Info: trace.Info{Hostname: "node-1"}})
	if err != nil {
		t.Fatal(err)
	}
	p := policy.Default()
	p.Spec.Mode = policy.Enforce
	p.Spec.Objectives.CPUWaitP99, p.Spec.Objectives.CPUWaitEvent = policy.Duration(2*time.Millisecond), policy.Duration(4*time.Millisecond)
	pol, brain := policy.MustCompile(p), decide.New()
	node := tracetest.New(tracetest.Options{Containers: 6, CPUs: 4, Seed: 5, Hardware: true})
	for i := range 3000 {
		s := node.Tick()
		if rec.WantsState() {
			rec.State(brain.Checkpoint)
		}
		d := brain.Step(s, pol)
		var out []knob.Outcome
		if i == 0 {
			out = []knob.Outcome{{Want: d.Plan[0], Old: "0", New: "1", Result: knob.Written}}
		}
		rec.Step(s, pol, &d, out)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := trace.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := replay.Group(files)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTables(t *testing.T) {
	all := recording(t)
	for table, least := range map[string]int{"containers": 18_000, "node": 3000, "verdicts": 5000, "notes": 1, "outcomes": 1} {
		var text, lines bytes.Buffer
		if err := CSV(context.Background(), &text, table, all); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(&text).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", table, err)
		}
		if len(rows)-1 < least {
			t.Errorf("%s: %d rows, want at least %d", table, len(rows)-1, least)
		}
		if err := JSONL(context.Background(), &lines, table, all); err != nil {
			t.Fatal(err)
		}
		n := 0
		for dec := json.NewDecoder(&lines); ; n++ {
			var row map[string]any
			if err := dec.Decode(&row); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", table, err)
			}
			if row["host"] != "node-1" {
				t.Fatalf("%s: %v", table, row)
			}
		}
		if n != len(rows)-1 {
			t.Errorf("%s: %d rows as CSV, %d as JSON", table, len(rows)-1, n)
		}
	}
	// Each value is of its column's kind.
	for table := range tables {
		columns := Columns(table)
		err := Each(context.Background(), table, all, func(r Row) error {
			if len(r) != len(columns) {
				t.Fatalf("%s: %d values for %d columns", table, len(r), len(columns))
			}
			for i, v := range r {
				ok := v == nil
				switch v.(type) {
				case string:
					ok = columns[i].Kind == String
				case int64:
					ok = columns[i].Kind == Int
				case bool:
					ok = columns[i].Kind == Bool
				case time.Time:
					ok = columns[i].Kind == Time
				}
				if !ok {
					t.Fatalf("%s.%s: %T", table, columns[i].Name, v)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := CSV(context.Background(), io.Discard, "chairs", all); err == nil {
		t.Error("a table that there is not: no error")
	}
}

func importAll(t *testing.T, o ImportOptions) (Imported, []*signal.Snapshot, *trace.Info) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "out.qostrace")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := Import(context.Background(), f, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := trace.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []*signal.Snapshot
	for {
		s, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		c := *s.Snapshot
		c.Containers = append([]signal.ContainerSample(nil), c.Containers...)
		out = append(out, &c)
	}
	return sum, out, r.Info()
}

func TestImport2018(t *testing.T) {
	sum, steps, info := importAll(t, ImportOptions{
		Format: "alibaba-2018", Usage: "testdata/container_usage.csv", Node: "testdata/machine_usage.csv", Meta: "testdata/container_meta.csv",
	})
	want := Imported{Machine: "m_7", Containers: 3, Steps: 3, Bad: 1, BadWhy: "testdata/container_usage.csv row 5: no CPU use"}
	if diff := cmp.Diff(want, sum); diff != "" {
		t.Fatal(diff)
	}
	if !strings.Contains(info.Note, "no run-queue wait") {
		t.Errorf("the note does not say what is missing: %q", info.Note)
	}
	// c_1 used 30 % of its 4 cores for 10 s at 1.5 cycles per instruction.
	c := steps[1].Containers[0]
	cpi, _ := c.Perf.CPI()
	mpki, _ := c.Perf.MPKI()
	if c.CPU.UsageNS != 12e9 || c.CPU.Span != 10*time.Second || cpi < 1.49 || cpi > 1.51 || mpki < 1.99 || mpki > 2.01 {
		t.Errorf("c_1: %+v, CPI %v, MPKI %v", c, cpi, mpki)
	}
	if c := steps[1].Containers[2]; c.Perf.At != 0 || c.CPU.UsageNS != 1e9 { // a CPI of 0 is none
		t.Errorf("c_3: %+v", c)
	}
}

func TestImport2022(t *testing.T) {
	sum, steps, _ := importAll(t, ImportOptions{
		Format: "amtrace-2022", Usage: "testdata/core_pmu_metrics.csv", Node: "testdata/uncore_pmu_metrics.csv", Meta: "testdata/container_meta_2022.csv", Machine: "n1",
	})
	if sum.Containers != 2 || sum.Steps != 2 || sum.Bad != 1 {
		t.Fatalf("%+v", sum)
	}
	s := steps[0]
	if len(s.Node.Topology.CPUs) != 3 || len(s.Node.Bandwidth) != 2 || s.Node.Bandwidth[0].TotalBytes != 5534<<20 {
		t.Errorf("%+v", s.Node)
	}
	for i := range s.Containers {
		c, p := &s.Containers[i], &s.Pods[s.Containers[i].Pod]
		switch p.Labels["qos-agent.io/class"] {
		case "online":
			if c.Perf.Cycles != 19e8 || c.Perf.Instructions != 15e8 || c.CPU.UsageNS != 1e9 {
				t.Errorf("web: %+v", c)
			}
		case "offline":
			if c.Perf.LLCMisses != 4e7 || c.CPU.UsageNS != 2e9 {
				t.Errorf("spark: %+v", c)
			}
		default:
			t.Errorf("%+v", p)
		}
	}
}

func TestImportRefusals(t *testing.T) {
	for name, o := range map[string]ImportOptions{
		"no file":    {Format: "alibaba-2018", Usage: "testdata/nothing.csv"},
		"no machine": {Format: "alibaba-2018", Usage: "testdata/container_usage.csv", Machine: "m_99"},
	} {
		if _, err := Import(context.Background(), io.Discard, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCut(t *testing.T) {
	all := recording(t)
	res, err := replay.Run(context.Background(), all[0], replay.Options{Verify: true})
	if err != nil || res.FirstDiff != nil {
		t.Fatal(err, res)
	}
	from, to := res.First.Add(70*time.Second), res.First.Add(90*time.Second)
	file := filepath.Join(t.TempDir(), "cut.qostrace")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := replay.Cut(context.Background(), all[0], from, to, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	part, err := replay.Run(context.Background(), replay.Series{Files: []string{file}}, replay.Options{Verify: true})
	if err != nil || part.FirstDiff != nil || part.Inexact > 0 || part.Steps != n || n < 190 || part.First.Before(from) || part.Last.After(to) {
		t.Errorf("%v, %d steps, %+v", err, n, part)
	}
}
