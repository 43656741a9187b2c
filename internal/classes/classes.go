// Package classes makes classes of service so: it has the controllers' shares planned (package clos), makes control groups of resctrl
// and limits them, puts pods' threads into them and keeps them there, gives pods monitoring groups, and takes all of it away when
// nobody wants it any more, when the agent leaves, or after a crash.
//
// All that it touches is groups of its own, whose names begin with Prefix; it makes them, and to restore is to remove them: the
// kernel then puts their threads back into the default group, where they came from. Groups of others, and threads in them, are left
// alone. The limits of the default group are never written.
package classes

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/clos"
	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Prefix is how the names of all our groups begin.
const Prefix = "qos-agent."

// Options of an Executor. RunDir and Threads are required.
type Options struct {
	// Dir is where resctrl is, or is to be, mounted; "" is rdt.DefaultDir.
	Dir rdt.Dir
	// Tree is how resctrl is touched; nil is Dir. With it, nothing is mounted.
	Tree rdt.Tree
	// MayMount lets the executor mount resctrl if it is not mounted; it then unmounts it when it leaves.
	MayMount bool
	// Proc is where the process file system is; "" is /proc.
	Proc string
	// RunDir holds the journal and a lock. It is made if it is missing, and belongs on a tmpfs.
	RunDir string
	// Threads appends the threads of a pod's group and of the groups below it.
	Threads func(group string, tids []int) ([]int, error)
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// BootID names this run of the machine; "" reads the kernel's.
	BootID string

	crash func(point string) // tests kill the process here
}

// Policy is what an operator decides about the executor, and what the planner has to know besides the machine.
type Policy struct {
	// Enforce makes classes. Without it pods are only monitored, and the plan is what would be.
	Enforce bool
	// Edits is what happens when someone else changes the limits of a group of ours; empty is policy.Reapply.
	Edits policy.ExternalEdits
	// Cache is what the policy says of ways: how many offline pods keep at least, and which are whose.
	Cache policy.CacheControl
	// FloorPercent is the limit of bandwidth that offline pods keep at least.
	FloorPercent int
	// TotalMBps is what one socket's memory can move, MB/s; 0: not known. It matters where limits are not in percent.
	TotalMBps int
}

// Class is a class that is held, for people.
type Class struct {
	Group     string // "qos-agent.offline"
	Schemata  string // its limits as the kernel takes them, resources separated by blanks
	Ways      int    // 0: the machine has no cache allocation
	MBPercent int    // 0: no limit
	Cache     knob.Part
	Bandwidth knob.Part
	Pods      []string // "namespace/name"
	Since     time.Time
}

// Executor owns our groups. It is not for concurrent use.
type Executor struct {
	fs      *rdt.FS
	tree    rdt.Tree
	dir     rdt.Dir
	mounted bool // by us
	threads func(string, []int) ([]int, error)
	log     *slog.Logger
	now     func() time.Time
	boot    string
	runDir  string
	lock    *os.File
	journal *journal.File[record]
	crash   func(string)

	planner  clos.Planner
	policy   Policy
	shares   []knob.Share
	limits   clos.Limits
	stale    bool // limits are to be looked at again
	lost     bool // resctrl was unmounted under us
	plan     *knob.ClassPlan
	applied  bool
	classes  map[string]*class // by name in the plan
	wanted   map[string]bool   // names in the present plan
	pods     map[string]*pod   // by group
	order    []*pod            // of pods, in the order in which they are scanned
	cursor   int               // in order, of who was scanned last
	verified int               // in names, of the class whose threads were verified last
	foreign  foreign
	renames  bool            // the kernel can rename monitoring groups, as far as is known
	owed     map[string]bool // groups that a dead agent has left and that nobody has claimed yet
	retryAt  time.Time
	wait     time.Duration
	said     map[string]string // what was last said to have failed, by what it was about
	version  uint64
	out      []knob.ClassOutcome
	tids     []int // scratch of rescan
	sorted   []int
	adopted  int
	other    int // groups of another boot that the journal knew
}

// class is a control group of ours.
type class struct {
	name  string // in the plan
	want  knob.Class
	lines []rdt.Line // what was written
	have  rdt.Schemata
	since time.Time
	// yielded says that someone else has changed the limits, and keeps them.
	yielded bool
	// adopted says that a dead agent made it: who knows what is in it.
	adopted bool
}

func (c *class) group() string { return Prefix + c.name }

// pod is a pod whose threads we have put somewhere.
type pod struct {
	member knob.MemberPod
	group  string // control group of ours in which it is; "": the default one
	mon    string // its monitoring group's own name; "": none
	known  []int  // threads that were put there, sorted
	// foreign is a group of others that has threads of the pod.
	foreign string
	scan    bool // its threads are to be looked at
	// containers are the ids that Pods told last.
	containers []string
}

// dest is the group in which the pod's threads are.
func (p *pod) dest() string {
	if p.mon != "" {
		return rdt.MonGroup(p.group, p.mon)
	}
	return p.group
}

// Times between tries of what failed.
const firstRetry, lastRetry = time.Second, time.Minute

// Open takes the run directory's lock, mounts resctrl if it may, and adopts what a killed agent left there: it stays as it is until
// the first Apply. The error wraps rdt.ErrNotMounted or rdt.ErrUnsupported where there is nothing to work with, and is a
// *journal.Busy if another agent runs.
func Open(o Options) (*Executor, error) {
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("run dir %s: cannot be made: %w", o.RunDir, journal.Reason(err))
	}
	lock, err := journal.Lock(o.RunDir, lockName)
	if err != nil {
		return nil, err
	}
	e, err := open(o, lock)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return e, nil
}

func open(o Options, lock *os.File) (*Executor, error) {
	e := &Executor{
		tree: o.Tree, dir: cmp.Or(o.Dir, rdt.DefaultDir), threads: o.Threads, log: o.Log, now: o.Now, boot: o.BootID, runDir: o.RunDir,
		lock: lock, crash: o.crash, renames: true, stale: true,
		classes: make(map[string]*class), pods: make(map[string]*pod), wanted: make(map[string]bool), owed: make(map[string]bool), said: make(map[string]string),
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.now == nil {
		e.now = time.Now
	}
	if e.crash == nil {
		e.crash = func(string) {}
	}
	if e.boot == "" {
		text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("boot id: %w", err)
		}
		e.boot = strings.TrimSpace(string(text))
	}
	past, err := loadHistory(o.RunDir)
	if err != nil {
		return nil, err
	}
	if past.boot != "" && past.boot != e.boot {
		e.other = len(past.groups)
		past = history{}
	}
	e.mounted = past.mounted
	if err := e.mount(o, past); err != nil {
		return nil, err
	}
	if e.fs, err = rdt.Open(e.tree); err != nil {
		return nil, err
	}
	if err := e.adopt(past); err != nil {
		return nil, err
	}
	if e.journal == nil {
		e.journal, err = journal.Create(e.journalPath(), e.state(), e.crash)
		if errors.Is(err, unix.ENOSPC) && past.boot == e.boot {
			// Without room for a new journal the old one does, to take away what is there.
			e.log.Error("journal cannot be written anew", "error", err)
			e.journal, err = journal.Reopen[record](e.journalPath(), e.crash)
		}
		if err != nil {
			return nil, fmt.Errorf("run dir %s: %w", o.RunDir, journal.Reason(err))
		}
	}
	return e, nil
}

func (e *Executor) journalPath() string { return journalPath(e.runDir) }

func journalPath(runDir string) string { return filepath.Join(runDir, journalName) }

// mount sees to it that there is a resctrl, if that is allowed. The journal knows before it happens.
func (e *Executor) mount(o Options, past history) error {
	if e.tree != nil {
		return nil
	}
	e.tree = e.dir
	_, on, err := rdt.Mounted(cmp.Or(o.Proc, "/proc"), e.dir)
	if err != nil {
		return fmt.Errorf("resctrl: %w", err)
	}
	if on {
		return nil
	}
	e.mounted = false // if a dead agent had mounted it, somebody has unmounted it
	if !o.MayMount {
		return fmt.Errorf("%w at %s, and the policy (rdt.mount) does not let the agent mount it", rdt.ErrNotMounted, e.dir)
	}
	e.mounted = true
	if e.journal, err = journal.Create(e.journalPath(), e.state(), e.crash); err != nil {
		return fmt.Errorf("run dir %s: %w", e.runDir, journal.Reason(err))
	}
	e.crash("about to mount")
	if err := rdt.Mount(e.dir, rdt.MountOptions{}); err != nil {
		e.journal.Close()
		return errors.Join(err, os.Remove(e.journalPath()))
	}
	e.crash("mounted")
	e.log.Info("mounted resctrl", "dir", e.dir)
	return nil
}

// adopt finds the groups that a dead agent has left: those that bear our name, whether the journal knows them or not, since nobody
// else uses it. They stay until the first plan says what becomes of them.
func (e *Executor) adopt(past history) error {
	groups, err := e.ours()
	if err != nil {
		return err
	}
	for _, g := range groups {
		e.owed[g] = true
	}
	if e.adopted = len(groups); e.adopted > 0 {
		e.log.Info("took over the resctrl groups of an agent that did not leave in order", "groups", e.adopted, "journalled", len(past.groups))
	}
	return nil
}

// ours lists all groups that bear our name, monitoring groups before the control groups that they are in.
func (e *Executor) ours() ([]string, error) {
	var mon, control []string
	names, err := e.fs.Groups()
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{""}, names...) {
		if strings.HasPrefix(name, Prefix) {
			control = append(control, name)
		}
		groups, err := e.fs.MonGroups(name)
		if err != nil {
			if rdt.Gone(err) {
				continue
			}
			return nil, err
		}
		for _, g := range groups {
			if strings.HasPrefix(path.Base(g), Prefix) {
				mon = append(mon, g)
			}
		}
	}
	return append(mon, control...), nil
}

// Adopted is how many groups were taken over from an agent that was killed.
func (e *Executor) Adopted() int { return e.adopted }

// Machine is what a policy can ask of a machine, from what resctrl says of it.
func Machine(info *rdt.Info) policy.Machine {
	m := policy.Machine{CLOSIDs: info.CLOSIDs}
	if c := lastLevel(info); c != nil {
		m.Ways, m.MinWays, m.Sparse = policy.Ways(c.Mask), c.MinBits, c.Sparse
	}
	if info.MB != nil && info.MB.Unit == rdt.Percent {
		m.MBMin = int(info.MB.Min)
	}
	return m
}

// Info is what the machine can do.
func (e *Executor) Info() *rdt.Info { return &e.fs.Info }

// FS is the resctrl in use, for readers.
func (e *Executor) FS() *rdt.FS { return e.fs }

// Plan is the plan that was made last; in observe mode it is what would be. It is valid until the next Apply; nil before the first.
func (e *Executor) Plan() *knob.ClassPlan { return e.plan }

// Notes are the wants that the last plan does not meet in full.
func (e *Executor) Notes() []clos.Note { return e.planner.Notes() }

// MonitorGroup is the monitoring group of a pod, by the pod's own group; ok is false while it has none.
func (e *Executor) MonitorGroup(cgroup string) (group string, ok bool) {
	if p := e.pods[cgroup]; p != nil && p.mon != "" {
		return p.dest(), true
	}
	return "", false
}

// Held lists the classes that are there, by name.
func (e *Executor) Held() []Class {
	var out []Class
	for _, name := range e.names() {
		c := e.classes[name]
		held := Class{
			Group: c.group(), Schemata: show(c.have), Ways: c.want.Ways, MBPercent: c.want.MBPercent,
			Cache: c.want.Cache, Bandwidth: c.want.Bandwidth, Since: c.since,
		}
		for _, m := range c.want.Pods {
			held.Pods = append(held.Pods, m.Pod)
		}
		out = append(out, held)
	}
	return out
}

// Generation changes whenever Held may answer differently.
func (e *Executor) Generation() uint64 { return e.version }

func (e *Executor) names() []string {
	names := make([]string, 0, len(e.classes))
	for name := range e.classes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func show(s rdt.Schemata) string {
	var parts []string
	for i := range s {
		parts = append(parts, s[i].String())
	}
	return strings.Join(parts, " ")
}

// tell adds an outcome.
func (e *Executor) tell(o knob.ClassOutcome) {
	e.version++
	e.out = append(e.out, o)
}

// failed tells of a failure once, until it is another one or has gone, and has everything tried again later.
func (e *Executor) failed(o knob.ClassOutcome, err error) {
	e.later()
	key := about(o.Resource, o.Group, o.Pod)
	if e.said[key] == err.Error() {
		return
	}
	e.said[key] = err.Error()
	if o.Result = knob.Failed; rdt.Gone(err) {
		o.Result = knob.Gone
	}
	var m *rdt.Mismatch
	if errors.As(err, &m) {
		o.Result = knob.Mismatch
	}
	o.Err = err
	e.tell(o)
}

func (e *Executor) works(resource, group, pod string) {
	if len(e.said) > 0 {
		delete(e.said, about(resource, group, pod))
	}
}

// later has what failed tried again after a while, each time a longer one.
func (e *Executor) later() {
	if e.retryAt.IsZero() {
		e.wait = min(max(2*e.wait, firstRetry), lastRetry)
		e.retryAt = e.now().Add(e.wait)
	}
}
