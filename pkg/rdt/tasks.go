package rdt

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// Tasks appends the threads of a group to tids. Those of a control group include its monitoring groups'. The kernel walks all threads
// of the machine for it.
func (f *FS) Tasks(group string, tids []int) ([]int, error) {
	text, err := f.tree.Read(path.Join(group, "tasks"), f.buf[:])
	if err != nil {
		return tids, fmt.Errorf("resctrl: tasks of %s: %w", cmpName(group), err)
	}
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		tid, err := strconv.Atoi(string(line))
		if err != nil {
			return tids, fmt.Errorf("resctrl: tasks of %s: %w", cmpName(group), err)
		}
		tids = append(tids, tid)
	}
	return tids, nil
}

// Move puts one thread into a group; its children that it has from then on are born there. For a monitoring group it has to be in the
// control group already. A thread that has ended is no error, and moved is false.
func (f *FS) Move(group string, tid int) (moved bool, err error) {
	if tid <= 0 { // 0 would be ourselves
		return false, fmt.Errorf("resctrl: move %d to %s: not a thread", tid, cmpName(group))
	}
	var buf [24]byte
	name := path.Join(group, "tasks")
	err = f.tree.Write(name, append(strconv.AppendInt(buf[:0], int64(tid), 10), '\n'))
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return err == nil, f.refused("write", name, strconv.Itoa(tid), err)
}
