package tracetable

import (
	"bufio"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
)

// ImportOptions say what is read.
type ImportOptions struct {
	Format  string // alibaba-2018 or amtrace-2022
	Usage   string // container_usage.csv, or core_pmu_metrics
	Node    string // machine_usage.csv, or uncore_pmu_metrics; "": none
	Meta    string // container_meta; "": none
	Machine string // "": the first in Usage
}

// Imported says what came of it.
type Imported struct {
	Machine    string
	Containers int
	Steps      int
	Bad        int    // rows that were left out
	BadWhy     string // why the first of them was
}

// hertz is the frequency that the public traces do not tell: that of their most common machine.
const hertz = 2.5e9

// maxRows bounds what is kept in memory: a machine's eight days at 10 s with 40 containers are 3 million rows.
const maxRows = 20_000_000

// The columns of the files that have no header.
var layouts = map[string][]string{
	"alibaba-2018 usage": {"container_id", "machine_id", "time_stamp", "cpu_util_percent", "mem_util_percent", "cpi", "mem_gps", "mpki", "net_in", "net_out", "disk_io_percent"},
	"alibaba-2018 node":  {"machine_id", "time_stamp", "cpu_util_percent", "mem_util_percent", "mem_gps", "mkpi", "net_in", "net_out", "disk_io_percent"},
	"alibaba-2018 meta":  {"container_id", "machine_id", "time_stamp", "app_du", "status", "cpu_request", "cpu_limit", "mem_size"},
	"amtrace-2022 usage": {"ts", "node_id", "container_id", "pod_id", "cpu", "core_id", "socket_id", "instructions", "cycles", "ref_cycles", "llc_misses"},
	"amtrace-2022 node":  {"ts", "node_id", "socket_id", "channel_id", "read_bw", "write_bw", "latency"},
	"amtrace-2022 meta": {"node_id", "container_id", "pod_id", "cpu_mode", "app_name", "deploy_group", "container_type", "container_cpu_spec", "container_mem_spec",
		"pod_cpu_spec", "pod_mem_spec"},
}

// reading is one container's counters at one time.
type reading struct {
	cycles, instructions, misses, busy float64 // over the time since the reading before; per second if rate
	rate                               bool
}

type importer struct {
	o    ImportOptions
	sum  Imported
	at   map[int64]map[string]*reading // by second and container
	pods map[string]signal.Pod         // by container
	// cores that a container may use, and what it is
	cores map[string]float64
	busy  map[int64]float64         // of the node, 0 to 1
	bw    map[int64]map[int]float64 // MiB/s by socket
	cpus  map[int]signal.CPU
	rows  int
}

// Import makes a recording of one machine of a public trace. It has hardware counters and CPU time; what else those traces lack is said in its Info.
func Import(ctx context.Context, w io.Writer, o ImportOptions) (Imported, error) {
	im := &importer{
		o: o, at: map[int64]map[string]*reading{}, pods: map[string]signal.Pod{}, cores: map[string]float64{}, busy: map[int64]float64{},
		bw: map[int64]map[int]float64{}, cpus: map[int]signal.CPU{},
	}
	im.sum.Machine = o.Machine
	if o.Meta != "" {
		if err := im.read(ctx, "meta", o.Meta, im.meta); err != nil {
			return im.sum, err
		}
	}
	usage, node := im.usage2018, im.node2018
	if o.Format == "amtrace-2022" {
		usage, node = im.usage2022, im.node2022
	}
	if err := im.read(ctx, "usage", o.Usage, usage); err != nil {
		return im.sum, err
	}
	if o.Node != "" {
		if err := im.read(ctx, "node", o.Node, node); err != nil {
			return im.sum, err
		}
	}
	if len(im.at) == 0 {
		return im.sum, fmt.Errorf("%s: there is no usable row of machine %q", o.Usage, im.sum.Machine)
	}
	return im.sum, im.write(ctx, w)
}

// fields is a row by the name of its columns.
type fields struct {
	index map[string]int
	row   []string
}

func (f *fields) text(name string) string {
	if i, ok := f.index[name]; ok && i < len(f.row) {
		return f.row[i]
	}
	return ""
}

// number is NaN for what is no number.
func (f *fields) number(name string) float64 {
	v, err := strconv.ParseFloat(f.text(name), 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

// read calls each for every row. A first row that is a header of these columns gives their order; else it is that of the published files. each says why
// a row is of no use, or "".
func (im *importer) read(ctx context.Context, what, name string, each func(*fields) string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := csv.NewReader(bufio.NewReaderSize(f, 1<<20))
	in.FieldsPerRecord, in.ReuseRecord = -1, true
	layout := layouts[im.o.Format+" "+what]
	row := &fields{index: map[string]int{}}
	for i, c := range layout {
		row.index[c] = i
	}
	for n := 1; ; n++ {
		rec, err := in.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n == 1 && slices.Contains(layout, strings.TrimSpace(rec[0])) {
			row.index = map[string]int{}
			for i, c := range rec {
				row.index[strings.TrimSpace(c)] = i
			}
			continue
		}
		if n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		row.row = rec
		if why := each(row); why != "" {
			im.sum.Bad++
			if im.sum.BadWhy == "" {
				im.sum.BadWhy = fmt.Sprintf("%s row %d: %s", name, n, why)
			}
		}
		if im.rows > maxRows {
			return fmt.Errorf("%s: more than %d rows of machine %q", name, maxRows, im.sum.Machine)
		}
	}
}

func (im *importer) mine(machine string) bool {
	if im.sum.Machine == "" {
		im.sum.Machine = machine
	}
	return machine == im.sum.Machine
}

func (im *importer) meta(f *fields) string {
	id := strings.Clone(f.text("container_id"))
	if im.o.Machine != "" && f.text("machine_id")+f.text("node_id") != im.o.Machine {
		return ""
	}
	class, app, pod := "online", f.text("app_du"), id
	if im.o.Format == "amtrace-2022" {
		app, pod = f.text("app_name"), f.text("pod_id")
		switch kind := f.text("container_type"); {
		case app == "Batch" || strings.HasPrefix(kind, "Batch"):
			class = "offline"
		case kind != "biz":
			class = ""
		}
		if n := f.number("container_cpu_spec"); n > 0 {
			im.cores[id] = n
		}
	} else if n := f.number("cpu_request"); n > 0 {
		im.cores[id] = n / 100
	}
	im.pods[id] = newPod(id, pod, app, class)
	return ""
}

func newPod(id, pod, app, class string) signal.Pod {
	p := signal.Pod{UID: strings.Clone(pod), Namespace: "imported", Name: strings.Clone(pod), Cgroup: "/imported/" + pod, Labels: map[string]string{}}
	p.Containers = []signal.Container{{ID: id, Name: "main", Cgroup: p.Cgroup + "/" + id}}
	if p.UID != id { // several containers of one pod are kept apart: what was measured is theirs
		p.UID, p.Name = p.UID+"-"+id, p.Name+"-"+id
	}
	if class != "" {
		p.Labels["qos-agent.io/class"] = class
	}
	if app != "" {
		p.Labels["app"] = strings.Clone(app)
	}
	return p
}

func (im *importer) reading(at float64, id string) *reading {
	second := int64(at)
	m := im.at[second]
	if m == nil {
		m = map[string]*reading{}
		im.at[second] = m
	}
	r := m[id]
	if r == nil {
		r = &reading{}
		m[strings.Clone(id)] = r
		im.rows++
	}
	if _, ok := im.pods[id]; !ok {
		id := strings.Clone(id)
		im.pods[id] = newPod(id, id, "", "online")
	}
	return r
}

func (im *importer) usage2018(f *fields) string {
	if !im.mine(strings.Clone(f.text("machine_id"))) {
		return ""
	}
	at, util, cpi, mpki := f.number("time_stamp"), f.number("cpu_util_percent"), f.number("cpi"), f.number("mpki")
	switch {
	case !(at >= 0):
		return "no time"
	case !(util >= 0 && util <= 10_000):
		return "no CPU use"
	}
	id := f.text("container_id")
	cores := im.cores[id]
	if cores == 0 {
		cores = 1
	}
	r := im.reading(at, id)
	r.rate = true
	r.busy = util / 100 * cores * 1e9
	if cpi > 0.05 && cpi < 50 { // what is outside is a counter that did not count
		r.cycles = r.busy / 1e9 * hertz
		r.instructions = r.cycles / cpi
		if mpki >= 0 {
			r.misses = r.instructions * mpki / 1000
		}
	}
	return ""
}

func (im *importer) node2018(f *fields) string {
	if !im.mine(strings.Clone(f.text("machine_id"))) {
		return ""
	}
	at, util := f.number("time_stamp"), f.number("cpu_util_percent")
	if !(at >= 0) || !(util >= 0 && util <= 100) {
		return "no time or no CPU use"
	}
	im.busy[int64(at)] = util / 100
	return ""
}

func (im *importer) usage2022(f *fields) string {
	if !im.mine(strings.Clone(f.text("node_id"))) {
		return ""
	}
	at, cpu := f.number("ts"), f.number("cpu")
	cycles, ins, ref, misses := f.number("cycles"), f.number("instructions"), f.number("ref_cycles"), f.number("llc_misses")
	switch {
	case !(at >= 0):
		return "no time"
	case !(cycles >= 0 && ins >= 0 && ref >= 0 && misses >= 0):
		return "a counter is missing"
	case ins > 0 && cycles/ins > 200:
		return "more than 200 cycles per instruction"
	}
	r := im.reading(at, f.text("container_id"))
	r.cycles += cycles
	r.instructions += ins
	r.misses += misses
	r.busy += ref / hertz * 1e9
	if cpu >= 0 && cpu < 1024 {
		core, socket := f.number("core_id"), f.number("socket_id")
		if !(socket >= 0 && socket < 64) {
			socket = 0
		}
		c := signal.CPU{ID: int(cpu), Core: int(cpu), Node: int(socket)}
		if core >= 0 {
			c.Core = int(core)
		}
		im.cpus[c.ID] = c
	}
	return ""
}

func (im *importer) node2022(f *fields) string {
	if !im.mine(strings.Clone(f.text("node_id"))) {
		return ""
	}
	at, socket, read, write := f.number("ts"), f.number("socket_id"), f.number("read_bw"), f.number("write_bw")
	if !(at >= 0) || !(socket >= 0 && socket < 64) || !(read >= 0 && write >= 0) {
		return "no time, socket or bandwidth"
	}
	m := im.bw[int64(at)]
	if m == nil {
		m = map[int]float64{}
		im.bw[int64(at)] = m
	}
	m[int(socket)] += read + write
	return ""
}

var notes = map[string]string{
	"alibaba-2018": "imported from Alibaba's cluster-trace-v2018: CPU time, cycles and misses come from utilisation, CPI and MPKI at an assumed 2.5 GHz; " +
		"there is no run-queue wait, blame, pressure, throttling, memory in bytes, topology or knob, and no batch work by container",
	"amtrace-2022": "imported from Alibaba's microarchitecture trace of 2022: CPU time comes from reference cycles at an assumed 2.5 GHz; " +
		"there is no run-queue wait, blame, pressure, throttling, memory, cache occupancy or knob",
}

// write makes the steps.
func (im *importer) write(ctx context.Context, w io.Writer) error {
	times := make([]int64, 0, len(im.at))
	for t := range im.at {
		times = append(times, t)
	}
	slices.Sort(times)
	start := time.Unix(0, 0).UTC()
	interval := time.Second
	if len(times) > 1 {
		interval = time.Duration(times[1]-times[0]) * time.Second
	}
	out, err := trace.NewWriter(w, trace.Info{
		Agent: "import", Hostname: im.sum.Machine, Started: start.Add(time.Duration(times[0]) * time.Second), Interval: interval, Note: notes[im.o.Format],
	}, trace.WriterOptions{})
	if err != nil {
		return err
	}
	snap := signal.Snapshot{Node: signal.Node{Caps: signal.Capabilities{Perf: true, BandwidthMonitoring: len(im.bw) > 0}}}
	for _, c := range im.cpus {
		snap.Node.Topology.CPUs = append(snap.Node.Topology.CPUs, c)
	}
	slices.SortFunc(snap.Node.Topology.CPUs, func(a, b signal.CPU) int { return a.ID - b.ID })
	var ids []string
	known := map[string]bool{}
	last := map[string]time.Duration{}
	for i, t := range times {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := time.Duration(t+1) * time.Second // the clock of a node is never 0
		snap.Seq, snap.Now, snap.Wall, snap.Elapsed = uint64(i+1), now, start.Add(time.Duration(t)*time.Second), 0
		if i > 0 {
			snap.Elapsed = time.Duration(t-times[i-1]) * time.Second
		}
		here := im.at[t]
		if im.roster(&snap, here, known, &ids) {
			snap.PodsGen++
		}
		im.fill(&snap, t, here, ids, last, interval)
		if err := out.Append(&trace.Step{Snapshot: &snap}); err != nil {
			return err
		}
	}
	im.sum.Steps, im.sum.Containers = len(times), len(known)
	return out.Close()
}

// roster adds containers that are seen for the first time, and makes new lists if there are any. Those that have ended cannot be told from those that
// were not sampled, and stay.
func (im *importer) roster(snap *signal.Snapshot, here map[string]*reading, known map[string]bool, ids *[]string) bool {
	before := len(known)
	for id := range here {
		known[id] = true
	}
	if len(known) == before {
		return false
	}
	all := make([]string, 0, len(known))
	for id := range known {
		all = append(all, id)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(im.pods[a].Name, im.pods[b].Name) })
	old := map[string]signal.ContainerSample{}
	for i, id := range *ids {
		old[id] = snap.Containers[i]
	}
	*ids = all
	snap.Pods, snap.Containers = make([]signal.Pod, len(all)), make([]signal.ContainerSample, len(all))
	for i, id := range all {
		c := old[id]
		c.Pod = i
		snap.Pods[i], snap.Containers[i] = im.pods[id], c
	}
	return true
}

func (im *importer) fill(snap *signal.Snapshot, t int64, here map[string]*reading, ids []string, last map[string]time.Duration, interval time.Duration) {
	for i, id := range ids {
		r := here[id]
		if r == nil {
			continue
		}
		d := interval
		if at, ok := last[id]; ok && snap.Now > at {
			d = snap.Now - at
		}
		last[id] = snap.Now
		scale := 1.0
		if r.rate {
			scale = d.Seconds()
		}
		c := &snap.Containers[i]
		c.CPU = signal.CPUSample{At: snap.Now, Span: d, UsageNS: uint64(r.busy * scale), QuotaUS: -1}
		if r.instructions > 0 {
			c.Perf = signal.PerfSample{
				At: snap.Now, Span: d, Cycles: uint64(r.cycles * scale), Instructions: uint64(r.instructions * scale), LLCMisses: uint64(r.misses * scale),
				RunningPercent: 100, BusyNS: uint64(r.busy * scale),
			}
		}
	}
	n := &snap.Node
	if b, ok := im.busy[t]; ok {
		n.CPU = signal.NodeCPUSample{At: snap.Now, Span: interval, BusyNS: uint64(b * float64(interval) * float64(max(1, len(n.Topology.CPUs))))}
	}
	if m := im.bw[t]; m != nil {
		n.Bandwidth = nil
		for socket := range 64 {
			if v, ok := m[socket]; ok {
				n.Bandwidth = append(n.Bandwidth, signal.DomainBandwidth{
					ID: socket, At: snap.Now, Span: interval, State: signal.RDTOK, TotalBytes: uint64(v * (1 << 20) * interval.Seconds()),
				})
			}
		}
	}
}
