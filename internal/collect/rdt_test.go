package collect

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// resctrl is a tree of files that looks like the kernel's.
type resctrl struct {
	t   *testing.T
	dir string
	fs  *rdt.FS
}

func newResctrl(t *testing.T) *resctrl {
	t.Helper()
	r := &resctrl{t: t, dir: t.TempDir()}
	for name, text := range map[string]string{
		"schemata": "MB:0=100;4=100\nL3:0=7ff;4=7ff\n", "info/L3/cbm_mask": "7ff\n", "info/L3/min_cbm_bits": "1\n", "info/L3/num_closids": "16\n",
		"info/L3/shareable_bits": "600\n", "info/MB/min_bandwidth": "10\n", "info/MB/bandwidth_gran": "10\n", "info/MB/num_closids": "8\n",
		"info/MB/delay_linear": "1\n", "info/L3_MON/num_rmids": "64\n", "info/L3_MON/mon_features": "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n",
		"info/L3_MON/max_threshold_occupancy": "65536\n", "info/last_cmd_status": "ok\n",
	} {
		r.write(name, text)
	}
	var err error
	if r.fs, err = rdt.Open(rdt.Dir(r.dir)); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *resctrl) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// count sets a group's counters in a domain.
func (r *resctrl) count(group string, domain int, occupancy, total, local any) {
	dir := fmt.Sprintf("%s/mon_data/mon_L3_%02d/", group, domain)
	r.write(dir+"llc_occupancy", fmt.Sprintln(occupancy))
	r.write(dir+"mbm_total_bytes", fmt.Sprintln(total))
	r.write(dir+"mbm_local_bytes", fmt.Sprintln(local))
}

// TestResctrlCounters: what a pod and the machine move, over domains with a hole in their numbers, through a failure and a move of the pod.
func TestResctrlCounters(t *testing.T) {
	r := newResctrl(t)
	group := ""
	facts := Facts(&r.fs.Info, t.TempDir())
	if facts.Ways != 11 || facts.CLOSIDs != 8 || facts.RMIDs != 64 || facts.ShareableWay != 0x600 || facts.MB != (signal.MBUnits{Unit: signal.MBPercent, Min: 10, Gran: 10, Max: 100}) {
		t.Errorf("facts %+v", facts)
	}
	w := newWorld(t, "v2", 0, func(o *Options) {
		o.Resctrl, o.RDT = r.fs, facts
		o.MonitorGroup = func(pod string) (string, bool) { return group, group != "" && pod == "/pods/web" }
	})
	w.group("/pods/web/main", use{})
	w.c.SetPods([]signal.Pod{podOf("web", "main")}, online("web"))
	for _, g := range []string{"", "own", "own/mon_groups/web", "other/mon_groups/web"} {
		r.count(g, 0, 0, 0, 0)
		r.count(g, 4, 0, 0, 0)
	}
	next := func() (signal.RDTSample, []signal.DomainBandwidth) {
		s := w.tick(200 * time.Millisecond)
		for s.Containers[0].RDT.At != s.Now && group != "" {
			s = w.tick(200 * time.Millisecond)
		}
		return s.Containers[0].RDT, s.Node.Bandwidth
	}
	if s, _ := next(); s.State != signal.RDTNone {
		t.Errorf("no group: %+v", s)
	}
	group = "own/mon_groups/web"
	if s, _ := next(); s.State != signal.RDTOK || s.Span != 0 || s.TotalBytes != 0 {
		t.Errorf("first reading: %+v", s)
	}
	r.count(group, 0, 4096, 1000, 900)
	r.count(group, 4, 8192, 50, 50)
	r.count("own", 0, 4096, 1000, 900)
	r.count("", 0, 1, 500, 500)
	s, bus := next()
	want := signal.RDTSample{At: s.At, Span: s.Span, State: signal.RDTOK, OccupancyBytes: 12288, TotalBytes: 1050, LocalBytes: 950,
		Domains: []signal.RDTDomainSample{{ID: 0, OccupancyBytes: 4096, TotalBytes: 1000, LocalBytes: 900}, {ID: 4, OccupancyBytes: 8192, TotalBytes: 50, LocalBytes: 50}}}
	if diff := cmp.Diff(want, s); diff != "" || s.Span <= 0 {
		t.Error(diff)
	}
	if len(bus) != 2 || bus[0].ID != 0 || bus[0].TotalBytes != 1500 || bus[1].ID != 4 || bus[1].TotalBytes != 0 {
		t.Errorf("the machine moved %+v, want 1500 in domain 0", bus)
	}

	// A counter that cannot be read for a while gives no jump when it can be again.
	r.count(group, 0, "Unavailable", "Unavailable", "Unavailable")
	if s, _ := next(); s.State != signal.RDTUnavailable || s.TotalBytes != 0 {
		t.Errorf("while unavailable: %+v", s)
	}
	r.count(group, 0, 4096, 1_000_000, 0)
	if s, _ := next(); s.State != signal.RDTOK || s.TotalBytes != 0 || s.Span != 0 {
		t.Errorf("back again: %+v, want a first reading", s)
	}
	// So does a pod that comes into another class.
	group = "other/mon_groups/web"
	r.count(group, 0, 0, 77, 0)
	if s, _ := next(); s.TotalBytes != 0 || s.Span != 0 {
		t.Errorf("in another group: %+v, want a first reading", s)
	}
	v := w.c.View()
	if len(v.Pods) != 1 || v.Pods[0].Bytes != 1050 || len(v.Domains) != 2 || v.Domains[0].TotalBytes < 1500 {
		t.Errorf("totals %+v, %+v", v.Pods, v.Domains)
	}
	// And when the group goes away, nothing is left.
	group = ""
	if s, _ := next(); s.State != signal.RDTNone {
		t.Errorf("without a group: %+v", s)
	}
}
