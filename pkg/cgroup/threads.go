package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Threads appends to tids the threads of a group and of every group below it, parents first, in the order in which the kernel lists
// them: a process that has just forked comes before its child. What vanishes meanwhile is left out; a group that is not there has no
// threads.
func (h *Hierarchy) Threads(group string, tids []int) ([]int, error) {
	name := "tasks"
	if h.V2(CPU) {
		name = "cgroup.threads"
	}
	buf := make([]byte, 4<<10)
	err := h.Walk(CPU, group, func(g string) error {
		dir, _ := h.Dir(CPU, g)
		f, err := OpenFile(filepath.Join(dir, name))
		if err != nil {
			return ignoringGone(err)
		}
		defer f.Close()
		var text []byte
		for {
			if text, err = f.ReadInto(buf); !errors.Is(err, io.ErrShortBuffer) {
				break
			}
			buf = make([]byte, 4*len(buf))
		}
		if err != nil {
			return ignoringGone(err)
		}
		for line := range bytes.Lines(text) {
			if line = bytes.TrimSpace(line); len(line) == 0 {
				continue
			}
			tid, err := strconv.Atoi(string(line))
			if err != nil {
				return fmt.Errorf("read %s: %w", f.Path(), err)
			}
			if tid > 0 { // 0 is a thread outside our PID namespace
				tids = append(tids, tid)
			}
		}
		return nil
	})
	return tids, err
}

// ignoringGone also takes a group in which there cannot be threads (EOPNOTSUPP: below a threaded one) for one without any.
func ignoringGone(err error) error {
	if Gone(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
