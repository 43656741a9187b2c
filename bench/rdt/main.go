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
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// prefix is what the lines with figures begin with.
const prefix = "rdt-result "

// figures are those of a story. Fields that begin with CPI are cycles per instruction of the online service.
type figures struct {
	Scenario             string  `json:"scenario"`
	Kernel               string  `json:"kernel"`
	CPIAlone             float64 `json:"cpi_alone"`
	CPIUnprotected       float64 `json:"cpi_unprotected"`
	CPIAgent             float64 `json:"cpi_agent"`   // from some seconds after the start of the load to its end
	RecoveryMS           float64 `json:"recovery_ms"` // from the start of the load until CPI is inside the story's bound; -1: never
	OfflineMBps          float64 `json:"offline_mbps"`
	OfflineMBpsUnlimited float64 `json:"offline_mbps_unprotected"`
	TimeOverObjective    float64 `json:"time_over_objective"` // part of the time of the load in which CPI was beyond the bound
	P95Alone             float64 `json:"p95_ms_alone,omitempty"`
	P95Agent             float64 `json:"p95_ms_agent,omitempty"`
	Note                 string  `json:"note,omitempty"`
}

type results struct {
	Date      string    `json:"date"`
	Passed    bool      `json:"passed"` // every story came out as its test wants it
	Scenarios []figures `json:"scenarios"`
}

func main() {
	out := flag.String("out", "bench/results/rdt.json", "`file` for the figures")
	kernels := flag.String("kernels", "6.12", "series of Debian's kernels, comma-separated")
	match := flag.String("run", "", "only stories whose test's name matches this `regexp`")
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
		var f figures
		if err := json.Unmarshal(text, &f); err != nil {
			return fmt.Errorf("figures %q: %w", text, err)
		}
		r.Scenarios = append(r.Scenarios, f)
		fmt.Println(f.row())
	}
	waitErr := cmd.Wait()
	r.Passed = waitErr == nil
	if len(r.Scenarios) == 0 {
		return fmt.Errorf("no story has told its figures: %w", waitErr)
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

func (f *figures) row() string {
	recovered := "never"
	if f.RecoveryMS >= 0 {
		recovered = fmt.Sprintf("%.0f ms", f.RecoveryMS)
	}
	return strings.TrimRight(fmt.Sprintf("%-22s %7.3f %12.3f %7.3f %10s %7.1f %% %6.1f of %.1f", f.Scenario, f.CPIAlone, f.CPIUnprotected, f.CPIAgent,
		recovered, f.TimeOverObjective*100, f.OfflineMBps/1000, f.OfflineMBpsUnlimited/1000), " ")
}
