package rdt_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// write makes files below a directory, which then is what resctrl looks like on machines that the rig cannot be. Their contents are as
// the kernel's documentation (resctrl.rst) and its source print them, padding and newlines included.
func write(t *testing.T, files map[string]string) rdt.Dir {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return rdt.Dir(root)
}

func TestL2WithCodeAndDataApart(t *testing.T) {
	f := open(t, write(t, map[string]string{
		"schemata":                 "L2DATA:0=ff;1=ff;5=ff\nL2CODE:0=ff;1=ff;5=ff\n",
		"info/L2CODE/cbm_mask":     "ff\n",
		"info/L2CODE/min_cbm_bits": "1\n", "info/L2CODE/num_closids": "4\n", "info/L2CODE/shareable_bits": "0\n", "info/L2CODE/bit_usage": "0=SSSSSSSS\n",
		"info/L2DATA/cbm_mask": "ff\n", "info/L2DATA/min_cbm_bits": "1\n", "info/L2DATA/num_closids": "4\n", "info/L2DATA/shareable_bits": "0\n",
		"info/last_cmd_status": "ok\n",
	}))
	if f.Info.CLOSIDs != 4 || f.Info.Cache("L2CODE") == nil || f.Info.Cache("L2DATA").Ways() != 8 || f.Info.Cache("L3") != nil || f.Info.MB != nil || f.Info.Mon != nil {
		t.Errorf("%+v", f.Info)
	}
	s, err := f.Schemata("")
	if err != nil || len(s.Values("L2DATA")) != 3 || s.Values("L2CODE")[2] != (rdt.Domain{ID: 5, Value: 0xff}) {
		t.Errorf("schemata %v, %v", s, err)
	}
}

func TestAMD(t *testing.T) {
	files := map[string]string{
		"schemata":         "    MB:0=2048;1=2048\n  SMBA:0=2048;1=2048\n    L3:0=ffff;1=ffff\n",
		"info/L3/cbm_mask": "ffff\n", "info/L3/min_cbm_bits": "1\n", "info/L3/num_closids": "16\n", "info/L3/shareable_bits": "0\n", "info/L3/sparse_masks": "1\n",
		"info/MB/num_closids": "16\n", "info/MB/min_bandwidth": "1\n", "info/MB/bandwidth_gran": "1\n", "info/MB/delay_linear": "0\n",
		"info/L3_MON/num_rmids": "256\n", "info/L3_MON/mon_features": "llc_occupancy\nmbm_total_bytes\nmbm_total_bytes_config\nmbm_local_bytes\n",
		"info/L3_MON/max_threshold_occupancy": "65536\n",
	}
	f := open(t, write(t, files))
	if mb := f.Info.MB; mb.Unit != rdt.EighthGBs || mb.Max != 2048 || mb.Round(77) != 77 || mb.Throttle != "" {
		t.Errorf("MB %+v", mb)
	}
	if !f.Info.Cache("L3").Sparse || f.Info.Mon.RMIDs != 256 || !f.Info.Mon.Total || !f.Info.Mon.Local {
		t.Errorf("%+v", f.Info)
	}
	// Somebody has limited the default group: the unit must not be taken for percent.
	files["schemata"] = "    MB:0=80;1=100\n    L3:0=ffff;1=ffff\n"
	if mb := open(t, write(t, files)).Info.MB; mb.Unit != rdt.EighthGBs || mb.Max != 2048 {
		t.Errorf("MB %+v", mb)
	}
}

// TestSubNUMAClusters has counters of clusters below those of their cache; the cache's are their sums.
func TestSubNUMAClusters(t *testing.T) {
	files := map[string]string{"schemata": "    MB:0= 100\n", "info/MB/num_closids": "8\n", "info/MB/min_bandwidth": "10\n", "info/MB/bandwidth_gran": "10\n"}
	for name, text := range map[string]string{"": "300\n", "mon_sub_L3_00/": "100\n", "mon_sub_L3_01/": "200\n"} {
		for _, counter := range []string{"llc_occupancy", "mbm_total_bytes"} {
			files["mon_data/mon_L3_00/"+name+counter] = text
		}
	}
	files["mon_data/mon_PERF_PKG_00/core_energy"] = "12.5\n"
	c, err := open(t, write(t, files)).Counters("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.Read(nil)
	if err != nil || len(r) != 1 || r[0].Occupancy != 300 || r[0].Total != 300 || r[0].Local != 0 || r[0].State() != rdt.OK {
		t.Errorf("read %+v, %v", r, err)
	}
	var out [1]rdt.Reading
	if n := testing.AllocsPerRun(100, func() {
		if _, err := c.Read(out[:0]); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a reading", n)
	}
}

func TestDamagedInfoIsAnError(t *testing.T) {
	for name, text := range map[string]string{"info/L3/cbm_mask": "\n", "info/L3/num_closids": "many\n", "schemata": "L3:uninitialized\n"} {
		files := map[string]string{"schemata": "    MB:0= 100\n    L3:0=ff\n", "info/L3/cbm_mask": "ff\n", "info/L3/num_closids": "16\n", "info/MB/num_closids": "8\n", "info/MB/min_bandwidth": "10\n"}
		files[name] = text
		if f, err := rdt.Open(write(t, files)); err == nil {
			t.Errorf("%s %q: %+v", name, text, f.Info)
		}
	}
}
