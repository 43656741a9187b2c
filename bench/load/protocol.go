package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// protocol is how one request and its answer look. All answers to the request have the same length and beginning; the
// generator learns both from the first one and from then on only compares, which is quick and finds every wrong answer.
type protocol interface {
	request() []byte
	// answer looks at what has arrived so far and gives the answer's length and how many bytes at its beginning are always the
	// same; a length of 0 asks for more.
	answer(b []byte) (length, same int, err error)
}

func newProtocol(o Options) (protocol, error) {
	switch o.Protocol {
	case "", "http":
		path := o.Path
		if path == "" {
			path = "/"
		}
		return httpGet{host: o.Addr, path: path}, nil
	case "redis", "memcached":
		if o.Path == "" {
			return nil, fmt.Errorf("protocol %s: of which key? Path is empty", o.Protocol)
		}
		if o.Protocol == "redis" {
			return redisSort{key: o.Path}, nil
		}
		return memcachedGet{keys: o.Path}, nil
	}
	return nil, fmt.Errorf("no protocol %q; there are http, redis and memcached", o.Protocol)
}

type httpGet struct{ host, path string }

// request accepts compressed answers, as every browser does: compressing is work that real services do.
func (h httpGet) request() []byte {
	return []byte("GET " + h.path + " HTTP/1.1\r\nHost: " + h.host + "\r\nAccept-Encoding: gzip\r\n\r\n")
}

func (h httpGet) answer(b []byte) (length, same int, err error) {
	head, _, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return 0, 0, nil
	}
	lines := bytes.Split(head, []byte("\r\n"))
	status := bytes.Fields(lines[0])
	if len(status) < 2 || string(status[1]) != "200" {
		return 0, 0, fmt.Errorf("answer %q", lines[0])
	}
	for _, line := range lines[1:] {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil {
				return 0, 0, fmt.Errorf("answer's Content-Length: %w", err)
			}
			return len(head) + 4 + n, len(lines[0]), nil
		}
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked")) {
			n, err := chunked(b[len(head)+4:])
			if n == 0 || err != nil {
				return 0, 0, err
			}
			return len(head) + 4 + n, len(lines[0]), nil
		}
	}
	return 0, 0, errors.New("answer has neither Content-Length nor chunks")
}

// chunked gives the length of a chunked body without trailers; 0 asks for more.
func chunked(b []byte) (length int, err error) {
	for at := 0; ; {
		line, _, ok := bytes.Cut(b[at:], []byte("\r\n"))
		if !ok {
			return 0, nil
		}
		n, err := strconv.ParseUint(string(line), 16, 31)
		if err != nil {
			return 0, fmt.Errorf("answer's chunk: %w", err)
		}
		at += len(line) + 2 + int(n) + 2
		if at > len(b) {
			return 0, nil
		}
		if n == 0 {
			return at, nil
		}
	}
}

// redisSort asks redis for the first ten of a list, sorted, in the protocol RESP 2: a request of a few bytes, some work, and a small
// answer.
type redisSort struct{ key string }

func (r redisSort) request() []byte {
	words := []string{"SORT", r.key, "LIMIT", "0", "10", "ALPHA"}
	b := fmt.Appendf(nil, "*%d\r\n", len(words))
	for _, w := range words {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b
}

func (r redisSort) answer(b []byte) (length, same int, err error) {
	line, _, ok := bytes.Cut(b, []byte("\r\n"))
	if !ok {
		return 0, 0, nil
	}
	items, err := count(line, '*')
	if err != nil || items == 0 { // an error, or a list that is not there
		return 0, 0, fmt.Errorf("answer %q", line)
	}
	at := len(line) + 2
	for range items {
		head, _, ok := bytes.Cut(b[min(at, len(b)):], []byte("\r\n"))
		if !ok {
			return 0, 0, nil
		}
		n, err := count(head, '$')
		if err != nil {
			return 0, 0, fmt.Errorf("answer's item %q: %w", head, err)
		}
		at += len(head) + 2 + n + 2
	}
	if at > len(b) {
		return 0, 0, nil
	}
	return at, len(line), nil
}

// count reads a number of RESP with its kind in front.
func count(line []byte, kind byte) (int, error) {
	text, ok := bytes.CutPrefix(line, []byte{kind})
	if !ok {
		return 0, fmt.Errorf("%q does not begin with %c", line, kind)
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	return int(n), err
}

// memcachedGet asks memcached for keys, with a space between two, in its text protocol.
type memcachedGet struct{ keys string }

func (m memcachedGet) request() []byte { return []byte("get " + m.keys + "\r\n") }

func (m memcachedGet) answer(b []byte) (length, same int, err error) {
	first, _, _ := bytes.Cut(b, []byte("\r\n"))
	for at, items := 0, 0; ; items++ {
		line, _, ok := bytes.Cut(b[min(at, len(b)):], []byte("\r\n"))
		if !ok {
			return 0, 0, nil
		}
		at += len(line) + 2
		if string(line) == "END" {
			if want := len(bytes.Fields([]byte(m.keys))); items != want {
				return 0, 0, fmt.Errorf("answer has %d of %d keys", items, want)
			}
			return at, len(first), nil
		}
		f := bytes.Fields(line)
		if len(f) != 4 || string(f[0]) != "VALUE" {
			return 0, 0, fmt.Errorf("answer %q", line)
		}
		n, err := strconv.ParseUint(string(f[3]), 10, 31)
		if err != nil {
			return 0, 0, fmt.Errorf("answer %q: %w", line, err)
		}
		at += int(n) + 2
	}
}

// learn asks once and gives the answer's length and constant beginning.
func learn(addr string, p protocol) (length int, prefix []byte, err error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, nil, err
	}
	if _, err := conn.Write(p.request()); err != nil {
		return 0, nil, err
	}
	buf := make([]byte, 0, 1<<20)
	for {
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		length, same, perr := p.answer(buf)
		switch {
		case perr != nil:
			return 0, nil, perr
		case length > 0:
			return length, bytes.Clone(buf[:same]), nil
		case errors.Is(err, io.EOF):
			return 0, nil, errors.New("connection closed before the answer was complete")
		case err != nil:
			return 0, nil, err
		case len(buf) == cap(buf):
			return 0, nil, errors.New("answer is too long")
		}
	}
}
