package cgroup_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

func TestWeightToShares(t *testing.T) {
	for weight, want := range map[int64]int64{1: 2, 100: 1024, 10000: 262144} {
		if got := cgroup.WeightToShares(weight); got != want {
			t.Errorf("weight %d is %d shares, want %d", weight, got, want)
		}
	}
	before := int64(0)
	for weight := int64(1); weight <= 10000; weight++ {
		shares := cgroup.WeightToShares(weight)
		if back := int64(cgroup2.ConvertCPUSharesToCgroupV2Value(uint64(shares))); back != weight || shares <= before {
			t.Fatalf("weight %d is %d shares, which are weight %d", weight, shares, back)
		}
		before = shares
	}
}

func TestFormatParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s cgroup.Setting
		var v cgroup.Value
		switch s = cgroup.Setting(rapid.IntRange(int(cgroup.Idle), int(cgroup.Freeze)).Draw(t, "setting")); s {
		case cgroup.CPUs:
			v.CPUs = cpuset.Of(rapid.SliceOf(rapid.IntRange(0, 200)).Draw(t, "cpus")...)
		case cgroup.Quota:
			v.N, v.Period = rapid.Int64Range(-1, 1<<40).Draw(t, "quota"), rapid.Int64Range(1000, 1000000).Draw(t, "period")
		default:
			v.N = rapid.Int64Min(0).Draw(t, "n")
		}
		text := s.Format(v)
		for _, end := range []string{"", "\n"} {
			if back, err := s.ParseValue(text + end); err != nil || back != v {
				t.Fatalf("%q came back as %+v, %v", text+end, back, err)
			}
		}
	})
}

func FuzzParseValue(f *testing.F) {
	for s, text := range []string{"1\n", "100", "0-3,5", "max 100000", "0", "1"} {
		f.Add(uint8(s), text)
	}
	f.Fuzz(func(t *testing.T, n uint8, text string) {
		s := cgroup.Setting(n % 6)
		v, err := s.ParseValue(text)
		if err != nil {
			return
		}
		if again, err := s.ParseValue(s.Format(v)); err != nil || again != v && v.N >= 0 {
			t.Fatalf("%q is %+v, and written again %+v, %v", text, v, again, err)
		}
	})
}

// Every setting goes from any of its values to any other and reads back as written, on both versions.
func TestKnob(t *testing.T) {
	values := map[cgroup.Setting][]cgroup.Value{
		cgroup.Idle:   {{N: 1}, {N: 0}},
		cgroup.Weight: {{N: 2}, {N: 10000}, {N: 100}},
		cgroup.CPUs:   {{CPUs: cpuset.Of(0)}, {CPUs: cpuset.Of(0, 1)}, {CPUs: cpuset.Of(1)}, {}},
		cgroup.Quota:  {{N: 50000, Period: 100000}, {N: 5000, Period: 10000}, {N: -1, Period: 20000}, {N: 1000, Period: 1000000}, {N: -1, Period: 100000}},
		cgroup.Burst:  {{N: 1000}, {N: 0}},
		cgroup.Freeze: {{N: 1}, {N: 0}},
	}
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Unified} {
		w := cgrouptest.NewFake(t, mode)
		if err := w.Mkdir("/g"); err != nil {
			t.Fatal(err)
		}
		for s, list := range values {
			t.Run(fmt.Sprint(mode, " ", s.Controller(), " ", s), func(t *testing.T) {
				k := openKnob(t, w, s)
				for _, a := range list {
					for _, b := range list {
						for _, to := range []cgroup.Value{a, b} {
							from := readKnob(t, k)
							if err := k.Write(from, to); err != nil {
								t.Fatalf("from %s to %s: %v", s.Format(from), s.Format(to), err)
							}
							if got := readKnob(t, k); got != to {
								t.Fatalf("wrote %s, reads %s", s.Format(to), s.Format(got))
							}
						}
					}
				}
			})
		}
	}
}

// The weight of an idle group is none, whatever its file shows.
func TestKnobWeightOfIdleGroup(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Unified} {
		w := cgrouptest.NewFake(t, mode)
		if err := w.Mkdir("/g"); err != nil {
			t.Fatal(err)
		}
		k := openKnob(t, w, cgroup.Weight)
		if err := w.Write("/g", "cpu.idle", "1"); err != nil {
			t.Fatal(err)
		}
		if got := readKnob(t, k); got.N != 0 {
			t.Errorf("%v: an idle group has weight %d", mode, got.N)
		}
	}
}

func TestOpenKnobErrors(t *testing.T) {
	w := cgrouptest.NewFake(t, cgroup.Unified, "cpu.idle")
	if err := w.Mkdir("/g"); err != nil {
		t.Fatal(err)
	}
	dir, _ := w.Hierarchy().Dir(cgroup.CPU, "/g")
	g, err := w.FS().OpenGroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cgroup.OpenKnob(g, cgroup.Idle, true); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, cgroup.ErrGone) {
		t.Errorf("a knob that the kernel lacks: %v", err)
	}
	if k, err := cgroup.OpenKnob(g, cgroup.Weight, true); err != nil || readKnob(t, k).N != 100 {
		t.Errorf("weight without cpu.idle: %v", err)
	}
	if err := w.Rmdir("/g"); err != nil {
		t.Fatal(err)
	}
	if _, err := cgroup.OpenKnob(g, cgroup.Weight, true); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("a knob of a removed group: %v", err)
	}
}

func openKnob(t *testing.T, w cgrouptest.World, s cgroup.Setting) *cgroup.Knob {
	t.Helper()
	dir, _ := w.Hierarchy().Dir(s.Controller(), "/g")
	g, err := w.FS().OpenGroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	k, err := cgroup.OpenKnob(g, s, w.Hierarchy().V2(s.Controller()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func readKnob(t *testing.T, k *cgroup.Knob) cgroup.Value {
	t.Helper()
	raw, err := k.Read(make([]byte, 256))
	if err != nil {
		t.Fatal(err)
	}
	v, err := k.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
