package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"

	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Setting is something that can be set on a group, whatever the files for it are called.
type Setting uint8

const (
	Idle   Setting = iota // cpu.idle
	Weight                // v2 cpu.weight, v1 cpu.shares
	CPUs                  // cpuset.cpus
	Quota                 // v2 cpu.max, v1 cpu.cfs_quota_us and cpu.cfs_period_us
	Burst                 // v2 cpu.max.burst, v1 cpu.cfs_burst_us
	Freeze                // v2 cgroup.freeze, v1 freezer.state
	settings
)

// Value is what a setting is set to. Which field counts depends on the setting.
type Value struct {
	N      int64      // Quota: µs per period, -1 for no limit; Weight: in the unit of the file, 0 for a group with cpu.idle; Burst: µs; Idle, Freeze: 0 or 1
	Period int64      // Quota: µs
	CPUs   cpuset.Set // CPUs
}

// layout is the files of a setting. The first is the one that is written; what is read is all of them in turn.
type layout struct {
	controller Controller
	files      []string
	optional   bool // the last file may be missing
}

// The freezer of v1 shows in freezer.state whether a parent is frozen too; what was set on the group itself is in
// freezer.self_freezing. A weight cannot be told from the text of its file alone: with cpu.idle the kernel shows 0, 1 or 3 there.
var (
	layoutsV1 = [settings]layout{
		Idle:   {CPU, []string{"cpu.idle"}, false},
		Weight: {CPU, []string{"cpu.shares", "cpu.idle"}, true},
		CPUs:   {CPUSet, []string{"cpuset.cpus"}, false},
		Quota:  {CPU, []string{"cpu.cfs_quota_us", "cpu.cfs_period_us"}, false},
		Burst:  {CPU, []string{"cpu.cfs_burst_us"}, false},
		Freeze: {Freezer, []string{"freezer.state", "freezer.self_freezing"}, false},
	}
	layoutsV2 = [settings]layout{
		Idle:   {CPU, []string{"cpu.idle"}, false},
		Weight: {CPU, []string{"cpu.weight", "cpu.idle"}, true},
		CPUs:   {CPUSet, []string{"cpuset.cpus"}, false},
		Quota:  {CPU, []string{"cpu.max"}, false},
		Burst:  {CPU, []string{"cpu.max.burst"}, false},
		Freeze: {Freezer, []string{"cgroup.freeze"}, false},
	}
)

// Controller is the controller that a setting belongs to.
func (s Setting) Controller() Controller { return layoutsV2[s].controller }

// DefaultWeight is what the kernel gives a new group, and one that stops being idle.
func DefaultWeight(v2 bool) int64 {
	if v2 {
		return 100
	}
	return 1024
}

// The bounds of cpu.shares, which the kernel enforces by clamping.
const minShares, maxShares = 2, 262144

// WeightToShares converts a weight of cgroup v2 (1 to 10000, default 100) to the most cpu.shares of v1 (2 to 262144, default
// 1024) that container runtimes do not convert to a larger weight.
func WeightToShares(weight int64) int64 {
	return minShares - 1 + int64(sort.Search(maxShares-minShares+1, func(i int) bool {
		return int64(cgroup2.ConvertCPUSharesToCgroupV2Value(uint64(minShares+i))) > weight
	}))
}

// Format is the text of a value of setting s, the same on v1 and v2: "1", "0-3", "50000 100000", "max 100000".
func (s Setting) Format(v Value) string { return string(s.Append(nil, v)) }

// Append is Format for who has a buffer.
func (s Setting) Append(b []byte, v Value) []byte {
	switch s {
	case CPUs:
		return append(b, v.CPUs.String()...)
	case Quota:
		if v.N < 0 {
			b = append(b, "max"...)
		} else {
			b = strconv.AppendInt(b, v.N, 10)
		}
		return strconv.AppendInt(append(b, ' '), v.Period, 10)
	default:
		return strconv.AppendInt(b, v.N, 10)
	}
}

// ParseValue reads what Format made, with or without a newline.
func (s Setting) ParseValue(text string) (Value, error) {
	switch s {
	case CPUs:
		set, err := cpuset.Parse(text)
		return Value{CPUs: set}, err
	case Quota:
		quota, period, _ := strings.Cut(strings.TrimSpace(text), " ")
		v := Value{N: -1}
		var err error
		if v.Period, err = parseNumber(period); err == nil && quota != "max" {
			v.N, err = parseNumber(quota)
		}
		return v, err
	default:
		n, err := parseNumber(strings.TrimSpace(text))
		return Value{N: n}, err
	}
}

func parseNumber(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", text)
	}
	return n, nil
}

// Knob is one setting of one group with its files open. It is not for concurrent use.
type Knob struct {
	setting Setting
	v2      bool
	files   [2]RW
}

// OpenKnob opens the files of a setting in a group that was opened in the directory of the setting's controller. The error
// matches ErrGone if the group has vanished and fs.ErrNotExist if the kernel does not offer the setting there.
func OpenKnob(g Group, s Setting, v2 bool) (*Knob, error) {
	l := layoutsV1[s]
	if v2 {
		l = layoutsV2[s]
	}
	k := &Knob{setting: s, v2: v2}
	for i, name := range l.files {
		f, err := g.Open(name)
		if err != nil {
			if l.optional && i > 0 && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrGone) {
				continue
			}
			k.Close()
			return nil, err
		}
		k.files[i] = f
	}
	return k, nil
}

// Close closes the files.
func (k *Knob) Close() {
	for i, f := range k.files {
		if f != nil {
			f.Close()
			k.files[i] = nil
		}
	}
}

// Read reads the texts of the setting's files into buf, one after the other. Two reads that are equal mean the same value.
func (k *Knob) Read(buf []byte) ([]byte, error) {
	n := 0
	for _, f := range k.files {
		if f == nil {
			continue
		}
		part, err := f.ReadInto(buf[n:])
		if err != nil {
			return nil, err
		}
		n += len(part)
	}
	return buf[:n], nil
}

// Parse tells the value from what Read returned.
func (k *Knob) Parse(raw []byte) (Value, error) {
	first, second, _ := bytes.Cut(raw, []byte("\n"))
	switch {
	case k.setting == Quota && !k.v2:
		quota, err := parseNumber(string(first))
		if err != nil {
			return Value{}, err
		}
		period, err := parseNumber(string(bytes.TrimSpace(second)))
		return Value{N: quota, Period: period}, err
	case k.setting == Weight && string(bytes.TrimSpace(second)) == "1":
		return Value{}, nil
	case k.setting == Freeze && !k.v2:
		return k.setting.ParseValue(string(second))
	}
	return k.setting.ParseValue(string(first))
}

// Between lists the values that the setting has on its way from one value to another, if it takes more than one write.
func (k *Knob) Between(from, to Value) []Value {
	if k.setting == Quota && !k.v2 && from.Period != to.Period {
		// With another period, the ratio of the old quota could break the rule that a child's may not exceed its parent's;
		// no limit is allowed everywhere.
		lifted := []Value{{N: -1, Period: from.Period}, {N: -1, Period: to.Period}}
		if to.N < 0 {
			return lifted[:1]
		}
		return lifted
	}
	return nil
}

// Write sets the value; from is what the setting is now.
func (k *Knob) Write(from, to Value) error {
	var buf [64]byte
	switch {
	case k.setting == Quota && !k.v2:
		number := func(f RW, n int64) error { return f.WriteText(strconv.AppendInt(buf[:0], n, 10)) }
		quota, period := k.files[0], k.files[1]
		if from.Period != to.Period {
			if from.N >= 0 {
				if err := number(quota, -1); err != nil {
					return err
				}
			}
			if err := number(period, to.Period); err != nil {
				return err
			}
			if to.N < 0 {
				return nil
			}
		}
		return number(quota, to.N)
	case k.setting == Freeze && !k.v2:
		if to.N != 0 {
			return k.files[0].WriteText([]byte("FROZEN"))
		}
		return k.files[0].WriteText([]byte("THAWED"))
	}
	// The newline is for the empty list of CPUs: without it there would be nothing to write.
	return k.files[0].WriteText(append(k.setting.Append(buf[:0], to), '\n'))
}
