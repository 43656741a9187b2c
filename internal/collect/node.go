package collect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/topology"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// clockTick is the unit of /proc/stat: USER_HZ, which is 100 on every architecture that Go runs on.
const clockTick = uint64(time.Second / 100)

// node reads the machine as a whole.
type node struct {
	every time.Duration
	next  time.Duration

	stat   *os.File          // /proc/stat
	psi    *cgroup.PSIReader // nil if the kernel does not offer it
	topo   *topology.Reader
	sample signal.Node

	cpu     nodeCPU
	cpuAt   time.Duration
	psiStat cgroup.PSIStat
	psiAt   time.Duration

	statsSeen struct{ lost, short uint64 }
	buf       [512]byte // the first line of /proc/stat
}

// nodeCPU is the first line of /proc/stat in its unit.
type nodeCPU struct{ busy, steal, softirq, irq uint64 }

func openNode(proc, sys string, every time.Duration) (*node, error) {
	n := &node{every: every}
	var err error
	if n.topo, err = topology.Open(sys); err != nil {
		return nil, err
	}
	n.sample.Topology = n.topo.Topology()
	if n.stat, err = os.Open(filepath.Join(proc, "stat")); err != nil {
		return nil, errors.Join(err, n.close())
	}
	if n.psi, err = cgroup.OpenNodePSI(proc); err != nil && !errors.Is(err, cgroup.ErrUnsupported) {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *node) close() error {
	err := errors.Join(n.topo.Close(), n.psi.Close())
	if n.stat != nil {
		err = errors.Join(err, n.stat.Close())
	}
	return err
}

// readNode reads what concerns the whole machine when it is due, and returns what the tracer has lost since the last time.
func (c *Collector) readNode(now time.Duration) (lost signal.Lost) {
	n := c.node
	if now < n.next {
		return lost
	}
	n.next = now + n.every
	changed, topoErr := n.topo.Refresh()
	if err := errors.Join(n.readCPU(now), n.readPSI(now, &c.scratch), topoErr); err != nil {
		c.fail(signalNode, nil, err)
	} else {
		c.failing &^= 1 << signalNode
	}
	if changed {
		n.sample.Topology = n.topo.Topology()
		c.log.Info("CPUs have come or gone", "online", n.sample.Topology.Set().String())
	}
	if c.tracer == nil {
		return lost
	}
	if err := c.tracer.Stats(&c.stats); err != nil {
		c.fail(signalWait, nil, err)
		return lost
	}
	c.failing &^= 1 << signalWait
	lost.Events = grown(c.stats.EventsLost, n.statsSeen.lost)
	lost.LogShort = grown(c.stats.ShortWalks, n.statsSeen.short)
	n.statsSeen.lost, n.statsSeen.short = c.stats.EventsLost, c.stats.ShortWalks
	return lost
}

func (n *node) readCPU(now time.Duration) error {
	size, err := n.stat.ReadAt(n.buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	st, ok := parseProcStat(n.buf[:size])
	if !ok {
		return fmt.Errorf("%s: want a line \"cpu\" with at least 8 counters", n.stat.Name())
	}
	if n.cpuAt != 0 {
		n.sample.CPU = signal.NodeCPUSample{
			At: now, Span: now - n.cpuAt,
			BusyNS:    grown(st.busy, n.cpu.busy) * clockTick,
			StealNS:   grown(st.steal, n.cpu.steal) * clockTick,
			SoftirqNS: grown(st.softirq, n.cpu.softirq) * clockTick,
			IRQNS:     grown(st.irq, n.cpu.irq) * clockTick,
		}
	}
	n.cpu, n.cpuAt = st, now
	return nil
}

// parseProcStat reads the line of all CPUs together: user, nice, system, idle, iowait, irq, softirq, steal; guest time that may follow
// is part of user and nice.
func parseProcStat(text []byte) (st nodeCPU, ok bool) {
	line, _, complete := bytes.Cut(text, []byte{'\n'})
	rest, found := bytes.CutPrefix(line, []byte("cpu "))
	if !complete || !found {
		return nodeCPU{}, false
	}
	var v [8]uint64
	for i := range v {
		rest = bytes.TrimLeft(rest, " ")
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte{' '})
		n, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return nodeCPU{}, false
		}
		v[i] = n
	}
	user, nice, system, irq, softirq, steal := v[0], v[1], v[2], v[5], v[6], v[7]
	return nodeCPU{busy: user + nice + system + irq + softirq + steal, steal: steal, softirq: softirq, irq: irq}, true
}

func (n *node) readPSI(now time.Duration, s *cgroup.Scratch) error {
	if n.psi == nil {
		return nil
	}
	var st cgroup.PSIStat
	err := n.psi.Stat(s, &st)
	if errors.Is(err, cgroup.ErrUnsupported) { // off since boot: it will not come back
		err = n.psi.Close()
		n.psi = nil
		return err
	}
	if err != nil {
		return err
	}
	if n.psiAt != 0 {
		n.sample.PSI = psiSample(now, n.psiAt, &st, &n.psiStat)
	}
	n.psiStat, n.psiAt = st, now
	return nil
}
