// Package capability finds out what the node can do by doing it: every feature that the agent would use is used once, on a group
// of its own that holds no tasks, and put back. Nothing is concluded from version numbers.
package capability

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
	"github.com/qos-agent/qos-agent/pkg/rdt"
)

// Names of the probes whose outcome decisions depend on; the others are for people.
const (
	CgroupLayout = "cgroup"
	RunQueue     = "bpf"
	CPUWeight    = "cpu_weight"
	CPUIdle      = "cpu_idle"
	CPUQuota     = "cpu_quota"
	CPUBurst     = "cpu_burst"
	CPUSet       = "cpuset"
	Freezer      = "freezer"
	GroupPSI     = "psi_group"
	Realtime     = "realtime"
	Perf         = "perf"
	Resctrl      = "resctrl"

	CacheAllocation     = "cache_allocation"
	BandwidthAllocation = "bandwidth_allocation"
	CacheMonitoring     = "cache_monitoring"
	BandwidthMonitoring = "bandwidth_monitoring"
)

// Probe is the outcome of trying one feature.
type Probe struct {
	Name   string `json:"name"`           // stable; label of qosagent_capability
	OK     bool   `json:"ok"`             //
	Needed bool   `json:"needed"`         // the main job cannot be done without it
	Detail string `json:"detail"`         // what was found, or why it does not work
	Lost   string `json:"lost,omitempty"` // what the agent cannot do without it; only if missing
	Fix    string `json:"fix,omitempty"`  // how to get it; only if missing
}

// Options say where to look. The zero value looks at the machine that the program runs on.
type Options struct {
	Proc         string   // "" is /proc
	Sys          string   // "" is /sys
	CgroupRoot   string   // "" is Sys + /fs/cgroup
	CRIEndpoints []string // tried in this order; none: those where containerd, CRI-O and cri-dockerd listen by default
	NoPerf       bool     // leave the hardware counters to others

	// Groups makes and opens groups; nil is the kernel's.
	Groups Groups
	// Resctrl is how resctrl is touched; nil is Sys + /fs/resctrl.
	Resctrl rdt.Tree
	// Trace loads and attaches the BPF programs and removes them again; nil is package ebpf's.
	Trace func() error
	// Alive reports whether a process runs; nil asks the kernel.
	Alive func(pid int) bool
	// PID names the probe's groups; 0 is this process's.
	PID int
}

// Report is the outcome of all probes, in the order in which people should read them.
type Report struct {
	Probes []Probe
}

// spec is a probe to be made. Its function returns what it found, or why the feature cannot be used; an error may bring its own
// advice (see advise).
type spec struct {
	name   string
	needed bool
	lost   string
	fix    string
	try    func(*prober, context.Context) (found string, err error)
}

func specs() []spec {
	const blind = "nobody can be blamed for waits, and nothing is cut: only the standing posture of offline pods is left"
	return []spec{
		{"kernel", false, "run-queue wait is not measured on older kernels", "Linux 5.14 or newer", (*prober).kernel},
		{"btf", false, blind, "a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian, Ubuntu, RHEL have it)", (*prober).btf},
		{"sched_info", false, blind, "a kernel with CONFIG_SCHEDSTATS=y or CONFIG_TASK_DELAY_ACCT=y", (*prober).schedInfo},
		{RunQueue, true, blind, "root, or CAP_BPF and CAP_PERFMON, on a kernel with BTF", (*prober).runQueue},
		{CgroupLayout, true, "no group can be read or written", "--cgroup-root must be the host's /sys/fs/cgroup", (*prober).layout},
		{CPUWeight, true, "offline pods cannot be made to stand back", asRoot, (*prober).cpuWeight},
		{CPUIdle, false, "offline pods stand back by minimum weight instead, and preempt a little more", "Linux 5.15 or newer", (*prober).cpuIdle},
		{CPUSet, false, "culprits cannot be taken off CPUs: the ladder skips its rung cpus", "a mounted and enabled cpuset controller", (*prober).cpuset},
		{CPUQuota, false, "culprits cannot be given a quota: the ladder skips its rung quota", "a kernel with CONFIG_CFS_BANDWIDTH=y", (*prober).cpuQuota},
		{CPUBurst, false, "online pods that hit their own quota cannot borrow", "Linux 5.14 or newer with CONFIG_CFS_BANDWIDTH=y", (*prober).cpuBurst},
		{Freezer, false, "culprits cannot be frozen: the ladder skips its rung freeze", "a mounted freezer controller, or cgroup v2", (*prober).freezer},
		{"memory", false, "memory of pods is not seen", "a mounted and enabled memory controller", (*prober).memory},
		{"io", false, "io of pods is not seen", "a mounted and enabled blkio (v1) or io (v2) controller", (*prober).io},
		{"psi_node", false, "pressure of the node is not seen", "boot with psi=1 on a kernel with CONFIG_PSI=y", (*prober).psiNode},
		{GroupPSI, false, "memory and io stalls of pods are not judged", "boot with unified cgroup v2 (systemd.unified_cgroup_hierarchy=1)", (*prober).psiGroup},
		{Realtime, false, "on a saturated node the agent waits for a CPU like everybody else and reacts later", "root, or CAP_SYS_NICE", (*prober).realtime},
		{Perf, false, "cycles and cache misses of pods are not seen, so nobody is blamed for cache or memory bandwidth", "a machine, or a virtual machine with a PMU", (*prober).perf},
		{Resctrl, false, "cache and memory bandwidth are neither seen nor partitioned", "a CPU with RDT (Intel) or QoS extensions (AMD), and a kernel with resctrl", (*prober).resctrl},
		{CacheAllocation, false, "culprits cannot be given fewer ways of the last-level cache", withRDT, (*prober).cacheAllocation},
		{BandwidthAllocation, false, "culprits cannot be given less memory bandwidth", withRDT, (*prober).bandwidthAllocation},
		{CacheMonitoring, false, "how much cache a pod holds is not seen; suspects are told by their misses", withRDT, (*prober).cacheMonitoring},
		{BandwidthMonitoring, false, "how much memory bandwidth a pod uses is not seen, so none is taken from anybody", withRDT, (*prober).bandwidthMonitoring},
		{"cri", false, "pods of Kubernetes are not seen; a static pod file works", "start the container runtime or name its socket with --cri-endpoint", (*prober).cri},
	}
}

const withRDT = "a CPU that has it, and resctrl mounted"

const asRoot = "run as root on the host's cgroup tree, mounted writable"

// Run makes all probes. It takes about as long as loading the BPF programs, and leaves nothing behind; what an earlier run left
// that was killed in between it removes.
func Run(ctx context.Context, o Options) Report {
	p := newProber(o)
	defer p.close()
	p.sweep()

	all := specs()
	report := Report{Probes: make([]Probe, len(all))}
	for i, s := range all {
		report.Probes[i] = s.make(p, ctx)
	}
	return report
}

func (s *spec) make(p *prober, ctx context.Context) Probe {
	found, err := s.try(p, ctx)
	if err == nil {
		return Probe{Name: s.name, OK: true, Needed: s.needed, Detail: found}
	}
	out := Probe{Name: s.name, Needed: s.needed, Detail: oneLine(err.Error()), Lost: s.lost, Fix: s.fix}
	if a := (*advice)(nil); errors.As(err, &a) {
		out.Fix = oneLine(a.fix)
	}
	return out
}

// advice is an error that knows how to get what is missing.
type advice struct {
	err error
	fix string
}

func (a *advice) Error() string { return a.err.Error() }
func (a *advice) Unwrap() error { return a.err }

func advise(err error, fix string) error { return &advice{err, fix} }

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Missing names the needed features that the node lacks.
func (r *Report) Missing() []string {
	var out []string
	for _, p := range r.Probes {
		if p.Needed && !p.OK {
			out = append(out, p.Name)
		}
	}
	return out
}

// CanRun reports whether the main job can be done here: see run-queue waits and hold offline work back.
func (r *Report) CanRun() bool { return len(r.Missing()) == 0 }

// Has reports whether the probe of that name succeeded.
func (r *Report) Has(name string) bool {
	return slices.ContainsFunc(r.Probes, func(p Probe) bool { return p.Name == name && p.OK })
}

// Capabilities is what decisions depend on.
func (r *Report) Capabilities() signal.Capabilities {
	return signal.Capabilities{
		RunQueue: r.Has(RunQueue),
		CPUIdle:  r.Has(CPUIdle),
		CPUBurst: r.Has(CPUBurst),
		CPUQuota: r.Has(CPUQuota),
		CPUSet:   r.Has(CPUSet),
		Freeze:   r.Has(Freezer),
		GroupPSI: r.Has(GroupPSI),
		Perf:     r.Has(Perf),

		CacheAllocation:     r.Has(CacheAllocation),
		BandwidthAllocation: r.Has(BandwidthAllocation),
		CacheMonitoring:     r.Has(CacheMonitoring),
		BandwidthMonitoring: r.Has(BandwidthMonitoring),
	}
}

// Document is the report as JSON shows it.
type Document struct {
	CanRun bool    `json:"canRun"`
	Probes []Probe `json:"probes"`
}

// Document is the report as a value for JSON.
func (r *Report) Document() Document { return Document{CanRun: r.CanRun(), Probes: r.Probes} }

// WriteText writes one line a probe and a last one that says whether the main job can run.
func (r *Report) WriteText(w io.Writer) error {
	width := 0
	for _, p := range r.Probes {
		width = max(width, len(p.Name))
	}
	var b strings.Builder
	for _, p := range r.Probes {
		if p.OK {
			fmt.Fprintf(&b, "ok       %-*s  %s\n", width, p.Name, p.Detail)
		} else {
			fmt.Fprintf(&b, "missing  %-*s  %s; lost: %s; get it: %s\n", width, p.Name, p.Detail, p.Lost, p.Fix)
		}
	}
	if missing := r.Missing(); len(missing) > 0 {
		fmt.Fprintf(&b, "The main job cannot run without: %s.\n", strings.Join(missing, ", "))
	} else {
		fmt.Fprintln(&b, "The main job can run.")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// prober carries what probes share.
type prober struct {
	Options
	hierarchy *cgroup.Hierarchy
	// hierarchyErr is why there is no hierarchy.
	hierarchyErr error
	open         map[string]cgroup.Group // probe groups by directory
	made         []string                // probe groups to remove
	rdt          *resctrl                // nil until a probe has asked for it
}

func newProber(o Options) *prober {
	o.Proc = cmp.Or(o.Proc, "/proc")
	o.Sys = cmp.Or(o.Sys, "/sys")
	o.CgroupRoot = cmp.Or(o.CgroupRoot, o.Sys+"/fs/cgroup")
	o.PID = cmp.Or(o.PID, ownPID())
	if len(o.CRIEndpoints) == 0 {
		o.CRIEndpoints = DefaultEndpoints()
	}
	if o.Groups == nil {
		o.Groups = kernelGroups{cgroup.Kernel}
	}
	if o.Trace == nil {
		o.Trace = trace
	}
	if o.Alive == nil {
		o.Alive = alive
	}
	p := &prober{Options: o, open: map[string]cgroup.Group{}}
	p.hierarchy, p.hierarchyErr = cgroup.Detect(o.CgroupRoot)
	return p
}

// trace loads and attaches the real programs, with small maps.
func trace() error {
	t, err := ebpf.Load(ebpf.Options{MaxSlots: 64, MaxVictims: 8, EventBytes: 4096})
	if err != nil {
		if missing := (*ebpf.UnsupportedError)(nil); errors.As(err, &missing) {
			return advise(fmt.Errorf("%s: %w", missing.Missing, missing.Err), missing.Need)
		}
		return err
	}
	return t.Close()
}
