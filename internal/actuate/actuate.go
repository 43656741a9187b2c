// Package actuate carries out plans: it writes knobs in an order that the kernel accepts, reads them back, remembers in a
// journal what they were before, and puts them back when nobody wants them any more, when the agent leaves, or after a crash.
package actuate

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
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
	// AuditBatch is how many knobs one Audit looks at; 0 is 16.
	AuditBatch int
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

// Busy is the error of Open and Restore when another agent holds the run directory.
type Busy struct {
	RunDir string
	PID    int // 0 if it cannot be told
}

func (e *Busy) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("run dir %s: in use by another agent", e.RunDir)
	}
	return fmt.Sprintf("run dir %s: in use by another agent, pid %d", e.RunDir, e.PID)
}

// Executor owns the knobs. It is not for concurrent use.
type Executor struct{}

var errSkeleton = errors.New("not built yet")

// Open takes the run directory and adopts what a killed agent held there. The error is a *Busy if another agent runs.
func Open(o Options) (*Executor, error) { return nil, errSkeleton }

// Apply makes the knobs what plan says, and restores the held ones that it does not name. It returns what it did or tried,
// nil when there was nothing to do; the slice is good until the next call of a method.
func (e *Executor) Apply(plan []knob.Want, p Policy) []knob.Outcome { return nil }

// Audit looks at the next few held knobs for changes by someone else and deals with them as the policy of the last Apply says.
func (e *Executor) Audit() []knob.Outcome { return nil }

// Held lists the held knobs by group and kind.
func (e *Executor) Held() []Held { return nil }

// Generation changes whenever Held would answer differently.
func (e *Executor) Generation() uint64 { return 0 }

// RestoreAll puts every held knob back. What fails stays in the journal.
func (e *Executor) RestoreAll() []knob.Outcome { return nil }

// Close lets go of the run directory. It does not restore.
func (e *Executor) Close() error { return nil }

// Summary is what Restore did.
type Summary struct {
	Restored, Gone, Failed []knob.Outcome
	// OtherBoot is how many knobs were journalled before the machine was started anew; there is nothing to restore for them.
	OtherBoot int
}

// Restore puts back what the journal of a dead agent holds. Options.Hierarchy may be nil: the journal knows the root.
// It refuses with a *Busy while an agent runs. The error is not nil if anything failed.
func Restore(o Options) (Summary, error) { return Summary{}, errSkeleton }
