package cgroup

import (
	"bytes"
	"errors"
)

// MemoryStat is a group's memory and that of the groups below it, in bytes.
type MemoryStat struct {
	Current      uint64 // all memory charged to the group, page cache included
	InactiveFile uint64 // page cache that is not in use
}

// WorkingSet is Current less InactiveFile, at least 0: the memory that the kubelet goes by when it evicts.
func (m MemoryStat) WorkingSet() uint64 {
	// The two come from different files, so the second may have outgrown the first.
	return m.Current - min(m.InactiveFile, m.Current)
}

// MemoryReader reads a group's memory from files that it keeps open. It is not for concurrent use.
type MemoryReader struct {
	current, stat *File
	inactive      string // key in memory.stat
}

// OpenMemory opens the files of a group. The error matches ErrGone if there is no such group, and ErrUnsupported if the kernel
// does not account memory for it.
func OpenMemory(h *Hierarchy, group string) (*MemoryReader, error) {
	dir, err := h.dirOf(Memory, group)
	if err != nil {
		return nil, err
	}
	// On v1 the plain counters leave out the groups below, while usage_in_bytes does not.
	current, r := "memory.usage_in_bytes", &MemoryReader{inactive: "total_inactive_file"}
	if h.V2(Memory) {
		current, r.inactive = "memory.current", "inactive_file"
	}
	if r.current, err = openStat(dir, current); err == nil {
		r.stat, err = openStat(dir, "memory.stat")
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Stat fills into. An error that matches ErrGone tells that the group has vanished; into is not changed by any error.
func (r *MemoryReader) Stat(s *Scratch, into *MemoryStat) error {
	var st MemoryStat
	text, err := s.read(r.current)
	if err != nil {
		return err
	}
	var ok bool
	if st.Current, ok = parseUint(text); !ok {
		return parseError(r.current, "bytes", text)
	}
	if text, err = s.read(r.stat); err != nil {
		return err
	}
	if st.InactiveFile, ok = parseMemoryStat(text, r.inactive); !ok {
		return parseError(r.stat, r.inactive+" and bytes", text)
	}
	*into = st
	return nil
}

// Close closes the files. It may be called twice, and on nil.
func (r *MemoryReader) Close() error {
	if r == nil {
		return nil
	}
	return errors.Join(r.current.Close(), r.stat.Close())
}

// parseMemoryStat finds one counter in memory.stat.
func parseMemoryStat(text []byte, key string) (bytesOf uint64, ok bool) {
	for len(text) > 0 {
		var line []byte
		line, text = nextLine(text)
		k, value, _ := bytes.Cut(line, []byte{' '})
		if string(k) == key {
			return parseUint(value)
		}
	}
	return 0, false
}
