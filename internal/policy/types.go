// Package policy is the policy API: what operators write in ConfigMaps, with its defaults, strict loading, validation, class
// matching and hot reload.
//
// A policy is one or more YAML documents. Those of a directory are applied in the order of their file names, each over the
// last, the first over the defaults: fields that a document sets replace, lists replace as a whole, fields that it leaves out
// stay. What fields there are, their ranges and defaults is in docs/policy.md and policies/schema.json, which are made from
// the tags and comments below.
package policy

import (
	"time"
)

//go:generate go run ./gen

// The only version and kind there is.
const (
	APIVersion = "qos-agent.io/v1alpha1"
	Kind       = "QoSPolicy"
)

// Policy is one policy document. Fields that a document leaves out have their defaults (see Default).
type Policy struct {
	// APIVersion says by which rules to read the document.
	APIVersion string `yaml:"apiVersion" json:"apiVersion" want:"qos-agent.io/v1alpha1" required:"true"`
	// Kind is what the document is.
	Kind string `yaml:"kind" json:"kind" want:"QoSPolicy" required:"true"`
	// Metadata names the policy.
	Metadata Metadata `yaml:"metadata" json:"metadata"`
	// Spec is the policy itself.
	Spec Spec `yaml:"spec" json:"spec"`
}

// Metadata names the policy.
type Metadata struct {
	// Name appears in logs and in the state API, next to the policy's id, which is made from its content.
	Name string `yaml:"name" json:"name" pattern:"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" example:"1 to 63 letters, digits, dashes, dots or underscores"`
}

// Spec is the policy itself.
type Spec struct {
	// Mode is enforce (measure, decide, write) or observe (measure, decide, write nothing at all).
	Mode Mode `yaml:"mode" json:"mode" want:"observe|enforce"`
	// Classes says which pods are online and which are offline. Pods that nothing matches are never touched.
	Classes Classes `yaml:"classes" json:"classes"`
	// Objectives are what online pods are promised.
	Objectives Objectives `yaml:"objectives" json:"objectives"`
	// Judge tunes how verdicts are reached.
	Judge Judge `yaml:"judge" json:"judge"`
	// CPU tunes the CPU controller.
	CPU CPU `yaml:"cpu" json:"cpu"`
	// RDT tunes the controllers of cache and memory bandwidth.
	RDT RDT `yaml:"rdt" json:"rdt"`
	// Safety bounds what the agent may do.
	Safety Safety `yaml:"safety" json:"safety"`
	// Windows override the mode, the CPU objectives, the posture or the ladder at certain times of day. The first that contains
	// the node's local time counts.
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
	// Rules are your own; the first that matches decides.
	Rules []ClassRule `yaml:"rules,omitempty" json:"rules,omitempty"`
	// Presets are built-in rule sets, asked in this order where no rule matched: qos-agent (qos-agent.io/class), koordinator,
	// volcano and katalyst (their labels or annotations), kubernetes (Guaranteed and Burstable are online, BestEffort is
	// offline). kubernetes is not among the defaults: a pod that nobody labelled should not be held back by surprise.
	Presets []string `yaml:"presets" json:"presets" want:"qos-agent|koordinator|volcano|katalyst|kubernetes"`
}

// ClassRule gives a class to the pods that match.
type ClassRule struct {
	// Name says in the state API why a pod has its class.
	Name string `yaml:"name" json:"name" required:"true" pattern:"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" example:"1 to 63 letters, digits, dashes, dots or underscores"`
	// Class is what the pods are. unclassified exempts them from all that follows.
	Class Class `yaml:"class" json:"class" required:"true" want:"online|offline|unclassified"`
	// Match says which pods.
	Match Match `yaml:"match" json:"match" required:"true"`
}

// Match matches a pod when every field that is set matches. A Match without fields is an error.
type Match struct {
	// Labels must all be there with these values; the value "*" stands for any.
	Labels map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
	// Annotations must all be there with these values; the value "*" stands for any.
	Annotations map[string]string `yaml:"annotations,omitempty" json:"annotations,omitempty"`
	// Namespaces of which the pod is in one; * stands for any part of a name.
	Namespaces []string `yaml:"namespaces,omitempty" json:"namespaces,omitempty" pattern:"^[-a-z0-9*]{1,253}$" example:"the name of a namespace, in which * stands for any letters"`
	// QoSClasses of Kubernetes of which the pod has one.
	QoSClasses []string `yaml:"qosClasses,omitempty" json:"qosClasses,omitempty" want:"Guaranteed|Burstable|BestEffort"`
	// Cgroups of which one matches the path of the pod's group under a controller's mount; * stays within a directory, **
	// crosses slashes.
	Cgroups []string `yaml:"cgroups,omitempty" json:"cgroups,omitempty" pattern:"^/[^?\\[\\]{}\\s]{0,511}$" example:"a path that begins with /, in which * stands for any letters but / and ** for any letters"`
}

// Objectives are promises to online pods. An objective that is 0 is off.
type Objectives struct {
	// CPUWaitP99 bounds the 99th percentile of run-queue wait over the judge's window.
	CPUWaitP99 Duration `yaml:"cpuWaitP99" json:"cpuWaitP99" want:"0|100us..10s"`
	// CPUWaitEvent is the single wait after which the agent acts at once, between its ticks, also while it goes on. Not below
	// cpuWaitP99: one wait in a hundred may be as long as that. Too many waits beyond cpuWaitP99 are acted upon at once too, unless
	// this is 0.
	CPUWaitEvent Duration `yaml:"cpuWaitEvent" json:"cpuWaitEvent" want:"0|100us..10s"`
	// MemoryStallPercent bounds the share of time in which some task of the group waited for memory (PSI).
	MemoryStallPercent float64 `yaml:"memoryStallPercent" json:"memoryStallPercent" want:"0..100"`
	// IOStallPercent bounds the share of time in which some task of the group waited for disks (PSI).
	IOStallPercent float64 `yaml:"ioStallPercent" json:"ioStallPercent" want:"0..100"`
	// CPIRisePercent bounds by how much the cycles per instruction may be above what is normal for the container at its CPU use. A
	// baseline that varies more than this by itself widens the bound.
	CPIRisePercent float64 `yaml:"cpiRisePercent" json:"cpiRisePercent" want:"0..1000"`
}

// Judge tunes verdicts.
type Judge struct {
	// Window is the time over which waits are judged.
	Window Duration `yaml:"window" json:"window" want:"100ms..60s"`
	// MinSamples is how many waits a window must hold before a percentile of it means anything.
	MinSamples int `yaml:"minSamples" json:"minSamples" want:"1..100000"`
	// WatchPercent of an objective turns the verdict from ok to watch; nothing is given back to offline pods meanwhile.
	WatchPercent int `yaml:"watchPercent" json:"watchPercent" want:"1..100"`
	// CulpritPercent is the share of a victim's wait from which one pod is a culprit.
	CulpritPercent int `yaml:"culpritPercent" json:"culpritPercent" want:"1..100"`
	// JointPercent is the share that a set of pods must hold together to be culprits if none of them is one alone. Not below
	// culpritPercent.
	JointPercent int `yaml:"jointPercent" json:"jointPercent" want:"1..100"`
	// UnknownPercent is the unexplained share of a wait from which nobody is named.
	UnknownPercent int `yaml:"unknownPercent" json:"unknownPercent" want:"1..100"`
	// ThrottledPercent of a container's quota periods being throttled makes its wait its own quota's doing.
	ThrottledPercent int `yaml:"throttledPercent" json:"throttledPercent" want:"1..100"`
	// StealPercent of the node's CPU time being taken by the hypervisor makes waits the hypervisor's doing.
	StealPercent int `yaml:"stealPercent" json:"stealPercent" want:"1..100"`
	// CPI tunes verdicts on cache and memory bandwidth.
	CPI CPIJudge `yaml:"cpi" json:"cpi"`
}

// CPU tunes the CPU controller.
type CPU struct {
	// Posture is how offline pods stand all the time: idle (cpu.idle, or weight where the kernel lacks it), weight (the least
	// CPU weight), or none.
	Posture Posture `yaml:"posture" json:"posture" want:"idle|weight|none"`
	// Ladder is what is done to culprits, one rung after the other, when the posture is not enough. Any of idle, cpus, quota,
	// freeze, in this order; a rung that the node cannot do is skipped with a reason. [] leaves it at the posture.
	Ladder []Rung `yaml:"ladder" json:"ladder" want:"idle|cpus|quota|freeze"`

	// CPUs is the rung that takes whole cores away.
	CPUs CPUsRung `yaml:"cpus" json:"cpus"`
	// Quota is the rung that limits CPU time.
	Quota QuotaRung `yaml:"quota" json:"quota"`
	// Freeze is the rung that stops a pod for moments.
	Freeze FreezeRung `yaml:"freeze" json:"freeze"`

	// Cooldown is the least time between two cuts of one pod, so that a cut can show its effect.
	Cooldown Duration `yaml:"cooldown" json:"cooldown" want:"1ms..60s"`
	// Hold is how long every victim must be well before anything is given back.
	Hold Duration `yaml:"hold" json:"hold" want:"100ms..1h"`
	// RegrowEvery is the time between two steps back.
	RegrowEvery Duration `yaml:"regrowEvery" json:"regrowEvery" want:"100ms..1h"`

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
	// CutPercent of a culprit's CPUs go at one cut.
	CutPercent int `yaml:"cutPercent" json:"cutPercent" want:"1..100"`
	// Floor is the least number of cores that an offline pod keeps.
	Floor int `yaml:"floor" json:"floor" want:"1..1024"`
	// IdleBuffer is how many cores a cut leaves free of the culprit at least, if the floor allows it.
	IdleBuffer int `yaml:"idleBuffer" json:"idleBuffer" want:"0..1024"`
}

// QuotaRung limits CPU time by bandwidth control.
type QuotaRung struct {
	// Period of the quota; short periods keep a throttled pod from running its whole share at once.
	Period Duration `yaml:"period" json:"period" want:"1ms..1s"`
	// CutPercent of a culprit's CPU time go at one cut.
	CutPercent int `yaml:"cutPercent" json:"cutPercent" want:"1..100"`
	// FloorPercent of one CPU is what an offline pod keeps at least. The kernel refuses quotas below 1ms in a period.
	FloorPercent int `yaml:"floorPercent" json:"floorPercent" want:"1..100"`
	// GrowPercent of the node's CPU time is given back at one step.
	GrowPercent int `yaml:"growPercent" json:"growPercent" want:"1..100"`
}

// FreezeRung stops a pod for moments.
type FreezeRung struct {
	// Max is the longest time for which a pod is stopped; then it runs for at least as long.
	Max Duration `yaml:"max" json:"max" want:"10ms..10s"`
}

// Verify tunes the check of blame by intervention: if the victim is not better off after a cut, the cut is taken back, the
// belief in the pair is lowered and the next cut of that pair waits longer.
type Verify struct {
	// After is how long after a cut the victim is looked at again. Not below the judge's window, which would still hold waits
	// from before the cut.
	After Duration `yaml:"after" json:"after" want:"100ms..1m"`
	// ImprovePercent is by how much the victim's wait must have fallen.
	ImprovePercent int `yaml:"improvePercent" json:"improvePercent" want:"1..99"`
	// BackoffMin is the first pause after a cut that did not help; it doubles up to backoffMax.
	BackoffMin Duration `yaml:"backoffMin" json:"backoffMin" want:"100ms..1h"`
	// BackoffMax is the longest pause. Not below backoffMin.
	BackoffMax Duration `yaml:"backoffMax" json:"backoffMax" want:"100ms..1h"`
}

// Burst tunes cpu.max.burst of online containers.
type Burst struct {
	// Percent of the quota that may be saved up; 0 turns bursting off. The kernel allows no more than the quota, and refuses to lower
	// a quota below the burst: where limits are lowered in place, by more than what is left of 100 percent, choose less.
	Percent int `yaml:"percent" json:"percent" want:"0..100"`
}

// Safety bounds the agent.
type Safety struct {
	// StaleAfter is the age from which a signal is unknown: nothing is cut or given back on it. At least two ticks make sense.
	StaleAfter Duration `yaml:"staleAfter" json:"staleAfter" want:"200ms..10m"`
	// ReleaseAfter is how long cuts are held on unknown signals before the node falls back to the posture.
	ReleaseAfter Duration `yaml:"releaseAfter" json:"releaseAfter" want:"1s..1h"`
	// ExternalEdits says what happens when someone else changes a knob that the agent holds: reapply (write ours again) or
	// yield (leave the knob to them).
	ExternalEdits ExternalEdits `yaml:"externalEdits" json:"externalEdits" want:"reapply|yield"`
}

// ExternalEdits is reapply or yield.
type ExternalEdits string

const (
	Reapply ExternalEdits = "reapply"
	Yield   ExternalEdits = "yield"
)

// Window is a part of the day in which other values hold. What it leaves out stays as it is; one that overrides nothing is an
// exception to the windows after it. Times are those of the node's wall clock: an hour that daylight saving skips is skipped,
// one that it repeats counts twice.
type Window struct {
	// Name says in logs and in the state API which window is open.
	Name string `yaml:"name" json:"name" required:"true" pattern:"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" example:"1 to 63 letters, digits, dashes, dots or underscores"`
	// Days on which it begins; empty for every day.
	Days []string `yaml:"days,omitempty" json:"days,omitempty" want:"mon|tue|wed|thu|fri|sat|sun"`
	// From is the local time at which it begins.
	From string `yaml:"from" json:"from" required:"true" pattern:"^([01][0-9]|2[0-3]):[0-5][0-9]$" example:"a time from 00:00 to 23:59"`
	// To is the local time at which it ends, itself not included. A window that ends before it begins runs over midnight.
	To string `yaml:"to" json:"to" required:"true" pattern:"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$" example:"a time from 00:00 to 24:00"`

	// Mode instead of spec.mode.
	Mode Mode `yaml:"mode,omitempty" json:"mode,omitempty" want:"observe|enforce"`
	// CPUWaitP99 instead of spec.objectives.cpuWaitP99.
	CPUWaitP99 *Duration `yaml:"cpuWaitP99,omitempty" json:"cpuWaitP99,omitempty" want:"0|100us..10s"`
	// CPUWaitEvent instead of spec.objectives.cpuWaitEvent.
	CPUWaitEvent *Duration `yaml:"cpuWaitEvent,omitempty" json:"cpuWaitEvent,omitempty" want:"0|100us..10s"`
	// Posture instead of spec.cpu.posture.
	Posture Posture `yaml:"posture,omitempty" json:"posture,omitempty" want:"idle|weight|none"`
	// Ladder instead of spec.cpu.ladder.
	Ladder []Rung `yaml:"ladder,omitempty" json:"ladder,omitzero" want:"idle|cpus|quota|freeze"`
}

// Duration is a time.Duration that is written as text with a unit ("250ms").
type Duration time.Duration

// D is the duration as the standard library's.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the duration with its unit.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errUnit
	}
	*d = Duration(v)
	return nil
}

// Subject is what a pod looks like to class rules.
type Subject struct {
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	QoSClass    string // Guaranteed, Burstable, BestEffort, or "" for what is not a pod of Kubernetes
	Cgroup      string // the pod's group, relative to a controller's mount
}
