package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/procfs"

	"github.com/qos-agent/qos-agent/bench/load"
	"github.com/qos-agent/qos-agent/internal/server"
)

// situation is what is measured, several times in turn.
type situation int

const (
	alone       situation = iota // offline pods stand still
	without                      // they run, the agent only watches
	with                         // they run, the agent acts
	_situations = iota
)

func (k situation) String() string {
	return [...]string{"alone", "beside offline work", "the same, with qos-agent"}[k]
}

// play measures the situations in rounds, each in random order: what else goes on in the machine meets all of them alike.
func (s *stage) play(ctx context.Context) (*report, error) {
	busy, err := busyShare(ctx, time.Second)
	if err != nil {
		return nil, err
	}
	if busy > tooBusy {
		fmt.Printf("others are using %.0f %% of this machine's CPUs: the figures will be rough\n", 100*busy)
	}
	capacity, err := s.calibrate(ctx)
	if err != nil {
		return nil, err
	}
	rate, err := s.chooseRate(ctx, capacity)
	if err != nil {
		return nil, err
	}
	s.rate = rate
	r := newReport(s, capacity)
	r.Busy = busy
	fmt.Printf("%s carries %.0f requests/s on CPUs %s; the demo asks for %.0f (%.0f %%)\n", s.web.what, capacity, s.cpus, rate, 100*rate/capacity)
	rng := rand.New(rand.NewPCG(s.o.seed, 1))
	for round := range s.o.rounds {
		for _, i := range rng.Perm(_situations) {
			m, err := s.measure(ctx, situation(i))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", situation(i), err)
			}
			r.windows[i] = append(r.windows[i], m)
			fmt.Printf("  round %d: %-26s p99 %s\n", round+1, situation(i), us(m.P99))
		}
	}
	if err := s.reaction(ctx, r); err != nil {
		return nil, fmt.Errorf("reaction: %w", err)
	}
	return r, s.leave(ctx, r)
}

// busyShare is the share of all CPU time that is used during d, while the demo itself rests.
func busyShare(ctx context.Context, d time.Duration) (float64, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	before, err := proc.Stat()
	if err != nil {
		return 0, err
	}
	if err := sleep(ctx, d); err != nil {
		return 0, err
	}
	after, err := proc.Stat()
	if err != nil {
		return 0, err
	}
	idle, total := cpuSeconds(&after.CPUTotal)
	idleBefore, totalBefore := cpuSeconds(&before.CPUTotal)
	return 1 - (idle-idleBefore)/max(total-totalBefore, 0.01), nil
}

// cpuSeconds is the machine's CPU time so far, without guest time, which is in user time already, and the part of it in which nothing
// ran or a disk was waited for.
func cpuSeconds(c *procfs.CPUStat) (idle, total float64) {
	idle = c.Idle + c.Iowait
	return idle, idle + c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal
}

// calibrate finds how many requests a second the service answers at most, by asking for more than that for moments.
func (s *stage) calibrate(ctx context.Context) (float64, error) {
	const moment = 400 * time.Millisecond
	var rates []float64
	for range 5 {
		if _, err := s.load.Collect(); err != nil {
			return 0, err
		}
		if err := s.load.SetRate(2e4); err != nil {
			return 0, err
		}
		if err := sleep(ctx, moment); err != nil {
			return 0, err
		}
		if err := s.load.SetRate(0); err != nil { // and forget what is overdue, which nobody could answer in time
			return 0, err
		}
		w, err := s.load.Collect()
		if err != nil {
			return 0, err
		}
		rates = append(rates, w.Rate)
	}
	return load.Median(rates), nil
}

// chooseRate gives, and sets, the lowest of a few loads at which offline work of equal weight does plain harm. How busy a service
// must be for that depends on the machine: below its fair share the scheduler itself protects it more or less.
func (s *stage) chooseRate(ctx context.Context, capacity float64) (rate float64, err error) {
	for _, share := range []float64{0.55, 0.6, 0.65} {
		rate = math.Round(capacity*share/100) * 100
		harm, err := s.harm(ctx, rate)
		if err != nil {
			return 0, err
		}
		if harm {
			break
		}
	}
	return rate, nil
}

// plainHarm is what one request in ten must wait at least: nobody would accept it of a service that answers in a fraction of a
// millisecond.
const plainHarm = 10 * time.Millisecond

// harm tells whether offline work does plain harm at the rate, twice in a row: once may be chance.
func (s *stage) harm(ctx context.Context, rate float64) (bool, error) {
	const moment = 500 * time.Millisecond
	s.heavy.resume()
	defer s.heavy.pause()
	for range 2 {
		if err := s.load.SetRate(rate); err != nil {
			return false, err
		}
		w, err := s.window(ctx, moment, moment)
		if err != nil {
			return false, err
		}
		if w.P90 < plainHarm.Seconds()*1e6 {
			return false, nil
		}
	}
	return true, nil
}

// window measures for d after a pause.
func (s *stage) window(ctx context.Context, settle, d time.Duration) (load.Window, error) {
	if err := sleep(ctx, settle); err != nil {
		return load.Window{}, err
	}
	if _, err := s.load.Collect(); err != nil {
		return load.Window{}, err
	}
	if err := sleep(ctx, d); err != nil {
		return load.Window{}, err
	}
	return s.load.Collect()
}

// measurement is one window of one situation.
type measurement struct {
	load.Window
	Offline  float64            // MB hashed per second by the offline pods
	Culprits []string           // whom the agent named during the window, in the order of their names
	Blame    map[string]float64 // seconds that the online service's threads waited, by who ran meanwhile
	Changed  []string           // settings that differ from before, where none may
}

func (s *stage) measure(ctx context.Context, k situation) (m measurement, err error) {
	if k == with {
		err = s.enforce(ctx)
	} else {
		err = s.observe(ctx)
	}
	if err != nil {
		return m, err
	}
	// What an overloaded window left overdue must not fall on the next one.
	if err := s.load.SetRate(s.rate); err != nil {
		return m, err
	}
	if k != alone {
		s.heavy.resume()
		s.light.resume()
		defer s.heavy.pause()
		defer s.light.pause()
	}
	if err := sleep(ctx, s.o.settle); err != nil {
		return m, err
	}
	begin, start := s.heavy.bytes()+s.light.bytes(), time.Now()
	blameBefore, err := s.blame(ctx)
	if err != nil {
		return m, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if k == without {
			m.Culprits = s.listen(ctx, s.o.window)
		}
	}()
	w, err := s.window(ctx, 0, s.o.window)
	<-done
	if err != nil {
		return m, err
	}
	m.Window = w
	if m.Blame, err = s.blame(ctx); err != nil {
		return m, err
	}
	for who, seconds := range blameBefore {
		m.Blame[who] -= seconds
	}
	m.Offline = float64(s.heavy.bytes()+s.light.bytes()-begin) / 1e6 / time.Since(start).Seconds()
	if m.Completed == 0 {
		return m, fmt.Errorf("the online service answered nothing: %+v", m.Window)
	}
	if k != with {
		m.Changed, err = s.changed()
	}
	return m, err
}

// listen asks the agent several times during d whom it blames. A verdict looks back over a second and may change meanwhile.
func (s *stage) listen(ctx context.Context, d time.Duration) (culprits []string) {
	const times = 5
	for range times {
		if sleep(ctx, d/times) != nil {
			break
		}
		st, err := s.agent.State(ctx)
		if err != nil {
			continue // a daemon that is dead is noticed at the next change of policy
		}
		for _, v := range st.Verdicts {
			if v.Namespace+"/"+v.Pod != webPod || v.Axis != "cpu" || v.Level != "violated" {
				continue
			}
			for _, c := range v.Culprits {
				if name := party(c); !slices.Contains(culprits, name) {
					culprits = append(culprits, name)
				}
			}
		}
	}
	slices.Sort(culprits)
	return culprits
}

var (
	blameLine = regexp.MustCompile(`(?m)^qosagent_cpu_wait_blame_seconds_total\{(.*)\} (\S+)$`)
	label     = regexp.MustCompile(`(\w+)="([^"]*)"`)
)

// blame reads the counters of the online service's wait by culprit.
func (s *stage) blame(ctx context.Context) (map[string]float64, error) {
	status, text, err := s.agent.Get(ctx, "/metrics")
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("metrics: status %d (%v)", status, err)
	}
	out := map[string]float64{}
	for _, line := range blameLine.FindAllStringSubmatch(text, -1) {
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(line[1], -1) {
			labels[l[1]] = l[2]
		}
		if labels["victim_namespace"]+"/"+labels["victim_pod"] != webPod {
			continue
		}
		seconds, err := strconv.ParseFloat(line[2], 64)
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		out[party(server.Party{Namespace: labels["culprit_namespace"], Name: labels["culprit_pod"]})] += seconds
	}
	return out, nil
}

func party(p server.Party) string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// reactionPolicy has no standing posture, so that the agent has to act when a burst comes, and gives back soon.
const reactionPolicy = "{mode: enforce, cpu: {posture: none, ladder: [idle], cooldown: 10ms, hold: 200ms, regrowEvery: 100ms}}"

// reaction lets the heavy pod loose on a service that nothing protects beforehand, and waits for the agent's first cut.
func (s *stage) reaction(ctx context.Context, r *report) error {
	if err := s.observe(ctx); err != nil {
		return err
	}
	for range s.o.bursts {
		if _, err := s.setPolicy(ctx, reactionPolicy, "an agent that holds nothing and is ready to act", func(st *server.State) bool {
			return st.Agent.Mode == "enforce" && len(st.Knobs) == 0
		}); err != nil {
			return err
		}
		if err := sleep(ctx, s.o.settle); err != nil {
			return err
		}
		start := time.Now()
		s.heavy.resume()
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		st, err := s.agent.WaitState(wait, "the heavy pod to be cut", func(st *server.State) bool { return held(st, heavyPod) })
		cancel()
		s.heavy.pause()
		if err != nil {
			r.fail("a burst of offline work was not cut within 5 s: %v", err)
			return ctx.Err()
		}
		for _, k := range st.Knobs {
			if k.Pod == heavyPod {
				r.bursts = append(r.bursts, k.Since.Sub(start).Seconds()*1e3)
				break
			}
		}
		if held(st, lightPod) {
			r.fail("the innocent pod %s was cut", lightPod)
		}
		if err := s.observe(ctx); err != nil {
			return err
		}
	}
	st, err := s.agent.State(ctx)
	if err != nil {
		return err
	}
	r.Reaction = reactionReport{
		BurstToCutP50: load.Median(r.bursts), BurstToCutMax: maxOf(r.bursts), Bursts: len(r.bursts),
		EventToWriteP50: st.Loop.Reaction.P50Seconds * 1e3, EventToWriteP99: st.Loop.Reaction.P99Seconds * 1e3, Events: st.Loop.Reaction.Count,
	}
	return nil
}

// leave stops the agent while it holds things, and looks whether it has put all of them back.
func (s *stage) leave(ctx context.Context, r *report) error {
	if err := s.enforce(ctx); err != nil {
		return err
	}
	moved, err := s.changed()
	if err != nil {
		return err
	}
	if len(moved) == 0 {
		r.fail("the agent says that it holds settings, and none has changed")
	}
	stop, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.agent.Stop(stop); err != nil {
		r.fail("%v", err)
	}
	s.agent = nil
	left, err := s.changed()
	if err != nil {
		return err
	}
	r.Restored, r.SettingsHeld = len(left) == 0, len(moved)
	for _, line := range left {
		r.fail("not restored: %s", line)
	}
	r.judge()
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
