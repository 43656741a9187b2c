package sim

import (
	"errors"
	"io"
	"runtime"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Record is Run and writes what the agent saw and did as a recording, which replay, tune and reports take like that of a node.
func Record(sc *Scenario, pol *policy.Compiled, out io.Writer) (*Result, error) {
	own, err := sc.Compile()
	if err != nil {
		return nil, err
	}
	if pol == nil {
		pol = own
	}
	digester, err := trace.NewDigester()
	if err != nil {
		return nil, err
	}
	w, err := trace.NewWriter(out, trace.Info{
		Agent: "simulated", Run: "simulated-" + sc.Name, Started: newPlant(sc).wall(), Arch: runtime.GOARCH, Hostname: "simulated",
		Kernel: "none", Interval: sc.Tick.D(), Note: "simulated: scenario " + sc.Name + "; the node is a model",
	}, trace.WriterOptions{})
	if err != nil {
		return nil, err
	}
	w.Checkpoint(decide.New().Checkpoint(nil))
	var failed error
	res, err := Watch(sc, pol, func(snap *signal.Snapshot, d *decide.Decision) {
		if failed == nil {
			failed = w.Append(&trace.Step{Snapshot: snap, Policy: pol, Decision: *d, Digest: digester.Digest(nil, d)})
		}
	})
	return res, errors.Join(err, failed, w.Close())
}
