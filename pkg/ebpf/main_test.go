package ebpf

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/qos-agent/qos-agent/test/work"
)

// loadOnly is set in the environment of a process that says why it cannot load the programs.
const loadOnly = "QOS_AGENT_TEST_LOAD"

func TestMain(m *testing.M) {
	work.MaybeRun()
	if os.Getenv(loadOnly) != "" {
		_, err := Load(Options{})
		if missing, ok := errors.AsType[*UnsupportedError](err); ok {
			fmt.Print(missing.Missing)
		} else {
			fmt.Print(err)
		}
		return
	}
	os.Exit(m.Run())
}
