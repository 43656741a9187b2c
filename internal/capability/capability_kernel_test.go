package capability

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// helperEnv makes the test binary play a part in a process of its own.
const helperEnv = "QOS_AGENT_CAPABILITY_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "report":
		r := Run(context.Background(), Options{CRIEndpoints: []string{"unix:///none.sock"}})
		if err := json.NewEncoder(os.Stdout).Encode(r.Document()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "hold":
		p := newProber(Options{})
		for _, c := range probed {
			if _, err := p.group(c); err != nil {
				os.Exit(1)
			}
		}
		_, _ = os.Stdout.WriteString("made\n")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test kills or leaves us
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// probed are controllers that every kernel test's machine has.
var probed = []cgroup.Controller{cgroup.CPU, cgroup.CPUSet, cgroup.Freezer}

func needRoot(t *testing.T) *cgroup.Hierarchy {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: groups of the machine are made")
	}
	h, err := cgroup.Detect("/sys/fs/cgroup")
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	return h
}

// groupsOf lists the probe groups of a process that exist on the machine.
func groupsOf(t *testing.T, h *cgroup.Hierarchy, pid int) (out []string) {
	t.Helper()
	p := prober{hierarchy: h}
	for _, mount := range p.mounts() {
		if dir := filepath.Join(mount, groupPrefix+strconv.Itoa(pid)); exists(dir) {
			out = append(out, dir)
		}
	}
	return out
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func TestRunOnThisMachine(t *testing.T) {
	h := needRoot(t)
	r := Run(t.Context(), Options{})
	var b bytes.Buffer
	_ = r.WriteText(&b)
	t.Logf("\n%s", &b)
	for _, name := range []string{CgroupLayout, CPUWeight, CPUQuota, CPUSet, Freezer, "memory"} {
		if !r.Has(name) {
			t.Errorf("%s is missing on the machine that we test on", name)
		}
	}
	if exists("/sys/kernel/btf/vmlinux") && !r.Has(RunQueue) {
		t.Error("the BPF programs do not load although the kernel has BTF")
	}
	if left := groupsOf(t, h, os.Getpid()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRunTwiceIsTheSame(t *testing.T) {
	needRoot(t)
	o := Options{Trace: func() error { return nil }, CRIEndpoints: []string{"unix:///none.sock"}}
	a, b := Run(t.Context(), o), Run(t.Context(), o)
	for i := range a.Probes {
		if a.Probes[i] != b.Probes[i] {
			t.Errorf("%+v, then %+v", a.Probes[i], b.Probes[i])
		}
	}
}

// What a killed doctor leaves is removed by the next one, and what a running one uses is not.
func TestKilledInBetween(t *testing.T) {
	h := needRoot(t)
	pid, kill := startHolder(t)
	o := Options{Trace: func() error { return nil }, CRIEndpoints: []string{"unix:///none.sock"}}
	Run(t.Context(), o)
	if len(groupsOf(t, h, pid)) == 0 {
		t.Error("the groups of a running doctor are gone")
	}
	kill()
	if len(groupsOf(t, h, pid)) == 0 {
		t.Fatal("a killed doctor left nothing: the test proves nothing")
	}
	Run(t.Context(), o)
	if left := groupsOf(t, h, pid); len(left) > 0 {
		t.Errorf("left behind by the killed one: %v", left)
	}
}

func startHolder(t *testing.T) (pid int, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=hold")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		t.Fatalf("helper: %q %v", line, err)
	}
	return cmd.Process.Pid, kill
}

func TestRunWithoutRoot(t *testing.T) {
	needRoot(t)
	// The test binary lies where only root can go.
	program := filepath.Join(t.TempDir(), "doctor")
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(program); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Env = []string{helperEnv + "=report"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("doctor without root: %v", err)
	}
	var doc Document
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	r := Report{Probes: doc.Probes}
	if doc.CanRun || r.Has(CPUWeight) || r.Has(RunQueue) || !r.Has(CgroupLayout) {
		t.Errorf("%s", out)
	}
	for _, p := range doc.Probes {
		if !p.OK && (p.Detail == "" || p.Lost == "" || p.Fix == "") {
			t.Errorf("%+v", p)
		}
	}
}
