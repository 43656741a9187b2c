// Command reaction measures how fast the daemon reacts, on this machine's kernel:
//
//	situations  from the start of an offline burst to the agent's first cut, and from the kernel's event to the completed write,
//	            on an idle node and on a saturated one, with and without the real-time class for the agent's loop
//	surges      from the start of an online surge beside steady offline work to the first cut, and until the service answers
//	            again as it should, by the agent and by koordlet's rule at 1 Hz
//	bursts      the same from the start of an offline burst beside a steady service
//
// It drives the binary that is shipped, on real groups, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"slices"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/test/work"
)

type cli struct {
	Out    string `default:"bench/results" help:"Directory for the results."`
	Bursts int    `default:"100" help:"Bursts per situation."`
	Part   string `default:"all" enum:"all,surges,bursts,situations" help:"Measure only one part (${enum}); the file keeps what it has of the others."`
	Short  int    `default:"12" help:"Surges, and bursts beside a service, of each short length, per protection; long ones are fewer."`
	Seed   uint64 `default:"1" help:"Of arrivals and of waits between surges."`
}

// result is what others read.
type result struct {
	lab.Machine
	Bursts      int                  `json:"bursts"`
	Protections map[string]*surgeRow `json:"protections"`
	Faster      float64              `json:"faster_than_suppress_1hz"` // the better form's median first cut, to the agent's
	// OfflineBursts is the same as Protections, of bursts of offline work beside a service at a steady load.
	OfflineBursts map[string]*surgeRow   `json:"offline_bursts"`
	Situations    map[string]reactionRow `json:"situations"`
}

func main() {
	load.MaybeRun()
	work.MaybeRun()
	var c cli
	lab.Main("reaction", &c)
}

// Run measures and writes the result.
func (c *cli) Run(ctx context.Context) (err error) {
	s, err := lab.OpenSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	r := result{Situations: map[string]reactionRow{}, Protections: map[string]*surgeRow{}, OfflineBursts: map[string]*surgeRow{}}
	if c.Part != "all" {
		lab.ReadResult(c.Out, "reaction.json", &r)
	}
	r.Machine = lab.ThisMachine()
	if c.Part != "situations" {
		if err := c.surges(ctx, s, &r); err != nil {
			return err
		}
	}
	if c.Part == "all" || c.Part == "situations" {
		r.Bursts = c.Bursts
		if err := c.situations(ctx, s, r.Situations); err != nil {
			return err
		}
	}
	return lab.WriteResult(c.Out, "reaction.json", r)
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max,omitempty"`
}

func newQuantiles(values []float64) quantiles {
	if len(values) == 0 {
		return quantiles{}
	}
	s := slices.Sorted(slices.Values(values))
	return quantiles{P50: at(s, 0.5), P99: at(s, 0.99), Max: s[len(s)-1]}
}

func at(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
