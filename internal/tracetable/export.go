// Package tracetable turns recordings into tables that other tools read, and public traces into recordings.
package tracetable

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Kind is the type of a column's values: string, int64, float64, bool or time.Time.
type Kind uint8

const (
	String Kind = iota
	Int
	Float
	Bool
	Time
)

// Column is a column of a table. A value that was not measured is nil.
type Column struct {
	Name string
	Kind Kind
}

// Row is the values of a row, one for each column, of the column's kind or nil.
type Row []any

type table struct {
	columns []Column
	rows    func(s *trace.Step, d *decide.Decision, emit func(Row) error) error
}

// every row begins with these.
var common = []Column{{"host", String}, {"run", String}, {"time", Time}, {"monotonic_ns", Int}, {"seq", Int}, {"event", Bool}}

var tables = map[string]table{
	"containers": {[]Column{
		{"namespace", String}, {"pod", String}, {"container", String}, {"class", String},
		{"wait_count", Int}, {"wait_sum_ns", Int}, {"wait_p50_ns", Int}, {"wait_p99_ns", Int}, {"wait_span_ns", Int}, {"preempted", Int}, {"blame_ns", Int},
		{"cpu_usage_ns", Int}, {"cpu_span_ns", Int}, {"periods", Int}, {"throttled_periods", Int}, {"throttled_ns", Int}, {"quota_us", Int}, {"period_us", Int},
		{"memory_current", Int}, {"memory_working_set", Int}, {"psi_span_ns", Int}, {"psi_cpu_some_us", Int}, {"psi_memory_some_us", Int}, {"psi_io_some_us", Int},
		{"perf_span_ns", Int}, {"cycles", Int}, {"instructions", Int}, {"llc_refs", Int}, {"llc_misses", Int},
		{"rdt_span_ns", Int}, {"llc_occupancy", Int}, {"mem_bytes", Int}, {"mem_local_bytes", Int},
		{"grant_cores", Int}, {"grant_millicpu", Int}, {"grant_frozen", Bool}, {"grant_idle", Bool},
	}, containerRows},
	"node": {[]Column{
		{"cpus", Int}, {"pods", Int}, {"containers", Int}, {"cpu_span_ns", Int}, {"busy_ns", Int}, {"steal_ns", Int}, {"softirq_ns", Int}, {"irq_ns", Int},
		{"psi_span_ns", Int}, {"psi_cpu_some_us", Int}, {"psi_memory_some_us", Int}, {"psi_io_some_us", Int}, {"lost_events", Int}, {"dropped_steps", Int},
		{"policy", String}, {"knobs", Int},
	}, nodeRows},
	"verdicts": {[]Column{
		{"namespace", String}, {"pod", String}, {"container", String}, {"axis", String}, {"level", String}, {"reason", String}, {"since_ns", Int},
		{"samples", Int}, {"p99_ns", Int}, {"objective_ns", Int}, {"stall_permille", Int}, {"named", Int}, {"culprit", String}, {"culprit_permille", Int},
	}, verdictRows},
	"notes": {[]Column{
		{"owner", String}, {"rule", String}, {"pod", String}, {"victim", String}, {"from", String}, {"to", String}, {"wait_ns", Int}, {"before_ns", Int},
		{"objective_ns", Int}, {"share_permille", Int}, {"belief", Int}, {"pause_ns", Int}, {"text", String},
	}, noteRows},
	"outcomes": {[]Column{
		{"owner", String}, {"rule", String}, {"pod", String}, {"victim", String}, {"group", String}, {"knob", String}, {"old", String}, {"new", String},
		{"result", String}, {"error", String}, {"audit", Bool},
	}, outcomeRows},
}

// Columns is the columns of a table; nil for one that there is not.
func Columns(name string) []Column {
	t, ok := tables[name]
	if !ok {
		return nil
	}
	return append(append([]Column(nil), common...), t.columns...)
}

// Each calls emit for every row of a table, in the order of time for each trace. The row is used again.
func Each(ctx context.Context, name string, all []replay.Series, emit func(Row) error) error {
	t, ok := tables[name]
	if !ok {
		return fmt.Errorf("table %q: want containers, node, verdicts, notes or outcomes", name)
	}
	row := make(Row, 0, len(common)+len(t.columns))
	for _, s := range all {
		r, err := trace.Open(s.Files[0])
		if err != nil {
			return err
		}
		host, run := r.Info().Hostname, r.Info().Run
		if err := r.Close(); err != nil {
			return err
		}
		var failed error
		ctx, cancel := context.WithCancel(ctx)
		o := replay.Options{ReadOnly: name != "verdicts", Each: func(st *trace.Step, d *decide.Decision) {
			if failed != nil {
				return
			}
			snap := st.Snapshot
			failed = t.rows(st, d, func(values Row) error {
				row = append(row[:0], host, run, snap.Wall, int64(snap.Now), int64(snap.Seq), snap.Trigger == signal.Event)
				row = append(row, values...)
				return emit(row)
			})
			if failed != nil {
				cancel()
			}
		}}
		_, err = replay.Run(ctx, s, o)
		cancel()
		if failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func u(v uint64) any { return int64(v) }

// measured is v, or nil if it was never read.
func measured(at time.Duration, v uint64) any {
	if at == 0 {
		return nil
	}
	return int64(v)
}

func span(at, d time.Duration) any {
	if at == 0 {
		return nil
	}
	return int64(d)
}

func containerRows(s *trace.Step, _ *decide.Decision, emit func(Row) error) error {
	snap := s.Snapshot
	if snap.Trigger == signal.Event {
		return nil // nothing of containers is new
	}
	var tally judge.Tally
	for i := range snap.Containers {
		c := &snap.Containers[i]
		p := &snap.Pods[c.Pod]
		var class any
		if c.Pod < len(s.Decision.Class) {
			class = string(s.Decision.Class[c.Pod])
		}
		tally.Reset()
		tally.Add(c.Wait.Buckets)
		var p50, p99 any
		if tally.Total() > 0 {
			p50, p99 = int64(median(&c.Wait)), int64(tally.P99())
		}
		blame := uint64(0)
		for _, b := range c.Wait.Blame {
			blame += b.NS
		}
		w, cpu, m, psi, perf, rdt := &c.Wait, &c.CPU, &c.Memory, &c.PSI, &c.Perf, &c.RDT
		var quota, period any
		if cpu.At != 0 && cpu.QuotaUS >= 0 {
			quota, period = cpu.QuotaUS, cpu.PeriodUS
		}
		rdtAt := rdt.At
		if rdt.State != signal.RDTOK {
			rdtAt = 0
		}
		row := Row{
			p.Namespace, p.Name, p.Containers[c.Container].Name, class,
			measured(w.At, w.Count), measured(w.At, w.SumNS), p50, p99, span(w.At, w.Span), measured(w.At, w.Preempted), measured(w.At, blame),
			measured(cpu.At, cpu.UsageNS), span(cpu.At, cpu.Span), measured(cpu.At, cpu.Periods), measured(cpu.At, cpu.ThrottledPeriods),
			measured(cpu.At, cpu.ThrottledNS), quota, period,
			measured(m.At, m.Current), measured(m.At, m.WorkingSet), span(psi.At, psi.Span), measured(psi.At, psi.CPU.SomeUS), measured(psi.At, psi.Memory.SomeUS),
			measured(psi.At, psi.IO.SomeUS),
			span(perf.At, perf.Span), measured(perf.At, perf.Cycles), measured(perf.At, perf.Instructions), measured(perf.At, perf.LLCRefs), measured(perf.At, perf.LLCMisses),
			span(rdtAt, rdt.Span), measured(rdtAt, rdt.OccupancyBytes), measured(rdtAt, rdt.TotalBytes), measured(rdtAt, rdt.LocalBytes),
		}
		if c.Pod < len(s.Decision.Grant) {
			g := s.Decision.Grant[c.Pod]
			row = append(row, int64(g.Cores), g.MilliCPU, g.Frozen, g.Idle)
		} else {
			row = append(row, nil, nil, nil, nil)
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

func nodeRows(s *trace.Step, _ *decide.Decision, emit func(Row) error) error {
	snap := s.Snapshot
	n := &snap.Node
	var id any
	if s.Policy != nil {
		id = s.Policy.ID()
	}
	return emit(Row{
		int64(len(n.Topology.CPUs)), int64(len(snap.Pods)), int64(len(snap.Containers)), span(n.CPU.At, n.CPU.Span), measured(n.CPU.At, n.CPU.BusyNS),
		measured(n.CPU.At, n.CPU.StealNS), measured(n.CPU.At, n.CPU.SoftirqNS), measured(n.CPU.At, n.CPU.IRQNS),
		span(n.PSI.At, n.PSI.Span), measured(n.PSI.At, n.PSI.CPU.SomeUS), measured(n.PSI.At, n.PSI.Memory.SomeUS), measured(n.PSI.At, n.PSI.IO.SomeUS),
		u(snap.Lost.Events), u(s.Dropped), id, int64(len(s.Decision.Plan)),
	})
}

func verdictRows(s *trace.Step, d *decide.Decision, emit func(Row) error) error {
	if d == nil {
		return nil
	}
	snap := s.Snapshot
	for i := range d.Verdicts {
		v := &d.Verdicts[i]
		p := &snap.Pods[v.Pod]
		row := Row{
			p.Namespace, p.Name, p.Containers[snap.Containers[v.Sample].Container].Name, v.Axis.String(), v.Level.String(), v.Reason.String(), int64(v.Since),
			u(v.Samples), int64(v.P99), int64(v.Objective), int64(v.StallPermille), int64(v.Named), nil, nil,
		}
		if v.Named > 0 {
			row[len(row)-2], row[len(row)-1] = snap.Pods[v.Shares[0].Pod].Key(), int64(v.Shares[0].Permille)
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

func noteRows(s *trace.Step, _ *decide.Decision, emit func(Row) error) error {
	for i := range s.Decision.Notes {
		n := &s.Decision.Notes[i]
		err := emit(Row{
			n.Owner, n.Rule, n.Pod, n.Victim, n.From.String(), n.To.String(), int64(n.Wait), int64(n.Before), int64(n.Objective), int64(n.Permille), int64(n.Belief),
			int64(n.Pause), n.String(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func outcomeRows(s *trace.Step, _ *decide.Decision, emit func(Row) error) error {
	for i := range s.Outcomes {
		o := &s.Outcomes[i]
		kind := o.Kind.String()
		if o.Resource != "" {
			kind = "resctrl." + o.Resource
		}
		if err := emit(Row{o.Owner, o.Rule, o.Pod, o.Victim, o.Cgroup, kind, o.Old, o.New, o.Result.String(), o.Err, o.Audit}); err != nil {
			return err
		}
	}
	return nil
}

// CSV writes a table with a header. What was not measured is empty.
func CSV(ctx context.Context, w io.Writer, name string, all []replay.Series) error {
	out := csv.NewWriter(w)
	columns := Columns(name)
	text := make([]string, len(columns))
	for i, c := range columns {
		text[i] = c.Name
	}
	if err := out.Write(text); err != nil {
		return err
	}
	err := Each(ctx, name, all, func(r Row) error {
		for i, v := range r {
			text[i] = format(v)
		}
		return out.Write(text)
	})
	out.Flush()
	if err != nil {
		return err
	}
	return out.Error()
}

func format(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	case bool:
		return strconv.FormatBool(v)
	case time.Time:
		return v.Format(time.RFC3339Nano)
	default:
		return fmt.Sprint(v)
	}
}

// JSONL writes a table as an object a line. What was not measured is left out.
func JSONL(ctx context.Context, w io.Writer, name string, all []replay.Series) error {
	columns := Columns(name)
	names := make([][]byte, len(columns))
	for i, c := range columns {
		names[i] = append(strconv.AppendQuote(nil, c.Name), ':')
	}
	var line []byte
	return Each(ctx, name, all, func(r Row) error {
		line = append(line[:0], '{')
		for i, v := range r {
			if v == nil {
				continue
			}
			if len(line) > 1 {
				line = append(line, ',')
			}
			line = append(line, names[i]...)
			text, err := json.Marshal(v)
			if err != nil {
				return err
			}
			line = append(line, text...)
		}
		_, err := w.Write(append(line, '}', '\n'))
		return err
	})
}

// median is the middle of a sample's waits.
func median(w *signal.WaitSample) time.Duration {
	var counts histogram.Counts
	w.Hist(&counts)
	d, _ := counts.Quantile(0.5)
	return d
}
