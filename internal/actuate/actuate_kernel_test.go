package actuate

import (
	"testing"

	"github.com/qos-agent/qos-agent/pkg/cgroup/cgrouptest"
)

func TestKernel(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, newBench(t, cgrouptest.NewReal(t))) })
	}
}

func TestKernelCrash(t *testing.T) {
	w := cgrouptest.NewReal(t)
	testCrash(t, w, "real "+w.Base())
}
