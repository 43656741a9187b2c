package asynclog

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
)

func TestWritesInOrderWithAttributes(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.NewTextHandler(&out, nil))
	log := slog.New(h).With("part", "loop")
	log.Info("first", "n", 1)
	log.WithGroup("g").Info("second", "n", 2)
	log.Debug("below the level")
	h.Close()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "msg=first part=loop n=1") || !strings.Contains(lines[1], "msg=second part=loop g.n=2") {
		t.Fatalf("log is\n%s", out.String())
	}
}

// stuck is a handler whose output nobody reads.
type stuck struct {
	slog.Handler
	release chan struct{}
}

func (s stuck) Handle(context.Context, slog.Record) error { <-s.release; return nil }

func TestFullQueueDropsInsteadOfBlocking(t *testing.T) {
	s := stuck{slog.NewTextHandler(new(bytes.Buffer), nil), make(chan struct{})}
	h := New(s)
	log := slog.New(h)
	const records = queueLen + 100
	for range records {
		log.Info("x")
	}
	// One record may be in the writer's hands, the queue holds queueLen, the rest is dropped.
	if d := h.Dropped(); d < records-queueLen-1 || d > records-queueLen {
		t.Fatalf("dropped %d of %d records with a queue of %d", d, records, queueLen)
	}
	close(s.release)
	h.Close()
}

func TestCloseGivesUpOnALogThatNobodyReads(t *testing.T) {
	s := stuck{slog.NewTextHandler(new(bytes.Buffer), nil), make(chan struct{})}
	h := New(s)
	log := slog.New(h)
	log.Info("stuck")
	h.Close()
	log.Info("late") // as a request that outlives the server may; it must not panic
	close(s.release)
	h.Close()
}
