package main

import (
	"encoding/json"
	"fmt"
	"runtime"
)

type versionCmd struct {
	JSON bool `name:"json" help:"Print it as JSON."`
}

// versionInfo is what version --json prints.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (c versionCmd) Run(e env) error {
	v := versionInfo{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(v)
	}
	_, err := fmt.Fprintf(e.stdout, "qos-agent %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
	return err
}
