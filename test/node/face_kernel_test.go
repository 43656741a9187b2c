package node

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/test/browser"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
)

// hurting is a node on which batch hurts web, and is cut for it. Whether that helps is not looked at here: other work on the machine may make
// web wait as well.
func hurting(t *testing.T) (*fixture, *daemon.Daemon) {
	t.Helper()
	f := newFixture(t, `
  mode: enforce
  objectives: {cpuWaitP99: 1ms, cpuWaitEvent: 2ms}
  cpu: {posture: none, ladder: [idle, quota], hold: 60s, verify: {after: 1m}}
`)
	f.idle("batch")
	d := f.start()
	f.run("batch", work.Spin.On(0), work.Spin.On(0), work.Spin.On(0))
	f.run("web", work.Pulse(3*time.Millisecond, time.Millisecond).On(0))
	f.wait(d, "batch to be cut", func(s *server.State) bool { return holds(s, batch, "cpu.idle") })
	return f, d
}

// agent runs the binary as an operator would, and returns what it prints.
func (f *fixture) agent(args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, f.opts.Binary, args...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("qos-agent %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (f *fixture) contains(what, text string, parts ...string) {
	f.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			f.t.Errorf("%s lacks %q:\n%s", what, p, text)
		}
	}
}

// TestCommandsThatAsk runs top, explain and events against a real daemon, as text, as JSON and following.
func TestCommandsThatAsk(t *testing.T) {
	f, d := hurting(t)
	dir := f.opts.RunDir
	f.contains("top", f.agent("top", "--run-dir", dir), "ENFORCE", web, batch, "pods: 1 online", "HURT BY / HELD AT", "idle 1")
	if text := f.agent("top", "--run-dir", dir, "--class", "offline", "--sort", "cpu"); strings.Contains(text, "\n"+web) || strings.Index(text, batch) > strings.Index(text, report) {
		t.Errorf("offline pods by CPU:\n%s", text)
	}
	var s server.State
	if err := json.Unmarshal([]byte(f.agent("top", "--run-dir", dir, "--json")), &s); err != nil || len(s.Pods) != len(f.pods) {
		t.Errorf("%d pods, %v", len(s.Pods), err)
	}

	f.contains("explain", f.agent("explain", "--run-dir", dir, batch), "class offline", "held: cpu.idle 1 instead of 0", "for "+web, "WHAT WOULD HELP")
	f.contains("explain", f.agent("explain", "--run-dir", dir, "web"), "class online", "WHO HURTS IT", "-cut "+batch+": posture -> idle") // by an event or by a tick, whichever came first
	var x struct {
		Advice []string
		Held   []server.HeldKnob
	}
	if err := json.Unmarshal([]byte(f.agent("explain", "--run-dir", dir, "--json", batch)), &x); err != nil || len(x.Held) == 0 || len(x.Advice) == 0 {
		t.Errorf("%+v %v", x, err)
	}

	// A decision carries its figures, its rule and its policy; the write that follows from it carries them too.
	kinds := map[string]decisionlog.Entry{}
	for line := range strings.Lines(f.agent("events", "--run-dir", dir, "--json", "--pod", batch)) {
		var e decisionlog.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if _, ok := kinds[e.Kind]; !ok && e.Victim == web {
			kinds[e.Kind] = e
		}
	}
	for _, kind := range []string{decisionlog.KindDecision, decisionlog.KindWrite} {
		e := kinds[kind]
		if e.Inputs == nil || e.Inputs.WaitSeconds == 0 || e.Rule == "" || e.Policy == "" || e.Old == "" || e.New == "" {
			t.Errorf("the first %s for web is %+v", kind, e)
		}
	}
	if w := kinds[decisionlog.KindWrite]; w.Knob != "cpu.idle" || w.Result != "written" || w.Old != "0" || w.New != "1" {
		t.Errorf("write: %+v", w)
	}

	follow := exec.CommandContext(f.ctx, f.opts.Binary, "events", "--run-dir", dir, "--follow", "--since", "1h", "--kind", "policy")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func(what string) string {
		if !lines.Scan() || !strings.Contains(lines.Text(), "policy test is in force") {
			t.Errorf("followed, %s: %q %v", what, lines.Text(), lines.Err())
		}
		return lines.Text()
	}
	first := next("what was before it began") // it follows from here on, however long it took to start
	f.policy("  mode: observe\n")
	if second := next("what came then"); second == first {
		t.Errorf("followed %q twice", first)
	}
	if err := follow.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("events --follow after an interrupt: %v", err)
	}
	f.stop(d)

	// The files outlive the daemon, and the next one goes on with them.
	text, err := os.ReadFile(filepath.Join(dir, "decisions.jsonl"))
	if err != nil || !strings.Contains(string(text), `-cut","pod":"`) || !strings.Contains(string(text), "the agent ends") {
		t.Errorf("%v in\n%s", err, text)
	}
	if out, err := exec.CommandContext(f.ctx, f.opts.Binary, "events", "--run-dir", dir).CombinedOutput(); err == nil || !strings.Contains(string(out), "no daemon runs") {
		t.Errorf("without a daemon: %v %s", err, out)
	}
	d = f.start()
	f.contains("events after a restart", f.agent("events", "--run-dir", dir), "-cut", "the agent ends", "begins")
	f.stop(d)
	f.asBefore("after all")
}

// TestTopInATerminal drives the real thing in tmux.
func TestTopInATerminal(t *testing.T) {
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("needs tmux: package tmux is not installed")
	}
	f, d := hurting(t)
	socket := filepath.Join(t.TempDir(), "tmux")
	tmux := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(f.ctx, "tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// The shell stays when top ends, to show what is left on the terminal.
	tmux("new-session", "-d", "-x", "110", "-y", "24", "sh")
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", socket, "kill-server").Run() })
	screen := func(what string, ok func(string) bool) string {
		t.Helper()
		text := ""
		for f.ctx.Err() == nil {
			text = tmux("capture-pane", "-p")
			if ok(text) {
				return text
			}
			select {
			case <-f.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		t.Fatalf("waiting for %s:\n%s", what, text)
		return ""
	}
	shows := func(parts ...string) func(string) bool {
		return func(text string) bool {
			for _, p := range parts {
				if !strings.Contains(text, p) {
					return false
				}
			}
			return true
		}
	}
	tmux("send-keys", "echo before", "Enter", f.opts.Binary+" top --run-dir "+f.opts.RunDir+"; echo left $?", "Enter")
	text := screen("pods", shows("ENFORCE", web, batch, "q quit"))
	t.Logf("top in a terminal of 110 columns:\n%s", text)
	tmux("send-keys", "n")
	screen("the order by name", func(s string) bool {
		return strings.Contains(s, "*POD") && strings.Index(s, batch) < strings.Index(s, web)
	})
	tmux("send-keys", "/", "web", "Enter")
	screen("the filter", func(s string) bool { return strings.Contains(s, `filter "web"`) && !strings.Contains(s, report) })
	tmux("send-keys", "Escape", "h")
	screen("help", shows("by state, worst first"))
	tmux("send-keys", "h")
	tmux("resize-window", "-x", "70", "-y", "12")
	screen("a small window", func(s string) bool { return strings.Contains(s, web) && !strings.Contains(s, "CLASS") })
	f.stop(d)
	screen("the end of the daemon", shows("STALE since", "no daemon runs"))
	d = f.start()
	screen("a new daemon", func(s string) bool { return strings.Contains(s, web) && !strings.Contains(s, "STALE") })
	tmux("send-keys", "q")
	// What is typed before top has ended may still be top's.
	screen("the shell as it was", func(s string) bool {
		return strings.Contains(s, "before") && strings.Contains(s, "left 0") && !strings.Contains(s, "q quit")
	})
	tmux("send-keys", "echo back to $((40 + 2))", "Enter") // the terminal echoes again
	screen("an echo", shows("echo back to $((40", "back to 42"))
	f.stop(d)
}

// TestPageOfARealNode looks at the page of a real daemon in a real browser.
func TestPageOfARealNode(t *testing.T) {
	tab := browser.New(t, 1280, 900)
	f, d := hurting(t)
	tab.Open("http://" + d.Addr + "/")
	for _, shown := range []string{
		"document.querySelector('#link').dataset.state === 'live'",
		"document.querySelector('#mode').textContent === 'enforce'",
		"document.querySelectorAll('table.pods tbody tr').length === 4",
		"document.querySelector('#held').textContent.includes('cpu.idle')",
		"/(event|tick)-cut/.test(document.querySelector('#decisions').textContent)",
		"document.querySelector('#matrix').textContent.includes('jobs/batch')",
		"document.querySelector('#pods-note').textContent.includes('CPI (perf:') || [...document.querySelectorAll('th')].some((t) => t.textContent.startsWith('CPI'))",
	} {
		tab.Wait(shown)
	}
	if os.Getenv("QOS_AGENT_SCREENSHOTS") != "" {
		tab.Wait("Number(document.body.dataset.frames) >= 40") // with something to see in the small curves
		tab.Size(1280, 1120)
	}
	tab.Screenshot("page", false)
	f.stop(d)
	tab.Wait("document.querySelector('#stale').textContent.includes('the agent cannot be reached')")
	for _, fault := range tab.Faults() {
		if !strings.Contains(fault, "ERR_") { // the daemon has gone: that is what the browser says of it
			t.Error(fault)
		}
	}
}
