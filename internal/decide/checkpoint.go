package decide

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/wire"
)

// stateType covers every field of State and of what hangs on it: what a controller remembers is in a checkpoint without its
// doing. It does not compile if somebody remembers an interface, a function or a channel that is not nil.
var stateType = wire.MustCompile[State]()

// maxState bounds the memory that a checkpoint may describe. A node with a thousand containers needs some 10 MB.
const maxState = 256 << 20

// The layout is long, and asked for with every file of a recording.
var (
	stateLayout  = sync.OnceValue(stateType.Schema)
	stateDecoder = sync.OnceValue(stateType.Decoder)
)

// StateLayout says what a checkpoint looks like. It changes with whatever State is made of.
func StateLayout() string { return stateLayout() }

// Checkpoint appends everything that is remembered to dst. A state that Restore makes of it decides the same as this one.
func (s *State) Checkpoint(dst []byte) []byte { return stateType.Append(dst, unsafe.Pointer(s)) }

// ErrLayout says that a checkpoint is of a version that remembered other things.
var ErrLayout = errors.New("the checkpoint is of another version of the agent")

// Restorable reports whether checkpoints of a layout say all that this version remembers, and no more: the same things, be it in another order.
func Restorable(layout string) bool {
	_, err := bind(layout)
	return err == nil
}

func bind(layout string) (*wire.Decoder, error) {
	if layout == StateLayout() {
		return stateDecoder(), nil
	}
	d, err := stateType.Bind(layout)
	if err != nil || len(d.Missing)+len(d.Dropped) > 0 {
		return nil, ErrLayout
	}
	return d, nil
}

// Restore makes a state from a checkpoint and the layout that it was made with.
func Restore(layout string, checkpoint []byte) (*State, error) {
	d, err := bind(layout)
	if err != nil {
		return nil, err
	}
	s := New()
	src := wire.NewSource(checkpoint, maxState)
	if err := d.Decode(&src, unsafe.Pointer(s)); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if src.Left() > 0 {
		return nil, fmt.Errorf("checkpoint: %d bytes too many", src.Left())
	}
	return s, nil
}
