package agent

import (
	"github.com/qos-agent/qos-agent/internal/collect"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/signal"
)

// rdtState is nil where resctrl counts nothing for the pod.
func (l *loop) rdtState(r *signal.RDTSample) *server.RDT {
	if r.State == signal.RDTNone {
		return nil
	}
	out := &server.RDT{AgeSeconds: l.age(r.At), State: readable(r.State), OccupancyBytes: r.OccupancyBytes, Domains: []server.RDTDomain{}}
	span := r.Span.Seconds()
	if span > 0 {
		out.BandwidthBytesPerSecond, out.LocalBytesPerSecond = float64(r.TotalBytes)/span, float64(r.LocalBytes)/span
	}
	for _, d := range r.Domains {
		row := server.RDTDomain{ID: d.ID, OccupancyBytes: d.OccupancyBytes}
		if span > 0 {
			row.BandwidthBytesPerSecond = float64(d.TotalBytes) / span
		}
		out.Domains = append(out.Domains, row)
	}
	return out
}

func readable(s signal.RDTState) string {
	switch s {
	case signal.RDTOK:
		return "ok"
	case signal.RDTUnavailable:
		return "unavailable"
	case signal.RDTUnassigned:
		return "unassigned"
	case signal.RDTError:
		return "error"
	}
	return ""
}

// nodeRDT is nil on a machine without.
func (l *loop) nodeRDT(n *signal.Node) *server.NodeRDT {
	r := &n.RDT
	if r.CLOSIDs == 0 && r.RMIDs == 0 {
		return nil
	}
	out := &server.NodeRDT{
		CLOSIDs: r.CLOSIDs, RMIDs: r.RMIDs, Ways: r.Ways, MinWays: r.MinWays, MBMinimum: r.MB.Min, MBStep: r.MB.Gran, Domains: []server.RDTDomain{},
	}
	out.Classes = l.heldClasses()
	if len(r.Domains) > 0 {
		out.WayBytes = r.Domains[0].WayBytes
	}
	worst := signal.RDTNone
	for _, d := range n.Bandwidth {
		row := server.RDTDomain{ID: d.ID}
		if d.Span > 0 {
			row.BandwidthBytesPerSecond = float64(d.TotalBytes) / d.Span.Seconds()
		}
		out.Domains = append(out.Domains, row)
		out.AgeSeconds, worst = l.age(d.At), max(worst, d.State)
	}
	out.MonitorState = readable(worst)
	return out
}

// limits is nil for a pod that nobody holds below the posture.
func (l *loop) limits(pod int) *server.Limits {
	if pod >= len(l.last.Grant) {
		return nil
	}
	g := &l.last.Grant[pod]
	out := server.Limits{Cores: g.Cores, QuotaCores: float64(g.MilliCPU) / 1000, Frozen: g.Frozen, Ways: g.Ways, BandwidthPercent: g.MB}
	if out == (server.Limits{}) {
		return nil
	}
	return &out
}

// cpiEvidence is nil for verdicts on other axes.
func cpiEvidence(v *judge.Verdict) *server.CPIEvidence {
	if v.Axis != judge.Cache && v.Axis != judge.Bandwidth || v.CPI.CPI == 0 {
		return nil
	}
	e := &v.CPI
	return &server.CPIEvidence{
		CPI: thousandth(e.CPI), CPIBaseline: thousandth(e.CPIBaseline), CPIFence: thousandth(e.CPIFence),
		MPKI: thousandth(e.MPKI), MPKIBaseline: thousandth(e.MPKIBaseline), MPKIFence: thousandth(e.MPKIFence),
		UsageCores: thousandth(e.MilliCPU), BaselineSamples: e.BaselineSamples, RunningRatio: float64(e.RunningPercent) / 100,
		OccupancyBytes: e.OccupancyBytes, OccupancyBaselineBytes: e.OccupancyBaseline,
		BusBytesPerSecond: float64(e.DomainMBps) * 1e6, BusBaselinePerSecond: float64(e.DomainBaseline) * 1e6, BusRatio: float64(e.BusPercent) / 100,
	}
}

func thousandth(n uint64) float64 { return float64(n) / 1000 }

// rdtMetrics adds what there is to count about cache and memory bandwidth.
func (l *loop) rdtMetrics(m *server.Metrics, view *collect.View) {
	snap := l.snapshot
	for i := range view.Pods {
		p := &view.Pods[i]
		m.PodRDT = append(m.PodRDT, server.PodRDTMetrics{
			Namespace: p.Pod.Namespace, Pod: p.Pod.Name, Class: policy.Unclassified, Monitored: true, Bytes: p.Bytes, Local: p.Local,
		})
	}
	index := make(map[collect.PodRef]int, len(m.PodRDT))
	for i := range view.Pods {
		index[view.Pods[i].Pod] = i
	}
	for i := range snap.Pods {
		p := &snap.Pods[i]
		at, ok := index[collect.PodRef{UID: p.UID, Namespace: p.Namespace, Name: p.Name}]
		if !ok {
			if i >= len(l.last.Grant) || l.last.Grant[i].Ways == 0 && l.last.Grant[i].MB == 0 {
				continue
			}
			at = len(m.PodRDT)
			m.PodRDT = append(m.PodRDT, server.PodRDTMetrics{Namespace: p.Namespace, Pod: p.Name})
		}
		row := &m.PodRDT[at]
		row.Class, _ = l.class(i)
		if i < len(l.last.Grant) {
			row.Ways, row.MB = l.last.Grant[i].Ways, l.last.Grant[i].MB
		}
	}
	for i := range snap.Containers {
		c := &snap.Containers[i]
		p := &snap.Pods[c.Pod]
		if at, ok := index[collect.PodRef{UID: p.UID, Namespace: p.Namespace, Name: p.Name}]; ok {
			m.PodRDT[at].OccupancyBytes += c.RDT.OccupancyBytes
		}
	}
	for _, d := range view.Domains {
		m.Domains = append(m.Domains, server.DomainMetrics{ID: d.ID, Bytes: d.TotalBytes})
	}
	m.PerfUncounted, m.PerfExtrapolated = view.Uncounted, view.Extrapolated
}

// cpiLevels is each online container's window beside its baseline, by pod and container name.
func (l *loop) cpiLevels() map[[2]string]*server.CPILevels {
	out := map[[2]string]*server.CPILevels{}
	snap := l.snapshot
	for i := range l.last.Verdicts {
		v := &l.last.Verdicts[i]
		if v.Axis != judge.Cache || v.CPI.CPI == 0 {
			continue
		}
		p, e := &snap.Pods[v.Pod], &v.CPI
		out[[2]string{p.Key(), p.Containers[snap.Containers[v.Sample].Container].Name}] = &server.CPILevels{
			CPI: thousandth(e.CPI), CPIBaseline: thousandth(e.CPIBaseline), CPIFence: thousandth(e.CPIFence),
			MPKI: thousandth(e.MPKI), MPKIBaseline: thousandth(e.MPKIBaseline), MPKIFence: thousandth(e.MPKIFence),
		}
	}
	return out
}
