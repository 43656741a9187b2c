package server

import (
	"cmp"
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

const (
	// snapshotTimeout bounds how long a scrape waits for the loop.
	snapshotTimeout = 2 * time.Second
	// maxBlamePairs bounds the pairs of pods in one scrape. 10000 is 100 online beside 100 other pods that all met.
	maxBlamePairs = 10000
)

// collector builds fresh const metrics on every scrape, so that the series of a pod that is gone are gone too.
type collector struct {
	families
	provider      Provider
	instruments   *Instruments
	version       string
	log           *slog.Logger
	maxBlamePairs int
}

var _ prometheus.Collector = (*collector)(nil)

func newCollector(p Provider, i *Instruments, version string, log *slog.Logger) *collector {
	return &collector{families: *newFamilies(), provider: p, instruments: i, version: version, log: log, maxBlamePairs: maxBlamePairs}
}

// Describe sends every family, so that the registry refuses a clash of names at start instead of at a scrape.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.all {
		ch <- f.desc
	}
}

// Collect never fails: if the loop does not answer, its figures are absent and snapshot_success is 0.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch}
	c.collectLoop(e)
	e.value(c.buildInfo, 1, c.version, runtime.Version())

	ctx, cancel := context.WithTimeout(context.Background(), snapshotTimeout)
	defer cancel()
	m, err := c.provider.Metrics(ctx)
	if err != nil {
		c.log.Warn("scrape without the loop's figures", "err", err)
		e.value(c.snapshotSuccess, 0)
		return
	}
	e.value(c.snapshotSuccess, 1)
	c.collectContainers(e, m)
	c.collectRDT(e, m)
	c.collectBlame(e, m)
	c.collectVerdicts(e, m)
	c.collectPods(e, m)
	c.collectKnobs(e, m)
	c.collectPolicy(e, m)
	c.collectKernelSide(e, m)
	e.flag(c.realtime, m.Loop.Realtime)
	e.count(c.demotions, m.Loop.Demotions)
	e.count(c.logDropped, m.Loop.LogDropped)
	e.count(c.decisionsLost, m.Loop.DecisionsDropped, "queue-full")
	e.count(c.decisionsLost, m.Loop.DecisionsUnsaved, "disk")
	e.count(c.recordSteps, m.Recording.Steps)
	e.count(c.recordDropped, m.Recording.Dropped)
	e.count(c.recordBytes, m.Recording.Bytes)
	e.count(c.recordFailures, m.Recording.Failures)
	e.value(c.recordDisk, float64(m.Recording.DiskBytes))
}

// collectLoop shows what needs no answer from the loop, so that it can still be seen when the loop hangs.
func (c *collector) collectLoop(e emitter) {
	var h histogram.Counts
	e.histogram(c.tick, &h, c.instruments.Tick.Read(&h))
	e.histogram(c.reaction, &h, c.instruments.Reaction.Read(&h))
	e.count(c.events, c.instruments.Events.Load())
	e.count(c.overruns, c.instruments.Overruns.Load())
}

type containerKey struct {
	namespace, pod, container string
	class                     policy.Class
}

func (c *collector) collectContainers(e emitter, m *Metrics) {
	rows := make(map[containerKey]ContainerMetrics, len(m.Containers))
	for _, row := range m.Containers {
		if row.Class != policy.Online && row.Class != policy.Offline {
			continue
		}
		key := containerKey{row.Namespace, row.Pod, row.Container, row.Class}
		if have, ok := rows[key]; ok {
			row = addContainers(have, row)
		}
		rows[key] = row
	}
	for key, row := range rows {
		labels := []string{key.namespace, key.pod, key.container, string(key.class)}
		if w := row.Wait; w != nil {
			e.histogram(c.wait, &w.Hist, w.SumNS, labels...)
			e.count(c.preemptions, w.Preempted, labels...)
		}
		if u := row.CPU; u != nil {
			e.seconds(c.usage, u.UsageNS, labels...)
			e.seconds(c.throttled, u.ThrottledNS, labels...)
		}
		if mem := row.Memory; mem != nil {
			e.value(c.workingSet, float64(mem.WorkingSetBytes), labels...)
		}
		c.collectCounters(e, &key, &row)
	}
	for _, s := range SignalNames() {
		e.value(c.stale, float64(m.Stale[s]), s)
		e.count(c.readErrors, m.ReadErrors[s], s)
	}
}

// addContainers adds b to a without changing what either points to.
func addContainers(a, b ContainerMetrics) ContainerMetrics {
	if a.Wait != nil && b.Wait != nil {
		sum := *a.Wait
		for i, n := range b.Wait.Hist {
			sum.Hist[i] += n
		}
		sum.SumNS += b.Wait.SumNS
		sum.Preempted += b.Wait.Preempted
		a.Wait = &sum
	}
	if a.CPU != nil && b.CPU != nil {
		a.CPU = &CPUTotals{UsageNS: a.CPU.UsageNS + b.CPU.UsageNS, ThrottledNS: a.CPU.ThrottledNS + b.CPU.ThrottledNS}
	}
	if a.Memory != nil && b.Memory != nil {
		a.Memory = &MemoryLevels{WorkingSetBytes: a.Memory.WorkingSetBytes + b.Memory.WorkingSetBytes}
	}
	a.Counters, a.CPI = a.Counters.add(b.Counters), cmp.Or(a.CPI, b.CPI)
	a.Wait, a.CPU, a.Memory = cmp.Or(a.Wait, b.Wait), cmp.Or(a.CPU, b.CPU), cmp.Or(a.Memory, b.Memory)
	return a
}

type blameKey struct {
	victimNamespace, victim, culpritNamespace, culprit string
}

func (c *collector) collectBlame(e emitter, m *Metrics) {
	pseudo, pairs := make(map[blameKey]uint64), make(map[blameKey]uint64)
	for _, row := range m.Containers {
		if row.Class != policy.Online || row.Wait == nil {
			continue
		}
		for _, culprit := range PseudoCulprits() {
			pseudo[blameKey{row.Namespace, row.Pod, "", culprit}] = 0
		}
	}
	for _, row := range m.Blame {
		key := blameKey{row.VictimNamespace, row.VictimPod, row.CulpritNamespace, row.CulpritPod}
		if row.CulpritNamespace == "" {
			pseudo[key] += row.NS
		} else if row.NS > 0 {
			pairs[key] += row.NS
		}
	}
	hidden := keepLargest(pairs, c.maxBlamePairs)
	for _, rows := range []map[blameKey]uint64{pseudo, pairs} {
		for k, ns := range rows {
			e.seconds(c.blame, ns, k.victimNamespace, k.victim, k.culpritNamespace, k.culprit)
		}
	}
	e.value(c.blameDropped, float64(hidden))
}

// keepLargest takes the smallest rows out until at most n are left, and says how many went.
func keepLargest(rows map[blameKey]uint64, n int) (removed int) {
	if len(rows) <= n {
		return 0
	}
	keys := make([]blameKey, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b blameKey) int {
		return cmp.Or(
			cmp.Compare(rows[b], rows[a]),
			cmp.Compare(a.victimNamespace, b.victimNamespace), cmp.Compare(a.victim, b.victim),
			cmp.Compare(a.culpritNamespace, b.culpritNamespace), cmp.Compare(a.culprit, b.culprit))
	})
	for _, k := range keys[n:] {
		delete(rows, k)
	}
	return len(keys) - n
}

func (c *collector) collectVerdicts(e emitter, m *Metrics) {
	type key struct {
		namespace, pod string
		axis           judge.Axis
	}
	worst := make(map[key]judge.Level, len(m.Verdicts))
	for _, v := range m.Verdicts {
		if v.Level == judge.Unknown {
			continue
		}
		k := key{v.Namespace, v.Pod, v.Axis}
		worst[k] = max(worst[k], v.Level)
	}
	for k, level := range worst {
		e.value(c.verdict, float64(level), k.namespace, k.pod, k.axis.String())
	}
}

func (c *collector) collectPods(e emitter, m *Metrics) {
	for _, class := range []policy.Class{policy.Online, policy.Offline, policy.Unclassified} {
		e.value(c.pods, float64(m.Pods[class]), string(class))
	}
	e.flag(c.sourceConnected, m.Source.Connected)
	e.timestamp(c.sourceSuccess, m.Source.LastSuccess)
	e.count(c.sourceFailures, m.Source.Failures)
	e.value(c.unresolved, float64(m.Source.Unresolved))
}

func (c *collector) collectKnobs(e emitter, m *Metrics) {
	type key struct {
		kind   knob.Kind
		result knob.Result
	}
	writes := make(map[key]uint64, len(m.KnobWrites))
	for _, w := range m.KnobWrites {
		writes[key{w.Kind, w.Result}] += w.Count
	}
	for _, k := range knob.Kinds() {
		for _, r := range knob.Results() {
			e.count(c.knobWrites, writes[key{k, r}], k.String(), r.String())
		}
		e.value(c.knobsHeld, float64(m.KnobsHeld[k]), k.String())
	}
	for held, n := range m.PodKnobs {
		e.value(c.podKnobsHeld, float64(n), held.Namespace, held.Pod, held.Kind.String(), held.Rule, held.Victim)
	}
}

func (c *collector) collectPolicy(e emitter, m *Metrics) {
	p := &m.Policy
	e.value(c.policyInfo, 1, p.Name, p.ID)
	e.flag(c.enforcing, p.Mode == policy.Enforce)
	e.flag(c.reloadSuccess, p.ReloadOK)
	e.count(c.reloads, p.Reloads)
	e.count(c.refusals, p.Refusals)
	e.timestamp(c.policyLoaded, p.Loaded)
}

func (c *collector) collectKernelSide(e emitter, m *Metrics) {
	for _, p := range m.Capabilities {
		e.flag(c.capability, p.OK, p.Name)
	}
	for _, p := range m.Programs {
		e.seconds(c.bpfRunSeconds, p.RunNS, p.Name)
		e.count(c.bpfRuns, p.Runs, p.Name)
	}
	for cause, n := range map[string]uint64{
		"ring-full": m.Lost.Events, "suppressed": m.Lost.Suppressed, "short-walk": m.Lost.ShortWalks,
		"bad-stamp": m.Lost.BadStamps, "quota-table-full": m.Lost.QuotaLost,
	} {
		e.count(c.lost, n, cause)
	}
	e.value(c.unmeasured, float64(m.Lost.Unmeasured))
}

func number(n int) string { return strconv.Itoa(n) }

// emitter sends const metrics in base units.
type emitter struct {
	ch chan<- prometheus.Metric
}

func (e emitter) value(f *family, v float64, labels ...string) {
	clean(labels)
	m, err := prometheus.NewConstMetric(f.desc, f.kind.valueType(), v, labels...)
	e.send(f, m, err)
}

func (e emitter) count(f *family, n uint64, labels ...string) { e.value(f, float64(n), labels...) }

func (e emitter) seconds(f *family, ns uint64, labels ...string) {
	e.value(f, float64(ns)/1e9, labels...)
}

func (e emitter) flag(f *family, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	e.value(f, v, labels...)
}

func (e emitter) timestamp(f *family, t time.Time) {
	v := 0.0
	if !t.IsZero() {
		v = float64(t.UnixMilli()) / 1e3
	}
	e.value(f, v)
}

func (e emitter) histogram(f *family, h *histogram.Counts, sumNS uint64, labels ...string) {
	clean(labels)
	buckets, count := classic(h)
	m, err := prometheus.NewConstHistogram(f.desc, count, float64(sumNS)/1e9, buckets, labels...)
	e.send(f, m, err)
}

// send hands a failed metric to the registry, which reports it and serves the others.
func (e emitter) send(f *family, m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(f.desc, err)
	}
	e.ch <- m
}

// clean makes labels valid UTF-8: names of static pods and containers come from files that people write.
func clean(labels []string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
}
