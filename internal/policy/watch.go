package policy

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// WatchOptions tunes Watch. The zero value is right for a daemon.
type WatchOptions struct {
	// Debounce is for how long a directory must be quiet before it is read, so that a file is not read while it is being
	// written. 200 ms if zero.
	Debounce time.Duration
	// Poll is how often the directory is looked at without being told: it may have been replaced, lie on a file system that
	// tells nothing, or link to files elsewhere. 5 s if zero.
	Poll time.Duration
	// Log learns when the kernel cannot tell of changes. slog.Default() if nil.
	Log *slog.Logger
}

// Watch calls onChange with what the directory holds now, and then with every change of it until ctx ends: a policy, or the
// ErrorList that keeps it from being one, which wraps ErrNoPolicy if there is no policy file at all. The same content gives no
// second call, however often files are written. onChange is called from Watch's own goroutine, one call at a time. To keep the
// last good policy is up to the caller.
func Watch(ctx context.Context, dir string, o WatchOptions, onChange func(*Compiled, error)) {
	if o.Debounce <= 0 {
		o.Debounce = 200 * time.Millisecond
	}
	if o.Poll <= 0 {
		o.Poll = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	w := watcher{dir: dir, o: o, onChange: onChange, dirtyFrom: time.Now()}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		o.Log.Warn("changes of the policy are found by polling only", "dir", dir, "every", o.Poll, "error", err)
	} else {
		defer notify.Close()
		w.notify = notify
	}
	w.run(ctx)
}

type watcher struct {
	dir      string
	o        WatchOptions
	onChange func(*Compiled, error)
	notify   *fsnotify.Watcher // nil: polling only

	delivered string    // what onChange was told last, by content
	looked    string    // what the directory looked like when it was read last
	dirtyFrom time.Time // when the change began that was not read yet; zero: none
}

func (w *watcher) run(ctx context.Context) {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	poll := time.NewTicker(w.o.Poll)
	defer poll.Stop()
	quiet := time.NewTimer(0) // fires at once for the first reading
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			w.dirty(quiet)
		case <-errs: // most likely the queue overflowed: something has changed
			w.dirty(quiet)
		case <-poll.C:
			w.subscribe()
			if w.dirtyFrom.IsZero() && w.look() != w.looked { // else it will be read soon anyway
				w.dirty(quiet)
			}
		case <-quiet.C:
			w.subscribe()
			if !w.read() {
				w.dirty(quiet)
			}
		}
	}
}

// dirty puts off reading until the directory has been quiet for a while, but not forever: somebody may write to it all the time.
func (w *watcher) dirty(quiet *time.Timer) {
	now := time.Now()
	if w.dirtyFrom.IsZero() {
		w.dirtyFrom = now
	}
	latest := w.dirtyFrom.Add(10 * w.o.Debounce)
	quiet.Reset(min(w.o.Debounce, max(0, latest.Sub(now))))
}

// subscribe asks to be told of changes. It is repeated, because the directory under the name may be a new one, and costs
// nothing if it is not. Without success (the directory is not there now) polling finds out.
func (w *watcher) subscribe() {
	if w.notify != nil {
		_ = w.notify.Add(w.dir)
	}
}

// read loads the directory and tells onChange if there is news. It reports whether the directory stood still meanwhile; if it
// did not, what was read may be half of something and is not delivered, unless that has gone on for too long.
func (w *watcher) read() bool {
	before := w.look()
	c, err := loadCompiled(w.dir)
	if w.looked = w.look(); w.looked != before && time.Since(w.dirtyFrom) < 10*w.o.Debounce {
		return false
	}
	w.dirtyFrom = time.Time{}
	news := "error " + fmt.Sprint(err)
	if err == nil {
		news = "policy " + c.ID()
	}
	if news != w.delivered {
		w.delivered = news
		w.onChange(c, err)
	}
	return true
}

func loadCompiled(dir string) (*Compiled, error) {
	p, err := Load(dir)
	if err != nil {
		return nil, err
	}
	return Compile(p)
}

// look tells states of the directory's policy files apart without reading them.
func (w *watcher) look() string {
	files, err := policyFiles(w.dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, f := range files {
		b.WriteString(f)
		info, err := os.Stat(f)
		if err != nil {
			b.WriteString(err.Error())
			continue
		}
		fmt.Fprintf(&b, " %d %d", info.Size(), info.ModTime().UnixNano())
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			fmt.Fprintf(&b, " %d %d %d.%d", s.Dev, s.Ino, s.Ctim.Sec, s.Ctim.Nsec)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
