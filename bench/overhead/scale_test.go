package main

import (
	"math"
	"testing"
)

func TestGrow(t *testing.T) {
	var rows []costRow
	for _, n := range []int{10, 100, 1000} {
		rows = append(rows, costRow{Containers: n, IntervalMS: 100, CPUPercent: 0.5 + 0.01*float64(n), RSSMiB: 40 + float64(n)/64})
	}
	g, ok := grow(rows, 100)
	if !ok || math.Abs(g.CPUPercentPerContainer-0.01) > 1e-9 || math.Abs(g.CPUPercentBase-0.5) > 1e-9 || math.Abs(g.RSSKiBPerContainer-16) > 1e-6 || g.Residual > 1e-9 {
		t.Errorf("%+v", g)
	}
	if _, ok := grow(rows, 10); ok {
		t.Error("a line through nothing")
	}
}
