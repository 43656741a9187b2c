package pods

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
	"github.com/qos-agent/qos-agent/pkg/cgroup"
)

// StaticFile is the content of a static pod file.
type StaticFile struct {
	Pods []StaticPod `yaml:"pods" required:"true"`
}

// StaticPod is a group that is to be taken for a pod with one container.
type StaticPod struct {
	Namespace   string            `yaml:"namespace" required:"true" pattern:"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" example:"a name of small letters, digits and dashes"`
	Name        string            `yaml:"name" required:"true" pattern:"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$" example:"a name of small letters, digits, dashes and dots"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
	// Cgroup is the group's path under the mount of a controller: "/demo/web".
	Cgroup string `yaml:"cgroup" required:"true" pattern:"^/" example:"a path under the cgroup mount such as /demo/web"`
}

// ParseStatic reads a static pod file that has the given content. The error is a strictyaml.ErrorList with everything that is
// wrong; file is the name that it uses.
func ParseStatic(file string, data []byte) ([]StaticPod, error) {
	docs, errs := strictyaml.Parse(file, data)
	if len(errs) == 0 && len(docs) != 1 {
		errs = append(errs, strictyaml.FieldError{File: file, Problem: fmt.Sprintf("holds %d YAML documents", len(docs)), Fix: "one: pods: [{namespace, name, cgroup}], or pods: [] for none"})
	}
	var content StaticFile
	at := strictyaml.Positions{}
	for _, d := range docs {
		errs = append(errs, d.Decode(&content, at)...)
	}
	errs = append(errs, checkStatic(content.Pods, at)...)
	if err := errs.Tidy().AsError(); err != nil {
		return nil, err
	}
	return content.Pods, nil
}

// checkStatic finds what is wrong between fields that are right by themselves. Fields that are not set are reported already.
func checkStatic(pods []StaticPod, at strictyaml.Positions) (errs strictyaml.ErrorList) {
	fail := func(path, problem, fix string) {
		p := at.Of(path)
		errs = append(errs, strictyaml.FieldError{File: p.File, Line: p.Line, Path: path, Problem: problem, Fix: fix})
	}
	names := map[string]int{}
	var groups []string
	byGroup := map[string]int{}
	for i, p := range pods {
		field := fmt.Sprintf("pods[%d]", i)
		if p.Namespace != "" && p.Name != "" {
			key := p.Namespace + "/" + p.Name
			if first, taken := names[key]; taken {
				fail(field+".name", fmt.Sprintf("is %s, which pods[%d] on line %d is too", key, first, at.Of(fmt.Sprintf("pods[%d].name", first)).Line), "another namespace or name")
			} else {
				names[key] = i
			}
		}
		if p.Cgroup == "" {
			continue
		}
		if err := cgroup.CheckWritable(p.Cgroup); err != nil {
			_, problem, _ := strings.Cut(err.Error(), "\": ")
			fail(field+".cgroup", fmt.Sprintf("is %q: %s", p.Cgroup, problem), "a path under the cgroup mount such as /demo/web")
			continue
		}
		if first, taken := byGroup[p.Cgroup]; taken {
			fail(field+".cgroup", fmt.Sprintf("is %s, which pods[%d] on line %d has too", p.Cgroup, first, at.Of(fmt.Sprintf("pods[%d].cgroup", first)).Line), "a group of its own for each pod")
			continue
		}
		byGroup[p.Cgroup] = i
		groups = append(groups, p.Cgroup)
	}
	// What the agent does to a group it does to all groups in it, so that pods must not be in one another.
	for _, g := range groups {
		for outer := range parents(g) {
			if o, taken := byGroup[outer]; taken {
				fail(fmt.Sprintf("pods[%d].cgroup", byGroup[g]), fmt.Sprintf("is %s, which lies in %s of pods[%d] on line %d", g, outer, o, at.Of(fmt.Sprintf("pods[%d].cgroup", o)).Line), "groups that do not contain one another")
				break
			}
		}
	}
	return errs
}

// parents yields the groups around a group, the innermost first, without the root.
func parents(group string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i := strings.LastIndexByte(group, '/'); i > 0; i = strings.LastIndexByte(group, '/') {
			group = group[:i]
			if !yield(group) {
				return
			}
		}
	}
}

// StaticOptions says where the file and the groups are.
type StaticOptions struct {
	File      string
	Hierarchy *cgroup.Hierarchy
	Log       *slog.Logger
	Now       func() time.Time // for the times in Status; nil: time.Now
}

// Static is the source of pods that a file names, for machines without Kubernetes: plain systemd slices, demos, tests.
//
// It looks at the file and at the groups every 400 ms. That takes one system call for each, and in contrast to inotify it
// works the same for files that are edited, renamed over, swapped by a ConfigMap's ..data or on a network, and for groups whose
// parents come and go.
type Static struct {
	opts  StaticOptions
	every time.Duration

	// Run's goroutine owns these.
	stamp   stamp       // of the file when it was read
	settled bool        // a change since then has changed the stamp too
	data    []byte      // content, in force or refused
	err     error       // why it was refused
	file    []StaticPod // in force
	groups  []uint64    // of the pods of file, by number; 0: there is none
	listed  bool        // the list is that of file and groups
	absent  []string    // pods without a group, as they were last told of

	pods   atomic.Pointer[[]signal.Pod]
	mu     sync.Mutex
	status Status
}

var _ Source = (*Static)(nil)

// NewStatic reads the file. An error says everything that is wrong with it (strictyaml.ErrorList).
func NewStatic(o StaticOptions) (*Static, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Static{opts: o, every: 400 * time.Millisecond}
	s.pods.Store(&[]signal.Pod{})
	s.status.Since = o.Now()
	s.load()
	if s.err != nil {
		return nil, s.err
	}
	s.publish()
	return s, nil
}

// Pods implements Source.
func (s *Static) Pods() []signal.Pod { return *s.pods.Load() }

// Status implements Source. Connected is false, and Error tells why, while the file on disk is not the one in force.
func (s *Static) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run implements Source.
func (s *Static) Run(ctx context.Context, changed func()) error {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.load()
			if s.publish() {
				changed()
			}
		}
	}
}

// stamp changes when a file is changed, or replaced by another one.
type stamp struct {
	dev, ino    uint64
	size        int64
	mtim, ctime syscall.Timespec
}

// settleTime is after how long a change of a file shows in its times for sure: they are as coarse as the kernel's tick, and a
// network file system's are coarser.
const settleTime = 2 * time.Second

// load reads the file if it may have changed. A file that is bad leaves the pods as they are.
func (s *Static) load() {
	now, err := s.stat()
	if err == nil && now == s.stamp && s.settled {
		return
	}
	s.stamp, s.settled = now, err == nil && s.opts.Now().Sub(time.Unix(now.mtim.Unix())) > settleTime
	data, err := strictyaml.ReadFile(s.opts.File)
	if err == nil && s.data != nil && bytes.Equal(data, s.data) {
		return
	}
	var file []StaticPod
	if err == nil {
		s.data = data
		file, err = ParseStatic(s.opts.File, data)
	} else {
		s.data = nil
	}
	switch {
	case err == nil:
		s.file, s.listed = file, false
		s.opts.Log.Info("static pods read", "file", s.opts.File, "pods", len(file))
	case s.err == nil || s.err.Error() != err.Error():
		s.opts.Log.Error("static pods: file refused, what was read before stays in force", "file", s.opts.File, "err", err)
	}
	s.err = err
}

func (s *Static) stat() (stamp, error) {
	info, err := os.Stat(s.opts.File)
	if err != nil {
		return stamp{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, fs.ErrInvalid // not on Linux
	}
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// publish makes the list of the pods whose groups exist, and reports whether the list or the status is new. It is called
// all the time and mostly finds everything as it was, so it looks at the groups before it makes a list.
func (s *Static) publish() (news bool) {
	changed := len(s.groups) != len(s.file) || !s.listed
	missing := 0
	s.groups = slices.Grow(s.groups[:0], len(s.file))[:len(s.file)]
	for i, p := range s.file {
		id, err := s.opts.Hierarchy.ID(p.Cgroup)
		if err != nil {
			id = 0 // no group has this number
			missing++
		}
		changed = changed || s.groups[i] != id
		s.groups[i] = id
	}
	if !changed {
		return s.setStatus(missing)
	}
	s.listed = true
	list := make([]signal.Pod, 0, len(s.file))
	var absent []string
	for i, p := range s.file {
		if s.groups[i] != 0 {
			list = append(list, p.pod(s.groups[i]))
		} else {
			absent = append(absent, fmt.Sprintf("%s/%s: %s", p.Namespace, p.Name, p.Cgroup))
		}
	}
	s.tell(absent)
	sortPods(list)
	if !samePods(list, s.Pods()) {
		s.pods.Store(&list)
		news = true
	}
	return s.setStatus(missing) || news
}

// tell logs which pods are not watched, when that is new.
func (s *Static) tell(absent []string) {
	if slices.Equal(absent, s.absent) {
		return
	}
	s.absent = absent
	if len(absent) == 0 {
		s.opts.Log.Info("all static pods have their groups")
		return
	}
	s.opts.Log.Warn("static pods are not watched until their groups exist (paths are those below the cpu controller's mount)", "pods", absent)
}

// pod is p while its group has the given number: when the group is made anew, it is another container.
func (p *StaticPod) pod(group uint64) signal.Pod {
	key := p.Namespace + "/" + p.Name
	return signal.Pod{
		UID:         "static:" + key,
		Namespace:   p.Namespace,
		Name:        p.Name,
		Labels:      p.Labels,
		Annotations: p.Annotations,
		QoS:         qosClass(p.Cgroup),
		Cgroup:      p.Cgroup,
		Containers:  []signal.Container{{ID: fmt.Sprintf("static:%s@%d", key, group), Name: p.Name, Cgroup: p.Cgroup}},
	}
}

func (s *Static) setStatus(missing int) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.opts.Now()
	st := Status{Source: s.opts.File, Connected: s.err == nil, Since: s.status.Since, LastSuccess: s.status.LastSuccess, Unresolved: missing}
	if st.Connected {
		st.LastSuccess = now
	} else {
		st.Error = s.err.Error()
	}
	if st.Connected != s.status.Connected {
		st.Since = now
	}
	news = !st.same(s.status)
	s.status = st
	return news
}
