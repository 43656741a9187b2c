// Package privilege gives up capabilities(7) that the process does not need any more.
//
// Capabilities belong to threads, and a Go program has many: what changes them here does so on all of them at once, or on a
// thread of its own that ends afterwards.
package privilege

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Value is a capability.
type Value = cap.Value

// The capabilities that the agent has a use for, see docs/security.md.
const (
	BPF         = cap.BPF          // load BPF programs and make maps
	Perfmon     = cap.PERFMON      // BPF programs that trace; hardware counters of others
	Nice        = cap.SYS_NICE     // the real-time class
	Admin       = cap.SYS_ADMIN    // mount resctrl; have the kernel account the time of BPF programs
	DACOverride = cap.DAC_OVERRIDE // files that are not root's, when it does not run in a container
)

// Held names the effective capabilities of the calling thread, in order of their numbers: "bpf", "perfmon".
func Held() []string { return names(cap.GetProc()) }

func names(s *cap.Set) []string {
	var out []string
	for c := range cap.MaxBits() {
		if on, err := s.GetFlag(cap.Effective, c); err == nil && on {
			out = append(out, strings.TrimPrefix(c.String(), "cap_"))
		}
	}
	return out
}

// Keep gives up, on every thread and for good, all capabilities but the given ones. It returns the names of those that went.
// Capabilities that are not held are not gained.
func Keep(keep ...Value) (dropped []string, err error) {
	have, want := cap.GetProc(), cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		for _, c := range keep {
			on, err := have.GetFlag(cap.Permitted, c)
			if err != nil {
				continue // the kernel is older than this capability
			}
			if err := want.SetFlag(flag, on, c); err != nil {
				return nil, fmt.Errorf("capability %s: %w", c, err)
			}
		}
	}
	before := names(have)
	if err := want.SetProc(); err != nil {
		return nil, fmt.Errorf("drop capabilities: %w", err)
	}
	after := names(want)
	return slices.DeleteFunc(before, func(name string) bool { return slices.Contains(after, name) }), nil
}

// Without runs fn with all capabilities lowered, on a thread of its own, to see whether it works without them.
func Without(fn func() error) error { return Only(fn) }

// Only runs fn with all capabilities lowered but the given ones, on a thread of its own, to see whether it works with them alone.
func Only(fn func() error, keep ...Value) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- func() error {
			if err := lower(keep...); err != nil {
				return fmt.Errorf("lower capabilities of a thread: %w", err)
			}
			return fn()
		}()
	}()
	return <-result
}

// lower clears the calling thread's effective set, but for what is kept. The permitted one stays, so that the thread can still take part in Keep.
func lower(keep ...Value) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	have := [2]uint32{data[0].Effective, data[1].Effective}
	data[0].Effective, data[1].Effective = 0, 0
	for _, c := range keep {
		data[c/32].Effective |= have[c/32] & (1 << (c % 32))
	}
	return unix.Capset(&header, &data[0])
}
