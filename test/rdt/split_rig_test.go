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

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// split is a static one, without the daemon: offline pods have some ways, online pods the others, and offline pods a limit of bandwidth.
// It is the kind that an administrator sets up once.
type split struct {
	Ways        int     `json:"offline_ways"`
	MB          int     `json:"offline_mb_percent"`
	CPI         float64 `json:"cpi"`          // of the online service
	OfflineMBps float64 `json:"offline_mbps"` // of all offline pods
	Tried       int     `json:"tried"`        // how many splits were tried
}

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
// is compared is how the machine is divided.
func (o *told) split() {
	t := o.t
	t.Helper()
	f, err := rdt.Open(rdt.Dir(guest.Resctrl))
	if err != nil {
		t.Fatal(err)
	}
	all := uint64(0)
	for _, r := range f.Info.Caches {
		if r.Name == "L3" {
			all = r.Mask
		}
	}
	if all == 0 {
		t.Fatal("no cache to split")
	}
	o.place(f, splitOnline, o.web)
	o.place(f, splitOffline, o.hogs...)
	o.run("--mode", "observe")
	defer o.end()
	measure := func(s *split, settle, span time.Duration) {
		offline := uint64(1)<<s.Ways - 1
		set := func(group string, mask uint64, mb int) {
			if _, _, err := f.SetLimits(group, []rdt.Line{{Resource: "L3", Domains: []rdt.Domain{{Value: mask}}}, {Resource: "MB", Domains: []rdt.Domain{{Value: uint64(mb)}}}}); err != nil {
				t.Fatal(err)
			}
		}
		set(splitOnline, all&^offline, 100)
		set(splitOffline, offline, s.MB)
		time.Sleep(settle)
		from := time.Now()
		time.Sleep(span)
		s.CPI, s.OfflineMBps = o.online.cpi(from, time.Now()), o.moved(from, time.Now())
		t.Logf("static split: %+v", *s)
	}
	var tried []split
	for _, ways := range []int{1, 2, 3, 4} {
		for _, mb := range []int{100, 70, 50, 40, 30, 20, 10} {
			s := split{Ways: ways, MB: mb}
			measure(&s, time.Second, 2*time.Second)
			tried = append(tried, s)
		}
	}
	slices.SortFunc(tried, func(a, b split) int { return int(b.OfflineMBps) - int(a.OfflineMBps) })
	r := &o.result
	again := 0
	for _, s := range tried {
		if s.CPI > r.CPIAgent {
			continue
		}
		if again++; again > 6 {
			break
		}
		measure(&s, time.Second, 8*time.Second)
		if s.CPI <= r.CPIAgent {
			s.Tried = len(tried)
			r.Static = &s
			break
		}
	}
	if r.Static == nil {
		r.Note = fmt.Sprintf("none of %d static splits has an online CPI as low as the daemon's", len(tried))
		return
	}
	fmt.Printf("offline bandwidth at an online CPI of at most %.3f: %.0f MB/s with the daemon, %.0f with the best static split (%d ways, %d %%)\n",
		r.CPIAgent, r.OfflineMBps, r.Static.OfflineMBps, r.Static.Ways, r.Static.MB)
}

// place makes a group and puts all threads of pods into it.
func (o *told) place(f *rdt.FS, group string, actors ...*actor) {
	t := o.t
	t.Helper()
	err := f.Make(group)
	for range 100 {
		if !errors.Is(err, rdt.ErrLimbo) {
			break
		}
		time.Sleep(100 * time.Millisecond) // ids that the daemon has freed
		err = f.Make(group)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Remove(group); err != nil {
			t.Error(err)
		}
	})
	for _, a := range actors {
		text, err := os.ReadFile(filepath.Join(a.group, "cgroup.threads"))
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			tid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Move(group, tid); err != nil {
				t.Fatal(err)
			}
		}
	}
}
