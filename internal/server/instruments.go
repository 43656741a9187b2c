package server

import (
	"sync/atomic"
	"time"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Instruments are what the loop measures of itself while it runs. All methods may be called at any time from any goroutine;
// none allocates or waits. The zero value is ready.
type Instruments struct {
	Tick     Durations // from the start of a tick to its end
	Reaction Durations // from the event in the kernel to the completed write
	Ticks    atomic.Uint64
	Overruns atomic.Uint64 // ticks that began late because the one before took too long
	Events   atomic.Uint64 // waits over the bound that the kernel reported
}

// Loop shows the instruments to the state API. Lost is the caller's to fill.
func (i *Instruments) Loop() Loop {
	return Loop{
		Ticks:    i.Ticks.Load(),
		Overruns: i.Overruns.Load(),
		Events:   i.Events.Load(),
		Tick:     i.Tick.Latency(),
		Reaction: i.Reaction.Latency(),
	}
}

// Durations is a histogram of durations that many goroutines may write and read at once. Its buckets are those of package
// histogram, so that /metrics and the quantiles of the state API come from the same counts.
type Durations struct {
	sumNS  atomic.Uint64
	counts [histogram.Buckets]atomic.Uint64
}

// Observe counts d; a negative d, which only a clock gone wrong can give, counts as 0.
func (d *Durations) Observe(v time.Duration) {
	ns := uint64(max(v, 0))
	d.sumNS.Add(ns)
	d.counts[histogram.Index(ns)].Add(1)
}

// Read copies the counts out and returns the sum of all durations in ns. A duration that is being observed meanwhile may be in one
// and not yet in the other.
func (d *Durations) Read(into *histogram.Counts) (sumNS uint64) {
	for i := range d.counts {
		into[i] = d.counts[i].Load()
	}
	return d.sumNS.Load()
}

// Latency sums the durations up.
func (d *Durations) Latency() Latency {
	var c histogram.Counts
	d.Read(&c)
	p50, _ := c.Quantile(0.5)
	p99, _ := c.Quantile(0.99)
	return Latency{Count: c.Total(), P50Seconds: p50.Seconds(), P99Seconds: p99.Seconds()}
}
