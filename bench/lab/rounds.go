package lab

import "fmt"

// Rounds is the daemon and a static split by turns beside the same load, in the emulated machine of test/rig. test/rdt measures it, bench/rdt keeps it.
type Rounds struct {
	Scenario string  `json:"scenario"`
	Kernel   string  `json:"kernel"`
	Date     string  `json:"date"`
	CPIAlone float64 `json:"cpi_alone"`
	Ways     int     `json:"ways"`  // of offline pods in the split
	MB       int     `json:"mb"`    // percent
	Tried    int     `json:"tried"` // splits
	Agent    []Turn  `json:"agent"`
	Split    []Turn  `json:"split"`
	Over     []Turn  `json:"over,omitempty"` // the next split, which leaves offline pods more and gave a higher CPI than the daemon's first turn
	Held     []Held  `json:"held"`           // by the daemon's pods, most often first
	// Ratio is the median over turns of the offline bandwidth with the daemon by that with the split; Same by what lies between the two splits
	// at the CPI of the daemon's turn. The extremes of five turns hold the true median with 94 % confidence.
	Ratio    float64 `json:"ratio"`
	RatioMin float64 `json:"ratio_min"`
	RatioMax float64 `json:"ratio_max"`
	Same     float64 `json:"same,omitempty"`
	SameMin  float64 `json:"same_min,omitempty"`
	SameMax  float64 `json:"same_max,omitempty"`
}

// Turn is one of them.
type Turn struct {
	CPI  float64 `json:"cpi"`  // of the online service
	MBps float64 `json:"mbps"` // of all offline pods
	CPUs float64 `json:"cpus"` // on which they ran: a stream moves as much as it runs
	Self float64 `json:"self"` // CPUs that the daemon used: with the agent it acts, with a split it watches
}

// Held is a limit of an offline pod and for what part of the time it had it; 0 is no limit.
type Held struct {
	Ways int     `json:"ways"`
	MB   int     `json:"mb"`
	Part float64 `json:"part"`
}

func (r *Rounds) String() string {
	s := fmt.Sprintf("%s by turns with a static split (the best of %d: %d ways, %d %%): offline bandwidth %.3f times the split's (%.3f to %.3f over %d pairs)",
		r.Scenario, r.Tried, r.Ways, r.MB, r.Ratio, r.RatioMin, r.RatioMax, len(r.Agent))
	if len(r.Over) > 0 {
		s += fmt.Sprintf("; %.3f times what lies between it and the next at the same CPI (%.3f to %.3f)", r.Same, r.SameMin, r.SameMax)
	}
	for i := range r.Agent {
		a, b := r.Agent[i], r.Split[i]
		s += fmt.Sprintf("\n%22s agent CPI %.3f, %.1f GB/s on %.2f CPUs (itself %.2f); split %.3f, %.1f on %.2f (%.2f)", "", a.CPI, a.MBps/1e3, a.CPUs, a.Self,
			b.CPI, b.MBps/1e3, b.CPUs, b.Self)
		if len(r.Over) > 0 {
			s += fmt.Sprintf("; the next %.3f, %.1f on %.2f", r.Over[i].CPI, r.Over[i].MBps/1e3, r.Over[i].CPUs)
		}
	}
	for _, h := range r.Held {
		s += fmt.Sprintf("\n%22s held %.0f %% of the time: %d ways, %d %%", "", 100*h.Part, h.Ways, h.MB)
	}
	return s
}
