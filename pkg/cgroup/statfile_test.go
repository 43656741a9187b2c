package cgroup

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree writes files (by path) below a new directory and returns it.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func detect(t testing.TB, root string) *Hierarchy {
	t.Helper()
	h, err := Detect(root)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const memoryStatV1 = "cache 9236480\ninactive_file 8192\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 330829824\ntotal_inactive_file 271458304\ntotal_active_file 5\n"

// v1Tree is a v1 machine with one group that has everything.
func v1Tree(t testing.TB) *Hierarchy {
	return detect(t, tree(t, map[string]string{
		"cpu/cgroup.procs": "", "cpuacct/cgroup.procs": "", "memory/cgroup.procs": "",
		"cpu/a/cpu.stat":                 "nr_periods 10\nnr_throttled 4\nthrottled_time 5000\nnr_bursts 1\nburst_time 2\n",
		"cpu/a/cpu.cfs_quota_us":         "-1\n",
		"cpu/a/cpu.cfs_period_us":        "100000\n",
		"cpuacct/a/cpuacct.usage":        "123456789\n",
		"memory/a/memory.usage_in_bytes": "300000000\n",
		"memory/a/memory.stat":           memoryStatV1,
		"cpu/b/cgroup.procs":             "",
	}))
}

func v2Tree(t testing.TB) *Hierarchy {
	return detect(t, tree(t, map[string]string{
		"cgroup.controllers": "cpuset cpu io memory\n",
		"a/cpu.stat":         "usage_usec 123456\nuser_usec 1\nsystem_usec 2\nnice_usec 0\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5\nnr_bursts 0\n",
		"a/cpu.max":          "50000 100000\n",
		"a/memory.current":   "300000000\n",
		"a/memory.stat":      "anon 1\nfile 2\ninactive_file 400000000\nactive_file 3\n",
		"a/cpu.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"a/memory.pressure":  "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
		"bare/cpu.stat":      "usage_usec 1\nuser_usec 1\nsystem_usec 0\n",
	}))
}

func TestReaders(t *testing.T) {
	type result struct {
		CPU    CPUStat
		Quota  CPUQuota
		Memory MemoryStat
		PSI    PSIStat
	}
	for name, tc := range map[string]struct {
		h    *Hierarchy
		want result
	}{
		"v1": {v1Tree(t), result{
			CPU:    CPUStat{UsageNS: 123456789, Periods: 10, ThrottledPeriods: 4, ThrottledNS: 5000},
			Quota:  CPUQuota{QuotaUS: -1},
			Memory: MemoryStat{Current: 300000000, InactiveFile: 271458304},
		}},
		"v2": {v2Tree(t), result{
			CPU:    CPUStat{UsageNS: 123456000, Periods: 10, ThrottledPeriods: 4, ThrottledNS: 5000},
			Quota:  CPUQuota{QuotaUS: 50000, PeriodUS: 100000},
			Memory: MemoryStat{Current: 300000000, InactiveFile: 400000000},
			PSI:    PSIStat{CPU: Stall{SomeUS: 7}, Memory: Stall{SomeUS: 8, FullUS: 9}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var got result
			var s Scratch
			cpu, err := OpenCPU(tc.h, "/a")
			must(t, err)
			defer cpu.Close()
			must(t, cpu.Stat(&s, &got.CPU))
			must(t, cpu.Quota(&s, &got.Quota))
			memory, err := OpenMemory(tc.h, "/a")
			must(t, err)
			defer memory.Close()
			must(t, memory.Stat(&s, &got.Memory))
			psi, err := OpenPSI(tc.h, "/a")
			if tc.h.Mode() == Unified {
				must(t, err)
				defer psi.Close()
				must(t, psi.Stat(&s, &got.PSI))
			} else if !errors.Is(err, ErrUnsupported) {
				t.Errorf("OpenPSI on v1: %v, want ErrUnsupported", err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			allocs := testing.AllocsPerRun(20, func() {
				_ = cpu.Stat(&s, &got.CPU)
				_ = cpu.Quota(&s, &got.Quota)
				_ = memory.Stat(&s, &got.Memory)
				if psi != nil {
					_ = psi.Stat(&s, &got.PSI)
				}
			})
			if allocs != 0 {
				t.Errorf("reading allocates %v times", allocs)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWorkingSet(t *testing.T) {
	if got := (MemoryStat{Current: 10, InactiveFile: 4}).WorkingSet(); got != 6 {
		t.Errorf("working set = %d, want 6", got)
	}
	if got := (MemoryStat{Current: 3, InactiveFile: 4}).WorkingSet(); got != 0 {
		t.Errorf("working set = %d, want 0", got)
	}
}

func TestWhatIsMissing(t *testing.T) {
	v1, v2 := v1Tree(t), v2Tree(t)
	open := map[string]func(*Hierarchy, string) error{
		"cpu":    func(h *Hierarchy, g string) error { r, err := OpenCPU(h, g); r.Close(); return err },
		"memory": func(h *Hierarchy, g string) error { r, err := OpenMemory(h, g); r.Close(); return err },
		"psi":    func(h *Hierarchy, g string) error { r, err := OpenPSI(h, g); r.Close(); return err },
	}
	for _, tc := range []struct {
		reader, group string
		h             *Hierarchy
		want, not     error
	}{
		{"cpu", "/gone", v1, ErrGone, ErrUnsupported},
		{"cpu", "/gone", v2, ErrGone, ErrUnsupported},
		{"cpu", "/b", v1, ErrGone, ErrUnsupported}, // in the cpu hierarchy only, so far
		{"cpu", "/bare", v2, nil, nil},
		{"memory", "/gone", v1, ErrGone, ErrUnsupported},
		{"memory", "/bare", v2, ErrUnsupported, ErrGone},
		{"psi", "/gone", v2, ErrGone, ErrUnsupported},
		{"psi", "/bare", v2, ErrUnsupported, ErrGone},
		{"psi", "/a", v1, ErrUnsupported, ErrGone},
	} {
		err := open[tc.reader](tc.h, tc.group)
		if !errors.Is(err, tc.want) || tc.not != nil && errors.Is(err, tc.not) {
			t.Errorf("%s of %s on %v: %v, want %v", tc.reader, tc.group, tc.h.Mode(), err, tc.want)
		}
	}

	_, err := OpenNodePSI(t.TempDir())
	if !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrGone) {
		t.Errorf("OpenNodePSI without PSI: %v, want ErrUnsupported", err)
	}
}

func TestQuotaOfAGroupWithoutOne(t *testing.T) {
	r, err := OpenCPU(v2Tree(t), "/bare")
	must(t, err)
	defer r.Close()
	var q CPUQuota
	must(t, r.Quota(&Scratch{}, &q))
	if q.Limited() || !math.IsInf(q.CPUs(), 1) {
		t.Errorf("quota = %v, want none", q)
	}
}

func TestGarbageIsAnErrorThatNamesTheFile(t *testing.T) {
	for name, text := range map[string]string{
		"a/cpu.stat": "usage_usec x\n", "a/cpu.max": "lots\n", "a/memory.current": "", "a/memory.stat": "anon 1\n", "a/memory.pressure": "some total=\n",
	} {
		h := v2Tree(t)
		must(t, os.WriteFile(filepath.Join(h.Root(), name), []byte(text), 0o644))
		var s Scratch
		cpu, err := OpenCPU(h, "/a")
		must(t, err)
		memory, err := OpenMemory(h, "/a")
		must(t, err)
		psi, err := OpenPSI(h, "/a")
		must(t, err)
		before := CPUStat{UsageNS: 1}
		stat := before
		err = errors.Join(cpu.Stat(&s, &stat), cpu.Quota(&s, new(CPUQuota)), memory.Stat(&s, new(MemoryStat)), psi.Stat(&s, new(PSIStat)))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s = %q: %v, want an error that names it", name, text, err)
		}
		if name == "a/cpu.stat" && stat != before {
			t.Errorf("an error changed the result to %+v", stat)
		}
		must(t, errors.Join(cpu.Close(), memory.Close(), psi.Close(), cpu.Close()))
	}
}

func TestScratchGrows(t *testing.T) {
	long := strings.Repeat("workingset_refault_anon 0\n", 1000)
	h := detect(t, tree(t, map[string]string{
		"cgroup.controllers": "cpu memory\n", "a/memory.current": "5\n", "a/memory.stat": long + "inactive_file 4\n",
		"b/memory.current": "5\n", "b/memory.stat": strings.Repeat(long, 60),
	}))
	var s Scratch
	r, err := OpenMemory(h, "/a")
	must(t, err)
	defer r.Close()
	var st MemoryStat
	must(t, r.Stat(&s, &st))
	if st.InactiveFile != 4 {
		t.Errorf("inactive file = %d, want 4", st.InactiveFile)
	}
	endless, err := OpenMemory(h, "/b")
	must(t, err)
	defer endless.Close()
	if err := endless.Stat(&s, &st); err == nil || len(s.buf) > scratchMax {
		t.Errorf("a file of %d bytes: %v and a buffer of %d, want an error", 60*len(long), err, len(s.buf))
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, " 12\n": 12, "18446744073709551615": math.MaxUint64, "007": 7} {
		if got, ok := parseUint([]byte(in)); !ok || got != want {
			t.Errorf("parseUint(%q) = %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", " ", "-1", "+1", "1 2", "18446744073709551616", "99999999999999999999", "1e3", "0x1"} {
		if got, ok := parseUint([]byte(in)); ok {
			t.Errorf("parseUint(%q) = %d, want none", in, got)
		}
	}
	for in, want := range map[string]int64{"-1\n": -1, "9223372036854775807": math.MaxInt64, "-9223372036854775808": math.MinInt64} {
		if got, ok := parseInt([]byte(in)); !ok || got != want {
			t.Errorf("parseInt(%q) = %d, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "-", "--1", "- 1", "9223372036854775808", "-9223372036854775809"} {
		if got, ok := parseInt([]byte(in)); ok {
			t.Errorf("parseInt(%q) = %d, want none", in, got)
		}
	}
}

func TestCPUMax(t *testing.T) {
	for in, want := range map[string]CPUQuota{
		"max 100000\n": {-1, 0}, "50000 100000\n": {50000, 100000}, "1000 1000000": {1000, 1000000},
	} {
		if got, ok := parseCPUMax([]byte(in)); !ok || got != want {
			t.Errorf("parseCPUMax(%q) = %v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "max", "100000", "-1 100000", "5 0", "5 -5", "max 1 2"} {
		if got, ok := parseCPUMax([]byte(in)); ok {
			t.Errorf("parseCPUMax(%q) = %v, want none", in, got)
		}
	}
}

// The fuzz tests compare each parser with a slow one that is easy to believe.

func keyed(text, key string) (uint64, bool) {
	for line := range strings.SplitSeq(text, "\n") {
		k, v, _ := strings.Cut(line, " ")
		if k != key {
			continue
		}
		v = strings.TrimSpace(v)
		n, err := strconv.ParseUint(v, 10, 64)
		return n, err == nil && !strings.HasPrefix(v, "+")
	}
	return 0, false
}

func FuzzParseMemoryStat(f *testing.F) {
	f.Add(memoryStatV1, "total_inactive_file")
	f.Add("inactive_file 4", "inactive_file")
	f.Add("inactive_file", "inactive_file")
	f.Fuzz(func(t *testing.T, text, key string) {
		if strings.ContainsAny(key, " \n") || key == "" {
			t.Skip()
		}
		want, wantOK := keyed(text, key)
		got, ok := parseMemoryStat([]byte(text), key)
		if ok != wantOK || ok && got != want {
			t.Errorf("%q of %q = %d, %v, want %d, %v", key, text, got, ok, want, wantOK)
		}
	})
}

func FuzzParseCPUStat(f *testing.F) {
	f.Add("nr_periods 10\nnr_throttled 4\nthrottled_time 5000\n")
	f.Add("usage_usec 123456\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5\n")
	f.Add("usage_usec 18446744073709551615\n")
	f.Add("nr_periods 1\nnr_periods 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		var v1, v2 CPUStat
		if parseCPUStatV1([]byte(text), &v1) && strings.Count("\n"+text, "\nnr_periods ") == 1 {
			if want, _ := keyed(text, "nr_periods"); v1.Periods != want {
				t.Errorf("v1 periods of %q = %d, want %d", text, v1.Periods, want)
			}
		}
		if parseCPUStatV2([]byte(text), &v2) && strings.Count("\n"+text, "\nusage_usec ") == 1 {
			if want, _ := keyed(text, "usage_usec"); v2.UsageNS != want*1000 {
				t.Errorf("v2 usage of %q = %d, want %d µs", text, v2.UsageNS, want)
			}
		}
	})
}

func FuzzParseCPUMax(f *testing.F) {
	f.Add("max 100000\n")
	f.Add("50000 100000\n")
	f.Fuzz(func(t *testing.T, text string) {
		q, ok := parseCPUMax([]byte(text))
		if !ok {
			return
		}
		first := strings.Fields(text)[0]
		if (q.PeriodUS <= 0) != (first == "max") || q.QuotaUS < -1 || (q.QuotaUS == -1) != (first == "max") {
			t.Errorf("parseCPUMax(%q) = %+v", text, q)
		}
	})
}

func FuzzParsePressure(f *testing.F) {
	f.Add("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n")
	f.Add("full avg10=0.00 avg60=0.00 avg300=0.00 total=9\n")
	f.Add("some total=\n")
	f.Fuzz(func(t *testing.T, text string) {
		st, ok := parsePressure([]byte(text))
		if !ok {
			if st.SomeUS != 0 && strings.Contains("\n"+text, "\nsome ") {
				t.Errorf("%q: %+v together with failure", text, st)
			}
			return
		}
		if strings.Count("\n"+text, "\nsome ") != 1 {
			return
		}
		_, rest, _ := strings.Cut("\n"+text, "\nsome ")
		line, _, _ := strings.Cut(rest, "\n")
		_, total, _ := strings.Cut(line, "total=")
		if want, err := strconv.ParseUint(strings.TrimSpace(total), 10, 64); err != nil || st.SomeUS != want {
			t.Errorf("some of %q = %d, want %d (%v)", text, st.SomeUS, want, err)
		}
	})
}

func FuzzParseNumbers(f *testing.F) {
	f.Add("123\n")
	f.Add("-1\n")
	f.Fuzz(func(t *testing.T, text string) {
		trimmed := strings.TrimSpace(text)
		if got, ok := parseUint([]byte(text)); ok {
			if want, err := strconv.ParseUint(trimmed, 10, 64); err != nil || got != want {
				t.Errorf("parseUint(%q) = %d, want %d (%v)", text, got, want, err)
			}
		} else if _, err := strconv.ParseUint(trimmed, 10, 64); err == nil {
			t.Errorf("parseUint(%q) fails", text)
		}
		if got, ok := parseInt([]byte(text)); ok {
			if want, err := strconv.ParseInt(trimmed, 10, 64); err != nil || got != want {
				t.Errorf("parseInt(%q) = %d, want %d (%v)", text, got, want, err)
			}
		}
	})
}
