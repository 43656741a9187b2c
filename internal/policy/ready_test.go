package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReadyMadePolicies: each is valid, is named as its file, and differs from the default where it says so and nowhere else.
func TestReadyMadePolicies(t *testing.T) {
	dir := filepath.Join("..", "..", "policies")
	want := map[string][]string{
		"default":      nil,
		"observe-only": {"spec.mode"},
		"conservative": {
			"spec.objectives.cpuWaitP99", "spec.objectives.cpuWaitEvent",
			"spec.judge.window", "spec.judge.minSamples", "spec.judge.culpritPercent", "spec.judge.jointPercent", "spec.judge.unknownPercent",
			"spec.cpu.posture", "spec.cpu.ladder", "spec.cpu.quota.cutPercent", "spec.cpu.quota.floorPercent", "spec.cpu.cooldown",
			"spec.cpu.verify.after", "spec.cpu.verify.improvePercent", "spec.cpu.verify.backoffMin", "spec.cpu.verify.backoffMax",
			"spec.cpu.burst.percent", "spec.safety.releaseAfter", "spec.safety.externalEdits",
		},
		"aggressive-harvest": {
			"spec.objectives.cpuWaitP99", "spec.objectives.cpuWaitEvent", "spec.judge.window", "spec.judge.watchPercent",
			"spec.cpu.ladder", "spec.cpu.cpus.cutPercent", "spec.cpu.cpus.idleBuffer",
			"spec.cpu.quota.period", "spec.cpu.quota.cutPercent", "spec.cpu.quota.growPercent", "spec.cpu.freeze.max",
			"spec.cpu.cooldown", "spec.cpu.hold", "spec.cpu.regrowEvery",
			"spec.cpu.verify.after", "spec.cpu.verify.backoffMin", "spec.cpu.verify.backoffMax", "spec.safety.releaseAfter",
		},
		"koordinator-compatible": {"spec.classes.presets", "spec.cpu.ladder", "spec.cpu.burst.percent", "spec.safety.externalEdits"},
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) != len(want) {
		t.Errorf("got %v, %v; want %d policies", files, err, len(want))
	}
	for name, fields := range want {
		p, err := LoadFile(filepath.Join(dir, name+".yaml"))
		if err != nil {
			t.Error(err)
			continue
		}
		if p.Metadata.Name != name {
			t.Errorf("%s is named %s", name, p.Metadata.Name)
		}
		if _, err := Compile(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		d := Default()
		var r differ
		cmp.Equal(d.Spec, p.Spec, cmp.Reporter(&r))
		wantSet, gotSet := set(fields), set(r.paths)
		if diff := cmp.Diff(wantSet, gotSet); diff != "" {
			t.Errorf("%s differs from the default elsewhere than said (-said +is)\n%s", name, diff)
		}
		text, err := os.ReadFile(filepath.Join(dir, name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if name != "default" && !strings.Contains(string(text), "# When: ") {
			t.Errorf("%s does not say when to use it", name)
		}
	}
}

func set(list []string) map[string]bool {
	m := make(map[string]bool)
	for _, s := range list {
		m[s] = true
	}
	return m
}

// differ collects the paths of fields that differ, as written in YAML; those of lists without their index.
type differ struct {
	path  cmp.Path
	paths []string
}

func (d *differ) PushStep(s cmp.PathStep) { d.path = append(d.path, s) }
func (d *differ) PopStep()                { d.path = d.path[:len(d.path)-1] }
func (d *differ) Report(r cmp.Result) {
	if r.Equal() {
		return
	}
	path := "spec"
	parent := d.path[0].Type()
	for _, s := range d.path[1:] {
		if f, ok := s.(cmp.StructField); ok {
			field := parent.Field(f.Index())
			path += "." + field.Tag.Get("json")
		} else {
			break
		}
		parent = s.Type()
	}
	d.paths = append(d.paths, path)
}

func TestCheckPaths(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"good/10.yaml": head + "metadata: {name: site}\nspec: {judge: {window: 2s}}", // needs the next
		"good/20.yaml": head + "spec: {cpu: {verify: {after: 2s}}}",
		"bad/10.yaml":  head + "spec: {mode: x}",
		"bad/20.yaml":  head + "spec: {cpu: {verify: {backoffMin: 10m}}}",
		"one.yaml":     head + "metadata: {name: one}",
		"broken.yaml":  head + "spec: {mode: x, cpu: {verify: {backoffMin: 10m}}}",
	})
	in := func(name string) string { return filepath.Join(dir, name) }
	var got []string
	for _, c := range CheckPaths(Machine{}, in("one.yaml"), in("broken.yaml"), in("good"), in("bad"), in("none")) {
		name := ""
		if c.Policy != nil {
			name = c.Policy.Name()
		}
		err := ""
		if c.Err != nil {
			err = c.Err.Error()
		}
		got = append(got, strings.ReplaceAll(fmt.Sprintf("%s|%s|%s|%s", c.Path, name, err, c.Note), dir+"/", ""))
	}
	want := []string{
		"one.yaml|one||",
		`broken.yaml||broken.yaml:3: spec.mode: is "x"; want observe or enforce
broken.yaml:3: spec.cpu.verify.backoffMin: is 10m0s, above backoffMax (5m0s); want 5m0s or less|`,
		`good/10.yaml|||not a policy by itself: good/10.yaml:4: spec.cpu.verify.after: is 1s, below the judge's window (2s), which would still hold waits from before the cut; want 2s or more`,
		"good/20.yaml|default||",
		"good|site||",
		`bad/10.yaml||bad/10.yaml:3: spec.mode: is "x"; want observe or enforce|`,
		`bad/20.yaml|||not a policy by itself: bad/20.yaml:3: spec.cpu.verify.backoffMin: is 10m0s, above backoffMax (5m0s); want 5m0s or less`,
		`bad||bad/20.yaml:3: spec.cpu.verify.backoffMin: is 10m0s, above backoffMax (5m0s); want 5m0s or less|cannot be used: see the errors of its files`,
		`none||none: cannot be read: no such file or directory; want a readable file|`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// TestCheckKnowsTheMachine: what a policy asks that the machine lacks is refused where the machine is known, with its limits named, and
// taken where it is not.
func TestCheckKnowsTheMachine(t *testing.T) {
	intel := Machine{Ways: FullWays(11), MinWays: 1, CLOSIDs: 8, MBMin: 10}
	broad, gaps, few := intel, intel, intel
	broad.MinWays, gaps.Sparse, few.CLOSIDs = 2, true, 2
	for _, tt := range []struct {
		name    string
		machine Machine
		rdt     string
		want    string
	}{
		{"the default", intel, "", ""},
		{"more ways than there are", intel, "cache: {ways: 0-12}",
			"f:4: spec.rdt.cache.ways: is 0-12, of which the machine lacks 11-12: it has 11 ways (cbm_mask 7ff); want ways among 0-10"},
		{"the same as a mask", intel, "cache: {onlineWays: 0xf00}",
			"f:4: spec.rdt.cache.onlineWays: is 8-11, of which the machine lacks 11: it has 11 ways (cbm_mask 7ff); want ways among 0-10"},
		{"a higher floor than there are ways", intel, "cache: {floorWays: 12}",
			"f:4: spec.rdt.cache.floorWays: is 12, and offline pods can have no more than 11 of the machine's 11 ways (cbm_mask 7ff); want less than 11, or cache.enabled: false"},
		{"fewer ways than a mask has", broad, "cache: {offlineWays: 0}",
			"f:4: spec.rdt.cache.offlineWays: is 0, fewer ways than the machine's least mask has (min_cbm_bits 2); want 2 ways or more"},
		{"gaps", intel, `cache: {ways: "0-3,8"}`,
			"f:4: spec.rdt.cache.ways: is 0-3,8, and the machine's masks cannot have gaps; want ways that are next to each other"},
		{"gaps where they may be", gaps, `cache: {ways: "0-3,8", onlineWays: 2}`, ""},
		{"a gap for the others", intel, "cache: {onlineWays: 4-6}",
			"f:4: spec.rdt.cache.onlineWays: is 4-6, which leaves offline pods 0-3,7-10, and the machine's masks cannot have gaps; want ways at one end of 0-10"},
		{"nothing for the others", intel, "cache: {offlineWays: 0x7ff}",
			"f:4: spec.rdt.cache.offlineWays: is 0-10, which leaves online pods 0 of the 11 ways; want 1 or more of 0-10 left to online pods"},
		{"more classes than there are", few, "cache: {offlineWays: 0-1}",
			"f:4: spec.rdt.cache.offlineWays: is 0-1, which takes a class of service for offline pods and one for online ones: the machine has 1 beside the default one; want no such field on this machine"},
		{"less bandwidth than a limit has", intel, "bandwidth: {floorPercent: 5}",
			"f:4: spec.rdt.bandwidth.floorPercent: is 5, below the machine's least limit (min_bandwidth 10); want 10 or more, or bandwidth.enabled: false"},
		{"all is well", intel, "cache: {ways: 0-8, onlineWays: 6-8, offlineWays: 0-1, floorWays: 2}, bandwidth: {floorPercent: 20}", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			write(t, filepath.Dir(file), map[string]string{"f": head + "spec:\n rdt: {" + tt.rdt + "}\n"})
			check := func(m Machine) string {
				got := CheckPaths(m, file)
				if len(got) != 1 || (got[0].Policy == nil) != (got[0].Err != nil) {
					t.Fatalf("%+v", got)
				}
				if got[0].Err == nil {
					return ""
				}
				return strings.ReplaceAll(got[0].Err.Error(), file, "f")
			}
			if d := cmp.Diff(tt.want, check(tt.machine)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if got := check(Machine{}); got != "" {
				t.Errorf("where the machine is not known: %s", got)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	c := mustParse(t, `
metadata: {name: site}
spec:
  mode: observe
  classes: {rules: [{name: ci, class: offline, match: {namespaces: [ci]}}]}
  objectives: {ioStallPercent: 0}
  rdt: {cache: {ways: 0-8, onlineWays: 0x180}}
  windows:
  - {name: night, from: "22:00", to: "06:00", days: [mon, tue], mode: enforce, cpuWaitP99: 20ms, cpuWaitEvent: 0, posture: none, ladder: []}
  - {name: rest, from: "00:00", to: "24:00"}
`)
	want := `policy site (id ` + c.ID() + `): observe
  classes     rule ci (offline); presets qos-agent, koordinator, volcano, katalyst
  objectives  CPU wait p99 2ms over 1s, event at 4ms; memory stall 10 %, io stall off, CPI rise 10 %
  offline     posture idle; ladder idle > cpus > quota
  rdt         cache from 1 ways, ways 0-8, online alone 7-8; bandwidth from 10 %
  online      burst 50 %
  safety      stale after 2s, release after 30s; external edits: reapply
  window      night (mon,tue 22:00-06:00): mode enforce, CPU wait p99 20ms, event at off, posture none, ladder empty
  window      rest (every day 00:00-24:00): nothing changes
`
	if d := cmp.Diff(want, Summary(c)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	c = mustParse(t, "spec: {classes: {presets: []}}")
	if !strings.Contains(Summary(c), "classes     none: no pod is protected, none is held back\n") {
		t.Error(Summary(c))
	}
}
