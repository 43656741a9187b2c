package grafana

// Boards are all of them. What a person sees first on each answers the question that brought them there.
func Boards() []*Board { return []*Board{fleet(), node(), online(), offline()} }

// every is the window of rates.
const every = "[$__rate_interval]"

func fleet() *Board {
	return &Board{
		UID: "qos-agent-fleet", Title: "qos-agent / Fleet",
		About: "Is sharing safe across the cluster, what does it harvest, and do the agents work?",
		Rows: []Row{
			{"At a glance", []Panel{
				{Title: "Agents", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count(qosagent_build_info)`}}},
				{Title: "of them enforcing", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `sum(qosagent_enforcing)`}}},
				{Title: "Online pods hurt now", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count(max by (node, namespace, pod) (qosagent_verdict) == 2) or vector(0)`}}},
				{Title: "Offline pods held back", About: "Beyond their standing posture.", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count(count by (node, namespace, pod) (qosagent_pod_knobs_held{rule!~"posture|burst.*|own-.*"})) or vector(0)`}}},
				{Title: "CPU harvested by offline pods", Kind: Number, Width: 4, Unit: "none", About: "Cores.", Queries: []Query{{Expr: `sum(rate(qosagent_cpu_usage_seconds_total{class="offline"}` + every + `))`}}},
				{Title: "Agents in trouble", About: "Policy refused, runtime not connected, signals stale, or no run-queue programs.", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count((min by (node) (qosagent_policy_reload_success) == 0) or (min by (node) (qosagent_pod_source_connected) == 0) or (max by (node) (qosagent_stale_containers) > 0) or (min by (node) (qosagent_capability{name="bpf"}) == 0)) or vector(0)`}}},
			}},
			{"Are services safe", []Panel{
				{Title: "Run-queue wait of online pods, p99 by node", Unit: "s", Queries: []Query{{Expr: `histogram_quantile(0.99, sum by (node, le) (rate(qosagent_cpu_wait_seconds_bucket{class="online"}` + every + `)))`, Legend: "{{node}}"}}},
				{Title: "Online pods by verdict", Unit: "none", Kind: Stack, Queries: []Query{
					{Expr: `sum(qosagent_verdict == bool 2)`, Legend: "violated"}, {Expr: `sum(qosagent_verdict == bool 1)`, Legend: "watch"},
				}},
				{Title: "Who waits most: online pods by p99", Kind: Bars, Unit: "s", Queries: []Query{{Expr: `topk(10, histogram_quantile(0.99, sum by (node, namespace, pod, le) (rate(qosagent_cpu_wait_seconds_bucket{class="online"}` + every + `))))`, Legend: "{{node}} {{namespace}}/{{pod}}"}}},
				{Title: "Who makes others wait most", About: "Seconds of waiting a second, by the pod that ran meanwhile.", Kind: Bars, Unit: "s", Queries: []Query{{Expr: `topk(10, sum by (node, culprit_namespace, culprit_pod) (rate(qosagent_cpu_wait_blame_seconds_total{culprit_namespace!=""}` + every + `)))`, Legend: "{{node}} {{culprit_namespace}}/{{culprit_pod}}"}}},
			}},
			{"What colocation yields", []Panel{
				{Title: "CPU used, by class", Unit: "none", Kind: Stack, About: "Cores.", Queries: []Query{{Expr: `sum by (class) (rate(qosagent_cpu_usage_seconds_total` + every + `))`, Legend: "{{class}}"}}},
				{Title: "Pods, by class", Unit: "none", Kind: Stack, Queries: []Query{{Expr: `sum by (class) (qosagent_pods)`, Legend: "{{class}}"}}},
			}},
			{"The agents", []Panel{
				{Title: "Settings held, by knob", Unit: "none", Queries: []Query{{Expr: `sum by (knob) (qosagent_knobs_held)`, Legend: "{{knob}}"}}},
				{Title: "Writes, by result", Unit: "wps", Queries: []Query{{Expr: `sum by (result) (rate(qosagent_knob_writes_total` + every + `))`, Legend: "{{result}}"}}},
				{Title: "Reaction: kernel event to completed write, p99", Unit: "s", Queries: []Query{{Expr: `histogram_quantile(0.99, sum by (le) (rate(qosagent_reaction_seconds_bucket` + every + `)))`, Legend: "p99"}}},
				{Title: "CPU of the agents", About: "Cores, the largest ten.", Unit: "none", Queries: []Query{{Expr: `topk(10, rate(process_cpu_seconds_total` + every + `) and on (node, instance) qosagent_build_info)`, Legend: "{{node}}"}}},
				{Title: "Versions", Kind: Bars, Unit: "none", Queries: []Query{{Expr: `count by (version) (qosagent_build_info)`, Legend: "{{version}}"}}},
				{Title: "Policies in force", Kind: Bars, Unit: "none", Queries: []Query{{Expr: `count by (name, id) (qosagent_policy_info)`, Legend: "{{name}} {{id}}"}}},
			}},
		},
	}
}

func node() *Board {
	const n = `node="$node"`
	return &Board{
		UID: "qos-agent-node", Title: "qos-agent / Node", About: "What happens on one node: who waits, who runs meanwhile, what the agent does about it, and whether it can.",
		Variables: []Variable{{"node", "Node", "qosagent_build_info"}},
		Rows: []Row{
			{"At a glance", []Panel{
				{Title: "Mode", About: "1: enforce, 0: observe.", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `qosagent_enforcing{` + n + `}`}}},
				{Title: "Online pods hurt now", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count(max by (namespace, pod) (qosagent_verdict{` + n + `}) == 2) or vector(0)`}}},
				{Title: "Settings held", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `sum(qosagent_knobs_held{` + n + `})`}}},
				{Title: "Policy loads that failed", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `qosagent_policy_reload_failures_total{` + n + `}`}}},
				{Title: "Features missing", About: "qos-agent doctor says which, and what is lost without them.", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `count(qosagent_capability{` + n + `} == 0) or vector(0)`}}},
				{Title: "Stale signals", Kind: Number, Width: 4, Unit: "none", Queries: []Query{{Expr: `sum(qosagent_stale_containers{` + n + `})`}}},
			}},
			{"Who waits, and for whom", []Panel{
				{Title: "Run-queue wait of online pods, p99", Unit: "s", Queries: []Query{{Expr: `histogram_quantile(0.99, sum by (namespace, pod, le) (rate(qosagent_cpu_wait_seconds_bucket{` + n + `, class="online"}` + every + `)))`, Legend: "{{namespace}}/{{pod}}"}}},
				{Title: "All waits of online pods", Kind: Heat, Unit: "s", Queries: []Query{{Expr: `sum by (le) (increase(qosagent_cpu_wait_seconds_bucket{` + n + `, class="online"}` + every + `))`, Legend: "{{le}}"}}},
				{Title: "Online pods waited while these ran", About: "Seconds of waiting a second.", Kind: Stack, Unit: "s", Queries: []Query{{Expr: `topk(10, sum by (culprit_namespace, culprit_pod) (rate(qosagent_cpu_wait_blame_seconds_total{` + n + `}` + every + `)))`, Legend: "{{culprit_namespace}}/{{culprit_pod}}"}}},
				{Title: "Verdicts", About: "0 ok, 1 watch, 2 violated.", Unit: "none", Queries: []Query{{Expr: `qosagent_verdict{` + n + `}`, Legend: "{{namespace}}/{{pod}} {{axis}}"}}},
			}},
			{"What it does", []Panel{
				{Title: "Settings held, by knob", Unit: "none", Queries: []Query{{Expr: `qosagent_knobs_held{` + n + `} > 0 or sum(qosagent_knobs_held{` + n + `})`, Legend: "{{knob}}"}}},
				{Title: "Held for whom", Kind: Bars, Unit: "none", Queries: []Query{{Expr: `sum by (namespace, pod, rule, victim) (qosagent_pod_knobs_held{` + n + `})`, Legend: "{{namespace}}/{{pod}}: {{rule}} {{victim}}"}}},
				{Title: "Writes", Unit: "wps", Queries: []Query{{Expr: `sum by (result) (rate(qosagent_knob_writes_total{` + n + `}` + every + `))`, Legend: "{{result}}"}}},
				{Title: "CPU used by pods", Kind: Stack, About: "Cores.", Unit: "none", Queries: []Query{{Expr: `sum by (class, namespace, pod) (rate(qosagent_cpu_usage_seconds_total{` + n + `}` + every + `))`, Legend: "{{class}} {{namespace}}/{{pod}}"}}},
			}},
			{"Caches and memory bandwidth", []Panel{
				{Title: "Cycles per instruction of online pods", Unit: "none", Queries: []Query{{Expr: `qosagent_cpi{` + n + `}`, Legend: "{{namespace}}/{{pod}}", Needs: "perf"}}},
				{Title: "Memory bandwidth by last-level cache", Unit: "Bps", Queries: []Query{{Expr: `rate(qosagent_domain_memory_bandwidth_bytes_total{` + n + `}` + every + `)`, Legend: "cache {{domain}}", Needs: "resctrl"}}},
				{Title: "Last-level cache held by pods", Kind: Stack, Unit: "bytes", Queries: []Query{{Expr: `qosagent_llc_occupancy_bytes{` + n + `}`, Legend: "{{class}} {{namespace}}/{{pod}}", Needs: "resctrl"}}},
				{Title: "Memory bandwidth of pods", Kind: Stack, Unit: "Bps", Queries: []Query{{Expr: `rate(qosagent_memory_bandwidth_bytes_total{` + n + `}` + every + `)`, Legend: "{{class}} {{namespace}}/{{pod}}", Needs: "resctrl"}}},
			}},
			{"The agent itself", []Panel{
				{Title: "Reaction: kernel event to completed write", Unit: "s", Queries: []Query{
					{Expr: `histogram_quantile(0.5, rate(qosagent_reaction_seconds_bucket{` + n + `}` + every + `))`, Legend: "p50"},
					{Expr: `histogram_quantile(0.99, rate(qosagent_reaction_seconds_bucket{` + n + `}` + every + `))`, Legend: "p99"},
				}},
				{Title: "Tick", Unit: "s", Queries: []Query{
					{Expr: `histogram_quantile(0.5, rate(qosagent_tick_seconds_bucket{` + n + `}` + every + `))`, Legend: "p50"},
					{Expr: `histogram_quantile(0.99, rate(qosagent_tick_seconds_bucket{` + n + `}` + every + `))`, Legend: "p99"},
				}},
				{Title: "CPU", About: "Cores: the process, and the BPF programs where their time is accounted (bpfStats).", Unit: "none", Queries: []Query{
					{Expr: `rate(process_cpu_seconds_total{` + n + `}` + every + `) and on (instance) qosagent_build_info`, Legend: "process"},
					{Expr: `sum(rate(qosagent_bpf_run_seconds_total{` + n + `}` + every + `))`, Legend: "BPF"},
				}},
				{Title: "Memory", Unit: "bytes", Queries: []Query{{Expr: `process_resident_memory_bytes{` + n + `} and on (instance) qosagent_build_info`, Legend: "resident"}}},
				{Title: "Events, late ticks, losses", Unit: "ops", Queries: []Query{
					{Expr: `rate(qosagent_events_total{` + n + `}` + every + `)`, Legend: "long waits reported"},
					{Expr: `rate(qosagent_tick_overruns_total{` + n + `}` + every + `)`, Legend: "late ticks"},
					{Expr: `rate(qosagent_lost_total{` + n + `}` + every + `)`, Legend: "lost: {{cause}}"},
				}},
				{Title: "Real-time class", About: "1 while the loop's thread is in it.", Unit: "none", Queries: []Query{{Expr: `qosagent_loop_realtime{` + n + `}`, Legend: "real-time"}}},
			}},
		},
	}
}

func online() *Board {
	const me = `namespace="$namespace", pod="$pod"`
	const victim = `victim_namespace="$namespace", victim_pod="$pod"`
	return &Board{
		UID: "qos-agent-online", Title: "qos-agent / Online service: who hurts me", About: "For the owner of a service: is it well on its node, who makes it wait, and what is done about it?",
		Variables: []Variable{
			{"namespace", "Namespace", `qosagent_cpu_usage_seconds_total{class="online"}`},
			{"pod", "Pod", `qosagent_cpu_usage_seconds_total{class="online", namespace="$namespace"}`},
		},
		Rows: []Row{
			{"How am I", []Panel{
				{Title: "Verdict", About: "0 ok, 1 watch, 2 violated, by axis.", Kind: Number, Width: 8, Unit: "none", Queries: []Query{{Expr: `max by (axis) (qosagent_verdict{` + me + `})`, Legend: "{{axis}}"}}},
				{Title: "Share of the last hour violated", Kind: Number, Width: 8, Unit: "percentunit", Queries: []Query{{Expr: `avg_over_time((max(qosagent_verdict{` + me + `}) == bool 2)[1h:15s])`}}},
				{Title: "Settings held on others for me", Kind: Number, Width: 8, Unit: "none", Queries: []Query{{Expr: `sum(qosagent_pod_knobs_held{victim="$namespace/$pod"}) or vector(0)`}}},
				{Title: "Run-queue wait", Unit: "s", Queries: []Query{
					{Expr: `histogram_quantile(0.5, sum by (le) (rate(qosagent_cpu_wait_seconds_bucket{` + me + `}` + every + `)))`, Legend: "p50"},
					{Expr: `histogram_quantile(0.99, sum by (le) (rate(qosagent_cpu_wait_seconds_bucket{` + me + `}` + every + `)))`, Legend: "p99"},
				}},
				{Title: "All waits", Kind: Heat, Unit: "s", Queries: []Query{{Expr: `sum by (le) (increase(qosagent_cpu_wait_seconds_bucket{` + me + `}` + every + `))`, Legend: "{{le}}"}}},
			}},
			{"Who hurts me", []Panel{
				{Title: "I waited while these ran", About: "Seconds of waiting a second. Without a namespace: own (my own tasks), kernel, irq, system, idle (the CPU had to wake up), quota (my own quota), unknown, gone.", Kind: Stack, Unit: "s", Queries: []Query{{Expr: `sum by (culprit_namespace, culprit_pod) (rate(qosagent_cpu_wait_blame_seconds_total{` + victim + `}` + every + `)) > 0`, Legend: "{{culprit_namespace}}/{{culprit_pod}}"}}},
				{Title: "Their shares now", Kind: Bars, Unit: "percentunit", Queries: []Query{{Expr: `sort_desc(sum by (culprit_namespace, culprit_pod) (rate(qosagent_cpu_wait_blame_seconds_total{` + victim + `}` + every + `)) / on () group_left () sum(rate(qosagent_cpu_wait_blame_seconds_total{` + victim + `}` + every + `)))`, Legend: "{{culprit_namespace}}/{{culprit_pod}}"}}},
				{Title: "What is held on whom for me", Kind: Bars, Unit: "none", Queries: []Query{{Expr: `sum by (namespace, pod, knob, rule) (qosagent_pod_knobs_held{victim="$namespace/$pod"}) or vector(0)`, Legend: "{{namespace}}/{{pod}} {{knob}} {{rule}}"}}},
				{Title: "Put off a CPU while it could run", Unit: "ops", Queries: []Query{{Expr: `sum(rate(qosagent_cpu_preemptions_total{` + me + `}` + every + `))`, Legend: "preemptions"}}},
			}},
			{"Or is it myself", []Panel{
				{Title: "CPU used, and time stopped by my own quota", About: "Cores; seconds a second.", Unit: "none", Queries: []Query{
					{Expr: `sum(rate(qosagent_cpu_usage_seconds_total{` + me + `}` + every + `))`, Legend: "used"},
					{Expr: `sum(rate(qosagent_cpu_throttled_seconds_total{` + me + `}` + every + `))`, Legend: "stopped by quota"},
				}},
				{Title: "Memory", Unit: "bytes", Queries: []Query{{Expr: `sum(qosagent_memory_working_set_bytes{` + me + `})`, Legend: "working set"}}},
				{Title: "Cycles per instruction", About: "Above the fence the machine works slower for this pod than is normal for it.", Unit: "none", Queries: []Query{
					{Expr: `qosagent_cpi{` + me + `}`, Legend: "{{container}} now", Needs: "perf"},
					{Expr: `qosagent_cpi_baseline{` + me + `}`, Legend: "{{container}} normal", Needs: "perf"},
					{Expr: `qosagent_cpi_fence{` + me + `}`, Legend: "{{container}} fence", Needs: "perf"},
				}},
				{Title: "Last-level cache misses per 1000 instructions", Unit: "none", Queries: []Query{
					{Expr: `qosagent_mpki{` + me + `}`, Legend: "{{container}} now", Needs: "perf"},
					{Expr: `qosagent_mpki_baseline{` + me + `}`, Legend: "{{container}} normal", Needs: "perf"},
				}},
			}},
		},
	}
}

func offline() *Board {
	const me = `namespace="$namespace", pod="$pod"`
	const culprit = `culprit_namespace="$namespace", culprit_pod="$pod"`
	return &Board{
		UID: "qos-agent-offline", Title: "qos-agent / Offline job: why am I throttled", About: "For the owner of a batch job: what does it get, what is held on it, by which rule and for whose sake?",
		Variables: []Variable{
			{"namespace", "Namespace", `qosagent_cpu_usage_seconds_total{class="offline"}`},
			{"pod", "Pod", `qosagent_cpu_usage_seconds_total{class="offline", namespace="$namespace"}`},
		},
		Rows: []Row{
			{"What is held on me, and why", []Panel{
				{Title: "Settings held now", About: "By knob, rule and the online pod for whose sake; the posture holds all the time and is for nobody in particular.", Kind: Bars, Unit: "none", Queries: []Query{{Expr: `sum by (knob, rule, victim) (qosagent_pod_knobs_held{` + me + `}) or vector(0)`, Legend: "{{knob}}: {{rule}} {{victim}}"}}},
				{Title: "Settings held, by rule", Kind: Stack, Unit: "none", Queries: []Query{{Expr: `sum by (rule) (qosagent_pod_knobs_held{` + me + `}) or vector(0)`, Legend: "{{rule}}"}}},
				{Title: "These waited while I ran", About: "Seconds of waiting a second that online pods spent in the queue while this pod had the CPU: what the agent acts on.", Kind: Stack, Unit: "s", Queries: []Query{{Expr: `sum by (victim_namespace, victim_pod) (rate(qosagent_cpu_wait_blame_seconds_total{` + culprit + `}` + every + `))`, Legend: "{{victim_namespace}}/{{victim_pod}}"}}},
				{Title: "How the online pods of the node are", About: "0 ok, 1 watch, 2 violated. Nothing is given back before this is 0.", Unit: "none", Queries: []Query{{Expr: `max by (namespace, pod) (qosagent_verdict and on (node) qosagent_cpu_usage_seconds_total{` + me + `})`, Legend: "{{namespace}}/{{pod}}"}}},
			}},
			{"What I get", []Panel{
				{Title: "CPU", About: "Cores used; seconds a second that tasks were ready and waited; seconds a second stopped by quota.", Unit: "none", Queries: []Query{
					{Expr: `sum(rate(qosagent_cpu_usage_seconds_total{` + me + `}` + every + `))`, Legend: "used"},
					{Expr: `sum(rate(qosagent_cpu_wait_seconds_sum{` + me + `}` + every + `))`, Legend: "waiting"},
					{Expr: `sum(rate(qosagent_cpu_throttled_seconds_total{` + me + `}` + every + `))`, Legend: "stopped by quota"},
				}},
				{Title: "Share of the CPU time that it could have used", Unit: "percentunit", Queries: []Query{{Expr: `sum(rate(qosagent_cpu_usage_seconds_total{` + me + `}` + every + `)) / (sum(rate(qosagent_cpu_usage_seconds_total{` + me + `}` + every + `)) + sum(rate(qosagent_cpu_wait_seconds_sum{` + me + `}` + every + `)) + sum(rate(qosagent_cpu_throttled_seconds_total{` + me + `}` + every + `)))`, Legend: "got"}}},
				{Title: "Memory", Unit: "bytes", Queries: []Query{{Expr: `sum(qosagent_memory_working_set_bytes{` + me + `})`, Legend: "working set"}}},
				{Title: "Memory bandwidth", Unit: "Bps", Queries: []Query{{Expr: `rate(qosagent_memory_bandwidth_bytes_total{` + me + `}` + every + `)`, Legend: "used", Needs: "resctrl"}}},
			}},
		},
	}
}
