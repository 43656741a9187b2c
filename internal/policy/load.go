package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

// ErrorList is everything that is wrong with a policy. The functions of this package return no other errors for bad policies.
type ErrorList = strictyaml.ErrorList

// FieldError is one thing that is wrong: `file:line: field.path: problem; want fix`.
type FieldError = strictyaml.FieldError

// ErrNoPolicy tells a directory that can be read but holds no policy from one whose policy is bad: errors.Is(err, ErrNoPolicy).
var ErrNoPolicy = errors.New("no policy")

var errUnit = errors.New("not a duration with a unit (us, ms, s, m, h)")

// maxFiles bounds the work that a directory can cause; a ConfigMap is too small for as many useful files.
const maxFiles = 64

// Load reads the policy of a directory: every *.yaml and *.yml in it in the order of their names, each applied over the last,
// the first over the defaults. It follows symlinks, as those of a mounted ConfigMap, and skips names that begin with a dot.
// The error is an ErrorList with all that is wrong.
func Load(dir string) (*Policy, error) {
	files, err := policyFiles(dir)
	if err != nil {
		return nil, err
	}
	l := newLoader()
	for _, f := range files {
		l.addFile(f)
	}
	return l.finish()
}

// LoadFile reads the policy of one file, over the defaults. The file may also hold ConfigMaps, as they are kept in repositories and as
// qos-agent tune writes them: then each of their policy files counts, in the order of their names. The error is an ErrorList.
func LoadFile(file string) (*Policy, error) {
	l := newLoader()
	l.addManifest(file)
	return l.finish()
}

// Parse is LoadFile on data; file is the name for messages.
func Parse(file string, data []byte) (*Policy, error) {
	l := newLoader()
	l.add(file, data)
	return l.finish()
}

// policyFiles lists the paths of a directory's policy files, sorted. There is at least one.
func policyFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, ErrorList{{File: dir, Problem: "is not a directory", Fix: "the directory that holds the policy files", Err: err}}
	} else if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, ErrorList{{File: dir, Problem: "cannot be read: " + err.Error(), Fix: "a directory with policy files", Err: err}}
	}
	var files []string
	for _, e := range entries { // sorted by name
		if isPolicyFile(e.Name()) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	switch {
	case len(files) == 0:
		return nil, ErrorList{{
			File: dir, Problem: "holds no *.yaml or *.yml file",
			Fix: fmt.Sprintf("at least one: qos-agent policy default > %s", filepath.Join(dir, "default.yaml")), Err: ErrNoPolicy,
		}}
	case len(files) > maxFiles:
		return nil, ErrorList{{File: dir, Problem: fmt.Sprintf("holds %d policy files", len(files)), Fix: fmt.Sprintf("at most %d", maxFiles)}}
	}
	return files, nil
}

// isPolicyFile leaves out hidden files: editors' temporary ones, and the ..data and ..timestamp of a ConfigMap.
func isPolicyFile(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml")
}

// loader lays documents over each other and remembers which of them set what, for messages.
type loader struct {
	policy  Policy
	machine Machine // on which it is to hold, as far as that is known
	at      strictyaml.Positions
	errs    ErrorList
}

func newLoader() *loader { return &loader{policy: Default(), at: make(strictyaml.Positions)} }

func (l *loader) addFile(file string) {
	data, err := strictyaml.ReadFile(file)
	if err != nil {
		l.errs = append(l.errs, asList(file, err)...)
		return
	}
	l.add(file, data)
}

// addManifest is addFile, and looks into ConfigMaps.
func (l *loader) addManifest(file string) {
	data, err := strictyaml.ReadFile(file)
	if err != nil {
		l.errs = append(l.errs, asList(file, err)...)
		return
	}
	inside := configMaps(data)
	for _, name := range slices.Sorted(maps.Keys(inside)) {
		l.add(file+"#"+name, []byte(inside[name]))
	}
	if len(inside) == 0 {
		l.add(file, data)
	}
}

// configMaps are the policy files in a file that holds nothing but ConfigMaps; none if it holds anything else.
func configMaps(data []byte) map[string]string {
	inside := map[string]string{}
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc struct {
			Kind string
			Data map[string]string
		}
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return inside
		}
		if err != nil || doc.Kind != "ConfigMap" {
			return nil // what is wrong is said by the strict reader
		}
		for name, text := range doc.Data {
			if isPolicyFile(name) {
				inside[name] = text
			}
		}
	}
}

func (l *loader) add(file string, data []byte) {
	docs, errs := strictyaml.Parse(file, data)
	l.errs = append(l.errs, errs...)
	if len(docs) == 0 && len(errs) == 0 {
		l.errs = append(l.errs, FieldError{File: file, Problem: "is empty", Fix: "a policy, such as the one that qos-agent policy default prints"})
	}
	for _, d := range docs {
		l.errs = append(l.errs, d.Decode(&l.policy, l.at)...)
	}
}

// finish checks what no single field shows, on the policy that came of all documents.
func (l *loader) finish() (*Policy, error) {
	l.checkRelations()
	if len(l.errs) > 0 {
		return nil, l.errs.Tidy()
	}
	return &l.policy, nil
}

func (l *loader) checkRelations() {
	for _, r := range relations(&l.policy, &l.machine) {
		if r.spoilt(l.errs) {
			continue
		}
		at := l.whence(r)
		l.errs = append(l.errs, FieldError{File: at.File, Line: at.Line, Path: r.path, Problem: r.problem, Fix: r.fix})
	}
}

// whence finds the line that broke a relation: where the field to change was set, or else, if that has its default, where one
// that it depends on was.
func (l *loader) whence(r relation) strictyaml.Position {
	for _, path := range append([]string{r.path}, r.others...) {
		if at, ok := l.at[path]; ok {
			return at
		}
	}
	return l.at.Of(r.path)
}

func asList(file string, err error) ErrorList {
	var list ErrorList
	if errors.As(err, &list) {
		return list
	}
	return ErrorList{{File: file, Problem: err.Error(), Err: err}}
}
