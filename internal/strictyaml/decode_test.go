package strictyaml

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type span time.Duration

func (s *span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	*s = span(d)
	return err
}

type inner struct {
	Wait span   `yaml:"wait" want:"0|1ms..60s"`
	Mode string `yaml:"mode" want:"observe|enforce"`
	Big  *int   `yaml:"big,omitempty" want:"1..10"`
}

type item struct {
	Name   string            `yaml:"name" required:"true" pattern:"^[a-z]+$" example:"small letters"`
	Labels map[string]string `yaml:"labels,omitempty"`
	Days   []string          `yaml:"days,omitempty" want:"mon|tue"`
}

type doc struct {
	Inner inner   `yaml:"inner"`
	Items []item  `yaml:"items"`
	Share float64 `yaml:"share" want:"0..100"`
	On    bool    `yaml:"on"`
	Free  string  `yaml:"free"`
	code  int
}

func TestDecode(t *testing.T) {
	three := 3
	got := doc{Free: "kept", Items: []item{{Name: "old"}}}
	err := Decode("f.yaml", []byte(`# comment
inner: {wait: 250ms, mode: observe, big: 3}
items:
- name: a
  labels: {app.io/x: "true", plain: word}
  days: [mon]
share: 12
on: true
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	want := doc{
		Inner: inner{Wait: span(250 * time.Millisecond), Mode: "observe", Big: &three},
		Items: []item{{Name: "a", Labels: map[string]string{"app.io/x": "true", "plain": "word"}, Days: []string{"mon"}}},
		Share: 12, On: true, Free: "kept",
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(doc{})); d != "" {
		t.Error(d)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"unknown field", "inner:\n  waits: 1ms", `f:2: inner.waits: is not a known field; want perhaps wait (can be wait, mode or big)`},
		{"unknown, nothing like it", "zzzzzz: 1", `f:1: zzzzzz: is not a known field; want inner, items, share, on or free`},
		{"unknown odd key", "\"a b/c\": 1", `f:1: ["a b/c"]: is not a known field; want inner, items, share, on or free`},
		{"unexported", "code: 1", `f:1: code: is not a known field; want inner, items, share, on or free`},
		{"twice", "on: true\nshare: 1\non: false", `f:3: on: is set again (first on line 1); want it once`},
		{"label twice", "items: [{name: a, labels: {x: a, x: b}}]", `f:1: items[0].labels.x: is set again (first on line 1); want it once`},
		{"no unit", "inner: {wait: 250}", `f:1: inner.wait: is "250": time: missing unit in duration "250"; want 0 or 1ms to 60s`},
		{"zero needs no unit", "inner: {wait: 0}", ``},
		{"too long", "inner: {wait: 2m}", `f:1: inner.wait: is 2m; want 0 or 1ms to 60s`},
		{"negative", "inner: {wait: -1ms}", `f:1: inner.wait: is -1ms; want 0 or 1ms to 60s`},
		{"bad enum", "inner: {mode: obsevre}", `f:1: inner.mode: is "obsevre"; want perhaps observe (can be observe or enforce)`},
		{"enum by number", "inner: {mode: 3}", `f:1: inner.mode: is the number 3; want observe or enforce`},
		{"int by text", "inner: {big: x}", `f:1: inner.big: is the text "x"; want 1 to 10`},
		{"int by float", "inner: {big: 1.5}", `f:1: inner.big: is the number 1.5; want 1 to 10`},
		{"int out of range", "inner: {big: 11}", `f:1: inner.big: is 11; want 1 to 10`},
		{"int overflow", "inner: {big: 99999999999999999999}", `f:1: inner.big: is the number 99999999999999999999; want 1 to 10`},
		{"not a number", "share: .nan", `f:1: share: is .nan; want 0 to 100`},
		{"infinite", "share: .inf", `f:1: share: is .inf; want 0 to 100`},
		{"bool by text", "on: maybe", `f:1: on: is the text "maybe"; want true or false`},
		{"text by bool", "free: true", `f:1: free: is the boolean true; want text in quotes: "true"`},
		{"text by date", "free: 2020-01-01", `f:1: free: is the date 2020-01-01; want text in quotes: "2020-01-01"`},
		{"label by bool", "items: [{name: a, labels: {a.b/c: true}}]", `f:1: items[0].labels["a.b/c"]: is the boolean true; want text in quotes: "true"`},
		{"struct by list", "inner: [1]", `f:1: inner: is a list; want a mapping with the fields wait, mode or big`},
		{"list by text", "items: a", `f:1: items: is the text "a"; want a list: [a, b]`},
		{"list by null", "items:", `f:1: items: is empty; want a list, [] for none, or no such line`},
		{"map by null", "items: [{name: a, labels: }]", `f:1: items[0].labels: is empty; want a mapping, {} for none, or no such line`},
		{"struct by null", "inner:", ``},
		{"scalar by null", "free:", `f:1: free: is empty; want text`},
		{"scalar by list", "free: [a]", `f:1: free: is a list; want text`},
		{"element by null", "items:\n- name: a\n-", `f:3: items[1]: is empty; want a value, or no such line`},
		{"missing", "items:\n- labels: {}", `f:2: items[0].name: is missing; want small letters`},
		{"required but empty", `items: [{name: ""}]`, `f:1: items[0].name: is empty; want small letters`},
		{"pattern", "items: [{name: A1}]", `f:1: items[0].name: is "A1"; want small letters`},
		{"element enum", "items: [{name: a, days: [mon, wed]}]", `f:1: items[0].days[1]: is "wed"; want mon or tue`},
		{"alias", "free: &x a\ninner: {mode: *x}", `f:2: inner.mode: is an alias: *x; want the value itself (aliases are not supported)`},
		{"merge key", "inner: &a {}\nitems: [{<<: *a, name: a}]", `f:2: items[0]: has a merge key <<; want the fields themselves (merging is not supported)`},
		{"number as key", "1: a", `f:1: has a key that is the number 1; want text as the key, in quotes if need be`},
		{"tagged", "free: !secret a", `f:1: free: is tagged !secret; want text in quotes: "a"`},
		{"top is list", "- a", `f:1: is a list; want a mapping with the fields inner, items, share, on or free`},
		{"syntax", "inner:\n  wait: [", `f:2: is not valid YAML: did not find expected node content; want valid YAML`},
		{"empty", "", `f: holds 0 documents; want exactly one`},
		{"comments", "# only\n---\n# comments\n", `f: holds 0 documents; want exactly one`},
		{"two", "on: true\n---\non: true\n", `f: holds 2 documents; want exactly one`},
		{"garbage", "on: true\n\x00\x01\xff", `f:2: is not text; want YAML in UTF-8`},
		{"latin1", "free: \xe4", `f:1: is not text; want YAML in UTF-8`},
		{"several at once", "inner: {mode: x, big: 0}\non: 3\nitems: [{}]", `f:1: inner.mode: is "x"; want observe or enforce
f:1: inner.big: is 0; want 1 to 10
f:2: on: is the number 3; want true or false
f:3: items[0].name: is missing; want small letters`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if err := Decode("f", []byte(tt.in), new(doc)); err != nil {
				got = err.Error()
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestErrorsAreBounded(t *testing.T) {
	err := Decode("f", []byte(strings.Repeat("- a\n", 10000)), &struct {
		L []string `yaml:"l"`
	}{})
	if err == nil || len(err.Error()) > 200 {
		t.Errorf("got %v", err)
	}
	err = Decode("f", []byte("l: ["+strings.Repeat("1,", 10000)+"]"), &struct {
		L []string `yaml:"l"`
	}{})
	var l ErrorList
	if !errors.As(err, &l) || len(l) != maxErrors+1 || l[maxErrors].Problem != "9900 more errors are not shown" {
		t.Errorf("got %d errors, last %v", len(l), l[len(l)-1])
	}
}

func TestBombs(t *testing.T) {
	for name, in := range map[string]string{
		"billion laughs": "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
		"commas":         "a: [" + strings.Repeat("1,", MaxBytes/2-10) + "]",
		"depth":          "a: " + strings.Repeat("[", 50000),
		"dashes":         strings.Repeat("- ", 50000),
		"large":          strings.Repeat("#", MaxBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			err := Decode("f", []byte(in), new(doc))
			if err == nil || len(err.Error()) > 1000 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPositions(t *testing.T) {
	at := make(Positions)
	var v doc
	for file, in := range map[string]string{"f": "inner:\n  mode: observe\nitems:\n- name: a\n- name: b\n"} {
		docs, errs := Parse(file, []byte(in))
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		if errs := docs[0].Decode(&v, at); len(errs) > 0 {
			t.Fatal(errs)
		}
	}
	docs, _ := Parse("g", []byte("\nitems:\n- name: c\n"))
	if errs := docs[0].Decode(&v, at); len(errs) > 0 {
		t.Fatal(errs)
	}
	for path, want := range map[string]Position{
		"inner.mode":             {"f", 2},
		"inner.wait":             {"f", 2}, // not set: where its parent is
		"items[0].name":          {"g", 3},
		"items[1].name":          {"g", 3}, // replaced: nothing of the old list is left
		`items[0].labels["a.b"]`: {"g", 3},
	} {
		if got := at.Of(path); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
	if len(v.Items) != 1 || v.Inner.Mode != "observe" {
		t.Errorf("got %+v", v)
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, size int) {
		if err := os.WriteFile(path(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ok", MaxBytes)
	write("large", MaxBytes+1)
	if err := os.Symlink("ok", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", path("loop")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		path("ok"):    "",
		path("link"):  "",
		path("large"): "has 1048577 bytes; want at most 1048576 (1 MiB)",
		path("fifo"):  "is a named pipe; want a regular file",
		path("none"):  "cannot be read: no such file or directory; want a readable file",
		path("loop"):  "cannot be read: too many levels of symbolic links; want a readable file",
		dir:           "is a directory; want a regular file",
		"/dev/zero":   "is a device; want a regular file",
	} {
		got := ""
		if _, err := ReadFile(name); err != nil {
			got = strings.TrimPrefix(err.Error(), name+": ")
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if _, err := ReadFile(path("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want it to wrap fs.ErrNotExist", err)
	}
}

func TestValidate(t *testing.T) {
	ok := doc{Inner: inner{Mode: "observe"}, Items: []item{{Name: "a"}}}
	if errs := Validate(&ok); len(errs) > 0 {
		t.Error(errs)
	}
	eleven := 11
	bad := doc{Inner: inner{Wait: 1, Big: &eleven}, Items: []item{{Days: []string{"sun"}}}, Share: 101}
	want := `inner.wait: is 1; want 0 or 1ms to 60s
inner.mode: is ""; want observe or enforce
inner.big: is 11; want 1 to 10
items[0].name: is missing; want small letters
items[0].days[0]: is "sun"; want mon or tue
share: is 101; want 0 to 100`
	if d := cmp.Diff(want, Validate(bad).Error()); d != "" {
		t.Error(d)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("inner: {wait: 1ms, mode: observe}\nitems: [{name: a, labels: {x: y}}]\nshare: 1\non: true\nfree: x"))
	f.Add([]byte("a: &a [*a]\n---\n? [x]\n: <<: *a"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var v doc
		if err := Decode("f", in, &v); err != nil {
			if len(err.Error()) == 0 || len(err.Error()) > 100*1000 {
				t.Errorf("message of %d bytes", len(err.Error()))
			}
			return
		}
		if errs := Validate(v); v.Inner.Mode != "" && len(errs) > 0 {
			t.Errorf("accepted, but %v", errs)
		}
	})
}
