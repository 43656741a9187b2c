// Loadgen makes an open-loop load and prints a JSON document a window; see package load.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
)

func main() {
	load.MaybeRun()
	var o load.Options
	flag.StringVar(&o.Addr, "addr", "", "server, `IP:PORT`")
	flag.StringVar(&o.Protocol, "protocol", "http", "http, redis or memcached")
	flag.StringVar(&o.Path, "path", "/", "of the HTTP request, key of redis' list, or keys for memcached")
	flag.Float64Var(&o.Rate, "rate", 2000, "arrivals per second")
	flag.IntVar(&o.Connections, "connections", 64, "kept alive")
	flag.Uint64Var(&o.Seed, "seed", 1, "of the arrival process")
	flag.BoolVar(&o.RealTime, "realtime", os.Geteuid() == 0, "run in a real-time class")
	windows := flag.Int("windows", 5, "how many windows to measure")
	length := flag.Duration("window", 2*time.Second, "length of one")
	selfCheck := flag.Bool("self-check", false, "measure what the generator itself adds, against a server that does nothing")
	flag.Parse()
	run := func() error { return measure(o, *windows, *length, nil) }
	if *selfCheck {
		run = func() error { return check(o, *windows, *length) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}

func measure(o load.Options, windows int, length time.Duration, each func(load.Window)) error {
	if o.Addr == "" {
		return errors.New("-addr is missing")
	}
	c, err := load.Start(o)
	if err != nil {
		return err
	}
	defer c.Close()
	enc := json.NewEncoder(os.Stdout)
	for i := range windows {
		settle := time.Duration(0)
		if i == 0 {
			settle = length / 4
		}
		w, err := c.Measure(settle, length)
		if err != nil {
			return err
		}
		if err := enc.Encode(w); err != nil {
			return err
		}
		if each != nil {
			each(w)
		}
	}
	return nil
}

// bound is what the generator may add at the 99th percentile.
const boundUS = 200

// check measures against the null server. The median window decides: one that another program disturbed says nothing about us.
func check(o load.Options, windows int, length time.Duration) error {
	null, addr, err := load.StartNull(o.RealTime)
	if err != nil {
		return err
	}
	defer null.Close()
	o.Addr = addr
	var late, all []float64
	var delay, requests float64
	err = measure(o, windows, length, func(w load.Window) {
		late, all = append(late, w.Self.LateP99), append(all, w.P99)
		delay, requests = delay+w.Self.RunDelay, requests+float64(w.Completed)
	})
	if err != nil {
		return err
	}
	l, a := load.Median(late), load.Median(all)
	fmt.Printf("p99 of the whole round trip to a server that does nothing: %.0f us (median of %d windows); p99 of sending late: %.0f us; "+
		"run-queue wait of the generator's thread: %.2f us a request\n", a, windows, l, delay/max(requests, 1))
	if a > boundUS {
		return fmt.Errorf("the generator adds %.0f us at p99, the bound is %d us: is the machine busy?", a, boundUS)
	}
	return nil
}
