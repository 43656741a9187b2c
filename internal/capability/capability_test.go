package capability

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/pkg/rdt"
	"github.com/qos-agent/qos-agent/pkg/rdt/rdttest"
)

// fakeGroups makes probe groups in a fake tree, which has all its hierarchies' groups made at once.
type fakeGroups struct {
	cgroup.FS
	f *cgrouptest.Fake
}

func (g fakeGroups) Make(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return g.f.Mkdir("/" + filepath.Base(dir))
}

func (g fakeGroups) Remove(dir string) error { return g.f.Rmdir("/" + filepath.Base(dir)) }

// writeTree writes files below dir.
func writeTree(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"

func goodProc(t *testing.T) string {
	return writeTree(t, t.TempDir(), map[string]string{
		"sys/kernel/osrelease": "6.1.0-25-amd64\n", "thread-self/schedstat": "100 200 3\n", "filesystems": "nodev\tsysfs\n",
		"pressure/cpu": pressure, "pressure/memory": pressure, "pressure/io": pressure,
	})
}

func goodSys(t *testing.T) string {
	return writeTree(t, t.TempDir(), map[string]string{"kernel/btf/vmlinux": "\x9f\xeb\x01"})
}

// fakeOptions is a machine on which everything works that a fake can play.
func fakeOptions(t *testing.T, f *cgrouptest.Fake) Options {
	t.Helper()
	if f.Hierarchy().V2(cgroup.CPUSet) {
		if err := f.Put("/", "cpuset.cpus.effective", "0-7\n"); err != nil {
			t.Fatal(err)
		}
	}
	return Options{
		Proc: goodProc(t), Sys: goodSys(t), CgroupRoot: f.Hierarchy().Root(),
		Groups: fakeGroups{f.FS(), f}, Trace: func() error { return nil }, Alive: func(int) bool { return true },
		CRIEndpoints: []string{"unix://" + t.TempDir() + "/none.sock"}, PID: 77,
	}
}

func probe(t *testing.T, r Report, name string) Probe {
	t.Helper()
	for _, p := range r.Probes {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no probe %s", name)
	return Probe{}
}

func TestRunOnEveryLayout(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Hybrid, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) {
			f := cgrouptest.NewFake(t, mode)
			o := fakeOptions(t, f)
			before := cgrouptest.Snapshot(f)
			r := Run(t.Context(), o)
			if diff := cmp.Diff(before, cgrouptest.Snapshot(f)); diff != "" {
				t.Errorf("something is left behind:\n%s", diff)
			}
			if !r.CanRun() {
				t.Errorf("cannot run without %v", r.Missing())
			}
			want := signal.Capabilities{RunQueue: true, CPUIdle: true, CPUBurst: true, CPUQuota: true, CPUSet: true, Freeze: true, GroupPSI: mode == cgroup.Unified}
			if diff := cmp.Diff(want, r.Capabilities()); diff != "" {
				var b bytes.Buffer
				_ = r.WriteText(&b)
				t.Errorf("%s\n%s", diff, &b)
			}
			if p := probe(t, r, CgroupLayout); !strings.Contains(p.Detail, mode.String()) {
				t.Errorf("layout: %+v", p)
			}
		})
	}
}

func TestCountersAreLeftToOthers(t *testing.T) {
	o := fakeOptions(t, cgrouptest.NewFake(t, cgroup.Unified))
	o.NoPerf = true
	r := Run(t.Context(), o)
	if p := probe(t, r, Perf); p.OK || p.Detail != "turned off by --no-perf" || p.Fix != "start the agent without --no-perf" || p.Lost == "" {
		t.Errorf("perf: %+v", p)
	}
	if !r.CanRun() || r.Capabilities().Perf {
		t.Errorf("can run: %v, %+v", r.CanRun(), r.Capabilities())
	}
}

func TestRunWithoutAFeature(t *testing.T) {
	tests := []struct {
		file  string
		mode  cgroup.Mode
		probe string
	}{
		{"cpu.idle", cgroup.Unified, CPUIdle},
		{"cpu.idle", cgroup.Legacy, CPUIdle},
		{"cpu.max.burst", cgroup.Unified, CPUBurst},
		{"memory.usage_in_bytes", cgroup.Hybrid, "memory"},
		{"cgroup.freeze", cgroup.Unified, Freezer},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.mode, " ", tt.file), func(t *testing.T) {
			r := Run(t.Context(), fakeOptions(t, cgrouptest.NewFake(t, tt.mode, tt.file)))
			p := probe(t, r, tt.probe)
			if p.OK || p.Detail != "groups have no file "+tt.file {
				t.Errorf("%+v", p)
			}
			if !r.CanRun() {
				t.Errorf("the main job does not need it: %v", r.Missing())
			}
		})
	}
}

// A controller that nobody has switched on yet is another thing than a kernel without it, and has another remedy.
func TestRunWithControllerOff(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Unified, "cpu.weight", "cpu.idle", "cpu.max", "cpu.max.burst")
	o := fakeOptions(t, f)
	writeTree(t, o.CgroupRoot, map[string]string{"cgroup.subtree_control": "memory pids\n"})
	r := Run(t.Context(), o)
	p := probe(t, r, CPUWeight)
	if p.OK || !strings.Contains(p.Detail, "not enabled") || !strings.Contains(p.Fix, "echo +cpu > ") {
		t.Errorf("%+v", p)
	}
	if diff := cmp.Diff([]string{CPUWeight}, r.Missing()); diff != "" {
		t.Error(diff)
	}
}

func TestRunWithReadOnlyTree(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Unified)
	f.Fault = func(group, file, text string) error {
		return &cgroup.FileError{Op: "write", Path: file, Err: unix.EACCES}
	}
	r := Run(t.Context(), fakeOptions(t, f))
	if r.CanRun() || r.Has(CPUWeight) || !r.Has("memory") {
		t.Errorf("%+v", r)
	}
}

// The kernel may take a write and show another value: that is no capability.
func TestRunReadsBack(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Unified)
	o := fakeOptions(t, f)
	o.Groups = deafGroups{o.Groups}
	p := probe(t, Run(t.Context(), o), CPUWeight)
	if p.OK || p.Detail != `cpu.weight: wrote "50" and read "100"` {
		t.Errorf("%+v", p)
	}
}

type deafGroups struct{ Groups }
type deafGroup struct{ cgroup.Group }
type deafFile struct{ cgroup.RW }

func (g deafGroups) OpenGroup(dir string) (cgroup.Group, error) {
	group, err := g.Groups.OpenGroup(dir)
	return deafGroup{group}, err
}

func (g deafGroup) Open(name string) (cgroup.RW, error) {
	f, err := g.Group.Open(name)
	return deafFile{f}, err
}

func (deafFile) WriteText([]byte) error { return nil }

// On a machine that has nothing every line still says what is wrong, what is lost and what to do, and nothing crashes.
func TestRunOnNothing(t *testing.T) {
	empty := t.TempDir()
	r := Run(t.Context(), Options{
		Proc: empty, Sys: empty, CgroupRoot: empty + "/none", CRIEndpoints: []string{"unix://" + empty + "/none.sock"},
		Trace: func() error { return advise(errors.New("two\nlines"), "another\nkernel") },
	})
	if diff := cmp.Diff([]string{RunQueue, CgroupLayout, CPUWeight}, r.Missing()); diff != "" {
		t.Error(diff)
	}
	for _, p := range r.Probes {
		if p.Name == Realtime { // asks the kernel, not a root
			continue
		}
		if p.OK || p.Detail == "" || p.Lost == "" || p.Fix == "" || strings.Contains(p.Detail+p.Fix, "\n") {
			t.Errorf("%+v", p)
		}
	}
	if p := probe(t, r, RunQueue); p.Fix != "another kernel" {
		t.Errorf("advice is lost: %+v", p)
	}
	if r.Capabilities() != (signal.Capabilities{}) {
		t.Errorf("%+v", r.Capabilities())
	}
}

func TestSweep(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Hybrid)
	for _, g := range []string{"/qos-agent-probe-1", "/qos-agent-probe-2", "/qos-agent-probe-77", "/qos-agent-probe-x", "/kubepods"} {
		if err := f.Mkdir(g); err != nil {
			t.Fatal(err)
		}
	}
	o := fakeOptions(t, f)
	o.Alive = func(pid int) bool { return pid == 2 }
	Run(t.Context(), o)
	var left []string
	err := f.Hierarchy().Walk(cgroup.CPU, "/", func(g string) error { left = append(left, g); return nil })
	if diff := cmp.Diff([]string{"/", "/kubepods", "/qos-agent-probe-2", "/qos-agent-probe-x"}, left); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestPSIOfGroupsOnHybrid(t *testing.T) {
	f := cgrouptest.NewFake(t, cgroup.Hybrid)
	if p := probe(t, Run(t.Context(), fakeOptions(t, f)), GroupPSI); p.OK || !strings.Contains(p.Detail, "v1 hierarchies") {
		t.Errorf("empty v2 tree: %+v", p)
	}
	if err := f.Mkdir("/system.slice"); err != nil {
		t.Fatal(err)
	}
	if p := probe(t, Run(t.Context(), fakeOptions(t, f)), GroupPSI); !p.OK {
		t.Errorf("systemd uses the v2 tree: %+v", p)
	}
}

func TestKernelRelease(t *testing.T) {
	for release, ok := range map[string]bool{
		"6.18.44-fc": true, "5.14.0-427.el9.x86_64": true, "5.13.19": false, "4.19.0": false, "10.0": true, "": false, "linux": false,
	} {
		p := newProber(Options{Proc: writeTree(t, t.TempDir(), map[string]string{"sys/kernel/osrelease": release + "\n"})})
		if _, err := p.kernel(t.Context()); (err == nil) != ok {
			t.Errorf("%q: %v", release, err)
		}
	}
}

func TestFilesThatLie(t *testing.T) {
	p := newProber(Options{
		Proc: writeTree(t, t.TempDir(), map[string]string{
			"thread-self/schedstat": "0 0 0\n", "pressure/cpu": "", "pressure/memory": pressure, "pressure/io": pressure,
		}),
		Sys: writeTree(t, t.TempDir(), map[string]string{"kernel/btf/vmlinux": "ELF"}),
	})
	for name, try := range map[string]func(context.Context) (string, error){"btf": p.btf, "sched_info": p.schedInfo, "psi_node": p.psiNode} {
		if found, err := try(t.Context()); err == nil {
			t.Errorf("%s: %q", name, found)
		}
	}
}

func TestResctrl(t *testing.T) {
	all := rdttest.Machine{Ways: 11, CLOSIDs: 8, RMIDs: 64, MB: rdt.Percent, Old: true}
	full := all
	full.CLOSIDs = 1
	for _, tt := range []struct {
		name string
		tree rdt.Tree
		proc string // /proc/filesystems
		// what each probe found, or in front of it "!" and the reason
		resctrl, cat, mba, cmt, mbm string
		fix                         string
	}{
		{name: "none", proc: "nodev\tsysfs\n", resctrl: "!this CPU or this kernel does not have it", cat: "!there is no resctrl",
			mba: "!there is no resctrl", cmt: "!there is no resctrl", mbm: "!there is no resctrl"},
		{name: "not mounted", proc: "nodev\tsysfs\nnodev\tresctrl\n", resctrl: "!the CPU and the kernel have it, but it is not mounted", cat: "!there is no resctrl",
			mba: "!there is no resctrl", cmt: "!there is no resctrl", mbm: "!there is no resctrl", fix: "mount -t resctrl resctrl "},
		{name: "all", tree: rdttest.New(all), resctrl: "mounted, 8 classes of service", cat: "L3: 11 ways, masks of 1 or more",
			mba: "from 10 in steps of 10, in percent; threads of a core share the strictest limit", cmt: "1 domains, 64 groups at most", mbm: "1 domains, 64 groups at most"},
		{name: "monitoring only", tree: rdttest.New(rdttest.Machine{RMIDs: 64, Domains: []int{0, 1}}), resctrl: "mounted",
			cat: "!the CPU cannot partition its caches (CAT)", mba: "!the CPU cannot limit memory bandwidth (MBA)", cmt: "2 domains, 64 groups at most", mbm: "2 domains, 64 groups at most"},
		{name: "code and data", tree: rdttest.New(rdttest.Machine{Ways: 20, MinBits: 2, Shareable: 0xc0000, CDP: true, Sparse: true}), resctrl: "mounted, 8 classes of service",
			cat: "L3CODE: 20 ways, masks of 2 or more, with gaps, c0000 shared with devices; L3DATA: 20 ways, masks of 2 or more, with gaps, c0000 shared with devices; code and data apart (CDP)",
			mba: "!the CPU cannot limit memory bandwidth (MBA)", cmt: "!the CPU does not tell how much cache a group holds (CMT)", mbm: "!the CPU does not tell how much memory bandwidth a group uses (MBM)"},
		{name: "no class is free", tree: rdttest.New(full), resctrl: "mounted", cat: "L3: 11 ways, masks of 1 or more; not tried, as no class is free",
			mba: "from 10 in steps of 10, in percent; threads of a core share the strictest limit; not tried, as no class is free", cmt: "1 domains, 64 groups at most", mbm: "1 domains, 64 groups at most"},
		{name: "mounted and empty", tree: rdttest.New(rdttest.Machine{}), resctrl: "!mounted, but it controls and monitors nothing",
			cat: "!the CPU cannot partition its caches (CAT)", mba: "!the CPU cannot limit memory bandwidth (MBA)",
			cmt: "!the CPU does not tell how much cache a group holds (CMT)", mbm: "!the CPU does not tell how much memory bandwidth a group uses (MBM)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProber(Options{Sys: t.TempDir(), Proc: writeTree(t, t.TempDir(), map[string]string{"filesystems": tt.proc}), Resctrl: tt.tree})
			for _, probe := range []struct {
				name string
				try  func(context.Context) (string, error)
				want string
			}{
				{"resctrl", p.resctrl, tt.resctrl}, {CacheAllocation, p.cacheAllocation, tt.cat}, {BandwidthAllocation, p.bandwidthAllocation, tt.mba},
				{CacheMonitoring, p.cacheMonitoring, tt.cmt}, {BandwidthMonitoring, p.bandwidthMonitoring, tt.mbm},
			} {
				got, err := probe.try(t.Context())
				if err != nil {
					got = "!" + err.Error()
				}
				if got != probe.want {
					t.Errorf("%s: %q, want %q", probe.name, got, probe.want)
				}
				if a := (*advice)(nil); probe.name == "resctrl" && (errors.As(err, &a) != (tt.fix != "") || a != nil && !strings.HasPrefix(a.fix, tt.fix)) {
					t.Errorf("advice %+v, want %q", a, tt.fix)
				}
			}
			if fake, ok := tt.tree.(*rdttest.Fake); ok {
				if groups, err := fake.Dirs(""); err != nil || slices.ContainsFunc(groups, func(g string) bool { return strings.HasPrefix(g, resctrlProbe) }) {
					t.Errorf("left behind: %q, %v", groups, err)
				}
			}
		})
	}
}

// runtimeServer answers what the probe asks.
type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (runtimeServer) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1.2", RuntimeApiVersion: "v1"}, nil
}

func (runtimeServer) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{}, nil
}

func socket(t *testing.T) net.Listener {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestCRI(t *testing.T) {
	serve := func(register func(*grpc.Server)) string {
		l := socket(t)
		s := grpc.NewServer()
		register(s)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return "unix://" + l.Addr().String()
	}
	good := serve(func(s *grpc.Server) { runtimeapi.RegisterRuntimeServiceServer(s, runtimeServer{}) })
	notCRI := serve(func(*grpc.Server) {})
	hangs := "unix://" + socket(t).Addr().String() // accepts, and never says a word
	none := "unix://" + t.TempDir() + "/none.sock"

	p := newProber(Options{CRIEndpoints: []string{none, hangs, notCRI, good}})
	if found, err := p.cri(t.Context()); err != nil || found != "fake 1.2 at "+good {
		t.Errorf("%q %v", found, err)
	}
	p = newProber(Options{CRIEndpoints: []string{none, hangs, notCRI}})
	_, err := p.cri(t.Context())
	if err == nil {
		t.Fatal("no runtime, and no error")
	}
	for _, want := range []string{"no socket at " + none, hangs + ": no answer within 600ms", notCRI + ": speaks no CRI v1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestText(t *testing.T) {
	r := Report{Probes: []Probe{
		{Name: "bpf", Needed: true, OK: true, Detail: "loaded"},
		{Name: "cpu_weight", Needed: true, Detail: "permission denied", Lost: "much", Fix: "be root"},
		{Name: "perf", Detail: "no counters", Lost: "cycles", Fix: "a PMU"},
	}}
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	want := `ok       bpf         loaded
missing  cpu_weight  permission denied; lost: much; get it: be root
missing  perf        no counters; lost: cycles; get it: a PMU
The main job cannot run without: cpu_weight.
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	r.Probes = r.Probes[:1]
	b.Reset()
	if err := r.WriteText(&b); err != nil || !strings.HasSuffix(b.String(), "The main job can run.\n") {
		t.Errorf("%q %v", b.String(), err)
	}
}

func TestJSON(t *testing.T) {
	r := Report{Probes: []Probe{{Name: "bpf", Needed: true, OK: true, Detail: "loaded"}, {Name: "perf", Detail: "none", Lost: "cycles", Fix: "a PMU"}}}
	got, err := json.Marshal(r.Document())
	want := `{"canRun":true,"probes":[{"name":"bpf","ok":true,"needed":true,"detail":"loaded"},{"name":"perf","ok":false,"needed":false,"detail":"none","lost":"cycles","fix":"a PMU"}]}`
	if err != nil || string(got) != want {
		t.Errorf("%s %v", got, err)
	}
}

// Names are label values and what people put into alerts.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range specs() {
		if seen[s.name] || !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(s.name) {
			t.Errorf("name %q", s.name)
		}
		if s.lost == "" || s.fix == "" {
			t.Errorf("%s does not say what is lost or how to get it", s.name)
		}
		seen[s.name] = true
	}
}
