package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// sandbox is a pod as the runtime describes it.
type sandbox struct {
	ID      string
	Meta    *runtimeapi.PodSandboxMetadata
	Created int64
	Labels  map[string]string
	Notes   map[string]string // annotations
	Group   string            // the pod's own group; "" if it is not known, or the pod has none
}

// placed is a running container whose group is known.
type placed struct {
	signal.Container
	Sandbox string
}

// listing is what the runtime has said, all of it at about one time. It belongs to who asked for it.
type listing struct {
	runtime    string
	sandboxes  map[string]sandbox // ready, or with a container that runs
	containers map[string]placed
	unplaced   map[string]string // running containers whose group is not known: ID to reason
	more       bool              // there was no time to ask about all that has not been asked about yet: list again soon
	err        error             // the runtime cannot be asked; the rest is empty
	took       time.Duration
}

// lister asks the runtime. It remembers what cannot change, so that a steady node costs two calls a listing.
type lister struct {
	endpoints []string
	answers   *atomic.Pointer[string] // which of them does
	h         *cgroup.Hierarchy
	timing    timing
	lost      func() // called when an open connection breaks

	client     *runtimeClient // nil: not connected
	containers map[string]placed
	unplaced   map[string]string
	groups     map[string]string // by sandbox: the pod's group, "" if asked and not told
}

func (l *lister) close() {
	if l.client != nil {
		l.client.close()
		l.client = nil
	}
}

// list makes a listing. It never fails: what went wrong is in the listing.
func (l *lister) list(ctx context.Context) listing {
	began := time.Now()
	list, err := l.ask(ctx)
	if err != nil {
		l.close()
		list = listing{err: err}
	}
	list.took = time.Since(began)
	return list
}

// dial connects to the first endpoint that answers. When none does, the error is that of the first that is there.
func (l *lister) dial(ctx context.Context) (err error) {
	for i := range l.endpoints {
		c, dialErr := dialRuntime(ctx, l.endpoints[i], l.timing.call, l.lost)
		if dialErr == nil {
			l.client = c
			l.answers.Store(&l.endpoints[i])
			return nil
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) && !errors.Is(dialErr, fs.ErrNotExist) {
			err = dialErr
		}
	}
	return err
}

func (l *lister) ask(ctx context.Context) (listing, error) {
	if l.client != nil && l.client.broken.Load() {
		l.close() // a new one learns who answers now
	}
	if l.client == nil {
		if err := l.dial(ctx); err != nil {
			return listing{}, err
		}
	}
	// Containers before sandboxes, so that a pod that is made meanwhile is not a container without its sandbox.
	running, err := call(ctx, l.client, l.timing.call, l.client.api.ListContainers, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return listing{}, err
	}
	ready, err := call(ctx, l.client, l.timing.call, l.client.api.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
	if err != nil {
		return listing{}, err
	}
	list := listing{
		runtime:    l.client.name,
		sandboxes:  make(map[string]sandbox, len(ready.Items)),
		containers: make(map[string]placed, len(running.Containers)),
		unplaced:   map[string]string{},
	}
	for _, s := range ready.Items {
		if s.GetMetadata() != nil {
			list.sandboxes[s.Id] = sandbox{ID: s.Id, Meta: s.Metadata, Created: s.CreatedAt, Labels: s.Labels, Notes: s.Annotations}
		}
	}
	l.placeContainers(ctx, running.Containers, &list, time.Now().Add(l.timing.budget))
	l.placeSandboxes(ctx, &list, time.Now().Add(l.timing.budget))
	l.remember(list)
	return list, nil
}

// remember keeps what is still of use.
func (l *lister) remember(list listing) {
	l.containers, l.unplaced = maps.Clone(list.containers), maps.Clone(list.unplaced)
	groups := make(map[string]string, len(list.sandboxes))
	for id := range list.sandboxes {
		if g, ok := l.groups[id]; ok {
			groups[id] = g
		}
	}
	l.groups = groups
}

// placeContainers finds the groups of running containers. It asks about those that are new, several at a time until the deadline,
// and about those that it has asked about in vain last, so that they take no time from the others.
func (l *lister) placeContainers(ctx context.Context, running []*runtimeapi.Container, list *listing, deadline time.Time) {
	var fresh []*runtimeapi.Container
	for _, c := range running {
		if known, ok := l.containers[c.Id]; ok {
			list.containers[c.Id] = known
		} else {
			fresh = append(fresh, c)
		}
	}
	inVain := func(c *runtimeapi.Container) bool { _, ok := l.unplaced[c.Id]; return ok }
	slices.SortStableFunc(fresh, func(a, b *runtimeapi.Container) int {
		return cmp.Compare(len(l.unplaced[a.Id]), len(l.unplaced[b.Id])) // the reason of those that it has not asked about is ""
	})
	var (
		mu    sync.Mutex // guards list
		wg    sync.WaitGroup
		slots = make(chan struct{}, l.timing.parallel)
		tree  = sync.OnceValue(l.scan)
	)
	for i, c := range fresh {
		slots <- struct{}{}
		if time.Now().After(deadline) {
			list.more = !inVain(c)
			mu.Lock()
			for _, c := range fresh[i:] {
				if inVain(c) {
					list.unplaced[c.Id] = l.unplaced[c.Id]
				}
			}
			mu.Unlock()
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			p, err := l.place(ctx, c, tree)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				list.containers[c.Id] = p
			case status.Code(err) != codes.NotFound: // not found: it has ended meanwhile
				list.unplaced[c.Id] = fmt.Sprintf("container %s (%s): %v", c.GetMetadata().GetName(), c.Id, err)
			}
		})
	}
	wg.Wait()
}

// place finds the group of a container: where the runtime says, or else where a group of its name is.
func (l *lister) place(ctx context.Context, c *runtimeapi.Container, tree func() map[string]string) (placed, error) {
	p := placed{Container: signal.Container{ID: c.Id, Name: c.GetMetadata().GetName()}, Sandbox: c.PodSandboxId}
	answer, err := call(ctx, l.client, l.timing.status, l.client.api.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id, Verbose: true})
	if err == nil {
		v := parseVerbose(answer.Info)
		p.PID, p.Cgroup = v.PID, v.group()
	} else if status.Code(err) == codes.NotFound {
		return placed{}, err
	}
	if p.Cgroup != "" && exists(l.h, p.Cgroup) {
		return p, nil
	}
	if g := tree()[c.Id]; g != "" {
		p.Cgroup = g
		return p, nil
	}
	switch {
	case err != nil:
		return placed{}, err
	case p.Cgroup != "":
		return placed{}, fmt.Errorf("its group %s does not exist under %s: is --cgroup-root the host's?", p.Cgroup, l.h.Root())
	default:
		return placed{}, errors.New("the runtime does not tell its group, and no group has its ID in the name")
	}
}

// scan finds the groups of all containers by their names: in the kubelet's trees, and in the pods that are known.
func (l *lister) scan() map[string]string {
	found := map[string]string{}
	note := func(group string) error {
		if p, ok := cgroup.ParsePath(group); ok && p.Container != "" {
			found[p.ContainerID] = p.Container
			return fs.SkipDir
		}
		return nil
	}
	roots, err := l.h.KubepodsRoots()
	if err != nil {
		return found // they are unplaced, and it will be tried again
	}
	for _, r := range roots {
		_ = l.h.Walk(cgroup.CPU, r, note) // as above
	}
	for _, g := range l.groups {
		if g == "" || cgroup.CheckWritable(g) != nil {
			continue
		}
		if _, kubelet := cgroup.ParsePath(g); kubelet {
			continue
		}
		_ = l.h.Walk(cgroup.CPU, g, func(group string) error {
			if group == g {
				return nil
			}
			name := strings.TrimSuffix(path.Base(group), ".scope")
			found[name[strings.LastIndexByte(name, '-')+1:]] = group
			return fs.SkipDir
		})
	}
	return found
}

// placeSandboxes finds the pods' own groups, and the sandboxes of containers that run although their sandbox is not ready.
func (l *lister) placeSandboxes(ctx context.Context, list *listing, deadline time.Time) {
	groups := map[string]string{} // by sandbox, from where its containers are
	for _, c := range list.containers {
		if _, ok := list.sandboxes[c.Sandbox]; !ok {
			if s, err := l.sandbox(ctx, c.Sandbox); err == nil {
				list.sandboxes[c.Sandbox] = s
			}
		}
		if g := path.Dir(c.Cgroup); namesPod(g, list.sandboxes[c.Sandbox].Meta.GetUid()) {
			groups[c.Sandbox] = g
		}
	}
	for id, s := range list.sandboxes {
		if g := groups[id]; g != "" {
			l.setGroup(id, g)
		}
		g, asked := l.groups[id]
		if !asked && s.Group == "" {
			if time.Now().After(deadline) {
				list.more = true
				continue
			}
			// On an error it is left at that: the pod's containers will show where it is.
			told, _ := l.sandbox(ctx, id)
			g = told.Group
			l.setGroup(id, g)
		}
		if g != "" {
			s.Group = g
		}
		list.sandboxes[id] = s
	}
}

func (l *lister) setGroup(id, group string) {
	if l.groups == nil {
		l.groups = map[string]string{}
	}
	l.groups[id] = group
}

// sandbox asks about one sandbox.
func (l *lister) sandbox(ctx context.Context, id string) (sandbox, error) {
	answer, err := call(ctx, l.client, l.timing.status, l.client.api.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return sandbox{}, err
	}
	st := answer.GetStatus()
	if st.GetMetadata() == nil {
		return sandbox{}, fmt.Errorf("sandbox %s has no metadata", id)
	}
	s := sandbox{ID: id, Meta: st.Metadata, Created: st.CreatedAt, Labels: st.Labels, Notes: st.Annotations}
	v := parseVerbose(answer.Info)
	if g := v.parent(); namesPod(g, st.Metadata.Uid) {
		s.Group = g
	}
	return s, nil
}

// namesPod reports whether a group is a pod's own, which its name tells: what does not carry the UID may be shared by pods, and
// nothing must be done to it for the sake of one.
func namesPod(group, uid string) bool {
	if uid == "" || plain(group) == "" {
		return false
	}
	if p, ok := cgroup.ParsePath(group); ok {
		return p.Pod == group && p.UID == uid
	}
	name := path.Base(group)
	if slice, ok := strings.CutSuffix(name, ".slice"); ok {
		return strings.HasSuffix("-"+slice, "-pod"+strings.ReplaceAll(uid, "-", "_"))
	}
	return name == "pod"+uid || name == uid
}

func exists(h *cgroup.Hierarchy, group string) bool {
	_, err := h.ID(group)
	return err == nil
}
