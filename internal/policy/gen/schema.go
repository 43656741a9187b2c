package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

const (
	module   = "github.com/qos-agent/qos-agent/internal/policy"
	schemaID = "https://qos-agent.io/schemas/v1alpha1/qospolicy.json"
)

// comments maps "import/path.Type.Field" to doc comments, each on one line.
func comments(dir string) (map[string]string, error) {
	var r jsonschema.Reflector
	if err := r.AddGoComments(module, dir, jsonschema.WithFullComment()); err != nil {
		return nil, fmt.Errorf("read comments: %w", err)
	}
	out := make(map[string]string, len(r.CommentMap))
	for name, text := range r.CommentMap { // the library joins the directory to the import path
		_, symbol, ok := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ".")
		if ok {
			out[symbol] = strings.Join(strings.Fields(text), " ")
		}
	}
	return out, nil
}

var (
	durationType = reflect.TypeFor[policy.Duration]()
	waysType     = reflect.TypeFor[policy.Ways]()
)

// schemaJSON is the JSON Schema of one policy document.
func schemaJSON(comments map[string]string) ([]byte, error) {
	r := jsonschema.Reflector{
		DoNotReference:             true, // one tree; editors show it better
		RequiredFromJSONSchemaTags: true, // what is required is in our own tags
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			if t == durationType || t == waysType {
				return &jsonschema.Schema{Type: "string"}
			}
			return nil
		},
		LookupComment: func(t reflect.Type, field string) string { return comments[t.Name()+"."+field] },
	}
	s := r.ReflectFromType(reflect.TypeFor[policy.Policy]())
	s.ID = schemaID
	s.Title = policy.Kind
	s.Description = comments["Policy"]
	defaults := policy.Default()
	constrain(s, reflect.ValueOf(defaults))
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(data, '\n'), nil
}

// constrain adds to the schema of a struct what its tags say, and the defaults, which are v's fields.
func constrain(s *jsonschema.Schema, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key, rule := strictyaml.Key(f), strictyaml.RuleOf(f)
		prop, ok := s.Properties.Get(key)
		if !ok {
			continue
		}
		if rule.Required {
			s.Required = append(s.Required, key)
		}
		field := v.Field(i)
		for field.Kind() == reflect.Pointer {
			field = reflect.Zero(field.Type().Elem())
		}
		switch field.Kind() {
		case reflect.Struct:
			constrain(prop, field)
		case reflect.Slice:
			if e := field.Type().Elem(); e.Kind() == reflect.Struct {
				constrain(prop.Items, reflect.Zero(e))
			} else {
				limit(prop.Items, e, rule)
			}
			if field.Len() > 0 {
				prop.Default = field.Interface()
			}
		case reflect.Map:
		default:
			limit(prop, field.Type(), rule)
			// Zero values are defaults too, but within lists nothing is.
			if !rule.Required && field.IsValid() && (!field.IsZero() || !strings.Contains(string(f.Tag), "omitempty")) {
				prop.Default = field.Interface()
			}
		}
	}
}

// limit adds a rule to the schema of a scalar of type t.
func limit(s *jsonschema.Schema, t reflect.Type, r strictyaml.Rule) {
	if r.Pattern != nil {
		s.Pattern = r.Pattern.String()
		s.Description = sentence(s.Description, r.Example)
	}
	switch {
	case t == waysType: // a mask, and a way alone, are numbers to YAML
		s.Description = sentence(s.Description, r.Example)
		s.AnyOf = []*jsonschema.Schema{{Type: "string", Pattern: `^(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,2}(-[0-9]{1,2})?(, *[0-9]{1,2}(-[0-9]{1,2})?)*)?$`}, {Type: "integer", Minimum: "0"}}
		s.Type = ""
	case len(r.Want) == 0:
	case t == durationType: // JSON Schema cannot compare durations: it only sees that they are some
		s.Description = sentence(s.Description, r.String())
		s.Pattern = `^(0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$`
		if r.Want[0].Low == "0" { // which may be written as a number, for want of a unit
			s.AnyOf = []*jsonschema.Schema{{Type: "string", Pattern: s.Pattern}, {Const: 0}}
			s.Type, s.Pattern = "", ""
		}
	case t.Kind() == reflect.String:
		for _, c := range r.Want {
			s.Enum = append(s.Enum, c.Low)
		}
	default: // numbers have exactly one range
		s.Minimum, s.Maximum = json.Number(r.Want[0].Low), json.Number(r.Want[0].High)
		if _, err := strconv.ParseFloat(r.Want[0].High, 64); err != nil || len(r.Want) != 1 {
			panic(fmt.Sprintf("gen: cannot express %v of %v", r, t))
		}
	}
}

func sentence(text, values string) string {
	return strings.TrimSpace(text + " Values: " + values + ".")
}
