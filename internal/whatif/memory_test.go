package whatif

import (
	"math"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
)

// The service has the machine to itself for the first third of these scenarios; what the model says of its CPI without offline
// traffic, having seen all of the run, is held against that.
func TestMemoryModelAgainstThePlant(t *testing.T) {
	for _, tt := range []struct {
		scenario string
		off      float64 // that is allowed
	}{{"bandwidth-hog", 0.05}, {"cache-thrasher", 0.05}} {
		// Observing leaves the harm there to be seen; enforcing shows both.
		for _, mode := range []policy.Mode{policy.Observe, policy.Enforce} {
			rec := simulated{scenario(t, tt.scenario, 3*time.Minute), compile(t, "as-is", func(s *policy.Spec) { s.Mode = mode })}
			ms, err := FitMemory([]Recording{rec})
			if err != nil || len(ms) != 1 {
				t.Fatalf("%s: %v, %v", tt.scenario, ms, err)
			}
			windows := make(map[string][]memoryWindow)
			if err := memoryWindows(rec, windows); err != nil {
				t.Fatal(err)
			}
			m, alone, n := &ms[0], 0.0, 0.0
			for _, w := range windows[m.Pod] {
				if w.at > 5*time.Second && w.at < 55*time.Second {
					alone += w.cpi
					n++
				}
			}
			alone /= n
			t.Logf("%s %s: alone %.3f, %+v", tt.scenario, mode, alone, *m)
			if d := math.Abs(m.Without/alone - 1); d > tt.off {
				t.Errorf("%s %s: CPI %.3f without offline pods, alone it was %.3f", tt.scenario, mode, m.Without, alone)
			}
			if m.Relative > m.Naive {
				t.Errorf("%s %s: off by %.3f, the mean by %.3f", tt.scenario, mode, m.Relative, m.Naive)
			}
			if m.Half < m.Without || m.Half > m.CPI {
				t.Errorf("%s %s: CPI %.3f, with half %.3f, without %.3f", tt.scenario, mode, m.CPI, m.Half, m.Without)
			}
		}
	}
}

func TestAxesSayWhatIsNotFollowed(t *testing.T) {
	axes, err := Axes([]Recording{simulated{scenario(t, "bandwidth-hog", 2*time.Minute), compile(t, "as-is", nil)}})
	if err != nil || len(axes) != 3 {
		t.Fatal(axes, err)
	}
	if !axes[0].Followed || axes[1].Followed || axes[1].Cuts == 0 || axes[1].Why == "" {
		t.Errorf("%+v", axes)
	}
}
