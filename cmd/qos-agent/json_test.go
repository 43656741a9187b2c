package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// runJSON runs a command line and decodes what it prints.
func runJSON(t *testing.T, into any, args ...string) (code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(t.Context(), args, &out, &errs)
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		t.Fatalf("%q: %v\nstdout: %s\nstderr: %s", args, err, &out, &errs)
	}
	return code
}

func TestPolicyCheckJSON(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "10-good.yaml"), filepath.Join(dir, "20-bad.yaml")
	const head = "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: site}\n"
	for file, text := range map[string]string{good: head + "spec: {mode: enforce}\n", bad: head + "spec: {mode: maybe}\n"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []checkedPolicy
	if code := runJSON(t, &got, "policy", "check", "--json", good); code != exitOK || len(got) != 1 || !got[0].OK || got[0].Name != "site" || got[0].Mode != "enforce" || got[0].ID == "" {
		t.Errorf("a good file: exit code %d, %+v", code, got)
	}
	got = nil
	code := runJSON(t, &got, "policy", "check", "--json", dir)
	if code != exitFailure || len(got) != 3 || !got[0].OK || got[1].OK || got[2].OK {
		t.Fatalf("a directory with a bad file: exit code %d, %+v", code, got)
	}
	if e := got[1].Errors; len(e) != 1 || e[0].File != bad || e[0].Line != 4 || e[0].Path != "spec.mode" || e[0].Fix == "" {
		t.Errorf("errors of the bad file: %+v", e)
	}
}

func TestRestoreJSON(t *testing.T) {
	var got restored
	if code := runJSON(t, &got, "restore", "--json", "--run-dir", t.TempDir()); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if diff := cmp.Diff(restored{OK: true, Knobs: []undone{}, Resctrl: []undone{}}, got); diff != "" {
		t.Errorf("nothing to restore (-want +got):\n%s", diff)
	}
}

func TestVersionJSON(t *testing.T) {
	var got versionInfo
	if code := runJSON(t, &got, "version", "--json"); code != exitOK || got.Version != version || got.Go == "" || got.OS != "linux" || got.Arch == "" {
		t.Errorf("exit code %d, %+v", code, got)
	}
}

func TestSimulateJSON(t *testing.T) {
	var got []simulated
	if code := runJSON(t, &got, "simulate", "--json", "--notes", "calm", "antagonist-arrives"); code != exitOK || len(got) != 2 {
		t.Fatalf("exit code %d, %+v", code, got)
	}
	if calm := got[0]; calm.FirstCut != nil || calm.Cuts != 0 || len(calm.Wrong) != 0 {
		t.Errorf("calm: %+v", calm)
	}
	if harm := got[1]; harm.FirstCut == nil || harm.Cuts == 0 || len(harm.Notes) == 0 || harm.Seconds <= 0 {
		t.Errorf("harm: %+v", harm)
	}
}
