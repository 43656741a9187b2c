package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/qos-agent/qos-agent/internal/judge"
)

func TestBaselinesAreKept(t *testing.T) {
	dir := t.TempDir()
	if b, err := LoadBaselines(dir); b != nil || err != nil {
		t.Errorf("from nothing: %v, %v", b, err)
	}
	want := &judge.Baselines{Version: 1, Workloads: []judge.WorkloadBaseline{
		{Key: "shop/web/nginx", Bins: []judge.Bin{{Bin: 17, Samples: []judge.Normal{{CPI: 640, MPKI: 500, Occupancy: 16 << 10, Bandwidth: 70}}}}},
	}}
	if err := saveBaselines(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := LoadBaselines(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(judge.Bin{})); diff != "" {
		t.Error(diff)
	}
	for text, says := range map[string]string{
		"{":                                "unexpected EOF",
		`{"version":1,"workload":[]}`:      "unknown field",
		`{"version":"1","workloads":null}`: "cannot unmarshal",
	} {
		path := filepath.Join(dir, baselinesFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadBaselines(dir); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want the file named and %q", text, err, says)
		}
	}
}
