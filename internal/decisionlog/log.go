package decisionlog

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// queueLen is enough for the posture of a big node at once: every pod's knobs in one step.
	queueLen = 4096
	// DefaultKeep is how many entries are kept in memory; an entry is about half a kilobyte.
	DefaultKeep = 2000
	// closeTimeout bounds the wait of Close for a disk that does not take what is queued.
	closeTimeout = time.Second
	// complainEvery is the least time between two messages about a disk that takes nothing.
	complainEvery = time.Minute
)

// Options of a Log.
type Options struct {
	Files Files
	Keep  int // entries in memory; 0: DefaultKeep
	// Sinks are called for every new entry on the log's goroutine, in order. They must not block.
	Sinks []func(*Entry)
	Log   *slog.Logger // required
}

// Log takes entries from the loop. All methods may be called from any goroutine.
type Log struct {
	o       Options
	queue   chan Entry
	full    atomic.Uint64 // entries lost because the queue was full
	unsaved atomic.Uint64 // entries that are not in a file because the disk did not take them
	closing sync.Once
	closed  chan struct{}
	done    chan struct{}

	mu      sync.Mutex // never taken by the loop
	ring    []Entry    // oldest first
	next    uint64     // ID of the next entry
	changed chan struct{}

	file     *file     // of the goroutine; nil: none
	complain time.Time // when a full disk may be told of again
}

// Open reads the end of the files that are there, so that the memory goes on where the last daemon left, and starts the goroutine.
// Close ends it. A directory that cannot be used is an error: the operator asked for it.
func Open(o Options) (*Log, error) {
	if o.Keep == 0 {
		o.Keep = DefaultKeep
	}
	l := &Log{o: o, queue: make(chan Entry, queueLen), closed: make(chan struct{}), done: make(chan struct{}), next: 1, changed: make(chan struct{})}
	if o.Files.Dir != "" {
		var err error
		if l.file, err = openFile(o.Files); err != nil {
			return nil, err
		}
		if err := l.file.scan(func(e *Entry) { l.keep(*e) }); err != nil {
			o.Log.Warn("the decision log of before is not shown", "error", err)
		}
		if n := len(l.ring); n > 0 {
			l.next = l.ring[n-1].ID + 1
		}
	}
	go l.run()
	return l, nil
}

// Add hands an entry over and never waits. ID is the log's to set.
func (l *Log) Add(e Entry) {
	select {
	case l.queue <- e:
	default:
		l.full.Add(1)
	}
}

// Lost counts entries that were dropped because the queue was full, and entries that no file has because the disk took nothing.
func (l *Log) Lost() (queueFull, unsaved uint64) { return l.full.Load(), l.unsaved.Load() }

// Close writes what is queued, or gives up after a second if the disk does not take it.
func (l *Log) Close() error {
	l.closing.Do(func() { close(l.closed) })
	select {
	case <-l.done:
	case <-time.After(closeTimeout):
		return errors.New("decision log: the disk does not take what is queued")
	}
	return l.file.close()
}

func (l *Log) run() {
	defer close(l.done)
	for {
		select {
		case e := <-l.queue:
			l.take(e)
		case <-l.closed:
			for {
				select {
				case e := <-l.queue:
					l.take(e)
				default:
					return
				}
			}
		}
	}
}

// take keeps an entry and all that are queued behind it, writes them in one go, and wakes followers.
func (l *Log) take(e Entry) {
	batch := []Entry{e}
	for len(batch) < queueLen {
		select {
		case e := <-l.queue:
			batch = append(batch, e)
			continue
		default:
		}
		break
	}
	l.mu.Lock()
	for i := range batch {
		batch[i].ID = l.next
		l.next++
		l.keep(batch[i])
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()

	if err := l.file.write(batch); err != nil {
		l.unsaved.Add(uint64(len(batch)))
		if now := time.Now(); now.After(l.complain) {
			l.complain = now.Add(complainEvery)
			l.o.Log.Warn("the decision log is kept in memory only", "error", err)
		}
	}
	for i := range batch {
		for _, sink := range l.o.Sinks {
			sink(&batch[i])
		}
	}
}

// keep adds to the ring, and moves it only now and then.
func (l *Log) keep(e Entry) {
	if len(l.ring) >= 2*l.o.Keep {
		l.ring = append(l.ring[:0], l.ring[len(l.ring)-l.o.Keep+1:]...)
	}
	l.ring = append(l.ring, e)
}

// Newest copies out up to n entries, newest first.
func (l *Log) Newest(n int) []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := max(0, len(l.ring)-min(n, l.o.Keep))
	out := slices.Clone(l.ring[from:])
	slices.Reverse(out)
	return out
}

// Select copies out what q selects, oldest first, with the ID of the newest entry there is. It reads the files when the memory does
// not reach back far enough.
func (l *Log) Select(q Query) (out []Entry, last uint64, err error) {
	l.mu.Lock()
	ring := l.ring[max(0, len(l.ring)-l.o.Keep):]
	last = l.next - 1
	first := l.next // oldest ID in memory
	if len(ring) > 0 {
		first = ring[0].ID
	}
	reachesBack := first <= 1 || q.After >= first-1 || (len(ring) > 0 && !q.Since.IsZero() && ring[0].At.Before(q.Since))
	var recent []Entry
	for i := range ring {
		if q.Match(&ring[i]) {
			recent = append(recent, ring[i])
		}
	}
	l.mu.Unlock()

	if !reachesBack && l.file != nil && (q.Limit == 0 || len(recent) < q.Limit) {
		err = l.file.scan(func(e *Entry) {
			if e.ID < first && q.Match(e) {
				out = append(out, *e)
			}
		})
	}
	out = append(out, recent...)
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[len(out)-q.Limit:]
	}
	return out, last, err
}

// Wait returns when there is an entry after the one with this ID, or when ctx is done.
func (l *Log) Wait(ctx context.Context, after uint64) {
	for {
		l.mu.Lock()
		last, changed := l.next-1, l.changed
		l.mu.Unlock()
		if last > after {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
