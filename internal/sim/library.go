package sim

import (
	"embed"
	"path"
	"strings"
)

//go:embed scenarios/*.yaml
var library embed.FS

// Library names the scenarios that come with the agent, sorted.
func Library() []string {
	entries, _ := library.ReadDir("scenarios")
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Load reads a scenario of the library by its name, or a file.
func Load(name string) (*Scenario, error) {
	if data, err := library.ReadFile(path.Join("scenarios", name+".yaml")); err == nil {
		return parse(name+".yaml", data)
	}
	return LoadFile(name)
}
