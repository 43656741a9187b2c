//go:build amd64

package rdt

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// cpi2Learns is how many samples say what is normal.
const cpi2Learns = 20

// TestRigLongCPI2: the story of the three hogs with the rule of CPI² beside nothing, the daemon and a static split. The rule is 60 times as fast as
// published, which favours it.
func TestRigLongCPI2(t *testing.T) {
	y := story{name: "three-hogs-cpi2", service: cached, hogs: streams(3), bound: 1.1, more: true}
	o := y.tell(t)
	o.end()
	o.stopHogs()
	o.byCPI2(60, time.Minute)
	o.startHogs(greedy)
	x := o.divide()
	best := lab.Split{Ways: 2, MB: 100, Tried: 1} // that of the story without the rule
	x.set(&best)
	time.Sleep(time.Second)
	from := time.Now()
	time.Sleep(8 * time.Second)
	best.CPI, best.OfflineMBps = o.online.cpi(from, time.Now()), o.moved(from, time.Now())
	o.result.Static = &best
	x.end()
	reportStory(t, &o.result)
}

// TestRigLongCPI2Published: the rule at its published pace, with a load that comes just before a sample, which favours it, too. It is over when all
// pods are capped.
func TestRigLongCPI2Published(t *testing.T) {
	o := newStage(t).castHogs("three-hogs-cpi2-published", 3)
	o.open(cached)
	o.byCPI2(1, 4*time.Minute+15*time.Second)
	reportStory(t, &o.result)
}

// byCPI2 starts the hogs and lets the rule work for a time.
func (o *told) byCPI2(fast float64, length time.Duration) {
	every, sample := time.Duration(float64(lab.CPI2Every)/fast), time.Duration(float64(lab.CPI2Sample)/fast)
	r := &lab.CPI2Outcome{TimesAsFast: fast, Seconds: length.Seconds()}
	o.result.CPI2 = r
	time.Sleep(3 * time.Second) // until the service has its cache
	learn := min(sample, time.Second)
	sum, squares := 0.0, 0.0
	for range cpi2Learns {
		from := time.Now()
		time.Sleep(learn)
		cpi := o.online.cpi(from, time.Now())
		sum, squares = sum+cpi, squares+cpi*cpi
	}
	r.Mean = sum / cpi2Learns
	r.SD = math.Sqrt(max(0, squares/cpi2Learns-r.Mean*r.Mean))
	if o.result.CPIAlone == 0 {
		o.result.CPIAlone = r.Mean
	}
	rule := &lab.CPI2{Mean: r.Mean, SD: r.SD, Hold: lab.CPI2Hold}
	start := time.Now()
	o.startHogs(greedy)
	capped := make([]bool, len(o.hogs))
	for due := start.Add(sample); due.Before(start.Add(length)); due = due.Add(every) {
		time.Sleep(time.Until(due))
		from, now := due.Add(-sample), time.Now()
		var used []float64
		for _, w := range o.offline {
			used = append(used, w.cpus(from, now))
		}
		cpi, cpus := o.online.cpi(from, now), o.online.cpus(from, now)
		for i, want := range rule.Step(cpi, cpus, used...) {
			if want == capped[i] {
				continue
			}
			if capped[i] = want; want {
				r.CapsMS = append(r.CapsMS, float64(time.Since(start).Milliseconds()))
			}
			o.t.Logf("%.1f s: CPI %.3f of %.3f + 2 x %.3f, %.2f CPUs; hogs %.2f: %s capped %v", time.Since(start).Seconds(), cpi, r.Mean, r.SD, cpus, used, o.hogs[i].pod.Name, want)
			o.capCPU(o.hogs[i], want)
		}
	}
	time.Sleep(time.Until(start.Add(length)))
	end := time.Now()
	r.CPIWhole, r.OfflineWholeMBps, r.TimeOverWhole = o.online.cpi(start, end), o.moved(start, end), o.online.beyond(start, end, 1.1*r.Mean)
	_, r.PacedP95 = o.web.p95(int(length.Seconds() / 2))
	for _, h := range o.hogs {
		o.capCPU(h, false)
		h.stop()
	}
	if len(r.CapsMS) == 0 {
		o.t.Fatal("the rule has capped nobody")
	}
	first := start.Add(time.Duration(r.CapsMS[0]) * time.Millisecond)
	o.result.CPIUnprotected = max(o.result.CPIUnprotected, o.online.cpi(start.Add(time.Second), first))
	r.CPI, r.OfflineMBps, r.TimeOver = o.online.cpi(first, end), o.moved(first, end), o.online.beyond(first, end, 1.1*r.Mean)
	o.t.Logf("%+v", *r)
}

// capCPU caps a pod as the rule has it, or no longer.
func (o *told) capCPU(a *actor, capped bool) {
	const period = 100_000 // us
	text := fmt.Sprintf("max %d", period)
	if capped {
		text = fmt.Sprintf("%d %d", int(lab.CPI2Cap*period), period)
	}
	if err := os.WriteFile(filepath.Join(a.group, "cpu.max"), []byte(text), 0); err != nil {
		o.t.Error(err)
	}
}
