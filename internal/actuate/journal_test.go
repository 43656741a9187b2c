package actuate

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func encode(t *testing.T, records ...record) []byte {
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

func hold(group, original, now string) record {
	return record{Op: opHold, Group: group, Knob: "cpu.weight", ID: 7, Original: original, Now: now}
}

func set(group string, to ...string) record {
	return record{Op: opSet, Group: group, Knob: "cpu.weight", To: to}
}

func TestHistory(t *testing.T) {
	boot := record{Op: opBoot, Boot: "b", Root: "/sys/fs/cgroup"}
	drop := record{Op: opDrop, Group: "/a", Knob: "cpu.weight"}
	for _, c := range []struct {
		name    string
		records []record
		want    []string // group original now maybe
	}{
		{"nothing", nil, nil},
		{"held", []record{boot, hold("/a", "100", "100")}, []string{"/a 100 100 []"}},
		{"under way", []record{boot, hold("/a", "100", "100"), set("/a", "5", "6")}, []string{"/a 100 6 [100 5]"}},
		{"done", []record{boot, hold("/a", "100", "100"), set("/a", "5", "6"), {Op: opDone}}, []string{"/a 100 6 []"}},
		{"failed", []record{boot, hold("/a", "100", "100"), set("/a", "6"), {Op: opNow, Group: "/a", Knob: "cpu.weight", Now: "100"}, {Op: opDone}}, []string{"/a 100 100 []"}},
		{"two killed one after the other", []record{hold("/a", "100", "100"), set("/a", "5"), hold("/a", "100", "5"), set("/a", "6")}, []string{"/a 100 6 [5]"}},
		{"dropped", []record{boot, hold("/a", "100", "100"), set("/a", "6"), {Op: opDone}, drop}, nil},
		{"dropped and held again", []record{hold("/a", "1", "1"), hold("/b", "2", "2"), drop, hold("/a", "3", "3")}, []string{"/a 3 3 []", "/b 2 2 []"}},
		{"new original", []record{hold("/a", "1", "1"), set("/a", "6"), {Op: opDone}, hold("/a", "9", "9")}, []string{"/a 9 9 []"}},
		{"unknown knob", []record{{Op: opHold, Group: "/a", Knob: "memory.swap"}, hold("/b", "2", "2")}, []string{"/b 2 2 []"}},
		{"unknown operation", []record{{Op: "dance"}, hold("/b", "2", "2")}, []string{"/b 2 2 []"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, tell(readHistory(encode(t, c.records...)))); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
		})
	}
}

func tell(h history) []string {
	var out []string
	for _, t := range h.order {
		r := h.held[t]
		out = append(out, fmt.Sprint(t.Cgroup, " ", r.Original, " ", r.Now, " ", r.Maybe))
	}
	return out
}

// Wherever the journal is torn, what came before counts.
func TestTornJournal(t *testing.T) {
	records := []record{hold("/a", "1", "1"), hold("/b", "2", "2"), set("/a", "5"), {Op: opDone}, hold("/c", "3", "3")}
	whole := encode(t, records...)
	for cut := range len(whole) + 1 {
		lines := bytes.Count(whole[:cut], []byte("\n"))
		if cut < len(whole) && whole[cut] == '\n' {
			lines++ // only the newline is missing
		}
		want := tell(readHistory(encode(t, records[:lines]...)))
		got := readHistory(whole[:cut])
		if diff := cmp.Diff(want, tell(got)); diff != "" || got.damaged > 0 {
			t.Fatalf("torn after %d bytes: %d damaged lines (-want +got):\n%s", cut, got.damaged, diff)
		}
	}
}

func TestDamagedJournal(t *testing.T) {
	text := encode(t, hold("/a", "1", "1"), hold("/b", "2", "2"))
	bad := bytes.Replace(text, []byte(`"/a"`), []byte(`"/x"`), 1)
	if h := readHistory(bad); h.damaged != 1 || len(h.held) != 1 {
		t.Errorf("a changed line: %d damaged, %v", h.damaged, tell(h))
	}
}

func FuzzHistory(f *testing.F) {
	text, _ := journal.Encode(nil, hold("/a", "1", "1"))
	more, _ := journal.Encode(text, set("/a", "2"))
	f.Add(text)
	f.Add(more)
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		h := readHistory(text)
		if len(h.order) != len(h.held) {
			t.Errorf("%d in order, %d held", len(h.order), len(h.held))
		}
		for _, target := range h.order {
			if h.held[target] == nil {
				t.Errorf("%v is in order but not held", target)
			}
		}
	})
}

// The journal does not grow without bound, and a compacted one says the same.
func TestCompaction(t *testing.T) {
	b := newBench(t, cgrouptest.NewFake(t, cgroup.Unified))
	b.mkdir("pod")
	before := cgrouptest.Snapshot(b.w)
	name := filepath.Join(b.runDir, journalName)
	var most int64
	for i := range 4000 {
		b.e.Apply([]knob.Want{b.want("pod", knob.CPUQuota, quota(int64(20000+i), 100000))}, b.policy)
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, info.Size())
	}
	if most > 2*compactAt {
		t.Errorf("the journal grew to %d bytes", most)
	}
	text, _ := os.ReadFile(name)
	if lines := strings.Count(string(text), "\n"); lines > 3900 {
		t.Errorf("never compacted: %d lines", lines)
	}
	held := b.held()
	b.kill()
	b.open()
	if diff := cmp.Diff(held, b.held()); diff != "" {
		t.Errorf("held after compaction (-want +got):\n%s", diff)
	}
	b.e.RestoreAll()
	b.unchanged(before)
}
