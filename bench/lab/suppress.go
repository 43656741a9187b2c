package lab

import (
	"math"
	"time"
)

// Suppress is koordlet's rule "CPU suppress" for best-effort pods, as published (koordinator, pkg/koordlet/qosmanager/plugins/cpusuppress, and
// the defaults of its NodeSLO): a baseline to measure against, not something that the agent does. Every second
//
//	suppress(BE) := capacity * 65 % - used by other pods - used by the system
//
// from averages over the last second; cut at once, regrow by 10 % of the node a second. As a cpuset it is rounded up to whole
// CPUs, as a quota it is per 100 ms.
type Suppress struct {
	CPUs int // of the node
	// Floor is the least number of CPUs in the form of a cpuset. koordlet's is 2, which on a machine with 2 CPUs would never
	// take any away; there it is 1, which favours the rule.
	Floor int

	cpus  int
	quota int64
}

// Published constants.
const (
	SuppressEvery  = time.Second
	suppressShare  = 0.65
	suppressPeriod = 100_000 // µs
	suppressFloor  = 2_000   // µs
	suppressGrow   = 0.1     // of the node, a step
	suppressBypass = 0.01    // of the node: a smaller change of quota is not made
)

// NewSuppress begins without a limit, as before the first step.
func NewSuppress(cpus int) *Suppress {
	return &Suppress{CPUs: cpus, Floor: min(2, max(1, cpus/2)), cpus: cpus, quota: -1}
}

// Step takes the CPUs that other pods and the system used in the last second, as numbers of CPUs, and gives what best-effort pods may
// have: CPUs of a cpuset, and µs of quota in each 100 ms.
func (s *Suppress) Step(pods, system float64) (cpus int, quotaUS int64) {
	want := suppressShare*float64(s.CPUs) - pods - system

	n := max(int(math.Ceil(want)), s.Floor)
	s.cpus = min(n, s.cpus+int(math.Ceil(float64(s.CPUs)*suppressGrow)), s.CPUs)

	q := max(int64(want*suppressPeriod), suppressFloor)
	node := float64(s.CPUs) * suppressPeriod
	switch {
	case math.Abs(float64(q-s.quota)) < node*suppressBypass && q != suppressFloor:
	case s.quota >= 0 && float64(q-s.quota) > node*suppressGrow:
		s.quota += int64(node * suppressGrow)
	default:
		s.quota = q
	}
	return s.cpus, s.quota
}
