package lab

import "time"

// CPI2 is the rule of CPI² (Zhang et al., EuroSys 2013) for one protected job and one suspect: a baseline to measure against, not something that
// the agent does. A sample of the job's cycles per instruction is an outlier beyond the mean and two standard deviations of its normal ones; three
// outliers in the window are an anomaly; then a suspect whose CPU use goes along with the outliers is hard-capped.
//
// The paper samples for 10 s in each minute, has a window of 5 minutes and caps for 5 minutes. Here it is a sample each 100 ms and a window of
// half a second, 600 times as fast, and a cap stays for the rest of a phase: that favours the rule.
type CPI2 struct {
	Mean, SD float64 // of the job's normal CPI

	samples []cpi2Sample // of the window, oldest first
	capped  bool
}

// Published constants, but for the pace.
const (
	CPI2Every       = 100 * time.Millisecond
	CPI2Cap         = 0.1 // CPUs that a capped suspect has; 0.01 for the least important ones
	cpi2Window      = 5   // samples
	cpi2Outliers    = 3
	cpi2Sigmas      = 2
	cpi2Busy        = 0.25 // CPUs: below, a sample says nothing
	cpi2Correlation = 0.35
)

type cpi2Sample struct{ cpi, suspect float64 }

// Calm begins anew, as for a suspect that has just come.
func (c *CPI2) Calm() { c.samples, c.capped = c.samples[:0], false }

// Step takes a sample: the job's CPI, the CPUs that it used, and those that the suspect did. It tells whether the suspect is to be capped.
func (c *CPI2) Step(cpi, cpus, suspect float64) (capped bool) {
	if cpus >= cpi2Busy && cpi > 0 {
		if c.samples = append(c.samples, cpi2Sample{cpi, suspect}); len(c.samples) > cpi2Window {
			c.samples = c.samples[1:]
		}
	}
	c.capped = c.capped || c.anomalous() && c.correlation() >= cpi2Correlation
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
func (c *CPI2) correlation() (score float64) {
	used := 0.0
	for _, s := range c.samples {
		used += s.suspect
	}
	if used == 0 {
		return 0
	}
	for _, s := range c.samples {
		if at := c.threshold(); s.cpi > at {
			score += s.suspect / used * (1 - at/s.cpi)
		} else {
			score += s.suspect / used * (s.cpi/at - 1)
		}
	}
	return score
}
