package main

import (
	"errors"
	"log/slog"
	"time"

	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// recordFlags are the flags of run that concern recording.
type recordFlags struct {
	Record        string        `placeholder:"DIR" help:"Record what the loop sees and does into files in this directory, for qos-agent replay."`
	RecordMaxMiB  int64         `name:"record-max-mib" default:"1024" help:"Most disk that all recordings there may take, MiB; the oldest make room."`
	RecordMaxAge  time.Duration `default:"168h" help:"Age at which a file of a recording is removed; 0: never."`
	RecordFileMiB int64         `name:"record-file-mib" default:"64" help:"Size at which a new file is begun, MiB; at most a quarter of --record-max-mib."`
	RecordFileAge time.Duration `default:"1h" help:"Time after which a new file is begun."`
}

func (f *recordFlags) check() error {
	if f.RecordMaxMiB < 4 || f.RecordFileMiB < 1 || f.RecordMaxAge < 0 || f.RecordFileAge < time.Second {
		return errors.New("--record-max-mib, --record-file-mib, --record-max-age, --record-file-age: want at least 4 MiB in all, 1 MiB and 1s a file, and no negative age")
	}
	return nil
}

// recorder is nil if nothing is to be recorded.
func (f *recordFlags) recorder(info trace.Info, report capability.Report, log *slog.Logger) (*trace.Recorder, error) {
	if f.Record == "" {
		return nil, nil
	}
	for _, p := range report.Probes {
		info.Capabilities = append(info.Capabilities, trace.Capability{Name: p.Name, OK: p.OK, Detail: p.Detail})
	}
	return trace.NewRecorder(trace.RecorderOptions{
		Dir: f.Record, MaxBytes: f.RecordMaxMiB << 20, MaxAge: f.RecordMaxAge, FileBytes: f.RecordFileMiB << 20, FileEvery: f.RecordFileAge,
		Info: info, Log: log,
	})
}
