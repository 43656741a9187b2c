// Package actuate carries out plans: it writes knobs in an order that the kernel accepts, reads them back, remembers in a
// journal what they were before, and puts them back when nobody wants them any more, when the agent leaves, or after a crash.
//
// A plan is the complete list of what is wanted. Apply compares it with what is held; from each difference follow goals, for
// the knob itself and for those that have to follow it (goals.go), from the goals steps in an order that the kernel accepts
// (steps.go), and the steps are journalled (journal.go) and then done.
package actuate

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Options of an Executor. Hierarchy and RunDir are required.
type Options struct {
	Hierarchy *cgroup.Hierarchy
	// RunDir holds the journal and the lock. It is made if it is missing. It belongs on a tmpfs (/run): the first touch of
	// a knob waits for the journal to be synced.
	RunDir string
	// FS is how groups are touched; nil is the kernel's files.
	FS cgroup.FS
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// BootID names this run of the machine; "" reads the kernel's.
	BootID string
	// AuditBatch is how many knobs one Audit looks at, more if very many are held; 0 is 16.
	AuditBatch int

	crash func(point string) // tests kill the process here
}

// Policy is what an operator decides about the executor.
type Policy struct {
	// Edits is what happens when someone else changes a held knob; empty is policy.Reapply.
	Edits policy.ExternalEdits
}

// Held is a knob that differs, or may differ, from what it would be without the agent.
type Held struct {
	knob.Target
	Original string // what it goes back to
	Current  string // what it was seen to be last
	Owner    string
	Rule     string
	Pod      string
	Victim   string
	// Derived is a knob that nobody asked for but that has to follow one: the cpuset of a container on cgroup v1 when its
	// pod's is wanted, the weight that cpu.idle wipes out, the burst that may not exceed the quota.
	Derived bool
	Since   time.Time
}

// Executor owns the knobs. It is not for concurrent use.
type Executor struct {
	h       *cgroup.Hierarchy
	fs      cgroup.FS
	log     *slog.Logger
	now     func() time.Time
	batch   int // knobs per Audit
	boot    string
	lock    *os.File
	runDir  string
	journal *journal.File[record]
	crash   func(string)

	policy   Policy
	last     []knob.Want            // the plan that was applied last
	wants    map[knob.Target]*entry // the same by knob
	held     map[knob.Target]*unit
	closed   map[knob.Target]*record // held by a dead agent, and could not be opened yet
	order    []*unit                 // held, in the order in which Audit looks at them
	cursor   int                     // of Audit
	dirty    map[knob.Target]bool    // knobs that have to be looked at
	retries  map[knob.Target]retry   // what could not be done yet
	retryAt  time.Time               // when the first of them is due; zero if there are none
	refusals map[refusal]uint64      // by the plan that held it last
	plan     uint64                  // counts plans
	version  uint64                  // counts changes of Held
	applied  bool                    // there was a plan
	adopted  int                     // knobs taken over from a dead agent
	early    []knob.Outcome          // what became of adopted knobs before the first Apply: their groups are gone, or thawed
	online   cpuset.Set              // in this round, where cpusets of cgroup v1 are concerned
	own      []string                // the groups in which this process runs
	other    int                     // knobs of another boot that were dropped
	out      []knob.Outcome
	buf      [4096]byte
}

// entry is a want of the current plan.
type entry struct {
	want    knob.Want
	plan    uint64 // that named it last
	yielded bool   // someone else has the knob until the want goes away
	invalid bool   // the want can never be fulfilled, and that was said
	gone    bool   // the group was not there, and that was said
}

// retry is when something that failed is tried again.
type retry struct {
	at   time.Time
	wait time.Duration
}

// auditRounds is in how many Audits at most every held knob is looked at once, if AuditBatch is smaller than that takes.
const auditRounds = 8

const firstRetry, lastRetry = time.Second, time.Minute

type refusal struct {
	knob.Target
	owner string
}

// Open takes the run directory and adopts what a killed agent held there: it stays as it is until the first Apply. The error
// is a *journal.Busy if another agent runs.
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

// open is Open with the lock taken.
func open(o Options, lock *os.File) (*Executor, error) {
	e := &Executor{
		h: o.Hierarchy, fs: o.FS, log: o.Log, now: o.Now, batch: o.AuditBatch, boot: o.BootID, lock: lock, runDir: o.RunDir, crash: o.crash,
		wants: make(map[knob.Target]*entry), held: make(map[knob.Target]*unit),
		closed: make(map[knob.Target]*record), dirty: make(map[knob.Target]bool),
		retries: make(map[knob.Target]retry), refusals: make(map[refusal]uint64),
	}
	e.batch = cmp.Or(e.batch, 16)
	if e.fs == nil {
		e.fs = cgroup.Kernel
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
	e.own = ownGroups(e.h, "/proc/self/cgroup", "/sys/fs/cgroup")
	past, err := loadHistory(o.RunDir)
	if err != nil {
		return nil, err
	}
	if past.damaged > 0 {
		// Also what a newer agent held that this one does not know; the new journal cannot say any of it.
		kept := filepath.Join(o.RunDir, damagedName)
		os.Remove(kept)
		err := os.Link(filepath.Join(o.RunDir, journalName), kept)
		e.log.Warn("journal has lines that cannot be understood; knobs may not go back to what they were", "lines", past.damaged, "copy", kept, "error", err)
	}
	e.adopt(past)
	e.journal, err = journal.Create(filepath.Join(o.RunDir, journalName), e.state(), e.crash)
	if errors.Is(err, unix.ENOSPC) && past.boot == e.boot {
		// Without room for a new journal the old one does, to put back what it says.
		e.note(err)
		e.journal, err = journal.Reopen[record](filepath.Join(o.RunDir, journalName), e.crash)
	}
	if err != nil {
		e.closeKnobs()
		return nil, fmt.Errorf("run dir %s: %w", o.RunDir, journal.Reason(err))
	}
	e.thawAdopted()
	var st unix.Statfs_t
	if unix.Statfs(o.RunDir, &st) == nil && st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		e.log.Info("run dir is not on a tmpfs: the first touch of a knob waits for the disk", "dir", o.RunDir)
	}
	return e, nil
}

// adopt takes over what a dead agent's journal says.
func (e *Executor) adopt(past history) {
	if past.boot != "" && past.boot != e.boot {
		if e.other = len(past.held); e.other > 0 {
			e.log.Info("journal is from before the machine was started anew: nothing to restore", "knobs", e.other)
		}
		return
	}
	for _, t := range past.order {
		if err := cgroup.CheckWritable(t.Cgroup); err != nil {
			e.log.Warn("journal names a group that is never written; it stays as it is", "knob", t.Kind, "error", err)
			continue
		}
		switch u, err := e.revive(t, past.held[t]); {
		case err == nil:
			e.add(u)
			e.touch(t)
		case cgroup.Gone(err):
			e.early = append(e.early, knob.Outcome{Want: want(t, past.held[t]), Old: past.held[t].Now, Result: knob.Gone})
		default:
			e.log.Warn("journalled knob cannot be opened; it stays as it is and is tried again", "group", t.Cgroup, "knob", t.Kind, "error", err)
			e.closed[t] = past.held[t]
			e.touch(t)
		}
	}
	if e.adopted = len(e.order); e.adopted > 0 || len(e.early) > 0 {
		e.log.Info("took over the knobs of an agent that did not leave in order", "knobs", e.adopted, "gone", len(e.early))
	}
}

// thawAdopted lets go of what a dead agent has left frozen. All else that is taken over waits for the first plan, which needs a list
// of pods and thus a container runtime that answers; a freeze is meant for moments.
func (e *Executor) thawAdopted() {
	rest := e.dirty
	e.dirty = make(map[knob.Target]bool)
	for t := range rest {
		if t.Kind == knob.Freeze {
			e.touch(t)
			delete(rest, t)
		}
	}
	e.settle()
	e.early = append(e.early, e.out...)
	e.dirty = rest
}

// Adopted is how many knobs were taken over from an agent that was killed.
func (e *Executor) Adopted() int { return e.adopted }

// Apply makes the knobs what plan says, and restores the held ones that it does not name. It returns what it did or tried,
// nil when there was nothing to do; the slice is good until the next call of a method. What fails is tried again after a
// second, and then ever more rarely, up to once a minute.
func (e *Executor) Apply(plan []knob.Want, p Policy) []knob.Outcome {
	e.out = e.out[:0]
	due := e.due()
	if e.applied && !due && p == e.policy && slices.Equal(plan, e.last) {
		return nil
	}
	if !e.applied {
		e.out = append(e.out, e.early...)
		e.early = nil
	}
	e.applied, e.policy = true, p
	e.index(plan)
	e.last = append(e.last[:0], plan...)
	e.settle()
	return e.out
}

// due marks what is to be tried again by now.
func (e *Executor) due() bool {
	if e.retryAt.IsZero() {
		return false
	}
	now := e.now()
	if now.Before(e.retryAt) {
		return false
	}
	for t, r := range e.retries {
		if !now.Before(r.at) {
			e.touch(t)
		}
	}
	return true
}

func (e *Executor) touch(t knob.Target) { e.dirty[t] = true }

// index brings wants up to date with the plan and marks the knobs of which something else is wanted than before.
func (e *Executor) index(plan []knob.Want) {
	e.plan++
	var others []*knob.Want // of knobs that another controller had in the last plan, and may have in this one
	for i := range plan {
		w := &plan[i]
		switch en := e.wants[w.Target]; {
		case en == nil:
			e.wants[w.Target] = &entry{want: *w, plan: e.plan}
			e.touch(w.Target)
		case en.plan == e.plan:
			e.second(en, w)
		case en.want.Owner != w.Owner:
			others = append(others, w)
		default:
			e.renew(en, w)
		}
	}
	for _, w := range others {
		if en := e.wants[w.Target]; en.plan == e.plan {
			e.second(en, w)
		} else {
			e.renew(en, w)
		}
	}
	for t, en := range e.wants {
		if en.plan != e.plan {
			delete(e.wants, t)
			delete(e.retries, t)
			e.touch(t)
		}
	}
	for r, plan := range e.refusals {
		if plan != e.plan {
			delete(e.refusals, r)
		}
	}
}

func (e *Executor) renew(en *entry, w *knob.Want) {
	if en.want.Value != w.Value {
		delete(e.retries, w.Target)
		en.invalid = false
		e.touch(w.Target)
	}
	if en.want != *w {
		e.version++
		en.want = *w
		if u := e.held[w.Target]; u != nil && !en.yielded {
			u.want = *w
		}
	}
	en.plan = e.plan
}

// second deals with a knob that the plan names twice.
func (e *Executor) second(en *entry, w *knob.Want) {
	if en.want.Owner == w.Owner && en.want.Value == w.Value {
		return
	}
	r := refusal{w.Target, w.Owner}
	if _, said := e.refusals[r]; !said {
		e.out = append(e.out, knob.Outcome{Want: *w, Result: knob.Refused,
			Err: fmt.Errorf("%s %s: owned by %s, which wants %s", w.Cgroup, w.Kind, en.want.Owner, en.want.Value.Format(w.Kind))})
	}
	e.refusals[r] = e.plan
}

// Audit looks at the next few held knobs for changes by someone else and deals with them as the policy of the last Apply says.
// The slice is good until the next call of a method.
func (e *Executor) Audit() []knob.Outcome {
	e.out = e.out[:0]
	if !e.applied {
		return nil
	}
	// All of them within some seconds, however many there are.
	for range min(max(e.batch, len(e.order)/auditRounds), len(e.order)) {
		e.cursor = (e.cursor + 1) % len(e.order)
		u := e.order[e.cursor]
		if raw, err := u.k.Read(e.buf[:]); err != nil || string(raw) != u.raw {
			e.touch(u.Target)
		}
	}
	if len(e.dirty) == 0 {
		return nil
	}
	e.settle()
	return e.out
}

// OriginalCPUs says which CPUs a group had before its cpuset was changed; ok is false if its cpuset is not held.
func (e *Executor) OriginalCPUs(group string) (cpus cpuset.Set, ok bool) {
	u := e.held[knob.Target{Cgroup: group, Kind: knob.CPUSet}]
	if u == nil {
		return cpuset.Set{}, false
	}
	return u.orig.CPUs, true
}

// Held lists the held knobs by group and kind.
func (e *Executor) Held() []Held {
	out := make([]Held, 0, len(e.order))
	for _, u := range e.order {
		out = append(out, Held{
			Target: u.Target, Original: u.setting.Format(u.orig), Current: u.setting.Format(u.cur),
			Owner: u.want.Owner, Rule: u.want.Rule, Pod: u.want.Pod, Victim: u.want.Victim, Derived: !u.direct, Since: u.since,
		})
	}
	slices.SortFunc(out, func(a, b Held) int { return compareTargets(a.Target, b.Target) })
	return out
}

func compareTargets(a, b knob.Target) int {
	return cmp.Or(strings.Compare(a.Cgroup, b.Cgroup), cmp.Compare(a.Kind, b.Kind))
}

// Generation changes whenever Held would answer differently.
func (e *Executor) Generation() uint64 { return e.version }

// RestoreAll puts every held knob back. What fails stays in the journal.
func (e *Executor) RestoreAll() []knob.Outcome {
	e.out = append(e.out[:0], e.early...)
	e.early = nil
	e.applied = true
	for _, u := range e.order {
		e.touch(u.Target)
	}
	for t := range e.closed {
		e.touch(t)
	}
	e.index(nil)
	e.last = e.last[:0]
	e.settle()
	return e.out
}

// Close lets go of the run directory. It does not restore; what is still held stays in the journal.
func (e *Executor) Close() error {
	e.closeKnobs()
	err := e.journal.Close()
	if len(e.order) == 0 && len(e.closed) == 0 && err == nil {
		err = os.Remove(filepath.Join(e.runDir, journalName))
	}
	return errors.Join(err, e.lock.Close())
}

func (e *Executor) closeKnobs() {
	for _, u := range e.order {
		u.k.Close()
	}
}
