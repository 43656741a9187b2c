package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/internal/clock"
	"github.com/qos-agent/qos-agent/internal/sched"
	"github.com/qos-agent/qos-agent/internal/server"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"github.com/qos-agent/qos-agent/test/daemon"
	"github.com/qos-agent/qos-agent/test/work"
	"golang.org/x/sys/unix"
)

type reactionRow struct {
	// FirstCutMS is from the moment the offline processes were let loose to the agent's first write.
	FirstCutMS quantiles `json:"first_cut_ms"`
	// EventToWriteMS is the agent's own account: from the dispatch that ended the long wait to the completed write.
	EventToWriteMS quantiles `json:"event_to_write_ms"`
	Missed         int       `json:"missed"` // bursts that were not answered within a second
	Scheduling     string    `json:"scheduling"`
}

// reactionPolicy is the default but for the standing posture: without it there is something to cut.
const reactionPolicy = `  mode: enforce
  cpu: {posture: none, ladder: [idle]}
`

// situations measures bursts of offline work.
func (c *cli) situations(ctx context.Context, s *lab.Site, into map[string]reactionRow) error {
	fmt.Printf("%-24s %-12s %34s %28s %7s\n", "node", "loop", "burst to first cut p50/p99/max", "event to write p50/p99", "missed")
	for _, situation := range []struct {
		name      string
		saturated bool
		extra     []string
	}{
		{"idle", false, nil},
		{"saturated", true, nil},
		{"saturated-without-rt", true, []string{"--no-realtime"}},
	} {
		row, err := c.situation(ctx, s, situation.saturated, situation.extra)
		if err != nil {
			return fmt.Errorf("%s: %w", situation.name, err)
		}
		fmt.Printf("%-24s %-12s %12.2f / %.2f / %.2f ms %17.3f / %.3f ms %7d\n", situation.name, row.Scheduling, row.FirstCutMS.P50, row.FirstCutMS.P99,
			row.FirstCutMS.Max, row.EventToWriteMS.P50, row.EventToWriteMS.P99, row.Missed)
		into[situation.name] = row
	}
	return nil
}

// situation runs bursts of two spinning processes per CPU beside an online service that uses most of each CPU. On a
// saturated node, ordinary processes that belong to no pod keep every CPU busy all the time.
func (c *cli) situation(ctx context.Context, s *lab.Site, saturated bool, extra []string) (row reactionRow, err error) {
	defer s.StopAll()
	web, err := s.Tree.Make("web")
	if err != nil {
		return row, err
	}
	system, err := s.Tree.Make("system")
	if err != nil {
		return row, err
	}
	o, err := s.Options(reactionPolicy)
	if err != nil {
		return row, err
	}
	o.Extra = extra
	// Each burst is a pod of its own: the agent remembers what a pod has done, and would hold it back longer each time.
	pods := []daemon.Pod{{Namespace: "shop", Name: "web", Cgroup: web, Labels: map[string]string{"qos-agent.io/class": "online"}}}
	batch := make([]string, c.Bursts)
	for i := range batch {
		name := fmt.Sprintf("batch%04d", i)
		if batch[i], err = s.Tree.Make(name); err != nil {
			return row, err
		}
		pods = append(pods, daemon.Pod{Namespace: "jobs", Name: name, Cgroup: batch[i], Labels: map[string]string{"qos-agent.io/class": "offline"}})
	}
	if err := daemon.WriteStaticPods(o.StaticPods, pods...); err != nil {
		return row, err
	}
	var burst []*work.Process
	for cpu := range runtime.NumCPU() {
		if _, err := s.Start(web, work.Pulse(4*time.Millisecond, time.Millisecond).On(cpu)); err != nil {
			return row, err
		}
		for range 2 {
			p, err := s.Start(batch[0], work.Spin)
			if err != nil {
				return row, err
			}
			burst = append(burst, p)
		}
		if saturated {
			if _, err := s.Start(system, work.Spin.On(cpu)); err != nil {
				return row, err
			}
		}
	}
	if err := each(burst, (*work.Process).Pause); err != nil {
		return row, err
	}
	if saturated {
		// A third of the weight of a pod: enough to keep the CPUs busy, not enough to be the culprit.
		if err := s.Tree.SetWeight(system, 30); err != nil {
			return row, err
		}
	}
	d, err := daemon.Start(o)
	if err != nil {
		return row, err
	}
	defer d.Kill()
	st, err := d.WaitState(ctx, "all pods", func(st *server.State) bool { return len(st.Pods) == len(pods) && st.Loop.Ticks > 10 })
	if err != nil {
		return row, err
	}
	row.Scheduling = st.Agent.Scheduling.Class
	cuts, err := c.bursts(ctx, s, batch, burst, &row)
	if err != nil {
		return row, err
	}
	if st, err = d.State(ctx); err != nil {
		return row, err
	}
	if len(cuts) == 0 {
		return row, fmt.Errorf("no burst of %d was answered; log:\n%s", c.Bursts, d.Log())
	}
	row.FirstCutMS = newQuantiles(cuts)
	row.EventToWriteMS = quantiles{P50: st.Loop.Reaction.P50Seconds * 1e3, P99: st.Loop.Reaction.P99Seconds * 1e3}
	return row, d.Stop(ctx)
}

// bursts lets the offline processes loose at random moments, each time in another group, and waits for the agent's first write to
// the group's cpu.idle.
func (c *cli) bursts(ctx context.Context, s *lab.Site, batch []string, burst []*work.Process, row *reactionRow) (cuts []float64, err error) {
	// The watcher must not itself wait for a CPU.
	runtime.LockOSThread()
	if err := sched.Realtime(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sched.Ordinary(0, 0)) }()
	rng := rand.New(rand.NewPCG(7, 7))
	for _, group := range batch {
		if err := each(burst, func(p *work.Process) error { return s.Tree.Join(group, p.PID()) }); err != nil {
			return cuts, err
		}
		if err := lab.Sleep(ctx, time.Duration(50+rng.IntN(100))*time.Millisecond); err != nil {
			return cuts, err
		}
		cut, ok, err := c.burst(s, group, burst)
		if err != nil {
			return cuts, err
		}
		if ok {
			cuts = append(cuts, cut.Seconds()*1e3)
		} else {
			row.Missed++
		}
	}
	return cuts, nil
}

func (c *cli) burst(s *lab.Site, group string, burst []*work.Process) (cut time.Duration, ok bool, err error) {
	w, err := watch(s.Tree.File(cgroup.CPU, group, "cpu.idle"))
	if err != nil {
		return 0, false, err
	}
	defer w.close()
	start := clock.System{}.Now()
	if err := each(burst, (*work.Process).Resume); err != nil {
		return 0, false, err
	}
	at, ok := w.next(time.Second)
	return at - start, ok, each(burst, (*work.Process).Pause)
}

// watcher tells when a file is written.
type watcher struct {
	fd  int
	buf [4096]byte
}

func watch(file string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &watcher{fd: fd}
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		w.close()
		return nil, fmt.Errorf("inotify %s: %w", file, err)
	}
	return w, nil
}

func (w *watcher) close() { _ = unix.Close(w.fd) }

func (w *watcher) drain() {
	for n := 1; n > 0; {
		n, _ = unix.Read(w.fd, w.buf[:])
	}
}

// next waits for the next write and says when it was.
func (w *watcher) next(timeout time.Duration) (time.Duration, bool) {
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	deadline := clock.System{}.Now() + timeout
	for {
		left := deadline - clock.System{}.Now()
		if left <= 0 {
			return 0, false
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		now := clock.System{}.Now()
		if err == nil && n > 0 {
			w.drain()
			return now, true
		}
	}
}

func each(ps []*work.Process, do func(*work.Process) error) error {
	var errs []error
	for _, p := range ps {
		errs = append(errs, do(p))
	}
	return errors.Join(errs...)
}
