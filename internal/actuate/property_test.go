package actuate

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
	"github.com/qos-agent/qos-agent/pkg/cpuset"
)

// Whatever is planned, whatever others do meanwhile, however often the agent is killed: in the end the tree is as somebody else
// would have it who did the same to a tree without an agent.
func TestProperty(t *testing.T) {
	for _, mode := range []cgroup.Mode{cgroup.Legacy, cgroup.Unified} {
		t.Run(mode.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := newModel(t, mode)
				defer os.RemoveAll(m.dir)
				steps := rapid.IntRange(1, 25).Draw(t, "steps")
				for range steps {
					m.step()
				}
				m.end()
			})
		})
	}
}

// model is two trees to which the same is done, but for the agent on one of them.
type model struct {
	t       *rapid.T
	dir     string
	v2      bool
	with    *cgrouptest.Fake
	without *cgrouptest.Fake
	groups  []string
	e       *Executor
	now     time.Time
	crashIn int // points until the next crash; 0 for none
}

// errCrash is what the crash hook panics with.
var errCrash = errors.New("crash")

func newModel(t *rapid.T, mode cgroup.Mode) *model {
	m := &model{t: t, now: time.Unix(1e9, 0), v2: mode == cgroup.Unified}
	var err error
	if m.dir, err = os.MkdirTemp(fastDir(), "property"); err != nil {
		t.Fatal(err)
	}
	for _, tree := range []struct {
		name string
		fake **cgrouptest.Fake
	}{{"with", &m.with}, {"without", &m.without}} {
		dir := path.Join(m.dir, tree.name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if *tree.fake, err = cgrouptest.MakeFake(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []string{"/p", "/p/c"} {
		m.populate(g)
	}
	m.open()
	return m
}

// fastDir is a directory in memory, if there is one.
func fastDir() string {
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) == nil && st.Type == unix.TMPFS_MAGIC {
		return "/dev/shm"
	}
	return ""
}

func (m *model) open() {
	e, err := Open(Options{
		Hierarchy: m.with.Hierarchy(), FS: m.with.FS(), RunDir: path.Join(m.dir, "run"), BootID: "boot", AuditBatch: 4,
		Now: func() time.Time { return m.now }, crash: m.crashPoint,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.e = e
}

func (m *model) crashPoint(string) {
	if m.crashIn > 0 {
		if m.crashIn--; m.crashIn == 0 {
			panic(errCrash)
		}
	}
}

// maybeCrashing does something with the executor; if the crash comes meanwhile, a new one takes over.
func (m *model) maybeCrashing(do func()) {
	defer func() {
		if r := recover(); r != nil {
			if r != errCrash {
				panic(r)
			}
			m.kill()
		}
	}()
	do()
}

func (m *model) kill() {
	m.crashIn = 0
	m.e.closeKnobs()
	m.e.journal.Close()
	m.e.lock.Close()
	m.open()
}

func (m *model) step() {
	t := m.t
	switch rapid.IntRange(0, 11).Draw(t, "what") {
	case 0, 1, 2, 3:
		plan := m.plan()
		p := Policy{Edits: rapid.SampledFrom([]policy.ExternalEdits{policy.Reapply, policy.Yield}).Draw(t, "edits")}
		if rapid.IntRange(0, 3).Draw(t, "crashes") == 0 {
			m.crashIn = rapid.IntRange(1, 12).Draw(t, "crash point")
		}
		m.maybeCrashing(func() { m.e.Apply(plan, p) })
		m.crashIn = 0
	case 4, 5, 6, 7:
		m.edit()
	case 8:
		m.maybeCrashing(func() { m.e.Audit() })
	case 9:
		g := rapid.SampledFrom([]string{"/p", "/p/c", "/p/d", "/p/c/n", "/q"}).Draw(t, "group")
		if slices.Contains(m.groups, g) {
			m.remove(g)
		} else if path.Dir(g) == "/" || slices.Contains(m.groups, path.Dir(g)) {
			m.populate(g)
		}
	case 10:
		m.kill()
	case 11:
		m.now = m.now.Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second)
	}
}

func (m *model) populate(g string) {
	for _, f := range []*cgrouptest.Fake{m.with, m.without} {
		if err := cgrouptest.Populate(f, g); err != nil {
			m.t.Fatal(err)
		}
	}
	m.groups = append(m.groups, g)
	m.t.Logf("made %s", g)
}

func (m *model) remove(g string) {
	for _, f := range []*cgrouptest.Fake{m.with, m.without} {
		if err := cgrouptest.RemoveAll(f, g); err != nil {
			m.t.Fatal(err)
		}
	}
	m.groups = slices.DeleteFunc(m.groups, func(have string) bool { return have == g || strings.HasPrefix(have, g+"/") })
	m.t.Logf("removed %s", g)
}

func (m *model) plan() []knob.Want {
	var plan []knob.Want
	for i := range rapid.IntRange(0, 5).Draw(m.t, "wants") {
		w := knob.Want{Owner: rapid.SampledFrom([]string{"cpu", "cpu", "cpu", "io"}).Draw(m.t, "owner")}
		w.Cgroup = rapid.SampledFrom(append(m.groups, "/p", "/none")).Draw(m.t, "group")
		w.Kind = rapid.SampledFrom(knob.Kinds()).Draw(m.t, "kind")
		switch w.Kind {
		case knob.CPUIdle, knob.Freeze:
			w.Value.N = int64(rapid.IntRange(0, 1).Draw(m.t, "n"))
		case knob.CPUWeight:
			w.Value.N = rapid.SampledFrom([]int64{1, 50, 300}).Draw(m.t, "n")
		case knob.CPUBurst:
			w.Value.N = rapid.SampledFrom([]int64{0, 1000, 20000}).Draw(m.t, "n")
		case knob.CPUQuota:
			w.Value.N = rapid.SampledFrom([]int64{-1, 1000, 20000, 50000}).Draw(m.t, "n")
			w.Value.Period = rapid.SampledFrom([]int64{0, 20000, 100000}).Draw(m.t, "period")
		case knob.CPUSet:
			w.Value.CPUs = drawCPUs(m.t)
		}
		plan = append(plan, w)
		m.t.Logf("want %d: %s %s %s by %s", i, w.Cgroup, w.Kind, w.Value.Format(w.Kind), w.Owner)
	}
	return plan
}

func drawCPUs(t *rapid.T) cpuset.Set {
	bits := rapid.IntRange(1, 15).Draw(t, "cpus")
	var s cpuset.Set
	for c := range 4 {
		if bits>>c&1 == 1 {
			s.Add(c)
		}
	}
	return s
}

// edit is a write by someone else. It counts if both trees take it, and if it can be seen: who writes the very value that we
// have written cannot be told from us, nor who goes back to it before we have looked.
func (m *model) edit() {
	if len(m.groups) == 0 {
		return
	}
	g := rapid.SampledFrom(m.groups).Draw(m.t, "group")
	files := []string{"cpu.idle", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpuset.cpus", "freezer.state"}
	if m.v2 {
		files = []string{"cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "cpuset.cpus", "cgroup.freeze"}
	}
	file := rapid.SampledFrom(files).Draw(m.t, "file")
	var text string
	switch file {
	case "cpu.idle", "cgroup.freeze":
		text = rapid.SampledFrom([]string{"0", "1"}).Draw(m.t, "text")
	case "freezer.state":
		text = rapid.SampledFrom([]string{"FROZEN", "THAWED"}).Draw(m.t, "text")
	case "cpu.shares", "cpu.weight":
		text = rapid.SampledFrom([]string{"7", "70", "700"}).Draw(m.t, "text")
	case "cpu.cfs_quota_us":
		text = rapid.SampledFrom([]string{"-1", "10000", "30000", "60000"}).Draw(m.t, "text")
	case "cpu.cfs_period_us":
		text = rapid.SampledFrom([]string{"10000", "100000", "200000"}).Draw(m.t, "text")
	case "cpu.max":
		text = rapid.SampledFrom([]string{"max", "10000", "30000", "60000"}).Draw(m.t, "quota") + " " +
			rapid.SampledFrom([]string{"10000", "100000", "200000"}).Draw(m.t, "period")
	case "cpu.cfs_burst_us", "cpu.max.burst":
		text = rapid.SampledFrom([]string{"0", "500", "5000", "30000"}).Draw(m.t, "text")
	case "cpuset.cpus":
		text = drawCPUs(m.t).String()
	}
	shown, same := file, text
	if file == "freezer.state" {
		shown, same = "freezer.self_freezing", map[string]string{"THAWED": "0", "FROZEN": "1"}[text]
	}
	old := make(map[*cgrouptest.Fake]string)
	for _, f := range []*cgrouptest.Fake{m.with, m.without} {
		old[f], _ = f.Read(g, shown)
	}
	if old[m.with] == same+"\n" || slices.Contains(m.ours(g, file), same) {
		return
	}
	errWith, errWithout := m.with.Write(g, file, text), m.without.Write(g, file, text)
	switch {
	case errWith == nil && errWithout == nil:
		m.t.Logf("edit: %s/%s %q: %q without, %q with us", g, file, text, old[m.without], old[m.with])
	case errWith == nil:
		m.undo(m.with, g, file, old[m.with])
	case errWithout == nil:
		m.undo(m.without, g, file, old[m.without])
	}
}

// ours is what a file may show because of us.
func (m *model) ours(g, file string) []string {
	kind, part := map[string]knob.Kind{
		"cpu.idle": knob.CPUIdle, "cpu.shares": knob.CPUWeight, "cpu.weight": knob.CPUWeight, "cpuset.cpus": knob.CPUSet,
		"cpu.max": knob.CPUQuota, "cpu.cfs_quota_us": knob.CPUQuota, "cpu.cfs_period_us": knob.CPUQuota,
		"cpu.max.burst": knob.CPUBurst, "cpu.cfs_burst_us": knob.CPUBurst, "freezer.state": knob.Freeze, "cgroup.freeze": knob.Freeze,
	}[file], strings.TrimPrefix(file, "cpu.cfs_")
	u := m.e.held[knob.Target{Cgroup: g, Kind: kind}]
	if u == nil {
		return nil
	}
	values := []cgroup.Value{u.cur}
	if u.raw == "" { // after a crash
		values = append(append(values, u.orig), u.maybe...)
	}
	var out []string
	for _, v := range values {
		switch part {
		case "quota_us":
			out = append(out, strconv.FormatInt(v.N, 10))
		case "period_us":
			out = append(out, strconv.FormatInt(v.Period, 10))
		default:
			out = append(out, u.setting.Format(v))
		}
	}
	return out
}

func (m *model) undo(f *cgrouptest.Fake, g, file, old string) {
	if file == "freezer.state" {
		old = map[string]string{"0\n": "THAWED", "1\n": "FROZEN"}[old]
	}
	if err := f.Write(g, file, old); err != nil {
		m.t.Fatalf("undo of %s/%s = %q: %v", g, file, old, err)
	}
}

func (m *model) end() {
	m.crashIn = 0
	if rapid.Bool().Draw(m.t, "killed in the end") {
		m.kill()
	}
	var out []knob.Outcome
	for range 3 {
		m.now = m.now.Add(time.Hour)
		out = m.e.RestoreAll()
	}
	if held := m.e.Held(); len(held) > 0 {
		m.t.Errorf("still held: %+v after %+v", held, out)
	}
	if err := m.e.Close(); err != nil {
		m.t.Error(err)
	}
	if diff := cmp.Diff(cgrouptest.Snapshot(m.without), cgrouptest.Snapshot(m.with)); diff != "" {
		m.t.Fatalf("tree (-without us +with us):\n%s", diff)
	}
	left, err := os.ReadDir(path.Join(m.dir, "run"))
	if err != nil || len(left) != 1 || left[0].Name() != lockName {
		m.t.Errorf("run dir holds %v, %v", left, err)
	}
}
