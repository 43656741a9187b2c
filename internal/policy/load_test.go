package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

const head = "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\n" // the spec of tests begins on line 3

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDefaultYAMLIsDefault(t *testing.T) {
	docs, errs := strictyaml.Parse("default.yaml", []byte(DefaultYAML()))
	if len(errs) > 0 || len(docs) != 1 {
		t.Fatal(len(docs), errs)
	}
	var got Policy // not laid over the defaults: the file must say everything
	if errs := docs[0].Decode(&got, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	want := Default()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("policies/default.yaml and Default differ (-Default +file)\n%s", d)
	}
	if err := Validate(&want); err != nil {
		t.Error(err)
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"good", head, ``},
		{"all at once", `apiVersion: qos-agent.io/v1
kind: QoSPolicy
metadata: {name: "a b"}
spec:
  mode: enforced
  objectivs: {}
  objectives:
    cpuWaitP99: 5
  cpu:
    ladder: [quota, idle]
    quota: {cutPercent: 0}
  windows:
  - {name: n, from: 6:00, to: "25:00"}
`, `f:1: apiVersion: is "qos-agent.io/v1"; want qos-agent.io/v1alpha1
f:3: metadata.name: is "a b"; want 1 to 63 letters, digits, dashes, dots or underscores
f:5: spec.mode: is "enforced"; want perhaps enforce (can be observe or enforce)
f:6: spec.objectivs: is not a known field; want perhaps objectives (can be mode, classes, objectives, judge, cpu, rdt, safety or windows)
f:8: spec.objectives.cpuWaitP99: is "5": not a duration with a unit (us, ms, s, m, h); want 0 or 100us to 10s
f:10: spec.cpu.ladder: is [quota idle], out of order; want its rungs in the order idle, cpus, quota, freeze
f:11: spec.cpu.quota.cutPercent: is 0; want 1 to 100
f:13: spec.windows[0].from: is "6:00"; want a time from 00:00 to 23:59
f:13: spec.windows[0].to: is "25:00"; want a time from 00:00 to 24:00`},
		{"another kind", "apiVersion: v1\nkind: ConfigMap\ndata: {}\n", `f:1: apiVersion: is "v1"; want qos-agent.io/v1alpha1
f:2: kind: is "ConfigMap"; want QoSPolicy
f:3: data: is not a known field; want apiVersion, kind, metadata or spec`},
		{"no head", "spec: {mode: observe}", `f:1: apiVersion: is missing; want qos-agent.io/v1alpha1
f:1: kind: is missing; want QoSPolicy`},
		{"empty", "", `f: is empty; want a policy, such as the one that qos-agent policy default prints`},
		{"event below p99", head + "spec: {objectives: {cpuWaitP99: 10ms}}",
			`f:3: spec.objectives.cpuWaitEvent: is 4ms, below cpuWaitP99 (10ms): waits that are allowed would raise alarms; want 10ms or more, or 0`},
		{"event off", head + "spec: {objectives: {cpuWaitP99: 10ms, cpuWaitEvent: 0}}", ``},
		{"joint below culprit", head + "spec: {judge: {culpritPercent: 70}}",
			`f:3: spec.judge.jointPercent: is 60, below culpritPercent (70); want 70 or more: several culprits together explain at least what one alone must`},
		{"rdt", head + "spec: {rdt: {bandwidth: {abundantPercent: 80}, cache: {floorWays: 0}, verify: {after: 200ms}}}",
			`f:3: spec.rdt.cache.floorWays: is 0; want 1 to 32
f:3: spec.rdt.verify.after: is 200ms, below the judge's window (300ms), which would still hold waits from before the cut; want 300ms or more
f:3: spec.rdt.bandwidth.abundantPercent: is 80, not below stressedPercent (75): limits would swing; want less than 75`},
		{"ways", head + "spec: {rdt: {cache: {ways: 3-1, onlineWays: 0x1ffffffff, offlineWays: [0, 1]}}}",
			`f:3: spec.rdt.cache.ways: is "3-1": not a set of ways; want a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31
f:3: spec.rdt.cache.onlineWays: is "0x1ffffffff": not a set of ways; want a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31
f:3: spec.rdt.cache.offlineWays: is a list; want a list of ways (0-3,8) or a mask (0x10f), of ways 0 to 31`},
		{"ways that overlap", head + "spec:\n rdt:\n  cache:\n   onlineWays: 0x00f\n   offlineWays: 3-5",
			`f:6: spec.rdt.cache.onlineWays: is 0-3, which overlaps with offlineWays (3-5) in 3; want ways that are not offline pods' alone`},
		{"ways not among those", head + "spec: {rdt: {cache: {ways: 0-7, onlineWays: 6-9, offlineWays: 10}}}",
			`f:3: spec.rdt.cache.onlineWays: is 6-9, of which 8-9 is not among ways (0-7); want ways among 0-7
f:3: spec.rdt.cache.offlineWays: is 10, of which 10 is not among ways (0-7); want ways among 0-7`},
		{"all ways for one class", head + "spec: {rdt: {cache: {ways: 0-7, onlineWays: 6-9, offlineWays: 0-7}}}",
			`f:3: spec.rdt.cache.onlineWays: is 6-9, which overlaps with offlineWays (0-7) in 6-7; want ways that are not offline pods' alone
f:3: spec.rdt.cache.offlineWays: is 0-7, all that the agent may use: nothing is left to online pods; want a part of 0-7`},
		{"ways", head + "spec: {rdt: {cache: {ways: \"\", onlineWays: 7, offlineWays: 0x3}}}", ``},
		{"backoff", head + "spec: {cpu: {verify: {backoffMin: 10m}}}",
			`f:3: spec.cpu.verify.backoffMin: is 10m0s, above backoffMax (5m0s); want 5m0s or less`},
		{"verify before the window is over", head + "spec:\n  judge:\n    window: 2s",
			`f:5: spec.cpu.verify.after: is 1s, below the judge's window (2s), which would still hold waits from before the cut; want 2s or more`},
		{"quota below the kernel's", head + "spec: {cpu: {quota: {period: 5ms}}}",
			`f:3: spec.cpu.quota.floorPercent: is 10 % of a period of 5ms, which is 500µs; want 1ms or more, the kernel's least quota: a higher floorPercent or a longer period`},
		{"relations of bad fields are not judged", head + "spec: {judge: {culpritPercent: 700, window: 1h}, cpu: {quota: {period: 5ns}}}",
			`f:3: spec.judge.culpritPercent: is 700; want 1 to 100
f:3: spec.judge.window: is 1h; want 100ms to 60s
f:3: spec.cpu.quota.period: is 5ns; want 1ms to 1s`},
		{"rung twice", head + "spec: {cpu: {ladder: [idle, idle]}}", `f:3: spec.cpu.ladder[1]: is idle again; want each rung once`},
		{"empty ladder", head + "spec: {cpu: {ladder: []}}", ``},
		{"preset twice", head + "spec: {classes: {presets: [volcano, volcano]}}", `f:3: spec.classes.presets[1]: is volcano again; want each preset once`},
		{"rules", head + `spec:
  classes:
    rules:
    - {name: a, class: offline, match: {namespaces: [x]}}
    - {name: a, class: batch, match: {}}
    - name: b
      match:
        cgroups: ["kubepods/**", "/a[0-9]"]
        namespaces: ["Web"]
        qosClasses: [Burstable, besteffort]
        labels: {"a.b/c": 1}
`, `f:7: spec.classes.rules[1].class: is "batch"; want online, offline or unclassified
f:7: spec.classes.rules[1].name: is "a" again; want a name of its own for each rule
f:7: spec.classes.rules[1].match: matches nothing; want at least one of labels, annotations, namespaces, qosClasses or cgroups
f:8: spec.classes.rules[2].class: is missing; want online, offline or unclassified
f:10: spec.classes.rules[2].match.cgroups[0]: is "kubepods/**"; want a path that begins with /, in which * stands for any letters but / and ** for any letters
f:10: spec.classes.rules[2].match.cgroups[1]: is "/a[0-9]"; want a path that begins with /, in which * stands for any letters but / and ** for any letters
f:11: spec.classes.rules[2].match.namespaces[0]: is "Web"; want the name of a namespace, in which * stands for any letters
f:12: spec.classes.rules[2].match.qosClasses[1]: is "besteffort"; want perhaps BestEffort (can be Guaranteed, Burstable or BestEffort)
f:13: spec.classes.rules[2].match.labels["a.b/c"]: is the number 1; want text in quotes: "1"`},
		{"windows", head + `spec:
  windows:
  - {name: a, from: "22:00", to: "22:00", days: [mon, mon]}
  - {name: a, from: "00:00", to: "24:00", cpuWaitP99: 20ms, ladder: [quota, cpus]}
`, `f:5: spec.windows[0].to: is 22:00, when the window begins; want another time; from 00:00 to 24:00 is the whole day
f:5: spec.windows[0].days[1]: is mon again; want each day once
f:6: spec.windows[1].name: is "a" again; want a name of its own for each window
f:6: spec.windows[1].ladder: is [quota cpus], out of order; want its rungs in the order idle, cpus, quota, freeze
f:6: spec.windows[1].cpuWaitEvent: is 4ms, below cpuWaitP99 (20ms): waits that are allowed would raise alarms; want 20ms or more, or 0`},
		{"times may go without quotes", head + "spec: {windows: [{name: a, from: 22:00, to: 06:00}]}", ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse("f", []byte(tt.in))
			var got string
			if err != nil {
				got = err.Error()
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if (p == nil) != (err != nil) {
				t.Errorf("got policy %v with error %v", p, err)
			}
		})
	}
}

func TestLoadLaysDocumentsOverEachOther(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"10-site.yaml": head + `metadata: {name: site}
spec:
  judge: {window: 2s} # too long for verify.after, which comes in another file
  classes:
    rules:
    - {name: one, class: offline, match: {namespaces: [batch]}}
    - {name: two, class: offline, match: {namespaces: [ci]}}
`,
		"20-more.yml": "# two documents, and one without anything\n---\n" + head + "spec: {mode: observe, cpu: {ladder: [quota]}}\n---\n# nothing\n---\n" + head + `metadata: {name: last}
spec:
  mode: enforce
  cpu: {verify: {after: 2s}}
  classes:
    rules:
    - {name: three, class: online, match: {namespaces: [web]}}
`,
		".hidden.yaml":    "garbage: [",
		"..data/x.yaml":   "garbage: [",
		"README.md":       "garbage: [",
		"policy.yaml.bak": "garbage: [",
	})
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Metadata.Name = "last"
	want.Spec.Judge.Window = Duration(2 * time.Second)
	want.Spec.CPU.Verify.After = Duration(2 * time.Second)
	want.Spec.CPU.Ladder = []Rung{RungQuota}
	want.Spec.Classes.Rules = []ClassRule{{Name: "three", Class: Online, Match: Match{Namespaces: []string{"web"}}}}
	if d := cmp.Diff(&want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestLoadNamesTheFileToMend(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"a.yaml": head + "spec:\n  cpu:\n    verify: {backoffMin: 20m}\n",
		"b.yaml": head + "spec:\n  cpu:\n    verify:\n      backoffMax: 10m\n",
		"c.yaml": "spec: [",
		"d.yaml": "",
	})
	_, err := Load(dir)
	want := strings.ReplaceAll(`DIR/a.yaml:5: spec.cpu.verify.backoffMin: is 20m0s, above backoffMax (10m0s); want 10m0s or less
DIR/c.yaml:1: is not valid YAML: did not find expected node content; want valid YAML
DIR/d.yaml: is empty; want a policy, such as the one that qos-agent policy default prints`, "DIR", dir)
	if d := cmp.Diff(want, fmt.Sprint(err)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	var list ErrorList
	if !errors.As(err, &list) || len(list) != 3 || list[0].Path != "spec.cpu.verify.backoffMin" {
		t.Errorf("got %#v", err)
	}
}

func TestLoadBadDirectories(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"empty/README": "", "many/x.yaml": head, "odd/a.yaml": head, "file": ""})
	for i := range maxFiles {
		write(t, dir, map[string]string{fmt.Sprintf("many/%d.yaml", i): head})
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "odd/fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "odd/dir.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"odd/dangling.yaml": "nothing", "odd/zero.yaml": "/dev/zero"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"empty": "DIR: holds no *.yaml or *.yml file; want at least one: qos-agent policy default > DIR/default.yaml",
		"none":  "DIR: cannot be read: no such file or directory; want a directory with policy files",
		"file":  "DIR: is not a directory; want the directory that holds the policy files",
		"many":  "DIR: holds 65 policy files; want at most 64",
		"odd": `DIR/dangling.yaml: cannot be read: no such file or directory; want a readable file
DIR/dir.yaml: is a directory; want a regular file
DIR/fifo.yaml: is a named pipe; want a regular file
DIR/zero.yaml: is a device; want a regular file`,
	} {
		path := filepath.Join(dir, name)
		_, err := Load(path)
		if d := cmp.Diff(strings.ReplaceAll(want, "DIR", path), fmt.Sprint(err)); d != "" {
			t.Errorf("%s (-want +got)\n%s", name, d)
		}
		if got, want := errors.Is(err, ErrNoPolicy), name == "empty"; got != want {
			t.Errorf("%s: ErrNoPolicy is %v", name, got)
		}
		if got, want := errors.Is(err, fs.ErrNotExist), name == "none" || name == "odd"; got != want {
			t.Errorf("%s: fs.ErrNotExist is %v", name, got)
		}
	}
}

// A file of ConfigMaps, as it is kept in a repository, is read as what the agent would find mounted.
func TestLoadFileOfConfigMaps(t *testing.T) {
	const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata:\n  %s: |\n    apiVersion: qos-agent.io/v1alpha1\n    kind: QoSPolicy\n    spec: {%s}\n"
	one := fmt.Sprintf(configMap, "one", "20-b.yaml", "mode: observe")
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"two.yaml":   one + "---\n" + fmt.Sprintf(configMap, "two", "10-a.yaml", "mode: enforce, objectives: {cpuWaitP99: 3ms}"),
		"bad.yaml":   one + "---\n" + fmt.Sprintf(configMap, "two", "30-c.yaml", "mode: maybe"),
		"mixed.yaml": one + "---\n" + head,
		"none.yaml":  "kind: ConfigMap\ndata: {notes.txt: hello}\n",
	})
	p, err := LoadFile(filepath.Join(dir, "two.yaml"))
	if err != nil || p.Spec.Mode != Observe || p.Spec.Objectives.CPUWaitP99 != Duration(3*time.Millisecond) {
		t.Errorf("two ConfigMaps: %+v %v", p, err)
	}
	for file, want := range map[string]string{
		"bad.yaml": "bad.yaml#30-c.yaml:3: spec.mode: ", "mixed.yaml": "mixed.yaml:2: kind: is \"ConfigMap\"", "none.yaml": "kind: is \"ConfigMap\"",
	} {
		if _, err := LoadFile(filepath.Join(dir, file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", file, err, want)
		}
		if got := CheckPaths(Machine{}, filepath.Join(dir, file)); len(got) != 1 || got[0].Err == nil {
			t.Errorf("%s is checked as %+v", file, got)
		}
	}
}

func TestLoadMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	mountConfigMap(t, dir, "1", map[string]string{"site.yaml": head + "spec: {mode: observe}"})
	p, err := Load(dir)
	if err != nil || p.Spec.Mode != Observe {
		t.Fatalf("got %+v, %v", p, err)
	}
}

// TestGarbageCostsLittle loads what a mishap could put in place of a policy.
func TestGarbageCostsLittle(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [*a%d,*a%d,*a%d,*a%d]\n", i, i, i-1, i-1, i-1, i-1)
	}
	for name, in := range map[string]string{
		"10 MB":      strings.Repeat("spec: {}\n", 10<<20/9),
		"1 MiB":      strings.Repeat("x", 1<<20),
		"binary":     strings.Repeat("\x7fELF\x00\x01\xfe", 1000),
		"commas":     strings.Repeat(",", 1<<20),
		"brackets":   strings.Repeat("[", 90_000),
		"many keys":  head + "spec:\n" + strings.Repeat("  a: 1\n", 30_000),
		"alias bomb": bomb.String(),
		"long lines": head + "spec: {mode: " + strings.Repeat("enforce", 100_000) + "}",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"p.yaml": in})
			in = ""
			before := allocated()
			_, err := Load(dir)
			if err == nil || len(err.Error()) > 40_000 {
				t.Errorf("got %.200v", err)
			}
			if used := allocated() - before; used > 128<<20 {
				t.Errorf("allocated %d MiB", used>>20)
			}
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultYAML()))
	f.Add([]byte(head + "spec: {classes: {rules: [{name: a, class: online, match: {cgroups: [/a/**/*b]}}]}, windows: [{name: w, from: '22:00', to: '06:00', ladder: []}]}"))
	f.Add([]byte(head + "---\n" + head + "spec: {mode: observe}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := Parse("f", in)
		if err != nil {
			var list ErrorList
			if !errors.As(err, &list) || len(list) == 0 || len(err.Error()) > 200_000 {
				t.Fatalf("bad error %T %.200v", err, err)
			}
			return
		}
		c, err := Compile(p)
		if err != nil {
			t.Fatalf("loaded, but does not compile: %v", err)
		}
		now := time.Date(2024, 3, 31, 2, 30, 0, 0, time.UTC)
		if s := c.At(now); Validate(&Policy{APIVersion: APIVersion, Kind: Kind, Metadata: p.Metadata, Spec: *s}) != nil {
			t.Fatalf("variant is not valid: %+v", s)
		}
		c.Classify(Subject{Namespace: "kube-system", Cgroup: "/kubepods/besteffort/pod1/x"})
		_ = Summary(c)
	})
}
