package cgrouptest

import "testing"

// The kernel follows the same table as the fake; where it does not, the fake is wrong.
func TestKernelRules(t *testing.T) {
	testRules(t, func(t *testing.T) World { return NewReal(t) })
}

func TestKernelVanish(t *testing.T) {
	testVanish(t, NewReal(t))
}
