package knob

import "testing"

func TestClassPlanCopies(t *testing.T) {
	plan := ClassPlan{
		Classes: []Class{
			{Name: "offline", L3: []DomainValue{{0, 3}}, MB: []DomainValue{{0, 20}}, Ways: 2, MBPercent: 20, Pods: []MemberPod{{"ns/a", "/a"}}},
			{Name: "online", L3: []DomainValue{{0, 0x7fc}}, Pods: []MemberPod{{"ns/b", "/b"}}},
		},
		Watch: []MemberPod{{"ns/b", "/b"}},
	}
	var kept ClassPlan
	kept.CopyFrom(&plan)
	if !kept.Equal(&plan) {
		t.Fatalf("copy %+v of %+v", kept, plan)
	}
	plan.Classes[0].L3[0].Value = 7
	if kept.Equal(&plan) || kept.Classes[0].L3[0].Value != 3 {
		t.Errorf("the copy follows the original: %+v", kept)
	}
	if n := testing.AllocsPerRun(10, func() { kept.CopyFrom(&plan) }); n != 0 {
		t.Errorf("%v allocations for a copy over one of the same size", n)
	}
	for name, change := range map[string]func(*ClassPlan){
		"name":    func(p *ClassPlan) { p.Classes[0].Name = "x" },
		"mask":    func(p *ClassPlan) { p.Classes[1].L3[0].Value = 1 },
		"MB":      func(p *ClassPlan) { p.Classes[0].MB[0].Value = 30 },
		"cause":   func(p *ClassPlan) { p.Classes[0].Cache.Victim = "ns/b" },
		"pods":    func(p *ClassPlan) { p.Classes[1].Pods = nil },
		"watch":   func(p *ClassPlan) { p.Watch = nil },
		"classes": func(p *ClassPlan) { p.Classes = p.Classes[:1] },
	} {
		var other ClassPlan
		other.CopyFrom(&plan)
		change(&other)
		if other.Equal(&plan) {
			t.Errorf("a change of %s does not show", name)
		}
	}
}
