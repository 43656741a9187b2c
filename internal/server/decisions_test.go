package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

func TestDecisions(t *testing.T) {
	d := &fakeDecisions{entries: []decisionlog.Entry{{ID: 1, Kind: "write"}}}
	s, err := New(Options{Provider: fixture(), Decisions: d, Page: http.NotFoundHandler(), Instruments: &Instruments{}, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	w := get(t, s, "/api/v1/decisions?since=2026-11-24T12:00:00Z&after=3&pod=shop/web&kind=write&rule=posture&result=written&limit=5")
	var got DecisionList
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Entries) != 1 || got.Last != 1 {
		t.Errorf("%v %+v", err, got)
	}
	want := decisionlog.Query{After: 3, Since: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Pod: "shop/web", Kind: "write", Rule: "posture", Result: "written", Limit: 5}
	if diff := cmp.Diff(want, d.asked); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"since=yesterday", "since=-1h", "after=x", "kind=cut", "limit=0", "limit=1000000", "wait=soon", "wait=-1s", "pods=web"} {
		if w := get(t, s, "/api/v1/decisions?"+bad); w.Code != 400 {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
}

// Who follows the log must not hold up the end of the agent.
func TestFollowersEndWithTheServer(t *testing.T) {
	d := &fakeDecisions{waited: make(chan struct{})}
	s, err := New(Options{Provider: fixture(), Decisions: d, Page: http.NotFoundHandler(), Instruments: &Instruments{}, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- get(t, s, "/api/v1/decisions?wait=1h") }()
	<-d.waited
	close(s.stopped)
	if w := <-done; w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

func FuzzQuery(f *testing.F) {
	for _, q := range []string{"since=1h&limit=3", "since=2026-11-24T12:00:00Z&after=1&wait=3s", "kind=write&kind=x", "%zz", "limit=-1", "since=9999999h"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		v, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		q, wait, err := parseQuery(v, time.Unix(1e9, 0))
		if err == nil && (q.Limit < 1 || q.Limit > maxDecisions || wait < 0 || wait > maxWait) {
			t.Errorf("%q: %+v, wait %v", raw, q, wait)
		}
	})
}
