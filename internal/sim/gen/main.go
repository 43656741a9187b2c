// Command gen draws every scenario of the library and writes docs/scenarios.md around the pictures.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/qos-agent/qos-agent/internal/sim"
)

func main() {
	if err := run("../../docs"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(docs string) error {
	files, err := sim.Docs()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(docs, "scenarios")); err != nil {
		return err
	}
	for name, data := range files {
		file := filepath.Join(docs, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
