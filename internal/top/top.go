package top

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/qos-agent/qos-agent/internal/server"
)

// Source is where the state comes from.
type Source interface {
	State(ctx context.Context) (*server.State, error)
}

// Options say what to show first; keys change it.
type Options struct {
	Source   Source
	Interval time.Duration
	Sort     string // one of Sorts
	Filter   string
	Class    string // "": all
}

// Text writes the state once, as plain text.
func Text(ctx context.Context, w io.Writer, o Options) error {
	s, err := o.Source.State(ctx)
	if err != nil {
		return err
	}
	v := o.view()
	_, err = io.WriteString(w, strings.Join(v.render(s, nil, 0, 0, time.Now()), "\n")+"\n")
	return err
}

func (o *Options) view() *view {
	return &view{sort: sortKeys[o.Sort], filter: o.Filter, class: o.Class}
}

// askTimeout bounds how long the screen waits for an answer.
const askTimeout = 3 * time.Second

// answer is what came of asking for the state.
type answer struct {
	state *server.State
	err   error
}

// Screen shows the state on a terminal until the user quits or ctx is done. The terminal is as before afterwards.
func Screen(ctx context.Context, in, out *os.File, o Options) (err error) {
	was, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	const enter, leave = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l" // the other screen, without a cursor
	defer func() {
		_, e := out.WriteString(leave)
		err = errors.Join(err, e, term.Restore(int(in.Fd()), was))
	}()
	if _, err := out.WriteString(enter); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	keys := make(chan []byte)
	go readKeys(ctx, in, keys)
	answers := make(chan answer)
	go func() {
		for t := time.NewTicker(o.Interval); ; {
			askCtx, done := context.WithTimeout(ctx, askTimeout)
			s, err := o.Source.State(askCtx)
			done()
			select {
			case answers <- answer{s, err}:
			case <-ctx.Done():
				return
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	}()

	v := o.view()
	v.colour = os.Getenv("NO_COLOR") == ""
	var last answer
	last.err = errors.New("asking the daemon")
	for {
		if err := draw(out, v, last); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
		case k, ok := <-keys:
			if !ok || v.press(k) {
				return nil
			}
		case a := <-answers:
			switch {
			case v.paused:
			case a.err == nil:
				last = a
			default: // what is known stays on the screen
				last.err = a.err
			}
		}
	}
}

// readKeys hands over what is typed, a key or a burst of them at a time.
func readKeys(ctx context.Context, in *os.File, keys chan<- []byte) {
	defer close(keys)
	for {
		buf := make([]byte, 64)
		n, err := in.Read(buf)
		if err != nil {
			return
		}
		select {
		case keys <- buf[:n]:
		case <-ctx.Done():
			return
		}
	}
}

// draw writes a screen in one go: over the old one, so that nothing flickers.
func draw(out *os.File, v *view, a answer) error {
	width, height, err := term.GetSize(int(out.Fd()))
	if err != nil || width < 20 || height < 5 {
		width, height = 80, 24
	}
	var b bytes.Buffer
	b.WriteString("\x1b[H")
	for i, line := range v.render(a.state, a.err, width, height, time.Now()) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line + "\x1b[K")
	}
	b.WriteString("\x1b[J")
	_, err = out.Write(b.Bytes())
	return err
}

// press obeys keys, and reports whether the user wants to quit.
func (v *view) press(keys []byte) (quit bool) {
	const page = 20
	for len(keys) > 0 {
		key := keys[:1]
		if keys[0] == '\x1b' { // an escape sequence arrives in one piece; alone it is the key
			key = sequence(keys)
		}
		keys = keys[len(key):]
		if v.typing {
			v.typeFilter(key)
			continue
		}
		switch string(key) {
		case "q", "\x03", "\x04":
			return true
		case "\x1b":
			v.filter, v.help = "", false
		case "h", "?":
			v.help = !v.help
		case "r":
			v.reverse = !v.reverse
		case "s", "w", "c", "m", "p", "i", "l", "n", "k":
			v.sort, v.reverse, v.offset = rune(key[0]), false, 0
		case "/":
			v.typing, v.filter = true, ""
		case "o":
			classes := []string{"", "online", "offline", "unclassified"}
			for i, c := range classes {
				if c == v.class {
					v.class = classes[(i+1)%len(classes)]
					break
				}
			}
			v.offset = 0
		case " ":
			v.paused = !v.paused
		case "j", "\x1b[B", "\x1bOB":
			v.offset++
		case "\x1b[A", "\x1bOA":
			v.offset--
		case "\x1b[6~":
			v.offset += page
		case "\x1b[5~":
			v.offset -= page
		case "\x1b[H", "\x1bOH", "\x1b[1~", "g":
			v.offset = 0
		case "\x1b[F", "\x1bOF", "\x1b[4~", "G":
			v.offset = 1 << 30
		}
		v.offset = max(0, v.offset)
	}
	return false
}

func (v *view) typeFilter(key []byte) {
	switch k := key[0]; {
	case k == '\r' || k == '\n':
		v.typing = false
	case k == '\x1b' || k == '\x03':
		v.typing, v.filter = false, ""
	case k == 0x7f || k == 8:
		v.filter = v.filter[:max(0, len(v.filter)-1)]
	case k > ' ' && k < 0x7f:
		v.filter += string(rune(k))
	}
	v.offset = 0
}

// sequence is the escape sequence that keys begin with.
func sequence(keys []byte) []byte {
	if len(keys) < 2 || keys[1] != '[' && keys[1] != 'O' {
		return keys[:1]
	}
	for i := 2; i < len(keys); i++ {
		if keys[i] >= 0x40 && keys[i] <= 0x7e {
			return keys[:i+1]
		}
	}
	return keys
}
