package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/qos-agent/qos-agent/internal/policy"
	"go.yaml.in/yaml/v3"
)

const root = "../../.."

func TestGeneratedFilesAreUpToDate(t *testing.T) {
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s is out of date: run go generate ./internal/policy\n%s", name, d)
		}
	}
}

func TestEveryFieldIsExplained(t *testing.T) {
	c, err := comments(filepath.Join(root, "internal", "policy"))
	if err != nil {
		t.Fatal(err)
	}
	r := referenceMaker{comments: c}
	r.add("", reflectDefault(), true)
	for _, s := range r.sections {
		if s.About == "" {
			t.Errorf("%s has no comment", s.Path)
		}
		for _, f := range s.Fields {
			if f.About == "" {
				t.Errorf("%s.%s has no comment", s.Path, f.Name)
			}
		}
	}
	if len(r.sections) < 15 {
		t.Errorf("only %d sections", len(r.sections))
	}
}

// TestSchema holds the schema against the loader: what the loader takes the schema takes, and what is wrong by the schema is
// wrong for the loader.
func TestSchema(t *testing.T) {
	schema := readSchema(t)
	files, err := filepath.Glob(filepath.Join(root, "policies", "*.yaml"))
	if err != nil || len(files) < 5 {
		t.Fatalf("policies: %v, %v", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range validate(schema, parse(t, string(data)), "") {
			t.Errorf("%s: %s", f, e)
		}
	}

	const head = "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\n"
	for _, tt := range []struct {
		in   string
		good bool
	}{
		{"spec: {mode: observe}", true},
		{"spec: {objectives: {cpuWaitP99: 0, cpuWaitEvent: 1m30s}}", false}, // the schema cannot see that
		{"spec: {objectives: {cpuWaitP99: 0, cpuWaitEvent: 1.5s}}", true},
		{"spec: {windows: [{name: n, from: '22:00', to: '24:00', days: [mon], ladder: [], cpuWaitP99: 3ms, cpuWaitEvent: 5ms}]}", true},
		{"spec: {classes: {rules: [{name: a, class: offline, match: {labels: {a: b}, cgroups: ['/x/**']}}], presets: []}}", true},
		{"spec: {mode: observed}", false},
		{"spec: {modes: observe}", false},
		{"spec: {objectives: {cpuWaitP99: 5}}", false},
		{"spec: {objectives: {memoryStallPercent: 101}}", false},
		{"spec: {cpu: {cpus: {floor: 0}}}", false},
		{"spec: {cpu: {ladder: [evict]}}", false},
		{"spec: {windows: [{name: n, from: '25:00', to: '24:00'}]}", false},
		{"spec: {windows: [{name: n, to: '24:00'}]}", false},
		{"spec: {classes: {rules: [{name: a, class: offline, match: {cgroups: [x]}}]}}", false},
		{"spec: {classes: {rules: [{name: a, class: offline, match: {labels: {a: 1}}}]}}", false},
		{"metadata: {name: -}", false},
	} {
		_, err := policy.Parse("f", []byte(head+tt.in))
		errs := validate(schema, parse(t, head+tt.in), "")
		if (err == nil) != tt.good {
			t.Errorf("%s: the loader says %v", tt.in, err)
		}
		if tt.good && len(errs) > 0 {
			t.Errorf("%s: the schema says %v", tt.in, errs)
		}
		if !tt.good && len(errs) == 0 && !strings.Contains(tt.in, "1m30s") {
			t.Errorf("%s: fine by the schema, but %v", tt.in, err)
		}
	}
	if errs := validate(schema, parse(t, "spec: {}"), ""); len(errs) != 2 {
		t.Errorf("without apiVersion and kind: %v", errs)
	}
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "policies", "schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// validate is as much of JSON Schema as our schema uses. It fails on keywords that it does not know.
func validate(schema map[string]any, v any, path string) (errs []string) {
	fail := func(format string, args ...any) { errs = append(errs, path+": "+fmt.Sprintf(format, args...)) }
	for keyword, want := range schema {
		switch keyword {
		case "$schema", "$id", "title", "description", "default":
		case "type":
			if got := jsonType(v); got != want && !(got == "integer" && want == "number") {
				fail("is of type %s, want %s", got, want)
			}
		case "const":
			if fmt.Sprint(v) != fmt.Sprint(want) {
				fail("is %v, want %v", v, want)
			}
		case "enum":
			if !slices.Contains(want.([]any), v) {
				fail("is %v, want one of %v", v, want)
			}
		case "pattern":
			if s, ok := v.(string); ok && !regexp.MustCompile(want.(string)).MatchString(s) {
				fail("is %q, want %s", s, want)
			}
		case "minimum", "maximum":
			x, ok := v.(float64)
			if i, isInt := v.(int); isInt {
				x, ok = float64(i), true
			}
			if ok && (keyword == "minimum" && x < want.(float64) || keyword == "maximum" && x > want.(float64)) {
				fail("is %v, want %s %v", v, keyword, want)
			}
		case "anyOf":
			if !slices.ContainsFunc(want.([]any), func(s any) bool { return len(validate(s.(map[string]any), v, path)) == 0 }) {
				fail("is %v, want any of %v", v, want)
			}
		case "required":
			m, _ := v.(map[string]any)
			for _, k := range want.([]any) {
				if _, ok := m[k.(string)]; !ok {
					fail("lacks %v", k)
				}
			}
		case "items":
			list, _ := v.([]any)
			for i, e := range list {
				errs = append(errs, validate(want.(map[string]any), e, fmt.Sprintf("%s[%d]", path, i))...)
			}
		case "properties":
			m, _ := v.(map[string]any)
			for k, e := range m {
				if s, ok := want.(map[string]any)[k]; ok {
					errs = append(errs, validate(s.(map[string]any), e, path+"."+k)...)
				}
			}
		case "additionalProperties":
			props, _ := schema["properties"].(map[string]any)
			m, _ := v.(map[string]any)
			for k, e := range m {
				if _, known := props[k]; known {
					continue
				}
				if s, ok := want.(map[string]any); ok {
					errs = append(errs, validate(s, e, path+"."+k)...)
				} else if want == false {
					fail("has no field %s", k)
				}
			}
		default:
			fail("keyword %s is not known to this test", keyword)
		}
	}
	return errs
}

func jsonType(v any) string {
	switch v.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		return "number"
	}
	return "null"
}

func reflectDefault() reflect.Value { return reflect.ValueOf(policy.Default()) }
