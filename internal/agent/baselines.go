package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/qos-agent/qos-agent/internal/judge"
)

// What is normal for workloads takes a while to learn and is worth keeping across restarts: without it, an agent that is upgraded while
// offline work presses on a victim would take that for normal.

const (
	// baselinesFile is its name in the run directory.
	baselinesFile = "baselines.json"
	// baselinesEvery is the time between two writes.
	baselinesEvery = time.Minute
	// baselinesMost bounds what is read: 1024 workloads with all bins full are 100 MB, of which hardly any are ever in use.
	baselinesMost = 128 << 20
)

// LoadBaselines reads what an earlier run left in the run directory. It is nil without an error if there is nothing.
func LoadBaselines(runDir string) (*judge.Baselines, error) {
	path := filepath.Join(runDir, baselinesFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("baselines: %w", err)
	case info.Size() > baselinesMost:
		return nil, fmt.Errorf("baselines: %s has %d bytes, want at most %d: remove it", path, info.Size(), baselinesMost)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("baselines: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	b := new(judge.Baselines)
	if err := d.Decode(b); err != nil {
		return nil, fmt.Errorf("baselines: %s: %w; it is ignored and written anew", path, err)
	}
	return b, nil
}

// saveBaselines writes a file that is whole at all times.
func saveBaselines(runDir string, b *judge.Baselines) error {
	text, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("baselines: %w", err)
	}
	path := filepath.Join(runDir, baselinesFile)
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("baselines: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("baselines: %w", err)
	}
	return nil
}

// keepBaselines writes what the loop hands over, until the channel is closed.
func (a *Agent) keepBaselines() {
	for b := range a.baselines {
		if err := saveBaselines(a.o.RunDir, b); err != nil {
			a.o.Log.Warn("what was learned is not kept for the next start", "error", err)
		}
	}
}

// shareBaselines hands over what was learned, if it is time; a writer that is still busy gets it the next time.
func (l *loop) shareBaselines(now time.Duration) {
	if now-l.baselinesAt < baselinesEvery {
		return
	}
	l.baselinesAt = now
	b := l.decide.Baselines()
	if len(b.Workloads) == 0 {
		return
	}
	select {
	case l.baselines <- &b:
	default:
	}
}
