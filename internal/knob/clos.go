package knob

import "slices"

// Role is what a pod is to the plan of classes of service (CLOS).
type Role uint8

const (
	RoleNone    Role = iota // neither: stays in the class that others gave it
	RoleOnline              // protected
	RoleOffline             // gives way
)

// Part is how much of one resource of RDT a controller wants a pod to have, and why. The zero value is all of it: no controller
// holds the pod back.
type Part struct {
	// N is in ways of the last-level cache, or in percent of the memory bandwidth of a domain (1 to 100). 0: no limit.
	N int
	// Owner is the controller that asks ("cache", "bandwidth"), Rule its rule, Victim the pod for whose sake ("namespace/name").
	Owner, Rule, Victim string
}

// Share is what the controllers together want for one pod from the hardware that resctrl controls: the controller of the cache owns
// Ways, the one of the bandwidth owns MB. A complete list of shares, one for each pod of interest, is what the planner of classes
// turns into a ClassPlan. Shares are comparable.
type Share struct {
	Pod    string // "namespace/name"
	Cgroup string // the pod's own group, relative to a controller's mount
	Role   Role
	// Own gives an online pod Ways of the cache for itself alone: nobody else in a class of ours may fill them. It is ignored
	// for others.
	Own  bool
	Ways Part
	MB   Part
	// Where is the domains of the machine in which Ways and MB hold for an offline pod: bit i is the i-th by ascending id. 0: in all.
	Where uint64
}

// MemberPod is a pod in a class.
type MemberPod struct {
	Pod    string // "namespace/name"
	Cgroup string // the pod's group
}

// DomainValue is the value of a resource in one domain (the CPUs that share a cache, or a memory controller).
type DomainValue struct {
	Domain int    // the kernel's id of the domain; ids may have gaps
	Value  uint64 // L3: bit mask of ways; MB: in the machine's unit (percent, MiB/s, or 1/8 GB/s on AMD)
}

// Class is one class of service: a control group of resctrl.
type Class struct {
	// Name is unique in a plan: "online", "offline", "culprit-1", "own-1". The executor puts its prefix before it.
	Name string
	// L3 and MB hold a value for every domain, ascending; empty if the machine does not control the resource.
	L3, MB []DomainValue
	// Ways and MBPercent are the same for people and for the decision log, in the domains where limits hold; 0 percent is no limit.
	Ways      int
	MBPercent int
	// Cache and Bandwidth say who limits the class and why; zero where nobody does.
	Cache, Bandwidth Part
	// Pods are its members by group.
	Pods []MemberPod
}

// ClassPlan is the complete list of classes of service that should be, and of pods whose use of cache and bandwidth should be
// measured. A class that the executor holds and that no plan names any more is removed, and its pods go back to where they were.
type ClassPlan struct {
	Classes []Class // by name
	// Watch are the pods that get a monitoring group (RMID) of their own, the most important first: where RMIDs are too few,
	// the last ones go without.
	Watch []MemberPod
}

// Equal reports whether the classes are the same in every respect.
func (c *Class) Equal(d *Class) bool {
	return c.Name == d.Name && c.Ways == d.Ways && c.MBPercent == d.MBPercent && c.Cache == d.Cache && c.Bandwidth == d.Bandwidth &&
		slices.Equal(c.L3, d.L3) && slices.Equal(c.MB, d.MB) && slices.Equal(c.Pods, d.Pods)
}

// Equal reports whether two plans are the same.
func (p *ClassPlan) Equal(q *ClassPlan) bool {
	if len(p.Classes) != len(q.Classes) || !slices.Equal(p.Watch, q.Watch) {
		return false
	}
	for i := range p.Classes {
		if !p.Classes[i].Equal(&q.Classes[i]) {
			return false
		}
	}
	return true
}

// CopyFrom makes p a copy of q that shares nothing with it, using p's memory again.
func (p *ClassPlan) CopyFrom(q *ClassPlan) {
	p.Classes = slices.Grow(p.Classes[:0], len(q.Classes))[:len(q.Classes)]
	for i := range q.Classes {
		c, from := &p.Classes[i], &q.Classes[i]
		l3, mb, pods := c.L3[:0], c.MB[:0], c.Pods[:0]
		*c = *from
		c.L3, c.MB, c.Pods = append(l3, from.L3...), append(mb, from.MB...), append(pods, from.Pods...)
	}
	p.Watch = append(p.Watch[:0], q.Watch...)
}

// ClassOutcome is one change that the executor made to resctrl, or tried.
type ClassOutcome struct {
	// Group is the control or monitoring group, below the mount ("qos-agent.offline").
	Group string
	// Resource is what was changed: "L3", "MB", "tasks", "group", "mon".
	Resource string
	// Pod is the pod concerned ("namespace/name"); "" for a class as a whole.
	Pod    string
	Owner  string
	Rule   string
	Victim string
	Old    string // as resctrl shows it: "0=7ff;1=7ff"
	New    string
	Result Result
	Err    error // with Failed and Mismatch; holds the errno and the kernel's last_cmd_status
}
