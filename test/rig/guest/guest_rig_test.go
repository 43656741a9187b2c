//go:build amd64

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// These tests are about the machine: what all others rely on. They come before them.

func TestRigControlsAndMonitors(t *testing.T) {
	root := Mount(t)
	for name, want := range map[string]string{
		"info/L3/cbm_mask": "7ff", "info/L3/num_closids": "16", "info/MB/num_closids": "8", "info/L3_MON/num_rmids": "64",
	} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s: %q (%v), want %s", name, text, err, want)
		}
	}
}

func TestRigModelsContention(t *testing.T) {
	root := Mount(t)
	limited := filepath.Join(root, "limited")
	if err := os.Mkdir(limited, 0o755); err != nil {
		t.Fatal(err)
	}
	service := Start(t, Group(t, "qos-agent-test-service"), "service", "-profile", "2500,16384,600,50")
	last := func() float64 {
		var s struct {
			CPI float64 `json:"cpi"`
		}
		time.Sleep(2500 * time.Millisecond)
		lines := service.Lines()
		if len(lines) == 0 {
			t.Fatal("the service says nothing")
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
			t.Fatal(err)
		}
		return s.CPI
	}
	alone := last()
	hogs := Start(t, Group(t, "qos-agent-test-hogs"), "hog", "-profile", "9000,262144,700,8", "-threads", "3")
	hurt := last()
	tasks, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(hogs.PID()), "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if err := os.WriteFile(filepath.Join(limited, "tasks"), []byte(task.Name()), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(limited, "schemata"), []byte("L3:0=3\n"), 0); err != nil {
		t.Fatal(err)
	}
	helped := last()
	t.Logf("CPI alone %.3f, beside three hogs %.3f, hogs in 2 of 11 ways %.3f", alone, hurt, helped)
	if hurt < 3*alone || helped > 1.3*alone {
		t.Error("the model has no contention, or CAT does not help against it")
	}
}
