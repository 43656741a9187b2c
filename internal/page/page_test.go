package page

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/server"
)

func itoa(n int) string { return strconv.Itoa(n) }

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// frame is a decoded event of the stream.
type frame struct {
	At       int64
	Sections map[string]json.RawMessage
	Rows     map[string]json.RawMessage
	Notes    []json.RawMessage
}

func decode(t *testing.T, text []byte) (kind string, f frame) {
	t.Helper()
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "event: ") || !strings.HasPrefix(lines[1], "data: ") {
		t.Fatalf("no event: %q", text)
	}
	if err := json.Unmarshal([]byte(lines[1][len("data: "):]), &f); err != nil {
		t.Fatalf("%v in %s", err, lines[1])
	}
	return lines[0][len("event: "):], f
}

// What a reader puts together from deltas is what a full frame says.
func TestDeltasAddUpToTheFullFrame(t *testing.T) {
	n := busy(4, 6, true)
	h := &hub{source: n, log: discard(), every: time.Hour, readers: map[*reader]bool{}}
	var f framer
	_, full, err := h.frame(&f)
	if err != nil {
		t.Fatal(err)
	}
	_, sum := decode(t, full())
	size := len(full())
	for i := range 20 {
		if i == 7 {
			n.offline++ // a pod comes: rows move
		}
		n.note(n.notes[0])
		delta, full, err := h.frame(&f)
		if err != nil {
			t.Fatal(err)
		}
		if len(delta) > size/2 && i != 7 {
			t.Errorf("step %d: a delta of %d bytes beside a full frame of %d", i, len(delta), size)
		}
		_, d := decode(t, delta)
		sum.At = d.At
		for k, v := range d.Sections {
			sum.Sections[k] = v
		}
		for k, v := range d.Rows {
			sum.Rows[k] = v
		}
		sum.Notes = append(sum.Notes, d.Notes...)
		if _, want := decode(t, full()); !cmp.Equal(want, sum) {
			t.Fatalf("step %d: %s", i, cmp.Diff(want, sum))
		}
	}
}

// A reader that takes nothing gets a full frame when it is back, and nobody waits for it meanwhile.
func TestSlowReader(t *testing.T) {
	n := busy(1, 1, false)
	h := &hub{source: n, log: discard(), every: time.Millisecond, readers: map[*reader]bool{}}
	slow, err := h.join()
	if err != nil {
		t.Fatal(err)
	}
	quick, err := h.join()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		kind, _ := decode(t, <-quick.frames)
		if (i == 0) != (kind == "full") {
			t.Fatalf("frame %d of a quick reader is %s", i, kind)
		}
	}
	h.leave(quick)
	var kinds []string
	for range queued + 3 {
		kind, _ := decode(t, <-slow.frames)
		kinds = append(kinds, kind)
	}
	h.leave(slow)
	if got := strings.Join(kinds, " "); !strings.HasPrefix(got, "full delta delta delta full delta") {
		t.Errorf("a slow reader gets %s", got)
	}
}

func TestNobodyLooksNobodyAsks(t *testing.T) {
	n := busy(1, 1, false)
	h := &hub{source: n, log: discard(), every: time.Millisecond, readers: map[*reader]bool{}}
	r, err := h.join()
	if err != nil {
		t.Fatal(err)
	}
	<-r.frames
	h.leave(r)
	for running := true; running; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		running = h.running
		h.mu.Unlock()
	}
	n.mu.Lock()
	asked := n.asked
	n.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.asked != asked {
		t.Error("the loop is asked although nobody looks")
	}
}

func TestReadersAreBounded(t *testing.T) {
	s := serve(t, busy(1, 1, false))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range maxReaders + 1 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/v1/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if i == maxReaders {
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
				t.Errorf("one too many: %d", resp.StatusCode)
			}
			return
		}
		if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || line != "event: full\n" {
			t.Fatalf("reader %d: %q %v", i, line, err)
		}
	}
}

func TestHungLoopIsTold(t *testing.T) {
	n := busy(1, 1, false)
	n.hang(true)
	h := &hub{source: n, log: discard(), every: time.Millisecond, readers: map[*reader]bool{}}
	r, err := h.join()
	if err != nil {
		t.Fatal(err)
	}
	defer h.leave(r)
	if got := string(<-r.frames); got != "event: stale\ndata: \"the loop does not answer: no answer\"\n\n" {
		t.Errorf("%q", got)
	}
	n.hang(false)
	for kind := "stale"; kind != "full"; {
		first, _, _ := strings.Cut(string(<-r.frames), "\n")
		if kind = strings.TrimPrefix(first, "event: "); kind == "delta" {
			t.Fatal("a delta before the first full frame")
		}
	}
}

// The page asks nobody else for anything, and works under any path: every address in it is relative.
func TestNothingFromElsewhere(t *testing.T) {
	p := New(busy(1, 1, false), discard())
	for target, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/assets/page.js": "text/javascript; charset=utf-8", "/assets/page.css": "text/css; charset=utf-8", "/assets/icon.svg": "image/svg+xml",
	} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		body := w.Body.String()
		if w.Code != 200 || w.Header().Get("Content-Type") != kind {
			t.Errorf("%s: %d %s", target, w.Code, w.Header().Get("Content-Type"))
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", target, csp)
		}
		for _, bad := range []string{"https://", `src="/`, `href="/`, `"/api`, "style=", "onclick="} {
			if strings.Contains(body, bad) {
				t.Errorf("%s holds %s", target, bad)
			}
		}
	}
}

// BenchmarkFrame300 is what a frame costs beside the loop when every container of 300 has moved.
func BenchmarkFrame300(b *testing.B) {
	n := busy(100, 200, true)
	h := &hub{source: n, log: discard()}
	var f framer
	_, full, err := h.frame(&f)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(full())), "bytes/full")
	states := make([]*server.State, 16)
	for i := range states {
		if states[i], err = n.State(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	var bytes int
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v, err := newView(states[i%len(states)], f.last)
		if err != nil {
			b.Fatal(err)
		}
		bytes += len(f.delta(v))
	}
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/delta")
	b.ReportMetric(float64(len(full())), "bytes/full")
}
