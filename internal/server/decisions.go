package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
)

// Decisions is the decision log as the server reads it; see decisionlog.Log.
type Decisions interface {
	Select(decisionlog.Query) (entries []decisionlog.Entry, last uint64, err error)
	Wait(ctx context.Context, after uint64)
}

const (
	defaultDecisions = 1000
	maxDecisions     = 20000
	// maxWait bounds how long an answer may wait for a new entry; it must fit into writeTimeout.
	maxWait = 15 * time.Second
)

// DecisionList is the answer to GET /api/v1/decisions.
type DecisionList struct {
	Entries []decisionlog.Entry `json:"entries"` // oldest first
	// Last is the ID of the newest entry there is: ask again with after=Last to get what came later.
	Last uint64 `json:"last"`
}

// decisions answers GET /api/v1/decisions. Parameters: since (a time in RFC 3339, or a duration back from now such as 1h), after (an
// ID), pod, kind, rule, result (filters), limit (the newest so many), wait (how long to wait for an entry if there is none).
func (s *Server) decisions(w http.ResponseWriter, r *http.Request) {
	q, wait, err := parseQuery(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if wait > 0 {
		// The bound on reading a request would end the wait with it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		s.diary.Wait(ctx, q.After)
	}
	entries, last, err := s.diary.Select(q)
	if err != nil { // what could be read is still worth showing
		s.log.Warn("read the decision log", "error", err)
	}
	writeJSON(w, http.StatusOK, DecisionList{Entries: notNil(entries), Last: last})
}

func parseQuery(v url.Values, now time.Time) (q decisionlog.Query, wait time.Duration, err error) {
	q = decisionlog.Query{Pod: v.Get("pod"), Kind: v.Get("kind"), Rule: v.Get("rule"), Result: v.Get("result"), Limit: defaultDecisions}
	known := []string{"since", "after", "pod", "kind", "rule", "result", "limit", "wait"}
	for name := range v {
		if !slices.Contains(known, name) {
			return q, 0, fmt.Errorf("%s: there is no such parameter; there are %s", name, strings.Join(known, ", "))
		}
	}
	if q.Kind != "" && !slices.Contains(decisionlog.Kinds(), q.Kind) {
		return q, 0, fmt.Errorf("kind %q: want one of %s", q.Kind, strings.Join(decisionlog.Kinds(), ", "))
	}
	if t := v.Get("since"); t != "" {
		if q.Since, err = ParseSince(t, now); err != nil {
			return q, 0, err
		}
	}
	if t := v.Get("after"); t != "" {
		if q.After, err = strconv.ParseUint(t, 10, 64); err != nil {
			return q, 0, fmt.Errorf("after %q: want the ID of an entry", t)
		}
	}
	if t := v.Get("limit"); t != "" {
		if q.Limit, err = strconv.Atoi(t); err != nil || q.Limit < 1 || q.Limit > maxDecisions {
			return q, 0, fmt.Errorf("limit %q: want 1 to %d", t, maxDecisions)
		}
	}
	if t := v.Get("wait"); t != "" {
		if wait, err = time.ParseDuration(t); err != nil || wait < 0 {
			return q, 0, fmt.Errorf("wait %q: want a duration such as 10s", t)
		}
	}
	return q, min(wait, maxWait), nil
}

// ParseSince reads a time in RFC 3339, or a duration back from now ("90s", "2h").
func ParseSince(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("since %q: want a duration such as 15m, or a time such as 2026-11-24T12:00:00Z", text)
	}
	return t, nil
}
