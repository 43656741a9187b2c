package trace

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// content is what all steps of a file come to.
type content struct {
	Steps, Events, Plans, Notes, States            int
	Waits, WaitNS, Blame, Buckets, CPU, Misses, L3 uint64
	Digests                                        uint64
}

// TestFormat3 reads a file of before format 4: 420 ticks of six containers with counters and resctrl, of which one comes and goes. What it comes to is
// what the program said that wrote it.
func TestFormat3(t *testing.T) {
	want := content{
		Steps: 437, Events: 17, Plans: 89884, Notes: 7, States: 4, Waits: 255760, WaitNS: 8128988000, Blame: 4555329135554124330, Buckets: 1367244439553504980,
		CPU: 158786460000, Misses: 819280152, L3: 2444034048, Digests: 11907736638482401437,
	}
	r, err := Open("testdata/format3.qostrace")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got content
	for s := range all(t, r) {
		got.add(s)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-as written +as read):\n%s", diff)
	}
	if len(r.Dropped()) > 0 {
		t.Errorf("not known: %v", r.Dropped())
	}
}

func (c *content) add(s *Step) {
	c.Steps++
	c.Events += len(s.Snapshot.Events)
	c.Notes += len(s.Decision.Notes)
	if s.HasState() {
		c.States++
	}
	for i := range s.Decision.Plan {
		c.Plans += len(s.Decision.Plan[i].Cgroup) + len(s.Decision.Plan[i].Rule)
	}
	for _, d := range s.Digest {
		c.Digests += d
	}
	for i := range s.Snapshot.Containers {
		k := &s.Snapshot.Containers[i]
		c.Waits, c.WaitNS = c.Waits+k.Wait.Count, c.WaitNS+k.Wait.SumNS
		for _, b := range k.Wait.Blame {
			c.Blame = c.Blame*31 + b.NS + uint64(b.Culprit)
		}
		for _, b := range k.Wait.Buckets {
			c.Buckets = c.Buckets*31 + uint64(b.Index)*1000 + uint64(b.Count)
		}
		c.CPU, c.Misses, c.L3 = c.CPU+k.CPU.UsageNS, c.Misses+k.Perf.LLCMisses, c.L3+k.RDT.OccupancyBytes
	}
}
