package policy

import (
	"reflect"
	"slices"
	"testing"

	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

func TestPresets(t *testing.T) {
	label := func(k, v string) Subject { return Subject{Namespace: "default", Labels: map[string]string{k: v}} }
	annotation := func(k, v string) Subject { return Subject{Namespace: "default", Annotations: map[string]string{k: v}} }
	const (
		own       = "qos-agent.io/class"
		koordQoS  = "koordinator.sh/qosClass"
		koordPrio = "koordinator.sh/priority-class"
		vol       = "volcano.sh/qos-level"
		kat       = "katalyst.kubewharf.io/qos_level"
	)
	koord := func(qos, prio string) Subject {
		return Subject{Labels: map[string]string{koordQoS: qos, koordPrio: prio}}
	}
	tests := []struct {
		in   Subject
		want Class
		why  string
	}{
		{Subject{}, Unclassified, "nothing matches"},
		{label(own, "online"), Online, "preset qos-agent: qos-agent.io/class=online"},
		{annotation(own, "offline"), Offline, "preset qos-agent: qos-agent.io/class=offline"},
		{label(own, "unclassified"), Unclassified, "preset qos-agent: qos-agent.io/class=unclassified"},
		{label(own, "Offline"), Unclassified, `preset qos-agent: qos-agent.io/class="Offline" is not known`},
		{label(own, ""), Unclassified, "nothing matches"},
		{
			Subject{Labels: map[string]string{own: "online"}, Annotations: map[string]string{own: "offline"}},
			Unclassified, `preset qos-agent: label qos-agent.io/class="online" contradicts the annotation, "offline"`,
		},
		{
			Subject{Labels: map[string]string{own: "online"}, Annotations: map[string]string{own: "online"}},
			Online, "preset qos-agent: qos-agent.io/class=online",
		},
		{ // the presets' order
			Subject{Labels: map[string]string{own: "online", koordQoS: "BE"}},
			Online, "preset qos-agent: qos-agent.io/class=online",
		},
		{ // the first that finds its key decides, even if it does not understand it
			Subject{Labels: map[string]string{own: "batch", koordQoS: "BE"}},
			Unclassified, `preset qos-agent: qos-agent.io/class="batch" is not known`,
		},

		{label(koordQoS, "LSE"), Online, "preset koordinator: koordinator.sh/qosClass=LSE"},
		{label(koordQoS, "LSR"), Online, "preset koordinator: koordinator.sh/qosClass=LSR"},
		{label(koordQoS, "LS"), Online, "preset koordinator: koordinator.sh/qosClass=LS"},
		{label(koordQoS, "BE"), Offline, "preset koordinator: koordinator.sh/qosClass=BE"},
		{label(koordQoS, "SYSTEM"), Unclassified, "preset koordinator: koordinator.sh/qosClass=SYSTEM"},
		{label(koordQoS, "be"), Unclassified, `preset koordinator: koordinator.sh/qosClass="be" is not known`},
		{label(koordPrio, "koord-prod"), Online, "preset koordinator: koordinator.sh/priority-class=koord-prod"},
		{label(koordPrio, "koord-mid"), Unclassified, "preset koordinator: koordinator.sh/priority-class=koord-mid"},
		{label(koordPrio, "koord-batch"), Offline, "preset koordinator: koordinator.sh/priority-class=koord-batch"},
		{label(koordPrio, "koord-free"), Offline, "preset koordinator: koordinator.sh/priority-class=koord-free"},
		{label(koordPrio, "batch"), Unclassified, `preset koordinator: koordinator.sh/priority-class="batch" is not known`},
		{koord("LS", "koord-mid"), Online, "preset koordinator: koordinator.sh/qosClass=LS"},
		{koord("BE", "koord-mid"), Offline, "preset koordinator: koordinator.sh/qosClass=BE"},
		{koord("BE", "koord-batch"), Offline, "preset koordinator: koordinator.sh/qosClass=BE"},
		{koord("BE", "koord-prod"), Unclassified, "preset koordinator: koordinator.sh/qosClass=BE contradicts koordinator.sh/priority-class=koord-prod"},
		{koord("LSR", "koord-batch"), Unclassified, "preset koordinator: koordinator.sh/qosClass=LSR contradicts koordinator.sh/priority-class=koord-batch"},
		{koord("", "koord-batch"), Offline, "preset koordinator: koordinator.sh/priority-class=koord-batch"},

		{annotation(vol, "LC"), Online, "preset volcano: volcano.sh/qos-level=LC"},
		{annotation(vol, "HLS"), Online, "preset volcano: volcano.sh/qos-level=HLS"},
		{label(vol, "LS"), Online, "preset volcano: volcano.sh/qos-level=LS"},
		{annotation(vol, "BE"), Offline, "preset volcano: volcano.sh/qos-level=BE"},
		{annotation(vol, "-1"), Offline, "preset volcano: volcano.sh/qos-level=-1"},
		{annotation(vol, "0"), Online, "preset volcano: volcano.sh/qos-level=0"},
		{annotation(vol, "7"), Online, "preset volcano: volcano.sh/qos-level=7"},
		{annotation(vol, "-8"), Unclassified, `preset volcano: volcano.sh/qos-level="-8" is not known`},
		{annotation(vol, "low"), Unclassified, `preset volcano: volcano.sh/qos-level="low" is not known`},

		{annotation(kat, "dedicated_cores"), Online, "preset katalyst: katalyst.kubewharf.io/qos_level=dedicated_cores"},
		{annotation(kat, "shared_cores"), Online, "preset katalyst: katalyst.kubewharf.io/qos_level=shared_cores"},
		{annotation(kat, "reclaimed_cores"), Offline, "preset katalyst: katalyst.kubewharf.io/qos_level=reclaimed_cores"},
		{annotation(kat, "system_cores"), Unclassified, "preset katalyst: katalyst.kubewharf.io/qos_level=system_cores"},
		{annotation(kat, "my_cores"), Unclassified, `preset katalyst: katalyst.kubewharf.io/qos_level="my_cores" is not known`},

		// What the node depends on is not held back by a label.
		{
			Subject{Namespace: "kube-system", Labels: map[string]string{own: "offline"}},
			Unclassified, "preset qos-agent: qos-agent.io/class=offline, but a preset never makes a system pod offline",
		},
		{
			Subject{Namespace: "x", Labels: map[string]string{own: "offline"}, Annotations: map[string]string{"kubernetes.io/config.source": "file"}},
			Unclassified, "preset qos-agent: qos-agent.io/class=offline, but a preset never makes a system pod offline",
		},
		{
			Subject{Namespace: "x", Labels: map[string]string{own: "offline"}, Annotations: map[string]string{"kubernetes.io/config.source": "api"}},
			Offline, "preset qos-agent: qos-agent.io/class=offline",
		},
		{Subject{Namespace: "kube-system", Labels: map[string]string{own: "online"}}, Online, "preset qos-agent: qos-agent.io/class=online"},

		// The QoS class of Kubernetes says nothing by default.
		{Subject{Namespace: "x", QoSClass: "BestEffort"}, Unclassified, "nothing matches"},
		{Subject{Namespace: "x", QoSClass: "Guaranteed"}, Unclassified, "nothing matches"},
	}
	c := MustCompile(Default())
	for _, tt := range tests {
		if got, why := c.Classify(tt.in); got != tt.want || why != tt.why {
			t.Errorf("%+v:\ngot  %s, %s\nwant %s, %s", tt.in, got, why, tt.want, tt.why)
		}
	}
}

func TestPresetKubernetes(t *testing.T) {
	c := mustParse(t, "spec: {classes: {presets: [koordinator, kubernetes]}}")
	for _, tt := range []struct {
		in   Subject
		want Class
	}{
		{Subject{QoSClass: "Guaranteed"}, Online},
		{Subject{QoSClass: "Burstable"}, Online},
		{Subject{QoSClass: "BestEffort"}, Offline},
		{Subject{QoSClass: "BestEffort", Namespace: "kube-system"}, Unclassified},
		{Subject{QoSClass: "Burstable", Namespace: "kube-system"}, Online},
		{Subject{QoSClass: ""}, Unclassified},
		{Subject{QoSClass: "Guaranteed", Labels: map[string]string{"koordinator.sh/qosClass": "BE"}}, Offline},
	} {
		if got, why := c.Classify(tt.in); got != tt.want {
			t.Errorf("%+v: got %s (%s)", tt.in, got, why)
		}
	}
}

func TestRules(t *testing.T) {
	c := mustParse(t, `
spec:
  classes:
    rules:
    - name: exempt
      class: unclassified
      match: {labels: {tier: "*"}, annotations: {note: hands-off}}
    - name: ci
      class: offline
      match: {namespaces: ["ci-*", build], qosClasses: [BestEffort, Burstable]}
    - name: slice
      class: offline
      match: {cgroups: ["/batch.slice/**"]}
    - name: system-batch
      class: offline
      match: {namespaces: [kube-system], labels: {app: reindex}}
`)
	for _, tt := range []struct {
		in   Subject
		want Class
		why  string
	}{
		{Subject{Labels: map[string]string{"tier": "any", "qos-agent.io/class": "offline"}, Annotations: map[string]string{"note": "hands-off"}}, Unclassified, "rule exempt"},
		{Subject{Labels: map[string]string{"tier": ""}, Annotations: map[string]string{"note": "hands-off"}}, Unclassified, "rule exempt"},
		{Subject{Labels: map[string]string{"tier": "any"}, Annotations: map[string]string{"note": "other"}}, Unclassified, "nothing matches"},
		{Subject{Namespace: "ci-1", QoSClass: "BestEffort"}, Offline, "rule ci"},
		{Subject{Namespace: "build", QoSClass: "Burstable"}, Offline, "rule ci"},
		{Subject{Namespace: "build", QoSClass: "Guaranteed"}, Unclassified, "nothing matches"},
		{Subject{Namespace: "build", QoSClass: "Guaranteed", Labels: map[string]string{"qos-agent.io/class": "online"}}, Online, "preset qos-agent: qos-agent.io/class=online"},
		{Subject{Namespace: "xci-1", QoSClass: "BestEffort"}, Unclassified, "nothing matches"},
		{Subject{Cgroup: "/batch.slice/job.service"}, Offline, "rule slice"},
		{Subject{Cgroup: "/system.slice/x.service"}, Unclassified, "nothing matches"},
		{Subject{Namespace: "kube-system", Labels: map[string]string{"app": "reindex"}}, Offline, "rule system-batch"}, // a rule may
	} {
		if got, why := c.Classify(tt.in); got != tt.want || why != tt.why {
			t.Errorf("%+v: got %s, %s; want %s, %s", tt.in, got, why, tt.want, tt.why)
		}
	}
}

func TestPresetsOfTheAPIExist(t *testing.T) {
	f, _ := reflect.TypeFor[Classes]().FieldByName("Presets")
	var named []string
	for _, c := range strictyaml.RuleOf(f).Want {
		named = append(named, c.Low)
		if presets[c.Low].name != c.Low {
			t.Errorf("there is no preset %s", c.Low)
		}
	}
	for name := range presets {
		if !slices.Contains(named, name) {
			t.Errorf("the preset %s cannot be asked for", name)
		}
	}
}
