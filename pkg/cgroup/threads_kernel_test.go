package cgroup_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/test/work"
)

// TestThreadsOnTheKernel has processes in groups nested below a pod's, and finds all of their threads.
func TestThreadsOnTheKernel(t *testing.T) {
	h, tree := kernelTree(t)
	var want []int
	for _, sub := range []string{"pod/a", "pod/b/nested"} {
		group, err := tree.Make(sub)
		if err != nil {
			t.Fatal(err)
		}
		load, err := work.Start(work.Pulse(time.Millisecond, 20*time.Millisecond), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer load.Stop()
		if err := tree.Join(group, load.PID()); err != nil {
			t.Fatal(err)
		}
		want = append(want, load.PID())
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		// Go starts threads when it needs them: what one look shows is right if the looks before and after it agree.
		before := threadsOf(t, want)
		got, err := h.Threads(tree.Path("pod"), nil)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		// Two threads, the processes' first ones, would prove little.
		if after := threadsOf(t, want); slices.Equal(before, after) && len(after) > len(want) {
			if !slices.Equal(got, before) {
				t.Errorf("threads %v, want %v", got, before)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the processes start threads all the time, or none")
		}
	}
	if got, err := h.Threads(tree.Path("gone"), nil); err != nil || len(got) > 0 {
		t.Errorf("of a group that is not there: %v, %v", got, err)
	}
}

func threadsOf(t *testing.T, pids []int) []int {
	t.Helper()
	var out []int
	for _, pid := range pids {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			tid, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, tid)
		}
	}
	slices.Sort(out)
	return out
}
