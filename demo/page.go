package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/qos-agent/qos-agent/internal/replay"
	recording "github.com/qos-agent/qos-agent/internal/report"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// writePage writes the page about the recording that the demo has made.
func writePage(ctx context.Context, traces, file string) error {
	files, err := trace.Files(traces)
	if err != nil {
		return err
	}
	series, err := replay.Group(files)
	if err != nil {
		return err
	}
	if len(series) != 1 {
		return fmt.Errorf("%d recordings in %s, want one", len(series), traces)
	}
	r, err := recording.Build(ctx, series[0], time.Time{}, time.Time{}, nil)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(r.Write(f), f.Close())
}
