package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a pod to run. It shares the host's network, because that needs no plugin.
type Pod struct {
	Namespace   string // default "default"
	Name        string
	UID         string // default: made of namespace and name
	Labels      map[string]string
	Annotations map[string]string
	Parent      string // the pod's own group, relative to a controller's mount; default <Runtime.Group>/pod<UID>
	Containers  []Container
}

// Container is a container to run.
type Container struct {
	Name    string
	Command []string // default: sleep for ever; busybox's applets are there
	Shares  int64    // CPU shares; default: the kernel's
	Quota   int64    // CPU quota, µs per 100 ms; default: none
	Mounts  []string // files and directories of this machine that it sees, read-only, where they are
}

// RunningPod is a pod whose sandbox is ready.
type RunningPod struct {
	Pod        // with defaults filled in
	ID  string // of the sandbox

	r          *Runtime
	config     *runtimeapi.PodSandboxConfig
	containers map[string]*RunningContainer
	starts     uint32
}

// RunningContainer is a container that has been started.
type RunningContainer struct {
	Container
	ID    string
	Group string // relative to a controller's mount
}

// RunPod starts a pod and its containers and returns when they run.
func (r *Runtime) RunPod(p Pod) *RunningPod {
	r.t.Helper()
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.UID == "" {
		p.UID = p.Namespace + "-" + p.Name
	}
	if p.Parent == "" {
		p.Parent = path.Join(r.Group, "pod"+p.UID)
	}
	ctx, cancel := r.context()
	defer cancel()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID},
		Labels:      p.Labels,
		Annotations: p.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    p.Parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: hostNetwork()},
		},
	}
	answer, err := r.client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		r.t.Fatalf("run pod %s/%s: %v\n%s", p.Namespace, p.Name, err, r.log())
	}
	pod := &RunningPod{Pod: p, ID: answer.PodSandboxId, r: r, config: config, containers: map[string]*RunningContainer{}}
	for _, c := range p.Containers {
		pod.StartContainer(c)
	}
	return pod
}

func hostNetwork() *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
}

// StartContainer starts one more container in the pod. A container of the same name is stopped first, and the new one has
// another ID, as when the kubelet restarts one.
func (p *RunningPod) StartContainer(c Container) *RunningContainer {
	p.r.t.Helper()
	if p.containers[c.Name] != nil {
		p.StopContainer(c.Name)
	}
	if len(c.Command) == 0 {
		c.Command = []string{"sleep", "2147483647"}
	}
	var mounts []*runtimeapi.Mount
	for _, m := range c.Mounts {
		mounts = append(mounts, &runtimeapi.Mount{ContainerPath: m, HostPath: m, Readonly: true})
	}
	ctx, cancel := p.r.context()
	defer cancel()
	p.starts++
	created, err := p.r.client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  p.ID,
		SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: p.starts},
			Image:    &runtimeapi.ImageSpec{Image: imageName},
			Command:  c.Command,
			Mounts:   mounts,
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{CpuShares: c.Shares, CpuQuota: c.Quota},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: hostNetwork()},
			},
		},
	})
	if err == nil {
		_, err = p.r.client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	}
	if err != nil {
		p.r.t.Fatalf("start container %s of %s/%s: %v\n%s", c.Name, p.Namespace, p.Name, err, p.r.log())
	}
	running := &RunningContainer{Container: c, ID: created.ContainerId, Group: path.Join(p.Parent, created.ContainerId)}
	p.containers[c.Name] = running
	return running
}

// Container is the container of that name that was started last; nil: none.
func (p *RunningPod) Container(name string) *RunningContainer { return p.containers[name] }

// StopContainer kills a container and removes it from the runtime.
func (p *RunningPod) StopContainer(name string) {
	p.r.t.Helper()
	c := p.containers[name]
	if c == nil {
		p.r.t.Fatalf("stop container %s of %s/%s: not running", name, p.Namespace, p.Name)
	}
	ctx, cancel := p.r.context()
	defer cancel()
	_, err := p.r.client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID})
	if err == nil {
		_, err = p.r.client.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
	}
	if err != nil {
		p.r.t.Fatalf("stop container %s of %s/%s: %v\n%s", name, p.Namespace, p.Name, err, p.r.log())
	}
	delete(p.containers, name)
}

// Remove stops the pod and removes it, with its own group, as the kubelet does.
func (p *RunningPod) Remove() {
	p.r.t.Helper()
	ctx, cancel := p.r.context()
	defer cancel()
	_, err := p.r.client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
	if err == nil {
		_, err = p.r.client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
	}
	if err == nil {
		err = removeGroups(p.Parent)
	}
	if err != nil {
		p.r.t.Fatalf("remove pod %s/%s: %v\n%s", p.Namespace, p.Name, err, p.r.log())
	}
	clear(p.containers)
}

// PIDs lists the processes of a container, its first one first.
func (r *Runtime) PIDs(c *RunningContainer) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(cgroupRoot, "cpu", c.Group, "cgroup.procs"))
	if os.IsNotExist(err) {
		text, err = os.ReadFile(filepath.Join(cgroupRoot, c.Group, "cgroup.procs"))
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range bytes.Fields(text) {
		pid, err := strconv.Atoi(string(f))
		if err != nil {
			return nil, fmt.Errorf("cgroup.procs: %w", err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (r *Runtime) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}
