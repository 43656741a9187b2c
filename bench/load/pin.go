package load

import _ "unsafe" // for linkname

// procPin makes the goroutine keep its processor: Go's scheduler leaves it alone until it is unpinned, even where the compiler has
// put checks for pre-emption. Without it the runtime takes the thread off every 10 ms and gives it back by way of another
// thread, which has to wait for a CPU like anybody else.
//
//go:linkname procPin runtime.procPin
func procPin() int
