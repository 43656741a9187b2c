//go:build amd64

package rdt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// Groups of the static split.
const (
	splitOnline  = "split-online"
	splitOffline = "split-offline"
)

// split tunes a static split by hand, as it were: it tries all that are sensible on the same machine beside the same loads, and keeps the
// one that leaves offline pods most bandwidth at an online CPI no higher than what the daemon settled at. Of the many that were tried for
// two seconds, the best are looked at longer, lest the luckiest is taken for the best.
//
// The daemon watches meanwhile and does nothing: on an emulated CPU it costs the pods many times what it costs them on a real one, and what
// is compared is how the machine is divided. For the same reason offline pods stand back on the CPUs (cpu.idle) as they do beside the
// daemon: whoever wakes up takes a CPU from them, also where another one is free, and a stream moves as much as it runs.
func (o *told) split() {
	x := o.divide()
	defer x.end()
	measure := x.measure
	var tried []lab.Split
	for _, ways := range []int{1, 2, 3, 4} {
		for _, mb := range []int{100, 60, 40, 20, 10} {
			s := lab.Split{Ways: ways, MB: mb}
			measure(&s, 2*time.Second)
			tried = append(tried, s)
		}
	}
	slices.SortFunc(tried, func(a, b lab.Split) int { return int(b.OfflineMBps) - int(a.OfflineMBps) })
	r := &o.result
	again := 0
	for _, s := range tried {
		if s.CPI > r.CPIAgent {
			continue
		}
		if again++; again > 4 {
			break
		}
		measure(&s, 8*time.Second)
		if s.CPI <= r.CPIAgent {
			plain := s
			o.stand("0")
			measure(&plain, 8*time.Second)
			s.Tried, s.PlainCPI, s.PlainOfflineMBps = len(tried), plain.CPI, plain.OfflineMBps
			r.Static = &s
			break
		}
	}
	o.saySplit(len(tried))
}

// measure looks for a while at what a split gives.
func (x *divided) measure(s *lab.Split, span time.Duration) {
	x.set(s)
	time.Sleep(time.Second)
	from := time.Now()
	time.Sleep(span)
	s.CPI, s.OfflineMBps = x.online.cpi(from, time.Now()), x.moved(from, time.Now())
	x.t.Logf("static split: %+v", *s)
}

// saySplit prints what came of it.
func (o *told) saySplit(tried int) {
	r := &o.result
	if r.Static == nil {
		r.Note = fmt.Sprintf("none of %d static splits has an online CPI as low as the daemon's", tried)
		return
	}
	fmt.Printf("offline bandwidth at an online CPI of at most %.3f: %.0f MB/s with the daemon, %.0f with the best static split (%d ways, %d %%)\n",
		r.CPIAgent, r.OfflineMBps, r.Static.OfflineMBps, r.Static.Ways, r.Static.MB)
}

// divided is a machine with a static split.
type divided struct {
	*told
	f   *rdt.FS
	all uint64 // every way
}

// divide puts pods into the groups of a static split and starts a daemon that watches. It is over with end.
func (o *told) divide() *divided {
	t := o.t
	t.Helper()
	f, err := rdt.Open(rdt.Dir(guest.Resctrl))
	if err != nil {
		t.Fatal(err)
	}
	x := &divided{told: o, f: f}
	for _, r := range f.Info.Caches {
		if r.Name == "L3" {
			x.all = r.Mask
		}
	}
	if x.all == 0 {
		t.Fatal("no cache to split")
	}
	x.make(splitOnline)
	x.make(splitOffline)
	x.place(splitOnline, o.web)
	x.place(splitOffline, o.hogs...)
	o.run("--mode", "observe")
	o.stand("1")
	return x
}

func (x *divided) end() {
	x.t.Helper()
	x.stand("0")
	x.told.end()
	for _, group := range []string{splitOnline, splitOffline} {
		if err := x.f.Remove(group); err != nil {
			x.t.Error(err)
		}
	}
}

// set divides the machine.
func (x *divided) set(s *lab.Split) {
	offline := uint64(1)<<s.Ways - 1
	set := func(group string, mask uint64, mb int) {
		if _, _, err := x.f.SetLimits(group, []rdt.Line{{Resource: "L3", Domains: []rdt.Domain{{Value: mask}}}, {Resource: "MB", Domains: []rdt.Domain{{Value: uint64(mb)}}}}); err != nil {
			x.t.Fatal(err)
		}
	}
	set(splitOnline, x.all&^offline, 100)
	set(splitOffline, offline, s.MB)
}

// stand sets cpu.idle of all offline pods.
func (o *told) stand(idle string) {
	for _, h := range o.hogs {
		if err := os.WriteFile(filepath.Join(h.group, "cpu.idle"), []byte(idle), 0); err != nil {
			o.t.Error(err)
		}
	}
}

// make makes a group for the length of the test.
func (x *divided) make(group string) {
	x.t.Helper()
	err := x.f.Make(group)
	for range 100 {
		if !errors.Is(err, rdt.ErrLimbo) {
			break
		}
		time.Sleep(100 * time.Millisecond) // ids that the daemon has freed
		err = x.f.Make(group)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() {
		if err := x.f.Remove(group); err != nil && !rdt.Gone(err) {
			x.t.Error(err)
		}
	})
}

// place puts all threads of pods into a group.
func (x *divided) place(group string, actors ...*actor) {
	x.t.Helper()
	for _, a := range actors {
		text, err := os.ReadFile(filepath.Join(a.group, "cgroup.threads"))
		if err != nil {
			x.t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			tid, err := strconv.Atoi(field)
			if err != nil {
				x.t.Fatal(err)
			}
			if _, err := x.f.Move(group, tid); err != nil {
				x.t.Fatal(err)
			}
		}
	}
}
