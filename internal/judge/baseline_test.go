package judge

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/signal"
)

func TestBinsAreHalfOctaves(t *testing.T) {
	for _, c := range []struct {
		milli uint64
		bin   int
	}{{0, 0}, {1, 0}, {2, 2}, {3, 3}, {4, 4}, {6, 5}, {8, 6}, {330, 16}, {400, 17}, {1000, 19}, {1 << 60, maxBin}} {
		if got := binOf(c.milli); got != c.bin {
			t.Errorf("%d milli-CPU: bin %d, want %d", c.milli, got, c.bin)
		}
	}
}

// fill learns n windows of a CPI in a bin.
func fill(b *baseline, bin, n int, cpi uint32, from time.Duration) {
	var scratch [binSamples]uint32
	for i := range n {
		b.bin(bin).learn(Normal{CPI: cpi + uint32(i%3), MPKI: 500}, from+time.Duration(i)*binPace, &scratch)
	}
}

func TestFenceIsRobust(t *testing.T) {
	b := &baseline{}
	fill(b, 10, 40, 640, time.Hour)
	var scratch [binSamples]uint32
	for i := range 10 { // a fifth of all windows is ten times as bad
		b.bin(10).learn(Normal{CPI: 6400, MPKI: 9000}, 2*time.Hour+time.Duration(i)*binPace, &scratch)
	}
	c := b.find(10, 20)
	if fence := c.cpi.fence(10, 1); fence < 700 || fence > 720 {
		t.Errorf("fence %d of CPI 640 with a fifth of outliers, want about 705", fence)
	}
	if fence := (spread{median: 640, mad: 100}).fence(10, 1); fence != 640+444 {
		t.Errorf("fence %d, want three sigmas above the median", fence)
	}
	if fence := (spread{}).fence(10, 100); fence != 100 {
		t.Errorf("fence %d of nothing, want the least", fence)
	}
}

func TestAnEmptyBinAsksItsNeighbours(t *testing.T) {
	b := &baseline{}
	fill(b, 17, 30, 640, time.Hour)
	if c := b.find(20, 20); c == nil || c.Bin != 17 {
		t.Errorf("found %+v for a fuller CPU, want bin 17", c)
	}
	fill(b, 20, 5, 900, time.Hour)
	if c := b.find(20, 20); c == nil || c.Bin != 17 {
		t.Errorf("found %+v while bin 20 holds 5, want bin 17", c)
	}
	fill(b, 20, 25, 900, time.Hour)
	if c := b.find(20, 20); c == nil || c.Bin != 20 {
		t.Errorf("found %+v, want bin 20", c)
	}
	split := &baseline{} // swings about the edge of two bins
	fill(split, 16, 11, 640, time.Hour)
	fill(split, 17, 10, 640, time.Hour)
	if c := split.find(17, 20); c == nil || c.Bin != 16 {
		t.Errorf("found %+v, want the larger of two halves", c)
	}
	if c := (&baseline{}).find(17, 20); c != nil {
		t.Errorf("found %+v in nothing", c)
	}
}

func TestABinThatWasFilledUnderContentionLearnsBetterAtOnce(t *testing.T) {
	b := &baseline{}
	fill(b, 10, binSamples, 3000, time.Hour)
	var scratch [binSamples]uint32
	for i := range binSamples {
		b.bin(10).learn(Normal{CPI: 640}, 2*time.Hour+time.Duration(i)*100*time.Millisecond, &scratch)
	}
	if c := b.find(10, 20); c.cpi.median != 640 {
		t.Errorf("median %d after six seconds of health, want 640", c.cpi.median)
	}
}

func TestWorkload(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   string
	}{
		{"web-7d9f8c6b5-x2x9z", map[string]string{"pod-template-hash": "7d9f8c6b5"}, "shop/web/c"},
		{"web-7d9f8c6b5-x2x9z", nil, "shop/web-7d9f8c6b5-x2x9z/c"},
		{"db-0", map[string]string{"statefulset.kubernetes.io/pod-name": "db-0"}, "shop/db/c"},
		{"agent-abcde", map[string]string{"controller-revision-hash": "1"}, "shop/agent/c"},
		{"nightly-x7", map[string]string{"batch.kubernetes.io/job-name": "nightly"}, "shop/nightly/c"},
		{"solo", map[string]string{"controller-revision-hash": "1"}, "shop/solo/c"},
	} {
		if got := Workload(&signal.Pod{Namespace: "shop", Name: c.name, Labels: c.labels}, "c"); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.name, c.labels, got, c.want)
		}
	}
}

func TestBaselinesGoOutAndIn(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var s State
		for i := range rapid.IntRange(0, 4).Draw(r, "workloads") {
			b := s.baselineOf(strings.Repeat("w", i+1))
			for range rapid.IntRange(0, 3).Draw(r, "bins") {
				fill(b, rapid.IntRange(0, maxBin).Draw(r, "bin"), rapid.IntRange(1, 100).Draw(r, "n"), 500, time.Hour)
			}
		}
		out := s.Baselines()
		var again State
		if err := again.SetBaselines(&out); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(out, again.Baselines(), cmpopts.IgnoreUnexported(Bin{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestBaselinesThatNoRunWrote(t *testing.T) {
	good := []Normal{{CPI: 1}}
	for says, b := range map[string]Baselines{
		"version 2":   {Version: 2},
		"there twice": {Version: 1, Workloads: []WorkloadBaseline{{Key: "a"}, {Key: "a"}}},
		"no such bin": {Version: 1, Workloads: []WorkloadBaseline{{Key: "a", Bins: []Bin{{Bin: 99, Samples: good}}}}},
		"CPI of 0":    {Version: 1, Workloads: []WorkloadBaseline{{Key: "a", Bins: []Bin{{Bin: 1, Samples: []Normal{{}}}}}}},
		"at most 64":  {Version: 1, Workloads: []WorkloadBaseline{{Key: "a", Bins: []Bin{{Bin: 1, Samples: make([]Normal, 65)}}}}},
		"ascending":   {Version: 1, Workloads: []WorkloadBaseline{{Key: "a", Bins: []Bin{{Bin: 2, Samples: good}, {Bin: 1, Samples: good}}}}},
	} {
		var s State
		s.baselineOf("kept")
		if err := s.SetBaselines(&b); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		if s.baselines["kept"] == nil {
			t.Error("a refused file has changed what is known")
		}
	}
}

func TestTheOldestBaselineGoes(t *testing.T) {
	var s State
	for i := range maxBaselines + 1 {
		s.baselineOf(strings.Repeat("x", i+1))
		s.baselineOf("x") // in use
	}
	if len(s.baselines) != maxBaselines || s.baselines["x"] == nil || s.baselines["xx"] != nil {
		t.Errorf("%d baselines, the one in use %v, the oldest %v", len(s.baselines), s.baselines["x"], s.baselines["xx"])
	}
}
