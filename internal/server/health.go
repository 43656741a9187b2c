package server

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	// The loop is alive if it ticked within alivePeriods of its interval, but never sooner than aliveAtLeast: a pause of a
	// second on a machine in trouble is no reason to kill the agent that may be about to help.
	alivePeriods = 5
	aliveAtLeast = 5 * time.Second
)

// alive says whether the loop ticks, and within which bound.
func (h *Health) alive() (bool, time.Duration) {
	bound := max(alivePeriods*h.Interval, aliveAtLeast)
	return h.SinceTick <= bound, bound
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	h := s.provider.Health()
	ok, bound := h.alive()
	answer := struct {
		Alive            bool    `json:"alive"`
		SinceTickSeconds float64 `json:"sinceTickSeconds"`
		BoundSeconds     float64 `json:"boundSeconds"`
	}{ok, h.SinceTick.Seconds(), bound.Seconds()}
	word := "ok"
	if !ok {
		word = "stuck"
	}
	text := fmt.Sprintf("%s: last tick %v ago, bound %v\n", word, h.SinceTick.Round(time.Millisecond), bound)
	write(w, r, statusFor(ok), text, answer)
}

// readiness is the answer of /readyz.
type readiness struct {
	Status     string      `json:"status"` // ready, degraded (ready, but something is lost), not ready
	Conditions []Condition `json:"conditions"`
}

// ready judges the conditions; a loop that does not tick is one more.
func (h *Health) ready() readiness {
	out := readiness{Status: "ready", Conditions: make([]Condition, 0, len(h.Conditions)+1)}
	alive, bound := h.alive()
	loop := Condition{Name: "loop", OK: alive, Required: true, Detail: fmt.Sprintf("ticks every %v", h.Interval)}
	if !alive {
		loop.Detail = fmt.Sprintf("last tick %v ago, bound %v", h.SinceTick.Round(time.Millisecond), bound)
	}
	out.Conditions = append(append(out.Conditions, loop), h.Conditions...)
	for _, c := range out.Conditions {
		switch {
		case c.OK:
		case c.Required:
			out.Status = "not ready"
		case out.Status == "ready":
			out.Status = "degraded"
		}
	}
	return out
}

func (r *readiness) text() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.Status)
	for _, c := range r.Conditions {
		word := "ok"
		switch {
		case c.OK:
		case c.Required:
			word = "missing"
		default:
			word = "degraded"
		}
		fmt.Fprintf(&b, "%-8s  %s: %s\n", word, c.Name, c.Detail)
	}
	return b.String()
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	h := s.provider.Health()
	ready := h.ready()
	write(w, r, statusFor(ready.Status != "not ready"), ready.text(), ready)
}

func statusFor(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// write answers with JSON if the reader asks for it, by ?format=json or by an Accept header that names it, and with text otherwise.
func write(w http.ResponseWriter, r *http.Request, status int, text string, v any) {
	if r.URL.Query().Get("format") == "json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
		writeJSON(w, status, v)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the reader has left: nothing to do
}
