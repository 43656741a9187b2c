package decisionlog

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, o Options) *Log {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// add hands n entries over and waits until all of them are kept.
func add(t *testing.T, l *Log, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		l.Add(Entry{At: noon.Add(time.Duration(i) * time.Second), Kind: KindDecision, Pod: fmt.Sprintf("jobs/p%d", i%3), Rule: "event-cut",
			Inputs: &Inputs{WaitSeconds: 0.02}})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l.Wait(ctx, uint64(from+n-1))
	if ctx.Err() != nil {
		t.Fatal("the log does not take entries")
	}
}

func ids(entries []Entry) string {
	var b strings.Builder
	for i := range entries {
		fmt.Fprintf(&b, "%d ", entries[i].ID)
	}
	return strings.TrimSpace(b.String())
}

func TestNewestAndSelect(t *testing.T) {
	l := open(t, Options{Keep: 10})
	add(t, l, 0, 35)
	if got := ids(l.Newest(3)); got != "35 34 33" {
		t.Errorf("newest: %s", got)
	}
	if n := len(l.Newest(100)); n != 10 {
		t.Errorf("%d are kept, want 10", n)
	}
	tests := []struct {
		q    Query
		want string
	}{
		{Query{After: 32}, "33 34 35"},
		{Query{Limit: 2}, "34 35"},
		{Query{Pod: "p1"}, "26 29 32 35"},
		{Query{Since: noon.Add(33 * time.Second)}, "34 35"},
		{Query{Kind: KindWrite}, ""},
		{Query{Rule: "event-cut", Limit: 1}, "35"},
	}
	for _, tt := range tests {
		got, last, err := l.Select(tt.q)
		if err != nil || ids(got) != tt.want || last != 35 {
			t.Errorf("%+v: %s, last %d, %v; want %s", tt.q, ids(got), last, err, tt.want)
		}
	}
}

func TestFilesReachFurtherThanMemory(t *testing.T) {
	dir := t.TempDir()
	o := Options{Keep: 5, Files: Files{Dir: dir, MaxBytes: 1 << 20, Count: 2}}
	l := open(t, o)
	add(t, l, 0, 30)
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // entries are in memory before they are in a file
		got, _, err := l.Select(Query{Pod: "p0"})
		if ids(got) == "1 4 7 10 13 16 19 22 25 28" {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("%s %v", ids(got), err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// The next daemon goes on where this one ended, also after a torn line.
	f, err := os.OpenFile(filepath.Join(dir, "decisions.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":99,"at":"2026-`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	l = open(t, o)
	add(t, l, 30, 2)
	if got, last, err := l.Select(Query{After: 28}); err != nil || last != 32 || ids(got) != "29 30 31 32" {
		t.Errorf("after a restart: %s, last %d, %v", ids(got), last, err)
	}
	if got, _, _ := l.Select(Query{}); len(got) != 32 || got[0].Inputs == nil {
		t.Errorf("%d entries, want all 32", len(got))
	}
}

func TestFilesAreBounded(t *testing.T) {
	dir := t.TempDir()
	const maxBytes = 2000
	l := open(t, Options{Keep: 5, Files: Files{Dir: dir, MaxBytes: maxBytes, Count: 3}})
	add(t, l, 0, 200)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 3 {
		t.Fatalf("%v %v", names, err)
	}
	for _, n := range names {
		info, err := os.Stat(n)
		if err != nil || info.Size() > maxBytes || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", n, info, err)
		}
	}
	// What is there is the newest, without a gap.
	var got []Entry
	files := Files{Dir: dir, MaxBytes: maxBytes, Count: 3}
	if err := files.scan(func(e *Entry) { got = append(got, *e) }); err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if want := uint64(200 - len(got) + 1 + i); got[i].ID != want {
			t.Fatalf("entry %d has ID %d, want %d", i, got[i].ID, want)
		}
	}
	if len(got) < 10 {
		t.Errorf("only %d entries are left", len(got))
	}
}

// The loop must never wait, whatever the disk and the sinks do.
func TestAddNeverBlocks(t *testing.T) {
	release := make(chan struct{})
	l := open(t, Options{Sinks: []func(*Entry){func(*Entry) { <-release }}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 * queueLen {
			l.Add(Entry{})
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("Add waits")
	}
	if full, _ := l.Lost(); full == 0 {
		t.Error("nothing was dropped")
	}
	close(release)
}

// A disk that takes nothing is told of; the memory goes on.
func TestFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("needs /dev/full: ", err)
	}
	dir := t.TempDir()
	if err := os.Symlink("/dev/full", filepath.Join(dir, "decisions.jsonl")); err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Files: Files{Dir: dir, MaxBytes: 1 << 20, Count: 2}})
	add(t, l, 0, 3)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, unsaved := l.Lost(); unsaved != 3 {
		t.Errorf("%d entries are told to be unsaved, want 3", unsaved)
	}
	if n := len(l.Newest(10)); n != 3 {
		t.Errorf("%d entries in memory", n)
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []Files{{Dir: name, MaxBytes: 1, Count: 1}, {Dir: t.TempDir(), Count: 1}, {Dir: t.TempDir(), MaxBytes: 1}} {
		if l, err := Open(Options{Files: f, Log: slog.New(slog.DiscardHandler)}); err == nil {
			_ = l.Close()
			t.Errorf("%+v: no error", f)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	l, err := Open(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	e := Entry{Kind: KindWrite, Pod: "jobs/batch", Knob: "cpu.idle", Old: "0", New: "1"}
	b.ReportAllocs()
	for b.Loop() {
		l.Add(e)
	}
}
