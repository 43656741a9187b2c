//go:build amd64

package rdt

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/test/rig/guest"
)

// TestRigNamedWays reloads policies that name ways, good and bad, and reads back what the kernel has: a division that fits holds at once, one
// that does not fit the machine holds in no part, and one that contradicts itself leaves the last.
func TestRigNamedWays(t *testing.T) {
	s := newStage(t)
	before := tree(t)
	web, job := s.cast("web", "online"), s.cast("job", "offline")
	web.start(t, "service", "-profile", calm)
	job.start(t, "hog", "-profile", calm)
	s.setPolicy("  rdt: {cache: {ways: 0-8, onlineWays: 0x180}}\n")
	s.run()
	fs, err := rdt.Open(rdt.Dir(guest.Resctrl))
	if err != nil {
		t.Fatal(err)
	}
	eventually := func(ok func() bool, format string, args ...any) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf(format+"; log:\n%s", append(args, s.agent.Log())...)
			}
		}
	}
	limits := func(want map[string]uint64) {
		t.Helper()
		have := map[string]uint64{}
		eventually(func() bool {
			clear(have)
			groups, err := fs.Groups()
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range groups {
				if l, err := fs.Schemata(g); err == nil && len(l.Values("L3")) == 1 {
					have[strings.TrimPrefix(g, "qos-agent.")] = l.Values("L3")[0].Value
				}
			}
			return maps.Equal(have, want)
		}, "the kernel has masks %x, want %x", have, want)
	}
	limits(map[string]uint64{"offline": 0x07f})

	s.setPolicy("  rdt: {cache: {ways: 0-8, onlineWays: 8, offlineWays: 0-1}}\n")
	limits(map[string]uint64{"offline": 0x0ff, "online": 0x1fc})
	// No thread of the online pod may fill what is the offline ones' alone.
	eventually(func() bool {
		threads, err := fs.Tasks("qos-agent.online", nil)
		return err == nil && slices.Contains(threads, web.load.PID())
	}, "thread %d of the online pod is not in its class", web.load.PID())

	// More ways than the machine has: none of them holds, and the log names what there is.
	s.setPolicy("  rdt: {cache: {ways: 0-12, onlineWays: 12}}\n")
	limits(map[string]uint64{"offline": 0x7ff})
	const reason = "spec.rdt.cache.ways: is 0-12, of which the machine lacks 11-12: it has 11 ways (cbm_mask 7ff)"
	eventually(func() bool { return strings.Contains(s.agent.Log(), reason) }, "the log does not say %q", reason)

	s.setPolicy("  rdt: {cache: {onlineWays: 7-10}}\n")
	limits(map[string]uint64{"offline": 0x07f})
	// What contradicts itself is refused, and the last policy stays.
	s.setPolicy("  rdt: {cache: {onlineWays: 7-10, offlineWays: 6-7}}\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.agent.WaitState(ctx, "a policy that is refused", func(st *server.State) bool { return !st.Policy.Reload.OK }); err != nil {
		t.Fatal(err)
	}
	limits(map[string]uint64{"offline": 0x07f})

	// On the machine itself, what it lacks is refused before anybody uses it.
	for policy, want := range map[string]string{
		"{cache: {ways: 0-12}}":              reason,
		"{cache: {ways: 0-3}}":               "",
		`{cache: {ways: "0-3,6"}}`:           "the machine's masks cannot have gaps",
		"{cache: {floorWays: 11}}":           "no more than 11 of the machine's 11 ways (cbm_mask 7ff)",
		"{bandwidth: {floorPercent: 5}}":     "below the machine's least limit (min_bandwidth 10)",
		"{cache: {onlineWays: 3-4}}":         "leaves offline pods 0-2,5-10",
		"{cache: {offlineWays: 0x7ff}}":      "leaves online pods 0 of the 11 ways",
		"{cache: {offlineWays: 0-1}}":        "",
		"{cache: {offlineWays: 0x801}}":      "of which the machine lacks 11",
		"{bandwidth: {floorPercent: 10}}":    "",
		"{cache: {ways: 4-5, floorWays: 2}}": "no more than 2 of the machine's 11 ways",
	} {
		file := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(file, []byte("apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nspec: {rdt: "+policy+"}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(os.Getenv("QOS_AGENT_BIN"), "policy", "check", file).CombinedOutput()
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("policy check of %s: %v\n%swant %q", policy, err, out, want)
		}
	}
	s.end()
	same(t, before, tree(t))
}
