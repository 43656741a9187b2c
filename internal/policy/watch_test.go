package policy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// mountConfigMap writes data as the kubelet does: a directory with a time in its name, ..data pointing to it, and links to the
// files through ..data.
func mountConfigMap(t *testing.T, dir, version string, data map[string]string) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	real := "..2024_05_13_" + version
	must(os.MkdirAll(filepath.Join(dir, real), 0o755))
	for name, text := range data {
		must(os.WriteFile(filepath.Join(dir, real, name), []byte(text), 0o644))
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(os.Symlink(real, filepath.Join(dir, "..data_tmp")))
	must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for name := range data {
		link := filepath.Join(dir, name)
		if _, err := os.Lstat(link); err != nil {
			must(os.Symlink(filepath.Join("..data", name), link))
		}
	}
	entries, err := os.ReadDir(dir)
	must(err)
	for _, e := range entries {
		if _, still := data[e.Name()]; !still && !strings.HasPrefix(e.Name(), ".") {
			must(os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if old != "" {
		must(os.RemoveAll(filepath.Join(dir, old)))
	}
}

// watched runs Watch on dir and hands out what it delivers.
type watched struct {
	t    *testing.T
	news chan string
}

func startWatch(t *testing.T, dir string, poll time.Duration) watched {
	w := watched{t, make(chan string, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, dir, WatchOptions{Debounce: 50 * time.Millisecond, Poll: poll}, func(c *Compiled, err error) {
			switch {
			case errors.Is(err, ErrNoPolicy):
				w.news <- "no policy"
			case err != nil:
				w.news <- "error"
			default:
				w.news <- c.Name()
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		select {
		case got := <-w.news:
			t.Errorf("delivered %q, which nobody expected", got)
		default:
		}
	})
	return w
}

// expect waits for want and fails on anything else but what may be overlooked: states that the directory passes through, and
// that Watch sees if the machine holds up the test for longer than the debounce.
func (w watched) expect(want string, overlook ...string) {
	w.t.Helper()
	for {
		select {
		case got := <-w.news:
			if got == want {
				return
			} else if !slices.Contains(overlook, got) {
				w.t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			w.t.Fatalf("waited in vain for %q", want)
		}
	}
}

func named(name string) string { return head + "metadata: {name: " + name + "}\n" }

const rarely = time.Hour // what is seen is seen by notification

func TestWatchConfigMap(t *testing.T) {
	dir := t.TempDir()
	mountConfigMap(t, dir, "1", map[string]string{"p.yaml": named("one")})
	w := startWatch(t, dir, rarely)
	w.expect("one")
	mountConfigMap(t, dir, "2", map[string]string{"p.yaml": named("two")})
	w.expect("two")
	mountConfigMap(t, dir, "3", map[string]string{"p.yaml": named("two") + "# the same\n"})
	mountConfigMap(t, dir, "4", map[string]string{"p.yaml": named("two"), "q.yaml": named("more")})
	w.expect("more")
	mountConfigMap(t, dir, "5", map[string]string{"p.yaml": "garbage: ["})
	w.expect("error")
	mountConfigMap(t, dir, "6", map[string]string{"p.yaml": named("more")}) // the last good one is good again
	w.expect("more")
	mountConfigMap(t, dir, "7", map[string]string{})
	w.expect("no policy", "error")
}

func TestWatchPlainFiles(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir, rarely)
	w.expect("no policy")
	write(t, dir, map[string]string{"p.yaml": named("one")})
	w.expect("one", "error")
	write(t, dir, map[string]string{"p.yaml": named("two")}) // in place
	w.expect("two", "error")
	write(t, dir, map[string]string{".p.yaml.swp": named("three")}) // as editors do
	if err := os.Rename(filepath.Join(dir, ".p.yaml.swp"), filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	w.expect("three")
	for range 5 { // nothing new
		write(t, dir, map[string]string{".new": named("three"), "README": "x"})
		if err := os.Rename(filepath.Join(dir, ".new"), filepath.Join(dir, "p.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, map[string]string{"p.yaml": strings.Repeat("#", 10<<20)})
	w.expect("error")
	write(t, dir, map[string]string{"p.yaml": named("four")})
	w.expect("four", "error")
	if err := os.Remove(filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	w.expect("no policy")
}

func TestWatchDirectoryReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	w := startWatch(t, dir, 50*time.Millisecond)
	w.expect("error")
	for i := range 3 {
		write(t, dir, map[string]string{"p.yaml": named(fmt.Sprint("n", i))})
		w.expect(fmt.Sprint("n", i), "error", "no policy")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		w.expect("error", "no policy")
	}
}

// TestWatchPolls changes what no notification tells of: the target of a link to elsewhere.
func TestWatchPolls(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, elsewhere, map[string]string{"x": named("one")})
	if err := os.Symlink(filepath.Join(elsewhere, "x"), filepath.Join(dir, "p.yaml")); err != nil {
		t.Fatal(err)
	}
	w := startWatch(t, dir, 20*time.Millisecond)
	w.expect("one")
	write(t, elsewhere, map[string]string{"x": named("two")})
	w.expect("two", "error")
}
