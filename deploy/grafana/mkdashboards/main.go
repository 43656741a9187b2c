// Mkdashboards writes the dashboards of package grafana into a directory.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/qos-agent/qos-agent/deploy/grafana"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkdashboards:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want the directory to write to")
	}
	for _, b := range grafana.Boards() {
		text, err := b.JSON()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(b.UID, "qos-agent-") + ".json"
		if err := os.WriteFile(filepath.Join(args[0], name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
