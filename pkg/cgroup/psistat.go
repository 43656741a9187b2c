package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Stall is stalled time on one resource, in µs. It only grows.
type Stall struct {
	SomeUS uint64 // at least one task stalled
	FullUS uint64 // all tasks stalled; 0 where the kernel does not say (cpu, before 5.13)
}

// PSIStat is the pressure of a group or of the machine. A resource that the kernel does not offer is zero.
type PSIStat struct {
	CPU, Memory, IO Stall
}

// PSIReader reads pressure totals from files that it keeps open. It is not for concurrent use.
type PSIReader struct {
	files [3]*File // in the order of PSIStat; nil if not offered
}

// OpenPSI opens the pressure files of a group. The error matches ErrGone if there is no such group, and ErrUnsupported if it has no
// pressure files: they exist on v2 only, and not where pressure accounting is off (psi=0, cgroup.pressure).
func OpenPSI(h *Hierarchy, group string) (*PSIReader, error) {
	dir, err := h.dirOf(Pressure, group)
	if err != nil {
		return nil, err
	}
	return openPSI(dir, "cpu.pressure", "memory.pressure", "io.pressure")
}

// OpenNodePSI opens the pressure files of the machine, where proc is the mount of procfs. The error matches ErrUnsupported if the
// kernel does not offer them.
func OpenNodePSI(proc string) (*PSIReader, error) {
	r, err := openPSI(filepath.Join(proc, "pressure"), "cpu", "memory", "io")
	if Gone(err) { // the directory is missing; no group has gone
		return nil, fmt.Errorf("%v: %w", err, ErrUnsupported)
	}
	return r, err
}

func openPSI(dir string, names ...string) (*PSIReader, error) {
	r := &PSIReader{}
	any := false
	for i, name := range names {
		f, err := openOptional(dir, name)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.files[i] = f
		any = any || f != nil
	}
	if !any {
		return nil, fmt.Errorf("pressure files in %s: %w", dir, ErrUnsupported)
	}
	return r, nil
}

// Stat fills into. An error that matches ErrGone tells that the group has vanished, or that someone has turned accounting off for
// it; one that matches ErrUnsupported that accounting is off for the machine. into is not changed by any error.
func (r *PSIReader) Stat(s *Scratch, into *PSIStat) error {
	var st PSIStat
	for i, stall := range [...]*Stall{&st.CPU, &st.Memory, &st.IO} {
		f := r.files[i]
		if f == nil {
			continue
		}
		text, err := s.read(f)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("%w: %w", err, ErrUnsupported)
		}
		if err != nil {
			return err
		}
		var ok bool
		if *stall, ok = parsePressure(text); !ok {
			return parseError(f, "pressure with a total", text)
		}
	}
	*into = st
	return nil
}

// Close closes the files. It may be called twice, and on nil.
func (r *PSIReader) Close() error {
	if r == nil {
		return nil
	}
	return errors.Join(r.files[0].Close(), r.files[1].Close(), r.files[2].Close())
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=5" and the like line that begins with "full", if there is one.
func parsePressure(text []byte) (st Stall, ok bool) {
	for len(text) > 0 {
		var line []byte
		line, text = nextLine(text)
		kind, rest, _ := bytes.Cut(line, []byte{' '})
		var into *uint64
		switch string(kind) {
		case "some":
			into, ok = &st.SomeUS, true
		case "full":
			into = &st.FullUS
		default:
			continue
		}
		_, total, found := bytes.Cut(rest, []byte("total="))
		v, number := parseUint(total)
		if !found || !number {
			return Stall{}, false
		}
		*into = v
	}
	return st, ok
}
