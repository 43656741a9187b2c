package actuate

import (
	"testing"

	"github.com/qos-agent/qos-agent/internal/knob"
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

// The kernel's files are read by the audit without allocation; the fake's are not.
func TestKernelAuditIsFree(t *testing.T) {
	b := newBench(t, cgrouptest.NewReal(t))
	b.mkdir("pod")
	b.e.Apply([]knob.Want{b.want("pod", knob.CPUIdle, n(1)), b.want("pod", knob.CPUSet, cpus(0))}, b.policy)
	if got := testing.AllocsPerRun(100, func() { b.e.Audit() }); got > 0 {
		t.Errorf("an audit without findings allocates %v times", got)
	}
	b.e.RestoreAll()
}
