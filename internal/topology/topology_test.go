package topology

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/signal"
)

type files map[string]string

// sysfs writes files below <new directory>/devices/system/cpu; a name that ends in / is a directory.
func sysfs(t testing.TB, f files) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range f {
		write(t, root, name, text)
	}
	return root
}

func write(t testing.TB, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, "devices/system/cpu", name)
	dir := filepath.Dir(path)
	if strings.HasSuffix(name, "/") {
		dir = path
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, "/") {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// server is two packages with two cores of two threads each, numbered as Intel does: siblings are 4 apart.
func server() files {
	f := files{"online": "0-7\n"}
	for cpu := range 8 {
		pkg := cpu % 4 / 2
		core := cpu % 4
		dir := fmt.Sprintf("cpu%d/", cpu)
		all := fmt.Sprintf("%d-%d,%d-%d\n", pkg*2, pkg*2+1, pkg*2+4, pkg*2+5)
		f[dir+"topology/core_cpus_list"] = fmt.Sprintf("%d,%d\n", core, core+4)
		f[dir+"topology/package_cpus_list"] = all
		f[dir+fmt.Sprintf("node%d/", pkg)] = ""
		for i, c := range []struct{ level, kind, cpus string }{
			{"1", "Data", f[dir+"topology/core_cpus_list"]},
			{"1", "Instruction", f[dir+"topology/core_cpus_list"]},
			{"2", "Unified", f[dir+"topology/core_cpus_list"]},
			{"3", "Unified", all},
		} {
			index := fmt.Sprintf("%scache/index%d/", dir, i)
			f[index+"level"], f[index+"type"], f[index+"shared_cpu_list"] = c.level+"\n", c.kind+"\n", c.cpus
		}
	}
	return f
}

func TestRead(t *testing.T) {
	full := []signal.CPU{
		{ID: 0, Core: 0, Node: 0, LLC: 0}, {ID: 1, Core: 1, Node: 0, LLC: 0}, {ID: 2, Core: 2, Node: 1, LLC: 2}, {ID: 3, Core: 3, Node: 1, LLC: 2},
		{ID: 4, Core: 0, Node: 0, LLC: 0}, {ID: 5, Core: 1, Node: 0, LLC: 0}, {ID: 6, Core: 2, Node: 1, LLC: 2}, {ID: 7, Core: 3, Node: 1, LLC: 2},
	}
	without := func(drop ...string) files {
		f := server()
		for name := range f {
			for _, d := range drop {
				if strings.Contains(name, d) {
					delete(f, name)
				}
			}
		}
		return f
	}
	withOnline := func(f files, list string) files { f["online"] = list; return f }

	for name, tc := range map[string]struct {
		files files
		want  []signal.CPU
	}{
		"server":        {server(), full},
		"cache missing": {without("cache/"), full}, // the package stands in
		"first threads offline": {withOnline(server(), "2-7\n"), []signal.CPU{
			{ID: 2, Core: 2, Node: 1, LLC: 2}, {ID: 3, Core: 3, Node: 1, LLC: 2}, {ID: 4, Core: 4, Node: 0, LLC: 4}, {ID: 5, Core: 5, Node: 0, LLC: 4}, {ID: 6, Core: 2, Node: 1, LLC: 2}, {ID: 7, Core: 3, Node: 1, LLC: 2},
		}},
		"no nodes": {without("/node"), []signal.CPU{
			{ID: 0, Core: 0, LLC: 0}, {ID: 1, Core: 1, LLC: 0}, {ID: 2, Core: 2, LLC: 2}, {ID: 3, Core: 3, LLC: 2}, {ID: 4, Core: 0, LLC: 0}, {ID: 5, Core: 1, LLC: 0}, {ID: 6, Core: 2, LLC: 2}, {ID: 7, Core: 3, LLC: 2},
		}},
		"bare": {files{"online": "0-1\n"}, []signal.CPU{{ID: 0, Core: 0}, {ID: 1, Core: 1}}},
		"old names": {files{"online": "0-1\n",
			"cpu0/topology/thread_siblings_list": "0-1\n", "cpu1/topology/thread_siblings_list": "0-1\n",
			"cpu0/topology/core_siblings_list": "0-1\n", "cpu1/topology/core_siblings_list": "0-1\n",
		}, []signal.CPU{{ID: 0}, {ID: 1}}},
		"no list": {files{"cpu0/": "", "cpu1/": "", "cpufreq/": "", "cpuidle/": ""}, []signal.CPU{{ID: 0, Core: 0}, {ID: 1, Core: 1}}},
		"garbage": {files{"online": "0-1\n", "cpu0/topology/core_cpus_list": "x\n", "cpu1/topology/core_cpus_list": "0\n",
			"cpu0/cache/index0/level": "deep\n", "cpu0/cache/index9/level": "3\n"}, []signal.CPU{{ID: 0, Core: 0}, {ID: 1, Core: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Open(sysfs(t, tc.files))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if diff := cmp.Diff(tc.want, r.Topology().CPUs); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestHotplug(t *testing.T) {
	root := sysfs(t, server())
	r, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before := r.Topology()
	if changed, err := r.Refresh(); changed || err != nil {
		t.Errorf("Refresh without a change = %v, %v", changed, err)
	}
	if n := testing.AllocsPerRun(10, func() { _, _ = r.Refresh() }); n != 0 {
		t.Errorf("Refresh without a change allocates %v times", n)
	}
	write(t, root, "online", "0-3\n")
	if changed, err := r.Refresh(); !changed || err != nil {
		t.Errorf("Refresh after a change = %v, %v", changed, err)
	}
	if len(r.Topology().CPUs) != 4 || len(before.CPUs) != 8 {
		t.Errorf("%d CPUs now and %d before, want 4 and an untouched 8", len(r.Topology().CPUs), len(before.CPUs))
	}
	write(t, root, "online", "garbage\n")
	if changed, err := r.Refresh(); changed || err == nil {
		t.Errorf("Refresh on garbage = %v, %v", changed, err)
	}
	if len(r.Topology().CPUs) != 4 {
		t.Errorf("%d CPUs after garbage, want the 4 from before", len(r.Topology().CPUs))
	}
}

func TestErrors(t *testing.T) {
	for name, f := range map[string]files{"no directory": nil, "no CPU": {"cpufreq/": ""}, "empty list": {"online": "\n"}, "too many": {"online": "0-1024\n"}} {
		if r, err := Open(sysfs(t, f)); err == nil {
			r.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.HasPrefix(err.Error(), "topology: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThisMachine(t *testing.T) {
	r, err := Open("/sys")
	if err != nil {
		t.Skip("needs sysfs:", err)
	}
	defer r.Close()
	topo := r.Topology()
	if len(topo.CPUs) < runtime.NumCPU() {
		t.Errorf("%d CPUs, but this process may run on %d", len(topo.CPUs), runtime.NumCPU())
	}
	set := topo.Set()
	for _, c := range topo.CPUs {
		if !set.Has(c.Core) || !set.Has(c.LLC) || c.Core > c.ID || c.LLC > c.ID {
			t.Errorf("CPU %+v is not possible", c)
		}
	}
}
