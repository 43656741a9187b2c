// Package explain answers for one pod: what is it, how is it, who hurts it, what was done and why, and what would help.
package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/human"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/server"
)

// Explanation is the answer.
type Explanation struct {
	At     time.Time `json:"at"`
	Mode   string    `json:"mode"`
	Policy string    `json:"policy"` // name
	// Pod is what it is, and its containers' signals how it is.
	Pod      server.Pod            `json:"pod"`
	Verdicts []server.Verdict      `json:"verdicts"` // of its containers, with blame
	Hurts    []Harm                `json:"hurts"`    // whom it hurts now
	Held     []server.HeldKnob     `json:"held"`
	Classes  []server.RDTClass     `json:"classes"`   // of service, in resctrl, that it is in
	Log      []decisionlog.Entry   `json:"decisions"` // about it or for its sake, oldest first
	Advice   []string              `json:"advice"`    // what would help
	missing  []missing             // signals that are not measured
	culprits map[string]server.Pod // pods that are named, by namespace/name
	held     map[string]string     // what they are held at
}

// Harm is a pod's part in somebody's wait.
type Harm struct {
	Victim string  `json:"victim"` // namespace/name
	Axis   string  `json:"axis"`
	Level  string  `json:"level"`
	Ratio  float64 `json:"ratio"` // of the victim's wait, 0 to 1
	Named  bool    `json:"named"` // it is held to be a culprit
}

// missing is a signal that the node has not got, and how to get it.
type missing struct{ what, why, fix string }

// Find looks a pod up by namespace/name, or by its name or a part of it if that fits one pod only.
func Find(s *server.State, name string) (*server.Pod, error) {
	var near []string
	var found *server.Pod
	for i := range s.Pods {
		p := &s.Pods[i]
		key := p.Namespace + "/" + p.Name
		if key == name {
			return p, nil
		}
		if p.Name == name || strings.Contains(key, name) {
			near = append(near, human.Clean(key))
			found = p
		}
	}
	switch {
	case len(near) == 1:
		return found, nil
	case len(near) > 1:
		const shown = 10
		more := ""
		if len(near) > shown {
			more, near = fmt.Sprintf(" and %d more", len(near)-shown), near[:shown]
		}
		return nil, fmt.Errorf("%s fits several pods: %s%s", name, strings.Join(near, ", "), more)
	}
	return nil, fmt.Errorf("there is no pod %s on this node among the %d that are known; `qos-agent top` lists them", name, len(s.Pods))
}

// Of explains a pod of s. log is the decision log's part about it.
func Of(s *server.State, pod *server.Pod, log []decisionlog.Entry) *Explanation {
	key := pod.Namespace + "/" + pod.Name
	e := &Explanation{At: s.At, Mode: s.Agent.Mode, Policy: s.Policy.Name, Pod: *pod, Log: log,
		Verdicts: []server.Verdict{}, Hurts: []Harm{}, Held: []server.HeldKnob{}, Classes: []server.RDTClass{}, culprits: map[string]server.Pod{}, held: map[string]string{}}
	pods := map[string]server.Pod{}
	for _, p := range s.Pods {
		pods[p.Namespace+"/"+p.Name] = p
	}
	for _, v := range s.Verdicts {
		victim := v.Namespace + "/" + v.Pod
		if victim == key {
			e.Verdicts = append(e.Verdicts, v)
			for _, c := range v.Culprits {
				e.culprits[party(c)] = pods[party(c)]
			}
			continue
		}
		for _, b := range v.Blame {
			if party(b.Culprit) != key {
				continue
			}
			named := slices.ContainsFunc(v.Culprits, func(c server.Party) bool { return party(c) == key })
			e.Hurts = append(e.Hurts, Harm{Victim: victim, Axis: v.Axis, Level: v.Level, Ratio: b.Ratio, Named: named})
		}
	}
	slices.SortStableFunc(e.Hurts, func(a, b Harm) int { return cmp.Compare(b.Ratio, a.Ratio) })
	for _, k := range s.Knobs {
		if k.Pod == key {
			e.Held = append(e.Held, k)
		}
		e.held[k.Pod] = strings.TrimPrefix(e.held[k.Pod]+", "+k.Knob+" "+k.Current, ", ")
	}
	if s.Node.RDT != nil {
		for _, c := range s.Node.RDT.Classes {
			if slices.Contains(c.Pods, key) {
				e.Classes = append(e.Classes, c)
			}
		}
	}
	for _, m := range []struct{ what, probe string }{
		{"run-queue wait", "bpf"}, {"memory and io stalls", "psi_group"}, {"CPI and cache misses", "perf"}, {"cache and memory bandwidth", "resctrl"},
	} {
		for _, p := range s.Node.Capabilities {
			if p.Name == m.probe && !p.OK {
				e.missing = append(e.missing, missing{m.what, p.Detail, p.Fix})
			}
		}
	}
	e.Advice = e.advise()
	return e
}

func party(p server.Party) string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// advise says what would help. It repeats no advice.
func (e *Explanation) advise() []string {
	out := []string{}
	add := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	switch policy.Class(e.Pod.Class) {
	case policy.Online:
		for i := range e.Verdicts {
			e.adviseVictim(&e.Verdicts[i], add)
		}
	case policy.Offline:
		e.adviseOffline(add)
	default:
		add("No rule of the policy matches it, so it is neither protected nor held back: give it the label qos-agent.io/class (online or offline), or a rule.")
		if len(e.Hurts) > 0 {
			add("It runs while others wait, and it is never touched as long as it has no class.")
		}
	}
	for _, m := range e.missing {
		if m.what == "run-queue wait" && m.fix != "" {
			add("Run-queue wait is not measured (%s), so nobody can be blamed: %s.", m.why, m.fix)
		}
	}
	if len(out) == 0 {
		add("Nothing needs to be done.")
	}
	return out
}

func (e *Explanation) adviseVictim(v *server.Verdict, add func(string, ...any)) {
	if v.Level != judge.Violated.String() && v.Level != judge.Watch.String() {
		return
	}
	switch v.Reason {
	case judge.Contention.String():
		for _, c := range v.Culprits {
			e.adviseCulprit(party(c), add)
		}
	case judge.OwnQueue.String():
		add("It waits for itself: give it more CPUs (a higher limit, or more replicas), or fewer runnable threads (GOMAXPROCS, worker counts). Holding others back does not help.")
	case judge.SelfThrottled.String():
		quota := ""
		for _, c := range e.Pod.Containers {
			if u := c.Signals.CPU; u != nil && u.QuotaCores > 0 {
				quota = fmt.Sprintf(" of %.2g CPUs", u.QuotaCores)
			}
		}
		add("It has used up its own CPU limit%s (throttled in %s of its periods): raise or drop the limit, or let the policy grant it burst.", quota, human.Percent(v.Evidence.ThrottledRatio))
	case judge.OwnPhase.String():
		add("Nobody else does more in its cache or on its memory bus than while it was well: its own program has changed what it does (a new release, another load).")
	case judge.Steal.String():
		add("The hypervisor takes %s of the node's CPU time: that is for whoever runs the host. Nothing on this node helps.", human.Percent(v.Evidence.StealRatio))
	case judge.Kernel.String():
		add("Kernel threads and interrupts ran while it waited: spread interrupts (irqbalance, RPS) or keep them off its CPUs.")
	case judge.System.String():
		add("Processes outside every pod ran while it waited (runtime, kubelet, cron jobs, backups): find them with top, and give them a group with fewer CPUs.")
	case judge.IdleWakeup.String():
		add("It waited for an idle CPU to wake up: a governor or a limit on idle states (cpuidle, /dev/cpu_dma_latency) helps, other pods do not matter.")
	case judge.Scattered.String():
		add("Many pods together ran while it waited, none of them much: the node is full. Fewer pods, or a CPU request that keeps room for it.")
	case judge.Unexplained.String():
		add("Too much of its wait could not be attributed: see qosagent_lost_total in /metrics.")
	case judge.Pressure.String():
		if v.Axis == judge.Memory.String() {
			add("It stalls on memory: a higher memory limit or request (memory.min), or fewer memory-hungry neighbours.")
		} else {
			add("It stalls on io: look who writes (io.stat), and limit it (io.max, io.weight).")
		}
	}
}

// adviseCulprit says what is being done about a pod that is named, or why nothing is.
func (e *Explanation) adviseCulprit(key string, add func(string, ...any)) {
	p, known := e.culprits[key]
	switch {
	case !known || p.Name == "":
		add("%s hurts it, and has ended meanwhile.", key)
	case policy.Class(p.Class) != policy.Offline:
		add("%s hurts it, and is of class %s: only offline pods are held back. Move one of them to another node, or make it offline if that is what it is.", key, p.Class)
	case e.Mode == string(policy.Observe):
		add("%s hurts it, and the mode is observe: nothing is written. With mode enforce it would be held back (see the decisions that were only observed).", key)
	case e.held[key] == "":
		add("%s hurts it and is not held at all: see why with `qos-agent explain %s`.", key, key)
	default:
		add("%s hurts it, and is held at %s; cuts go on until the wait is inside its objective. Why it is cut no further: `qos-agent explain %s`.", key, e.held[key], key)
	}
}

func (e *Explanation) adviseOffline(add func(string, ...any)) {
	victims := []string{}
	for _, k := range e.Held {
		if k.Victim != "" && !slices.Contains(victims, k.Victim) {
			victims = append(victims, k.Victim)
		}
	}
	switch {
	case len(victims) > 0:
		add("It is held back for the sake of %s, and gets its CPUs back step by step once that is well: `qos-agent explain %s` says what that needs.", strings.Join(victims, ", "), victims[0])
		add("If it must be quick, it needs a node with less online work, or fewer threads: cuts are made where it runs while others wait.")
	case len(e.Held) > 0:
		add("It stands back as every offline pod does (posture): it gets what online pods leave, all of it, and is not cut further.")
	case e.Mode == string(policy.Observe):
		add("The mode is observe: it is not held at all.")
	}
	for _, c := range e.Pod.Containers {
		if u := c.Signals.CPU; u != nil && u.ThrottledPeriods > 0 && !slices.ContainsFunc(e.Held, func(k server.HeldKnob) bool { return k.Knob == "cpu.quota" }) {
			add("Container %s is throttled by its own CPU limit, not by the agent.", c.Name)
		}
	}
}
