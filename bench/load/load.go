// Package load is an open-loop load generator: requests arrive as a Poisson process whatever the server does, and a request's
// latency counts from when it was due, not from when a connection was free or the generator got round to it. A server that
// stalls for a second therefore shows a second of late requests (no coordinated omission).
//
// The generator stands in for remote clients, so it must not be slowed down by what it measures. It is a process of its own
// (the calling program again, see MaybeRun) with one thread that does all the work: raw system calls, no garbage collection, no
// pre-emption by Go's scheduler, and on request a real-time class. Goroutines that sleep showed false tails of 10 to 60 ms.
// Each window carries the evidence: how late the generator sent, and how long its thread waited for a CPU.
package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Options say what load to make.
type Options struct {
	Addr        string        // "127.0.0.1:8080"
	Protocol    string        // "http", the default, "redis" or "memcached"
	Path        string        // of the HTTP request, default "/"; the key of redis' list; the keys for memcached
	Connections int           // kept alive; default 64
	Rate        float64       // arrivals per second; 0 makes none until SetRate
	Seed        uint64        // of the arrival process
	Timeout     time.Duration // after which a request is an error; default 10 s
	Patience    time.Duration // of Collect with the last answers of a window; default 2 s
	RealTime    bool          // run in the class SCHED_FIFO (needs CAP_SYS_NICE)
}

// Window is what happened to the requests that were due between two calls of Collect. Times are in microseconds.
type Window struct {
	Seconds    float64 `json:"seconds"`
	Offered    int     `json:"offered"`    // requests that were due
	Completed  int     `json:"completed"`  // answered as expected
	Rate       float64 `json:"rate"`       // completed per second
	Errors     int     `json:"errors"`     // broken connections, wrong answers, time-outs
	Unfinished int     `json:"unfinished"` // neither answered nor failed when Collect gave up waiting
	Unrecorded int     `json:"unrecorded"` // completed without a latency: the window was too long

	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P90  float64 `json:"p90_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p999_us"`
	Max  float64 `json:"max_us"`

	Queued int  `json:"queued"` // requests that had to wait for a free connection
	Self   Self `json:"generator"`
}

// Self is what the generator did to its own measurements.
type Self struct {
	LateP50  float64 `json:"late_p50_us"` // how long after it was due, or a connection was free, a request was sent
	LateP99  float64 `json:"late_p99_us"`
	LateMax  float64 `json:"late_max_us"`
	BusyMax  float64 `json:"busy_max_us"`  // longest time between two looks at the sockets
	CPU      float64 `json:"cpu_seconds"`  // used by the thread
	RunDelay float64 `json:"run_delay_us"` // the thread waited for a CPU, in all (the kernel's own account)
	Runs     uint64  `json:"runs"`         // times it was given one
}

// Client controls a generator. Its methods must not be called at the same time.
type Client struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// command is what the client asks of the generator, one JSON document a line. Each has one reply.
type command struct {
	Rate    *float64 `json:"rate,omitempty"`
	Collect bool     `json:"collect,omitempty"`
}

type reply struct {
	Error  string  `json:"error,omitempty"`
	Window *Window `json:"window,omitempty"`
}

const (
	env     = "QOS_AGENT_LOAD"
	envNull = "QOS_AGENT_LOAD_NULL"
)

// Start starts a generator and returns once all its connections are up. The program must call MaybeRun first thing in main.
func Start(o Options) (*Client, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	c, err := spawn(env + "=" + string(text))
	if err != nil {
		return nil, err
	}
	if _, err := c.reply(); err != nil {
		return nil, fmt.Errorf("%w (%v)", err, c.Close())
	}
	return c, nil
}

// spawn starts the program at hand again in one of its other roles.
func spawn(role string) (*Client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	cmd := exec.Command(self)
	// A collection, or a change of GOMAXPROCS that the Go runtime decides on by itself, would stop for ever at the thread
	// that cannot be pre-empted.
	cmd.Env = append(os.Environ(), role, "GOGC=off", "GOMEMLIMIT=off", "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return &Client{cmd, in, bufio.NewReader(out)}, nil
}

// PID is the generator's process.
func (c *Client) PID() int { return c.cmd.Process.Pid }

// SetRate changes the arrival rate. Requests that are overdue are forgotten, so the first window after it starts clean.
func (c *Client) SetRate(perSecond float64) error {
	_, err := c.ask(command{Rate: &perSecond})
	return err
}

// Collect ends the window and begins the next one. It returns when every request that was due in it is answered or has failed,
// or after two seconds.
func (c *Client) Collect() (Window, error) {
	w, err := c.ask(command{Collect: true})
	if err == nil && w == nil {
		err = fmt.Errorf("load: reply without a window")
	}
	if err != nil {
		return Window{}, err
	}
	return *w, nil
}

// Measure skips the time settle and then measures for the time d.
func (c *Client) Measure(settle, d time.Duration) (Window, error) {
	time.Sleep(settle)
	if _, err := c.Collect(); err != nil {
		return Window{}, err
	}
	time.Sleep(d)
	return c.Collect()
}

// Close ends the generator.
func (c *Client) Close() error {
	_ = c.in.Close()
	_ = c.cmd.Process.Kill() // nothing in it is worth waiting for
	_ = c.cmd.Wait()         // says that it was killed
	return nil
}

func (c *Client) ask(q command) (*Window, error) {
	if err := json.NewEncoder(c.in).Encode(q); err != nil {
		return nil, fmt.Errorf("load: ask the generator: %w", err)
	}
	return c.reply()
}

func (c *Client) reply() (*Window, error) {
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("load: the generator ended: %w", err)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("load: reply %.80q: %w", line, err)
	}
	if r.Error != "" {
		return nil, fmt.Errorf("load: %s", r.Error)
	}
	return r.Window, nil
}
