package page

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
)

const (
	// frameEvery is the time between two frames. Waits are summed up over a second.
	frameEvery = time.Second
	// answerTimeout bounds how long a frame waits for the loop.
	answerTimeout = 2 * time.Second
	// maxReaders bounds the pages that are open at once.
	maxReaders = 16
	// queued is how many frames may wait for a reader; one that is slower begins anew with a full frame.
	queued = 4
)

// Source is where the page's figures come from; see server.Provider.
type Source interface {
	State(ctx context.Context) (*server.State, error)
	// Blame is server.Metrics.Blame alone.
	Blame(ctx context.Context) ([]server.BlameMetrics, error)
}

// hub asks the loop once a second while anybody looks, and hands the same frame to all readers. It never waits for one of them.
type hub struct {
	source Source
	log    *slog.Logger
	every  time.Duration

	mu      sync.Mutex
	readers map[*reader]bool
	running bool
	last    func() []byte // the full frame that belongs to the last delta; nil: none was sent since run began
}

// reader is an open page.
type reader struct {
	frames chan []byte // complete events of the stream
	behind bool        // the next frame must be a full one
}

// join adds a reader, or says that there are too many.
func (h *hub) join() (*reader, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.readers) >= maxReaders {
		return nil, fmt.Errorf("%d pages are open already", maxReaders)
	}
	r := &reader{frames: make(chan []byte, queued), behind: true}
	h.readers[r] = true
	switch {
	case !h.running:
		h.running = true
		go h.run()
	case h.last != nil: // it need not wait for the next
		r.frames <- h.last()
		r.behind = false
	}
	return r, nil
}

func (h *hub) leave(r *reader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
}

// run makes frames until nobody reads them.
func (h *hub) run() {
	t := time.NewTicker(h.every)
	defer t.Stop()
	var f framer
	for {
		delta, full, err := h.frame(&f)
		if err != nil {
			text, _ := json.Marshal(err.Error()) // a string can always be encoded
			delta = event("stale", text)
		}
		if !h.send(delta, full) {
			return
		}
		<-t.C
	}
}

// send hands a frame out, and reports whether there is anybody left. Without full it is no frame but a word, for everybody.
func (h *hub) send(delta []byte, full func() []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.readers) == 0 {
		h.running, h.last = false, nil
		return false
	}
	if full != nil {
		h.last = full
	}
	var whole []byte
	for r := range h.readers {
		frame := delta
		if r.behind && full != nil {
			if whole == nil {
				whole = full()
			}
			frame = whole
		}
		select {
		case r.frames <- frame:
			r.behind = r.behind && full == nil
		default:
			r.behind = true
		}
	}
	return true
}

// frame asks the loop.
func (h *hub) frame(f *framer) (delta []byte, full func() []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	s, err := h.source.State(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("the loop does not answer: %w", err)
	}
	v, err := newView(s, f.last)
	if err != nil {
		h.log.Error("page", "error", err)
		return nil, nil, err
	}
	if f.readings.due(s.At) {
		blame, err := h.source.Blame(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("the loop does not answer: %w", err)
		}
		f.readings.add(s.At, blame)
		if f.matrix, err = json.Marshal(f.readings.matrix()); err != nil {
			return nil, nil, err
		}
	}
	v.sections["matrix"] = f.matrix
	delta = f.delta(v)
	return delta, func() []byte { return encode("full", v, v.sections, allRows(v), v.notes) }, nil
}

// framer remembers the last frame, to send differences only.
type framer struct {
	last     *view
	readings readings
	matrix   []byte
}

// delta encodes what changed since the last view.
func (f *framer) delta(v *view) []byte {
	was := f.last
	f.last = v
	if was == nil {
		return encode("delta", v, v.sections, allRows(v), v.notes)
	}
	changed := map[string][]byte{}
	for name, text := range v.sections {
		if string(was.sections[name]) != string(text) {
			changed[name] = text
		}
	}
	var rows []int
	if changed["pods"] != nil || len(was.rows) != len(v.rows) {
		rows = allRows(v)
	} else {
		for i := range v.rows {
			if v.rows[i] != was.rows[i] {
				rows = append(rows, i)
			}
		}
	}
	notes := v.notes
	if n := len(was.notes); n > 0 {
		last := was.notes[n-1].id
		for len(notes) > 0 && notes[0].id <= last {
			notes = notes[1:]
		}
	}
	return encode("delta", v, changed, rows, notes)
}

func allRows(v *view) []int {
	out := make([]int, len(v.rows))
	for i := range out {
		out[i] = i
	}
	return out
}

// encode writes {"at":ms,"sections":{...},"rows":{"index":[...]},"notes":[...]} as an event of the stream.
func encode(kind string, v *view, sections map[string][]byte, rows []int, notes []note) []byte {
	b := append(make([]byte, 0, 4096), `{"at":`...)
	b = strconv.AppendInt(b, v.at.UnixMilli(), 10)
	b = append(b, `,"sections":{`...)
	comma := func(i int) {
		if i > 0 {
			b = append(b, ',')
		}
	}
	n := 0
	for name, text := range sections {
		comma(n)
		n++
		b = append(append(append(append(b, '"'), name...), `":`...), text...)
	}
	b = append(b, `},"rows":{`...)
	for i, at := range rows {
		comma(i)
		b = strconv.AppendInt(append(b, '"'), int64(at), 10)
		b = append(append(b, `":`...), v.rows[at]...)
	}
	b = append(b, `},"notes":[`...)
	for i := range notes {
		comma(i)
		b = append(b, notes[i].json...)
	}
	return event(kind, append(b, "]}"...))
}

// event is one event of the stream. JSON as we encode it has no line breaks.
func event(kind string, data []byte) []byte {
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", kind, data)
}
