package capability

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// The oldest kernel on which the scheduler stamps every enqueue without being asked to.
const minMajor, minMinor = 5, 14

func (p *prober) kernel(context.Context) (string, error) {
	text, err := os.ReadFile(filepath.Join(p.Proc, "sys/kernel/osrelease"))
	if err != nil {
		return "", err
	}
	release := strings.TrimSpace(string(text))
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return "", fmt.Errorf("release %q has no version in front", release)
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return "", fmt.Errorf("Linux %s", release)
	}
	return "Linux " + release, nil
}

func (p *prober) btf(context.Context) (string, error) {
	name := filepath.Join(p.Sys, "kernel/btf/vmlinux")
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var magic [2]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil {
		return "", err
	}
	if binary.NativeEndian.Uint16(magic[:]) != 0xeb9f {
		return "", fmt.Errorf("%s is no BTF", name)
	}
	return name, nil
}

// schedInfo looks at this thread's own stamps: a kernel without them says that it was never dispatched.
func (p *prober) schedInfo(context.Context) (string, error) {
	text, err := os.ReadFile(filepath.Join(p.Proc, "thread-self/schedstat"))
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(text))
	if len(f) != 3 {
		return "", fmt.Errorf("schedstat reads %q", text)
	}
	if n, err := strconv.ParseUint(f[2], 10, 64); err != nil || n == 0 {
		return "", errors.New("the scheduler does not stamp enqueues")
	}
	return "the scheduler stamps enqueues", nil
}

func (p *prober) runQueue(context.Context) (string, error) {
	if err := p.Trace(); err != nil {
		return "", err
	}
	return "run-queue programs loaded and attached", nil
}

func (p *prober) psiNode(context.Context) (string, error) {
	proc, err := procfs.NewFS(p.Proc)
	if err != nil {
		return "", err
	}
	for _, resource := range []string{"cpu", "memory", "io"} {
		stats, err := proc.PSIStatsForResource(resource)
		if err != nil {
			return "", err
		}
		if stats.Some == nil {
			return "", fmt.Errorf("pressure/%s has no line some", resource)
		}
	}
	return "pressure of cpu, memory and io read", nil
}

// realtime puts a thread of its own into the real-time class and back. The thread ends with its goroutine, because it is
// never unlocked: whatever became of its class goes with it.
func (p *prober) realtime(context.Context) (string, error) {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- tryRealtime()
	}()
	if err := <-result; err != nil {
		if errors.Is(err, unix.EPERM) {
			return "", advise(err, "CAP_SYS_NICE; with RT_GROUP_SCHED on cgroup v1 also cpu.rt_runtime_us in the agent's own group")
		}
		return "", err
	}
	return "SCHED_RR taken and given back", nil
}

func tryRealtime() error {
	rr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if err := unix.SchedSetAttr(0, &rr, 0); err != nil {
		return fmt.Errorf("SCHED_RR: %w", err)
	}
	got, err := unix.SchedGetAttr(0, 0)
	if err == nil && got.Policy != unix.SCHED_RR {
		err = fmt.Errorf("asked for SCHED_RR and got policy %d", got.Policy)
	}
	back := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	return errors.Join(err, unix.SchedSetAttr(0, &back, 0))
}

// perf opens the counters that the agent uses for the root group on one CPU and reads them.
func (p *prober) perf(context.Context) (string, error) {
	if p.NoPerf {
		return "", advise(errors.New("turned off by --no-perf"), "start the agent without --no-perf")
	}
	if p.hierarchy == nil {
		return "", errors.New("no cgroup hierarchy")
	}
	dir, ok := p.hierarchy.Dir(cgroup.PerfEvent, "/")
	if !ok {
		return "", advise(fmt.Errorf("the perf_event controller is not mounted under %s", p.hierarchy.Root()), "mount -t cgroup -o perf_event, or unified cgroup v2")
	}
	err := perf.Probe(dir, firstCPU(p.Sys))
	switch {
	case errors.Is(err, perf.ErrUnsupported):
		return "", err
	case errors.Is(err, perf.ErrDenied):
		return "", advise(err, "root, or CAP_PERFMON; Debian's and Ubuntu's kernels want kernel.perf_event_paranoid=2 for that, or CAP_SYS_ADMIN")
	case err != nil:
		return "", err
	case p.hierarchy.V2(cgroup.PerfEvent) && !p.hierarchy.V2(cgroup.CPU):
		return "", advise(errors.New("counters work, but the groups of pods are on cgroup v1 and perf_event is not"), "mount -t cgroup -o perf_event, or unified cgroup v2")
	}
	return "cycles, instructions, LLC references and misses of a group counted", nil
}

// Count opens the agent's hardware counters for a moment.
func Count(h *cgroup.Hierarchy, sys string) error {
	dir, ok := h.Dir(cgroup.PerfEvent, "/")
	if !ok {
		return errors.New("the perf_event controller is not mounted")
	}
	return perf.Probe(dir, firstCPU(sys))
}

// firstCPU is an online CPU; CPU 0 can be offline on some machines.
func firstCPU(sys string) int {
	text, err := os.ReadFile(filepath.Join(sys, "devices/system/cpu/online"))
	if err != nil {
		return 0
	}
	set, err := cpuset.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	for cpu := range cpuset.Max {
		if set.Has(cpu) {
			return cpu
		}
	}
	return 0
}
