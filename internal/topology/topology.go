// Package topology reads the machine's CPUs from sysfs: which are online, and which share a core, a last-level cache and a NUMA
// node.
//
// procfs's sysfs package is not used: it gives up on a CPU when one of four files is missing, which is common in virtual machines,
// and knows neither caches nor nodes.
package topology

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Reader reads the topology again when CPUs have come or gone. It is not for concurrent use.
type Reader struct {
	dir    string   // devices/system/cpu
	online *os.File // nil if the kernel does not have it: then nothing ever changes
	seen   []byte   // its text when topo was read
	buf    [4096]byte
	topo   signal.Topology
}

// Open reads the topology below sys, usually /sys. It fails only if no CPU can be found at all, or one beyond cpuset.Max; what else
// sysfs does not tell is assumed to be as simple as can be: a CPU without siblings is a core, a package shares its last-level
// cache, and everything is on node 0.
func Open(sys string) (*Reader, error) {
	r := &Reader{dir: filepath.Join(sys, "devices/system/cpu")}
	online, err := os.Open(filepath.Join(r.dir, "online"))
	if errors.Is(err, fs.ErrNotExist) {
		return r, r.readWithoutList()
	}
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	r.online = online
	if _, err := r.Refresh(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Topology is what the last successful read found. Nobody changes it any more.
func (r *Reader) Topology() signal.Topology { return r.topo }

// Refresh reads the topology again if the list of online CPUs is another than last time, and reports whether it did. Otherwise it
// costs one small read. After an error the old topology stands.
func (r *Reader) Refresh() (changed bool, err error) {
	if r.online == nil {
		return false, nil
	}
	n, err := r.online.ReadAt(r.buf[:], 0)
	switch {
	case err == nil:
		return false, fmt.Errorf("topology: %s is longer than %d bytes", r.online.Name(), len(r.buf))
	case !errors.Is(err, io.EOF):
		return false, fmt.Errorf("topology: %w", err)
	case bytes.Equal(r.buf[:n], r.seen):
		return false, nil
	}
	online, err := cpuset.Parse(string(r.buf[:n]))
	if err != nil {
		return false, fmt.Errorf("topology: %s: %w", r.online.Name(), err)
	}
	if online.Empty() {
		return false, fmt.Errorf("topology: %s lists no CPU", r.online.Name())
	}
	r.seen = append(r.seen[:0], r.buf[:n]...)
	r.topo = r.read(online)
	return true, nil
}

// Close closes the file that is kept open.
func (r *Reader) Close() error {
	if r.online == nil {
		return nil
	}
	return r.online.Close()
}

// readWithoutList takes the CPUs that have a directory.
func (r *Reader) readWithoutList() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	var online cpuset.Set
	for _, e := range entries {
		if cpu, ok := numbered(e.Name(), "cpu"); ok && cpu < cpuset.Max {
			online.Add(cpu)
		}
	}
	if online.Empty() {
		return fmt.Errorf("topology: no CPU in %s", r.dir)
	}
	r.topo = r.read(online)
	return nil
}

func (r *Reader) read(online cpuset.Set) signal.Topology {
	var t signal.Topology
	for _, id := range online.List() {
		dir := filepath.Join(r.dir, "cpu"+strconv.Itoa(id))
		cpu := signal.CPU{ID: id, Core: id, Node: node(dir), LLC: first(online)}
		for _, name := range []string{"core_cpus_list", "thread_siblings_list"} { // new and old name
			if set, ok := siblings(filepath.Join(dir, "topology", name), id, online); ok {
				cpu.Core = first(set)
				break
			}
		}
		if set, ok := lastLevelCache(dir, id, online); ok {
			cpu.LLC = first(set)
		}
		t.CPUs = append(t.CPUs, cpu)
	}
	return t
}

// lastLevelCache gives the CPUs that share the highest-level cache that holds data; where caches are not described, those of the
// package.
func lastLevelCache(dir string, id int, online cpuset.Set) (cpuset.Set, bool) {
	var shared cpuset.Set
	highest := 0
	indexes, _ := os.ReadDir(filepath.Join(dir, "cache")) // none: not described
	for _, e := range indexes {
		if _, ok := numbered(e.Name(), "index"); !ok {
			continue
		}
		cache := filepath.Join(dir, "cache", e.Name())
		level, err := strconv.Atoi(text(filepath.Join(cache, "level")))
		if err != nil || level <= highest || text(filepath.Join(cache, "type")) == "Instruction" {
			continue
		}
		if set, ok := siblings(filepath.Join(cache, "shared_cpu_list"), id, online); ok {
			shared, highest = set, level
		}
	}
	if highest > 0 {
		return shared, true
	}
	for _, name := range []string{"package_cpus_list", "core_siblings_list"} {
		if set, ok := siblings(filepath.Join(dir, "topology", name), id, online); ok {
			return set, true
		}
	}
	return cpuset.Set{}, false
}

// siblings reads a list of CPUs that share something with id. A list without id itself makes no sense and is not used.
func siblings(file string, id int, online cpuset.Set) (cpuset.Set, bool) {
	set, err := cpuset.Parse(text(file))
	if err != nil || !set.Has(id) {
		return cpuset.Set{}, false
	}
	return set.And(online), true
}

// node is the NUMA node of the CPU whose directory this is; 0 if the kernel knows no nodes.
func node(dir string) int {
	entries, _ := os.ReadDir(dir) // an unreadable directory tells nothing: node 0
	for _, e := range entries {
		if n, ok := numbered(e.Name(), "node"); ok {
			return n
		}
	}
	return 0
}

// numbered takes "cpu12" apart.
func numbered(name, prefix string) (int, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), err == nil
}

// text is the content of a file, or "" if it cannot be read.
func text(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func first(s cpuset.Set) int {
	for cpu := range cpuset.Max {
		if s.Has(cpu) {
			return cpu
		}
	}
	return 0
}
