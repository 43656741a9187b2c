package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// Story is the figures of a story of cache and memory bandwidth, told in the emulated machine of test/rig: an online service alone, beside offline
// work that nobody holds back, and with the daemon between them. 0 is a figure that the story does not have.
//
// CPI is cycles per instruction of the online service. P95 is the 95th percentile of its requests' time, ms: by the clock, and, paced, as memory lets
// them run, without the milliseconds by which a busy host lets a virtual CPU wait. MBps is what all offline pods move by their misses, 10^6 bytes/s.
type Story struct {
	Scenario          string       `json:"scenario"`
	Kernel            string       `json:"kernel"` // release
	Date              string       `json:"date"`   // RFC 3339, of the run of bench/rdt
	CPIAlone          float64      `json:"cpi_alone"`
	CPIUnprotected    float64      `json:"cpi_unprotected"`
	CPIBeside         float64      `json:"cpi_alone_beside_agent"` // alone with the daemon, which is what recovery and time over are held against
	CPIAgent          float64      `json:"cpi_agent"`              // from some seconds after the start of the load to its end
	RecoveryMS        float64      `json:"recovery_ms"`            // from the start of the load until CPI is inside the story's bound; -1: never
	OfflineMBps       float64      `json:"offline_mbps"`           // with the daemon
	OfflineFreeMBps   float64      `json:"offline_mbps_unprotected"`
	TimeOverObjective float64      `json:"time_over_objective"`       // part of the time of the load in which CPI was beyond the bound, 0 to 1
	TimeOverAlone     float64      `json:"time_over_objective_alone"` // the same before the load came: what is noise
	P95Alone          float64      `json:"p95_ms_alone,omitempty"`
	P95Agent          float64      `json:"p95_ms_agent,omitempty"`
	PacedAlone        float64      `json:"p95_paced_ms_alone,omitempty"`
	PacedUnprotected  float64      `json:"p95_paced_ms_unprotected,omitempty"`
	PacedAgent        float64      `json:"p95_paced_ms_agent,omitempty"`
	Static            *Split       `json:"static_split,omitempty"` // the one that leaves offline pods most bandwidth at a CPI no higher than CPIAgent
	CPI2              *CPI2Outcome `json:"cpi2,omitempty"`
	Note              string       `json:"note,omitempty"`
}

// Split is a static one, without the daemon, of the kind that an administrator sets up once: offline pods have some ways of the cache, online pods the
// others, and offline pods a limit of bandwidth. Offline pods stand back on the CPUs (cpu.idle) as they do beside the daemon.
type Split struct {
	Ways        int     `json:"offline_ways"`
	MB          int     `json:"offline_mb_percent"` // 10 to 100
	CPI         float64 `json:"cpi"`                // of the online service
	OfflineMBps float64 `json:"offline_mbps"`       // of all offline pods, 10^6 bytes/s
	Tried       int     `json:"tried"`              // how many splits were tried to find it

	// The same split with offline pods in an ordinary posture, of the service's weight: what standing back on the CPUs costs them.
	PlainCPI         float64 `json:"cpi_plain_posture,omitempty"`
	PlainOfflineMBps float64 `json:"offline_mbps_plain_posture,omitempty"`
}

// TickCost is what a tick takes with hardware counters and resctrl, and without. The machine is emulated: look at the ratios.
type TickCost struct {
	Kernel     string     `json:"kernel"` // release
	Date       string     `json:"date"`   // RFC 3339, of the run of bench/rdt
	Containers int        `json:"containers"`
	Rounds     int        `json:"rounds"`         // windows of either kind, in turn
	With       TickWindow `json:"with"`           // medians
	Without    TickWindow `json:"without"`        // likewise
	Ratio      float64    `json:"tick_ratio"`     // of the medians of TickMS
	RatioMin   float64    `json:"tick_ratio_min"` // of neighbouring windows
	RatioMax   float64    `json:"tick_ratio_max"`
	CPURatio   float64    `json:"cpu_ratio"` // of the medians of CPUMS
}

// TickWindow is milliseconds a tick.
type TickWindow struct {
	TickMS float64 `json:"tick_ms"` // its duration, by qosagent_tick_seconds
	CPUMS  float64 `json:"cpu_ms"`  // the process's CPU time
}

// StoryPrefix begins the lines with figures that tests of test/rdt print, and bench/rdt gathers.
const StoryPrefix = "rdt-result "

// StoryLine is what such a line holds: one of these.
type StoryLine struct {
	Story  *Story    `json:"story,omitempty"`
	Cost   *TickCost `json:"cost,omitempty"`
	Rounds *Rounds   `json:"rounds,omitempty"`
}

// Print writes the line.
func (l *StoryLine) Print(to io.Writer) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(to, "%s%s\n", StoryPrefix, text)
	return err
}

// ParseStoryLine reads a line of a test's output; ok: there are figures in it.
func ParseStoryLine(text []byte) (l StoryLine, ok bool, err error) {
	figures, ok := bytes.CutPrefix(text, []byte(StoryPrefix))
	if !ok {
		return l, false, nil
	}
	if err := json.Unmarshal(figures, &l); err != nil {
		return l, true, fmt.Errorf("figures %q: %w", figures, err)
	}
	return l, true, nil
}

func (s *Story) String() string {
	recovered := "never"
	if s.RecoveryMS >= 0 {
		recovered = fmt.Sprintf("%.0f ms", s.RecoveryMS)
	}
	row := fmt.Sprintf("%-22s %7.3f %12.3f %7.3f %10s %7.1f %% %6.1f of %.1f", s.Scenario, s.CPIAlone, s.CPIUnprotected, s.CPIAgent,
		recovered, s.TimeOverObjective*100, s.OfflineMBps/1000, s.OfflineFreeMBps/1000)
	if s.PacedAlone > 0 {
		row += fmt.Sprintf("\n%22s p95 of requests, paced: %.2f ms alone, %.2f unprotected, %.2f with the agent (%.2fx); by the clock %.1f, %.1f",
			"", s.PacedAlone, s.PacedUnprotected, s.PacedAgent, s.PacedAgent/s.PacedAlone, s.P95Alone, s.P95Agent)
	}
	if c := s.CPI2; c != nil {
		row += fmt.Sprintf("\n%22s CPI², %.0f times as fast: first cap after %.1f s, %d caps in %.0f s; since the first CPI %.3f, %.1f %% over, offline %.1f GB/s; in all CPI %.3f, %.1f %%, %.1f GB/s",
			"", c.TimesAsFast, c.CapsMS[0]/1e3, len(c.CapsMS), c.Seconds, c.CPI, c.TimeOver*100, c.OfflineMBps/1e3, c.CPIWhole, c.TimeOverWhole*100, c.OfflineWholeMBps/1e3)
	}
	if x := s.Static; x != nil {
		row += fmt.Sprintf("\n%22s best static split (%d tried): %d ways, %d %%: CPI %.3f, offline %.1f GB/s; the agent leaves %.2fx", "", x.Tried, x.Ways, x.MB,
			x.CPI, x.OfflineMBps/1000, s.OfflineMBps/x.OfflineMBps)
		if x.PlainOfflineMBps > 0 {
			row += fmt.Sprintf("; without cpu.idle: CPI %.3f, offline %.1f GB/s", x.PlainCPI, x.PlainOfflineMBps/1000)
		}
	}
	return row
}

func (c *TickCost) String() string {
	return fmt.Sprintf("a tick over %d containers with counters and resctrl: %.2fx that without (%.2f to %.2f over %d pairs), %.2fx the CPU time",
		c.Containers, c.Ratio, c.RatioMin, c.RatioMax, c.Rounds, c.CPURatio)
}
