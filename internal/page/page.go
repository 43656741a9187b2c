// Package page is "who hurts whom, live": a page without a framework, a network or anything from elsewhere, and the stream of
// server-sent events that feeds it.
//
// While nobody looks it costs nothing. While somebody does, the loop is asked for its state once a second however many pages are
// open, and readers get what changed since; one that reads too slowly misses frames and then gets a full one.
package page

import (
	"embed"
	"io/fs"
	"log/slog"
	"net/http"
	"time"
)

//go:embed assets
var assets embed.FS

// contentSecurityPolicy allows the page's own files and its own stream, and nothing else: no script in the page, no other host, no frame
// around it.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// writeTimeout is how long a reader may take to take a frame before it is cut off.
const writeTimeout = 10 * time.Second

// Page serves the page, its files and its stream.
type Page struct {
	hub *hub
	mux *http.ServeMux
}

// New makes a page that shows what source says.
func New(source Source, log *slog.Logger) *Page {
	p := &Page{hub: &hub{source: source, log: log, every: frameEvery, readers: map[*reader]bool{}}, mux: http.NewServeMux()}
	files, err := fs.Sub(assets, "assets")
	if err != nil { // the files are part of the program
		panic(err)
	}
	p.mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, "page.html") })
	p.mux.Handle("/assets/", http.StripPrefix("/assets/", http.FileServerFS(files)))
	p.mux.HandleFunc("/api/v1/stream", p.stream)
	return p
}

// ServeHTTP answers "/", "/assets/..." and "/api/v1/stream".
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", contentSecurityPolicy)
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	p.mux.ServeHTTP(w, r)
}

// stream sends frames until the reader leaves or the request's context is done.
func (p *Page) stream(w http.ResponseWriter, r *http.Request) {
	reader, err := p.hub.join()
	if err != nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "busy: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer p.hub.leave(reader)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that buffer would hold frames back
	control := http.NewResponseController(w)
	// The server's bound on reading a request would end the stream with it. Where it cannot be lifted, the page connects again.
	_ = control.SetReadDeadline(time.Time{})
	for {
		select {
		case <-r.Context().Done():
			return
		case frame := <-reader.frames:
			// Where the deadline cannot be set the server's own holds, and the page connects again.
			_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(frame); err != nil {
				return
			}
			if err := control.Flush(); err != nil {
				return
			}
		}
	}
}
