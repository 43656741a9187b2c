//go:build amd64

package rdt

import (
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
)

// shift is how long each part of the story of the shifting load takes.
const shift = 30 * time.Second

// TestRigLongShifting: a service that waits for memory, one flood all the time, two more half of the time. A limit that is right for three
// is far too much for one; what the daemon gives back in between is what a static split cannot.
func TestRigLongShifting(t *testing.T) {
	s := newStage(t)
	s.setPolicy("  rdt: {bandwidth: {totalMBps: 20000}}\n")
	o := s.castHogs("shifting", 3)
	o.open(missing)
	s.run()
	s.learned()
	r, now := &o.result, time.Now()
	quiet := now.Add(-3 * time.Second)
	r.CPIAlone = o.online.mean(quiet, now)
	r.CPIBeside, r.TimeOverAlone = r.CPIAlone, o.online.beyond(quiet, now, 1.1*r.CPIAlone)
	o.hogs[0].start(t, "hog", "-profile", flood)
	for _, h := range o.hogs[1:] {
		h.start(t, "hog", "-phases", flood+"@"+shift.String()+" idle@"+shift.String())
	}
	start := time.Now()
	time.Sleep(4 * shift)
	end := time.Now()
	took, over := o.online.recovered(start, end, 1.1*r.CPIAlone)
	r.RecoveryMS, r.TimeOverObjective = float64(took.Milliseconds()), over
	r.CPIAgent, r.OfflineMBps = o.online.mean(start, end), o.moved(start, end)
	t.Logf("%+v", *r)
	s.logNotes()
	o.end()

	// A static split has no memory, so it is enough to see it in each part for a while.
	o.stopHogs()
	o.hogs[0].start(t, "hog", "-profile", flood)
	x := o.divide()
	tried := []lab.Split{}
	for _, mb := range []int{100, 80, 60, 50, 40, 30, 20, 10} {
		tried = append(tried, lab.Split{Ways: 2, MB: mb})
	}
	part := func() {
		for i := range tried {
			x.set(&tried[i])
			time.Sleep(500 * time.Millisecond)
			from := time.Now()
			time.Sleep(2 * time.Second)
			tried[i].CPI += o.online.mean(from, time.Now()) / 2
			tried[i].OfflineMBps += o.moved(from, time.Now()) / 2
		}
	}
	part()
	for _, h := range o.hogs[1:] {
		h.start(t, "hog", "-profile", flood)
	}
	x.place(splitOffline, o.hogs[1:]...)
	part()
	for i, one := range tried {
		t.Logf("static split: %+v", one)
		if one.CPI <= r.CPIAgent && (r.Static == nil || one.OfflineMBps > r.Static.OfflineMBps) {
			r.Static = &tried[i]
		}
	}
	r.CPIUnprotected, r.OfflineFreeMBps = tried[0].CPI, tried[0].OfflineMBps
	if r.Static != nil {
		r.Static.Tried = len(tried)
	}
	o.saySplit(len(tried))
	x.end()
	reportStory(t, r)
}
