package ebpf

import (
	"os"
	"testing"

	"github.com/qos-agent/qos-agent/test/work"
)

func TestMain(m *testing.M) {
	work.MaybeRun()
	os.Exit(m.Run())
}
