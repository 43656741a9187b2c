package lab

import (
	"slices"
	"time"
)

// CPI2 is the rule of CPI² (Zhang et al., EuroSys 2013) for one protected job and its suspects: a baseline to measure against, not something that
// the agent does. A sample of the job's cycles per instruction is an outlier beyond the mean and two standard deviations of its normal ones; three
// outliers in the window are an anomaly; then the suspect whose CPU use goes along best with the outliers is hard-capped, if it does well
// enough. If that does not help, the next sample finds the next one.
//
// The paper samples for 10 s in each minute, has a window of 5 minutes and caps for 5 minutes. Time is counted in samples here, so that whoever takes
// them faster has a rule that is faster in all of that.
type CPI2 struct {
	Mean, SD float64 // of the job's normal CPI
	Hold     int     // samples after which a cap is lifted, 5 as published; 0: never

	samples []cpi2Sample // of the window, oldest first
	left    []int        // for each suspect: samples for which it is still capped, -1 for ever
	capped  []bool
}

// Published constants.
const (
	CPI2Every       = time.Minute
	CPI2Sample      = 10 * time.Second
	CPI2Cap         = 0.1 // CPUs that a capped suspect has; 0.01 for the least important ones
	CPI2Hold        = 5   // samples
	cpi2Window      = 5   // samples
	cpi2Outliers    = 3
	cpi2Sigmas      = 2
	cpi2Busy        = 0.25 // CPUs: below, a sample says nothing
	cpi2Correlation = 0.35
)

// CPI2Outcome is what the rule does in the place of the daemon: it reads the counters of the online pod's group and caps the CPUs of offline pods.
type CPI2Outcome struct {
	TimesAsFast      float64   `json:"times_as_fast"` // as published: samples, window and caps are that much shorter
	Mean             float64   `json:"cpi_mean"`      // of samples beside nothing
	SD               float64   `json:"cpi_deviation"`
	Seconds          float64   `json:"seconds"`            // from the start of the load to the end
	CapsMS           []float64 `json:"caps_ms"`            // from the start of the load: each time that a pod was capped
	CPI              float64   `json:"cpi"`                // from the first cap to the end
	CPIWhole         float64   `json:"cpi_whole"`          // from the start of the load
	TimeOver         float64   `json:"time_over"`          // part of the time in which CPI was beyond 1.1 times the mean, from the first cap to the end
	TimeOverWhole    float64   `json:"time_over_whole"`    // from the start of the load
	OfflineMBps      float64   `json:"offline_mbps"`       // from the first cap to the end
	OfflineWholeMBps float64   `json:"offline_mbps_whole"` // from the start of the load
	PacedP95         float64   `json:"p95_paced_ms"`       // of the second half
}

type cpi2Sample struct {
	cpi      float64
	suspects []float64
}

// Calm begins anew, as for suspects that have just come.
func (c *CPI2) Calm() { c.samples, c.left = c.samples[:0], nil }

// Step takes a sample: the job's CPI, the CPUs that it used, and those that each suspect did. It tells which suspects are to be capped. The number of
// suspects does not change until the next Calm; what it gives is good until the next Step.
func (c *CPI2) Step(cpi, cpus float64, suspects ...float64) []bool {
	if c.left == nil {
		c.left, c.capped = make([]int, len(suspects)), make([]bool, len(suspects))
	}
	for i, n := range c.left {
		c.left[i] = max(n-1, min(n, 0))
	}
	if cpus >= cpi2Busy && cpi > 0 {
		if c.samples = append(c.samples, cpi2Sample{cpi, slices.Clone(suspects)}); len(c.samples) > cpi2Window {
			c.samples = c.samples[1:]
		}
	}
	if c.anomalous() {
		worst, most := -1, 0.0
		for i := range suspects {
			if score := c.correlation(i); c.left[i] == 0 && score >= cpi2Correlation && score > most {
				worst, most = i, score
			}
		}
		if worst >= 0 {
			if c.left[worst] = c.Hold; c.Hold == 0 {
				c.left[worst] = -1
			}
		}
	}
	for i, n := range c.left {
		c.capped[i] = n != 0
	}
	return c.capped
}

func (c *CPI2) threshold() float64 { return c.Mean + cpi2Sigmas*c.SD }

func (c *CPI2) anomalous() bool {
	n := 0
	for _, s := range c.samples {
		if s.cpi > c.threshold() {
			n++
		}
	}
	return n >= cpi2Outliers
}

// correlation is the paper's score, from -1 to 1: the suspect's use while the job was slow, less that while it was not.
func (c *CPI2) correlation(suspect int) (score float64) {
	used := 0.0
	for _, s := range c.samples {
		used += s.suspects[suspect]
	}
	if used == 0 {
		return 0
	}
	for _, s := range c.samples {
		part := s.suspects[suspect] / used
		if at := c.threshold(); s.cpi > at {
			score += part * (1 - at/s.cpi)
		} else {
			score += part * (s.cpi/at - 1)
		}
	}
	return score
}
