// Package decisionlog keeps what the agent decided and did: the newest entries in memory, and all of them as JSON lines in
// files that are rotated. The loop hands entries over without waiting; a goroutine of its own numbers, keeps and writes them.
package decisionlog

import (
	"strings"
	"time"
)

// Kinds of entries.
const (
	KindDecision = "decision" // what a controller came to, and on what figures
	KindWrite    = "write"    // what became of a knob
	KindPolicy   = "policy"   // a policy came into force, was refused or was removed
	KindPods     = "pods"     // the pod source
	KindAgent    = "agent"    // the daemon itself: start and stop
)

// Kinds lists every kind.
func Kinds() []string { return []string{KindDecision, KindWrite, KindPolicy, KindPods, KindAgent} }

// Entry is one line of the log. Field names are part of the state API and of the files; what does not apply is absent.
type Entry struct {
	ID      uint64    `json:"id"`                // 1, 2, 3 ...: goes on where the files ended
	At      time.Time `json:"at"`                // wall clock of the node
	Seq     uint64    `json:"seq,omitempty"`     // of the snapshot that led here
	Kind    string    `json:"kind"`              // see Kinds
	Owner   string    `json:"owner,omitempty"`   // controller
	Rule    string    `json:"rule,omitempty"`    // of the controller: posture, event-cut, regrow, take-back ...
	Pod     string    `json:"pod,omitempty"`     // namespace/name, to whom it was done
	Victim  string    `json:"victim,omitempty"`  // namespace/name, for whose sake
	Cgroup  string    `json:"cgroup,omitempty"`  // of a write
	Knob    string    `json:"knob,omitempty"`    // of a write
	Old     string    `json:"old,omitempty"`     // value or grant before
	New     string    `json:"new,omitempty"`     // and after
	Result  string    `json:"result,omitempty"`  // of a write: written, restored, refused, failed, reapplied, yielded, mismatch; of a decision: applied, observed
	Policy  string    `json:"policy,omitempty"`  // ID of the policy in force, a hash of its content
	Inputs  *Inputs   `json:"inputs,omitempty"`  // the figures that led here
	Message string    `json:"message,omitempty"` // for people
}

// Inputs are the signal values on which a rule decided. What it did not look at is absent.
type Inputs struct {
	WaitSeconds      float64 `json:"waitSeconds,omitempty"`      // the victim's run-queue wait: p99 of the window, or the single wait that was too long
	BeforeSeconds    float64 `json:"beforeSeconds,omitempty"`    // its p99 before the cut that is judged here
	ObjectiveSeconds float64 `json:"objectiveSeconds,omitempty"` // what it was promised
	CPI              float64 `json:"cpi,omitempty"`              // the victim's cycles per instruction
	CPIBefore        float64 `json:"cpiBefore,omitempty"`        // and before the cut that is judged here
	CPIFence         float64 `json:"cpiFence,omitempty"`         // what is normal at most
	ShareRatio       float64 `json:"shareRatio,omitempty"`       // the pod's part of the victim's trouble, 0 to 1
	Belief           int     `json:"belief,omitempty"`           // that cutting this pod helps this victim, 0 to 100
	PauseSeconds     float64 `json:"pauseSeconds,omitempty"`     // how long this will not be tried again
}

// Query selects entries. The zero value selects all.
type Query struct {
	After  uint64    // only entries with a greater ID
	Since  time.Time // only entries at or after this time
	Pod    string    // namespace/name of pod or victim; also a part of one
	Kind   string
	Rule   string
	Result string
	Limit  int // the newest so many of those selected; 0: all
}

// Match reports whether e is selected.
func (q *Query) Match(e *Entry) bool {
	return e.ID > q.After && !e.At.Before(q.Since) &&
		(q.Kind == "" || q.Kind == e.Kind) &&
		(q.Rule == "" || q.Rule == e.Rule) &&
		(q.Result == "" || q.Result == e.Result) &&
		(q.Pod == "" || strings.Contains(e.Pod, q.Pod) || strings.Contains(e.Victim, q.Pod))
}
