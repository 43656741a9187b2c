package client

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/internal/server"
)

func TestErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	ask := func(c *Client) string {
		_, err := c.State(t.Context())
		if err == nil {
			t.Fatal("no error")
		}
		return err.Error()
	}
	const none = "no daemon runs with the run directory "
	if got := ask(New(filepath.Join(dir, "nothing"))); !strings.HasPrefix(got, none) || !strings.Contains(got, "--run-dir") {
		t.Errorf("no directory: %s", got)
	}
	if got := ask(New(dir)); !strings.HasPrefix(got, none) {
		t.Errorf("no socket: %s", got)
	}
	l, err := server.ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/state", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the loop does not answer", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/api/v1/decisions", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"entries":[{"id":7,"kind":"` + r.FormValue("kind") + `"}],"last":7}`))
	})
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = s.Close() })
	if got := ask(New(dir)); got != "the daemon says: the loop does not answer" {
		t.Errorf("busy: %s", got)
	}
	d, err := New(dir).Decisions(t.Context(), url.Values{"kind": {"write"}})
	if err != nil || d.Last != 7 || len(d.Entries) != 1 || d.Entries[0].Kind != "write" {
		t.Errorf("%+v %v", d, err)
	}
	_ = s.Close()

	// What a killed daemon leaves.
	if err := os.WriteFile(filepath.Join(dir, server.SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(New(dir)); !strings.HasPrefix(got, none) {
		t.Errorf("dead socket: %s", got)
	}
}
