package collect

import (
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

const (
	// retryMin and retryMax bound the time between two attempts to open a group that is not there, and lackMax that between two
	// attempts to open a file that a group does not have: failing costs some µs and an allocation, and most of them never come.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
	lackMax  = 10 * time.Minute
	// opensATick bounds of how many containers files are opened in one tick. Opening those of one takes some 100 µs: with a full node
	// at the start of the agent, more than a real-time thread should hold a CPU for.
	opensATick = 16
	// maxNested bounds how many groups below a container are measured as its own; a container can make any number of them.
	maxNested = 256
)

// container is what is kept of a running container.
type container struct {
	key    containerKey
	pod    *pod
	group  string
	victim bool
	phase  uint32
	due    schedule

	// The group, while it is open. id is 0 otherwise.
	id      uint64
	dir     int      // of the group in the cpu hierarchy (O_PATH)
	groups  []uint64 // tracked ids: its own, and those of groups below it
	suspect bool     // a file has said that the group is gone
	retry   backoff
	lack    backoff // of files
	perf    counting
	failing uint8 // readings that went wrong the last time, by bit

	cpu    *cgroup.CPUReader
	memory *cgroup.MemoryReader
	psi    *cgroup.PSIReader
	cpus   *cgroup.CPUSetReader

	quota     cgroup.CPUQuota
	cpuStat   cgroup.CPUStat
	cpuAt     time.Duration // of cpuStat; 0: none
	podStat   cgroup.CPUStat
	podStatAt time.Duration // of podStat; 0: none
	psiStat   cgroup.PSIStat
	psiAt     time.Duration

	slot   ebpf.Slot // 0: none
	wait   ebpf.Wait // cumulative
	seen   ebpf.Wait // wait as of the last sample
	waitAt time.Duration
	walks  uint64
	row    []uint64 // blame by slot, cumulative, as of the last sample; nil if the container never was a victim

	heard   []uint64 // the same as of the last event; nil if there never was one
	heardAt time.Duration

	ownCPUs cpuset.Set             // its own setting, as others made it
	sample  signal.ContainerSample // all but the waits
	totals  *totals
}

// readGroup reads what is due of a container's files.
func (c *Collector) readGroup(now time.Duration, ct *container) {
	if ct.suspect || ct.due.due(partScan, now, c.every[partScan], ct.phase) {
		c.scan(now, ct)
	}
	if ct.id == 0 {
		return
	}
	if ct.lack.due(now) && c.opens < opensATick {
		c.opens++
		c.openFiles(now, ct)
	}
	if ct.slot == 0 && c.giveSlot(now, ct) {
		c.trackGroups(ct)
	}
	c.readQuota(now, ct)
	c.readCPU(now, ct)
	c.readMemory(now, ct)
	c.readPSI(now, ct)
	c.readPerf(now, ct)
	c.readRDT(now, ct)
}

// scan brings what is known of a container's groups up to date: it opens what was not there before, notices that the group has
// gone or is another one now, and tracks the groups below it.
func (c *Collector) scan(now time.Duration, ct *container) {
	if ct.suspect {
		ct.suspect = false
		if id, err := c.o.Hierarchy.ID(ct.group); err != nil || id != ct.id {
			c.closeGroup(ct)
		}
	}
	if ct.id == 0 {
		if err := c.openGroup(ct); err != nil {
			c.fail(signalCPU, ct, err)
			ct.due[partScan] = ct.retry.fail(now, retryMax)
			return
		}
		ct.retry = backoff{}
		c.giveSlot(now, ct)
		// At once: without it a container counts as allowed everywhere, and a cut could take it there.
		_ = c.openCPUSet(ct) // an error comes again and is counted when all files are opened
		ct.lack.soon()
	}
	c.trackGroups(ct)
	c.readCPUs(ct)
}

// openGroup finds the group's id and opens its directory, to be able to ask cheaply whether there are groups below it.
func (c *Collector) openGroup(ct *container) error {
	dir, _ := c.o.Hierarchy.Dir(cgroup.CPU, ct.group)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &cgroup.FileError{Op: "open", Path: dir, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errors.Join(&cgroup.FileError{Op: "stat", Path: dir, Err: err}, unix.Close(fd))
	}
	ct.dir, ct.id = fd, st.Ino
	return nil
}

// closeGroup lets go of the group; the container keeps its slot and what it has counted.
func (c *Collector) closeGroup(ct *container) {
	for _, id := range ct.groups {
		c.untrack(id, ct)
	}
	ct.groups = ct.groups[:0]
	if ct.dir >= 0 {
		c.closed(unix.Close(ct.dir))
	}
	c.closeCPU(ct)
	c.closePerf(ct)
	c.closed(ct.memory.Close(), ct.psi.Close(), ct.cpus.Close())
	ct.memory, ct.psi, ct.cpus = nil, nil, nil
	ct.id, ct.dir, ct.psiAt = 0, -1, 0
	ct.due, ct.lack = schedule{}, backoff{}
}

// openFiles opens the files that are not open yet. Those that the kernel does not offer are no failure; they may come later, when
// somebody enables a controller or turns pressure accounting on.
func (c *Collector) openFiles(now time.Duration, ct *container) {
	lacks := false
	opened := func(kind signalKind, err error) {
		lacks = lacks || err != nil
		if err != nil && !errors.Is(err, cgroup.ErrUnsupported) {
			c.fail(kind, ct, err)
		}
	}
	h := c.o.Hierarchy
	var err error
	if ct.cpu == nil {
		ct.cpu, err = cgroup.OpenCPU(h, ct.group)
		opened(signalCPU, err)
	}
	if p := ct.pod; p.cpu == nil && p.group != "" && p.group != ct.group {
		p.cpu, err = cgroup.OpenCPU(h, p.group)
		opened(signalCPU, err)
	}
	opened(signalCPU, c.openCPUSet(ct))
	if ct.memory == nil && c.mounted(cgroup.Memory) {
		ct.memory, err = cgroup.OpenMemory(h, ct.group)
		opened(signalMemory, err)
	}
	if ct.psi == nil && c.mounted(cgroup.Pressure) {
		ct.psi, err = cgroup.OpenPSI(h, ct.group)
		opened(signalPSI, err)
	}
	if lacks {
		ct.lack.fail(now, lackMax)
	} else {
		ct.lack = backoff{}
	}
}

func (c *Collector) openCPUSet(ct *container) (err error) {
	if ct.cpus == nil && c.mounted(cgroup.CPUSet) {
		ct.cpus, err = cgroup.OpenCPUSet(c.o.Hierarchy, ct.group)
		ct.sample.NoCPUSet = errors.Is(err, cgroup.ErrUnsupported)
	}
	return err
}

func (c *Collector) mounted(controller cgroup.Controller) bool {
	_, _, ok := c.o.Hierarchy.Mount(controller)
	return ok
}

// broken takes an error of reading a file of the container's own group, and reports whether the file is gone and must be closed.
// On v1 a group can be gone in one hierarchy and still be there in another.
func (c *Collector) broken(kind signalKind, ct *container, err error) (gone bool) {
	if errors.Is(err, cgroup.ErrGone) {
		ct.suspect = true
		ct.lack.soon()
		return true
	}
	c.fail(kind, ct, err)
	return false
}

func (c *Collector) closeCPU(ct *container) {
	c.closed(ct.cpu.Close())
	ct.cpu, ct.cpuAt, ct.podStatAt, ct.quota = nil, 0, 0, cgroup.CPUQuota{}
}

// readQuota reads the quotas of container and pod.
func (c *Collector) readQuota(now time.Duration, ct *container) {
	if ct.cpu == nil || !ct.due.due(partQuota, now, c.interval(partQuota, ct), ct.phase) {
		return
	}
	if err := ct.cpu.Quota(&c.scratch, &ct.quota); err != nil {
		if c.broken(signalCPU, ct, err) {
			c.closeCPU(ct)
		}
		return
	}
	p := ct.pod
	if p.cpu == nil || p.quotaAt != 0 && now-p.quotaAt < c.every[partQuota] {
		return
	}
	if err := p.cpu.Quota(&c.scratch, &p.quota); err != nil {
		c.podBroken(ct, err)
		return
	}
	p.quotaAt = now
}

// readCPU reads CPU time and throttling: at each tick if a quota may be what an online container suffers from.
func (c *Collector) readCPU(now time.Duration, ct *container) {
	p := ct.pod
	podLimited := p.cpu != nil && p.quota.Limited()
	if ct.cpu == nil || !(ct.victim && (podLimited || ct.quota.Limited())) && !ct.due.due(partCPU, now, c.every[partCPU], ct.phase) {
		return
	}
	var st cgroup.CPUStat
	if err := ct.cpu.Stat(&c.scratch, &st); err != nil {
		if c.broken(signalCPU, ct, err) {
			c.closeCPU(ct)
		}
		return
	}
	podOK := podLimited && c.readPodCPU(now, ct)
	ct.works(signalCPU)

	if ct.cpuAt != 0 {
		d := cpuDelta(st, ct.cpuStat)
		ct.totals.add(d)
		s := &ct.sample.CPU
		*s = signal.CPUSample{
			At: now, Span: now - ct.cpuAt, UsageNS: d.UsageNS,
			Periods: d.Periods, ThrottledPeriods: d.ThrottledPeriods, ThrottledNS: d.ThrottledNS,
		}
		// When the pod's quota is used up, the pod's group counts it and the container's does not.
		if podOK && ct.podStatAt != 0 {
			if pd := cpuDelta(p.stat, ct.podStat); pd.ThrottledPeriods > d.ThrottledPeriods {
				s.Periods, s.ThrottledPeriods, s.ThrottledNS = pd.Periods, pd.ThrottledPeriods, pd.ThrottledNS
			}
		}
		q := ct.quota
		if podLimited && p.quota.CPUs() < q.CPUs() {
			q = p.quota
		}
		s.QuotaUS = -1
		if q.Limited() {
			s.QuotaUS, s.PeriodUS = q.QuotaUS, q.PeriodUS
		}
	}
	ct.cpuStat, ct.cpuAt = st, now
	if podOK {
		ct.podStat, ct.podStatAt = p.stat, now
	} else {
		ct.podStatAt = 0
	}
}

// readPodCPU reads the counters of the container's pod, once a tick however many containers it has.
func (c *Collector) readPodCPU(now time.Duration, ct *container) bool {
	p := ct.pod
	if p.statAt == now {
		return true
	}
	if err := p.cpu.Stat(&c.scratch, &p.stat); err != nil {
		c.podBroken(ct, err)
		return false
	}
	p.statAt = now
	return true
}

// podBroken is broken for the files of the pod's group.
func (c *Collector) podBroken(ct *container, err error) {
	if errors.Is(err, cgroup.ErrGone) {
		ct.pod.close(c)
		ct.lack.soon()
		return
	}
	c.fail(signalCPU, ct, err)
}

// cpuDelta is what the counters have grown by. A v1 counter can be set back by writing to it; then nothing is known.
func cpuDelta(now, before cgroup.CPUStat) cgroup.CPUStat {
	return cgroup.CPUStat{
		UsageNS:          grown(wholeMicros(now.UsageNS), wholeMicros(before.UsageNS)),
		Periods:          grown(now.Periods, before.Periods),
		ThrottledPeriods: grown(now.ThrottledPeriods, before.ThrottledPeriods),
		ThrottledNS:      grown(wholeMicros(now.ThrottledNS), wholeMicros(before.ThrottledNS)),
	}
}

func grown(now, before uint64) uint64 { return now - min(now, before) }

func (t *totals) add(d cgroup.CPUStat) {
	t.hasCPU = true
	t.cpu.UsageNS += d.UsageNS
	t.cpu.Periods += d.Periods
	t.cpu.ThrottledPeriods += d.ThrottledPeriods
	t.cpu.ThrottledNS += d.ThrottledNS
}

func (c *Collector) readMemory(now time.Duration, ct *container) {
	if ct.memory == nil || !ct.due.due(partMemory, now, c.every[partMemory], ct.phase) {
		return
	}
	var st cgroup.MemoryStat
	if err := ct.memory.Stat(&c.scratch, &st); err != nil {
		if c.broken(signalMemory, ct, err) {
			c.closed(ct.memory.Close())
			ct.memory = nil
		}
		return
	}
	ct.works(signalMemory)
	ct.sample.Memory = signal.MemorySample{At: now, Current: st.Current, WorkingSet: st.WorkingSet()}
}

func (c *Collector) readPSI(now time.Duration, ct *container) {
	if ct.psi == nil || !ct.due.due(partPSI, now, c.interval(partPSI, ct), ct.phase) {
		return
	}
	var st cgroup.PSIStat
	if err := ct.psi.Stat(&c.scratch, &st); err != nil {
		// The files also go when someone turns accounting off for the group. A later scan opens them again.
		if errors.Is(err, cgroup.ErrUnsupported) || c.broken(signalPSI, ct, err) {
			c.closed(ct.psi.Close())
			ct.psi, ct.psiAt = nil, 0
		}
		return
	}
	ct.works(signalPSI)
	if ct.psiAt != 0 {
		ct.sample.PSI = psiSample(now, ct.psiAt, &st, &ct.psiStat)
	}
	ct.psiStat, ct.psiAt = st, now
}

func psiSample(now, since time.Duration, st, before *cgroup.PSIStat) signal.PSISample {
	return signal.PSISample{
		At: now, Span: now - since,
		CPU:    stall(st.CPU, before.CPU),
		Memory: stall(st.Memory, before.Memory),
		IO:     stall(st.IO, before.IO),
	}
}

func stall(now, before cgroup.Stall) signal.Pressure {
	return signal.Pressure{SomeUS: grown(now.SomeUS, before.SomeUS), FullUS: grown(now.FullUS, before.FullUS)}
}

// readCPUs reads where the container may run by the will of others.
func (c *Collector) readCPUs(ct *container) {
	c.readOwnCPUs(ct)
	ct.sample.CPUs = ct.ownCPUs
	if !c.o.Hierarchy.V2(cgroup.CPUSet) {
		return // a group of v1 has no CPUs that the groups above it have not
	}
	above := c.cpusAbove(cmp.Or(ct.pod.group, ct.group))
	both := ct.ownCPUs.And(above)
	switch all := c.node.sample.Topology.Set(); {
	case above.Empty() || ct.ownCPUs.Empty() && all.SubsetOf(above): // no narrower than the machine
	case both.Empty():
		ct.sample.CPUs = above // as the kernel does
	default:
		ct.sample.CPUs = both
	}
}

// cpusAbove reads where the group above a pod's may run; empty: not known. The agent writes no cpuset up there.
func (c *Collector) cpusAbove(group string) (cpus cpuset.Set) {
	parent := path.Dir(group)
	r, known := c.above[parent]
	if !known {
		r, _ = cgroup.OpenEffectiveCPUs(c.o.Hierarchy, parent) // nil without a cpuset there
		c.above[parent] = r
	}
	if r == nil {
		return cpus
	}
	if err := r.CPUs(&c.scratch, &cpus); err != nil {
		c.closed(r.Close())
		delete(c.above, parent)
	}
	return cpus
}

func (c *Collector) readOwnCPUs(ct *container) {
	if c.o.OriginalCPUs != nil {
		if cpus, held := c.o.OriginalCPUs(ct.group); held {
			ct.ownCPUs = cpus
			return
		}
	}
	if ct.cpus == nil {
		return
	}
	if err := ct.cpus.CPUs(&c.scratch, &ct.ownCPUs); err != nil && c.broken(signalCPU, ct, err) {
		c.closed(ct.cpus.Close())
		ct.cpus = nil
	}
}

// trackGroups tracks the group and those below it, which a container makes that runs systemd, and lets go of those that have ended.
// Groups that are containers of their own are left to them.
func (c *Collector) trackGroups(ct *container) {
	if ct.slot == 0 {
		return
	}
	c.nested = append(c.nested[:0], ct.id)
	if c.mayHaveChildren(ct) {
		err := c.o.Hierarchy.Walk(cgroup.CPU, ct.group, func(group string) error {
			if group == ct.group {
				return nil
			}
			if c.byGroup[group] != nil {
				return fs.SkipDir
			}
			if id, err := c.o.Hierarchy.ID(group); err == nil {
				c.nested = append(c.nested, id)
			}
			if len(c.nested) > maxNested {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.SkipAll) {
			c.fail(signalWait, ct, err)
		}
	}
	slices.Sort(c.nested)
	for i := len(ct.groups) - 1; i >= 0; i-- {
		if id := ct.groups[i]; !has(c.nested, id) {
			c.untrack(id, ct)
			ct.groups = slices.Delete(ct.groups, i, i+1)
		}
	}
	for _, id := range c.nested {
		if c.owners[id] != ct {
			c.track(id, ct)
		}
	}
}

func has(sorted []uint64, id uint64) bool {
	_, ok := slices.BinarySearch(sorted, id)
	return ok
}

// mayHaveChildren asks for the number of links, which for a directory of cgroupfs is 2 and the number of directories in it. It does
// not allocate, unlike a look at the names.
func (c *Collector) mayHaveChildren(ct *container) bool {
	var st unix.Stat_t
	return unix.Fstat(ct.dir, &st) != nil || st.Nlink != 2
}

// track makes a group's tasks count for the container. The group may have counted for a container above it so far.
func (c *Collector) track(id uint64, ct *container) {
	if other := c.owners[id]; other != nil && other != ct {
		other.groups = slices.DeleteFunc(other.groups, func(g uint64) bool { return g == id })
	}
	err := c.tracer.Track(id, ct.slot, ct.victim)
	if ct.victim && ct.row == nil {
		ct.row = make([]uint64, len(c.row))
	}
	if err != nil {
		c.fail(signalWait, ct, err)
		if !errors.Is(err, ebpf.ErrTooManyVictims) { // then it is tracked all the same
			return
		}
	} else {
		ct.works(signalWait)
	}
	c.owners[id] = ct
	if !slices.Contains(ct.groups, id) {
		ct.groups = append(ct.groups, id)
	}
}

// untrack does not change ct.groups.
func (c *Collector) untrack(id uint64, ct *container) {
	if c.owners[id] != ct {
		return
	}
	delete(c.owners, id)
	if err := c.tracer.Untrack(id); err != nil {
		c.fail(signalWait, ct, err)
	}
}

// giveSlot gives the container a slot, if one is free and its group is not measured as another container's.
func (c *Collector) giveSlot(now time.Duration, ct *container) bool {
	if c.tracer == nil || ct.slot != 0 || !c.measures(ct) {
		return false
	}
	slot, ok := c.slots.take(ct)
	if !ok {
		return false
	}
	ct.slot, ct.waitAt = slot, now
	ct.totals.measured = true
	return true
}

// measures reports whether the container is the one that its group's waits are counted for. Of two containers in one group it is the
// one that came first, while it lasts.
func (c *Collector) measures(ct *container) bool {
	if c.byGroup[ct.group] == nil {
		c.byGroup[ct.group] = ct
	}
	return c.byGroup[ct.group] == ct
}
