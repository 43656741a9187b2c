package rdt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// State is what a counter's file shows. States are ordered: of several, the worst is that of their sum.
type State uint8

const (
	OK          State = iota // a number
	Unavailable              // the hardware had none at that moment
	Unassigned               // the machine has fewer counters than groups, and this group has none (AMD ABMC)
	Error                    // the hardware says that it cannot
)

func (s State) String() string {
	return [...]string{"ok", "unavailable", "unassigned", "error"}[s]
}

// ParseCounter reads a file of mon_data. A word of the kernel in place of a number is a state, and no error.
func ParseCounter(text []byte) (uint64, State, error) {
	text = bytes.TrimSpace(text)
	switch string(text) {
	case "Unavailable":
		return 0, Unavailable, nil
	case "Unassigned":
		return 0, Unassigned, nil
	case "Error":
		return 0, Error, nil
	}
	n, err := parseUint(text)
	if err != nil {
		return 0, Error, fmt.Errorf("resctrl: counter %.32q: %w", text, err)
	}
	return n, OK, nil
}

// parseUint is strconv.ParseUint without an allocation.
func parseUint(text []byte) (uint64, error) {
	if len(text) == 0 {
		return 0, errors.New("empty")
	}
	var n uint64
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, strconv.ErrSyntax
		}
		next := n*10 + uint64(c-'0')
		if n > (1<<64-1)/10 || next < n*10 {
			return 0, strconv.ErrRange
		}
		n = next
	}
	return n, nil
}

// Reading is one group's counters in one domain. A counter that the machine has not got is zero and OK.
type Reading struct {
	Domain    int    // id of the L3 cache
	Occupancy uint64 // bytes that the group's lines hold in the cache
	Total     uint64 // bytes moved between cache and memory since some time; the kernel makes the counter 64 bits wide
	Local     uint64 // of these, from and to memory of the same socket
	// States of the three counters.
	OccupancyState, TotalState, LocalState State
}

// State is the worst of the three.
func (r *Reading) State() State { return max(r.OccupancyState, r.TotalState, r.LocalState) }

// Counters are the counters of a group, opened. Reading them is one system call a counter, and no allocation.
type Counters struct {
	domains []domainFiles
	buf     [64]byte
}

type domainFiles struct {
	id    int
	files [3]File // occupancy, total, local; nil if the machine has not got it
}

var counterNames = [3]string{"llc_occupancy", "mbm_total_bytes", "mbm_local_bytes"}

// Counters opens the counters of a control or monitoring group. Domains are in ascending order.
func (f *FS) Counters(group string) (*Counters, error) {
	dir := path.Join(group, dataDir)
	names, err := f.tree.Dirs(dir)
	if err != nil {
		return nil, fmt.Errorf("resctrl: counters of %s: %w", cmpName(group), err)
	}
	c := new(Counters)
	for _, name := range names {
		text, ok := strings.CutPrefix(name, "mon_L3_")
		if !ok {
			continue // other things are counted too, such as energy
		}
		id, err := strconv.Atoi(text)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("resctrl: counters of %s: domain %s: %w", cmpName(group), name, err)
		}
		d := domainFiles{id: id}
		for i, counter := range counterNames {
			file, err := f.tree.Open(path.Join(dir, name, counter))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				c.domains = append(c.domains, d)
				c.Close()
				return nil, fmt.Errorf("resctrl: counters of %s: %w", cmpName(group), err)
			}
			d.files[i] = file
		}
		c.domains = append(c.domains, d)
	}
	sortDomains(c.domains)
	return c, nil
}

func sortDomains(d []domainFiles) {
	for i := 1; i < len(d); i++ {
		for j := i; j > 0 && d[j].id < d[j-1].id; j-- {
			d[j], d[j-1] = d[j-1], d[j]
		}
	}
}

// Read appends a reading of each domain to out. The error matches Gone if the group has been removed.
func (c *Counters) Read(out []Reading) ([]Reading, error) {
	for i := range c.domains {
		d := &c.domains[i]
		r := Reading{Domain: d.id}
		for k, to := range [3]struct {
			value *uint64
			state *State
		}{{&r.Occupancy, &r.OccupancyState}, {&r.Total, &r.TotalState}, {&r.Local, &r.LocalState}} {
			if d.files[k] == nil {
				continue
			}
			text, err := d.files[k].ReadInto(c.buf[:])
			if err != nil {
				return out, err
			}
			if *to.value, *to.state, err = ParseCounter(text); err != nil {
				return out, err
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// Close closes the files.
func (c *Counters) Close() {
	for i := range c.domains {
		for _, f := range c.domains[i].files {
			if f != nil {
				f.Close()
			}
		}
	}
	c.domains = nil
}
