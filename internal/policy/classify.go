package policy

import (
	"fmt"
	"slices"
	"strconv"
)

// Classify finds the class of a pod, and says for people what decided: "rule NAME", "preset NAME: ..." or "nothing matches".
// A preset that finds its label decides, even if the value makes no sense to it: such a pod is unclassified, and the text says
// why.
func (c *Compiled) Classify(s Subject) (Class, string) {
	for i := range c.rules {
		if r := &c.rules[i]; r.matches(&s) {
			return r.class, "rule " + r.name
		}
	}
	for _, p := range c.preset {
		class, why, found := p.classify(&s)
		if !found {
			continue
		}
		if class == Offline && system(&s) {
			return Unclassified, "preset " + p.name + ": " + why + ", but a preset never makes a system pod offline"
		}
		return class, "preset " + p.name + ": " + why
	}
	return Unclassified, "nothing matches"
}

// system reports whether the node depends on the pod: it is in kube-system, or static (the kubelet runs it from a file, as the
// control plane's). Whoever wants such a pod to be offline has to say so in a rule of the policy.
func system(s *Subject) bool {
	const source = "kubernetes.io/config.source" // set by the kubelet on every pod: api, file or http
	from := s.Annotations[source]
	return s.Namespace == "kube-system" || from != "" && from != "api"
}

// rule is a ClassRule made ready.
type rule struct {
	name                string
	class               Class
	match               Match
	namespaces, cgroups []glob
}

func compileRules(in []ClassRule) []rule {
	out := make([]rule, len(in))
	for i, r := range in {
		out[i] = rule{name: r.Name, class: r.Class, match: r.Match, namespaces: globs(r.Match.Namespaces), cgroups: globs(r.Match.Cgroups)}
	}
	return out
}

func globs(patterns []string) []glob {
	out := make([]glob, len(patterns))
	for i, p := range patterns {
		out[i] = glob(p)
	}
	return out
}

func (r *rule) matches(s *Subject) bool {
	return holds(r.match.Labels, s.Labels) &&
		holds(r.match.Annotations, s.Annotations) &&
		matchesAny(r.namespaces, s.Namespace) &&
		(len(r.match.QoSClasses) == 0 || slices.Contains(r.match.QoSClasses, s.QoSClass)) &&
		matchesAny(r.cgroups, s.Cgroup)
}

// holds reports whether have has every key of want, with its value or, for "*", with any.
func holds(want, have map[string]string) bool {
	for k, v := range want {
		got, ok := have[k]
		if !ok || v != "*" && got != v {
			return false
		}
	}
	return true
}

// matchesAny reports whether one of the patterns matches, or there are none.
func matchesAny(patterns []glob, s string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(g glob) bool { return g.match(s) })
}

const (
	presetOwn         = "qos-agent"
	presetKoordinator = "koordinator"
	presetVolcano     = "volcano"
	presetKatalyst    = "katalyst"
	presetKubernetes  = "kubernetes"
)

// preset is a built-in set of rules. classify returns found false for pods that it has nothing to say of, and in why what it
// saw.
type preset struct {
	name     string
	classify func(*Subject) (class Class, why string, found bool)
}

var presets = map[string]preset{
	presetOwn: {presetOwn, func(s *Subject) (Class, string, bool) {
		return byKey(s, "qos-agent.io/class", func(v string) (Class, bool) {
			c := Class(v)
			return c, c == Online || c == Offline || c == Unclassified
		})
	}},
	presetKoordinator: {presetKoordinator, classifyKoordinator},
	// Volcano's agent knows LC, HLS, LS and BE; Huawei's CCE, from which it comes, numbers from -7 to 7, negative for offline.
	presetVolcano: {presetVolcano, func(s *Subject) (Class, string, bool) {
		return byKey(s, "volcano.sh/qos-level", func(v string) (Class, bool) {
			switch v {
			case "LC", "HLS", "LS":
				return Online, true
			case "BE":
				return Offline, true
			}
			switch n, err := strconv.Atoi(v); {
			case err != nil || n < -7 || n > 7:
				return Unclassified, false
			case n < 0:
				return Offline, true
			default:
				return Online, true
			}
		})
	}},
	// Katalyst treats pods without a level as shared_cores; here they are left to the presets after it.
	presetKatalyst: {presetKatalyst, func(s *Subject) (Class, string, bool) {
		return byKey(s, "katalyst.kubewharf.io/qos_level", func(v string) (Class, bool) {
			switch v {
			case "dedicated_cores", "shared_cores":
				return Online, true
			case "reclaimed_cores":
				return Offline, true
			case "system_cores": // the node's own daemons: no service, and not to be held back
				return Unclassified, true
			}
			return Unclassified, false
		})
	}},
	presetKubernetes: {presetKubernetes, func(s *Subject) (Class, string, bool) {
		switch s.QoSClass {
		case "Guaranteed", "Burstable":
			return Online, s.QoSClass, true
		case "BestEffort":
			return Offline, s.QoSClass, true
		}
		return Unclassified, "", false
	}},
}

// classifyKoordinator goes by the QoS class, and where there is none by the priority class. Koordinator itself refuses pods on
// which the two contradict each other; here such a pod is unclassified.
func classifyKoordinator(s *Subject) (Class, string, bool) {
	qos, qosWhy, hasQoS := byKey(s, "koordinator.sh/qosClass", func(v string) (Class, bool) {
		switch v {
		case "LSE", "LSR", "LS":
			return Online, true
		case "BE":
			return Offline, true
		case "SYSTEM": // the node's own daemons: no service, and not to be held back
			return Unclassified, true
		}
		return Unclassified, false
	})
	priority, priorityWhy, hasPriority := byKey(s, "koordinator.sh/priority-class", func(v string) (Class, bool) {
		switch v {
		case "koord-prod":
			return Online, true
		case "koord-batch", "koord-free":
			return Offline, true
		case "koord-mid": // goes with LS as well as with BE, so that it says nothing alone
			return Unclassified, true
		}
		return Unclassified, false
	})
	switch {
	case !hasQoS:
		return priority, priorityWhy, hasPriority
	case hasPriority && (qos == Online && priority == Offline || qos == Offline && priority == Online):
		return Unclassified, qosWhy + " contradicts " + priorityWhy, true
	default:
		return qos, qosWhy, true
	}
}

// byKey looks for key among labels and annotations and lets class judge its value. It finds nothing if the key is nowhere or
// empty. A value that class does not know, or that differs between label and annotation, is unclassified.
func byKey(s *Subject, key string, class func(value string) (c Class, known bool)) (Class, string, bool) {
	value, other := s.Labels[key], s.Annotations[key]
	if value == "" {
		value, other = other, value
	}
	if value == "" {
		return Unclassified, "", false
	}
	if other != "" && other != value {
		return Unclassified, fmt.Sprintf("label %s=%.63q contradicts the annotation, %.63q", key, value, other), true
	}
	c, known := class(value)
	if !known {
		return Unclassified, fmt.Sprintf("%s=%.63q is not known", key, value), true
	}
	return c, key + "=" + value, true
}
