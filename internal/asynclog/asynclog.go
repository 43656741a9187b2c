// Package asynclog keeps logging from blocking the loop: stderr is a pipe to the runtime, and a pipe that nobody reads blocks
// its writer. Records go through a bounded queue to one goroutine; a full queue drops the record and counts it.
package asynclog

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// queueLen is enough for a burst of decisions on a big node; a record is a few hundred bytes.
const queueLen = 1024

// closeTimeout bounds the wait of Close for a log that nobody reads.
const closeTimeout = time.Second

// Handler is a slog.Handler in front of another one.
type Handler struct {
	next slog.Handler
	q    *queue
}

type queue struct {
	records chan record
	dropped atomic.Uint64
	closing sync.Once
	closed  chan struct{} // by Close: no record comes any more that would have to be written
	done    chan struct{} // by the writer, when it has ended
}

type record struct {
	to slog.Handler
	slog.Record
}

// New starts the goroutine that writes to next. Close ends it.
func New(next slog.Handler) *Handler {
	q := &queue{records: make(chan record, queueLen), closed: make(chan struct{}), done: make(chan struct{})}
	go q.write()
	return &Handler{next: next, q: q}
}

func (q *queue) write() {
	defer close(q.done)
	for {
		select {
		case r := <-q.records:
			r.handle()
		case <-q.closed:
			for {
				select {
				case r := <-q.records:
					r.handle()
				default:
					return
				}
			}
		}
	}
}

func (r *record) handle() {
	// There is nobody left to tell that the log cannot be written.
	_ = r.to.Handle(context.Background(), r.Record)
}

// Enabled asks the handler behind.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// Handle queues the record and never blocks.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.q.records <- record{h.next, r.Clone()}:
	default:
		h.q.dropped.Add(1)
	}
	return nil
}

// WithAttrs and WithGroup share the queue.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{next: h.next.WithAttrs(attrs), q: h.q}
}

// WithGroup shares the queue.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{next: h.next.WithGroup(name), q: h.q}
}

// Dropped counts the records that found the queue full.
func (h *Handler) Dropped() uint64 { return h.q.dropped.Load() }

// Close writes what is queued, or gives up after a second if it cannot be written. What is logged afterwards is lost.
func (h *Handler) Close() {
	h.q.closing.Do(func() { close(h.q.closed) })
	select {
	case <-h.q.done:
	case <-time.After(closeTimeout):
	}
}
