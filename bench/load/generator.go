package load

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// generator is the loop and what it needs. All fields but the atomics belong to the loop's thread once it runs.
type generator struct {
	addr    unix.RawSockaddrInet4
	request []byte
	length  int    // of an answer
	prefix  []byte // with which every answer begins
	timeout int64  // ns

	patience time.Duration // of end, with the last answers of a window

	base  time.Time
	rng   *rand.Rand
	gap   float64 // mean time between arrivals, ns; 0: none
	due   int64   // when the next request is due
	epoll int
	conns []conn
	free  []int32 // ring of connections without a request, the longest free first
	head  int
	nfree int
	check int64 // when to look at closed and overdue connections
	buf   []byte

	now, old *recorder // old still waits for its last answers, or is nil
	spare    *recorder

	rate    atomic.Pointer[float64]  // asks for a new rate
	collect atomic.Bool              // asks for the window to be ended
	ended   atomic.Pointer[recorder] // the window that was asked for; the asker gives it back through returned
	giveUp  atomic.Bool              // the asker waits no longer
}

type conn struct {
	fd       int
	busy     bool
	due      int64
	freeAt   int64
	sentAt   int64
	received int
	rec      *recorder
}

// idle is the longest sleep of the loop: how long it may take to notice what the client asks.
const idle = 5 * time.Millisecond

func newGenerator(o Options, p protocol) (*generator, error) {
	ap, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return nil, err
	}
	length, prefix, err := learn(o.Addr, p)
	if err != nil {
		return nil, err
	}
	g := &generator{
		request: p.request(), length: length, prefix: prefix, timeout: int64(o.Timeout), patience: o.Patience,
		base: time.Now(), rng: rand.New(rand.NewPCG(o.Seed, 0x9e3779b97f4a7c15)),
		buf: make([]byte, 1<<16), now: newRecorder(), spare: newRecorder(),
	}
	g.addr = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: ap.Addr().Unmap().As4()}
	port := (*[2]byte)(unsafe.Pointer(&g.addr.Port))
	port[0], port[1] = byte(ap.Port()>>8), byte(ap.Port())
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	g.conns = make([]conn, o.Connections)
	g.free = make([]int32, o.Connections)
	for i := range g.conns {
		if errno := g.open(i); errno != 0 {
			return nil, errno
		}
	}
	g.setRate(o.Rate)
	return g, nil
}

func (g *generator) time() int64 { return int64(time.Since(g.base)) }

func (g *generator) setRate(perSecond float64) {
	g.gap = 0
	if perSecond > 0 {
		g.gap = 1e9 / perSecond
	}
	g.due = g.time()
	g.advance()
}

// advance draws the next arrival.
func (g *generator) advance() { g.due += int64(g.rng.ExpFloat64() * g.gap) }

// run never returns. The thread keeps its processor; see procPin.
func (g *generator) run() {
	procPin()
	var events [64]unix.EpollEvent
	for {
		g.obey()
		now := g.sendDue(g.time())
		if now >= g.check {
			g.revive(now)
		}
		wait := int64(idle)
		if g.gap > 0 && g.nfree > 0 {
			wait = min(wait, max(g.due-now, 0))
		}
		n := epollWait(g.epoll, events[:], wait)
		woke := g.time()
		for _, e := range events[:n] {
			g.receive(int(e.Fd))
		}
		g.now.busyMax = max(g.now.busyMax, g.time()-woke)
	}
}

// obey does what the client has asked for.
func (g *generator) obey() {
	if r := g.rate.Swap(nil); r != nil {
		g.setRate(*r)
	}
	if g.collect.Load() && g.old == nil {
		g.collect.Store(false)
		g.old, g.now, g.spare = g.now, g.spare, nil
		g.old.end = g.time()
		g.now.reset(g.old.end)
	}
	if g.old == nil {
		return
	}
	// Requests of the old window may still be in flight, or due and not sent yet for want of a connection.
	settled := g.old.inFlight == 0 && (g.gap == 0 || g.due >= g.old.end)
	if settled || g.giveUp.Load() {
		for i := range g.conns {
			if g.conns[i].rec == g.old {
				g.conns[i].rec = nil // whatever still comes of it is not counted
			}
		}
		g.spare, g.old = g.old, nil // it is the client's until it asks for the next window
		g.ended.Store(g.spare)
	}
}

// sendDue sends what is due as far as there are free connections, and gives the time.
func (g *generator) sendDue(now int64) int64 {
	for g.gap > 0 && g.due <= now && g.nfree > 0 {
		c := g.pop()
		rec := g.now
		if g.old != nil && g.due < g.old.end {
			rec = g.old
		}
		rec.offered++
		if c.freeAt > g.due {
			rec.queued++
		}
		push(&rec.late, now-max(g.due, c.freeAt))
		c.busy, c.due, c.sentAt, c.received, c.rec = true, g.due, now, 0, rec
		rec.inFlight++
		g.advance()
		if !write(c.fd, g.request) {
			g.fail(c)
		}
		now = g.time()
	}
	return now
}

// receive reads what a connection has.
func (g *generator) receive(i int) {
	c := &g.conns[i]
	if c.fd < 0 {
		return
	}
	n, errno := read(c.fd, g.buf)
	if errno == syscall.EAGAIN {
		return
	}
	// Nothing may come while nothing is asked, nor more than was asked for.
	if n <= 0 || !c.busy || c.received+n > g.length || !g.asExpected(c.received, g.buf[:n]) {
		g.fail(c)
		return
	}
	c.received += n
	if c.received < g.length {
		return
	}
	now := g.time()
	if c.rec != nil {
		c.rec.completed++
		c.rec.inFlight--
		push(&c.rec.latency, now-c.due)
	}
	c.busy, c.rec, c.freeAt = false, nil, now
	g.push(int32(i))
}

// asExpected compares the part of an answer that begins at offset with what every answer begins with.
func (g *generator) asExpected(offset int, b []byte) bool {
	for i := offset; i < len(g.prefix) && i-offset < len(b); i++ {
		if b[i-offset] != g.prefix[i] {
			return false
		}
	}
	return true
}

// fail counts the request of a connection as an error and closes it; revive opens it again.
func (g *generator) fail(c *conn) {
	if c.rec != nil {
		c.rec.errors++
		c.rec.inFlight--
	}
	rawClose(c.fd)
	if !c.busy {
		g.forget(c)
	}
	*c = conn{fd: -1}
}

// forget takes a connection out of the ring of free ones.
func (g *generator) forget(c *conn) {
	for n := g.nfree; n > 0; n-- {
		i := g.free[g.head]
		g.head = (g.head + 1) % len(g.free)
		g.nfree--
		if &g.conns[i] != c {
			g.push(i)
		}
	}
}

const checkEvery = int64(50 * time.Millisecond)

// revive opens closed connections again and closes those that have waited too long.
func (g *generator) revive(now int64) {
	g.check = now + checkEvery
	for i := range g.conns {
		c := &g.conns[i]
		if c.busy && now-c.sentAt > g.timeout {
			g.fail(c)
		}
		if c.fd < 0 {
			_ = g.open(i) // the server may be away for longer
		}
	}
}

// open connects. On a local network a connection is made within moments; a request sent before it stands is an error.
func (g *generator) open(i int) syscall.Errno {
	fd, errno := connect(&g.addr)
	if errno != 0 {
		g.conns[i].fd = -1
		return errno
	}
	if errno := epollAdd(g.epoll, fd, i); errno != 0 {
		rawClose(fd)
		g.conns[i].fd = -1
		return errno
	}
	g.conns[i] = conn{fd: fd, freeAt: g.time()}
	g.push(int32(i))
	return 0
}

func (g *generator) push(i int32) {
	g.free[(g.head+g.nfree)%len(g.free)] = i
	g.nfree++
}

func (g *generator) pop() *conn {
	i := g.free[g.head]
	g.head = (g.head + 1) % len(g.free)
	g.nfree--
	return &g.conns[i]
}

// The system calls of the loop are raw: the ordinary ones tell Go's scheduler, which may then hand the processor to someone else.

func epollWait(fd int, events []unix.EpollEvent, ns int64) int {
	ts := unix.NsecToTimespec(ns)
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 {
		return 0 // a signal
	}
	return int(n)
}

// epollAdd watches fd for input; its events carry id.
func epollAdd(epoll, fd, id int) syscall.Errno {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(id)}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// accept gives a new connection, or -1.
func accept(listener int) int {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1
	}
	return int(fd)
}

func read(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), 0
}

func write(fd int, b []byte) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return errno == 0 && int(n) == len(b)
}

func rawClose(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func connect(addr *unix.RawSockaddrInet4) (int, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(addr)), unix.SizeofSockaddrInet4)
	if errno != 0 && errno != syscall.EINPROGRESS {
		rawClose(int(fd))
		return -1, errno
	}
	one := int32(1)
	_, _, errno = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&one)), 4, 0)
	if errno != 0 {
		rawClose(int(fd))
		return -1, errno
	}
	return int(fd), 0
}

// ready makes the calling thread what the loop wants: sharp timers, and on request a real-time class.
func ready(realTime bool) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	if !realTime {
		return nil
	}
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 60}, 0)
}
