//go:build amd64

package rdt_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

func requirePqos(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("pqos"); err != nil {
		t.Skip("needs pqos: ", err)
	}
	if err := os.MkdirAll("/var/lock", 0o755); err != nil { // for its lock file
		t.Fatal(err)
	}
}

// pqos runs Debian's pqos in its resctrl mode, an eye that is not ours.
func pqos(t *testing.T, args ...string) string {
	t.Helper()
	requirePqos(t)
	out, err := exec.Command("pqos", append([]string{"-I"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("pqos -I %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestRigPqosAllocation has pqos show what we have set. It knows groups by the names that it gives itself, COS1 and so on.
func TestRigPqosAllocation(t *testing.T) {
	f, err := rdt.Open(rdt.Dir(guest.Mount(t)))
	if err != nil {
		t.Fatal(err)
	}
	makeGroup(t, f, "COS1")
	for _, c := range []struct{ mask, mb uint64 }{{0x3, 20}, {0x7f0, 50}, {0x7ff, 100}} {
		if _, _, err := f.SetLimits("COS1", []rdt.Line{{"L3", []rdt.Domain{{0, c.mask}}}, {"MB", []rdt.Domain{{0, c.mb}}}}); err != nil {
			t.Fatal(err)
		}
		out := pqos(t, "-s")
		t.Log(out)
		mask := regexp.MustCompile(`L3CA COS1 => MASK 0x([0-9a-f]+)`).FindStringSubmatch(out)
		mb := regexp.MustCompile(`MBA COS1 => (\d+)%`).FindStringSubmatch(out)
		if mask == nil || mb == nil {
			t.Fatalf("pqos does not show COS1:\n%s", out)
		}
		if m, _ := strconv.ParseUint(mask[1], 16, 64); m != c.mask {
			t.Errorf("we set the mask %x, pqos reads %s", c.mask, mask[1])
		}
		if mb[1] != strconv.FormatUint(c.mb, 10) {
			t.Errorf("we set %d%%, pqos reads %s%%", c.mb, mb[1])
		}
	}
	// And the other way round: pqos sets, we read.
	pqos(t, "-e", "llc:1=0xf")
	s, err := f.Schemata("COS1")
	if err != nil || s.Values("L3")[0].Value != 0xf {
		t.Errorf("pqos set f, we read %v, %v", s, err)
	}
}

// TestRigPqosMonitoring reads the counters of the same processes at the same time as pqos.
func TestRigPqosMonitoring(t *testing.T) {
	f, err := rdt.Open(rdt.Dir(guest.Mount(t)))
	if err != nil {
		t.Fatal(err)
	}
	hog := guest.Start(t, guest.Group(t, "qos-agent-test-hogs"), "hog", "-profile", "4000,8192,700,8")
	time.Sleep(500 * time.Millisecond) // its threads start
	cmd := exec.Command("pqos", "-I", "-p", "all:"+strconv.Itoa(hog.PID()), "-t", "5", "-u", "csv")
	requirePqos(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var counters *rdt.Counters
	var first rdt.Reading
	var began time.Time
	var theirs []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		t.Log(line)
		if counters == nil {
			// pqos has made a monitoring group: its counters are the ones to read.
			groups, err := f.MonGroups("")
			if err != nil {
				t.Fatal(err)
			}
			if len(groups) == 0 {
				continue
			}
			if counters, err = f.Counters(groups[0]); err != nil {
				t.Fatal(err)
			}
			first, began = readOne(t, counters), time.Now()
			theirs = nil
			continue
		}
		if strings.Contains(line, strconv.Itoa(hog.PID())) {
			theirs = append(theirs, line)
			if len(theirs) == 3 {
				break
			}
		}
	}
	if counters == nil || len(theirs) < 3 {
		t.Fatal("pqos did not monitor")
	}
	last, took := readOne(t, counters), time.Since(began)
	counters.Close()
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	ourMBps := float64(last.Total-first.Total) / took.Seconds() / (1 << 20)
	// Time,PID,IPC,LLC Misses,LLC[KB],MBL[MB/s],MBR[MB/s]
	fields := strings.Split(theirs[2], ",")
	if len(fields) < 6 {
		t.Fatalf("line of pqos %q", theirs[2])
	}
	llc, err1 := strconv.ParseFloat(fields[len(fields)-3], 64)
	local, err2 := strconv.ParseFloat(fields[len(fields)-2], 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	t.Logf("pqos: %.0f KiB, %.0f MB/s; we: %d KiB, %.0f MB/s", llc, local, last.Occupancy>>10, ourMBps)
	if ours := float64(last.Occupancy >> 10); llc < 0.8*ours || llc > 1.25*ours {
		t.Errorf("occupancy: pqos %.0f KiB, we %.0f KiB", llc, ours)
	}
	if local < 0.7*ourMBps || local > 1.4*ourMBps {
		t.Errorf("bandwidth: pqos %.0f MB/s, we %.0f MB/s", local, ourMBps)
	}
}

func readOne(t *testing.T, c *rdt.Counters) rdt.Reading {
	t.Helper()
	r, err := c.Read(nil)
	if err != nil || len(r) != 1 || r[0].State() != rdt.OK {
		t.Fatalf("read %+v, %v", r, err)
	}
	return r[0]
}
