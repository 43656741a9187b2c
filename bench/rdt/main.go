// Command rdt tells the stories of cache and memory bandwidth (test/rdt) in the rig, with all the time that they want, and gathers their
// figures: an online service alone, beside offline work that nobody holds back, and with the daemon between them.
//
// The machine is emulated, and how long a pod waits for memory comes from a model (test/rig/README.md). What the figures show is the
// loop on a real kernel's resctrl and perf_event: what it sees, whom it blames, what it writes, how soon.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// prefix is what the lines with figures begin with.
const prefix = "rdt-result "

// figures are those of a story. Fields that begin with CPI are cycles per instruction of the online service, those with P95 the 95th
// percentile of its requests' time: by the clock, and, paced, as memory lets them run, without the milliseconds by which a busy host lets
// a virtual CPU wait.
type figures struct {
	Scenario             string           `json:"scenario"`
	Kernel               string           `json:"kernel"`
	Date                 string           `json:"date"`
	CPIAlone             float64          `json:"cpi_alone"`
	CPIUnprotected       float64          `json:"cpi_unprotected"`
	CPIBeside            float64          `json:"cpi_alone_beside_agent"` // alone with the daemon, which is what recovery and time over are held against
	CPIAgent             float64          `json:"cpi_agent"`              // from some seconds after the start of the load to its end
	RecoveryMS           float64          `json:"recovery_ms"`            // from the start of the load until CPI is inside the story's bound; -1: never
	OfflineMBps          float64          `json:"offline_mbps"`
	OfflineMBpsUnlimited float64          `json:"offline_mbps_unprotected"`
	TimeOverObjective    float64          `json:"time_over_objective"`       // part of the time of the load in which CPI was beyond the bound
	TimeOverAlone        float64          `json:"time_over_objective_alone"` // the same before the load came: what is noise
	P95Alone             float64          `json:"p95_ms_alone,omitempty"`
	P95Agent             float64          `json:"p95_ms_agent,omitempty"`
	PacedAlone           float64          `json:"p95_paced_ms_alone,omitempty"`
	PacedUnprotected     float64          `json:"p95_paced_ms_unprotected,omitempty"`
	PacedAgent           float64          `json:"p95_paced_ms_agent,omitempty"`
	Static               *split           `json:"static_split,omitempty"`
	CPI2                 *lab.CPI2Outcome `json:"cpi2,omitempty"`
	Note                 string           `json:"note,omitempty"`
}

// split is the static split, tuned by hand, that leaves offline pods most bandwidth at an online CPI no higher than the daemon's.
type split struct {
	Ways        int     `json:"offline_ways"` // the online service has the others
	MB          int     `json:"offline_mb_percent"`
	CPI         float64 `json:"cpi"`
	OfflineMBps float64 `json:"offline_mbps"`
	Tried       int     `json:"tried"`

	// The same split with offline pods in an ordinary posture on the CPUs; the others stand back there as they do beside the daemon.
	PlainCPI         float64 `json:"cpi_plain_posture,omitempty"`
	PlainOfflineMBps float64 `json:"offline_mbps_plain_posture,omitempty"`
}

// cost is what a tick takes with hardware counters and resctrl, and without. The machine is emulated: look at the ratios.
type cost struct {
	Kernel     string  `json:"kernel"`
	Date       string  `json:"date"`
	Containers int     `json:"containers"`
	Rounds     int     `json:"rounds"` // windows of either kind, in turn
	With       window  `json:"with"`
	Without    window  `json:"without"`
	Ratio      float64 `json:"tick_ratio"`
	RatioMin   float64 `json:"tick_ratio_min"`
	RatioMax   float64 `json:"tick_ratio_max"`
	CPURatio   float64 `json:"cpu_ratio"`
}

// window is milliseconds a tick: its duration, and the process's CPU time.
type window struct {
	TickMS float64 `json:"tick_ms"`
	CPUMS  float64 `json:"cpu_ms"`
}

type results struct {
	Date      string       `json:"date"`
	Passed    bool         `json:"passed"` // every story came out as its test wants it
	Scenarios []figures    `json:"scenarios"`
	Costs     []cost       `json:"tick_costs,omitempty"` // by kernel
	Rounds    []lab.Rounds `json:"rounds,omitempty"`     // by story and kernel
}

func main() {
	out := flag.String("out", "bench/results/rdt.json", "`file` for the figures")
	kernels := flag.String("kernels", "6.12", "series of Debian's kernels, comma-separated")
	match := flag.String("run", "", "only stories whose test's name matches this `regexp`; the file keeps the figures of the others")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *kernels, *match); err != nil {
		fmt.Fprintln(os.Stderr, "rdt:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, kernels, match string) error {
	cmd := exec.CommandContext(ctx, "go", "run", "./test/runner", "-layers", "rig", "-kernels", kernels, "-only", "test/rdt$", "-run", match, "-long", "-keep", prefix)
	// go run does not pass signals on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := results{Date: time.Now().UTC().Format(time.RFC3339)}
	fmt.Printf("%-22s %7s %12s %7s %10s %9s %14s\n", "story", "alone", "unprotected", "agent", "recovered", "over", "offline GB/s")
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		text, ok := bytes.CutPrefix(lines.Bytes(), []byte(prefix))
		if !ok {
			fmt.Println(lines.Text())
			continue
		}
		var line struct {
			Cost   *cost       `json:"cost"`
			Rounds *lab.Rounds `json:"rounds"`
			figures
		}
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("figures %q: %w", text, err)
		}
		line.figures.Date = r.Date
		if line.Cost != nil {
			line.Cost.Date = r.Date
			r.Costs = append(r.Costs, *line.Cost)
			fmt.Println(line.Cost)
			continue
		}
		if line.Rounds != nil {
			line.Rounds.Date = r.Date
			r.Rounds = append(r.Rounds, *line.Rounds)
			fmt.Println(line.Rounds)
			continue
		}
		r.Scenarios = append(r.Scenarios, line.figures)
		fmt.Println(line.figures.row())
	}
	waitErr := cmd.Wait()
	r.Passed = waitErr == nil
	if len(r.Scenarios)+len(r.Costs)+len(r.Rounds) == 0 {
		return fmt.Errorf("no story has told its figures: %w", waitErr)
	}
	if match != "" {
		if err := r.keep(out); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(out, append(text, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("\nwritten:", out)
	return waitErr
}

// keep adds what the file has of stories that were not told this time.
func (r *results) keep(file string) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var old results
	if err := json.Unmarshal(text, &old); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.Passed = r.Passed && old.Passed
	for _, f := range old.Scenarios {
		if !slices.ContainsFunc(r.Scenarios, func(n figures) bool { return n.Scenario == f.Scenario && n.Kernel == f.Kernel }) {
			r.Scenarios = append(r.Scenarios, f)
		}
	}
	for _, c := range old.Costs {
		if !slices.ContainsFunc(r.Costs, func(n cost) bool { return n.Kernel == c.Kernel }) {
			r.Costs = append(r.Costs, c)
		}
	}
	for _, old := range old.Rounds {
		if !slices.ContainsFunc(r.Rounds, func(n lab.Rounds) bool { return n.Scenario == old.Scenario && n.Kernel == old.Kernel }) {
			r.Rounds = append(r.Rounds, old)
		}
	}
	return nil
}

func (f *figures) row() string {
	recovered := "never"
	if f.RecoveryMS >= 0 {
		recovered = fmt.Sprintf("%.0f ms", f.RecoveryMS)
	}
	row := fmt.Sprintf("%-22s %7.3f %12.3f %7.3f %10s %7.1f %% %6.1f of %.1f", f.Scenario, f.CPIAlone, f.CPIUnprotected, f.CPIAgent,
		recovered, f.TimeOverObjective*100, f.OfflineMBps/1000, f.OfflineMBpsUnlimited/1000)
	if f.PacedAlone > 0 {
		row += fmt.Sprintf("\n%22s p95 of requests, paced: %.2f ms alone, %.2f unprotected, %.2f with the agent (%.2fx); by the clock %.1f, %.1f",
			"", f.PacedAlone, f.PacedUnprotected, f.PacedAgent, f.PacedAgent/f.PacedAlone, f.P95Alone, f.P95Agent)
	}
	if c := f.CPI2; c != nil {
		row += fmt.Sprintf("\n%22s CPI², %.0f times as fast: first cap after %.1f s, %d caps in %.0f s; since the first CPI %.3f, %.1f %% over, offline %.1f GB/s; in all CPI %.3f, %.1f %%, %.1f GB/s",
			"", c.TimesAsFast, c.CapsMS[0]/1e3, len(c.CapsMS), c.Seconds, c.CPI, c.TimeOver*100, c.OfflineMBps/1e3, c.CPIWhole, c.TimeOverWhole*100, c.OfflineWholeMBps/1e3)
	}
	if s := f.Static; s != nil {
		row += fmt.Sprintf("\n%22s best static split (%d tried): %d ways, %d %%: CPI %.3f, offline %.1f GB/s; the agent leaves %.2fx", "", s.Tried, s.Ways, s.MB,
			s.CPI, s.OfflineMBps/1000, f.OfflineMBps/s.OfflineMBps)
		if s.PlainOfflineMBps > 0 {
			row += fmt.Sprintf("; without cpu.idle: CPI %.3f, offline %.1f GB/s", s.PlainCPI, s.PlainOfflineMBps/1000)
		}
	}
	return row
}

func (c *cost) String() string {
	return fmt.Sprintf("a tick over %d containers with counters and resctrl: %.2fx that without (%.2f to %.2f over %d pairs), %.2fx the CPU time",
		c.Containers, c.Ratio, c.RatioMin, c.RatioMax, c.Rounds, c.CPURatio)
}
