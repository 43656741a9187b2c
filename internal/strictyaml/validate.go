package strictyaml

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Validate holds a value that was made by a program, not read from a file, against the rules of its tags. v is a struct or a
// pointer to one. Fields marked omitempty may be zero.
func Validate(v any) ErrorList {
	var errs ErrorList
	validate(reflect.Indirect(reflect.ValueOf(v)), "", Rule{}, &errs)
	return errs
}

func validate(v reflect.Value, path string, r Rule, errs *ErrorList) {
	if _, isText := reflect.New(v.Type()).Interface().(encoding.TextUnmarshaler); !isText {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				validate(v.Elem(), path, r, errs)
			}
			return
		case reflect.Struct:
			names, index := keys(v.Type())
			for _, k := range names {
				f := v.Type().Field(index[k])
				fr := RuleOf(f)
				switch fv := v.Field(index[k]); {
				case !fv.IsZero():
					validate(fv, join(path, k), fr, errs)
				case fr.Required:
					*errs = append(*errs, FieldError{Path: join(path, k), Problem: "is missing", Fix: wanted(f.Type, fr)})
				case !optional(f):
					validate(fv, join(path, k), fr, errs)
				}
			}
			return
		case reflect.Slice:
			for i := range v.Len() {
				validate(v.Index(i), fmt.Sprintf("%s[%d]", path, i), r, errs)
			}
			return
		case reflect.Map:
			names := v.MapKeys()
			slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
			for _, k := range names {
				validate(v.MapIndex(k), join(path, k.String()), r, errs)
			}
			return
		}
	}
	if problem, fix := r.check(v, fmt.Sprint(v.Interface())); problem != "" {
		*errs = append(*errs, FieldError{Path: path, Problem: problem, Fix: fix})
	}
}
