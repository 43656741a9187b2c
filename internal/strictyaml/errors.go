package strictyaml

import (
	"fmt"
	"slices"
	"strings"
)

// FieldError is one thing that is wrong with a file, told so that whoever wrote the file can mend it without reading code.
type FieldError struct {
	File    string `json:"file"`           // as the caller named it
	Line    int    `json:"line,omitempty"` // from 1; 0 when it is about the file as a whole, or about a value that came from no file
	Path    string `json:"path,omitempty"` // the field, such as spec.cpu.ladder[1]; "" when it is about no single field
	Problem string `json:"problem"`        // what is wrong: `is 0`
	Fix     string `json:"fix,omitempty"`  // what would be right, so that "want " + Fix reads well: `1 to 100`
	Err     error  `json:"-"`              // the cause, if there is one, for errors.Is
}

// Error is `file:line: field.path: problem; want fix`, less what is not known.
func (e FieldError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Problem)
	if e.Fix != "" {
		b.WriteString("; want " + e.Fix)
	}
	return b.String()
}

func (e FieldError) Unwrap() error { return e.Err }

// ErrorList is everything that is wrong, sorted by file and line once it leaves this package.
type ErrorList []FieldError

// Error has one line for each error.
func (l ErrorList) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

func (l ErrorList) Unwrap() []error {
	errs := make([]error, len(l))
	for i, e := range l {
		errs[i] = e
	}
	return errs
}

// AsError is l as an error, nil if l is empty (a nil ErrorList in an error interface would not be nil).
func (l ErrorList) AsError() error {
	if len(l) == 0 {
		return nil
	}
	return l
}

// About reports whether an error concerns the field at path or a part of it.
func (l ErrorList) About(path string) bool {
	return slices.ContainsFunc(l, func(e FieldError) bool { return within(e.Path, path) })
}

// maxErrors bounds a list: nobody reads the ten-thousandth error of a file full of garbage, but logs would have to hold it.
const maxErrors = 100

// Tidy sorts the list by file and line, drops repetitions and cuts it off after 100 errors, saying so.
func (l ErrorList) Tidy() ErrorList {
	slices.SortStableFunc(l, func(a, b FieldError) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	l = slices.CompactFunc(l, func(a, b FieldError) bool { return a.Error() == b.Error() })
	if over := len(l) - maxErrors; over > 0 {
		l = append(l[:maxErrors:maxErrors], FieldError{File: l[maxErrors].File, Problem: fmt.Sprintf("%d more errors are not shown", over)})
	}
	return l
}

// within reports whether the field at path is the one at outer or lies in it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || outer == "")
}
