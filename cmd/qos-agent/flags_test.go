package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite generated documents")

// TestFlagsReference writes docs/flags.md with -update and otherwise proves that it is what the command line takes.
func TestFlagsReference(t *testing.T) {
	const file = "../../docs/flags.md"
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := flagsReference(parser.Model)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/flags.md is not up to date (go test ./cmd/qos-agent -update), -want +got:\n%s", diff)
	}
}

func flagsReference(app *kong.Application) string {
	var b strings.Builder
	b.WriteString("# Commands and flags\n\nGenerated from the command line's own description by `go test ./cmd/qos-agent -run TestFlagsReference -update`. Do not edit.\n\n")
	b.WriteString("Exit codes: 0 it worked, 1 it did not (stderr says why), 2 it was called wrongly. `--help` works everywhere.\n")
	for _, n := range app.Children {
		describeCommand(&b, "qos-agent", n)
	}
	return b.String()
}

func describeCommand(b *strings.Builder, path string, n *kong.Node) {
	path += " " + n.Name
	if len(n.Children) > 0 {
		for _, c := range n.Children {
			describeCommand(b, path, c)
		}
		return
	}
	usage := path
	for _, p := range n.Positional {
		usage += " " + p.Summary()
	}
	fmt.Fprintf(b, "\n## %s\n\n`%s`\n\n%s\n", path, usage, n.Help)
	if len(n.Positional) > 0 {
		b.WriteString("\n| argument | meaning |\n|---|---|\n")
		for _, p := range n.Positional {
			fmt.Fprintf(b, "| `%s` | %s |\n", p.Summary(), cell(p.Help))
		}
	}
	if len(n.Flags) > 0 {
		b.WriteString("\n| flag | default | meaning |\n|---|---|---|\n")
	}
	for _, f := range n.Flags {
		if f.Hidden {
			continue
		}
		name := "`--" + f.Name
		if f.Tag.Negatable != "" {
			name = "`--[no-]" + f.Name
		}
		if !f.IsBool() {
			name += " " + cmp.Or(f.PlaceHolder, "VALUE")
		}
		name += "`"
		if f.Short != 0 {
			name = "`-" + string(f.Short) + "`, " + name
		}
		def := "–"
		if f.HasDefault && f.Default != "" {
			def = "`" + f.Default + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, def, cell(f.Help))
	}
}

// cell keeps a text from ending its cell.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
