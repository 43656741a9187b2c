// Package agent is the loop: it sleeps until a tick is due, the kernel reports a long wait, or somebody has something for it;
// then it takes a snapshot, lets package decide make of it what should be, and lets package actuate make it so.
//
// All state belongs to the loop's goroutine, which is locked to a thread in the real-time class (package sched). Other
// goroutines hand it things over through a few mailboxes and a bounded queue, and get copies.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qos-agent/qos-agent/internal/actuate"
	"github.com/qos-agent/qos-agent/internal/capability"
	"github.com/qos-agent/qos-agent/internal/classes"
	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/collect"
	"github.com/qos-agent/qos-agent/internal/decisionlog"
	"github.com/qos-agent/qos-agent/internal/judge"
	"github.com/qos-agent/qos-agent/internal/pods"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/poll"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/pkg/ebpf"
)

// Options are the parts that the loop ties together. Unless said otherwise all are required, and stay the caller's to close.
type Options struct {
	Version  string
	Hostname string
	Kernel   string // release

	Interval   time.Duration // between ticks
	Mode       policy.Mode   // overrides the policy's; "": the policy decides
	Realtime   bool          // run the loop's thread in the real-time class
	RunDir     string
	SourceKind string // "cri" or "static"

	Hierarchy    *cgroup.Hierarchy
	Tracer       *ebpf.Tracer // nil: run-queue wait is not measured, and the capabilities say why
	Collector    *collect.Collector
	Executor     *actuate.Executor
	Classes      *classes.Executor // nil: the machine has no resctrl, or it may not be used
	Source       pods.Source
	Policy       *policy.Compiled // the first one
	WatchPolicy  func(ctx context.Context, onChange func(*policy.Compiled, error))
	Capabilities capability.Report
	Instruments  *server.Instruments
	Baselines    *judge.Baselines // what an earlier run has learned; nil: nothing
	Decisions    *decisionlog.Log // gets what the loop decided and did
	Recorder     *trace.Recorder  // gets everything that the loop saw and did; nil: nobody records

	// Log must not block (package asynclog): the loop writes to it. LogDropped counts what it had to drop for that.
	Log        *slog.Logger
	LogDropped func() uint64
	Clock      clock.Clock
}

// Agent is a loop and what leads to it. It implements server.Provider.
type Agent struct {
	o       Options
	started time.Time
	poller  *poll.Poller

	// Mailboxes: written by other goroutines, emptied by the loop after a Wake.
	podsChanged atomic.Bool
	policyMail  atomic.Pointer[policyMail]
	questions   chan func(*loop) // each runs on the loop's thread between two steps, and must be short
	stop        atomic.Bool
	ended       chan struct{} // closed when the loop has returned: nobody answers any more

	// baselines takes what the loop has learned to whoever writes it down.
	baselines chan *judge.Baselines

	// health is what the loop last said of itself; see Health.
	health atomic.Pointer[server.Health]
	ticked atomic.Int64 // Clock.Now of the end of the last tick, or of the start
}

// policyMail is the outcome of the last reading of the policy directory.
type policyMail struct {
	policy *policy.Compiled // nil if it failed
	err    error
	at     time.Time
}

// maxQuestions is how many readers may wait for the loop at once, and how many it answers between two looks at what else is due.
const maxQuestions = 16

var errEnded = errors.New("the agent is stopping")

// New makes an agent. Run starts it.
func New(o Options) (*Agent, error) {
	extra := -1
	if o.Tracer != nil {
		extra = o.Tracer.EventFD()
	}
	p, err := poll.New(o.Interval, extra)
	if err != nil {
		return nil, fmt.Errorf("loop: %w", err)
	}
	a := &Agent{o: o, started: o.Clock.Wall(), poller: p, questions: make(chan func(*loop), maxQuestions), ended: make(chan struct{}), baselines: make(chan *judge.Baselines, 1)}
	a.ticked.Store(int64(o.Clock.Now()))
	a.health.Store(&server.Health{Conditions: []server.Condition{{Name: "start", Required: true, Detail: "the loop has not begun yet"}}})
	return a, nil
}

// Run loops until ctx is done, and then puts everything back. It returns an error if something could not be put back, or if a part
// failed that the loop cannot do without.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var sourceErr error
	wg.Go(func() {
		if sourceErr = a.o.Source.Run(ctx, a.onPods); sourceErr != nil {
			sourceErr = fmt.Errorf("pod source: %w", sourceErr)
			cancel()
		}
	})
	wg.Go(func() { a.o.WatchPolicy(ctx, a.onPolicy) })
	wg.Go(func() {
		<-ctx.Done()
		a.stop.Store(true)
		a.poller.Wake()
	})

	wg.Go(a.keepBaselines)
	loopErr := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, and with it its scheduling class, ends with the goroutine.
		runtime.LockOSThread()
		loopErr <- newLoop(a).run()
	}()
	err := <-loopErr
	close(a.ended)
	close(a.baselines)
	cancel()
	wg.Wait()
	return errors.Join(err, sourceErr, a.poller.Close())
}

func (a *Agent) onPods() {
	a.podsChanged.Store(true)
	a.poller.Wake()
}

func (a *Agent) onPolicy(p *policy.Compiled, err error) {
	a.policyMail.Store(&policyMail{policy: p, err: err, at: a.o.Clock.Wall()})
	a.poller.Wake()
}

// ask lets the loop run fn between two steps, and waits for the answer.
func ask[T any](ctx context.Context, a *Agent, fn func(*loop) *T) (*T, error) {
	answer := make(chan *T, 1) // the loop does not wait for a reader who has left
	select {
	case a.questions <- func(l *loop) { answer <- fn(l) }:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.ended:
		return nil, errEnded
	}
	a.poller.Wake()
	select {
	case v := <-answer:
		return v, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.ended:
		return nil, errEnded
	}
}

// freshFor is how old an answer may be. Building one for a large node takes milliseconds, and a reader who asks without a pause
// must not use up the budget of the loop's thread.
const freshFor = 50 * time.Millisecond

// kept is the last answer to a question.
type kept[T any] struct {
	value *T
	at    time.Duration
}

func (k *kept[T]) get(now time.Duration, build func() *T) *T {
	if k.value == nil || now-k.at >= freshFor {
		k.value, k.at = build(), now
	}
	return k.value
}

// Health never waits for the loop.
func (a *Agent) Health() server.Health {
	h := *a.health.Load()
	h.Interval = a.o.Interval
	h.SinceTick = a.o.Clock.Now() - time.Duration(a.ticked.Load())
	return h
}
