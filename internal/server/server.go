package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"
)

// Limits. The server runs beside online work and is reachable by everybody who reaches the port: no request may cost much, and
// none may stay long.
const (
	readTimeout     = 5 * time.Second
	writeTimeout    = 20 * time.Second
	idleTimeout     = 2 * time.Minute
	scrapeTimeout   = 10 * time.Second
	shutdownTimeout = 3 * time.Second
	maxHeaderBytes  = 16 << 10
	// maxScrapes and maxStates bound what is built at the same time; more are answered with 503 at once.
	maxScrapes   = 4
	maxStates    = 4
	maxFollowers = 16
)

// Options are the parts of a Server. All are required.
type Options struct {
	Provider    Provider
	Decisions   Decisions
	Page        http.Handler // what is served besides, at "/"
	Instruments *Instruments
	Version     string
	Log         *slog.Logger
}

// Server answers HTTP.
type Server struct {
	provider Provider
	diary    Decisions
	log      *slog.Logger
	open     http.Handler // metrics and health
	all      http.Handler
	stopping sync.Once
	stopped  chan struct{} // closed when answers that wait for something should end
}

// New builds the handlers. It opens nothing.
func New(o Options) (*Server, error) {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		newCollector(o.Provider, o.Instruments, o.Version, o.Log),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	s := &Server{provider: o.Provider, diary: o.Decisions, log: o.Log, stopped: make(chan struct{})}
	open, all := http.NewServeMux(), http.NewServeMux()
	both := func(pattern string, h http.Handler) {
		open.Handle(pattern, h)
		all.Handle(pattern, h)
	}
	both("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            errorLog{o.Log},
		ErrorHandling:       promhttp.ContinueOnError, // one bad label must not blind the operator
		MaxRequestsInFlight: maxScrapes,
		CoalesceGather:      true,
		Timeout:             scrapeTimeout,
		OfferedCompressions: []promhttp.Compression{promhttp.Identity, promhttp.Gzip},
	}))
	both("/healthz", http.HandlerFunc(s.healthz))
	both("/readyz", http.HandlerFunc(s.readyz))
	open.HandleFunc("/{$}", indexOpen)
	all.Handle("/api/v1/state", atMost(maxStates, http.HandlerFunc(s.state)))
	all.Handle("/api/v1/decisions", atMost(maxFollowers, s.untilStop(http.HandlerFunc(s.decisions))))
	all.Handle("/", s.untilStop(o.Page))
	s.open, s.all = readOnly(open), readOnly(all)
	return s, nil
}

// Handler is everything that the server answers, without asking who asks.
func (s *Server) Handler() http.Handler { return s.all }

// OpenHandler is what may be shown on the pod network: metrics and health.
func (s *Server) OpenHandler() http.Handler { return s.open }

// Serve answers on the endpoints until ctx is done, then lets running requests finish for a moment. It closes the listeners.
func (s *Server) Serve(ctx context.Context, endpoints ...Endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(endpoints))
	for i := range endpoints {
		wg.Go(func() {
			errs[i] = s.serve(ctx, &endpoints[i])
			cancel() // when one ends, so do the others
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) serve(ctx context.Context, e *Endpoint) error {
	handler := s.open
	if e.Everything {
		handler = s.all
	}
	srv := &http.Server{
		Handler:           e.guard(handler),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	srv.RegisterOnShutdown(func() { s.stopping.Do(func() { close(s.stopped) }) })
	failed := make(chan error, 1)
	go func() { failed <- e.answer(srv, s.log) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", e.Listener.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		s.log.Debug("requests cut off at shutdown", "err", err)
		_ = srv.Close() // they had their time; what Close says of their connections helps nobody
	}
	<-failed
	return nil
}

// answer serves the endpoint, with TLS and users if its access file says so.
func (e *Endpoint) answer(srv *http.Server, log *slog.Logger) error {
	if e.Access.WebConfig == "" {
		return srv.Serve(e.Listener)
	}
	return web.Serve(e.Listener, srv, &web.FlagConfig{WebConfigFile: &e.Access.WebConfig}, log)
}

// state answers GET /api/v1/state.
func (s *Server) state(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), snapshotTimeout)
	defer cancel()
	st, err := s.provider.State(ctx)
	if err != nil {
		http.Error(w, fmt.Sprintf("the loop does not answer: %v", err), http.StatusServiceUnavailable)
		return
	}
	writeJSON(w, http.StatusOK, st.normalized())
}

// normalized is the state with empty lists instead of absent ones. It copies what it changes: the provider may hand the same value to others.
func (s *State) normalized() *State {
	out := *s
	out.Node.CPUs = notNil(s.Node.CPUs)
	out.Node.Capabilities = notNil(s.Node.Capabilities)
	out.Policy.Reload.Errors = notNil(s.Policy.Reload.Errors)
	out.Pods = make([]Pod, len(s.Pods))
	for i, p := range s.Pods {
		p.Containers = notNil(p.Containers)
		out.Pods[i] = p
	}
	out.Verdicts = notNil(s.Verdicts)
	out.Knobs = notNil(s.Knobs)
	out.Notes = notNil(s.Notes)
	return &out
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func indexOpen(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, `qos-agent

/metrics           Prometheus metrics
/healthz           is the loop alive
/readyz            is everything in order, and if not, why (?format=json)

The page and the state API are not served here: see --api-listen.
`)
}

// untilStop ends the context of a request that may last when the server is to stop: such a request would hold that up.
func (s *Server) untilStop(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		go func() {
			select {
			case <-s.stopped:
				cancel()
			case <-ctx.Done():
			}
		}()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // a NaN among the figures: the fault is ours
		http.Error(w, fmt.Sprintf("encode: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the reader has left: nothing to do
}

// readOnly refuses every method that could mean a change, and keeps answers out of caches.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "read-only: GET and HEAD only", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// atMost answers 503 when n requests are being served already.
func atMost(n int, next http.Handler) http.Handler {
	slots := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, fmt.Sprintf("busy: %d requests of this kind are being served", n), http.StatusServiceUnavailable)
		}
	})
}

// errorLog lets promhttp log through slog.
type errorLog struct{ log *slog.Logger }

func (l errorLog) Println(v ...any) { l.log.Warn("scrape", "err", fmt.Sprint(v...)) }
