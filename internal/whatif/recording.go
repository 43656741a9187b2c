package whatif

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Recorded is a recording of a daemon's run. from and to bound it; zero: all.
func Recorded(ctx context.Context, s replay.Series, from, to time.Time) Recording {
	return recorded{ctx, s, from, to}
}

type recorded struct {
	ctx      context.Context
	series   replay.Series
	from, to time.Time
}

// Name is the name of the first file.
func (r recorded) Name() string { return filepath.Base(r.series.Files[0]) }

// Steps reads the files. The decisions that it gives are the recorded ones.
func (r recorded) Steps(give func(*Step) error) error {
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	var failed error
	var out Step
	_, err := replay.Run(ctx, r.series, replay.Options{From: r.from, To: r.to, Each: func(s *trace.Step, _ *decide.Decision) {
		if failed != nil {
			return
		}
		out = Step{Snapshot: s.Snapshot, Policy: s.Policy, Plan: s.Decision.Plan, Notes: s.Decision.Notes}
		if failed = give(&out); failed != nil {
			stop()
		}
	}})
	if failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return failed
	}
	return err
}
