package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaybeRun has to be the first call of main or TestMain: in a process that Start or StartNull has started it does what they
// want and does not return.
func MaybeRun() {
	text, generate := os.LookupEnv(env)
	realTime, null := os.LookupEnv(envNull)
	if !generate && !null {
		return
	}
	enc := json.NewEncoder(os.Stdout)
	var err error
	if null {
		err = serveNull(realTime == "true", enc)
	} else {
		err = serve(text, enc)
	}
	if err != nil {
		_ = enc.Encode(reply{Error: err.Error()}) // there is nobody else to tell
		os.Exit(1)
	}
	os.Exit(0)
}

// serve runs the loop on a thread of its own and does what the client asks until its end.
func serve(options string, enc *json.Encoder) error {
	o := Options{}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return err
	}
	if o.Connections == 0 {
		o.Connections = 64
	}
	if o.Patience == 0 {
		o.Patience = 2 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	p, err := newProtocol(o)
	if err != nil {
		return err
	}
	g, err := newGenerator(o, p)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Addr, err)
	}
	tid := make(chan int)
	failed := make(chan error)
	go func() {
		if err := ready(o.RealTime); err != nil {
			failed <- fmt.Errorf("scheduling of the generator's thread: %w", err)
			return
		}
		tid <- unix.Gettid()
		g.run()
	}()
	var thread int
	select {
	case err := <-failed:
		return err
	case thread = <-tid:
	}
	if err := enc.Encode(reply{}); err != nil {
		return err
	}

	stat := threadStat{path: fmt.Sprintf("/proc/self/task/%d/schedstat", thread)}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		var r reply
		if c.Rate != nil {
			g.rate.Store(c.Rate)
			for g.rate.Load() != nil {
				time.Sleep(time.Millisecond)
			}
		}
		if c.Collect {
			w, err := g.end()
			if err != nil {
				return err
			}
			if err := stat.into(&w.Self); err != nil {
				return err
			}
			r.Window = &w
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// end ends the window. It is called from another thread than the loop's.
func (g *generator) end() (Window, error) {
	g.ended.Store(nil)
	g.giveUp.Store(false)
	g.collect.Store(true)
	// This thread is an ordinary one and may itself wait for a CPU for long: what counts is how often it has looked since.
	var gaveUp time.Time
	for start, looks := time.Now(), 0; ; time.Sleep(time.Millisecond) {
		if r := g.ended.Load(); r != nil {
			return r.window(), nil
		}
		switch {
		case gaveUp.IsZero() && time.Since(start) > g.patience:
			g.giveUp.Store(true)
			gaveUp = time.Now()
		case !gaveUp.IsZero():
			if looks++; looks > 500 && time.Since(gaveUp) > 5*time.Second {
				return Window{}, fmt.Errorf("the generator's thread does not run")
			}
		}
	}
}

// threadStat reads the kernel's account of a thread: time on a CPU, time waiting for one, times it got one.
type threadStat struct {
	path           string
	cpu, wait, run uint64
}

func (t *threadStat) into(s *Self) error {
	text, err := os.ReadFile(t.path)
	if err != nil {
		return err
	}
	var cpu, wait, run uint64
	if _, err := fmt.Fscan(strings.NewReader(string(text)), &cpu, &wait, &run); err != nil {
		return fmt.Errorf("%s: %w", t.path, err)
	}
	s.CPU, s.RunDelay, s.Runs = float64(cpu-t.cpu)/1e9, float64(wait-t.wait)/1e3, run-t.run
	t.cpu, t.wait, t.run = cpu, wait, run
	return nil
}
