package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/bench/load"
	"golang.org/x/sys/unix"
)

// report is demo/out/report.json. Times are in the unit that their names end in; each latency is the median over the windows.
type report struct {
	Kernel   string  `json:"kernel"`
	CPUs     int     `json:"cpus"`
	UsedCPUs string  `json:"used_cpus"`
	Date     string  `json:"date"`
	Service  string  `json:"service"`
	Capacity float64 `json:"capacity_rps"`
	Rate     float64 `json:"rate_rps"`
	Windows  int     `json:"windows"`
	Busy     float64 `json:"busy_before"` // share of the machine's CPU time that others used before the demo began

	Alone   figures `json:"alone"`
	Without figures `json:"without"` // colocated, the agent only watches
	With    figures `json:"with"`    // colocated, the agent acts

	Culprit        string             `json:"culprit"`         // as most windows named it
	CulpritWindows int                `json:"culprit_windows"` // windows that named it
	Blame          map[string]float64 `json:"blame"`           // share of the service's wait by who ran meanwhile, over those windows
	Reaction       reactionReport     `json:"reaction"`

	SettingsHeld int      `json:"settings_held"` // files that read otherwise while the agent acted
	Restored     bool     `json:"restored"`      // all of them read as before, after it stopped
	Failures     []string `json:"failures"`

	windows [_situations][]measurement
	bursts  []float64 // ms
}

type figures struct {
	P50         float64 `json:"p50_us"`
	P99         float64 `json:"p99_us"`
	P999        float64 `json:"p999_us"`
	P99Low      float64 `json:"p99_min_us"` // of the windows
	P99High     float64 `json:"p99_max_us"`
	RPS         float64 `json:"rps"`
	Errors      int     `json:"errors"`
	OfflineMBps float64 `json:"offline_mb_per_s"`
}

type reactionReport struct {
	Bursts          int     `json:"bursts"`
	BurstToCutP50   float64 `json:"burst_to_first_cut_p50_ms"`
	BurstToCutMax   float64 `json:"burst_to_first_cut_max_ms"`
	Events          uint64  `json:"events"`
	EventToWriteP50 float64 `json:"event_to_write_p50_ms"`
	EventToWriteP99 float64 `json:"event_to_write_p99_ms"`
}

func newReport(s *stage, capacity float64) *report {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail
	return &report{
		Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(), UsedCPUs: s.cpus.String(),
		Date: time.Now().UTC().Format(time.RFC3339), Service: s.web.what,
		Capacity: math.Round(capacity), Rate: s.rate, Windows: s.o.rounds, Failures: []string{},
	}
}

func (r *report) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// What the demo must show. The bounds are far from what is usual: latency without the agent is tens of times worse.
const (
	harmAtLeast = 2.0 // p99 without the agent, as a multiple of alone
	helpAtLeast = 2.0 // p99 without the agent, as a multiple of with it
)

// tooBusy is the share of the machine from which work of others spoils the figures.
const tooBusy = 0.1

// judge sums up and says what went wrong.
func (r *report) judge() {
	r.Alone, r.Without, r.With = sum(r.windows[alone]), sum(r.windows[without]), sum(r.windows[with])
	r.nameCulprit()
	if r.Without.P99 < harmAtLeast*r.Alone.P99 {
		r.fail("the offline work did no plain harm (p99 %s, alone %s): there was nothing to cure", us(r.Without.P99), us(r.Alone.P99))
	}
	if r.Without.P99 < helpAtLeast*r.With.P99 {
		r.fail("the agent did not help: p99 %s with it, %s without", us(r.With.P99), us(r.Without.P99))
	}
	if r.Culprit != heavyPod || 2*r.CulpritWindows <= r.Windows {
		r.fail("the culprit is %s; the agent named %q in %d of %d windows", heavyPod, r.Culprit, r.CulpritWindows, r.Windows)
	}
	for who, share := range r.Blame {
		if strings.Contains(who, "/") && who != heavyPod && share >= r.Blame[heavyPod] {
			r.fail("%s ran during %.0f %% of the service's wait, the culprit %s during %.0f %%", who, 100*share, heavyPod, 100*r.Blame[heavyPod])
		}
	}
	for _, k := range []situation{alone, without} {
		for _, m := range r.windows[k] {
			for _, line := range m.Changed {
				r.fail("changed while the agent was only to watch: %s", line)
			}
		}
	}
	if r.With.OfflineMBps == 0 {
		r.fail("the offline pods got nothing done")
	}
	if n := r.Alone.Errors + r.Without.Errors + r.With.Errors; n > 0 {
		r.fail("%d requests failed", n)
	}
}

func (r *report) nameCulprit() {
	named := map[string]int{}
	r.Blame = map[string]float64{}
	total := 0.0
	for _, m := range r.windows[without] {
		named[strings.Join(m.Culprits, " + ")]++
		for who, seconds := range m.Blame {
			r.Blame[who] += seconds
			total += seconds
		}
	}
	for who := range r.Blame {
		r.Blame[who] /= max(total, 1e-9)
	}
	for _, who := range slices.Sorted(maps.Keys(named)) {
		if who != "" && named[who] > r.CulpritWindows {
			r.Culprit, r.CulpritWindows = who, named[who]
		}
	}
}

func sum(ms []measurement) figures {
	median := func(get func(measurement) float64) float64 {
		var v []float64
		for _, m := range ms {
			v = append(v, get(m))
		}
		return math.Round(load.Median(v)*10) / 10
	}
	f := figures{
		P50: median(func(m measurement) float64 { return m.P50 }), P99: median(func(m measurement) float64 { return m.P99 }),
		P999: median(func(m measurement) float64 { return m.P999 }), RPS: median(func(m measurement) float64 { return m.Rate }),
		OfflineMBps: median(func(m measurement) float64 { return m.Offline }), P99Low: math.Inf(1),
	}
	for _, m := range ms {
		f.P99Low, f.P99High = min(f.P99Low, m.P99), max(f.P99High, m.P99)
		f.Errors += m.Errors
	}
	return f
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s at %.0f requests/s, kernel %s, %d CPUs (used: %s), %s\n", r.Service, r.Rate, r.Kernel, r.CPUs, r.UsedCPUs, r.Date)
	fmt.Fprintf(w, "medians of %d interleaved windows; latency counts from when a request was due\n\n", r.Windows)
	fmt.Fprintf(w, "%-26s %9s %9s %9s   %-34s %s\n", "online service", "p50", "p99", "p99.9", "p99 (logarithmic)", "offline work")
	most := max(r.Without.OfflineMBps, r.With.OfflineMBps)
	for k, f := range []figures{r.Alone, r.Without, r.With} {
		offline := "-"
		if situation(k) != alone && most > 0 {
			offline = fmt.Sprintf("%.0f MB/s hashed (%.0f %%)", f.OfflineMBps, 100*f.OfflineMBps/max(r.Without.OfflineMBps, 1e-9))
		}
		fmt.Fprintf(w, "%-26s %9s %9s %9s   %-34s %s\n", situation(k), us(f.P50), us(f.P99), us(f.P999), bar(f.P99), offline)
	}
	fmt.Fprintf(w, "\nwho ran while %s waited for a CPU (as the agent saw it, only watching):\n", webPod)
	who := slices.SortedFunc(maps.Keys(r.Blame), func(a, b string) int {
		if r.Blame[a] != r.Blame[b] {
			return int(math.Copysign(1, r.Blame[b]-r.Blame[a]))
		}
		return strings.Compare(a, b)
	})
	for _, name := range who {
		if share := r.Blame[name]; share >= 0.005 {
			fmt.Fprintf(w, "  %-24s %3.0f %% %s\n", name, 100*share, strings.Repeat("█", int(math.Round(30*share))))
		}
	}
	fmt.Fprintf(w, "culprit named: %s, in %d of %d windows\n", orNobody(r.Culprit), r.CulpritWindows, r.Windows)
	fmt.Fprintf(w, "reaction: a burst of offline work made the service wait too long for the first time, and was cut, after %.1f ms (median of %d, worst %.1f ms); from the kernel's event of that wait to the completed write p50 %.2f ms, p99 %.2f ms\n",
		r.Reaction.BurstToCutP50, r.Reaction.Bursts, r.Reaction.BurstToCutMax, r.Reaction.EventToWriteP50, r.Reaction.EventToWriteP99)
	fmt.Fprintf(w, "after SIGTERM: %d settings had been changed, all restored: %v\n", r.SettingsHeld, r.Restored)
	if len(r.Failures) == 0 {
		fmt.Fprintf(w, "\np99 %s -> %s: %.0f times better with qos-agent; alone it is %s\n", us(r.Without.P99), us(r.With.P99), r.Without.P99/max(r.With.P99, 1), us(r.Alone.P99))
		return
	}
	fmt.Fprintln(w)
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED:", f)
	}
	if r.Busy > tooBusy {
		fmt.Fprintf(w, "Others were using %.0f %% of this machine: try again when it is quiet.\n", 100*r.Busy)
	}
}

func orNobody(s string) string {
	if s == "" {
		return "nobody"
	}
	return s
}

// bar is logarithmic: latencies here differ by factors of hundreds. It begins at 50 us; two cells are a factor of two.
func bar(us float64) string {
	n := int(math.Round(2 * math.Log2(max(us, 50)/50)))
	return strings.Repeat("█", min(max(n, 1), 34))
}

// us shows microseconds in a unit that suits.
func us(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f s", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f ms", v/1e3)
	case v >= 1e3:
		return fmt.Sprintf("%.1f ms", v/1e3)
	}
	return fmt.Sprintf("%.0f us", v)
}

func maxOf(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Max(v)
}

// write leaves report.json and report.txt.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var page bytes.Buffer
	r.print(&page)
	if err := os.WriteFile(filepath.Join(dir, "report.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.txt"), page.Bytes(), 0o644)
}
