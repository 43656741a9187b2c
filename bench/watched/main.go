// Command watched measures what it costs the daemon to be looked at: CPU time of the process and of the loop's thread beside many
// containers, in interleaved windows in which nobody looks, one page is open, eight pages are, and one `qos-agent top` runs.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/client"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

type cli struct {
	Out        string        `default:"bench/results" help:"Directory for the result."`
	Containers int           `default:"300" help:"How many containers; a third of them is online."`
	Rounds     int           `default:"5" help:"Windows of each kind; the median is quoted."`
	Window     time.Duration `default:"5s" help:"Length of one."`
}

// row is one kind of window.
type row struct {
	Watchers       string  `json:"watchers"`
	CPUPercent     float64 `json:"cpu_percent"` // of one core, median
	CPUPercentMin  float64 `json:"cpu_percent_min"`
	CPUPercentMax  float64 `json:"cpu_percent_max"`
	LoopPercent    float64 `json:"loop_percent"`     // of one core, by the loop's thread, median
	BytesPerSecond float64 `json:"bytes_per_second"` // that watchers read, median

	cpu, loop, bytes []float64
}

type result struct {
	lab.Machine
	Containers int    `json:"containers"`
	Rows       []*row `json:"rows"`
}

func main() {
	work.MaybeRun()
	var c cli
	lab.Main("watched", &c)
}

// Run measures and writes the result.
func (c *cli) Run(ctx context.Context) (err error) {
	s, err := lab.OpenSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	o, err := s.Options("  mode: enforce\n")
	if err != nil {
		return err
	}
	if err := s.Populate(c.Containers); err != nil {
		return err
	}
	d, err := daemon.Start(o)
	if err != nil {
		return err
	}
	defer d.Kill()
	if _, err := d.WaitState(ctx, "all pods", func(st *server.State) bool { return len(st.Pods) == c.Containers && st.Loop.Ticks > 20 }); err != nil {
		return err
	}
	loop, err := loopThread(d.PID())
	if err != nil {
		return err
	}
	r := &result{Machine: lab.ThisMachine(), Containers: c.Containers, Rows: []*row{{Watchers: "nobody"}, {Watchers: "1 page"}, {Watchers: "8 pages"}, {Watchers: "1 top"}}}
	for range c.Rounds {
		for _, row := range r.Rows {
			if err := c.window(ctx, d, o.RunDir, loop, row); err != nil {
				return err
			}
		}
	}
	fmt.Printf("%d containers, %d windows of %v each, kernel %s\n%-8s %24s %14s %14s\n", c.Containers, c.Rounds, c.Window, r.Kernel, "watchers", "CPU of one core", "of it the loop", "bytes/s read")
	for _, row := range r.Rows {
		row.sum()
		fmt.Printf("%-8s %6.2f %% (%.2f - %.2f) %12.2f %% %14.0f\n", row.Watchers, row.CPUPercent, row.CPUPercentMin, row.CPUPercentMax, row.LoopPercent, row.BytesPerSecond)
	}
	return errors.Join(d.Stop(ctx), lab.WriteResult(c.Out, "watched.json", r))
}

// window measures one window, with watchers that have begun a second before.
func (c *cli) window(ctx context.Context, d *daemon.Daemon, runDir, loop string, r *row) error {
	watch, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	read := 0
	count := func(n int) {
		mu.Lock()
		read += n
		mu.Unlock()
	}
	pages := map[string]int{"1 page": 1, "8 pages": 8}[r.Watchers]
	for range pages {
		wg.Go(func() { readPage(watch, d, count) })
	}
	if r.Watchers == "1 top" {
		wg.Go(func() { readState(watch, runDir) })
	}
	defer wg.Wait()
	defer stop()
	if err := lab.Sleep(ctx, time.Second); err != nil {
		return err
	}
	begin, err := usage(d.PID(), loop)
	if err != nil {
		return err
	}
	mu.Lock()
	read = 0
	mu.Unlock()
	start := time.Now()
	if err := lab.Sleep(ctx, c.Window); err != nil {
		return err
	}
	end, err := usage(d.PID(), loop)
	if err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	mu.Lock()
	defer mu.Unlock()
	r.cpu = append(r.cpu, 100*(end[0]-begin[0])/took)
	r.loop = append(r.loop, 100*(end[1]-begin[1])/took)
	r.bytes = append(r.bytes, float64(read)/took)
	return nil
}

// readPage reads the page's stream as a browser does.
func readPage(ctx context.Context, d *daemon.Daemon, count func(int)) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Addr+"/api/v1/stream", nil)
	if err != nil {
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	for r := bufio.NewReaderSize(resp.Body, 1<<20); ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		count(len(line))
	}
}

// readState asks once a second, as top does.
func readState(ctx context.Context, runDir string) {
	for c := client.New(runDir); ctx.Err() == nil; {
		_, _ = c.State(ctx) // a bench's watcher has nobody to tell
		_ = lab.Sleep(ctx, time.Second)
	}
}

// usage is the CPU seconds of the process and of one of its threads.
func usage(pid int, thread string) (out [2]float64, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return out, err
	}
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
		if err != nil {
			return out, err
		}
		out[0] += ns / 1e9
		if filepath.Base(filepath.Dir(t)) == thread {
			out[1] = ns / 1e9
		}
	}
	return out, nil
}

// loopThread finds the one thread in the real-time class.
func loopThread(pid int) (string, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return "", err
	}
	const policy, roundRobin = 38, "2" // field 41 of proc(5), behind the name
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > policy && f[policy] == roundRobin {
			return filepath.Base(filepath.Dir(t)), nil
		}
	}
	return "", errors.New("no thread of the daemon is in the real-time class")
}

func (r *row) sum() {
	for _, s := range [][]float64{r.cpu, r.loop, r.bytes} {
		slices.Sort(s)
	}
	n := len(r.cpu)
	r.CPUPercent, r.CPUPercentMin, r.CPUPercentMax = r.cpu[n/2], r.cpu[0], r.cpu[n-1]
	r.LoopPercent, r.BytesPerSecond = r.loop[n/2], r.bytes[n/2]
}
