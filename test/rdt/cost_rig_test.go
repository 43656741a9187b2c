//go:build amd64

package rdt

//rig:variants many-rmids

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// costContainers is how many containers there are while a tick's cost is measured.
const costContainers = 150

// TestRigLongTickCost runs the daemon over 150 containers, by turns with hardware counters and resctrl and without either. The figures are
// of an emulated machine, so only their ratio means something, and that roughly. Ticks are half a second apart, because that machine
// cannot do them ten times a second.
func TestRigLongTickCost(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	var pods []daemon.Pod
	for i := range costContainers {
		class := "offline"
		if i%3 == 0 {
			class = "online"
		}
		name := fmt.Sprintf("p%03d", i)
		group := "qos-agent-cost/" + name
		populate(t, guest.Group(t, group))
		pods = append(pods, daemon.Pod{Namespace: "cost", Name: name, Labels: map[string]string{"qos-agent.io/class": class}, Cgroup: "/" + group})
	}
	static := filepath.Join(dir, "pods.yaml")
	if err := daemon.WriteStaticPods(static, pods...); err != nil {
		t.Fatal(err)
	}
	const rounds = 3
	var with, without []lab.TickWindow
	for i := range rounds {
		run := func(counted bool) lab.TickWindow {
			return costOf(t, filepath.Join(dir, fmt.Sprint("run", i, counted)), static, counted)
		}
		without = append(without, run(false))
		with = append(with, run(true))
	}
	c := lab.TickCost{Kernel: lab.Kernel(), Containers: costContainers, Rounds: rounds, With: medians(with), Without: medians(without)}
	c.Ratio, c.CPURatio = c.With.TickMS/c.Without.TickMS, c.With.CPUMS/c.Without.CPUMS
	for i := range with {
		r := with[i].TickMS / without[i].TickMS
		if i == 0 {
			c.RatioMin, c.RatioMax = r, r
		}
		c.RatioMin, c.RatioMax = min(c.RatioMin, r), max(c.RatioMax, r)
	}
	t.Logf("with %+v, without %+v", with, without)
	report(t, lab.StoryLine{Cost: &c})
}

// populate puts a process that sleeps into a group.
func populate(t *testing.T, group string) {
	t.Helper()
	sleep := exec.Command("sleep", "10000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleep.Process.Kill() // it may have ended
		_ = sleep.Wait()
	})
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
}

// costOf runs the daemon for some seconds and says what a tick took.
func costOf(t *testing.T, runDir, static string, counted bool) lab.TickWindow {
	t.Helper()
	o := daemon.Options{Binary: os.Getenv("QOS_AGENT_BIN"), StaticPods: static, RunDir: runDir, Interval: 500 * time.Millisecond}
	if counted {
		if err := unix.Mount("resctrl", guest.Resctrl, "resctrl", 0, ""); err != nil {
			t.Fatalf("mount resctrl: %v", err)
		}
		defer unix.Unmount(guest.Resctrl, 0)
	} else {
		o.Extra = []string{"--no-perf"}
	}
	d, err := daemon.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := d.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // groups are made and threads moved
	const known = "qosagent_capability{name=\"perf\"}"
	before := readCost(ctx, t, d)
	for _, ok := before[known]; !ok; _, ok = before[known] { // a loop that is late with its first ticks tells of nothing yet
		if ctx.Err() != nil {
			t.Fatalf("the loop does not answer; log:\n%s", d.Log())
		}
		time.Sleep(2 * time.Second)
		before = readCost(ctx, t, d)
	}
	time.Sleep(10 * time.Second)
	after := readCost(ctx, t, d)
	for _, name := range []string{"perf", "cache_monitoring"} {
		if got := before["qosagent_capability{name=\""+name+"\"}"]; got == 1 != counted {
			t.Fatalf("capability %s is %v, want %v", name, got, counted)
		}
	}
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
	ticks := after["qosagent_tick_seconds_count"] - before["qosagent_tick_seconds_count"]
	if ticks < 5 {
		t.Fatalf("%.0f ticks in 10 s", ticks)
	}
	w := lab.TickWindow{
		TickMS: (after["qosagent_tick_seconds_sum"] - before["qosagent_tick_seconds_sum"]) / ticks * 1e3,
		CPUMS:  (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / ticks * 1e3,
	}
	t.Logf("counted %v: %.0f ticks, %+v", counted, ticks, w)
	return w
}

// readCost is the daemon's metrics, by name and labels.
func readCost(ctx context.Context, t *testing.T, d *daemon.Daemon) map[string]float64 {
	t.Helper()
	_, body, err := d.Get(ctx, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				out[name] = v
			}
		}
	}
	return out
}

func medians(all []lab.TickWindow) lab.TickWindow {
	var tick, cpu []float64
	for _, w := range all {
		tick, cpu = append(tick, w.TickMS), append(cpu, w.CPUMS)
	}
	slices.Sort(tick)
	slices.Sort(cpu)
	return lab.TickWindow{TickMS: (tick[(len(tick)-1)/2] + tick[len(tick)/2]) / 2, CPUMS: (cpu[(len(cpu)-1)/2] + cpu[len(cpu)/2]) / 2}
}
