// Package policy is the policy API: what operators write in ConfigMaps, with its defaults, strict loading, validation, class
// matching and hot reload. It imports nothing of ours.
package policy

import (
	"time"
)

// The only version and kind there is.
const (
	APIVersion = "qos-agent.io/v1alpha1"
	Kind       = "QoSPolicy"
)

// Policy is one policy document. Fields that a document leaves out have their defaults (see Default).
type Policy struct {
	APIVersion string   `yaml:"apiVersion" json:"apiVersion"`
	Kind       string   `yaml:"kind" json:"kind"`
	Metadata   Metadata `yaml:"metadata" json:"metadata"`
	Spec       Spec     `yaml:"spec" json:"spec"`
}

// Metadata names the policy.
type Metadata struct {
	Name string `yaml:"name" json:"name"`
}

// Spec is the policy itself.
type Spec struct {
	// Mode is enforce (measure, decide, write) or observe (measure, decide, write nothing at all).
	Mode Mode `yaml:"mode" json:"mode"`
	// Classes says which pods are online and which are offline. Pods that nothing matches are never touched.
	Classes Classes `yaml:"classes" json:"classes"`
	// Objectives are what online pods are promised.
	Objectives Objectives `yaml:"objectives" json:"objectives"`
	// Judge tunes how verdicts are reached.
	Judge Judge `yaml:"judge" json:"judge"`
	// CPU tunes the CPU controller.
	CPU CPU `yaml:"cpu" json:"cpu"`
	// Safety bounds what the agent may do.
	Safety Safety `yaml:"safety" json:"safety"`
	// Windows override the mode or the objectives at certain times of day. The first that contains the node's local time counts.
	Windows []Window `yaml:"windows,omitempty" json:"windows,omitempty"`
}

// Mode is observe or enforce.
type Mode string

const (
	Observe Mode = "observe"
	Enforce Mode = "enforce"
)

// Class is what a pod is to the agent.
type Class string

const (
	Online       Class = "online"       // latency-sensitive: protected
	Offline      Class = "offline"      // batch: may be held back
	Unclassified Class = "unclassified" // matched by nothing: never touched, never blamed, but counted
)

// Classes finds the class of a pod: rules in their order, then presets in their order; the first that matches decides.
type Classes struct {
	Rules []ClassRule `yaml:"rules,omitempty" json:"rules,omitempty"`
	// Presets are built-in rule sets: qos-agent (label or annotation qos-agent.io/class), koordinator, volcano, katalyst,
	// kubernetes (Guaranteed and Burstable are online, BestEffort is offline).
	Presets []string `yaml:"presets" json:"presets"`
}

// ClassRule gives a class to the pods that match.
type ClassRule struct {
	Name  string `yaml:"name" json:"name"`
	Class Class  `yaml:"class" json:"class"` // online, offline or unclassified
	Match Match  `yaml:"match" json:"match"`
}

// Match matches a pod when every field that is set matches. An empty Match matches nothing.
type Match struct {
	Labels      map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`           // all of them; a value "*" matches any value
	Annotations map[string]string `yaml:"annotations,omitempty" json:"annotations,omitempty"` // likewise
	Namespaces  []string          `yaml:"namespaces,omitempty" json:"namespaces,omitempty"`   // any of them; globs
	QoSClasses  []string          `yaml:"qosClasses,omitempty" json:"qosClasses,omitempty"`   // any of Guaranteed, Burstable, BestEffort
	Cgroups     []string          `yaml:"cgroups,omitempty" json:"cgroups,omitempty"`         // any of these globs over the pod's group path; ** crosses slashes
}

// Objectives are promises to online pods. An objective that is 0 is off.
type Objectives struct {
	// CPUWaitP99 bounds the 99th percentile of run-queue wait over the judge's window. 100us to 10s.
	CPUWaitP99 Duration `yaml:"cpuWaitP99" json:"cpuWaitP99"`
	// CPUWaitEvent is the single wait after which the kernel wakes the agent at once. 100us to 10s.
	CPUWaitEvent Duration `yaml:"cpuWaitEvent" json:"cpuWaitEvent"`
	// MemoryStallPercent and IOStallPercent bound the share of time in which some task of the group stalled (PSI). 0 to 100.
	MemoryStallPercent float64 `yaml:"memoryStallPercent" json:"memoryStallPercent"`
	IOStallPercent     float64 `yaml:"ioStallPercent" json:"ioStallPercent"`
}

// Judge tunes verdicts.
type Judge struct {
	// Window is the time over which waits are judged. 100ms to 60s.
	Window Duration `yaml:"window" json:"window"`
	// MinSamples is how many waits a window must hold before a percentile of it means anything. 1 to 100000.
	MinSamples int `yaml:"minSamples" json:"minSamples"`
	// WatchPercent of an objective turns the verdict from ok to watch. 1 to 100.
	WatchPercent int `yaml:"watchPercent" json:"watchPercent"`
	// CulpritPercent is the share of a victim's wait from which one pod is a culprit; JointPercent the share that a set of
	// pods must hold together if none of them reaches it alone; UnknownPercent the unexplained share from which nobody is named.
	CulpritPercent int `yaml:"culpritPercent" json:"culpritPercent"`
	JointPercent   int `yaml:"jointPercent" json:"jointPercent"`
	UnknownPercent int `yaml:"unknownPercent" json:"unknownPercent"`
	// ThrottledPercent of a container's quota periods being throttled makes its wait its own quota's doing. 1 to 100.
	ThrottledPercent int `yaml:"throttledPercent" json:"throttledPercent"`
	// StealPercent of the node's CPU time being taken by the hypervisor makes waits the hypervisor's doing. 1 to 100.
	StealPercent int `yaml:"stealPercent" json:"stealPercent"`
}

// CPU tunes the CPU controller.
type CPU struct {
	// Posture is how offline pods stand all the time: idle (cpu.idle, or weight where the kernel lacks it), weight, or none.
	Posture Posture `yaml:"posture" json:"posture"`
	// Ladder is what is done to culprits, one rung after the other, when the posture is not enough. Any of idle, cpus, quota,
	// freeze, in this order; a rung that the node cannot do is skipped with a reason.
	Ladder []Rung `yaml:"ladder" json:"ladder"`

	// CPUs is the rung that takes whole cores away.
	CPUs CPUsRung `yaml:"cpus" json:"cpus"`
	// Quota is the rung that limits CPU time.
	Quota QuotaRung `yaml:"quota" json:"quota"`
	// Freeze is the rung that stops a pod for moments.
	Freeze FreezeRung `yaml:"freeze" json:"freeze"`

	// Cooldown is the least time between two cuts of one pod, so that a cut can show its effect. 1ms to 60s.
	Cooldown Duration `yaml:"cooldown" json:"cooldown"`
	// Hold is how long every victim must be well before anything is given back. 100ms to 1h.
	Hold Duration `yaml:"hold" json:"hold"`
	// RegrowEvery is the time between two steps back. 100ms to 1h.
	RegrowEvery Duration `yaml:"regrowEvery" json:"regrowEvery"`

	// Verify checks each blame by its effect.
	Verify Verify `yaml:"verify" json:"verify"`
	// Burst lets online pods that hit their own quota borrow from quieter periods.
	Burst Burst `yaml:"burst" json:"burst"`
}

// Posture is the standing treatment of offline pods.
type Posture string

const (
	PostureIdle   Posture = "idle"
	PostureWeight Posture = "weight"
	PostureNone   Posture = "none"
)

// Rung is a step of the ladder.
type Rung string

const (
	RungIdle   Rung = "idle"
	RungCPUs   Rung = "cpus"
	RungQuota  Rung = "quota"
	RungFreeze Rung = "freeze"
)

// CPUsRung takes CPUs away by cpuset, whole cores at a time.
type CPUsRung struct {
	// CutPercent of a culprit's CPUs go at one cut. 1 to 100.
	CutPercent int `yaml:"cutPercent" json:"cutPercent"`
	// Floor is the least number of cores that an offline pod keeps. 1 to 1024.
	Floor int `yaml:"floor" json:"floor"`
	// IdleBuffer is how many cores a cut leaves free of the culprit at least, if the floor allows it. 0 to 1024.
	IdleBuffer int `yaml:"idleBuffer" json:"idleBuffer"`
}

// QuotaRung limits CPU time by bandwidth control.
type QuotaRung struct {
	// Period of the quota. 1ms to 1s; short periods keep a throttled pod from running its whole share at once.
	Period Duration `yaml:"period" json:"period"`
	// CutPercent of a culprit's CPU time go at one cut. 1 to 100.
	CutPercent int `yaml:"cutPercent" json:"cutPercent"`
	// FloorPercent of one CPU is what an offline pod keeps at least. 1 to 100.
	FloorPercent int `yaml:"floorPercent" json:"floorPercent"`
	// GrowPercent of the node's CPU time is given back at one step. 1 to 100.
	GrowPercent int `yaml:"growPercent" json:"growPercent"`
}

// FreezeRung stops a pod for at most Max at a time, and then lets it run for at least as long.
type FreezeRung struct {
	Max Duration `yaml:"max" json:"max"` // 10ms to 10s
}

// Verify tunes the check of blame by intervention: if the victim is not better off after a cut, the cut is taken back, the
// belief in the pair is lowered and the next cut of that pair waits longer.
type Verify struct {
	// After is how long after a cut the victim is looked at again. 100ms to 1m.
	After Duration `yaml:"after" json:"after"`
	// ImprovePercent is by how much the victim's wait must have fallen. 1 to 99.
	ImprovePercent int `yaml:"improvePercent" json:"improvePercent"`
	// BackoffMin is the first pause after a cut that did not help; it doubles up to BackoffMax. 100ms to 1h.
	BackoffMin Duration `yaml:"backoffMin" json:"backoffMin"`
	BackoffMax Duration `yaml:"backoffMax" json:"backoffMax"`
}

// Burst tunes cpu.max.burst of online containers.
type Burst struct {
	// Percent of the quota that may be saved up; 0 turns bursting off. 0 to 100 (the kernel allows no more than the quota).
	Percent int `yaml:"percent" json:"percent"`
}

// Safety bounds the agent.
type Safety struct {
	// StaleAfter is the age from which a signal is unknown: nothing is cut or given back on it. 200ms to 10m.
	StaleAfter Duration `yaml:"staleAfter" json:"staleAfter"`
	// ReleaseAfter is how long cuts are held on unknown signals before the node falls back to the posture. 1s to 1h.
	ReleaseAfter Duration `yaml:"releaseAfter" json:"releaseAfter"`
	// ExternalEdits says what happens when someone else changes a knob that the agent holds: reapply or yield.
	ExternalEdits ExternalEdits `yaml:"externalEdits" json:"externalEdits"`
}

// ExternalEdits is reapply or yield.
type ExternalEdits string

const (
	Reapply ExternalEdits = "reapply"
	Yield   ExternalEdits = "yield"
)

// Window is a part of the day in which other values hold. What it leaves out stays as it is.
type Window struct {
	Name string `yaml:"name" json:"name"`
	// Days it begins on: mon to sun; empty for every day.
	Days []string `yaml:"days,omitempty" json:"days,omitempty"`
	// From and To are local times "15:04". A window that ends before it begins runs over midnight.
	From string `yaml:"from" json:"from"`
	To   string `yaml:"to" json:"to"`

	Mode       Mode      `yaml:"mode,omitempty" json:"mode,omitempty"`
	CPUWaitP99 *Duration `yaml:"cpuWaitP99,omitempty" json:"cpuWaitP99,omitempty"`
	Posture    Posture   `yaml:"posture,omitempty" json:"posture,omitempty"`
	Ladder     []Rung    `yaml:"ladder,omitempty" json:"ladder,omitempty"`
}

// Duration is a time.Duration that is written as text with a unit ("250ms").
type Duration time.Duration

// D is the duration as the standard library's.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// Subject is what a pod looks like to class rules.
type Subject struct {
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	QoSClass    string // Guaranteed, Burstable, BestEffort, or "" for what is not a pod of Kubernetes
	Cgroup      string // the pod's group, relative to a controller's mount
}
