package report

import (
	"context"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// Build makes the report about a recording, from and to bounding it if they are not zero. other is a policy to compare with the recorded
// one; nil: none.
func Build(ctx context.Context, s replay.Series, from, to time.Time, other *policy.Compiled) (*Report, error) {
	r := New(other)
	f, err := trace.Open(s.Files[0])
	if err != nil {
		return nil, err
	}
	r.SetInfo(f.Info())
	if err := f.Close(); err != nil {
		return nil, err
	}
	o := replay.Options{From: from, To: to, Each: func(s *trace.Step, d *decide.Decision) { r.Step(s, d) }}
	if _, err := replay.Run(ctx, s, o); err != nil {
		return nil, err
	}
	if other == nil {
		return r, nil
	}
	_, err = replay.Run(ctx, s, replay.Options{From: from, To: to, Policy: other, Differs: r.Differs})
	return r, err
}
