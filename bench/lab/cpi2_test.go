package lab

import (
	"math"
	"testing"
)

func TestCPI2IsThePublishedRule(t *testing.T) {
	for name, tc := range map[string]struct {
		samples [][3]float64 // CPI, CPUs of the job, CPUs of the suspect
		want    bool
	}{
		"calm":                             {[][3]float64{{1, 1, 1}, {1.1, 1, 1}, {1, 1, 1}, {1.15, 1, 1}, {1, 1, 1}}, false},
		"slow while it runs":               {[][3]float64{{1, 1, 0}, {2, 1, 1}, {2.1, 1, 1}, {2, 1, 1}}, true},
		"two outliers":                     {[][3]float64{{1, 1, 0}, {2, 1, 1}, {2.1, 1, 1}, {1, 1, 0}}, false},
		"slow while it does not run":       {[][3]float64{{2, 1, 0}, {2, 1, 0}, {2, 1, 0}, {1, 1, 1}, {1, 1, 1}}, false},
		"slow, but by little":              {[][3]float64{{1.5, 1, 1}, {1.5, 1, 1}, {1.5, 1, 1}}, false}, // 1 - 1.2/1.5 = 0.2
		"the job hardly runs":              {[][3]float64{{5, 0.1, 1}, {5, 0.1, 1}, {5, 0.1, 1}}, false},
		"outliers long ago":                {[][3]float64{{2, 1, 1}, {2, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {2, 1, 1}}, false},
		"a cap stays when the job is well": {[][3]float64{{2, 1, 1}, {2, 1, 1}, {2, 1, 1}, {1, 1, 0}, {1, 1, 0}}, true},
	} {
		c := &CPI2{Mean: 1, SD: 0.1}
		got := false
		for _, s := range tc.samples {
			got = c.Step(s[0], s[1], s[2])[0]
		}
		if got != tc.want {
			t.Errorf("%s: capped %v", name, got)
		}
		if c.Calm(); c.Step(1, 1, 1)[0] {
			t.Errorf("%s: still capped after a calm", name)
		}
	}
}

func TestCPI2Correlation(t *testing.T) {
	c := &CPI2{Mean: 1, SD: 0.25, samples: []cpi2Sample{{3, []float64{1}}, {0.75, []float64{1}}}} // beyond 1.5: 1/2 (1 - 1/2) + 1/2 (1/2 - 1)
	if got := c.correlation(0); math.Abs(got) > 1e-12 {
		t.Errorf("correlation %v, want 0", got)
	}
}

// TestCPI2TakesOneAfterTheOther: of two suspects the worse first, the other a sample later, if that did not help; a cap ends as published.
func TestCPI2TakesOneAfterTheOther(t *testing.T) {
	c := &CPI2{Mean: 1, SD: 0.1, Hold: CPI2Hold}
	for i, s := range []struct {
		cpi    float64
		use    [2]float64
		capped [2]bool
	}{
		{1, [2]float64{1, 0}, [2]bool{}},
		{3, [2]float64{1, 1}, [2]bool{}},
		{3, [2]float64{1, 1}, [2]bool{}},
		{3, [2]float64{1, 1}, [2]bool{false, true}}, // it was not there when the job was well
		{3, [2]float64{1, 0.1}, [2]bool{true, true}},
		{1, [2]float64{0.1, 0.1}, [2]bool{true, true}},
		{1, [2]float64{0.1, 0.1}, [2]bool{true, true}},
		{1, [2]float64{0.1, 0.1}, [2]bool{true, true}},
		{1, [2]float64{0.1, 0.1}, [2]bool{true, false}}, // five samples after
		{1, [2]float64{0.1, 1}, [2]bool{}},
	} {
		if got := c.Step(s.cpi, 1, s.use[:]...); [2]bool(got) != s.capped {
			t.Errorf("sample %d: capped %v, want %v", i, got, s.capped)
		}
	}
}
