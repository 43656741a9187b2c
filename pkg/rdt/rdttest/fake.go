// Package rdttest has a resctrl for tests that plays the kernel: it refuses what the kernel refuses, with the kernel's errno and text
// (seen on 6.1 and 6.12, see test/rig/README.md), pads and rounds as it does, and runs out of ids.
package rdttest

import (
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Machine is what a fake has. The zero value of a field but Ways and MB means its default.
type Machine struct {
	Domains []int // cache ids; default 0
	Ways    int   // 0: no CAT
	MinBits int   // default 1
	CLOSIDs int   // default 16
	RMIDs   int   // 0: no monitoring
	CDP     bool
	Sparse  bool // masks may have gaps
	// Shareable ways.
	Shareable uint64
	MB        rdt.Unit // 0: no MBA
	// RoundsMiBps: the kernel lacks a fix of 2024 and rounds limits in MiB/s, too, in 32 bits.
	RoundsMiBps bool
	Old         bool // Linux 6.1: monitoring groups cannot be renamed, there is no sparse_masks
	// Limbo is for how many calls of Mkdir a freed RMID cannot be used.
	Limbo int
}

// Fake is a resctrl.
type Fake struct {
	m      Machine
	groups map[string]*group // "" is the default one; monitoring groups are "mon_groups/x" or "g/mon_groups/x"
	tasks  map[int]string    // group of each thread that lives
	limbo  []int             // calls that each freed RMID still has to wait
	status string
	values map[string]string // of counters that were set

	// Before, if set, is asked before each change; an error that it returns is the call's, and nothing changes.
	Before func(op, name, text string) error
	// Writes counts changes that were tried.
	Writes int
}

type group struct {
	masks map[string]map[int]uint64 // resource -> domain -> value
	mode  string
}

// New makes one with the default group and no threads.
func New(m Machine) *Fake {
	if len(m.Domains) == 0 {
		m.Domains = []int{0}
	}
	if m.MinBits == 0 {
		m.MinBits = 1
	}
	if m.CLOSIDs == 0 {
		m.CLOSIDs = 16
	}
	f := &Fake{m: m, groups: map[string]*group{}, tasks: map[int]string{}, status: "ok\n", values: map[string]string{}}
	f.groups[""] = f.fresh()
	return f
}

// resources are the lines of schemata, in the kernel's order.
func (f *Fake) resources() []string {
	var out []string
	if f.m.MB != 0 {
		out = append(out, "MB")
	}
	switch {
	case f.m.Ways > 0 && f.m.CDP:
		out = append(out, "L3CODE", "L3DATA")
	case f.m.Ways > 0:
		out = append(out, "L3")
	}
	return out
}

func (f *Fake) full() uint64 { return 1<<f.m.Ways - 1 }

// unlimited is MB without limit, minimum and step.
func (f *Fake) bandwidth() (full, least, step uint64) {
	switch f.m.MB {
	case rdt.MiBps:
		return rdt.Unlimited, 10, 10
	case rdt.EighthGBs:
		return 2048, 1, 1
	}
	return 100, 10, 10
}

func (f *Fake) fresh() *group {
	g := &group{masks: map[string]map[int]uint64{}, mode: "shareable"}
	for _, r := range f.resources() {
		g.masks[r] = map[int]uint64{}
		for _, d := range f.m.Domains {
			if g.masks[r][d] = f.full(); r == "MB" {
				g.masks[r][d], _, _ = f.bandwidth()
			}
		}
	}
	return g
}

// closids is how many control groups there can be.
func (f *Fake) closids() int {
	if f.m.CDP {
		return f.m.CLOSIDs / 2
	}
	return f.m.CLOSIDs
}

func split(name string) (parent, mon string, isMon bool) {
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if path.Base(dir) != "mon_groups" {
		return "", "", false
	}
	parent = path.Dir(dir)
	if parent == "." {
		parent = ""
	}
	return parent, base, true
}

// text is what a file shows.
func (f *Fake) text(name string) (string, error) {
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if text, ok := f.values[name]; ok && f.groups[strings.TrimSuffix(strings.Split(dir, "mon_data")[0], "/")] != nil {
		return text, nil
	}
	if g := f.groups[dir]; g != nil {
		_, _, isMon := split(dir)
		switch {
		case base == "schemata" && !isMon:
			return f.schemata(g), nil
		case base == "mode" && !isMon:
			return g.mode + "\n", nil
		case base == "tasks":
			return f.list(dir), nil
		}
	}
	if text, ok := f.info()[name]; ok {
		return text, nil
	}
	if owner, domain, ok := strings.Cut(dir, "mon_data/mon_L3_"); ok && f.m.RMIDs > 0 && f.groups[strings.TrimSuffix(owner, "/")] != nil {
		if id, err := strconv.Atoi(domain); err == nil && slices.Contains(f.m.Domains, id) && slices.Contains([]string{"llc_occupancy", "mbm_total_bytes", "mbm_local_bytes"}, base) {
			return "0\n", nil
		}
	}
	return "", fs.ErrNotExist
}

func (f *Fake) info() map[string]string {
	info := map[string]string{"info/last_cmd_status": f.status}
	for _, r := range f.resources() {
		info["info/"+r+"/num_closids"] = fmt.Sprintln(f.closids())
		if r == "MB" {
			_, least, step := f.bandwidth()
			info["info/MB/min_bandwidth"], info["info/MB/bandwidth_gran"] = fmt.Sprintln(least), fmt.Sprintln(step)
			info["info/MB/delay_linear"] = "1\n"
			if f.m.MB != rdt.EighthGBs {
				info["info/MB/thread_throttle_mode"] = "max\n"
			}
			continue
		}
		info["info/"+r+"/cbm_mask"] = fmt.Sprintf("%x\n", f.full())
		info["info/"+r+"/min_cbm_bits"] = fmt.Sprintln(f.m.MinBits)
		info["info/"+r+"/shareable_bits"] = fmt.Sprintf("%x\n", f.m.Shareable)
		if !f.m.Old {
			info["info/"+r+"/sparse_masks"] = fmt.Sprintln(map[bool]int{true: 1}[f.m.Sparse])
		}
	}
	if f.m.RMIDs > 0 {
		info["info/L3_MON/num_rmids"] = fmt.Sprintln(f.m.RMIDs)
		info["info/L3_MON/mon_features"] = "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n"
		info["info/L3_MON/max_threshold_occupancy"] = "360448\n"
	}
	return info
}

// schemata pads names to the longest one and percents to three digits, as the kernel does.
func (f *Fake) schemata(g *group) string {
	var b strings.Builder
	width := 0
	for _, r := range f.resources() {
		width = max(width, len(r))
	}
	for _, r := range f.resources() {
		fmt.Fprintf(&b, "%*s:", width, r)
		for i, d := range f.m.Domains {
			if i > 0 {
				b.WriteByte(';')
			}
			if r == "MB" {
				fmt.Fprintf(&b, "%d=%4d", d, g.masks[r][d])
			} else {
				fmt.Fprintf(&b, "%d=%x", d, g.masks[r][d])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// list is the threads of a group; those of a control group include its monitoring groups'.
func (f *Fake) list(name string) string {
	_, _, isMon := split(name)
	var b strings.Builder
	for _, tid := range slices.Sorted(maps.Keys(f.tasks)) {
		at := f.tasks[tid]
		if parent, _, ok := split(at); at == name || !isMon && ok && parent == name {
			fmt.Fprintln(&b, tid)
		}
	}
	return b.String()
}

func (f *Fake) Read(name string, _ []byte) ([]byte, error) {
	text, err := f.text(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return []byte(text), nil
}

type file struct {
	f    *Fake
	name string
}

func (o file) ReadInto(buf []byte) ([]byte, error) {
	text, err := o.f.text(o.name)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: o.name, Err: unix.ENODEV}
	}
	return buf[:copy(buf, text)], nil
}

func (file) Close() error { return nil }

func (f *Fake) Open(name string) (rdt.File, error) {
	if _, err := f.text(name); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file{f, name}, nil
}

func (f *Fake) Dirs(name string) ([]string, error) {
	if base := path.Base(name); base == "mon_data" {
		owner := strings.TrimSuffix(strings.TrimSuffix(name, "mon_data"), "/")
		if f.groups[owner] == nil || f.m.RMIDs == 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		var out []string
		for _, d := range f.m.Domains {
			out = append(out, fmt.Sprintf("mon_L3_%02d", d))
		}
		return out, nil
	} else if base == "mon_groups" {
		owner := strings.TrimSuffix(strings.TrimSuffix(name, "mon_groups"), "/")
		if f.groups[owner] == nil || f.m.RMIDs == 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		var out []string
		for g := range f.groups {
			if parent, mon, ok := split(g); ok && parent == owner {
				out = append(out, mon)
			}
		}
		slices.Sort(out)
		return out, nil
	}
	if name != "" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	out := []string{"info"}
	if f.m.RMIDs > 0 {
		out = append(out, "mon_data", "mon_groups")
	}
	for g := range f.groups {
		if _, _, isMon := split(g); g != "" && !isMon {
			out = append(out, g)
		}
	}
	slices.Sort(out)
	return out, nil
}

// before counts a change and asks the test.
func (f *Fake) before(op, name, text string) error {
	f.Writes++
	if f.Before == nil {
		return nil
	}
	return f.Before(op, name, text)
}

func (f *Fake) Mkdir(name string) error {
	if err := f.before("mkdir", name, ""); err != nil {
		return err
	}
	fail := func(err error, status string) error {
		if status != "" { // what was there is not cleared
			f.status = strings.TrimPrefix(f.status, "ok\n") + status + "\n"
		}
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	free := f.m.RMIDs
	for i := range f.limbo {
		f.limbo[i]--
	}
	f.limbo = slices.DeleteFunc(f.limbo, func(n int) bool { return n < 0 })
	parent, base, isMon := split(name)
	if f.groups[name] != nil {
		return fail(fs.ErrExist, "")
	}
	if isMon && (f.groups[parent] == nil || f.m.RMIDs == 0) {
		return fail(fs.ErrNotExist, "")
	}
	if !isMon {
		base = name
		if strings.Contains(name, "/") {
			return fail(unix.EPERM, "")
		}
		if len(f.resources()) == 0 {
			return fail(unix.EPERM, "")
		}
		control := 0
		for g := range f.groups {
			if _, _, mon := split(g); !mon {
				control++
			}
		}
		if control >= f.closids() {
			return fail(unix.ENOSPC, "Out of CLOSIDs")
		}
	}
	if slices.Contains([]string{"info", "mon_groups", "mon_data"}, base) {
		return fail(fs.ErrExist, "")
	}
	if free > 0 && len(f.groups)+len(f.limbo) >= free {
		if len(f.limbo) > 0 {
			return fail(unix.EBUSY, "Out of RMIDs")
		}
		return fail(unix.ENOSPC, "Out of RMIDs")
	}
	f.groups[name] = f.fresh()
	return nil
}

func (f *Fake) Rmdir(name string) error {
	if err := f.before("rmdir", name, ""); err != nil {
		return err
	}
	if name == "" || f.groups[name] == nil {
		return &fs.PathError{Op: "rmdir", Path: name, Err: fs.ErrNotExist}
	}
	f.status = "ok\n"
	parent, _, isMon := split(name)
	for other := range f.groups {
		if p, _, ok := split(other); !isMon && ok && p == name {
			f.drop(other)
		}
	}
	if !isMon {
		parent = ""
	}
	for tid, at := range f.tasks {
		if p, _, ok := split(at); at == name || !isMon && ok && p == name {
			f.tasks[tid] = parent
		}
	}
	f.drop(name)
	return nil
}

func (f *Fake) drop(name string) {
	delete(f.groups, name)
	if f.m.Limbo > 0 {
		f.limbo = append(f.limbo, f.m.Limbo)
	}
}

func (f *Fake) Rename(from, to string) error {
	if err := f.before("rename", from, to); err != nil {
		return err
	}
	fail := func(err error) error { return &fs.PathError{Op: "rename", Path: from, Err: err} }
	_, _, monFrom := split(from)
	parent, _, monTo := split(to)
	switch {
	case f.m.Old || !monFrom || !monTo:
		return fail(unix.EPERM)
	case f.groups[from] == nil || f.groups[parent] == nil:
		return fail(fs.ErrNotExist)
	case f.groups[to] != nil:
		return fail(fs.ErrExist)
	}
	f.status = "ok\n"
	f.groups[to] = f.groups[from]
	delete(f.groups, from)
	for tid, at := range f.tasks {
		if at == from {
			f.tasks[tid] = to
		}
	}
	for name, text := range f.values {
		if rest, ok := strings.CutPrefix(name, from+"/"); ok {
			delete(f.values, name)
			f.values[to+"/"+rest] = text
		}
	}
	return nil
}

func (f *Fake) Write(name string, raw []byte) error {
	text := string(raw)
	if err := f.before("write", name, text); err != nil {
		return err
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	g := f.groups[dir]
	if g == nil {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f.status = "ok\n"
	fail := func(err error, status string) error {
		if status != "" {
			f.status = status + "\n"
		}
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	switch base {
	case "tasks":
		return f.move(dir, strings.TrimSpace(text), fail)
	case "mode":
		mode, ok := strings.CutSuffix(text, "\n")
		if !ok {
			return fail(unix.EINVAL, "")
		}
		if mode != "shareable" && mode != "exclusive" {
			return fail(unix.EINVAL, "Unknown or unsupported mode")
		}
		if mode == "exclusive" && f.overlaps(dir, g, func(*group) bool { return true }) {
			return fail(unix.EINVAL, "Schemata overlaps")
		}
		g.mode = mode
		return nil
	case "schemata":
		return f.limit(dir, g, text, fail)
	}
	return fail(fs.ErrNotExist, "")
}

func (f *Fake) overlaps(name string, g *group, with func(*group) bool) bool {
	for other, o := range f.groups {
		if _, _, isMon := split(other); isMon || other == name || !with(o) {
			continue
		}
		for r, domains := range g.masks {
			for d, v := range domains {
				if r != "MB" && v&o.masks[r][d] != 0 {
					return true
				}
			}
		}
	}
	return false
}

func (f *Fake) move(dir, text string, fail func(error, string) error) error {
	tid, err := strconv.Atoi(text)
	switch {
	case err != nil && strings.Contains(text, ",") && f.m.Old:
		return fail(unix.EINVAL, "")
	case err != nil || tid < 0:
		if f.m.Old {
			return fail(unix.EINVAL, "")
		}
		return fail(unix.EINVAL, "Task list parsing error pid "+text)
	}
	at, lives := f.tasks[tid]
	if !lives {
		return fail(unix.ESRCH, f.about(tid, fmt.Sprintf("No task %d", tid)))
	}
	if parent, _, ok := split(dir); ok {
		home, _, isMon := split(at)
		if !isMon {
			home = at
		}
		if home != parent {
			return fail(unix.EINVAL, f.about(tid, "Can't move task to different control group"))
		}
	}
	f.tasks[tid] = dir
	return nil
}

// about is what newer kernels add.
func (f *Fake) about(tid int, status string) string {
	if f.m.Old {
		return status
	}
	return fmt.Sprintf("%s\nError while processing task %d", status, tid)
}

func (f *Fake) limit(dir string, g *group, text string, fail func(error, string) error) error {
	if !strings.HasSuffix(text, "\n") {
		return fail(unix.EINVAL, "")
	}
	staged := map[string]map[int]uint64{}
	for line := range strings.Lines(text) {
		resource, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			return fail(unix.EINVAL, "Missing ':'")
		}
		if !slices.Contains(f.resources(), resource) {
			return fail(unix.EINVAL, fmt.Sprintf("Unknown or unsupported resource name '%s'", resource))
		}
		staged[resource] = map[int]uint64{}
		for part := range strings.SplitSeq(list, ";") {
			id, value, ok := strings.Cut(part, "=")
			d, err := strconv.Atoi(strings.TrimSpace(id))
			if !ok || err != nil {
				return fail(unix.EINVAL, "Missing '=' or non-numeric domain")
			}
			if !slices.Contains(f.m.Domains, d) {
				return fail(unix.EINVAL, "")
			}
			if _, twice := staged[resource][d]; twice {
				return fail(unix.EINVAL, fmt.Sprintf("Duplicate domain %d", d))
			}
			v, why := f.value(resource, value)
			if why != "" {
				return fail(unix.EINVAL, why)
			}
			staged[resource][d] = v
		}
	}
	want := &group{masks: map[string]map[int]uint64{}}
	for r, domains := range staged {
		if r != "MB" {
			want.masks[r] = domains
		}
	}
	if f.overlaps(dir, want, func(o *group) bool { return o.mode == "exclusive" || g.mode == "exclusive" }) {
		return fail(unix.EINVAL, "Overlaps with exclusive group")
	}
	for r, domains := range staged {
		maps.Copy(g.masks[r], domains)
	}
	return nil
}

// value is what the kernel makes of a text, or why it refuses it.
func (f *Fake) value(resource, text string) (v uint64, why string) {
	text = strings.TrimSpace(text)
	if resource == "MB" {
		full, least, step := f.bandwidth()
		v, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return 0, "Invalid MB value " + text
		}
		if (v < least || v > full) && f.m.MB != rdt.MiBps {
			return 0, fmt.Sprintf("MB value %d out of range [%d,%d]", v, least, full)
		}
		if f.m.MB == rdt.Percent || f.m.MB == rdt.MiBps && f.m.RoundsMiBps {
			v = (v + step - 1) / step * step
		}
		return v & (1<<32 - 1), ""
	}
	v, err := strconv.ParseUint(text, 16, 64)
	switch {
	case err != nil:
		return 0, "Non-hex character in the mask " + text
	case v == 0 || v&^f.full() != 0:
		return 0, "Mask out of range"
	case !f.m.Sparse && !rdt.Contiguous(v):
		return 0, fmt.Sprintf("The mask %x has non-consecutive 1-bits", v)
	case bits.OnesCount64(v) < f.m.MinBits:
		return 0, fmt.Sprintf("Need at least %d bits in the mask", f.m.MinBits)
	}
	return v, ""
}

// Spawn makes a thread in the default group.
func (f *Fake) Spawn(tids ...int) {
	for _, tid := range tids {
		f.tasks[tid] = ""
	}
}

// Fork makes a thread where its parent is.
func (f *Fake) Fork(parent, child int) { f.tasks[child] = f.tasks[parent] }

// Kill ends threads.
func (f *Fake) Kill(tids ...int) {
	for _, tid := range tids {
		delete(f.tasks, tid)
	}
}

// At is the group of a thread.
func (f *Fake) At(tid int) string { return f.tasks[tid] }

// Set makes a counter's file ("offline/mon_data/mon_L3_00/llc_occupancy") show a text.
func (f *Fake) Set(name, text string) { f.values[name] = text }

// Snapshot is all that a restore has to bring back: groups, their limits, their modes and the threads in them.
func (f *Fake) Snapshot() map[string]string {
	out := map[string]string{}
	for name, g := range f.groups {
		if _, _, isMon := split(name); !isMon {
			out[path.Join(name, "schemata")] = f.schemata(g)
			out[path.Join(name, "mode")] = g.mode
		}
		out[path.Join(name, "tasks")] = f.list(name)
	}
	return out
}
