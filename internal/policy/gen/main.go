// Command gen writes what follows from the types of package policy: policies/schema.json for editors and CI, and docs/policy.md
// for people. Run it with `go generate ./internal/policy`.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(filepath.Join("..", "..")); err != nil { // go generate runs in internal/policy
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run writes the files under the root of the repository.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// generate makes the files, by their names under the root, from the types and comments found there.
func generate(root string) (map[string][]byte, error) {
	comments, err := comments(filepath.Join(root, "internal", "policy"))
	if err != nil {
		return nil, err
	}
	schema, err := schemaJSON(comments)
	if err != nil {
		return nil, err
	}
	reference, err := reference(comments)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"policies/schema.json": schema, "docs/policy.md": reference}, nil
}
