package pods

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/qos-agent/qos-agent/pkg/cgroup"
	"golang.org/x/sys/unix"
)

// level says what the children of a watched group are.
type level uint8

const (
	topLevel  level = iota + 1 // the mount's root: of its children only the tops of the kubelet's tree count
	podsLevel                  // children are pods, or the kubelet's tiers
	podLevel                   // children are containers
)

// groupWatch notices by inotify, in the hierarchy of the cpu controller, when groups of containers are made and removed. It
// knows the kubelet's trees by their names, and other layouts from the groups that it is told of (follow).
//
// It only ever says "look here": what it reports is checked against the tree and the runtime, so a lost event costs time and
// nothing else.
type groupWatch struct {
	h        *cgroup.Hierarchy
	max      int           // of watches
	notify   chan struct{} // has a token when take has something new
	finished chan struct{} // closed when the reading goroutine has ended

	mu       sync.Mutex
	inotify  *os.File // nil: not available
	byWD     map[int32]*watched
	byGroup  map[string]*watched
	created  map[string]bool // container groups since the last take
	removed  bool            // some group was removed since the last take
	overflow bool
	problem  string // why it is not complete; "" if it is
}

type watched struct {
	wd    int32
	group string
	level level
}

// watchFlags: a kernfs directory tells of children that are made and removed, and of nothing when it is removed itself (no
// IN_DELETE_SELF, no IN_IGNORED: measured on 6.18); the watch stays until it is taken away. Groups of cgroup v1 can be renamed.
const (
	watchFlags = appearFlags | vanishFlags | unix.IN_ONLYDIR

	appearFlags = unix.IN_CREATE | unix.IN_MOVED_TO
	vanishFlags = unix.IN_DELETE | unix.IN_MOVED_FROM
)

// watchGroups starts to watch. If the kernel refuses, the watch that it returns notices nothing, and says so (state).
func watchGroups(h *cgroup.Hierarchy, max int) *groupWatch {
	w := &groupWatch{
		h:        h,
		max:      max,
		notify:   make(chan struct{}, 1),
		finished: make(chan struct{}),
		byWD:     map[int32]*watched{},
		byGroup:  map[string]*watched{},
		created:  map[string]bool{},
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.problem = fmt.Sprintf("inotify: %v; raise fs.inotify.max_user_instances", err)
		close(w.finished)
		return w
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	w.rescan()
	go w.read()
	return w
}

// close ends the watch and waits for its goroutine.
func (w *groupWatch) close() {
	if w.inotify != nil {
		w.inotify.Close()
	}
	<-w.finished
}

// take returns the container groups that were made since the last call, and whether any group was removed.
func (w *groupWatch) take() (created []string, removed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overflow { // anything may have happened
		w.overflow = false
		w.removed = true
		w.scanAll()
	}
	for g := range w.created {
		created = append(created, g)
	}
	clear(w.created)
	removed, w.removed = w.removed, false
	return created, removed
}

// state tells why not every change is noticed ("" if every one is), and whether the kubelet's tree is being watched.
func (w *groupWatch) state() (problem string, kubelet bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for g := range w.byGroup {
		if cgroup.IsTier(g) {
			return w.problem, true
		}
	}
	return w.problem, false
}

// follow watches a pod's own group, where its containers appear, and the groups around it, where its neighbours appear.
func (w *groupWatch) follow(pod string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byGroup[pod] == nil {
		w.add(pod, podLevel)
	}
	around := path.Dir(pod)
	if w.byGroup[around] == nil {
		w.add(around, podsLevel)
	}
	for around = path.Dir(around); cgroup.IsTier(around) && w.byGroup[around] == nil; around = path.Dir(around) {
		w.add(around, podsLevel) // and with the top of the kubelet's tree its other tiers
	}
}

// followContainers watches a group that containers are in and that is no pod's own.
func (w *groupWatch) followContainers(group string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byGroup[group] == nil {
		w.add(group, podLevel)
	}
}

// rescan looks at the whole tree again: it takes up what was missed, and lets go of watches whose groups are gone.
func (w *groupWatch) rescan() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scanAll()
}

func (w *groupWatch) scanAll() {
	if w.inotify == nil {
		return
	}
	w.problem = ""
	for _, e := range w.byGroup {
		if _, err := os.Lstat(w.dir(e.group)); errors.Is(err, fs.ErrNotExist) {
			w.drop(e)
		}
	}
	w.add("/", topLevel)
	roots, err := w.h.KubepodsRoots()
	if err != nil {
		w.problem = err.Error()
	}
	for _, r := range roots {
		w.add(r, podsLevel)
	}
	for _, e := range w.byGroup {
		w.scan(e)
	}
}

// add watches a group and looks at what is in it already. A group that is watched keeps its level, unless it was made anew.
func (w *groupWatch) add(group string, l level) {
	if w.inotify == nil {
		return
	}
	old := w.byGroup[group]
	if old == nil && len(w.byGroup) >= w.max {
		w.problem = fmt.Sprintf("more than %d groups to watch", w.max)
		return
	}
	wd, err := w.addWatch(group)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if old != nil {
			w.drop(old)
		}
		return
	case errors.Is(err, unix.ENOSPC):
		w.problem = "no inotify watches left; raise fs.inotify.max_user_watches"
		return
	case err != nil:
		w.problem = fmt.Sprintf("inotify on %s: %v", w.dir(group), err)
		return
	case old != nil && old.wd == wd:
		return
	case old != nil: // another group of the same name
		w.drop(old)
	}
	e := &watched{wd: wd, group: group, level: l}
	w.byWD[wd], w.byGroup[group] = e, e
	w.scan(e)
}

func (w *groupWatch) addWatch(group string) (int32, error) {
	wd, err := -1, error(nil)
	if e := w.withFD(func(fd int) { wd, err = unix.InotifyAddWatch(fd, w.dir(group), watchFlags) }); e != nil {
		return -1, e
	}
	return int32(wd), err
}

// drop takes a watch away.
func (w *groupWatch) drop(e *watched) {
	delete(w.byWD, e.wd)
	if w.byGroup[e.group] == e {
		delete(w.byGroup, e.group)
	}
	// An error means that the kernel took it away already.
	_ = w.withFD(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(e.wd)) })
}

// withFD lends the descriptor out in a way that is safe against close.
func (w *groupWatch) withFD(fn func(fd int)) error {
	c, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { fn(int(fd)) })
}

func (w *groupWatch) scan(e *watched) {
	entries, err := os.ReadDir(w.dir(e.group))
	if err != nil {
		return // gone, and an event will tell
	}
	for _, child := range entries {
		if child.IsDir() {
			w.appeared(e, child.Name())
		}
	}
}

// appeared takes up a child of a watched group.
func (w *groupWatch) appeared(parent *watched, name string) {
	group := path.Join(parent.group, name)
	switch {
	case w.byGroup[group] != nil && parent.level == podLevel:
		// a pod in a pod; nobody nests that on purpose
	case cgroup.IsTier(group):
		w.add(group, podsLevel)
	case parent.level == podsLevel:
		w.add(group, podLevel)
	case parent.level == podLevel && !strings.HasPrefix(name, "crio-conmon-"):
		w.created[group] = true
		w.wake()
	}
}

func (w *groupWatch) wake() {
	select {
	case w.notify <- struct{}{}:
	default:
	}
}

func (w *groupWatch) dir(group string) string {
	dir, _ := w.h.Dir(cgroup.CPU, group) // every hierarchy has the cpu controller
	return dir
}

// read handles events until the watch is closed.
func (w *groupWatch) read() {
	defer close(w.finished)
	buf := make([]byte, 16<<10)
	for {
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		w.mu.Lock()
		if err != nil {
			w.problem = fmt.Sprintf("inotify: %v", err)
			w.mu.Unlock()
			w.wake()
			return
		}
		for events := buf[:n]; len(events) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
			name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:size]), "\x00")
			w.event(int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:]), name)
			events = events[size:]
		}
		w.mu.Unlock()
	}
}

func (w *groupWatch) event(wd int32, mask uint32, name string) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.overflow = true
		w.wake()
		return
	}
	parent := w.byWD[wd]
	if parent == nil || mask&unix.IN_ISDIR == 0 {
		return
	}
	switch group := path.Join(parent.group, name); {
	case mask&appearFlags != 0:
		w.appeared(parent, name)
	case mask&vanishFlags != 0:
		if e := w.byGroup[group]; e != nil {
			// Unless another group has taken the name, which its own IN_CREATE has told or will tell.
			w.drop(e)
		}
		delete(w.created, group)
		w.removed = true
		w.wake()
	}
}
