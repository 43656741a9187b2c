package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// TestTheFileStays: what earlier runs wrote is read whole, and written again as it was.
func TestTheFileStays(t *testing.T) {
	want, err := os.ReadFile("../results/rdt.json")
	if err != nil {
		t.Fatal(err)
	}
	var r results
	d := json.NewDecoder(bytes.NewReader(want))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Error(diff)
	}
}

// TestFiguresOfATest: those of each kind come from a test's output into the file; what else it says is left alone.
func TestFiguresOfATest(t *testing.T) {
	want := results{
		Date:      "2026-11-27T00:15:01Z",
		Scenarios: []lab.Story{{Scenario: "a", Kernel: "6.12", CPIAlone: 0.64, RecoveryMS: -1, Static: &lab.Split{Ways: 2, MB: 40}}},
		Costs:     []lab.TickCost{{Kernel: "6.12", With: lab.TickWindow{TickMS: 3}, Ratio: 1.5}},
		Rounds:    []lab.Rounds{{Scenario: "a", Agent: []lab.Turn{{CPI: 0.7}}, Split: []lab.Turn{{CPI: 0.8}}}},
	}
	var out bytes.Buffer
	for _, l := range []lab.StoryLine{{Story: &want.Scenarios[0]}, {Cost: &want.Costs[0]}, {Rounds: &want.Rounds[0]}} {
		out.WriteString("--- PASS\n")
		if err := l.Print(&out); err != nil {
			t.Fatal(err)
		}
	}
	got, lines := results{Date: want.Date}, 0
	for text := range bytes.Lines(out.Bytes()) {
		l, ok, err := lab.ParseStoryLine(text)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			lines++
			got.add(&l)
		}
	}
	for _, s := range []*string{&want.Scenarios[0].Date, &want.Costs[0].Date, &want.Rounds[0].Date} {
		*s = want.Date
	}
	if diff := cmp.Diff(want, got); diff != "" || lines != 3 {
		t.Errorf("%d lines of figures:\n%s", lines, diff)
	}
	if _, _, err := lab.ParseStoryLine([]byte(lab.StoryPrefix + "{")); err == nil {
		t.Error("half a line has figures")
	}
}
