package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (see go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // with build-output: what was built
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

// tally counts tests and keeps what has to be told at the end. A test with subtests is counted by its subtests, unless it failed
// on its own account.
type tally struct {
	out      io.Writer
	verbose  bool   // what passed tests say is printed, too
	keep     string // lines of output that begin so are printed at once
	passed   int
	failures []string // names
	skips    []skip
	suites   map[string]*suite
	builds   map[string]*strings.Builder // output of the compiler by import path
}

type skip struct{ name, reason string }

// suite is one package on one kernel.
type suite struct {
	tests  map[string]*test
	output strings.Builder // outside any test
}

type test struct {
	outcome string // pass, fail, skip; empty while it runs
	output  strings.Builder
	line    string // of output, as far as it has come: a long one comes in pieces
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, suites: map[string]*suite{}, builds: map[string]*strings.Builder{}}
}

// event takes one event. layer names the kernel if it is not this machine's; has are the features of the machine that ran it.
func (t *tally) event(layer string, has map[string]bool, e event) {
	if e.Action == "build-output" {
		b := t.builds[e.ImportPath]
		if b == nil {
			b = new(strings.Builder)
			t.builds[e.ImportPath] = b
		}
		b.WriteString(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	key := layer + e.Package
	s := t.suites[key]
	if s == nil {
		s = &suite{tests: map[string]*test{}}
		t.suites[key] = s
	}
	if e.Test == "" {
		switch e.Action {
		case "output":
			s.output.WriteString(e.Output)
		case "pass", "fail", "skip":
			if b := t.builds[e.FailedBuild]; b != nil {
				s.output.WriteString(b.String())
			}
			t.finish(key, has, s, e)
			delete(t.suites, key)
		}
		return
	}
	c := s.tests[e.Test]
	if c == nil {
		c = new(test)
		s.tests[e.Test] = c
	}
	switch e.Action {
	case "output":
		c.output.WriteString(e.Output)
		if c.line += e.Output; strings.HasSuffix(c.line, "\n") {
			if t.keep != "" && strings.HasPrefix(c.line, t.keep) {
				fmt.Fprint(t.out, c.line)
			}
			c.line = ""
		}
	case "pass", "fail", "skip":
		c.outcome = e.Action
	}
}

// finish counts a package that has ended and prints its line.
func (t *tally) finish(key string, has map[string]bool, s *suite, e event) {
	names := make([]string, 0, len(s.tests))
	for name := range s.tests {
		names = append(names, name)
	}
	slices.Sort(names)
	var (
		passed, skipped int
		failed          []string
	)
	for i, name := range names {
		c := s.tests[name]
		// In order, a test's subtests come right behind it.
		hasSubtests := i+1 < len(names) && strings.HasPrefix(names[i+1], name+"/")
		switch {
		case c.outcome == "pass" && !hasSubtests:
			passed++
		case c.outcome == "skip":
			reason := skipReason(c.output.String())
			if why := unexcused(reason, has); why != "" {
				failed = append(failed, name)
				fmt.Fprintf(&c.output, "    a skip that is a failure: %s\n", why)
				break
			}
			skipped++
			t.skips = append(t.skips, skip{key + " " + name, reason})
		case c.outcome == "" && !hasSubtests:
			failed = append(failed, name)
			c.output.WriteString("    did not end\n")
		case c.outcome == "fail" && !(hasSubtests && anyFailedBelow(s, name)):
			failed = append(failed, name)
		}
	}
	if len(failed) == 0 && e.Action == "fail" {
		failed = append(failed, "(package)")
		s.tests["(package)"] = &test{}
	}
	t.passed += passed
	if len(failed) == 0 && passed+skipped == 0 {
		return // nothing in it
	}
	word := "ok  "
	if len(failed) > 0 {
		word = "FAIL"
	}
	fmt.Fprintf(t.out, "%s %-60s %4d passed %3d failed %3d skipped %7.1f s\n", word, key, passed, len(failed), skipped, e.Elapsed)
	for _, name := range names {
		if c := s.tests[name]; t.verbose && c.outcome == "pass" {
			fmt.Fprintf(t.out, "---- %s %s\n%s", key, name, lastLines(c.output.String()))
		}
	}
	for _, name := range failed {
		t.failures = append(t.failures, key+" "+name)
		fmt.Fprintf(t.out, "---- %s %s\n%s", key, name, lastLines(s.tests[name].output.String()))
	}
	if len(failed) > 0 && s.output.Len() > 0 {
		fmt.Fprintf(t.out, "---- %s, outside its tests\n%s", key, lastLines(s.output.String()))
	}
}

// shownLines of a failed test are printed: some log every step of an hour.
const shownLines = 200

func lastLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	if drop := len(lines) - shownLines; drop > 0 {
		return fmt.Sprintf("(%d lines are left out)\n%s", drop, strings.Join(lines[drop:], ""))
	}
	return text
}

func anyFailedBelow(s *suite, name string) bool {
	for other, c := range s.tests {
		if strings.HasPrefix(other, name+"/") && c.outcome != "pass" && c.outcome != "skip" {
			return true
		}
	}
	return false
}

// fail counts something that went wrong outside of any test.
func (t *tally) fail(name, what string) {
	t.failures = append(t.failures, name)
	fmt.Fprintf(t.out, "FAIL %s\n%s\n", name, strings.TrimRight(what, "\n"))
}

// skip counts a whole part that could not run.
func (t *tally) skip(name, reason string) {
	t.skips = append(t.skips, skip{name, reason})
}

// close prints the end of the report and tells whether all is well. The last line is for programs to read.
func (t *tally) close(took time.Duration) bool {
	for key := range t.suites {
		t.fail(key, "did not end")
	}
	if len(t.skips) > 0 {
		fmt.Fprintf(t.out, "\nskipped:\n")
	}
	for _, s := range t.skips {
		fmt.Fprintf(t.out, "  %s: %s\n", s.name, s.reason)
	}
	if len(t.failures) > 0 {
		fmt.Fprintf(t.out, "\nfailed:\n")
	}
	for _, name := range t.failures {
		fmt.Fprintf(t.out, "  %s\n", name)
	}
	if t.passed == 0 {
		fmt.Fprintln(t.out, "\nno test ran, which proves nothing")
	}
	fmt.Fprintf(t.out, "\ntook %v\n%d passed, %d failed, %d skipped\n", took.Round(time.Second), t.passed, len(t.failures), len(t.skips))
	return len(t.failures) == 0 && t.passed > 0
}

// position is "file_test.go:12: " before what a test logs.
var position = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// skipReason is what a skipped test said.
func skipReason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			continue
		}
		said = append(said, strings.TrimSpace(position.ReplaceAllString(line, "")))
	}
	return strings.Join(said, " ")
}

// needs finds the feature that a skip names; a remark in parentheses behind it is for people.
var needs = regexp.MustCompile(`needs ([^:(]+?)(?: \([^)]*\))?: ?`)

// unexcused says why a skip is not acceptable; empty if it is. A test may be skipped only for the lack of a feature that the
// runner itself finds missing.
func unexcused(reason string, has map[string]bool) string {
	m := needs.FindStringSubmatch(reason)
	if m == nil {
		return `its reason is not of the form "needs FEATURE: why"`
	}
	present, known := has[strings.ToLower(m[1])]
	switch {
	case !known:
		return fmt.Sprintf("the runner has no way to check for %q (see test/features)", m[1])
	case present:
		return fmt.Sprintf("this machine has %q", m[1])
	}
	return ""
}
