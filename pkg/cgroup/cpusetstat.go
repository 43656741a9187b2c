package cgroup

import (
	"bytes"

	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// CPUSetReader reads which CPUs a group has been given from a file that it keeps open. It is not for concurrent use.
type CPUSetReader struct {
	file *File
	text []byte // what cpus was parsed from
	cpus cpuset.Set
}

// OpenCPUSet opens the file of a group. The error matches ErrGone if there is no such group, and ErrUnsupported if it has no cpuset.
func OpenCPUSet(h *Hierarchy, group string) (*CPUSetReader, error) {
	return openCPUs(h, group, "cpuset.cpus")
}

// OpenEffectiveCPUs is OpenCPUSet for the CPUs on which the tasks of a group really may run, by its own setting and those above it.
// There is such a file on cgroup v2 only.
func OpenEffectiveCPUs(h *Hierarchy, group string) (*CPUSetReader, error) {
	return openCPUs(h, group, "cpuset.cpus.effective")
}

func openCPUs(h *Hierarchy, group, file string) (*CPUSetReader, error) {
	dir, err := h.dirOf(CPUSet, group)
	if err != nil {
		return nil, err
	}
	f, err := openStat(dir, file)
	if err != nil {
		return nil, err
	}
	return &CPUSetReader{file: f}, nil
}

// CPUs fills into with the group's own setting, which is empty on v2 if nobody has set it: then the group may run where the group
// above it may. An error that matches ErrGone tells that the group has vanished; into is not changed by any error.
func (r *CPUSetReader) CPUs(s *Scratch, into *cpuset.Set) error {
	text, err := s.read(r.file)
	if err != nil {
		return err
	}
	if !bytes.Equal(text, r.text) || r.text == nil {
		set, err := cpuset.Parse(string(text))
		if err != nil {
			return parseError(r.file, "a list of CPUs", text)
		}
		r.cpus, r.text = set, append(r.text[:0], text...)
	}
	*into = r.cpus
	return nil
}

// Close closes the file. It may be called twice, and on nil.
func (r *CPUSetReader) Close() error {
	if r == nil {
		return nil
	}
	return r.file.Close()
}
