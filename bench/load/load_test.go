package load

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	MaybeRun()
	os.Exit(m.Run())
}

func start(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func serveHTTP(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestArrivalsFollowTheRate(t *testing.T) {
	null, addr, err := StartNull(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	c := start(t, Options{Addr: addr, Connections: 8, Rate: 2000, Seed: 1})
	for _, rate := range []float64{2000, 500} {
		if err := c.SetRate(rate); err != nil {
			t.Fatal(err)
		}
		w, err := c.Measure(100*time.Millisecond, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		// Five standard deviations of a Poisson count.
		want := rate * w.Seconds
		if diff := math.Abs(float64(w.Offered) - want); diff > 5*math.Sqrt(want) {
			t.Errorf("%d arrivals in %.3f s, want about %.0f", w.Offered, w.Seconds, want)
		}
		if w.Completed+w.Errors+w.Unfinished != w.Offered || w.Errors > 0 {
			t.Errorf("%+v does not add up", w)
		}
		if w.P50 <= 0 || w.P50 > w.P99 || w.P99 > w.Max {
			t.Errorf("quantiles out of order: %+v", w)
		}
	}
}

func TestStalledServerMakesEveryDueRequestLate(t *testing.T) {
	const stall = 400 * time.Millisecond
	var stalled atomic.Bool
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if stalled.Load() {
			time.Sleep(stall)
		}
		_, _ = io.WriteString(w, "ok")
	})
	// One connection: what is due during a stall has to wait for it.
	c := start(t, Options{Addr: addr, Connections: 1, Rate: 500, Seed: 2})
	time.Sleep(50 * time.Millisecond)
	if _, err := c.Collect(); err != nil {
		t.Fatal(err)
	}
	stalled.Store(true)
	time.Sleep(stall / 2)
	stalled.Store(false)
	time.Sleep(stall)
	w, err := c.Collect()
	if err != nil {
		t.Fatal(err)
	}
	// A generator that waits for the answer before it thinks of the next request would show one slow request, far above p50.
	if w.Queued < w.Offered/4 || w.P50 < 20e3 {
		t.Errorf("a stall of %v in a window of %.2f s shows as p50 = %.0f us, %d of %d queued", stall, w.Seconds, w.P50, w.Queued, w.Offered)
	}
}

func TestWrongAnswersAreErrors(t *testing.T) {
	var broken atomic.Bool
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, "ok")
	})
	c := start(t, Options{Addr: addr, Connections: 4, Rate: 200, Seed: 3})
	broken.Store(true)
	w, err := c.Measure(100*time.Millisecond, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if w.Errors == 0 || w.Completed > 0 {
		t.Errorf("a broken server gave %d answers and %d errors", w.Completed, w.Errors)
	}
	broken.Store(false)
	w, err = c.Measure(300*time.Millisecond, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if w.Errors > 0 || w.Completed == 0 {
		t.Errorf("the mended server gave %d answers and %d errors", w.Completed, w.Errors)
	}
}

func TestSilentServerLeavesRequestsUnfinished(t *testing.T) {
	var silent atomic.Bool
	release := make(chan struct{})
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() {
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	})
	t.Cleanup(func() { close(release) })
	c := start(t, Options{Addr: addr, Connections: 2, Rate: 100, Seed: 4})
	silent.Store(true)
	if w, err := c.Measure(100*time.Millisecond, 100*time.Millisecond); err != nil || w.Completed > 0 {
		t.Errorf("window %+v, error %v", w, err)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	missing := serveHTTP(t, http.NotFound)
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Addr: closed}, "connection refused"},
		{Options{Addr: missing}, "404"},
		{Options{Addr: missing, Protocol: "gopher"}, "gopher"},
		{Options{Addr: "nowhere"}, "nowhere"},
	} {
		client, err := Start(c.o)
		if err == nil {
			_ = client.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one that says %q", c.o, err, c.want)
		}
	}
}

func TestHTTPAnswer(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 5\r\n\r\n"
	for _, c := range []struct {
		in     string
		length int
		ok     bool
	}{
		{"", 0, true},
		{"HTTP/1.1 200 OK\r\nContent-", 0, true},
		{head, len(head) + 5, true},
		{head + "hello", len(head) + 5, true},
		{"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 0, false},
		{"HTTP/1.1 200 OK\r\n\r\n", 0, false},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 47 + 13, true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", 0, true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 0, false},
		{"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 0, false},
		{"\r\n\r\n", 0, false},
	} {
		n, same, err := httpGet{}.answer([]byte(c.in))
		if n != c.length || (err == nil) != c.ok {
			t.Errorf("answer(%q) = %d, %v", c.in, n, err)
		}
		if n > 0 && c.in[:same] != "HTTP/1.1 200 OK" {
			t.Errorf("answer(%q): constant part %q", c.in, c.in[:same])
		}
	}
}

func TestOtherAnswers(t *testing.T) {
	list, get := redisSort{"k"}, memcachedGet{"a b"}
	for _, c := range []struct {
		p      protocol
		in     string
		length int
		ok     bool
	}{
		{list, "", 0, true},
		{list, "*2\r\n$1\r\nx\r\n$3\r\nab", 0, true},
		{list, "*2\r\n$1\r\nx\r\n$3\r\nabc\r\n", 20, true},
		{list, "*0\r\n", 0, false},
		{list, "-ERR unknown\r\n", 0, false},
		{get, "VALUE a 0 2\r\nxy\r\nVALUE b 0", 0, true},
		{get, "VALUE a 0 2\r\nxy\r\nVALUE b 0 1\r\nz\r\nEND\r\n", 38, true},
		{get, "VALUE a 0 2\r\nxy\r\nEND\r\n", 0, false},
		{get, "SERVER_ERROR out of memory\r\n", 0, false},
	} {
		n, same, err := c.p.answer([]byte(c.in))
		if (c.length > 0) != (n > 0) || (err == nil) != c.ok {
			t.Errorf("answer(%q) = %d, %v", c.in, n, err)
		}
		if n > 0 && (n != len(c.in) || same > n) {
			t.Errorf("answer(%q): length %d, constant part %d, want all of %d", c.in, n, same, len(c.in))
		}
	}
}

func TestQuantile(t *testing.T) {
	s := make([]uint32, 1000)
	for i := range s {
		s[i] = uint32(i + 1)
	}
	for q, want := range map[float64]uint32{0.5: 500, 0.9: 900, 0.99: 990, 0.999: 999, 1: 1000} {
		if got, want := quantile(s, q), float64(want)*unit/1e3; got != want {
			t.Errorf("quantile(%v) = %v, want %v", q, got, want)
		}
	}
	if quantile(nil, 0.5) != 0 || quantile([]uint32{7}, 0.999) != 0.7 {
		t.Error("quantile of none or one")
	}
}

func TestRecorderNeverGrows(t *testing.T) {
	s := make([]uint32, 0, 2)
	for i := range 5 {
		push(&s, int64(i)*unit)
	}
	if fmt.Sprint(s) != "[0 1]" {
		t.Errorf("samples %v", s)
	}
	push(&s, -1)
	s = s[:0]
	push(&s, -5)
	push(&s, math.MaxInt64)
	if fmt.Sprint(s) != fmt.Sprint([]uint32{0, math.MaxUint32}) {
		t.Errorf("clamped samples %v", s)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}
