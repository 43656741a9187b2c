package sched

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMonitorIsRelaxed(t *testing.T) {
	err := RelaxMonitor(3 * time.Millisecond)
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("needs root: the timer slack of another thread")
	}
	if err != nil {
		t.Fatal(err)
	}
	tid, err := firstThread()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid))
	if err != nil || strings.TrimSpace(string(text)) != "3000000" {
		t.Errorf("thread %d: %q, %v", tid, text, err)
	}
	own, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil || strings.TrimSpace(string(own)) == "3000000" {
		t.Errorf("the first thread: %q, %v", own, err)
	}
}
