package decide

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

const never = time.Duration(-1 << 62)

// hurting is a node on which "batch" hurts "web", more the more CPUs it uses.
func hurting(t testing.TB, cpus int) *plant {
	return newPlant(t, cpus,
		&job{name: "batch", class: policy.Offline, demand: float64(cpus), hurt: 8000 / float64(cpus), bias: 1},
		&job{name: "web", class: policy.Online, demand: 1},
	)
}

// hopeless is hurting, with an objective that nothing can meet although every cut helps.
func hopeless(t testing.TB, cpus int) *plant {
	p := hurting(t, cpus)
	p.spec().Objectives.CPUWaitP99 = policy.Duration(100 * time.Microsecond)
	p.spec().Objectives.CPUWaitEvent = policy.Duration(100 * time.Microsecond)
	return p
}

func TestObserveWritesNothing(t *testing.T) {
	p := hurting(t, 8)
	p.respec(func(s *policy.Spec) { s.Mode = policy.Observe })
	p.run(5 * time.Second)
	if p.grant("batch") == (control.Grant{}) || len(p.last.Would) < 2 {
		t.Errorf("would %v", p.last.Would)
	}
	if len(p.last.Plan) != 0 {
		t.Errorf("plan %v", p.last.Plan)
	}
	if n := p.noted(control.RuleTakeBack, "") + p.noted(control.RuleProven, ""); n != 0 {
		t.Errorf("%d experiments judged that were never made", n)
	}
	p.respec(func(s *policy.Spec) { s.Mode = policy.Enforce; s.Objectives = policy.Objectives{} })
	p.base = 0
	p.find("batch").hurt = 0
	p.step()
	if p.grant("batch") != (control.Grant{}) || !p.last.Changed || len(p.last.Plan) != 1 || p.last.Would != nil {
		t.Errorf("enforcing began at %s, plan %v", p.grant("batch"), p.last.Plan)
	}
	p.respec(func(s *policy.Spec) { s.Mode = policy.Observe })
	p.step()
	if !p.last.Changed || len(p.last.Plan) != 0 {
		t.Errorf("back to observing: changed %v, plan %v", p.last.Changed, p.last.Plan)
	}
}

func TestPosture(t *testing.T) {
	tests := map[string]struct {
		posture      policy.Posture
		caps         bool
		idle, weight string
		notes        int
	}{
		"idle":                  {policy.PostureIdle, true, "1", "", 0},
		"idle without cpu.idle": {policy.PostureIdle, false, "", "1", 1},
		"weight":                {policy.PostureWeight, true, "", "1", 0},
		"none":                  {policy.PostureNone, true, "", "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPlant(t, 4, &job{name: "batch", class: policy.Offline}, &job{name: "web", class: policy.Online}, &job{name: "x", class: policy.Unclassified})
			p.spec().CPU.Posture, p.caps.CPUIdle = tt.posture, tt.caps
			p.run(time.Second)
			if got := p.wants("batch", knob.CPUIdle); got != tt.idle {
				t.Errorf("cpu.idle %q, want %q", got, tt.idle)
			}
			if got := p.wants("batch", knob.CPUWeight); got != tt.weight {
				t.Errorf("cpu.weight %q, want %q", got, tt.weight)
			}
			if n := p.noted(control.RuleSkip, ""); n != tt.notes {
				t.Errorf("%d notes, want %d", n, tt.notes)
			}
		})
	}
}

// TestCutIsMonotoneDownTheLadder follows a pod that is rightly blamed while nothing is ever enough.
func TestCutIsMonotoneDownTheLadder(t *testing.T) {
	for _, cpus := range []int{2, 8} {
		p := hopeless(t, cpus)
		p.spec().CPU.Posture = policy.PostureNone
		p.spec().CPU.Verify.ImprovePercent = 1
		last, used := control.Grant{}, p.find("batch").uses()
		for range 100 {
			p.step()
			if u := p.find("batch").uses(); u > used {
				t.Fatalf("%d CPUs: %s after %s", cpus, p.grant("batch"), last)
			} else {
				used, last = u, p.grant("batch")
			}
		}
		want := control.Grant{Idle: true, Cores: 1, MilliCPU: 100}
		if last != want {
			t.Errorf("%d CPUs: ended at %s, want %s", cpus, last, want)
		}
		if p.log[0].To != (control.Grant{Idle: true}) || p.log[1].To != (control.Grant{Idle: true, Cores: cpus / 2}) {
			t.Errorf("%d CPUs: first steps %s, %s", cpus, p.log[0], p.log[1])
		}
	}
}

func TestCooldown(t *testing.T) {
	p := hopeless(t, 64)
	p.spec().CPU.Cooldown = policy.Duration(time.Second)
	p.run(10 * time.Second)
	last := never
	for _, n := range p.log {
		if n.From != n.To && n.Rule != control.RuleTakeBack {
			if n.At-last < time.Second {
				t.Errorf("cut %s after the last: %s", n.At-last, n)
			}
			last = n.At
		}
	}
}

// A long wait takes the first step at once. While the objective is kept, more is taken for such waits only if there are three in the judge's
// window before it is settled whether the step was enough; and what is given back later is not taken away again for one.
func TestLongWaitsNowAndThenTakeOneStep(t *testing.T) {
	p := hurting(t, 8)
	p.find("batch").hurt = 0
	long := func() {
		p.build(signal.Event)
		p.snap.Events = append(p.snap.Events, signal.WaitEvent{At: p.now, Victim: 1, WaitNS: 6e6, Culprit: 0, PartNS: 6e6})
		p.decide()
	}
	p.step()
	long()
	first := p.grant("batch")
	if first == (control.Grant{}) {
		t.Fatal("the first long wait was not answered")
	}
	p.run(200 * time.Millisecond)
	long()
	if got := p.grant("batch"); got != first {
		t.Errorf("%s after two long waits, want %s still", got, first)
	}
	p.run(200 * time.Millisecond)
	long()
	second := p.grant("batch")
	if second == first {
		t.Errorf("%s after three long waits in a second", second)
	}

	for p.noted(control.RuleRegrow, "") == 0 {
		p.step()
	}
	if p.noted(control.RuleProven, "") == 0 {
		t.Error("grown before it was settled whether the step helped")
	}
	grown := p.grant("batch")
	for range 3 {
		p.run(100 * time.Millisecond)
		long()
	}
	if got := p.grant("batch"); got != grown {
		t.Errorf("%s, taken from %s for long waits although the objective is kept", got, grown)
	}
}

func TestFreezeIsShort(t *testing.T) {
	p := hopeless(t, 2)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungFreeze}
	p.spec().CPU.Freeze.Max = policy.Duration(200 * time.Millisecond)
	p.spec().CPU.Verify.ImprovePercent = 1
	frozen, thawed, freezes := never, never, 0
	for range 3000 {
		p.step()
		if frozen := p.wants("batch", knob.Freeze) == "1"; frozen != (p.last.Wake > 0) {
			t.Fatalf("frozen %v, wake at %s", frozen, p.last.Wake)
		}
	}
	for _, n := range p.log {
		switch {
		case n.To.Frozen:
			if n.At-thawed < 200*time.Millisecond {
				t.Errorf("frozen again after %s", n.At-thawed)
			}
			frozen = n.At
			freezes++
		case n.From.Frozen:
			if d := n.At - frozen; d > 250*time.Millisecond {
				t.Errorf("frozen for %s", d)
			}
			thawed = n.At
		}
	}
	if freezes < 3 || freezes > 30 {
		t.Errorf("%d freezes in 5 minutes", freezes)
	}
}

// TestThawDoesNotWaitForATick thaws on a step that was made for nothing else.
func TestThawDoesNotWaitForATick(t *testing.T) {
	p := hopeless(t, 2)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungFreeze}
	for p.last.Wake == 0 {
		p.step()
	}
	p.now = p.last.Wake
	p.build(signal.Event)
	p.decide()
	if p.wants("batch", knob.Freeze) != "" || !p.last.Changed {
		t.Error("still frozen at the time that was asked for")
	}
}

func TestRungsThatTheNodeCannotDoAreSkippedWithANote(t *testing.T) {
	p := hopeless(t, 8)
	p.caps.CPUSet, p.caps.Freeze = false, false
	p.spec().CPU.Ladder = []policy.Rung{policy.RungCPUs, policy.RungQuota, policy.RungFreeze}
	p.spec().CPU.Verify.ImprovePercent = 1
	p.run(20 * time.Second)
	if g := p.grant("batch"); g.Cores != 0 || g.MilliCPU != 100 {
		t.Errorf("held to %s", g)
	}
	if n := p.noted(control.RuleSkip, ""); n != 2 {
		t.Errorf("%d notes, want 2", n)
	}
}

func TestRungThatAGroupCannotDoIsSkippedWithANote(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungCPUs, policy.RungQuota}
	p.spec().CPU.Verify.ImprovePercent = 1
	p.find("batch").noCPUSet = true
	p.step()
	if g := p.grant("batch"); g.Cores != 0 || g.MilliCPU == 0 {
		t.Errorf("the first cut was to %s", g)
	}
	p.run(20 * time.Second)
	if p.wants("batch", knob.CPUSet) != "" {
		t.Error("a cpuset is wanted")
	}
	if n := p.noted(control.RuleSkip, ""); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
}

// TestRefusedRungIsSkipped is about settings that the plan holds and the kernel does not take.
func TestRefusedRungIsSkipped(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungCPUs, policy.RungQuota}
	p.spec().CPU.Verify.ImprovePercent = 1
	asked := 0
	for range 900 { // a minute and a half
		p.step()
		if p.wants("batch", knob.CPUSet) != "" {
			asked++
			p.refuse("batch", knob.CPUSet)
		}
	}
	if g := p.grant("batch"); g.Cores != 0 || g.MilliCPU == 0 {
		t.Errorf("held to %s, want a quota instead", g)
	}
	// Told once and tried again after a minute.
	if n := p.noted(control.RuleSkip, "batch"); n < 1 || n > 2 || asked > 4 {
		t.Errorf("asked in %d steps, %d notes", asked, n)
	}
}

func TestRefusedPostureFallsBackToWeight(t *testing.T) {
	p := hurting(t, 8)
	p.step()
	if p.wants("batch", knob.CPUIdle) != "1" {
		t.Fatal("no posture")
	}
	p.refuse("batch", knob.CPUIdle)
	p.step()
	if p.wants("batch", knob.CPUIdle) != "" || p.wants("batch", knob.CPUWeight) != "1" {
		t.Errorf("plan %v, want least weight instead of cpu.idle", p.last.Plan)
	}
}

// TestLimitsWhereGroupsMayNotExceedTheirParents: on cgroup v1 a limited pod would keep a container that has a limit of its own from starting.
func TestLimitsWhereGroupsMayNotExceedTheirParents(t *testing.T) {
	for _, nested := range []bool{true, false} {
		p := hopeless(t, 8)
		p.caps.NestedLimits = nested
		p.find("batch").more = 1
		p.spec().CPU.Verify.ImprovePercent = 1
		p.run(20 * time.Second)
		g := p.grant("batch")
		if g.Cores == 0 || g.MilliCPU == 0 {
			t.Fatalf("held to %s", g)
		}
		limits, total := map[knob.Kind][]string{}, int64(0)
		for _, w := range p.last.Plan {
			limits[w.Kind] = append(limits[w.Kind], w.Cgroup)
			if w.Kind == knob.CPUQuota {
				total += w.Value.N * 1000 / w.Value.Period
			}
		}
		pod := []string{"/kubepods/podbatch"}
		want := map[knob.Kind][]string{knob.CPUIdle: pod, knob.CPUSet: pod, knob.CPUQuota: pod}
		if !nested {
			containers := []string{"/kubepods/podbatch/1", "/kubepods/podbatch/2"}
			want[knob.CPUSet], want[knob.CPUQuota] = containers, containers
		}
		if diff := cmp.Diff(want, limits); diff != "" {
			t.Errorf("nested limits %v (-want +got):\n%s", nested, diff)
		}
		if total > g.MilliCPU {
			t.Errorf("quotas add up to %d thousandths of a CPU, want %d", total, g.MilliCPU)
		}
	}
}

func TestBlindnessHoldsThenReleases(t *testing.T) {
	for name, blind := range map[string]func(*plant){
		"stale":      func(p *plant) { p.deaf = true },
		"capability": func(p *plant) { p.caps.RunQueue = false },
	} {
		t.Run(name, func(t *testing.T) {
			p := hurting(t, 8)
			p.run(2 * time.Second)
			held := p.grant("batch")
			p.find("batch").hurt = 0 // it would be given back, if only that could be seen
			blind(p)
			s := p.spec().Safety
			p.run(s.ReleaseAfter.D() - time.Second)
			if g := p.grant("batch"); g != held || g == (control.Grant{}) {
				t.Fatalf("blind and not yet released: %s, was %s", g, held)
			}
			p.run(s.StaleAfter.D() + 2*time.Second)
			if g := p.grant("batch"); g != (control.Grant{}) {
				t.Errorf("held to %s after being blind for long", g)
			}
			if p.wants("batch", knob.CPUIdle) != "1" {
				t.Error("the posture is gone too")
			}
			if p.noted(control.RuleRelease, "batch") != 1 {
				t.Error("no note")
			}
		})
	}
}

func TestOneContainerThatIsNeverMeasuredDoesNotHoldTheNodeForGood(t *testing.T) {
	p := hurting(t, 8)
	p.run(3 * time.Second)
	p.find("batch").hurt = 0
	p.jobs = append(p.jobs, &job{name: "late", class: policy.Online})
	for range 1200 {
		p.now += p.tick
		p.build(signal.Tick)
		p.snap.Containers[2].Wait = signal.WaitSample{}
		p.decide()
	}
	if g := p.grant("batch"); g != (control.Grant{}) {
		t.Errorf("still held to %s", g)
	}
}

func TestPodsThatChangeClassGoOrComeBackStartAfresh(t *testing.T) {
	p := hurting(t, 8)
	p.run(3 * time.Second)
	batch := p.find("batch")
	batch.class, batch.hurt = policy.Unclassified, 0
	p.step()
	for _, w := range p.last.Plan {
		t.Errorf("wants %+v of a pod that is not offline any more", w)
	}
	if !p.last.Changed {
		t.Error("not marked as changed")
	}
	batch.class = policy.Offline
	p.step()
	if g := p.grant("batch"); g != (control.Grant{}) || p.wants("batch", knob.CPUIdle) != "1" {
		t.Errorf("came back to %s", g)
	}

	batch.hurt = 1000
	p.run(3 * time.Second)
	if p.grant("batch") == (control.Grant{}) {
		t.Fatal("not cut again")
	}
	p.jobs = p.jobs[1:]
	p.step()
	if len(p.last.Plan) != 0 {
		t.Errorf("wants %v of a pod that is gone", p.last.Plan)
	}
	batch.hurt = 0
	p.jobs = append([]*job{batch}, p.jobs...)
	p.step()
	if g := p.grant("batch"); g != (control.Grant{}) {
		t.Errorf("restarted at %s", g)
	}
}

func TestPolicyChangesUnderACut(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Verify.ImprovePercent = 1
	p.run(3 * time.Second)
	if g := p.grant("batch"); g != (control.Grant{Cores: 1, MilliCPU: 100}) {
		t.Fatalf("held to %s", g)
	}
	p.respec(func(s *policy.Spec) { s.CPU.CPUs.Floor, s.CPU.Quota.FloorPercent = 3, 50 })
	p.step()
	if g := p.grant("batch"); g != (control.Grant{Cores: 3, MilliCPU: 500}) {
		t.Errorf("held to %s below the new floors", g)
	}
	p.respec(func(s *policy.Spec) { s.CPU.Ladder = []policy.Rung{policy.RungCPUs} })
	p.step()
	if g := p.grant("batch"); g != (control.Grant{Cores: 3}) {
		t.Errorf("held to %s with the quota off the ladder", g)
	}
	p.respec(func(s *policy.Spec) { s.CPU.Ladder = nil; s.CPU.Posture = policy.PostureNone })
	p.step()
	if len(p.last.Plan) != 0 {
		t.Errorf("plan %v without ladder and posture", p.last.Plan)
	}
}

func TestHotplug(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungCPUs}
	p.spec().CPU.CPUs.Floor = 2
	p.spec().CPU.Verify.ImprovePercent = 1
	p.run(3 * time.Second)
	if got := p.wants("batch", knob.CPUSet); got != "6-7" {
		t.Fatalf("CPUs %q, want 6-7", got)
	}
	all := p.cpus
	for _, tt := range []struct {
		cpus []signal.CPU
		want string
	}{
		{all[:6], "4-5"}, {all[:3], "1-2"}, {all[:2], ""}, {all[:1], ""},
	} {
		p.cpus = tt.cpus
		p.step()
		if got := p.wants("batch", knob.CPUSet); got != tt.want {
			t.Errorf("%d CPUs online: %q, want %q", len(tt.cpus), got, tt.want)
		}
	}
}

func TestCutStaysWithinTheCPUsThatOthersAllow(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungCPUs}
	p.spec().CPU.Verify.ImprovePercent = 1
	p.find("batch").allowed = cpuset.Of(0, 1, 2, 3)
	p.step()
	if got := p.wants("batch", knob.CPUSet); got != "2-3" {
		t.Errorf("CPUs %q, want half of 0-3", got)
	}
	p.find("batch").allowed = cpuset.Of(0, 1)
	p.run(time.Second)
	if got := p.wants("batch", knob.CPUSet); got != "1" {
		t.Errorf("CPUs %q, want 1", got)
	}
}

func TestQuotaNeverLoosensALimitOfThePodsOwn(t *testing.T) {
	p := hopeless(t, 8)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungQuota}
	p.spec().CPU.Verify.ImprovePercent = 1
	p.find("batch").limit = 40_000
	p.step() // the plant checks every value
	if g := p.grant("batch"); g.MilliCPU != 200 {
		t.Errorf("held to %s, want half of 400m", g)
	}
}

func TestQuotaBeginsAtWhatThePodUses(t *testing.T) {
	p := hurting(t, 64)
	p.spec().CPU.Ladder = []policy.Rung{policy.RungQuota}
	p.find("batch").demand, p.find("batch").hurt = 6, 1000
	p.now += p.tick // one calm step, so that its use is known
	p.build(signal.Tick)
	p.snap.Containers[1].Wait = signal.WaitSample{}
	p.decide()
	p.step()
	if g := p.grant("batch"); g.MilliCPU < 1500 || g.MilliCPU > 3000 {
		t.Errorf("held to %s, want half of the 6 CPUs in use, or once more", g)
	}
}

func TestPodsThatHurtTogetherAreCutTogether(t *testing.T) {
	jobs := []*job{{name: "web", class: policy.Online, demand: 1}}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		jobs = append(jobs, &job{name: n, class: policy.Offline, demand: 2, hurt: 500, bias: 1})
	}
	p := newPlant(t, 10, jobs...)
	defer p.dump()
	p.step()
	if p.noted(control.RuleJointCut, "") != 0 {
		t.Error("several small parts were acted on at once")
	}
	p.run(5 * time.Second)
	if p.noted(control.RuleJointCut, "") == 0 {
		t.Error("nobody was cut")
	}
	if p.noted(control.RuleEventCut, "") != 0 {
		t.Error("a single wait named one of five equals")
	}
	if p.level() == judge.Violated {
		t.Errorf("still violated, wait %s", p.wait())
	}
}

func TestOthersAreCutOnlyWhenTheCulpritHasNothingLeft(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "large", class: policy.Offline, demand: 4, hurt: 500, bias: 20},
		&job{name: "small", class: policy.Offline, demand: 4, hurt: 1000, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1},
	)
	defer p.dump()
	p.base = 1000
	p.spec().CPU.Quota.FloorPercent = 100
	for range 600 {
		p.step()
		if p.grant("small") != (control.Grant{}) {
			break
		}
	}
	if g := p.grant("small"); g == (control.Grant{}) {
		t.Fatal("never widened")
	}
	if g := p.grant("large"); g.Cores != 1 {
		t.Errorf("widened while the culprit was at %s", g)
	}
	if p.noted(control.RuleWidenCut, "small") == 0 {
		t.Error("cut by another rule")
	}
}

func TestOnlineCulpritsAreNamedAndNobodyIsCut(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "batch", class: policy.Offline, demand: 2, bias: 1},
		&job{name: "shop", class: policy.Online, demand: 6, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1, bias: 10},
	)
	p.base = 9000
	if n := p.run(time.Minute); n != 1 {
		t.Errorf("%d changes, want the posture only", n)
	}
	for _, v := range p.last.Verdicts {
		if v.Axis == judge.CPU && v.Sample == 2 {
			if len(v.Culprits()) != 1 || v.Culprits()[0].Pod != 1 || v.Reason != judge.Contention {
				t.Errorf("verdict %+v, want contention by shop", v)
			}
		}
	}
}

func TestSelfInflictedWaitsNeitherCutNorHold(t *testing.T) {
	p := hurting(t, 8)
	p.run(3 * time.Second)
	if p.grant("batch") == (control.Grant{}) {
		t.Fatal("not cut")
	}
	web := p.find("web")
	web.limit, web.throttled = 100_000, 5
	p.find("batch").hurt, p.base = 0, 9000
	p.run(time.Minute)
	if g := p.grant("batch"); g != (control.Grant{}) {
		t.Errorf("held to %s for a victim of its own quota", g)
	}
}

func TestBadLevelIsTriedAgainMoreAndMoreSeldom(t *testing.T) {
	p := hurting(t, 8)
	p.run(20 * time.Minute)
	last, pause := time.Duration(0), time.Duration(0)
	for _, n := range p.log {
		if n.Rule != control.RuleRegrowUndo {
			continue
		}
		if n.Pause < pause {
			t.Errorf("pause of %s after one of %s", n.Pause, pause)
		}
		if n.At-last < pause {
			t.Errorf("tried again after %s, pause was %s", n.At-last, pause)
		}
		last, pause = n.At, n.Pause
	}
	if pause < 4*time.Minute {
		t.Errorf("last pause %s", pause)
	}
}

func TestBackoffDoubles(t *testing.T) {
	p := newPlant(t, 8, &job{name: "heavy", class: policy.Offline, demand: 8, bias: 1}, &job{name: "web", class: policy.Online})
	p.base = 6000
	p.run(10 * time.Minute)
	want := p.spec().CPU.Verify.BackoffMin.D()
	until := time.Duration(0)
	for _, n := range p.log {
		switch n.Rule {
		case control.RuleTakeBack:
			if n.Pause != want || n.To != (control.Grant{}) {
				t.Errorf("%s, want a pause of %s", n, want)
			}
			until = n.At + n.Pause
			want = min(2*want, p.spec().CPU.Verify.BackoffMax.D())
		case control.RuleEventCut, control.RuleTickCut:
			if n.At < until {
				t.Errorf("cut during the pause: %s", n)
			}
		}
	}
	if want < 3*time.Minute {
		t.Errorf("pauses only reached %s", want)
	}
}

// TestOneVictimsDoubtDoesNotFreeWhatHurtsAnother has a pod that hurts one online pod, and is blamed by a second that it does not hurt.
func TestGroupsThatHoldMoreThanThePodAreLeftAlone(t *testing.T) {
	tests := map[string]struct {
		groups  map[string]string
		blocked []string
	}{
		"an online pod below":        {map[string]string{"batch": "/demo", "web": "/demo/web"}, []string{"batch"}},
		"an unclassified pod below":  {map[string]string{"batch": "/demo", "x": "/demo/sub/x"}, []string{"batch"}},
		"the same group":             {map[string]string{"batch": "/demo", "web": "/demo"}, []string{"batch"}},
		"a name that begins alike":   {map[string]string{"batch": "/demo", "web": "/demo-web"}, nil},
		"two offline in one":         {map[string]string{"batch": "/demo", "crawl": "/demo"}, []string{"crawl"}},
		"offline below offline":      {map[string]string{"batch": "/demo/x", "crawl": "/demo"}, []string{"batch"}},
		"below one that is off":      {map[string]string{"batch": "/demo/x", "crawl": "/demo", "web": "/demo/web"}, []string{"crawl"}},
		"root":                       {map[string]string{"batch": "/"}, []string{"batch"}},
		"kubepods":                   {map[string]string{"batch": "/kubepods"}, []string{"batch"}},
		"besteffort tier":            {map[string]string{"batch": "/kubepods/besteffort"}, []string{"batch"}},
		"besteffort tier of systemd": {map[string]string{"batch": "/kubepods.slice/kubepods-besteffort.slice"}, []string{"batch"}},
		"a pod of systemd":           {map[string]string{"batch": "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice"}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			jobs := []*job{
				{name: "batch", class: policy.Offline}, {name: "crawl", class: policy.Offline},
				{name: "web", class: policy.Online}, {name: "x", class: policy.Unclassified},
			}
			for _, j := range jobs {
				j.group = tt.groups[j.name]
			}
			p := newPlant(t, 2, jobs...)
			p.step()
			var blocked []string
			for _, n := range []string{"batch", "crawl"} {
				if p.wants(n, knob.CPUIdle) == "" {
					blocked = append(blocked, n)
				}
			}
			if diff := cmp.Diff(tt.blocked, blocked); diff != "" {
				t.Errorf("left alone (-want +got):\n%s", diff)
			}
			if n := p.noted(control.RuleSkip, ""); n != len(tt.blocked) {
				t.Errorf("%d notes", n)
			}
		})
	}
}

func TestOneVictimsDoubtDoesNotFreeWhatHurtsAnother(t *testing.T) {
	// "shop" waits for itself alone, but the accounting gives batch half of it; "web" is really hurt.
	p := hurting(t, 8)
	p.jobs = append(p.jobs, &job{name: "zoo", class: policy.Online})
	defer p.dump()
	violated := 0
	for i := range 1200 {
		p.react()
		p.now += p.tick
		p.build(signal.Tick)
		w := &p.snap.Containers[2].Wait
		w.Buckets[len(w.Buckets)-1].Index = 120
		p.decide()
		if i > 100 && p.level() == judge.Violated {
			violated++
		}
	}
	if violated > 100 {
		t.Errorf("web was violated in %d ticks of 1100", violated)
	}
	if p.noted(control.RuleTakeBack, "batch") == 0 {
		t.Error("zoo's blame was never refuted")
	}
}

func TestTheSameInputGivesTheSameDecisions(t *testing.T) {
	p := newPlant(t, 8,
		&job{name: "a", class: policy.Offline, demand: 4, hurt: 700, bias: 1},
		&job{name: "b", class: policy.Offline, demand: 4, hurt: 300, bias: 1},
		&job{name: "c", class: policy.Offline, demand: 3, bias: 1},
		&job{name: "web", class: policy.Online, demand: 1, limit: 100_000},
		&job{name: "web2", class: policy.Online, demand: 1},
	)
	p.twin = New()
	p.noise = 0.2
	p.run(2 * time.Minute)
	if len(p.log) < 10 {
		t.Errorf("only %d notes: nothing was compared", len(p.log))
	}
}

func TestBurst(t *testing.T) {
	web := &job{name: "web", class: policy.Online, limit: 200_000}
	batch := &job{name: "batch", class: policy.Offline, limit: 100_000, throttled: 9}
	p := newPlant(t, 4, batch, web)
	p.respec(func(s *policy.Spec) { s.CPU.Burst.Percent = 100 })
	p.run(time.Second)
	if got := p.wants("web", knob.CPUBurst); got != "" {
		t.Errorf("burst %q of a pod that was never throttled", got)
	}
	web.throttled = 1
	p.step()
	web.throttled = 0
	var got []string
	for _, w := range p.last.Plan {
		if w.Kind == knob.CPUBurst {
			got = append(got, w.Cgroup+"="+w.Value.Format(w.Kind))
		}
	}
	if diff := cmp.Diff([]string{"/kubepods/podweb=200000", "/kubepods/podweb/1=200000"}, got); diff != "" {
		t.Errorf("bursts (-want +got):\n%s", diff)
	}
	p.respec(func(s *policy.Spec) { s.CPU.Burst.Percent = 50 })
	p.step()
	if got := p.wants("web", knob.CPUBurst); got != "100000" {
		t.Errorf("burst %q, want half of the quota", got)
	}
	p.run(9 * time.Minute)
	if p.wants("web", knob.CPUBurst) == "" {
		t.Error("burst ended early")
	}
	p.run(2 * time.Minute)
	if got := p.wants("web", knob.CPUBurst); got != "" {
		t.Errorf("burst %q after 10 quiet minutes", got)
	}
	web.throttled = 1
	p.step()
	for name, change := range map[string]func(){
		"capability": func() { p.caps.CPUBurst = false },
		"quota":      func() { web.limit = 0 },
		"class":      func() { web.class = policy.Unclassified },
		"policy":     func() { p.respec(func(s *policy.Spec) { s.CPU.Burst.Percent = 0 }) },
	} {
		caps, limit, class, pol := p.caps, web.limit, web.class, p.pol
		change()
		p.step()
		if got := p.wants("web", knob.CPUBurst); got != "" {
			t.Errorf("burst %q without %s", got, name)
		}
		p.caps, web.limit, web.class, p.pol = caps, limit, class, pol
		p.step()
		if p.wants("web", knob.CPUBurst) == "" {
			t.Errorf("no burst with %s back", name)
		}
	}
}
