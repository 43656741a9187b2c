package classes

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
)

func encode(t testing.TB, records ...record) []byte {
	t.Helper()
	var b []byte
	var err error
	for _, r := range records {
		if b, err = journal.Encode(b, r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestHistoryIsReadAsFarAsItGoes(t *testing.T) {
	text := encode(t, record{Op: opBoot, Boot: "b", Dir: "/sys/fs/resctrl", Mounted: true}, record{Op: opMake, Group: "a"}, record{Op: opMake, Group: "b"},
		record{Op: opDrop, Group: "a"}, record{Op: opMake, Group: "c"})
	whole := readHistory(text)
	if whole.boot != "b" || !whole.mounted || !slices.Equal(slices.Sorted(maps.Keys(whole.groups)), []string{"b", "c"}) {
		t.Errorf("history %+v", whole)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	torn := readHistory(text[:len(text)-3])
	if !slices.Equal(slices.Sorted(maps.Keys(torn.groups)), []string{"b"}) {
		t.Errorf("a torn last line: %+v", torn)
	}
	lines[1][20] ^= 1
	if h := readHistory(bytes.Join(lines, nil)); h.boot != "b" || !h.groups["c"] {
		t.Errorf("a damaged line in the middle: %+v", h)
	}
}

func FuzzHistory(f *testing.F) {
	f.Add(encode(f, record{Op: opBoot, Boot: "b"}, record{Op: opMake, Group: "a"}))
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) { readHistory(text) })
}

func TestAnotherBootIsForgotten(t *testing.T) {
	b := newBench(t, full)
	b.apply(b.pod(knob.RoleOffline, "hog", 20))
	b.kill()
	b.fake.Rmdir(Prefix + "offline") // a reboot forgets all groups
	o := b.options()
	o.BootID = "next-boot"
	sum, err := Restore(o)
	if err != nil || sum.OtherBoot != 2 || len(sum.Failed) > 0 {
		t.Errorf("restore after a reboot: %+v, %v", sum, err)
	}
	if _, err := os.Stat(filepath.Join(b.runDir, journalName)); err == nil {
		t.Error("the journal is still there")
	}
}

func TestNoJournalNoWork(t *testing.T) {
	b := newBench(t, full)
	hog := b.pod(knob.RoleOffline, "hog", 20)
	b.apply(hog)
	o := b.options()
	o.RunDir = t.TempDir() // a wrong one: the groups of a living agent must survive that
	if sum, err := Restore(o); err != nil || len(sum.Removed) > 0 {
		t.Errorf("restore without a journal: %+v, %v", sum, err)
	}
	if b.at(20) != "offline" {
		t.Error("a restore with another run directory has removed a living agent's groups")
	}
}

func TestTheJournalIsGoneWhenNothingIsHeld(t *testing.T) {
	b := newBench(t, full)
	b.apply(b.pod(knob.RoleOffline, "hog", 20))
	b.e.RestoreAll()
	if err := b.e.Close(); err != nil {
		t.Fatal(err)
	}
	b.e = nil
	left, err := os.ReadDir(b.runDir)
	if err != nil || len(left) != 1 || left[0].Name() != lockName {
		t.Errorf("left in the run directory: %v, %v", left, err)
	}
}
