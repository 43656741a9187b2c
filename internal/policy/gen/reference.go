package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"reflect"
	"strings"
	"text/template"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

//go:embed policy.md.tmpl
var referenceTemplate string

// section is the table of one struct.
type section struct {
	Path, About string
	Fields      []field
}

type field struct{ Name, Default, Values, About string }

// reference is docs/policy.md.
func reference(comments map[string]string) ([]byte, error) {
	t, err := template.New("policy.md").Parse(referenceTemplate)
	if err != nil {
		return nil, fmt.Errorf("parse template: %w", err)
	}
	r := referenceMaker{comments: comments}
	defaults := policy.Default()
	r.add("", reflect.ValueOf(defaults), true)
	var out bytes.Buffer
	if err := t.Execute(&out, struct{ Sections []section }{r.sections}); err != nil {
		return nil, fmt.Errorf("make reference: %w", err)
	}
	return out.Bytes(), nil
}

type referenceMaker struct {
	comments map[string]string
	sections []section
}

// add makes the section of the struct v at path, and those of the structs in it. Elements of lists have no defaults.
func (r *referenceMaker) add(path string, v reflect.Value, defaults bool) {
	at := len(r.sections)
	r.sections = append(r.sections, section{Path: path, About: r.comments[v.Type().Name()]})
	var nested []func()
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		key, rule := strictyaml.Key(f), strictyaml.RuleOf(f)
		about := r.comments[v.Type().Name()+"."+f.Name]
		inner := strings.TrimPrefix(path+"."+key, ".")
		row := field{Name: key, About: cell(about), Values: cell(values(f.Type, rule))}
		switch {
		case rule.Required:
			row.Default = "required"
		case defaults:
			row.Default = cell(show(fv))
		}
		switch {
		case fv.Kind() == reflect.Struct:
			row.Values = "see [" + inner + "](#" + anchor(inner) + ")"
			nested = append(nested, func() { r.add(inner, fv, defaults) })
		case fv.Kind() == reflect.Slice && fv.Type().Elem().Kind() == reflect.Struct:
			row.Values, row.Default = "list, see ["+inner+"[]](#"+anchor(inner+"[]")+")", "none"
			nested = append(nested, func() { r.add(inner+"[]", reflect.Zero(fv.Type().Elem()), false) })
		}
		r.sections[at].Fields = append(r.sections[at].Fields, row)
	}
	for _, n := range nested {
		n()
	}
}

// values says what a field of type t may hold.
func values(t reflect.Type, r strictyaml.Rule) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	of := r.String()
	switch {
	case t.Kind() == reflect.Slice && of != "":
		return "list, each: " + of
	case t.Kind() == reflect.Map:
		return "mapping of text to text"
	case of == "":
		return "text"
	}
	return of
}

func show(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		return "`" + strings.ReplaceAll(fmt.Sprint(v.Interface()), " ", ", ") + "`"
	case reflect.Struct, reflect.Map:
		return ""
	}
	if text := fmt.Sprint(v.Interface()); text != "" {
		return "`" + text + "`"
	}
	return "not set"
}

// cell makes text fit for a table.
func cell(s string) string { return strings.NewReplacer("|", `\|`, "*", `\*`).Replace(s) }

// anchor is the one that Markdown renderers make of a heading.
func anchor(heading string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(heading) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' {
			b.WriteRune(c)
		}
	}
	return b.String()
}
