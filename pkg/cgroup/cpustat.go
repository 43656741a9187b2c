package cgroup

import (
	"bytes"
	"errors"
	"math"
)

// CPUStat is what a group and the groups below it have used of the CPU. All fields only grow while the group exists.
type CPUStat struct {
	UsageNS          uint64
	Periods          uint64 // quota periods that began with runnable tasks; 0 without a quota
	ThrottledPeriods uint64 // of these, the ones in which the quota was used up
	ThrottledNS      uint64 // time spent throttled, summed over CPUs
}

// CPUQuota is a limit on CPU time: QuotaUS in each period of PeriodUS. Without a limit they are -1 and 0.
type CPUQuota struct {
	QuotaUS, PeriodUS int64
}

// Limited reports whether there is a limit.
func (q CPUQuota) Limited() bool { return q.QuotaUS >= 0 && q.PeriodUS > 0 }

// CPUs is the limit as a number of CPUs; +Inf without a limit.
func (q CPUQuota) CPUs() float64 {
	if !q.Limited() {
		return math.Inf(1)
	}
	return float64(q.QuotaUS) / float64(q.PeriodUS)
}

// CPUReader reads a group's CPU time and quota from files that it keeps open. It is not for concurrent use.
type CPUReader struct {
	v2    bool
	usage *File // v1 only: cpuacct.usage
	stat  *File
	quota *File // cpu.max, or cpu.cfs_quota_us; nil if the kernel has no quotas for this group
	every *File // v1 only: cpu.cfs_period_us; nil with quota
}

// OpenCPU opens the files of a group. The error matches ErrGone if there is no such group, and ErrUnsupported if the kernel does
// not account CPU time for it.
func OpenCPU(h *Hierarchy, group string) (*CPUReader, error) {
	dir, err := h.dirOf(CPU, group)
	if err != nil {
		return nil, err
	}
	r := &CPUReader{v2: h.V2(CPU)}
	if r.v2 {
		err = r.openV2(dir)
	} else {
		var acct string
		if acct, err = h.dirOf(CPUAcct, group); err == nil {
			err = r.openV1(dir, acct)
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *CPUReader) openV1(dir, acct string) (err error) {
	if r.usage, err = openStat(acct, "cpuacct.usage"); err != nil {
		return err
	}
	if r.stat, err = openOptional(dir, "cpu.stat"); err != nil { // nil: a kernel without CFS_BANDWIDTH
		return err
	}
	if r.quota, err = openOptional(dir, "cpu.cfs_quota_us"); err != nil || r.quota == nil {
		return err
	}
	r.every, err = openStat(dir, "cpu.cfs_period_us")
	return err
}

func (r *CPUReader) openV2(dir string) (err error) {
	if r.stat, err = openStat(dir, "cpu.stat"); err != nil {
		return err
	}
	r.quota, err = openOptional(dir, "cpu.max") // nil: the root, or a group whose parent does not pass the cpu controller on
	return err
}

// Stat fills into. An error that matches ErrGone tells that the group has vanished; into is not changed by any error.
func (r *CPUReader) Stat(s *Scratch, into *CPUStat) error {
	var st CPUStat
	if r.usage != nil {
		text, err := s.read(r.usage)
		if err != nil {
			return err
		}
		ns, ok := parseUint(text)
		if !ok {
			return parseError(r.usage, "nanoseconds", text)
		}
		st.UsageNS = ns
	}
	if r.stat != nil {
		text, err := s.read(r.stat)
		if err != nil {
			return err
		}
		// Not through a variable: an indirect call would move st to the heap.
		var ok bool
		if r.v2 {
			ok = parseCPUStatV2(text, &st)
		} else {
			ok = parseCPUStatV1(text, &st)
		}
		if !ok {
			return parseError(r.stat, "the counters of cpu.stat", text)
		}
	}
	*into = st
	return nil
}

// Quota fills into. Errors are as in Stat.
func (r *CPUReader) Quota(s *Scratch, into *CPUQuota) error {
	if r.quota == nil {
		*into = CPUQuota{QuotaUS: -1}
		return nil
	}
	text, err := s.read(r.quota)
	if err != nil {
		return err
	}
	if r.v2 {
		q, ok := parseCPUMax(text)
		if !ok {
			return parseError(r.quota, "quota or max, and period", text)
		}
		*into = q
		return nil
	}
	quota, ok := parseInt(text)
	if !ok {
		return parseError(r.quota, "microseconds or -1", text)
	}
	if quota < 0 {
		*into = CPUQuota{QuotaUS: -1}
		return nil
	}
	if text, err = s.read(r.every); err != nil {
		return err
	}
	period, ok := parseInt(text)
	if !ok || period < 0 {
		return parseError(r.every, "microseconds", text)
	}
	*into = CPUQuota{QuotaUS: quota, PeriodUS: period}
	return nil
}

// Close closes the files. It may be called twice, and on nil.
func (r *CPUReader) Close() error {
	if r == nil {
		return nil
	}
	return errors.Join(r.usage.Close(), r.stat.Close(), r.quota.Close(), r.every.Close())
}

// parseCPUStatV1 reads the v1 cpu.stat, which has times in nanoseconds and no usage.
func parseCPUStatV1(text []byte, into *CPUStat) bool {
	seen := false
	for len(text) > 0 {
		var line []byte
		line, text = nextLine(text)
		key, value, _ := bytes.Cut(line, []byte{' '})
		ok := true
		switch string(key) {
		case "nr_periods":
			into.Periods, ok = parseUint(value)
			seen = true
		case "nr_throttled":
			into.ThrottledPeriods, ok = parseUint(value)
		case "throttled_time":
			into.ThrottledNS, ok = parseUint(value)
		}
		if !ok {
			return false
		}
	}
	return seen
}

// parseCPUStatV2 reads the v2 cpu.stat, which has times in microseconds, and no quota counters where the cpu controller is not
// enabled.
func parseCPUStatV2(text []byte, into *CPUStat) bool {
	seen := false
	for len(text) > 0 {
		var line []byte
		line, text = nextLine(text)
		key, value, _ := bytes.Cut(line, []byte{' '})
		ok := true
		switch string(key) {
		case "usage_usec":
			into.UsageNS, ok = parseMicros(value)
			seen = true
		case "nr_periods":
			into.Periods, ok = parseUint(value)
		case "nr_throttled":
			into.ThrottledPeriods, ok = parseUint(value)
		case "throttled_usec":
			into.ThrottledNS, ok = parseMicros(value)
		}
		if !ok {
			return false
		}
	}
	return seen
}

// parseMicros reads microseconds and gives nanoseconds.
func parseMicros(text []byte) (ns uint64, ok bool) {
	us, ok := parseUint(text)
	if !ok || us > math.MaxUint64/1000 {
		return 0, false
	}
	return us * 1000, true
}

// parseCPUMax reads the v2 cpu.max: "max 100000" or "50000 100000".
func parseCPUMax(text []byte) (CPUQuota, bool) {
	first, second, _ := bytes.Cut(bytes.TrimSpace(text), []byte{' '})
	period, ok := parseInt(second)
	if !ok || period <= 0 {
		return CPUQuota{}, false
	}
	if string(first) == "max" {
		return CPUQuota{QuotaUS: -1}, true
	}
	quota, ok := parseInt(first)
	if !ok || quota < 0 {
		return CPUQuota{}, false
	}
	return CPUQuota{QuotaUS: quota, PeriodUS: period}, true
}
