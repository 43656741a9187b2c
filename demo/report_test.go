package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/bench/load"
)

// good is a report of a demo in which everything went as it should.
func good() *report {
	window := func(p99, offline float64) measurement {
		return measurement{Window: load.Window{P50: p99 / 4, P99: p99, P999: 2 * p99, Rate: 1000}, Offline: offline}
	}
	r := &report{Windows: 3, Restored: true}
	for range r.Windows {
		m := window(27e3, 900)
		m.Culprits, m.Blame = []string{heavyPod}, map[string]float64{heavyPod: 0.8, "system": 0.2}
		r.windows[alone] = append(r.windows[alone], window(300, 0))
		r.windows[without] = append(r.windows[without], m)
		r.windows[with] = append(r.windows[with], window(320, 500))
	}
	return r
}

func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*report)
		want   string // in the only failure; empty for none
	}{
		"all is well":          {func(*report) {}, ""},
		"one odd window":       {func(r *report) { r.windows[without][0].Culprits = nil; r.windows[with][1].P99 = 1e6 }, ""},
		"no harm":              {func(r *report) { each(r, alone, func(m *measurement) { m.P99 = 20e3 }) }, "no plain harm"},
		"no help":              {func(r *report) { each(r, with, func(m *measurement) { m.P99 = 20e3 }) }, "did not help"},
		"nobody named":         {func(r *report) { each(r, without, func(m *measurement) { m.Culprits = nil }) }, "culprit"},
		"an innocent is named": {func(r *report) { each(r, without, func(m *measurement) { m.Culprits = []string{lightPod} }) }, lightPod},
		"an innocent too": {func(r *report) {
			each(r, without, func(m *measurement) { m.Culprits = []string{heavyPod, lightPod} })
		}, "culprit"},
		"written while watching": {func(r *report) { r.windows[without][1].Changed = []string{"cpu.idle"} }, "cpu.idle"},
		"offline stands still":   {func(r *report) { each(r, with, func(m *measurement) { m.Offline = 0 }) }, "nothing done"},
		"failed requests":        {func(r *report) { r.windows[with][0].Errors = 7 }, "7 requests"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			c.change(r)
			r.judge()
			if c.want == "" && len(r.Failures) > 0 {
				t.Errorf("failures %q", r.Failures)
			}
			if c.want != "" && (len(r.Failures) != 1 || !strings.Contains(r.Failures[0], c.want)) {
				t.Errorf("failures %q, want one that says %q", r.Failures, c.want)
			}
		})
	}
}

func each(r *report, k situation, do func(*measurement)) {
	for i := range r.windows[k] {
		do(&r.windows[k][i])
	}
}

func TestReportFiles(t *testing.T) {
	r := good()
	r.judge()
	dir := filepath.Join(t.TempDir(), "out")
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Without.P99 != 27e3 || back.Culprit != heavyPod || back.CulpritWindows != 3 || back.With.OfflineMBps != 500 {
		t.Errorf("read back: %+v", back)
	}
	var shown bytes.Buffer
	r.print(&shown)
	page, err := os.ReadFile(filepath.Join(dir, "report.txt"))
	if err != nil || string(page) != shown.String() {
		t.Errorf("report.txt differs from what is shown (%v)", err)
	}
	for _, want := range []string{"27 ms", "320 us", heavyPod, "80 %", "500 MB/s"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("the page does not show %q:\n%s", want, shown.String())
		}
	}
}
