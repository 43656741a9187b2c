package control

import "github.com/qos-agent/qos-agent/internal/signal"

// The memory bandwidth. What a percentage means is the hardware's secret: Intel's slows each core down by itself, so a pod on four cores
// may move four times as much as one on one core under the same limit, and small steps often do nothing. So limits are never computed
// from a wanted bandwidth; they go down by large steps until the victim is well, and up by small ones while it stays so. (Katalyst sets
// limit × wanted / measured, which explodes when a group idles for reasons of its own.)

// fullMB is no limit, percent.
const fullMB = 100

// floorMB is the least limit that a pod gets, percent.
func floorMB(in *Input) int {
	floor := max(1, in.Spec.RDT.Bandwidth.FloorPercent)
	if u := &in.Node.RDT.MB; u.Unit == signal.MBPercent {
		floor = max(floor, u.Min)
	}
	return floor
}

// fitMB is a limit inside the floor, on the machine's steps, rounded up as the kernel does; none is 0.
func fitMB(in *Input, n int) int {
	n = max(n, floorMB(in))
	if u := &in.Node.RDT.MB; u.Unit == signal.MBPercent && u.Gran > 1 {
		n = ceil(n, u.Gran) * u.Gran
	}
	if n >= fullMB {
		return 0
	}
	return n
}

// lowerMB is the next step down from now. A limit that the machine's steps would round up to where it is goes down by one step.
func lowerMB(in *Input, now int) int {
	if now == 0 {
		now = fullMB
	}
	to := now - max(1, ceil(now*in.Spec.RDT.Bandwidth.CutPercent, 100))
	if gran := in.Node.RDT.MB.Gran; in.Node.RDT.MB.Unit == signal.MBPercent && gran > 1 {
		to = to / gran * gran
	}
	return fitMB(in, to)
}
