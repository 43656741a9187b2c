package decide

import (
	"flag"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

func TestGuiltyPodIsCutAndSettles(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "batch", class: policy.Offline, demand: 8, hurt: 1000, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1},
	)
	defer p.dump()
	p.step()
	if p.grant("batch") == (control.Grant{}) {
		t.Fatal("not cut by the first event")
	}
	p.run(time.Minute)
	if p.wait() > p.spec().Objectives.CPUWaitP99.D() {
		t.Errorf("wait %s after a minute", p.wait())
	}
	if p.noted(control.RuleProven, "batch") == 0 {
		t.Error("the blame was not proven")
	}
	if n := p.noted(control.RuleTakeBack, ""); n != 0 {
		t.Errorf("%d cuts of a guilty pod were taken back", n)
	}
	first := p.run(time.Hour)
	second := p.run(time.Hour)
	t.Logf("changes: %d in the first hour, %d in the second", first, second)
	if second > 16 {
		t.Errorf("%d changes in the second hour on constant load", second)
	}
}

func TestInnocentPodGetsItsCPUsBack(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "heavy", class: policy.Offline, demand: 8, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1},
	)
	defer p.dump()
	p.base = 6000 // the wait has nothing to do with it
	p.step()
	if p.grant("heavy") == (control.Grant{}) {
		t.Fatal("not cut, although it is blamed")
	}
	p.run(10 * time.Second)
	if p.noted(control.RuleTakeBack, "heavy") == 0 {
		t.Error("no cut was taken back")
	}
	free, steps := 0, 0
	for end := p.now + time.Hour; p.now < end; {
		p.step()
		steps++
		if p.grant("heavy") == (control.Grant{}) {
			free++
		}
	}
	t.Logf("free %d of %d ticks", free, steps)
	if free*100 < 95*steps {
		t.Errorf("free in %d of %d ticks only", free, steps)
	}
	if n := p.run(time.Hour); n > 130 {
		t.Errorf("%d changes in the second hour", n)
	}
}

func TestGuiltyAmongInnocent(t *testing.T) {
	p := newPlant(t, 16,
		&job{name: "calm", class: policy.Offline, demand: 2, bias: 0.2},
		&job{name: "guilty", class: policy.Offline, demand: 12, hurt: 1000, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1},
	)
	defer p.dump()
	p.run(time.Minute)
	if p.level() == judge.Violated {
		t.Errorf("still violated, wait %s", p.wait())
	}
	if p.grant("guilty") == (control.Grant{}) {
		t.Error("the guilty pod is free")
	}
	if g := p.grant("calm"); g != (control.Grant{}) {
		t.Errorf("the innocent pod is held to %s", g)
	}
}

func TestCutPodsComeBackWhenTheLoadEnds(t *testing.T) {
	batch := &job{name: "batch", class: policy.Offline, demand: 8, hurt: 1000, bias: 1}
	p := newPlant(t, 8, batch, &job{name: "web", class: policy.Online, demand: 1})
	defer p.dump()
	p.run(time.Minute)
	batch.hurt = 10
	p.run(5 * time.Minute)
	if g := p.grant("batch"); g != (control.Grant{}) {
		t.Errorf("still held to %s", g)
	}
}

func TestCalmNodeNeverChanges(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "batch", class: policy.Offline, demand: 8, hurt: 50, bias: 1},
		&job{name: "other", demand: 1, class: policy.Unclassified},
		&job{name: "web", class: policy.Online, demand: 1},
	)
	p.step()
	if len(p.last.Plan) != 1 || p.last.Plan[0].Rule != control.RulePosture {
		t.Fatalf("plan %v, want the posture", p.last.Plan)
	}
	if n := p.run(10 * time.Minute); n != 0 {
		t.Errorf("%d changes", n)
	}
}

// TestMain fixes the seed of the random loads: a test that fails is about what was changed. For other loads: -rapid.seed=N -rapid.checks=1000.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.seed"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("1"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// TestAnyConstantLoadComesToRest lets arbitrary constant loads run, under arbitrary sound policies. What must always hold is checked
// at each step by the plant; here it is that turning round becomes rare.
func TestAnyConstantLoadComesToRest(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cpus := rapid.SampledFrom([]int{2, 4, 8, 32}).Draw(r, "cpus")
		jobs, victims := []*job{{name: "web", class: policy.Online, demand: 1}}, 1
		for i := range rapid.IntRange(1, 4).Draw(r, "offline") {
			jobs = append(jobs, &job{
				name: string(rune('a' + i)), class: policy.Offline,
				demand: float64(rapid.IntRange(0, 4*cpus).Draw(r, "demand")) / 4,
				hurt:   float64(rapid.IntRange(0, 4000/cpus).Draw(r, "hurt")),
				bias:   float64(rapid.IntRange(0, 10).Draw(r, "bias")),
			})
		}
		offline := len(jobs) - victims
		if rapid.Bool().Draw(r, "neighbour") {
			victims++
			jobs = append(jobs, &job{name: "shop", class: policy.Online, demand: 2, bias: float64(rapid.IntRange(0, 10).Draw(r, "bias"))})
		}
		p := newPlant(t, cpus, jobs...)
		p.tick = rapid.SampledFrom([]time.Duration{time.Second, 250 * time.Millisecond, 5 * time.Second}).Draw(r, "tick")
		p.base = float64(rapid.IntRange(50, 8000).Draw(r, "base"))
		p.rate = uint32(rapid.SampledFrom([]int{10, 100, 1000}).Draw(r, "rate"))
		p.knee = float64(rapid.SampledFrom([]int{0, 0, cpus / 2}).Draw(r, "knee"))
		p.noise = rapid.SampledFrom([]float64{0, 0, 0.1, 0.3}).Draw(r, "noise")
		p.lag = rapid.SampledFrom([]float64{0, 0, 0.5, 0.8}).Draw(r, "lag")
		s := p.spec()
		s.CPU.Posture = rapid.SampledFrom([]policy.Posture{policy.PostureIdle, policy.PostureWeight, policy.PostureNone}).Draw(r, "posture")
		s.CPU.Ladder = rapid.SampledFrom([][]policy.Rung{
			{policy.RungIdle, policy.RungCPUs, policy.RungQuota}, {policy.RungCPUs}, {policy.RungQuota},
			{policy.RungCPUs, policy.RungQuota, policy.RungFreeze}, {},
		}).Draw(r, "ladder")
		s.CPU.CPUs.CutPercent = rapid.IntRange(1, 100).Draw(r, "cut")
		s.CPU.CPUs.Floor = rapid.IntRange(1, cpus).Draw(r, "floor")
		s.CPU.CPUs.IdleBuffer = rapid.IntRange(0, cpus).Draw(r, "buffer")
		s.CPU.Quota.CutPercent = rapid.IntRange(1, 100).Draw(r, "quota cut")
		s.CPU.Quota.FloorPercent = rapid.IntRange(1, 100).Draw(r, "quota floor")
		s.CPU.Quota.Period = policy.Duration(rapid.SampledFrom([]time.Duration{time.Millisecond, 20 * time.Millisecond, time.Second}).Draw(r, "period"))
		p.caps.CPUIdle = rapid.Bool().Draw(r, "cpu.idle")

		p.run(30 * time.Minute)
		half := len(p.log)
		p.run(30 * time.Minute)
		// The blame of a pod for a victim that is refuted may be tried again every 5 minutes (BackoffMax), a level that hurt every 15.
		n, most := reversals(p.log[half:]), 2*(6*victims+2+1)*offline
		// Waits that swing across the objective by themselves are not constant, and no experiment can tell what did it.
		switch {
		case p.noise > 0.1:
			return
		case p.noise > 0:
			most *= 3
		}
		if n > most {
			for _, n := range p.log[max(0, len(p.log)-60):] {
				t.Logf("%9.2fs %s", (n.At - time.Hour).Seconds(), n)
			}
			r.Fatalf("turned round %d times in the second half hour of constant load, want at most %d", n, most)
		}
	})
}

// reversals counts how often a pod was cut after it had been given something, or given after it had been cut.
func reversals(log []control.Note) int {
	n := 0
	last := make(map[string]bool)
	for _, note := range log {
		var up bool
		switch note.Rule {
		case control.RuleRegrow, control.RuleTakeBack, control.RuleThaw, control.RuleRelease:
			up = true
		case control.RuleEventCut, control.RuleTickCut, control.RuleJointCut, control.RuleWidenCut, control.RuleRegrowUndo:
		default:
			continue
		}
		if note.From == note.To {
			continue
		}
		if was, ok := last[note.Pod]; ok && was != up {
			n++
		}
		last[note.Pod] = up
	}
	return n
}

// TestSenselessInputBreaksNothing feeds times that run backwards, parts that were never read, indexes that point nowhere, machines that
// lose their CPUs and policies that change, and relies on what the plant checks of every decision.
func TestSenselessInputBreaksNothing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		p := newPlant(t, 4,
			&job{name: "a", class: policy.Offline, demand: 4, hurt: 900, bias: 1},
			&job{name: "b", class: policy.Offline, demand: 2, bias: 1},
			&job{name: "web", class: policy.Online, demand: 1, limit: 50_000},
		)
		p.spec().CPU.Ladder = []policy.Rung{policy.RungIdle, policy.RungCPUs, policy.RungQuota, policy.RungFreeze}
		all := p.cpus
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			p.react()
			p.now += time.Duration(rapid.IntRange(-2e8, 2e9).Draw(r, "passes"))
			p.build(rapid.SampledFrom([]signal.Trigger{signal.Tick, signal.Tick, signal.Event}).Draw(r, "trigger"))
			switch rapid.IntRange(0, 9).Draw(r, "kind") {
			case 0:
				p.cpus = all[:rapid.IntRange(0, len(all)).Draw(r, "cpus")]
			case 1:
				c := &p.snap.Containers[2]
				c.Wait.At, c.Wait.Span = time.Duration(rapid.Int64().Draw(r, "at")/4), time.Duration(rapid.Int64().Draw(r, "span")/4)
			case 2:
				p.snap.Containers[2].Wait.Buckets = append(p.snap.Containers[2].Wait.Buckets, signal.Bucket{Index: 60000, Count: 9})
			case 3:
				for i := range p.snap.Containers[2].Wait.Blame {
					b := &p.snap.Containers[2].Wait.Blame[i]
					b.Culprit, b.NS = signal.Culprit(rapid.Int32().Draw(r, "culprit")), rapid.Uint64Range(0, 1<<60).Draw(r, "ns")
				}
			case 4:
				p.snap.Events = append(p.snap.Events, signal.WaitEvent{
					At: p.now, Victim: rapid.IntRange(-1, 4).Draw(r, "victim"), Culprit: signal.Culprit(rapid.IntRange(-9, 9).Draw(r, "culprit")),
					WaitNS: rapid.Uint64().Draw(r, "wait"), PartNS: rapid.Uint64().Draw(r, "part"),
				})
			case 5:
				p.caps = signal.Capabilities{RunQueue: true, CPUSet: rapid.Bool().Draw(r, "cpuset"), CPUQuota: rapid.Bool().Draw(r, "quota"), Freeze: true}
			case 6:
				p.jobs[1].class = rapid.SampledFrom([]policy.Class{policy.Online, policy.Offline, policy.Unclassified}).Draw(r, "class")
				continue // seen at the next build
			case 7:
				p.respec(func(s *policy.Spec) {
					s.CPU.CPUs.Floor = rapid.IntRange(1, 8).Draw(r, "floor")
					s.CPU.Quota.FloorPercent = rapid.IntRange(1, 100).Draw(r, "quota floor")
					s.Mode = rapid.SampledFrom([]policy.Mode{policy.Observe, policy.Enforce}).Draw(r, "mode")
				})
			case 8:
				p.snap.Containers[0].CPU = signal.CPUSample{At: p.now, Span: -1, UsageNS: 1 << 60, QuotaUS: 1, PeriodUS: 0}
			}
			p.snap.Node.Topology.CPUs = p.cpus
			p.decide()
		}
	})
}
