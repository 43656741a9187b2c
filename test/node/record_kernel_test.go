package node

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/test/work"
)

// verify replays a recording with the shipped binary.
func (f *fixture) verify(dir string) replay.Result {
	f.t.Helper()
	out, err := exec.Command(f.opts.Binary, "replay", "--verify", "--json", dir).CombinedOutput()
	if err != nil {
		f.t.Fatalf("replay --verify: %v\n%s", err, out)
	}
	var all []replay.Result
	if err := json.Unmarshal(out, &all); err != nil {
		f.t.Fatalf("%v\n%s", err, out)
	}
	if len(all) != 1 {
		f.t.Fatalf("%d traces, want 1", len(all))
	}
	return all[0]
}

// TestRecordingIsVerified lets a real daemon live through what recordings have to survive, and makes all of its decisions again: events, cuts,
// another policy, none for a while, pods that come and go, several files.
func TestRecordingIsVerified(t *testing.T) {
	const rules = `
  objectives: {cpuWaitP99: 1ms, cpuWaitEvent: 2ms}
  cpu: {posture: none, ladder: [idle, quota], hold: 60s, verify: {after: 1m}}
`
	f := newFixture(t, "  mode: enforce"+rules)
	dir := filepath.Join(t.TempDir(), "trace")
	f.opts.Extra = []string{"--record", dir, "--record-file-age", "1s"}
	d := f.start()
	culprits := f.run("batch", work.Spin.On(0), work.Spin.On(0), work.Spin.On(0))
	f.run("web", work.Pulse(3*time.Millisecond, time.Millisecond).On(0))
	f.wait(d, "batch to be cut", func(s *server.State) bool { return holds(s, batch, "cpu.idle") })
	f.policy("  mode: observe" + rules)
	f.wait(d, "the cut to be gone", func(s *server.State) bool { return s.Agent.Mode == "observe" && !holds(s, batch, "") })
	if err := os.Rename(filepath.Join(f.opts.PolicyDir, "policy.yaml"), filepath.Join(f.opts.PolicyDir, "policy.off")); err != nil {
		t.Fatal(err)
	}
	f.wait(d, "the policy to be gone", func(s *server.State) bool { return s.Policy.ID == "" })
	f.policy("  mode: enforce\n")
	f.wait(d, "the posture", postureHeld)
	pods := f.pods
	f.pods = f.pods[:2]
	f.writePods()
	f.wait(d, "fewer pods", func(s *server.State) bool { return len(s.Pods) == 2 })
	f.pods = pods
	f.writePods()
	last := f.wait(d, "all pods", func(s *server.State) bool { return len(s.Pods) == len(pods) && postureHeld(s) && s.Loop.Ticks > 40 })
	_, metrics, err := d.Get(f.ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"qosagent_record_dropped_total 0", "qosagent_record_failures_total 0"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	for _, p := range culprits {
		p.Stop()
	}
	f.stop(d)
	f.asBefore("after SIGTERM")

	res := f.verify(dir)
	t.Logf("%d ticks, %d events, %d files, %d decisions and %d checkpoints compared", res.Ticks, res.Events, res.Files, res.Compared, res.Checkpoints)
	if res.Differences > 0 || res.Inexact > 0 || res.Same != res.Compared {
		t.Errorf("%+v", res)
	}
	if res.Ticks < last.Loop.Ticks || res.Events == 0 || res.Files < 2 || res.Checkpoints == 0 || len(res.Policies) < 3 || res.Compared < res.Ticks/2 {
		t.Errorf("too little was recorded: %+v", res)
	}
	writes := 0
	names, err := trace.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		r, err := trace.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Complete() || r.Info().Hostname == "" || len(r.Info().Capabilities) == 0 {
			t.Errorf("%s: complete %v, %+v", name, r.Complete(), r.Info().Hostname)
		}
		for {
			s, err := r.Next()
			if err != nil {
				break
			}
			writes += len(s.Outcomes)
		}
		_ = r.Close()
	}
	if writes == 0 {
		t.Error("no write of the executor was recorded")
	}
}

// TestRecordingSurvivesAKill wants all that reached the file of a daemon that was killed, and of the one that came after it.
func TestRecordingSurvivesAKill(t *testing.T) {
	f := newFixture(t, "  mode: enforce\n")
	dir := filepath.Join(t.TempDir(), "trace")
	f.opts.Extra = []string{"--record", dir}
	d := f.start()
	first := f.wait(d, "the posture", func(s *server.State) bool { return postureHeld(s) && s.Loop.Ticks > 30 })
	d.Kill()
	res := f.verify(dir)
	if res.Differences > 0 || res.Ticks+15 < first.Loop.Ticks {
		t.Errorf("%d ticks of %d are left: %+v", res.Ticks, first.Loop.Ticks, res)
	}
	d = f.start()
	f.wait(d, "the posture again", func(s *server.State) bool { return postureHeld(s) && s.Loop.Ticks > 5 })
	f.stop(d)
	f.asBefore("after SIGTERM")
	names, err := trace.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := replay.Group(names)
	if err != nil || len(all) != 2 {
		t.Errorf("%v, %v: want one trace of each daemon", all, err)
	}
}
