package agent

import "github.com/qos-agent/qos-agent/internal/server"

// notes is a ring of the last things worth telling.
type notes struct {
	ring [server.NotesKept]server.Note
	n    int // written so far
}

func (r *notes) add(n server.Note) {
	r.ring[r.n%len(r.ring)] = n
	r.n++
}

// newestFirst copies the notes out.
func (r *notes) newestFirst() []server.Note {
	out := make([]server.Note, 0, min(r.n, len(r.ring)))
	for i := r.n - 1; i >= 0 && i >= r.n-len(r.ring); i-- {
		out = append(out, r.ring[i%len(r.ring)])
	}
	return out
}

// diary keeps a note, stamped with the time and the step.
func (l *loop) diary(n server.Note) {
	n.At = l.o.Clock.Wall()
	if n.Seq == 0 && l.snapshot != nil {
		n.Seq = l.snapshot.Seq
	}
	l.notes.add(n)
}
