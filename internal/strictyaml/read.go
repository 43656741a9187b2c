package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxBytes is the size that a file may have. A whole ConfigMap is not allowed to be larger.
	MaxBytes = 1 << 20
	// maxIndicators bounds the characters that can begin a YAML node. A node costs the parser about 200 bytes of memory, so
	// that a file of nothing but commas would take a hundred times its size.
	maxIndicators = 100_000
)

// ReadFile reads a regular file of at most MaxBytes, following symlinks. What is not a regular file is never opened: opening a
// FIFO would block, opening a device may do anything.
func ReadFile(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, unreadable(file, err)
	}
	if e := notRegular(file, info.Mode()); e != nil {
		return nil, e
	}
	// The file may have been replaced since: O_NONBLOCK makes the open of a FIFO return, and fstat tells what was opened.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, unreadable(file, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, unreadable(file, err)
	}
	if e := notRegular(file, info.Mode()); e != nil {
		return nil, e
	}
	if info.Size() > MaxBytes {
		return nil, ErrorList{tooLarge(file, info.Size())}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, unreadable(file, err)
	}
	if len(data) > MaxBytes {
		return nil, ErrorList{tooLarge(file, int64(len(data)))}
	}
	return data, nil
}

func tooLarge(file string, size int64) FieldError {
	return FieldError{File: file, Problem: fmt.Sprintf("has %d bytes", size), Fix: fmt.Sprintf("at most %d (1 MiB)", MaxBytes)}
}

func unreadable(file string, err error) ErrorList {
	var p *fs.PathError
	cause := err
	if errors.As(err, &p) {
		cause = p.Err // the name stands in front already
	}
	return ErrorList{{File: file, Problem: "cannot be read: " + cause.Error(), Fix: "a readable file", Err: err}}
}

func notRegular(file string, m fs.FileMode) error {
	kind := ""
	switch {
	case m.IsRegular():
		return nil
	case m.IsDir():
		kind = "a directory"
	case m&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case m&fs.ModeSocket != 0:
		kind = "a socket"
	case m&fs.ModeDevice != 0:
		kind = "a device"
	default:
		kind = "not a regular file"
	}
	return ErrorList{{File: file, Problem: "is " + kind, Fix: "a regular file"}}
}

// Document is one YAML document of a file.
type Document struct {
	file string
	root *yaml.Node
}

// Line is where the document's first field stands.
func (d Document) Line() int { return d.root.Line }

// Parse splits data into its documents, leaving out those that hold nothing but comments. On a syntax error it returns the
// documents before it as well. file is the name for messages.
func Parse(file string, data []byte) (docs []Document, errs ErrorList) {
	if e, bad := notText(file, data); bad {
		return nil, ErrorList{e}
	}
	defer func() { // the parser holds "internal error, please report" panics; a file must not bring a daemon down
		if r := recover(); r != nil {
			errs = append(errs, FieldError{File: file, Problem: fmt.Sprintf("cannot be parsed: %v", r), Fix: "valid YAML"})
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		if err := dec.Decode(&n); err == io.EOF {
			return docs, nil
		} else if err != nil {
			return docs, ErrorList{syntaxError(file, err)}
		}
		if n.Kind != yaml.DocumentNode || len(n.Content) != 1 || null(n.Content[0]) {
			continue
		}
		docs = append(docs, Document{file, n.Content[0]})
	}
}

func notText(file string, data []byte) (FieldError, bool) {
	text := "YAML in UTF-8"
	if len(data) > MaxBytes {
		return tooLarge(file, int64(len(data))), true
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		line := 1
		for rest := data; len(rest) > 0; {
			r, n := utf8.DecodeRune(rest)
			if r == 0 || r == utf8.RuneError && n == 1 {
				break
			} else if r == '\n' {
				line++
			}
			rest = rest[n:]
		}
		return FieldError{File: file, Line: line, Problem: "is not text", Fix: text}, true
	}
	indicators := 0
	for _, c := range data {
		switch c {
		case '\n', ',', ':', '-', '?', '[', '{':
			indicators++
		}
	}
	if indicators > maxIndicators {
		return FieldError{File: file, Problem: "has too many values", Fix: fmt.Sprintf("fewer than %d lines, commas, colons, dashes and brackets", maxIndicators)}, true
	}
	return FieldError{}, false
}

var parserLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)`)

func syntaxError(file string, err error) FieldError {
	m := parserLine.FindStringSubmatch(err.Error())
	line, _ := strconv.Atoi(m[1])
	return FieldError{File: file, Line: line, Problem: "is not valid YAML: " + m[2], Fix: "valid YAML", Err: err}
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
