package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/perf"
)

// cpiEvery is a sample's length and distance: 600 times as fast as published, and a cap stays for the rest of a phase, which favours the rule.
const cpiEvery = 100 * time.Millisecond

// cpiRule is the rule of CPI² for a service at a load.
type cpiRule struct{ lab.CPI2 }

// cpiMeter reads a group's CPI.
type cpiMeter struct {
	pool  *perf.Pool
	group *perf.Group
	last  perf.Counts
}

func openCPI(s *lab.Lab, group string) (*cpiMeter, error) {
	dir, ok := s.H.Dir(cgroup.PerfEvent, group)
	if !ok {
		return nil, fmt.Errorf("controller perf_event is not mounted: %w", fs.ErrNotExist)
	}
	var cpus []int
	for cpu := range runtime.NumCPU() {
		cpus = append(cpus, cpu)
	}
	m := &cpiMeter{pool: perf.NewPool(perf.Options{CPUs: cpus})}
	var err error
	if m.group, err = m.pool.Open(dir); err != nil {
		return nil, errors.Join(err, m.pool.Close())
	}
	return m, m.group.Read(&m.last)
}

// read is cycles per instruction since the last reading; 0 if nothing ran.
func (m *cpiMeter) read() (float64, error) {
	var now perf.Counts
	err := m.group.Read(&now)
	cycles, instructions := now.Cycles-m.last.Cycles, now.Instructions-m.last.Instructions
	m.last = now
	if instructions == 0 {
		return 0, err
	}
	return float64(cycles) / float64(instructions), err
}

// learnCPI finds out what is normal for a service beside nothing.
func learnCPI(ctx context.Context, s *lab.Lab, group string) (_ *cpiRule, err error) {
	m, err := openCPI(s, group)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.pool.Close()) }()
	const samples = 20
	sum, squares := 0.0, 0.0
	for range samples {
		if err := lab.Sleep(ctx, cpiEvery); err != nil {
			return nil, err
		}
		cpi, err := m.read()
		if err != nil {
			return nil, err
		}
		sum, squares = sum+cpi, squares+cpi*cpi
	}
	mean := sum / samples
	return &cpiRule{lab.CPI2{Mean: mean, SD: math.Sqrt(max(0, squares/samples-mean*mean))}}, nil
}

// run applies the rule until done is closed.
func (r *cpiRule) run(done <-chan struct{}, s *lab.Lab, online, offline string) (err error) {
	m, err := openCPI(s, online)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.pool.Close()) }()
	r.Calm()
	return each(done, cpiEvery, s, online, offline, func(before, now usage) error {
		cpi, err := m.read()
		if err != nil {
			return err
		}
		span := now.at.Sub(before.at).Seconds()
		pods, suspect := (now.online-before.online).Seconds()/span, (now.offline-before.offline).Seconds()/span
		if !r.Step(cpi, pods, suspect)[0] {
			return nil
		}
		const period = 100_000 // us
		quota := lab.CPI2Cap * period
		return s.Tree.Set(offline, cgroup.Quota, cgroup.Value{N: int64(quota), Period: period})
	})
}
