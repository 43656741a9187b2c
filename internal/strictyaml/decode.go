// Package strictyaml reads small YAML files that people write into Go structs, and tells them everything that is wrong with
// their file at once: file, line, field, what is wrong and what would be right.
//
// It is strict: unknown fields, repeated keys, wrong types, values out of range, aliases and merge keys are errors. Its cost is
// bounded by the size of the file, which is bounded too. What a field may hold is written in struct tags (see RuleOf), the one
// place from which decoding, schema and reference are made.
//
// Fields may be structs, pointers, slices, map[string]string, strings, bools, integers, floats, and what implements
// encoding.TextUnmarshaler.
package strictyaml

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DecodeFile reads a file that holds exactly one document into what into points to. Fields that the file leaves out keep the
// values that they have. The error is an ErrorList.
func DecodeFile(file string, into any) error {
	data, err := ReadFile(file)
	if err != nil {
		return err
	}
	return Decode(file, data, into)
}

// Decode is DecodeFile on data; file is the name for messages.
func Decode(file string, data []byte, into any) error {
	docs, errs := Parse(file, data)
	if len(errs) == 0 && len(docs) != 1 {
		errs = append(errs, FieldError{File: file, Problem: fmt.Sprintf("holds %d documents", len(docs)), Fix: "exactly one"})
	}
	for _, d := range docs {
		errs = append(errs, d.Decode(into, nil)...)
	}
	return errs.Tidy().AsError()
}

// Position is where a value was set.
type Position struct {
	File string
	Line int
}

// Positions maps the path of each field that was set to where that was.
type Positions map[string]Position

// Of is where the field at path was set, or else the nearest field around it; zero if none was.
func (p Positions) Of(path string) Position {
	for {
		if at, ok := p[path]; ok || path == "" {
			return at
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// Decode sets the fields that the document has in what into points to: structs field by field, lists and maps as a whole. If
// at is not nil, it learns where each field was set; what it knew of replaced lists is forgotten. A value with an error is not
// set. The list is not tidied.
func (d Document) Decode(into any, at Positions) ErrorList {
	x := decoder{file: d.file, at: at}
	x.value(d.root, reflect.ValueOf(into).Elem(), "", Rule{})
	return x.errs
}

type decoder struct {
	file string
	at   Positions
	errs ErrorList
}

func (d *decoder) fail(line int, path, problem, fix string) {
	d.errs = append(d.errs, FieldError{File: d.file, Line: line, Path: path, Problem: problem, Fix: fix})
}

func (d *decoder) set(n *yaml.Node, path string) {
	if d.at != nil {
		d.at[path] = Position{d.file, n.Line}
	}
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, r Rule) {
	if n.Kind == yaml.AliasNode {
		d.fail(n.Line, path, "is an alias: *"+n.Value, "the value itself (aliases are not supported)")
		return
	}
	switch _, isText := v.Addr().Interface().(encoding.TextUnmarshaler); {
	case isText:
		d.scalar(n, v, path, r)
	case v.Kind() == reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		before := len(d.errs)
		if d.value(n, p.Elem(), path, r); len(d.errs) == before {
			v.Set(p)
		}
	case v.Kind() == reflect.Struct:
		d.fields(n, v, path)
	case v.Kind() == reflect.Slice:
		d.list(n, v, path, r)
	case v.Kind() == reflect.Map:
		d.pairs(n, v, path, r)
	default:
		d.scalar(n, v, path, r)
	}
}

func (d *decoder) fields(n *yaml.Node, v reflect.Value, path string) {
	known, index := keys(v.Type())
	if null(n) {
		return // a heading whose fields are all commented out
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n.Line, path, "is "+what(n), "a mapping with the fields "+or(known))
		return
	}
	d.set(n, path)
	seen := make(map[string]int, len(n.Content)/2)
	d.eachPair(n, path, seen, func(key, val *yaml.Node) {
		i, ok := index[key.Value]
		if !ok {
			d.fail(key.Line, join(path, key.Value), "is not a known field", didYouMean(key.Value, known, or(known)))
			return
		}
		f := v.Type().Field(i)
		d.value(val, v.Field(i), join(path, key.Value), RuleOf(f))
	})
	for _, k := range known {
		f := v.Type().Field(index[k])
		if r := RuleOf(f); r.Required && seen[k] == 0 {
			d.fail(n.Line, join(path, k), "is missing", wanted(f.Type, r))
		}
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string, r Rule) {
	if n.Kind != yaml.SequenceNode {
		fix := "a list: [a, b]"
		if null(n) {
			fix = "a list, [] for none, or no such line"
		}
		d.fail(n.Line, path, "is "+what(n), fix)
		return
	}
	for old := range d.at {
		if old != path && within(old, path) {
			delete(d.at, old)
		}
	}
	d.set(n, path)
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		if null(c) {
			d.fail(c.Line, fmt.Sprintf("%s[%d]", path, i), "is empty", "a value, or no such line")
			continue
		}
		d.value(c, out.Index(i), fmt.Sprintf("%s[%d]", path, i), r)
	}
	v.Set(out)
}

func (d *decoder) pairs(n *yaml.Node, v reflect.Value, path string, r Rule) {
	if n.Kind != yaml.MappingNode {
		fix := "a mapping: {key: value}"
		if null(n) {
			fix = "a mapping, {} for none, or no such line"
		}
		d.fail(n.Line, path, "is "+what(n), fix)
		return
	}
	d.set(n, path)
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	d.eachPair(n, path, make(map[string]int), func(key, val *yaml.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(val, e, join(path, key.Value), r)
		out.SetMapIndex(reflect.ValueOf(key.Value), e)
	})
	v.Set(out)
}

// eachPair calls fn for the pairs of a mapping whose keys are sound, and notes the line of each in seen.
func (d *decoder) eachPair(n *yaml.Node, path string, seen map[string]int, fn func(key, val *yaml.Node)) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		switch {
		case key.ShortTag() == "!!merge":
			d.fail(key.Line, path, "has a merge key <<", "the fields themselves (merging is not supported)")
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			d.fail(key.Line, path, "has a key that is "+what(key), "text as the key, in quotes if need be")
		case seen[key.Value] != 0:
			d.fail(key.Line, join(path, key.Value), fmt.Sprintf("is set again (first on line %d)", seen[key.Value]), "it once")
		default:
			seen[key.Value] = key.Line
			fn(key, val)
		}
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string, r Rule) {
	if n.Kind != yaml.ScalarNode || null(n) {
		d.fail(n.Line, path, "is "+what(n), wanted(v.Type(), r))
		return
	}
	out := reflect.New(v.Type()).Elem()
	if problem, fix := parse(n, out, r); problem != "" {
		d.fail(n.Line, path, problem, fix)
		return
	}
	if r.Required && out.IsZero() {
		d.fail(n.Line, path, "is empty", wanted(v.Type(), r))
		return
	}
	if problem, fix := r.check(out, n.Value); problem != "" {
		d.fail(n.Line, path, problem, fix)
		return
	}
	v.Set(out)
	d.set(n, path)
}

func parse(n *yaml.Node, v reflect.Value, r Rule) (problem, fix string) {
	tag := n.ShortTag()
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if tag != "!!str" && tag != "!!int" && tag != "!!float" {
			return "is " + what(n), wanted(v.Type(), r)
		}
		if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			return "is " + quote(n.Value) + ": " + err.Error(), wanted(v.Type(), r)
		}
		return "", ""
	}
	switch {
	case v.Kind() == reflect.String:
		if tag != "!!str" {
			fix := "text"
			if len(n.Value) <= 64 {
				fix += " in quotes: " + strconv.Quote(n.Value)
			}
			if w := r.String(); w != "" {
				fix = w
			}
			return "is " + what(n), fix
		}
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool && tag == "!!bool",
		v.CanInt() && tag == "!!int",
		v.CanFloat() && (tag == "!!int" || tag == "!!float"):
		if err := n.Decode(v.Addr().Interface()); err != nil {
			return "is " + quote(n.Value), wanted(v.Type(), r)
		}
	default:
		return "is " + what(n), wanted(v.Type(), r)
	}
	return "", ""
}

// what says what a node is, for people.
func what(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return "empty"
	case "!!str":
		return "the text " + quote(n.Value)
	case "!!int", "!!float":
		return "the number " + cut(n.Value)
	case "!!bool":
		return "the boolean " + cut(n.Value)
	case "!!timestamp":
		return "the date " + cut(n.Value)
	default:
		return "tagged " + cut(tag)
	}
}

func cut(s string) string { return strings.Trim(quote(s), `"`) }

// wanted describes the values that a field takes: its rule if there is one, else its type.
func wanted(t reflect.Type, r Rule) string {
	if w := r.String(); w != "" {
		return w
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Slice:
		return "a list"
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		return "a mapping"
	case reflect.Zero(t).CanInt():
		return "a whole number"
	default:
		return "a number"
	}
}

// keys lists the names of a struct's fields in their order, and where they are.
func keys(t reflect.Type) (names []string, index map[string]int) {
	index = make(map[string]int, t.NumField())
	for i := range t.NumField() {
		if k := Key(t.Field(i)); k != "" {
			names = append(names, k)
			index[k] = i
		}
	}
	return names, index
}

// join appends a key to a path; what is no plain word is quoted: labels["a.b/c"].
func join(path, key string) string {
	for _, c := range key {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return path + "[" + quote(key) + "]"
		}
	}
	if path == "" {
		return cut(key)
	}
	return path + "." + cut(key)
}
