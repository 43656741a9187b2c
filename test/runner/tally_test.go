package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"run","Package":"p","Test":"TestA/one"}
{"Action":"pass","Package":"p","Test":"TestA/one"}
{"Action":"run","Package":"p","Test":"TestA/two"}
{"Action":"pass","Package":"p","Test":"TestA/two"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestSkip"}
{"Action":"output","Package":"p","Test":"TestSkip","Output":"=== RUN   TestSkip\n"}
{"Action":"output","Package":"p","Test":"TestSkip","Output":"    x_test.go:7: needs pmu: no such event\n"}
{"Action":"output","Package":"p","Test":"TestSkip","Output":"--- SKIP: TestSkip (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestSkip"}
{"Action":"pass","Package":"p","Elapsed":0.1}
`

func feed(t *testing.T, has map[string]bool, text string) (*tally, string, bool) {
	t.Helper()
	var out bytes.Buffer
	y := newTally(&out)
	if err := readEvents(strings.NewReader(text), func(e event) { y.event("", has, e) }); err != nil {
		t.Fatal(err)
	}
	ok := y.close(time.Second)
	return y, out.String(), ok
}

func TestCounts(t *testing.T) {
	y, out, ok := feed(t, map[string]bool{"pmu": false}, stream)
	if !ok || y.passed != 2 || len(y.skips) != 1 || len(y.failures) != 0 {
		t.Errorf("ok %v: %d passed, %v failed, %v skipped", ok, y.passed, y.failures, y.skips)
	}
	if diff := cmp.Diff(skip{"p TestSkip", "needs pmu: no such event"}, y.skips[0], cmp.AllowUnexported(skip{})); diff != "" {
		t.Error(diff)
	}
	if !strings.HasSuffix(out, "\n2 passed, 0 failed, 1 skipped\n") {
		t.Errorf("last line of\n%s", out)
	}
}

// TestKeepsLongLines: go test passes a long line on in pieces, between which another package may end.
func TestKeepsLongLines(t *testing.T) {
	var out bytes.Buffer
	y := newTally(&out)
	y.keep = "figures "
	for _, e := range []event{
		{Action: "output", Package: "p", Test: "TestA", Output: "figures 1"},
		{Action: "pass", Package: "q"},
		{Action: "output", Package: "p", Test: "TestA", Output: "23\n"},
		{Action: "output", Package: "p", Test: "TestA", Output: "no figures\n"},
	} {
		y.event("", nil, e)
	}
	if !strings.Contains(out.String(), "figures 123\n") || strings.Contains(out.String(), "no figures") {
		t.Errorf("%q", out.String())
	}
}

func TestFailures(t *testing.T) {
	const run = `{"Action":"run","Package":"p","Test":"TestB"}` + "\n"
	for name, c := range map[string]struct {
		in     string
		failed []string
		shows  string
	}{
		"a skip without excuse":         {stream, []string{"p TestSkip"}, `this machine has "pmu"`},
		"a skip for an unknown feature": {strings.ReplaceAll(stream, "needs pmu", "needs luck"), []string{"p TestSkip"}, `"luck"`},
		"a skip without a reason":       {strings.ReplaceAll(stream, "needs pmu:", ""), []string{"p TestSkip"}, "not of the form"},
		"a failed test": {run + `{"Action":"output","Package":"p","Test":"TestB","Output":"wrong\n"}
			{"Action":"fail","Package":"p","Test":"TestB"}{"Action":"fail","Package":"p"}`, []string{"p TestB"}, "wrong"},
		"a failed subtest counts once": {run + `{"Action":"fail","Package":"p","Test":"TestB/x"}
			{"Action":"fail","Package":"p","Test":"TestB"}{"Action":"fail","Package":"p"}`, []string{"p TestB/x"}, ""},
		"a test that fails beside its subtests": {run + `{"Action":"pass","Package":"p","Test":"TestB/x"}
			{"Action":"fail","Package":"p","Test":"TestB"}{"Action":"fail","Package":"p"}`, []string{"p TestB"}, ""},
		"a crash": {run + `{"Action":"output","Package":"p","Output":"exit status 2\n"}{"Action":"fail","Package":"p"}`, []string{"p TestB"}, "exit status 2"},
		"a package that fails outside its tests": {`{"Action":"output","Package":"p","Output":"TestMain: no\n"}{"Action":"fail","Package":"p"}`,
			[]string{"p (package)"}, "TestMain: no"},
		"a package that does not compile": {`{"Action":"build-output","ImportPath":"p [p.test]","Output":"undefined: x\n"}
			{"Action":"build-fail","ImportPath":"p [p.test]"}{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, []string{"p (package)"}, "undefined: x"},
		"a package that never ends": {run, []string{"p"}, "did not end"},
	} {
		t.Run(name, func(t *testing.T) {
			y, out, ok := feed(t, map[string]bool{"pmu": true}, c.in)
			if ok {
				t.Error("the run counts as good")
			}
			if diff := cmp.Diff(c.failed, y.failures); diff != "" {
				t.Errorf("failures (- want, + got):\n%s", diff)
			}
			if !strings.Contains(out, c.shows) {
				t.Errorf("output does not show %q:\n%s", c.shows, out)
			}
		})
	}
}

func TestNothingRanIsAFailure(t *testing.T) {
	if _, _, ok := feed(t, nil, `{"Action":"skip","Package":"p"}`); ok {
		t.Error("a run without tests counts as good")
	}
}

func TestExcuses(t *testing.T) {
	has := map[string]bool{"root": true, "cpu.idle": false, "psi": false}
	for reason, excused := range map[string]bool{
		"needs root: runs the daemon":                      false,
		"needs cpu.idle (Linux 5.15): open: no such file":  true,
		"needs PSI: open /proc/pressure/cpu: no such file": true,
		"needs PSI:open /proc/pressure/cpu":                true,
		"needs psi":                                        false,
		"not today":                                        false,
		"":                                                 false,
		"needs unicorns: none seen":                        false,
		"because it needs psi: which this kernel was built without": true,
	} {
		if got := unexcused(reason, has); (got == "") != excused {
			t.Errorf("%q: %q", reason, got)
		}
	}
}

func TestSkipReason(t *testing.T) {
	got := skipReason("=== RUN   TestX\n    a_test.go:3: needs root: may not\n        write\n    --- SKIP: TestX (0.00s)\n")
	if got != "needs root: may not write" {
		t.Errorf("reason %q", got)
	}
}
