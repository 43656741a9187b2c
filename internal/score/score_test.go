package score

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/knob"
)

func TestWindows(t *testing.T) {
	var s Score
	s.Window(time.Second, false, []Part{{Pod: "a", Of: 0.9}})
	s.Window(time.Second, true, []Part{{Pod: "a", Of: 0.9}})
	s.Window(time.Second, true, []Part{{Pod: "a", Of: 0.9, Held: true}})
	s.Window(time.Second, true, []Part{{Pod: "a", Of: 0.3}})
	want := Score{OnlineSeconds: 4, ViolationSeconds: 3, MissedSeconds: 1}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
	if s.Violation() != 75 || s.Missed() != 25 || s.WorkPercent() != 100 || s.Churn() != 0 {
		t.Errorf("%v %v %v %v", s.Violation(), s.Missed(), s.WorkPercent(), s.Churn())
	}
	s.Add(Score{Seconds: 3600, Changes: 7, WorkSeconds: 1800, WantedSeconds: 3600})
	if s.Churn() != 7 || s.WorkPercent() != 50 || s.Work() != 0.5 {
		t.Errorf("%v %v %v", s.Churn(), s.WorkPercent(), s.Work())
	}
}

func TestChurn(t *testing.T) {
	w := func(group string, k knob.Kind, n int64, rule string) knob.Want {
		return knob.Want{Target: knob.Target{Cgroup: group, Kind: k}, Value: knob.Value{N: n}, Rule: rule}
	}
	posture := w("/a", knob.CPUIdle, 1, control.RulePosture)
	for name, tt := range map[string]struct {
		before, after []knob.Want
		want          int
	}{
		"nothing":         {nil, nil, 0},
		"posture":         {nil, []knob.Want{posture}, 0},
		"new":             {[]knob.Want{posture}, []knob.Want{posture, w("/a", knob.CPUQuota, 5, "event-cut")}, 1},
		"changed":         {[]knob.Want{w("/a", knob.CPUQuota, 5, "event-cut")}, []knob.Want{w("/a", knob.CPUQuota, 9, "regrow")}, 1},
		"same, new rule":  {[]knob.Want{w("/a", knob.CPUQuota, 5, "event-cut")}, []knob.Want{w("/a", knob.CPUQuota, 5, "regrow")}, 0},
		"one gone of two": {[]knob.Want{w("/a", knob.CPUQuota, 5, "x"), w("/b", knob.CPUQuota, 5, "x")}, []knob.Want{w("/b", knob.CPUQuota, 5, "x")}, 1},
	} {
		if got := Churn(tt.before, tt.after); got != tt.want {
			t.Errorf("%s: got %d, want %d", name, got, tt.want)
		}
	}
}

func TestIsCut(t *testing.T) {
	g := control.Grant{Cores: 1}
	for rule, want := range map[string]bool{control.RuleEventCut: true, control.RuleRegrow: false, control.RuleTakeBack: false, control.RuleRegrowUndo: true} {
		if got := IsCut(&control.Note{Rule: rule, To: g}); got != want {
			t.Errorf("%s: %v", rule, got)
		}
	}
	if IsCut(&control.Note{Rule: control.RuleEventCut, From: g, To: g}) {
		t.Error("a cut that takes nothing")
	}
}
