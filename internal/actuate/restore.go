package actuate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/qos-agent/qos-agent/internal/journal"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// Summary is what Restore did.
type Summary struct {
	Restored, Gone, Failed []knob.Outcome
	// Left are knobs that someone else has changed since the agent wrote them; they stay as they are.
	Left []knob.Outcome
	// OtherBoot is how many knobs were journalled before the machine was started anew; there is nothing to restore for them.
	OtherBoot int
}

// defaultRoot is where machines have their control groups.
const defaultRoot = "/sys/fs/cgroup"

// Restore puts back what the journal of a dead agent holds. Options.Hierarchy may be nil: the journal knows the root.
// It refuses with a *journal.Busy while an agent runs. The error is not nil if anything failed; that stays in the journal. Without a
// journal there is nothing to do.
func Restore(o Options) (sum Summary, err error) {
	if _, err := os.Stat(filepath.Join(o.RunDir, journalName)); errors.Is(err, fs.ErrNotExist) {
		return sum, nil
	}
	lock, err := journal.Lock(o.RunDir, lockName)
	if err != nil {
		return sum, err
	}
	defer func() {
		if err != nil {
			lock.Close() // a second time is harmless
		}
	}()
	if o.Hierarchy == nil {
		past, err := loadHistory(o.RunDir)
		if err != nil {
			return sum, err
		}
		if past.root == "" {
			past.root = defaultRoot
		}
		o.Hierarchy, err = cgroup.Detect(past.root)
		if err != nil && past.root != defaultRoot {
			// The daemon ran in a container, which had the node's groups mounted elsewhere.
			if h, elsewhere := cgroup.Detect(defaultRoot); elsewhere == nil {
				o.Hierarchy, err = h, nil
			}
		}
		if err != nil {
			return sum, err
		}
	}
	e, err := open(o, lock)
	if err != nil {
		return sum, err
	}
	sum.OtherBoot = e.other
	for _, out := range e.RestoreAll() {
		switch out.Result {
		case knob.Restored:
			sum.Restored = append(sum.Restored, out)
		case knob.Gone:
			sum.Gone = append(sum.Gone, out)
		case knob.Yielded:
			sum.Left = append(sum.Left, out)
		default:
			sum.Failed = append(sum.Failed, out)
		}
	}
	if left := len(e.order); left > 0 {
		err = fmt.Errorf("knobs that could not be restored and stay in the journal: %d", left)
	}
	return sum, errors.Join(err, e.Close())
}
