package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/online"
)

func someOptions() options {
	return options{
		Seed: 1, Settle: time.Second, Window: time.Second,
		services: online.Kinds[:1], levels: levels[:1], offlines: []offline{{name: "cpu"}, {name: "hdd", disk: true}}, protections: []protection{{name: none}, {name: theAgent}},
	}
}

// seen is a phase with windows of the given p99.
func seen(work, protection string, perSecond float64, p99 ...float64) *phase {
	p := &phase{Online: "nginx", Load: "low", Offline: work, Protection: protection, Work: perSecond}
	for _, v := range p99 {
		p.Windows = append(p.Windows, window{P99: v, OnlineCPU: 0.5, LoadCPU: 0.5, OfflineCPU: 0.5})
	}
	return p
}

func TestGather(t *testing.T) {
	noisy := seen("cpu", theAgent, 1, 1e6)
	noisy.Windows[0].Noisy = true
	r := gather(someOptions(), []*phase{
		seen("", alone, 0, 90, 100, 110), seen("", spinner, 0, 50),
		seen("cpu", none, 10, 1000, 1000), seen("cpu", theAgent, 8, 150, 250, 200), noisy,
		seen("hdd", none, 100, 500), seen("hdd", theAgent, 0, 800),
	}, nil, 1)
	if r.Thrown != 1 || r.Windows != 12 || r.TooNoisy {
		t.Errorf("thrown %d of %d, too noisy %v", r.Thrown, r.Windows, r.TooNoisy)
	}
	by := map[string]pair{}
	for _, p := range r.Pairs {
		by[p.Offline+" "+p.Protection] = p
	}
	if p := by["cpu "+theAgent]; p.P99 != 200 || p.Ratio != 2 || p.Kept != 0.8 || p.Windows != 3 || p.Thrown != 1 || p.TooNoisy {
		t.Errorf("the agent beside cpu: %+v", p)
	}
	if p := by["hdd "+theAgent]; p.Ratio != 8 || p.Kept != keptFloor {
		t.Errorf("the agent beside hdd: %+v", p)
	}
	s := r.Summary[theAgent]
	if math.Abs(s.Ratio-4) > 1e-9 || s.Worst != 8 || s.Over2 != 1 || s.Pairs != 2 || s.WorstPair != "nginx low x hdd" {
		t.Errorf("summary %+v, want the geometric mean of 2 and 8", s)
	}
	if s.RatioLow > s.Ratio || s.RatioHigh < s.Ratio {
		t.Errorf("the interval %v to %v does not hold %v", s.RatioLow, s.RatioHigh, s.Ratio)
	}
	if s := r.WithoutDisk[theAgent]; s.Ratio != 2 || s.Pairs != 1 {
		t.Errorf("without disk writers %+v", s)
	}
	if len(r.References) != 1 || r.References[0].AloneP99 != 100 || r.References[0].SpinnerP99 != 50 {
		t.Errorf("references %+v", r.References)
	}
}

// TestNoisyRunsSaySo has more disturbed windows than a run may have.
func TestNoisyRunsSaySo(t *testing.T) {
	p := seen("cpu", theAgent, 1, 100, 100, 100)
	p.Windows[0].Noisy, p.Windows[1].Noisy = true, true
	r := gather(someOptions(), []*phase{seen("", alone, 0, 100), p}, nil, 1)
	if !r.TooNoisy || !r.Pairs[0].TooNoisy || len(r.Summary) > 0 {
		t.Errorf("too noisy %v, pair %+v, summary %v", r.TooNoisy, r.Pairs[0], r.Summary)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("what cannot be told cannot be written: %v", err)
	}
	var out bytes.Buffer
	r.print(&out, someOptions())
	if !strings.Contains(out.String(), "TOO NOISY TO TELL") {
		t.Errorf("the report does not say so:\n%s", out.String())
	}
}

func TestPlotsAreWellFormed(t *testing.T) {
	o := someOptions()
	r := gather(o, []*phase{seen("", alone, 0, 100), seen("cpu", none, 10, 1000), seen("cpu", theAgent, 8, 200)}, nil, 1)
	for name, text := range map[string]string{"pareto": pareto(r, o), "heat": heat(r, o)} {
		dec := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || !strings.Contains(text, theAgent) {
			t.Errorf("%s: %s", name, text)
		}
	}
}

func TestBootstrap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var v []float64
	for range 200 {
		v = append(v, 10+rng.NormFloat64())
	}
	ci := bootstrap(rng, func(draw func([]float64) []float64) float64 { return median(draw(v)) })
	// The standard error of a median of 200 normal values is 1.25 / sqrt(200).
	if ci.Low > ci.Value || ci.High < ci.Value || ci.High-ci.Low < 0.15 || ci.High-ci.Low > 0.7 {
		t.Errorf("%+v", ci)
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(geomean(nil)) {
		t.Error("nothing has a median")
	}
}

func TestParseStress(t *testing.T) {
	const report = `stress-ng: info:  [7] dispatching hogs: 2 cpu
stress-ng: metrc: [7] stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s
stress-ng: metrc: [7]                           (secs)    (secs)    (secs)   (real time) (usr+sys time)
stress-ng: metrc: [7] cpu                 543      1.01      0.30      0.01       535.55        1724.90
`
	if got, err := parseStress([]byte(report), "cpu"); err != nil || got != 535.55 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseStress([]byte("stress-ng: error: no such thing\n"), "cpu"); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("error %v does not say what stress-ng said", err)
	}
}

func TestChoose(t *testing.T) {
	name := func(l level) string { return l.name }
	if got, err := choose("load", levels, name, nil, []string{"high"}); err != nil || len(got) != 1 || got[0].name != "high" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := choose("load", levels, name, nil, nil); err != nil || len(got) != len(levels) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := choose("load", levels, name, []string{"huge"}, nil); err == nil || err.Error() != `no load "huge"; there are low, middle, high` {
		t.Errorf("%v", err)
	}
}

func TestOnlyTheChosenPairsAreMeasured(t *testing.T) {
	o := someOptions()
	all := o.blocks()
	if want := len(o.services) * len(o.levels); len(all) != want || len(all[0].cells) != len(o.offlines)*len(o.protections) {
		t.Fatalf("%d blocks of %d cells, want %d of everything", len(all), len(all[0].cells), want)
	}
	one := pairKey{o.services[0].Name, o.levels[0].name, o.offlines[0].name}
	o.only = map[pairKey]bool{one: true}
	some := o.blocks()
	if len(some) != 1 || len(some[0].cells) != len(o.protections) || some[0].service != one.online || some[0].level.name != one.load || some[0].cells[0].offline.name != one.offline {
		t.Errorf("%+v, want only %+v", some, one)
	}
	o.only[one] = false
	if left := o.round(); left != 0 {
		t.Errorf("nothing takes %v", left)
	}
}
