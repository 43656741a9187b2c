package load

import (
	"encoding/json"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// StartNull starts a server that answers every request at once with the same few bytes, on a single thread of the same kind as
// the generator's. What a request to it takes is the price of the generator and the kernel.
func StartNull(realTime bool) (*Client, string, error) {
	c, err := spawn(fmt.Sprintf("%s=%t", envNull, realTime))
	if err != nil {
		return nil, "", err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return nil, "", fmt.Errorf("load: null server: %w (%v)", err, c.Close())
	}
	var addr string
	if err := json.Unmarshal(line, &addr); err != nil {
		return nil, "", fmt.Errorf("load: null server: %s (%v)", line, c.Close())
	}
	return c, addr, nil
}

func serveNull(realTime bool, enc *json.Encoder) error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	listener := int(f.Fd())
	if err := unix.SetNonblock(listener, true); err != nil {
		return err
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if errno := epollAdd(epoll, listener, listener); errno != 0 {
		return errno
	}
	if err := ready(realTime); err != nil {
		return err
	}
	if err := enc.Encode(l.Addr().String()); err != nil {
		return err
	}
	procPin()
	var (
		events [64]unix.EpollEvent
		buf    [4096]byte
		answer = []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	)
	for {
		n := epollWait(epoll, events[:], int64(time.Second))
		for _, e := range events[:n] {
			fd := int(e.Fd)
			if fd == listener {
				if c := accept(listener); c >= 0 && epollAdd(epoll, c, c) != 0 {
					rawClose(c)
				}
				continue
			}
			// A client of ours sends one request at a time, in one piece.
			if n, errno := read(fd, buf[:]); n == 0 || (errno != 0 && errno != unix.EAGAIN) {
				rawClose(fd)
			} else if n > 0 && !write(fd, answer) {
				rawClose(fd)
			}
		}
	}
}
