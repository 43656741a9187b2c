package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/trace/tracetest"
)

func TestParquetHoldsTheTable(t *testing.T) {
	dir := t.TempDir()
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 1 << 30, Wait: true, Info: trace.Info{Hostname: "node-1"}})
	if err != nil {
		t.Fatal(err)
	}
	pol, brain := policy.MustCompile(policy.Default()), decide.New()
	node := tracetest.New(tracetest.Options{Containers: 7, CPUs: 4, Seed: 5})
	var last time.Time
	for range 500 {
		s := node.Tick()
		last = s.Wall
		d := brain.Step(s, pol)
		rec.Step(s, pol, &d, nil)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out.parquet")
	c := cli{Traces: []string{dir}, Table: "containers", Out: out}
	if err := c.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	type row struct {
		Host  string    `parquet:"host,optional"`
		Time  time.Time `parquet:"time,optional,timestamp(nanosecond)"`
		Pod   string    `parquet:"pod,optional"`
		Usage *int64    `parquet:"cpu_usage_ns,optional"`
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := parquet.Read[row](f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 3500 {
		t.Fatalf("%d rows, want 3500", len(rows))
	}
	first, end := rows[0], rows[len(rows)-1]
	if first.Host != "node-1" || first.Pod == "" || !end.Time.Equal(last) || end.Usage == nil || *end.Usage == 0 {
		t.Errorf("%+v, %+v, last at %v", first, end, last)
	}
}
