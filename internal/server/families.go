package server

import (
	"github.com/prometheus/client_golang/prometheus"
)

// prefix of every metric of ours.
const prefix = "qosagent_"

// kind is the type of a metric family, in the words of the exposition format.
type kind string

const (
	counter kind = "counter"
	gauge   kind = "gauge"
	histo   kind = "histogram"
)

// family describes one metric family. The collector and docs/metrics.md are made from the same descriptions.
type family struct {
	section string
	name    string // with prefix
	kind    kind
	help    string
	labels  []string
	series  string // how many series there can be, for people
	desc    *prometheus.Desc
}

// families are all metric families of ours; what client_golang adds about the process and the Go runtime is not among them.
type families struct {
	all     []*family // in the order of the reference
	section string    // that add gives to the next family

	wait, preemptions, usage, throttled, workingSet, stale *family
	blame, verdict                                         *family
	pods, sourceConnected, sourceSuccess, sourceFailures   *family
	unresolved                                             *family
	knobWrites, knobsHeld, podKnobsHeld                    *family
	policyInfo, enforcing                                  *family
	reloadSuccess, reloads, refusals, policyLoaded         *family
	capability                                             *family
	bpfRunSeconds, bpfRuns                                 *family
	lost, unmeasured, readErrors                           *family
	tick, overruns, events, reaction, realtime, demotions  *family
	rdt                                                    rdtFamilies
	decisionsLost                                          *family
	recordSteps, recordDropped, recordBytes                *family
	recordFailures, recordDisk                             *family
	logDropped, snapshotSuccess, blameDropped, buildInfo   *family
}

// waitSeries: a histogram is its buckets, +Inf, _sum and _count.
const waitSeries = "17 per online or offline container; at most 17 × the slots of the kernel side (1024 by default)"

func newFamilies() *families {
	f := &families{}

	f.section = "Run-queue wait: who is hurt, and by whom"
	f.wait = f.add(histo, "cpu_wait_seconds",
		"Time that tasks of the container were ready to run and waited for a CPU, one observation a dispatch.",
		waitSeries, "namespace", "pod", "container", "class")
	f.preemptions = f.add(counter, "cpu_preemptions_total",
		"Times that a task of the container was put off a CPU while it could still run.",
		"1 per online or offline container", "namespace", "pod", "container", "class")
	f.blame = f.add(counter, "cpu_wait_blame_seconds_total",
		"Time that the online victim pod waited for a CPU while the culprit ran on it; waits under 20 µs are not split. Culprits with an empty namespace are no pods: "+
			"own, kernel, irq, system, idle, quota, unknown, gone.",
		"8 per online pod, and one per pair of online victim and culprit that ever met; at most 10000 pairs are shown (see qosagent_blame_pairs_hidden)",
		"victim_namespace", "victim_pod", "culprit_namespace", "culprit_pod")
	f.verdict = f.add(gauge, "verdict",
		"What the judge says of the pod on this axis: 0 ok, 1 watch, 2 violated. The worst of the pod's containers; absent if nothing can be said.",
		"1 per online pod and axis", "namespace", "pod", "axis")

	f.section = "Other signals of containers"
	f.usage = f.add(counter, "cpu_usage_seconds_total",
		"CPU time that the container used. Summed over class=\"offline\" it is what colocation harvests.",
		"1 per online or offline container", "namespace", "pod", "container", "class")
	f.throttled = f.add(counter, "cpu_throttled_seconds_total",
		"Time that the container was stopped by CPU quota.",
		"1 per online or offline container", "namespace", "pod", "container", "class")
	f.workingSet = f.add(gauge, "memory_working_set_bytes",
		"Memory of the container less its inactive file pages.",
		"1 per online or offline container", "namespace", "pod", "container", "class")
	f.stale = f.add(gauge, "stale_containers",
		"Containers whose signal is older than the policy's staleAfter: nothing is decided on it.",
		"1 per signal", "signal")
	f.readErrors = f.add(counter, "read_errors_total",
		"Reads of kernel files that failed although the group was there.",
		"1 per signal", "signal")

	f.addRDT()

	f.section = "Pods"
	f.pods = f.add(gauge, "pods",
		"Running pods by the class that the policy gives them. Unclassified pods are never touched.",
		"1 per class", "class")
	f.sourceConnected = f.add(gauge, "pod_source_connected",
		"1 if the pod source (container runtime or static file) answers, 0 if the agent works on what it knew last.", "1")
	f.sourceSuccess = f.add(gauge, "pod_source_last_success_timestamp_seconds",
		"When the last complete list of pods was had; 0 if never.", "1")
	f.sourceFailures = f.add(counter, "pod_source_failures_total",
		"Times that the pod source stopped answering.", "1")
	f.unresolved = f.add(gauge, "pod_source_unresolved",
		"Running containers that are not seen because their group is not known, and static pods whose group does not exist.", "1")

	f.section = "What the agent does"
	f.knobWrites = f.add(counter, "knob_writes_total",
		"Changes that the executor made or tried, by setting and outcome. reapplied and yielded count edits by others.",
		"1 per knob and result", "knob", "result")
	f.knobsHeld = f.add(gauge, "knobs_held",
		"Settings that the agent has changed and will put back.",
		"1 per knob", "knob")
	f.podKnobsHeld = f.add(gauge, "pod_knobs_held",
		"Settings of the pod and its containers that the agent has changed, by the rule that wants them and the online pod (namespace/name) for whose sake; the rule posture has no victim.",
		"1 per pod, knob, rule and victim that are held now", "namespace", "pod", "knob", "rule", "victim")
	f.enforcing = f.add(gauge, "enforcing",
		"1 if the mode in force is enforce, 0 if it is observe.", "1")

	f.section = "Policy"
	f.policyInfo = f.add(gauge, "policy_info",
		"The policy in force by name and hash of its content; always 1.", "1", "name", "id")
	f.reloadSuccess = f.add(gauge, "policy_reload_success",
		"1 if the last attempt to load the policy succeeded, 0 if the last good one is kept.", "1")
	f.reloads = f.add(counter, "policy_reloads_total", "Loads of the policy that succeeded, the first included.", "1")
	f.refusals = f.add(counter, "policy_reload_failures_total", "Loads of the policy that failed.", "1")
	f.policyLoaded = f.add(gauge, "policy_loaded_timestamp_seconds", "When the policy in force was loaded; 0 if never.", "1")

	f.section = "The loop"
	f.tick = f.add(histo, "tick_seconds", "Time that a tick took.", "17")
	f.reaction = f.add(histo, "reaction_seconds",
		"Time from the event in the kernel (an online task waited too long) to the completed write.", "17")
	f.events = f.add(counter, "events_total", "Single waits over the policy's bound that the kernel reported.", "1")
	f.overruns = f.add(counter, "tick_overruns_total", "Ticks that began late because the one before took too long.", "1")
	f.realtime = f.add(gauge, "loop_realtime", "1 while the thread of the loop is in the real-time class.", "1")
	f.demotions = f.add(counter, "loop_demotions_total",
		"Times that the thread of the loop used more CPU than its real-time budget and was made an ordinary one for a while.", "1")
	f.logDropped = f.add(counter, "log_dropped_total", "Log records that were dropped because nobody read the log fast enough.", "1")
	f.decisionsLost = f.add(counter, "decision_log_lost_total",
		"Entries of the decision log that were lost: queue-full (in no place), disk (in memory, but in no file).", "2", "cause")

	f.section = "Recording (--record)"
	f.recordSteps = f.add(counter, "record_steps_total", "Steps of the loop that were recorded.", "1")
	f.recordDropped = f.add(counter, "record_dropped_total",
		"Steps that are missing in the recording, because its queue was full or the disk refused.", "1")
	f.recordBytes = f.add(counter, "record_bytes_total", "Bytes of recordings written.", "1")
	f.recordFailures = f.add(counter, "record_failures_total", "Times that the disk refused the recording; it is tried again.", "1")
	f.recordDisk = f.add(gauge, "record_disk_bytes", "Bytes that recordings take in their directory, never more than --record-max-mib.", "1")

	f.section = "The kernel side"
	f.capability = f.add(gauge, "capability",
		"1 if the node has the feature, probed by using it; qos-agent doctor says what is lost without it.",
		"1 per probe", "name")
	f.bpfRunSeconds = f.add(counter, "bpf_run_seconds_total",
		"CPU time of the BPF program, by the kernel's BPF statistics; 0 while they are off. qos_watch_look counts itself, and always.", "1 per BPF program", "program")
	f.bpfRuns = f.add(counter, "bpf_runs_total",
		"Runs of the BPF program, by the kernel's BPF statistics; 0 while they are off. qos_watch_look counts itself, and always.", "1 per BPF program", "program")
	f.lost = f.add(counter, "lost_total",
		"What the kernel side could not deliver: ring-full (events), suppressed (events of a victim too soon after the one before), "+
			"short-walk (waits that began before all that is kept of who ran on the CPU: that part is blamed on unknown), "+
			"bad-stamp (waits whose stamp was wrong), quota-table-full (throttlings that were not noted).",
		"1 per cause", "cause")
	f.unmeasured = f.add(gauge, "unmeasured_containers", "Containers whose wait is not measured because every slot is taken.", "1")

	f.section = "The exporter"
	f.snapshotSuccess = f.add(gauge, "snapshot_success",
		"1 if the loop handed its figures over for this scrape. With 0 only the loop's own instruments are present.", "1")
	f.blameDropped = f.add(gauge, "blame_pairs_hidden",
		"Pairs of victim and culprit that this scrape leaves out, the smallest first, to bound the number of series.", "1")
	f.buildInfo = f.add(gauge, "build_info", "The running program; always 1.", "1", "version", "goversion")
	return f
}

func (f *families) add(k kind, name, help, series string, labels ...string) *family {
	fam := &family{
		section: f.section, name: prefix + name, kind: k, help: help, labels: labels, series: series,
		desc: prometheus.NewDesc(prefix+name, help, labels, nil),
	}
	f.all = append(f.all, fam)
	return fam
}

func (k kind) valueType() prometheus.ValueType {
	if k == counter {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}
