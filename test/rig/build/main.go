// Build makes the rig and puts it into the cache, if it is not there yet.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/qos-agent/qos-agent/test/rig"
	"github.com/qos-agent/qos-agent/test/vm"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		os.Exit(1)
	}
}

func run() error {
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	r, err := rig.Open(context.Background(), cache, os.Stderr)
	if err != nil {
		return err
	}
	fmt.Println(r.Program())
	return nil
}
