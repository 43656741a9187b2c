//go:build amd64

// Work is the load of tests in the rig: a program that is to the emulated memory system what its profile says.
//
//	work service -profile 2500,16384,600,50 -instructions 4000000 -gap 2ms
//	work hog -profile 9000,262144,700,8 -threads 3
//	work hog -phases '9000,262144,700,8@5s idle@2s'
//	work hog -profile 9000,262144,700,8 -churn 20ms
//
// A profile is the bandwidth in MB/s that the work uses alone with a cold cache, its working set in KiB, its cycles per instruction
// without misses in thousandths, and the cycles that a miss costs while the memory is idle. A service prints one line of JSON a
// second about its requests.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/test/rig/channel"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		os.Exit(2)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want service or hog")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	profile := flags.String("profile", "", "`MB/s,KiB,CPI,penalty`; see the package's comment")
	phases := flags.String("phases", "", "instead of -profile: `profile@duration ...`, over and over; a profile may be idle")
	instructions := flags.Float64("instructions", 4e6, "service: instructions of a request")
	gap := flags.Duration("gap", 2*time.Millisecond, "service: pause between two requests")
	threads := flags.Int("threads", 1, "hog: how many threads")
	churn := flags.Duration("churn", 0, "hog: start another process of this kind, which lives ten times as long, as often as this")
	length := flags.Duration("for", 0, "end after this time; 0: never")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	plan, err := parsePhases(*phases, *profile)
	if err != nil {
		return err
	}
	if !channel.Present() {
		return errors.New("this machine is not the rig")
	}
	end := time.Unix(1<<40, 0)
	if *length > 0 {
		end = time.Now().Add(*length)
	}
	switch args[0] {
	case "service":
		serve(plan, *instructions, *gap, end)
	case "hog":
		if *churn > 0 {
			return replaceOften(plan, *churn, end)
		}
		for range *threads - 1 {
			go hog(plan, end)
		}
		hog(plan, end)
	default:
		return fmt.Errorf("%s: want service or hog", args[0])
	}
	return nil
}

// phase is a time of one profile.
type phase struct {
	text    string
	profile channel.Profile
	idle    bool
	length  time.Duration
}

// schedule is phases over and over.
type schedule struct {
	phases []phase
	began  time.Time
}

func parsePhases(phases, profile string) (schedule, error) {
	if phases == "" {
		phases = profile + "@1h"
	}
	s := schedule{began: time.Now()}
	for text := range strings.FieldsSeq(phases) {
		name, length, ok := strings.Cut(text, "@")
		if !ok {
			return schedule{}, fmt.Errorf("phase %q: want profile@duration", text)
		}
		d, err := time.ParseDuration(length)
		if err != nil || d <= 0 {
			return schedule{}, fmt.Errorf("phase %q: duration: %w", text, err)
		}
		p := phase{text: name, idle: name == "idle", length: d}
		if !p.idle {
			if p.profile, err = parseProfile(name); err != nil {
				return schedule{}, err
			}
		}
		s.phases = append(s.phases, p)
	}
	return s, nil
}

func parseProfile(text string) (channel.Profile, error) {
	var n [4]uint32
	fields := strings.Split(text, ",")
	if len(fields) != len(n) {
		return channel.Profile{}, fmt.Errorf("profile %q: want MB/s,KiB,CPI,penalty", text)
	}
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return channel.Profile{}, fmt.Errorf("profile %q: %w", text, err)
		}
		n[i] = uint32(v)
	}
	return channel.Profile{MBps: n[0], WorkingSet: n[1], CPIMilli: n[2], Penalty: n[3]}, nil
}

// now is the phase that is due.
func (s schedule) now() phase {
	var cycle time.Duration
	for _, p := range s.phases {
		cycle += p.length
	}
	at := time.Since(s.began) % cycle
	for _, p := range s.phases {
		if at < p.length {
			return p
		}
		at -= p.length
	}
	return s.phases[len(s.phases)-1]
}

// hog works without a pause.
func hog(s schedule, end time.Time) {
	runtime.LockOSThread()
	for time.Now().Before(end) {
		if p := s.now(); p.idle {
			time.Sleep(5 * time.Millisecond)
		} else {
			channel.Work(p.profile, time.Millisecond)
		}
	}
}

// replaceOften keeps about ten short-lived processes of the kind running.
func replaceOften(s schedule, every time.Duration, end time.Time) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	running := make(chan struct{}, 16)
	for time.Now().Before(end) {
		p := s.now()
		if !p.idle {
			select {
			case running <- struct{}{}:
				cmd := exec.Command(self, "hog", "-profile", p.text, "-threads", "2", "-for", (10 * every).String())
				cmd.Stderr = os.Stderr
				if err := cmd.Start(); err != nil {
					return err
				}
				go func() {
					_ = cmd.Wait() // it ends by itself, or with the group
					<-running
				}()
			default: // a loaded machine does not get them done in time
			}
		}
		time.Sleep(every)
	}
	return nil
}

// Second is what a service tells of a second.
type Second struct {
	At       float64 `json:"at"` // CLOCK_MONOTONIC as the program counts it, s since its start
	Requests int     `json:"requests"`
	P50      float64 `json:"p50_ms"`
	P95      float64 `json:"p95_ms"`
	P99      float64 `json:"p99_ms"`
	// PacedP95 is the 95th percentile of what requests take at the CPI that they met, when nobody keeps the program from running: on
	// a busy host a virtual CPU is late by milliseconds, which is not memory's doing.
	PacedP95 float64 `json:"p95_paced_ms"`
	CPI      float64 `json:"cpi"` // mean over the requests
}

// serve does one request after the other. Its pace follows the CPI that the machine tells, so its latency rises and falls with
// contention as a real service's does.
func serve(s schedule, instructions float64, gap time.Duration, end time.Time) {
	runtime.LockOSThread()
	out := json.NewEncoder(os.Stdout)
	var (
		latencies, paced   []float64
		cycles, instructed float64
	)
	second := time.Now().Add(time.Second)
	for time.Now().Before(end) {
		start := time.Now()
		last := start
		spent, worked := cycles, instructed
		for left := instructions; left > 0; {
			p := s.now()
			if p.idle {
				break
			}
			state := channel.Work(p.profile, 250*time.Microsecond)
			now := time.Now()
			c := now.Sub(last).Seconds() * channel.MHz * 1e6
			done := c * 1000 / float64(max(state.CPIMilli, 1))
			left -= done
			cycles += c
			instructed += done
			last = now
		}
		if last != start {
			latencies = append(latencies, last.Sub(start).Seconds()*1e3)
			paced = append(paced, instructions*(cycles-spent)/(instructed-worked)/channel.MHz/1e3)
		}
		if last.After(second) && len(latencies) > 0 {
			slices.Sort(latencies)
			slices.Sort(paced)
			n := len(latencies)
			// A reader that has gone away is no reason to stop working.
			_ = out.Encode(Second{At: time.Since(s.began).Seconds(), Requests: n, P50: latencies[n/2], P95: latencies[n*95/100],
				P99: latencies[n*99/100], PacedP95: paced[n*95/100], CPI: cycles / instructed})
			latencies, paced, cycles, instructed = latencies[:0], paced[:0], 0, 0
			second = last.Add(time.Second)
		}
		time.Sleep(gap)
	}
}
