package agent

import (
	"strconv"
	"testing"

	"github.com/qos-agent/qos-agent/internal/server"
)

func TestNotesKeepTheNewest(t *testing.T) {
	var r notes
	if got := r.newestFirst(); len(got) != 0 {
		t.Fatalf("an empty ring holds %d notes", len(got))
	}
	const written = server.NotesKept + 50
	for i := range written {
		r.add(server.Note{Message: strconv.Itoa(i)})
	}
	got := r.newestFirst()
	if len(got) != server.NotesKept || got[0].Message != strconv.Itoa(written-1) || got[len(got)-1].Message != "50" {
		t.Fatalf("%d notes, from %q to %q", len(got), got[0].Message, got[len(got)-1].Message)
	}
}
