package rdt_test

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/pkg/rdt/rdttest"
)

func open(t *testing.T, tree rdt.Tree) *rdt.FS {
	t.Helper()
	f, err := rdt.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// world is what the tests of the kernel's rules need of the machine that they run on: 11 ways in domain 0, MB in percent, 16 and 8
// classes of service, 64 monitoring ids, one thread that may be moved about.
type world struct {
	tree    rdt.Tree
	tid     int
	renames bool // of monitoring groups
}

// testRules is run on the fake and on the real kernel: what holds on one and not on the other is an error of the fake.
func testRules(t *testing.T, w world) {
	f := open(t, w.tree)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Make("be"))
	t.Cleanup(func() {
		if err := f.Remove("be"); err != nil {
			t.Error(err)
		}
	})

	t.Run("schemata", func(t *testing.T) {
		for _, c := range []struct{ text, status string }{
			{"L3:0=5\n", "The mask 5 has non-consecutive 1-bits"},
			{"L3:0=0\n", "Mask out of range"},
			{"L3:0=fff\n", "Mask out of range"},
			{"L3:0=xyz\n", "Non-hex character in the mask xyz"},
			{"L3:0=3;0=7\n", "Duplicate domain 0"},
			{"L3:1=3\n", ""},
			{"L3:0=3", ""},
			{"L2:0=3\n", "Unknown or unsupported resource name 'L2'"},
			{"MB:0=5\n", "MB value 5 out of range [10,100]"},
			{"MB:0=110\n", "MB value 110 out of range [10,100]"},
			{"MB:0=ten\n", "Invalid MB value ten"},
			{"nonsense\n", "Missing ':'"},
			{"MB:0=50\nL3:0=5\n", "The mask 5 has non-consecutive 1-bits"},
		} {
			before, err := f.Schemata("be")
			must(err)
			var why string
			err = w.tree.Write("be/schemata", []byte(c.text))
			raw, _ := w.tree.Read("info/last_cmd_status", make([]byte, 1024))
			if why = strings.TrimSpace(string(raw)); why == "ok" {
				why = ""
			}
			if !errors.Is(err, unix.EINVAL) || why != c.status {
				t.Errorf("%q: %v, %q; want EINVAL, %q", c.text, err, why, c.status)
			}
			after, err := f.Schemata("be")
			must(err)
			if !slices.EqualFunc(before, after, func(a, b rdt.Line) bool { return a.String() == b.String() }) {
				t.Errorf("%q: refused, and yet %v became %v", c.text, before, after)
			}
		}
	})

	t.Run("limits", func(t *testing.T) {
		old, now, err := f.SetLimits("be", []rdt.Line{{"L3", []rdt.Domain{{0, 3}}}, {"MB", []rdt.Domain{{0, 25}}}})
		must(err)
		if v := old.Values("L3"); len(v) != 1 || v[0] != (rdt.Domain{0, 0x7ff}) {
			t.Errorf("L3 was %v", v)
		}
		if l3, mb := now.Values("L3"), now.Values("MB"); !slices.Equal(l3, []rdt.Domain{{0, 3}}) || !slices.Equal(mb, []rdt.Domain{{0, 30}}) {
			t.Errorf("now %v %v; want 3, and 25 percent rounded up to 30", l3, mb)
		}
		_, _, err = f.SetLimits("be", []rdt.Line{{"L3", []rdt.Domain{{0, 5}}}})
		var refused *rdt.Refused
		if !errors.As(err, &refused) || !errors.Is(err, unix.EINVAL) || !strings.Contains(refused.Status, "non-consecutive") {
			t.Errorf("a mask with a gap: %v", err)
		}
		_, _, err = f.SetLimits("be", []rdt.Line{{"L3", []rdt.Domain{{7, 1}}}})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("a domain that is not there: %v", err)
		}
		_, now, err = f.SetLimits("be", []rdt.Line{{"L3", []rdt.Domain{{0, 0x7ff}}}, {"MB", []rdt.Domain{{0, 100}}}})
		if must(err); now.Values("MB")[0].Value != 100 {
			t.Errorf("no limit again: %v", now)
		}
	})

	t.Run("exclusive", func(t *testing.T) {
		must(f.Make("mine"))
		defer f.Remove("mine")
		if err := w.tree.Write("mine/mode", []byte("exclusive\n")); !errors.Is(err, unix.EINVAL) {
			t.Errorf("exclusive with all ways: %v", err)
		}
	})

	t.Run("tasks", func(t *testing.T) {
		must(f.Make("other"))
		defer f.Remove("other")
		must(f.Make(rdt.MonGroup("be", "m")))
		if _, err := f.Move(rdt.MonGroup("be", "m"), w.tid); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Can't move task to different control group") {
			t.Errorf("into the monitoring group of another control group: %v", err)
		}
		for _, group := range []string{"be", rdt.MonGroup("be", "m")} {
			moved, err := f.Move(group, w.tid)
			if must(err); !moved {
				t.Fatal("not moved")
			}
			tids, err := f.Tasks(group, nil)
			if must(err); !slices.Contains(tids, w.tid) {
				t.Errorf("threads of %s: %v", group, tids)
			}
		}
		// A control group's list includes its monitoring groups'.
		if tids, err := f.Tasks("be", nil); err != nil || !slices.Contains(tids, w.tid) {
			t.Errorf("threads of be: %v, %v", tids, err)
		}
		if moved, err := f.Move("be", 1<<22-3); moved || err != nil {
			t.Errorf("a thread that does not exist: %v, %v", moved, err)
		}
		if _, err := f.Move("be", 0); err == nil {
			t.Error("thread 0 would be ourselves")
		}
		err := f.Rename(rdt.MonGroup("be", "m"), rdt.MonGroup("other", "m"))
		switch {
		case w.renames && err != nil:
			t.Errorf("rename: %v", err)
		case !w.renames && !errors.Is(err, fs.ErrPermission):
			t.Errorf("rename on an old kernel: %v", err)
		}
		must(f.Remove("other"))
		must(f.Remove(rdt.MonGroup("be", "m")))
		if _, err := f.Move("", w.tid); err != nil {
			t.Error(err)
		}
		must(f.Remove("was-never-there"))
	})

	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"info", "mon_groups", "mon_data", "", strings.Repeat("x", 256)} {
			if err := f.Make(name); err == nil {
				t.Errorf("made %q", name)
			}
		}
		if err := f.Make("be"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("twice: %v", err)
		}
	})

	t.Run("no more classes", func(t *testing.T) {
		var made []string
		var err error
		for len(made) < 20 {
			name := "g" + string(rune('a'+len(made)))
			if err = f.Make(name); err != nil {
				break
			}
			made = append(made, name)
		}
		if len(made) != 6 || !errors.Is(err, rdt.ErrNoCLOSID) || errors.Is(err, rdt.ErrNoRMID) {
			t.Errorf("made %d beside be and the default group; then %v", len(made), err)
		}
		for _, name := range made {
			must(f.Remove(name))
		}
	})

	t.Run("no more ids", func(t *testing.T) {
		var made []string
		var err error
		for waited := 0; len(made) < 100; {
			name := rdt.MonGroup("be", strings.Repeat("m", 1+len(made)))
			if err = f.Make(name); errors.Is(err, rdt.ErrLimbo) && waited < 600 { // until old lines have faded
				time.Sleep(100 * time.Millisecond)
				waited++
				continue
			}
			if err != nil {
				break
			}
			made = append(made, name)
		}
		if len(made) != 62 || !errors.Is(err, rdt.ErrNoRMID) || errors.Is(err, rdt.ErrNoCLOSID) {
			t.Errorf("made %d; then %v", len(made), err)
		}
		groups, err := f.MonGroups("be")
		if must(err); len(groups) != len(made) {
			t.Errorf("%d groups listed, %d made", len(groups), len(made))
		}
		for _, name := range made {
			must(f.Remove(name))
		}
	})

	t.Run("counters", func(t *testing.T) {
		c, err := f.Counters("be")
		must(err)
		defer c.Close()
		r, err := c.Read(nil)
		if must(err); len(r) != 1 || r[0].Domain != 0 || r[0].State() != rdt.OK {
			t.Errorf("read %+v", r)
		}
		var out [4]rdt.Reading
		if n := testing.AllocsPerRun(20, func() {
			if _, err := c.Read(out[:0]); err != nil {
				t.Error(err)
			}
		}); n != 0 && w.renames {
			t.Logf("%v allocations a reading", n)
		}
	})
}

func TestFakeRules(t *testing.T) {
	for _, old := range []bool{true, false} {
		fake := rdttest.New(rdttest.Machine{Ways: 11, CLOSIDs: 8, RMIDs: 64, MB: rdt.Percent, Old: old})
		fake.Spawn(77)
		testRules(t, world{fake, 77, !old})
	}
}

func TestInfo(t *testing.T) {
	for _, c := range []struct {
		name    string
		machine rdttest.Machine
		check   func(rdt.Info) bool
	}{
		{"all", rdttest.Machine{Ways: 11, CLOSIDs: 8, RMIDs: 64, MB: rdt.Percent, Shareable: 0x600}, func(i rdt.Info) bool {
			l3 := i.Cache("L3")
			return i.CLOSIDs == 8 && l3 != nil && l3.Ways() == 11 && l3.Shareable == 0x600 && !l3.Sparse && i.MB.Unit == rdt.Percent &&
				i.MB.Min == 10 && i.MB.Gran == 10 && i.MB.Max == 100 && i.MB.Throttle == "max" && i.Mon.RMIDs == 64 && i.Mon.Occupancy && i.Mon.Local
		}},
		{"code and data apart", rdttest.Machine{Ways: 20, CDP: true, Sparse: true}, func(i rdt.Info) bool {
			return i.CLOSIDs == 8 && i.Cache("L3") == nil && i.Cache("L3CODE").Sparse && i.Cache("L3DATA").Ways() == 20 && i.MB == nil && i.Mon == nil
		}},
		{"MiB/s", rdttest.Machine{MB: rdt.MiBps}, func(i rdt.Info) bool { return i.MB.Unit == rdt.MiBps && i.MB.Max == rdt.Unlimited }},
		{"AMD", rdttest.Machine{MB: rdt.EighthGBs}, func(i rdt.Info) bool { return i.MB.Unit == rdt.EighthGBs && i.MB.Max == 2048 }},
		{"counters only", rdttest.Machine{RMIDs: 10}, func(i rdt.Info) bool { return i.CLOSIDs == 1 && i.Mon.RMIDs == 10 && len(i.Caches) == 0 }},
	} {
		if f := open(t, rdttest.New(c.machine)); !c.check(f.Info) {
			t.Errorf("%s: %+v %+v %+v", c.name, f.Info, f.Info.MB, f.Info.Mon)
		}
	}
}

func TestNotMounted(t *testing.T) {
	if _, err := rdt.Open(rdt.Dir(t.TempDir())); !errors.Is(err, rdt.ErrNotMounted) {
		t.Errorf("error %v", err)
	}
}

func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	fake := rdttest.New(rdttest.Machine{Ways: 8, Domains: []int{0, 2, 5}, MB: rdt.Percent})
	f := open(t, fake)
	if err := f.Make("g"); err != nil {
		t.Fatal(err)
	}
	var written []string
	fake.Before = func(op, name, text string) error {
		written = append(written, text)
		return nil
	}
	lines := []rdt.Line{{"L3", []rdt.Domain{{0, 0xff}, {2, 0xf}, {5, 0xff}}}, {"MB", []rdt.Domain{{0, 100}, {2, 100}, {5, 41}}}}
	for range 2 {
		if _, _, err := f.SetLimits("g", lines); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"L3:2=f\nMB:5=50\n"}; !slices.Equal(written, want) {
		t.Errorf("wrote %q, want %q", written, want)
	}
}

func TestCounterStates(t *testing.T) {
	fake := rdttest.New(rdttest.Machine{Domains: []int{10, 3}, RMIDs: 8})
	fake.Set("mon_data/mon_L3_03/llc_occupancy", "4194304\n")
	fake.Set("mon_data/mon_L3_03/mbm_total_bytes", "Unavailable\n")
	fake.Set("mon_data/mon_L3_10/mbm_total_bytes", "Error\n")
	fake.Set("mon_data/mon_L3_10/mbm_local_bytes", "Unassigned\n")
	c, err := open(t, fake).Counters("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Read(nil)
	want := []rdt.Reading{{Domain: 3, Occupancy: 4 << 20, TotalState: rdt.Unavailable}, {Domain: 10, TotalState: rdt.Error, LocalState: rdt.Unassigned}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %+v, %v\nwant %+v", got, err, want)
	}
}

func TestParseSchemata(t *testing.T) {
	s, err := rdt.ParseSchemata([]byte("    MB:0= 30;1=100\n    L3:0=7ff;1=3\n"))
	if err != nil || len(s) != 2 || s[0].String() != "MB:0=30;1=100" || s[1].String() != "L3:0=7ff;1=3" {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"L3", "L3:0", "L3:x=1", "L3:0=", "MB:0=ff", "L3:0=1;0=2", "L3:0=1\nL3:0=1\n", ":0=1", "L3:uninitialized", "L3:0=1ffffffffffffffff", "L3:-1=3"} {
		if s, err := rdt.ParseSchemata([]byte(bad)); err == nil {
			t.Errorf("%q: read as %v", bad, s)
		}
	}
}

func TestStatusIsTheLastLine(t *testing.T) {
	fake := rdttest.New(rdttest.Machine{Ways: 4, CLOSIDs: 1, RMIDs: 4})
	f := open(t, fake)
	var err error
	for range 3 {
		err = f.Make("x")
	}
	var refused *rdt.Refused
	if !errors.As(err, &refused) || refused.Status != "Out of CLOSIDs" {
		t.Errorf("error %v", err)
	}
	if want := "resctrl: mkdir x: no space left on device (Out of CLOSIDs)"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func FuzzParseSchemata(f *testing.F) {
	f.Add([]byte("    MB:0= 30;1=100\n    L3:0=7ff;1=3\n"))
	f.Add([]byte("L3:0=;"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := rdt.ParseSchemata(text)
		if err != nil {
			return
		}
		var b strings.Builder
		for i := range s {
			b.WriteString(s[i].String() + "\n")
		}
		again, err := rdt.ParseSchemata([]byte(b.String()))
		if err != nil || !slices.EqualFunc(s, again, func(a, b rdt.Line) bool { return a.String() == b.String() }) {
			t.Fatalf("%q read as %v, written %q, read as %v, %v", text, s, b.String(), again, err)
		}
	})
}

func FuzzParseCounter(f *testing.F) {
	for _, s := range []string{"4194304\n", "Unavailable\n", "Error", "Unassigned", "18446744073709551616", "", "-1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		n, state, err := rdt.ParseCounter(text)
		if (err != nil || state != rdt.OK) && n != 0 {
			t.Fatalf("%q: %d, %v, %v", text, n, state, err)
		}
	})
}

func TestMiBps(t *testing.T) {
	fake := rdttest.New(rdttest.Machine{MB: rdt.MiBps, RoundsMiBps: true})
	f := open(t, fake)
	if err := f.Make("g"); err != nil {
		t.Fatal(err)
	}
	unlimited := []rdt.Line{{"MB", []rdt.Domain{{0, rdt.Unlimited}}}}
	before := fake.Writes
	if _, _, err := f.SetLimits("g", unlimited); err != nil || fake.Writes != before {
		t.Errorf("%v, and %d writes for what is so already", err, fake.Writes-before)
	}
	for want, shows := range map[uint64]uint64{3004: 3010, 3: 10, rdt.Unlimited: rdt.Unlimited - 5} {
		f.SetLimits("g", []rdt.Line{{"MB", []rdt.Domain{{0, 100}}}})
		if _, now, err := f.SetLimits("g", []rdt.Line{{"MB", []rdt.Domain{{0, want}}}}); err != nil || now.Values("MB")[0].Value != shows {
			t.Errorf("%d: %v, %v, want %d", want, now, err, shows)
		}
	}
}
