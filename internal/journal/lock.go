package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Busy is the error of Lock when another agent holds the run directory.
type Busy struct {
	RunDir string
	PID    int // 0 if it cannot be told
}

func (e *Busy) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("run dir %s: in use by another agent", e.RunDir)
	}
	return fmt.Sprintf("run dir %s: in use by another agent, pid %d", e.RunDir, e.PID)
}

// Lock takes a lock file of the run directory for this process, until the file is closed or the process ends, however it does. The
// file tells who holds it; it stays when the agent leaves, because removing it would race with the next agent. The error is a *Busy
// if another process has it.
func Lock(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("run dir %s: not writable: %w", dir, Reason(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("run dir %s: cannot be locked: %w", dir, err)
		}
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, &Busy{RunDir: dir, PID: pid}
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("run dir %s: not writable: %w", dir, Reason(err))
	}
	return f, nil
}

// Reason is the bare cause of a file error whose path the message names already.
func Reason(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
