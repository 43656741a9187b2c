package lab

import "testing"

// TestSuppressIsThePublishedRule goes through the rule's cases on a node with 10 CPUs, by hand.
func TestSuppressIsThePublishedRule(t *testing.T) {
	s := NewSuppress(10)
	for _, step := range []struct {
		what         string
		pods, system float64
		cpus         int
		quota        int64
	}{
		{"the first step goes straight there: 6.5 - 1 - 0.3", 1, 0.3, 6, 520_000},
		{"a cut is made at once", 4, 0.3, 3, 220_000},
		{"a change of less than 1 % of the node is not made", 4, 0.35, 3, 220_000},
		{"growth is 10 % of the node a step", 1, 0.3, 4, 320_000},
		{"and another", 1, 0.3, 5, 420_000},
		{"until it is there", 1, 0.3, 6, 520_000},
		{"never below the floors", 8, 1, 2, 2_000},
	} {
		cpus, quota := s.Step(step.pods, step.system)
		if cpus != step.cpus || quota != step.quota {
			t.Errorf("%s: %d CPUs and %d µs, want %d and %d", step.what, cpus, quota, step.cpus, step.quota)
		}
	}
}

func TestSuppressOnASmallMachineCanTakeACPU(t *testing.T) {
	cpus, _ := NewSuppress(2).Step(0.6, 0.1)
	if cpus != 1 {
		t.Errorf("%d CPUs, want 1", cpus)
	}
}
