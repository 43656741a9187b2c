package pods

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// CRIOptions says where the runtime and the groups are.
type CRIOptions struct {
	// Endpoints is where the runtime may listen: unix:///run/containerd/containerd.sock. With more than one, each attempt to connect
	// takes the first that answers: a runtime that starts after the agent is found wherever it is.
	Endpoints []string
	Hierarchy *cgroup.Hierarchy
	Log       *slog.Logger
	Now       func() time.Time // for the times in Status; nil: time.Now
}

// timing is how often and how long.
type timing struct {
	steady   time.Duration // between listings when nothing happens
	fast     time.Duration // the same while changes of the group tree go unnoticed
	rescan   time.Duration // between looks at the whole group tree
	debounce time.Duration // from a new group to the listing that it causes
	retry    time.Duration // between listings while a new group is not explained yet; doubled each time
	retryMax time.Duration //
	patience time.Duration // until a group that the runtime does not explain is given up
	call     time.Duration // time-out of a call that lists
	status   time.Duration // time-out of a call about one pod or container, which must not hold up the others for long
	budget   time.Duration // for asking about new containers within one listing
	parallel int           // calls at a time while doing so
	backoff  time.Duration // before the first attempt to connect again; doubled each time
	backMax  time.Duration //
	watches  int           // on groups
}

var defaultTiming = timing{
	steady:   10 * time.Second,
	fast:     500 * time.Millisecond,
	rescan:   time.Minute,
	debounce: 20 * time.Millisecond,
	retry:    20 * time.Millisecond,
	retryMax: 500 * time.Millisecond,
	patience: 30 * time.Second,
	call:     5 * time.Second,
	status:   2 * time.Second,
	budget:   500 * time.Millisecond,
	parallel: 4,
	backoff:  100 * time.Millisecond,
	backMax:  5 * time.Second,
	watches:  4096,
}

// CRI is the source of pods that a container runtime tells of over CRI v1: containerd 1.6 and newer, CRI-O.
//
// It lists the runtime's sandboxes and containers when inotify reports a new group, and every ten seconds. While the runtime
// does not answer, what is known stays known, less the groups that vanish. It does not use the runtime's event stream, which
// old containerd lacks and which has stolen events from the kubelet.
type CRI struct {
	opts   CRIOptions
	timing timing

	pods    atomic.Pointer[[]signal.Pod]
	answers atomic.Pointer[string] // the endpoint that answered last, or else the first

	mu     sync.Mutex
	status Status
}

var _ Source = (*CRI)(nil)

// NewCRI checks the options. It does not connect: a runtime that is not there yet is no error but a status.
func NewCRI(o CRIOptions) (*CRI, error) {
	endpoints := make([]string, len(o.Endpoints))
	for i, endpoint := range o.Endpoints {
		var err error
		if endpoints[i], err = parseEndpoint(endpoint); err != nil {
			return nil, err
		}
	}
	if len(endpoints) == 0 {
		return nil, errors.New("CRI: no endpoint")
	}
	o.Endpoints = endpoints
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &CRI{opts: o, timing: defaultTiming}
	c.pods.Store(&[]signal.Pod{})
	c.answers.Store(&endpoints[0])
	c.status = Status{Source: endpoints[0], Since: o.Now(), Error: strings.Join(endpoints, ", ") + ": no answer yet"}
	return c, nil
}

// Pods implements Source.
func (c *CRI) Pods() []signal.Pod { return *c.pods.Load() }

// Status implements Source.
func (c *CRI) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Run implements Source.
func (c *CRI) Run(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	l := &criLoop{
		CRI:     c,
		changed: changed,
		watch:   watchGroups(c.opts.Hierarchy, c.timing.watches),
		lost:    make(chan struct{}, 1),
		answers: make(chan listing, 1),
		pending: map[string]time.Time{},
	}
	l.lister = &lister{endpoints: c.opts.Endpoints, answers: &c.answers, h: c.opts.Hierarchy, timing: c.timing, lost: func() {
		select {
		case l.lost <- struct{}{}:
		default:
		}
	}}
	defer func() {
		cancel()
		if l.asking {
			<-l.answers
		}
		l.lister.close()
		l.watch.close()
	}()
	l.run(ctx)
	return nil
}

// criLoop is the state of Run. Only the lister works beside it, on one listing at a time.
type criLoop struct {
	*CRI
	changed func()
	watch   *groupWatch
	lister  *lister // not to be touched while asking
	lost    chan struct{}
	answers chan listing

	asking   bool
	due      time.Time // of the next listing
	earliest time.Time // of the next listing, to spare the runtime
	look     time.Time // when to look next whether known groups still exist
	scan     time.Time // when to look at the whole tree next
	retry    time.Duration
	failures int

	list listing // the newest good one, less what has gone since
	// pending is what the newest listing does not explain, with when to give up hope: groups by path, and containers whose
	// group is not known by ID. What has been given up stays, so that it is not taken for new again.
	pending map[string]time.Time
}

func (l *criLoop) run(ctx context.Context) {
	now := time.Now()
	l.due, l.look, l.scan = now, now.Add(l.timing.fast), now.Add(l.timing.rescan)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.watch.notify:
			l.treeChanged()
		case <-l.lost:
			if l.failures == 0 {
				l.askBy(time.Now())
			}
		case list := <-l.answers:
			l.asking = false
			if ctx.Err() != nil {
				return
			}
			l.answer(list)
		case <-timer.C:
			l.tick()
		}
		if now := time.Now(); !l.asking && !now.Before(l.due) {
			l.asking = true
			l.due = now.Add(l.timing.steady)
			go func() { l.answers <- l.lister.list(ctx) }()
		}
		timer.Reset(time.Until(l.next()))
	}
}

// next is when something is to be done although nothing happens.
func (l *criLoop) next() time.Time {
	next := l.look
	if l.scan.Before(next) {
		next = l.scan
	}
	if !l.asking && l.due.Before(next) {
		next = l.due
	}
	return next
}

// askBy has the runtime asked at t or when it may be asked again after that.
func (l *criLoop) askBy(t time.Time) {
	if t.Before(l.earliest) {
		t = l.earliest
	}
	if t.Before(l.due) {
		l.due = t
	}
}

func (l *criLoop) tick() {
	now := time.Now()
	if !now.Before(l.scan) {
		l.scan = now.Add(l.timing.rescan)
		l.watch.rescan()
	}
	if !now.Before(l.look) {
		l.look = now.Add(l.period())
		l.publish()
		l.settle(now) // new groups gather while the runtime is away, and go again
	}
}

// lookBy makes the next look come within the period, which may have become shorter.
func (l *criLoop) lookBy(now time.Time) {
	if t := now.Add(l.period()); t.Before(l.look) {
		l.look = t
	}
}

// period is how often to look without being told to.
func (l *criLoop) period() time.Duration {
	if problem, kubelet := l.watch.state(); problem != "" || !kubelet {
		return l.timing.fast
	}
	return l.timing.steady
}

// treeChanged acts on what inotify has seen. What has gone is dropped at once; for what is new the runtime is asked in a moment,
// when it knows more, and together with what comes in that moment.
func (l *criLoop) treeChanged() {
	created, removed := l.watch.take()
	if removed {
		l.publish()
	}
	now := time.Now()
	l.lookBy(now)
	fresh := false
	for _, group := range created {
		if _, known := l.pending[group]; !known {
			l.pending[group] = now.Add(l.timing.patience)
			fresh = true
		}
	}
	if fresh && l.failures == 0 {
		l.retry = l.timing.retry
		l.askBy(now.Add(l.timing.debounce))
	}
}

// answer takes up what the runtime has said.
func (l *criLoop) answer(list listing) {
	now := time.Now()
	l.earliest = now.Add(min(4*list.took, l.timing.retryMax))
	if list.err != nil {
		wait := backoff(l.failures, l.timing.backoff, l.timing.backMax)
		l.failures++
		l.due = now.Add(wait)
		l.failed(list.err)
		return
	}
	l.failures = 0
	l.keepRunning(&list)
	l.list = list
	l.follow()
	problem, _ := l.watch.state()
	st := Status{Runtime: list.runtime, Connected: true, LastSuccess: l.Status().LastSuccess, Unresolved: len(list.unplaced), Degraded: problem}
	if !list.more { // half a list is no list: its reader might let go of what it does not find there
		st.LastSuccess = l.opts.Now()
	}
	first := l.Status().LastSuccess.IsZero() != st.LastSuccess.IsZero()
	news := l.refresh() // before the status, which says that there is a list
	if l.setStatus(st) || news || first {
		l.changed()
	}
	l.lookBy(now)
	l.due = now.Add(l.period())
	if !l.settle(now) {
		l.retry = 0
	} else {
		l.retry = min(max(2*l.retry, l.timing.retry), l.timing.retryMax)
		l.askBy(now.Add(l.retry))
	}
	if list.more {
		l.askBy(now)
	}
}

// backoff is the pause after the given number of failures before this one, spread by a fifth to either side so that the agents
// of a cluster do not act in step.
func backoff(failures int, first, most time.Duration) time.Duration {
	wait := most
	if failures < 16 {
		wait = min(first<<failures, most)
	}
	return time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64()))
}

// keepRunning adds to a listing what it has lost although it runs: a runtime that was restarted may not have found all of its
// containers again, and the processes in a group are there whatever the runtime makes of them.
func (l *criLoop) keepRunning(list *listing) {
	for id, c := range l.list.containers {
		_, listed := list.containers[id]
		_, unplaced := list.unplaced[id]
		if !listed && (unplaced || populated(l.opts.Hierarchy, c.Cgroup)) {
			delete(list.unplaced, id)
			list.containers[id] = c
		}
	}
	for _, c := range list.containers {
		if _, ok := list.sandboxes[c.Sandbox]; !ok {
			if s, ok := l.list.sandboxes[c.Sandbox]; ok {
				list.sandboxes[c.Sandbox] = s
			}
		}
	}
}

// populated reports whether there are processes in a group or below it.
func populated(h *cgroup.Hierarchy, group string) bool {
	errFound := errors.New("found")
	err := h.Walk(cgroup.CPU, group, func(g string) error {
		dir, _ := h.Dir(cgroup.CPU, g)
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if len(procs) > 0 || err != nil && !cgroup.Gone(err) { // a threaded group tells nothing, but has somebody in it
			return errFound
		}
		return nil
	})
	return errors.Is(err, errFound)
}

// follow has the surroundings of what is known watched.
func (l *criLoop) follow() {
	for _, s := range l.list.sandboxes {
		if s.Group != "" {
			l.watch.follow(s.Group)
		}
	}
	for _, c := range l.list.containers {
		if l.list.sandboxes[c.Sandbox].Group == "" {
			l.watch.followContainers(path.Dir(c.Cgroup))
		}
	}
}

// settle forgets what the newest listing explains, and reports whether there is still something to wait for.
func (l *criLoop) settle(now time.Time) (waiting bool) {
	for id := range l.list.unplaced {
		if _, ok := l.pending[id]; !ok {
			l.pending[id] = now.Add(l.timing.patience)
		}
	}
	groups := make(map[string]bool, len(l.list.containers))
	for _, c := range l.list.containers {
		groups[c.Cgroup] = true
	}
	for what, deadline := range l.pending {
		reason, unplaced := l.list.unplaced[what]
		isGroup := strings.HasPrefix(what, "/")
		switch {
		case isGroup && (groups[what] || l.isSandbox(what) || !exists(l.opts.Hierarchy, what)), !isGroup && !unplaced:
			delete(l.pending, what)
		case now.Before(deadline):
			waiting = true
		case unplaced && !deadline.IsZero():
			l.pending[what] = time.Time{} // told once
			l.opts.Log.Warn("container is not listed", "reason", reason)
		}
	}
	return waiting
}

// isSandbox reports whether a group is that of a ready sandbox: <id>, cri-containerd-<id>.scope.
func (l *criLoop) isSandbox(group string) bool {
	name := strings.TrimSuffix(path.Base(group), ".scope")
	_, ok := l.list.sandboxes[name[strings.LastIndexByte(name, '-')+1:]]
	return ok
}

// publish is refresh, with a word to the reader if there is news.
func (l *criLoop) publish() {
	if l.refresh() {
		l.changed()
	}
}

// refresh makes the list of pods from the newest listing and the groups that exist now, and reports whether it differs.
func (l *criLoop) refresh() (news bool) {
	for id, c := range l.list.containers {
		if !exists(l.opts.Hierarchy, c.Cgroup) {
			delete(l.list.containers, id) // for good: IDs are not used again
		}
	}
	list := l.assemble()
	if samePods(list, l.Pods()) {
		return false
	}
	l.pods.Store(&list)
	return true
}

// assemble groups containers by pod. Sandboxes of one pod are one: a pod has several while the kubelet replaces its sandbox, and
// the newest one tells its labels.
func (l *criLoop) assemble() []signal.Pod {
	type key struct{ namespace, name, uid string }
	type entry struct {
		signal.Pod
		newest sandbox
	}
	byKey := make(map[key]*entry, len(l.list.sandboxes))
	bySandbox := make(map[string]*entry, len(l.list.sandboxes))
	for id, s := range l.list.sandboxes {
		k := key{s.Meta.GetNamespace(), s.Meta.GetName(), cmp.Or(s.Meta.GetUid(), id)}
		e := byKey[k]
		if e == nil {
			e = &entry{}
			byKey[k] = e
		}
		bySandbox[id] = e
		if cmp.Or(cmp.Compare(s.Created, e.newest.Created), cmp.Compare(s.ID, e.newest.ID)) > 0 {
			e.newest = s
			e.Pod = signal.Pod{UID: k.uid, Namespace: k.namespace, Name: k.name, Labels: s.Labels, Annotations: s.Notes, Cgroup: cmp.Or(s.Group, e.Cgroup)}
		}
	}
	for _, c := range l.list.containers {
		if e := bySandbox[c.Sandbox]; e != nil {
			e.Containers = append(e.Containers, c.Container)
		}
	}
	list := make([]signal.Pod, 0, len(byKey))
	for _, e := range byKey {
		if len(e.Containers) == 0 && (e.Cgroup == "" || !exists(l.opts.Hierarchy, e.Cgroup)) {
			continue
		}
		e.QoS = qosClass(e.Cgroup)
		if e.Cgroup == "" {
			e.QoS = qosClass(e.Containers[0].Cgroup)
		}
		list = append(list, e.Pod)
	}
	sortPods(list)
	return list
}

// qosClass reads the class from the path of a pod's group or of one in it.
func qosClass(group string) signal.QoSClass {
	at, _ := cgroup.ParsePath(group)
	return signal.QoSClass(at.QoS)
}

// failed takes note that the runtime does not answer.
func (l *criLoop) failed(err error) {
	st := l.Status()
	st.Connected, st.Error = false, err.Error()
	if st.Error != l.Status().Error {
		l.opts.Log.Warn("container runtime does not answer; going on with the pods that are known", "err", err, "pods", len(l.Pods()))
	}
	if l.setStatus(st) {
		l.changed()
	}
}

// setStatus publishes a status, filling in its source and since when it is so.
func (c *CRI) setStatus(s Status) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.opts.Now()
	s.Source, s.Since = *c.answers.Load(), c.status.Since
	if s.Connected != c.status.Connected {
		s.Since = now
	}
	if s.Connected && !c.status.Connected {
		c.opts.Log.Info("container runtime answers", "endpoint", s.Source, "runtime", s.Runtime)
	}
	news = !s.same(c.status)
	c.status = s
	return news
}
