package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/poll"
)

func asked(t *testing.T) *Agent {
	t.Helper()
	p, err := poll.New(time.Hour, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Agent{poller: p, questions: make(chan func(*loop), maxQuestions), ended: make(chan struct{})}
}

func number(*loop) *int { n := 42; return &n }

func TestAskIsAnsweredByTheLoop(t *testing.T) {
	a := asked(t)
	go func() { (<-a.questions)(nil) }()
	if n, err := ask(t.Context(), a, number); err != nil || *n != 42 {
		t.Fatalf("%v, %v", n, err)
	}
}

func TestAskDoesNotWaitForALoopThatHasEnded(t *testing.T) {
	a := asked(t)
	close(a.ended)
	for range maxQuestions + 1 { // also when the queue is full
		if _, err := ask(t.Context(), a, number); !errors.Is(err, errEnded) {
			t.Fatalf("err = %v, want %v", err, errEnded)
		}
	}
}

func TestLoopIsNotHeldUpByAReaderWhoHasLeft(t *testing.T) {
	a := asked(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for len(a.questions) == 0 { // what to do first is left to chance
		if _, err := ask(ctx, a, number); !errors.Is(err, context.Canceled) {
			t.Fatalf("err = %v", err)
		}
	}
	(<-a.questions)(nil)
}

func TestAnswersAreKeptForAMoment(t *testing.T) {
	var k kept[int]
	built := 0
	build := func() *int { built++; return new(int) }
	first := k.get(time.Second, build)
	if again := k.get(time.Second+freshFor-1, build); again != first || built != 1 {
		t.Fatalf("built %d times within %v", built, freshFor)
	}
	if later := k.get(time.Second+freshFor, build); later == first || built != 2 {
		t.Fatalf("built %d times after %v", built, freshFor)
	}
}
