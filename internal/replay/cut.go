package replay

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Cut writes the steps between from and to (zero: open) as a recording of its own, which begins with a checkpoint: it replays up to from to know
// what the controllers remembered then. It returns how many steps were written.
func Cut(ctx context.Context, s Series, from, to time.Time, out io.Writer) (steps uint64, err error) {
	r, err := trace.Open(s.Files[0])
	if err != nil {
		return 0, err
	}
	info := *r.Info()
	if err := r.Close(); err != nil {
		return 0, err
	}
	info.Part = 0
	var w *trace.Writer
	o := Options{From: from, To: to, Before: func(step *trace.Step, b *decide.State, exact bool) error {
		if w == nil {
			if info.Started = step.Snapshot.Wall; !from.IsZero() {
				info.Note = "cut out of a longer recording"
			}
			if w, err = trace.NewWriter(out, info, trace.WriterOptions{}); err != nil {
				return err
			}
			// A hole right before the cut does not concern it, if what was remembered is known.
			if exact {
				w.Checkpoint(b.Checkpoint(nil))
				step.Dropped = 0
			}
		}
		steps++
		return w.Append(step)
	}}
	if _, err = Run(ctx, s, o); err != nil {
		return steps, err
	}
	if w == nil {
		return 0, errors.New("there is no step in that time")
	}
	return steps, w.Close()
}
