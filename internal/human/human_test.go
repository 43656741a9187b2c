package human

import (
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

func TestFigures(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{Seconds(0), "0"}, {Seconds(0.00035), "350µs"}, {Seconds(0.0213), "21.3ms"}, {Seconds(0.005), "5ms"}, {Seconds(3), "3s"}, {Seconds(0.9996), "1000ms"},
		{Seconds(130), "2min"}, {Seconds(93600), "26h"}, {Seconds(1.7e-8), "0.02µs"},
		{Percent(0), "0%"}, {Percent(0.004), "0.4%"}, {Percent(0.62), "62%"}, {Percent(0.0999), "10%"}, {Percent(1), "100%"},
		{Bytes(64 << 20), "64MiB"}, {Bytes(3 << 29), "1.5GiB"}, {Bytes(2048), "2KiB"}, {Bytes(0), "0KiB"},
		{Clean("a\x1b[31mb\nc\u0085d\xff"), "a\uFFFD[31mb\uFFFDc\uFFFDd\uFFFD"},
		{Inputs(nil), ""}, {Inputs(&decisionlog.Inputs{WaitSeconds: 0.02, ShareRatio: 0.5}), "wait 20ms, share 50%"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestEntry(t *testing.T) {
	e := decisionlog.Entry{At: time.Date(2026, 11, 24, 12, 0, 0, 0, time.Local), Kind: "write", Rule: "event-cut", Pod: "jobs/a", Victim: "shop/web", Knob: "cpuset.cpus",
		Old: "0-3", New: "0", Result: "failed", Message: "no\x1bleave", Inputs: &decisionlog.Inputs{WaitSeconds: 0.02}}
	want := "12:00:00 write    event-cut jobs/a: cpuset.cpus 0-3 -> 0, for shop/web (wait 20ms) [failed] no\uFFFDleave"
	if got := Entry(&e, time.TimeOnly); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
