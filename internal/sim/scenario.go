// Package sim runs scenarios: small files that say which pods come, what load they bring, how they hurt each other and what breaks
// meanwhile. The same decide.Step as in the daemon drives the response model of package model as its plant, on a fake clock, so that
// minutes of a node pass in milliseconds and the controllers' behaviour over time can be tested: does it settle, does it
// oscillate, does it keep its floors, does it give everything back.
//
// What a scenario shows is how the controllers behave on a node that reacts as the model says. What a real node does is measured
// by the tests on real kernels and by bench/.
package sim

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Scenario is one file.
type Scenario struct {
	// APIVersion says by which rules to read the file.
	APIVersion string `yaml:"apiVersion" want:"qos-agent.io/v1alpha1" required:"true"`
	// Kind is what the file is.
	Kind string `yaml:"kind" want:"Scenario" required:"true"`
	// Name is the file's name without .yaml.
	Name string `yaml:"name" required:"true" pattern:"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" example:"small letters, digits and dashes"`
	// About says what happens and what is to be seen, in a sentence or two.
	About string `yaml:"about" required:"true"`
	// Duration of the run.
	Duration policy.Duration `yaml:"duration" want:"1s..24h"`
	// Tick of the loop.
	Tick policy.Duration `yaml:"tick" want:"10ms..10s"`
	// Starts is the wall-clock time at which the run begins, for windows of the policy.
	Starts string `yaml:"starts" pattern:"^([01][0-9]|2[0-3]):[0-5][0-9]$" example:"a time from 00:00 to 23:59"`
	// Seed of the random numbers. The same seed gives the same run.
	Seed int `yaml:"seed" want:"0..1000000"`
	// Node is the machine.
	Node Node `yaml:"node"`
	// Policy is what differs from the default policy's spec.
	Policy policy.Spec `yaml:"policy"`
	// Pods on the node.
	Pods []Pod `yaml:"pods" required:"true"`
	// Faults that happen.
	Faults []Fault `yaml:"faults,omitempty"`
	// Expect is what must come of it.
	Expect Expect `yaml:"expect"`
}

// Node is the machine.
type Node struct {
	// CPUs it has.
	CPUs int `yaml:"cpus" want:"1..1024"`
	// Threads of each core.
	Threads int `yaml:"threads" want:"1..8"`
	// Sockets, each a NUMA node with a last-level cache.
	Sockets int `yaml:"sockets" want:"1..16"`
	// Ways of the last-level cache, which CAT can share out and CMT can see; 0: the machine has neither RDT nor hardware counters.
	Ways int `yaml:"ways" want:"0..32"`
	// MemoryMBps is what the memory can move, which MBA can limit and MBM can see, MB/s.
	MemoryMBps float64 `yaml:"memoryMBps" want:"0..10000000"`
	// Missing features.
	Missing []string `yaml:"missing,omitempty" want:"cpuIdle|cpuBurst|cpuQuota|cpuSet|freeze|groupPSI|runQueue|cacheAllocation|bandwidthAllocation"`
}

// Pod is a pod. An online pod waits, an offline pod makes others wait; a pod may do both.
type Pod struct {
	// Name of the pod; its namespace is its class.
	Name string `yaml:"name" required:"true" pattern:"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" example:"small letters, digits and dashes"`
	// Class of the pod.
	Class policy.Class `yaml:"class" required:"true" want:"online|offline|unclassified"`
	// Arrives after this time.
	Arrives policy.Duration `yaml:"arrives" want:"0s..24h"`
	// Leaves after this time; 0: never.
	Leaves policy.Duration `yaml:"leaves" want:"0s..24h"`
	// CPU is how many CPUs it would use.
	CPU float64 `yaml:"cpu" want:"0..1024"`
	// Load changes that.
	Load []LoadStep `yaml:"load,omitempty"`
	// Bursts add to that.
	Bursts *Bursts `yaml:"bursts,omitempty"`
	// Limit is a CPU limit of its own, in CPUs; 0: none.
	Limit float64 `yaml:"limit" want:"0..1024"`
	// Allowed is the CPUs on which others let it run ("0-3"); empty: all.
	Allowed string `yaml:"allowed"`
	// Group is its cgroup if it is a special one.
	Group string `yaml:"group"`

	// Wakeups is how many waits it has in a second for each CPU that it uses; online pods.
	Wakeups float64 `yaml:"wakeups" want:"0..100000"`
	// Wait is the median of its waits when it meets nobody; online pods.
	Wait policy.Duration `yaml:"wait" want:"1us..1s"`
	// Spread is the standard deviation of the logarithm of these waits.
	Spread float64 `yaml:"spread" want:"0..3"`
	// Service is the mean time for which one of its tasks runs, which its own queue is made of.
	Service policy.Duration `yaml:"service" want:"0s..1s"`
	// Sensitivity multiplies the waits that others make for it.
	Sensitivity float64 `yaml:"sensitivity" want:"0..100"`

	// Harm is what it does to online pods.
	Harm Harm `yaml:"harm"`
	// Memory is how it uses cache and memory; on machines with ways.
	Memory Memory `yaml:"memory"`
}

// Memory is how a pod uses cache and memory.
type Memory struct {
	// CPI is what the core needs for an instruction when everything is in its own caches.
	CPI float64 `yaml:"cpi" want:"0.1..20"`
	// MPKI is misses per thousand instructions with all of the last-level cache.
	MPKI float64 `yaml:"mpki" want:"0..1000"`
	// Exponent says how the misses grow with fewer ways: 0.5 is the square root rule, 0 streams that never hit anyway.
	Exponent float64 `yaml:"exponent" want:"0..2"`
}

// LoadStep sets the CPUs that a pod would use from a time on.
type LoadStep struct {
	// At is when.
	At policy.Duration `yaml:"at" want:"0s..24h"`
	// Ramp is how long it takes to get there.
	Ramp policy.Duration `yaml:"ramp" want:"0s..24h"`
	// CPU is how many CPUs it would use then.
	CPU float64 `yaml:"cpu" want:"0..1024"`
}

// Bursts adds load for a part of each period.
type Bursts struct {
	// Every is the period.
	Every policy.Duration `yaml:"every" want:"20ms..24h" required:"true"`
	// For is how long each lasts.
	For policy.Duration `yaml:"for" want:"10ms..24h" required:"true"`
	// CPU is how much is added.
	CPU float64 `yaml:"cpu" want:"0..1024"`
}

// Harm is what a pod does to online pods. A dispatch meets it with probability hits * (its share of the node's CPU time) ^ knee, and
// then waits for an exponential time with the mean that goes with how the scheduler ranks it.
type Harm struct {
	// Hits is the probability of a meeting when the pod has all of the node.
	Hits float64 `yaml:"hits" want:"0..1"`
	// Knee is the exponent: 1 for tasks that wake anywhere, more where the scheduler finds an idle CPU as long as there is one.
	Knee float64 `yaml:"knee" want:"0.2..8"`
	// Equal is the mean wait behind it at equal weight.
	Equal policy.Duration `yaml:"equal" want:"0s..10s"`
	// Weight is the mean wait behind it at least weight.
	Weight policy.Duration `yaml:"weight" want:"0s..10s"`
	// Idle is the mean wait behind it when it is SCHED_IDLE: what it does inside the kernel.
	Idle policy.Duration `yaml:"idle" want:"0s..10s"`
	// Accused is the probability that a victim's long wait of other causes is put down to it: an innocent pod that looks guilty.
	Accused float64 `yaml:"accused" want:"0..1"`
}

// Fault is something that breaks for a while.
type Fault struct {
	// Kind of fault: stale (no new run-queue waits are read), mute (no events come), blind (the kernel side is gone), unattributed
	// (waits come without culprits), steal (the hypervisor takes a part of the node), slow (every online wait is longer by
	// `wait`, and no pod did it), refused (the kernel takes none of our writes), offline-cpus (only `cpus` are left).
	Kind string `yaml:"kind" required:"true" want:"stale|mute|blind|unattributed|steal|slow|refused|offline-cpus"`
	// At is when it begins.
	At policy.Duration `yaml:"at" want:"0s..24h"`
	// For is how long it lasts; 0: to the end.
	For policy.Duration `yaml:"for" want:"0s..24h"`
	// Percent of the node that steal takes.
	Percent float64 `yaml:"percent" want:"0..100"`
	// Wait that slow adds.
	Wait policy.Duration `yaml:"wait" want:"0s..10s"`
	// CPUs that offline-cpus leaves.
	CPUs int `yaml:"cpus" want:"0..1024"`
}

// Expect is what must come of a scenario. Beyond it every run is held to what always holds: floors kept, masks inside what is allowed,
// only offline pods cut, no knob with two owners, nothing left when the pods or the policy go.
type Expect struct {
	// ViolationPercent bounds the part of the online time beyond the objective.
	ViolationPercent Bounds `yaml:"violationPercent"`
	// MissedPercent bounds the part of the online time that nobody helped with.
	MissedPercent Bounds `yaml:"missedPercent"`
	// WorkPercent bounds the part of the work that offline pods wanted done that got done.
	WorkPercent Bounds `yaml:"workPercent"`
	// Reversals bounds how often a pod was cut after it had been given something, or the other way round.
	Reversals Bounds `yaml:"reversals"`
	// Changes bounds how many knobs turned.
	Changes Bounds `yaml:"changes"`
	// CPIRisePercent bounds how far the CPI of online pods was above that of the pod alone, over the whole run.
	CPIRisePercent Bounds `yaml:"cpiRisePercent"`
	// FalseCuts bounds the cuts of pods without a part in the victim's wait.
	FalseCuts Bounds `yaml:"falseCuts"`
	// SettlesBy is when the plan must have come to rest: no knob turns after it.
	SettlesBy policy.Duration `yaml:"settlesBy" want:"0s..24h"`
	// ReactsWithin is how long after the first violation the first cut comes at the latest.
	ReactsWithin policy.Duration `yaml:"reactsWithin" want:"0s..24h"`
	// WellFrom is when online pods are inside their objectives again, to the end of the run but for one second in a hundred.
	WellFrom policy.Duration `yaml:"wellFrom" want:"0s..24h"`
	// FreeAtEnd says that at the end nothing is held below the posture.
	FreeAtEnd bool `yaml:"freeAtEnd"`
	// Cut names pods that must have been cut.
	Cut []string `yaml:"cut,omitempty"`
	// NeverCut names pods that must not have been.
	NeverCut []string `yaml:"neverCut,omitempty"`
	// Rules must have been used.
	Rules []string `yaml:"rules,omitempty"`
	// NoRules must not have been used.
	NoRules []string `yaml:"noRules,omitempty"`
}

// Bounds is a range; what is left out does not bound.
type Bounds struct {
	// Min is the least that is right.
	Min *float64 `yaml:"min,omitempty"`
	// Max is the most that is right.
	Max *float64 `yaml:"max,omitempty"`
}

// blank is a scenario with the defaults.
func blank() Scenario {
	return Scenario{
		Duration: policy.Duration(time.Minute), Tick: policy.Duration(100 * time.Millisecond), Starts: "12:00",
		Node: Node{CPUs: 8, Threads: 1, Sockets: 1}, Policy: policy.Default().Spec,
	}
}

// pod defaults that depend on nothing else. Lists are decoded from zero values, so that zero has to mean the default.
func (p *Pod) fill() {
	if p.Wakeups == 0 {
		p.Wakeups = 2000
	}
	if p.Wait == 0 {
		p.Wait = policy.Duration(60 * time.Microsecond)
	}
	if p.Spread == 0 {
		p.Spread = 0.6
	}
	if p.Sensitivity == 0 {
		p.Sensitivity = 1
	}
	if p.Memory.CPI == 0 {
		p.Memory.CPI = 0.8
	}
	if p.Harm.Knee == 0 {
		p.Harm.Knee = 1
	}
}

// LoadFile reads a scenario. The error is a strictyaml.ErrorList with all that is wrong.
func LoadFile(file string) (*Scenario, error) {
	data, err := strictyaml.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parse(file, data)
}

func parse(file string, data []byte) (*Scenario, error) {
	s := blank()
	if err := strictyaml.Decode(file, data, &s); err != nil {
		return nil, err
	}
	if errs := s.check(file); len(errs) > 0 {
		return nil, errs.Tidy()
	}
	for i := range s.Pods {
		s.Pods[i].fill()
	}
	return &s, nil
}

// check checks what no single field shows.
func (s *Scenario) check(file string) (errs strictyaml.ErrorList) {
	fail := func(path, problem, fix string) {
		errs = append(errs, strictyaml.FieldError{File: file, Path: path, Problem: problem, Fix: fix})
	}
	if want := filepath.Base(file); s.Name+".yaml" != want {
		fail("name", fmt.Sprintf("is %q in a file called %s", s.Name, want), "the file's name without .yaml")
	}
	if n := s.Node; (n.Ways > 0) != (n.MemoryMBps > 0) {
		fail("node.ways", "and memoryMBps stand without each other", "both, or neither")
	}
	if n := s.Node; n.CPUs%(n.Threads*n.Sockets) != 0 {
		fail("node.cpus", fmt.Sprintf("is %d, with %d threads a core and %d sockets", n.CPUs, n.Threads, n.Sockets), "a multiple of threads times sockets")
	}
	names := make(map[string]bool)
	for i := range s.Pods {
		p := &s.Pods[i]
		path := fmt.Sprintf("pods[%d]", i)
		if names[p.Name] && p.Arrives == 0 {
			fail(path+".name", fmt.Sprintf("is %q again", p.Name), "a name of its own, or an arrival after the other has left")
		}
		names[p.Name] = true
		if p.Leaves > 0 && p.Leaves <= p.Arrives {
			fail(path+".leaves", fmt.Sprintf("is %v, when it arrives at %v", p.Leaves, p.Arrives), "a later time, or 0")
		}
		for k := 1; k < len(p.Load); k++ {
			if p.Load[k].At < p.Load[k-1].At+p.Load[k-1].Ramp {
				fail(fmt.Sprintf("%s.load[%d].at", path, k), "is before the step before it is over", "steps in the order of time")
			}
		}
		if set, err := cpuset.Parse(p.Allowed); p.Allowed != "" && (err != nil || set.Empty()) {
			fail(path+".allowed", fmt.Sprintf("is %q", p.Allowed), "a list of CPUs: 0-3,8")
		}
	}
	for i, f := range s.Faults {
		if f.Kind == "offline-cpus" && (f.CPUs < 1 || f.CPUs > s.Node.CPUs) {
			fail(fmt.Sprintf("faults[%d].cpus", i), fmt.Sprintf("is %d of %d", f.CPUs, s.Node.CPUs), "how many are left")
		}
	}
	for _, list := range [][]string{s.Expect.Cut, s.Expect.NeverCut} {
		for _, name := range list {
			if !names[name] {
				fail("expect", fmt.Sprintf("names the pod %q, which does not exist", name), "a pod of the scenario")
			}
		}
	}
	if err := policy.Validate(&policy.Policy{APIVersion: policy.APIVersion, Kind: policy.Kind, Metadata: policy.Metadata{Name: s.Name}, Spec: s.Policy}); err != nil {
		var list strictyaml.ErrorList
		if errors.As(err, &list) {
			for _, e := range list {
				e.File = file
				e.Path = "policy" + e.Path[min(len("spec"), len(e.Path)):]
				errs = append(errs, e)
			}
		}
	}
	return errs
}

// Compile makes the scenario's own policy.
func (s *Scenario) Compile() (*policy.Compiled, error) {
	return policy.Compile(&policy.Policy{APIVersion: policy.APIVersion, Kind: policy.Kind, Metadata: policy.Metadata{Name: s.Name}, Spec: s.Policy})
}

// demand is the CPUs that the pod would use at time t.
func (p *Pod) demand(t time.Duration) float64 {
	d := p.CPU
	for i := range p.Load {
		l := &p.Load[i]
		if t < l.At.D() {
			break
		}
		if into := t - l.At.D(); into < l.Ramp.D() {
			d += (l.CPU - d) * float64(into) / float64(l.Ramp.D())
		} else {
			d = l.CPU
		}
	}
	if b := p.Bursts; b != nil && t%b.Every.D() < b.For.D() {
		d += b.CPU
	}
	return d
}

// present reports whether the pod is there at time t.
func (p *Pod) present(t time.Duration) bool {
	return t >= p.Arrives.D() && (p.Leaves == 0 || t < p.Leaves.D())
}
