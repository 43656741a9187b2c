// Package e2e runs the agent as Kubernetes would: the image that `make image` writes, in a real containerd, over CRI, with what the
// chart's DaemonSet says. There is no kubelet; what a kubelet would do with the DaemonSet (volumes, environment, security context,
// probes, the signal to stop) is done here, and refused if it is not understood.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/qos-agent/qos-agent/test/containerd"
)

// patience bounds every wait: the machine may be busy.
const patience = time.Minute

// Node is what a kubelet knows that is not in the DaemonSet.
type Node struct {
	Runtime    *containerd.Runtime
	Name       string
	Dir        string            // for logs and ConfigMaps
	ConfigMaps map[string]string // directories by name
	// HostPaths says where on this machine is what has another path on a node: the private containerd's directory.
	HostPaths map[string]string
	// RealtimeShare of each second is given to the pod's groups for real-time tasks before it starts; 0 leaves that alone. On
	// cgroup v1 with RT_GROUP_SCHED no pod has any, so that the agent runs in the ordinary class there, with or without SYS_NICE.
	RealtimeShare time.Duration
}

// Pod is a running pod of a DaemonSet.
type Pod struct {
	t         testing.TB
	node      *Node
	sandbox   string
	container string
	group     string
	log       string
	grace     int64
}

// Run starts the only container of a DaemonSet's pod. edit may be nil; it changes the container's request before it is sent.
func (n *Node) Run(t testing.TB, ds *appsv1.DaemonSet, edit func(*runtimeapi.ContainerConfig)) *Pod {
	t.Helper()
	spec := &ds.Spec.Template.Spec
	if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
		t.Fatalf("DaemonSet %s: want one container", ds.Name)
	}
	c := &spec.Containers[0]
	p := &Pod{t: t, node: n, grace: *spec.TerminationGracePeriodSeconds}
	logs, err := os.MkdirTemp(n.Dir, "log-")
	if err != nil {
		t.Fatal(err)
	}
	p.log = filepath.Join(logs, "agent.log")
	p.group = n.Runtime.Group + "/kubepods/burstable/pod" + filepath.Base(logs)
	mounts, err := n.mounts(spec, c)
	if err != nil {
		t.Fatalf("DaemonSet %s: %v", ds.Name, err)
	}
	// This machine has no network plugin: every pod shares the host's network.
	namespaces := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	if spec.HostPID {
		namespaces.Pid = runtimeapi.NamespaceMode_NODE
	}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: ds.Name + "-e2e", Namespace: ds.Namespace, Uid: filepath.Base(logs)},
		Labels:       ds.Spec.Template.Labels,
		Annotations:  ds.Spec.Template.Annotations,
		LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    p.group,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name},
		Image:    &runtimeapi.ImageSpec{Image: c.Image},
		Command:  c.Command,
		Args:     c.Args,
		Envs:     n.environment(t, c),
		Mounts:   mounts,
		LogPath:  filepath.Base(p.log),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       resources(c),
			SecurityContext: securityContext(t, c.SecurityContext, namespaces),
		},
	}
	if edit != nil {
		edit(config)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := n.Runtime.Client()
	created, err := client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	p.sandbox = created.PodSandboxId
	answer, err := client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: sandbox, Config: config})
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	p.container = answer.ContainerId
	if err := n.allowRealtime(path.Join(sandbox.Linux.CgroupParent, p.container)); err != nil {
		t.Fatalf("real-time share: %v", err)
	}
	if _, err := client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return p
}

// allowRealtime gives a group and those above it a share of real-time CPU, where the kernel shares that out by groups.
func (n *Node) allowRealtime(group string) error {
	const root, file = "/sys/fs/cgroup/cpu", "cpu.rt_runtime_us"
	if _, err := os.Stat(filepath.Join(root, file)); err != nil || n.RealtimeShare == 0 {
		return nil
	}
	var dirs []string
	for ; group != "/"; group = path.Dir(group) {
		dirs = append(dirs, filepath.Join(root, group))
	}
	if err := os.MkdirAll(dirs[0], 0o755); err != nil { // runc takes a group that is there already
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		text := strconv.FormatInt(n.RealtimeShare.Microseconds(), 10)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0); err != nil {
			return err
		}
	}
	return nil
}

// mounts are the container's volumes as a kubelet hands them to the runtime.
func (n *Node) mounts(spec *corev1.PodSpec, c *corev1.Container) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for _, m := range c.VolumeMounts {
		var source string
		for _, v := range spec.Volumes {
			switch {
			case v.Name != m.Name:
			case v.ConfigMap != nil:
				source = n.ConfigMaps[v.ConfigMap.Name]
			case v.HostPath != nil:
				source = v.HostPath.Path
				if elsewhere, ok := n.HostPaths[source]; ok {
					source = elsewhere
				}
				if *v.HostPath.Type == corev1.HostPathDirectoryOrCreate {
					if err := os.MkdirAll(source, 0o755); err != nil {
						return nil, err
					}
				}
			}
		}
		if info, err := os.Stat(source); source == "" || err != nil || !info.IsDir() {
			return nil, fmt.Errorf("volume %s: %q is no directory of this machine", m.Name, source)
		}
		if m.SubPath != "" || m.MountPropagation != nil {
			return nil, fmt.Errorf("volume mount %s: this test does not know how to do that", m.Name)
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: m.MountPath, HostPath: source, Readonly: m.ReadOnly})
	}
	return out, nil
}

func (n *Node) environment(t testing.TB, c *corev1.Container) []*runtimeapi.KeyValue {
	var out []*runtimeapi.KeyValue
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			if e.ValueFrom.FieldRef == nil || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				t.Fatalf("environment %s: this test does not know where to take it from", e.Name)
			}
			value = n.Name
		}
		out = append(out, &runtimeapi.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	return out
}

// resources are as the kubelet computes them (MilliCPUToShares).
func resources(c *corev1.Container) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          c.Resources.Requests.Cpu().MilliValue() * 1024 / 1000,
		MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
	}
}

// Masked and read-only paths of /proc and /sys, as the kubelet asks for them when procMount is Default
// (k8s.io/kubernetes/pkg/securitycontext).
var (
	masked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func securityContext(t testing.TB, s *corev1.SecurityContext, n *runtimeapi.NamespaceOption) *runtimeapi.LinuxContainerSecurityContext {
	if *s.Privileged {
		t.Fatal("the DaemonSet is privileged")
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: n,
		Capabilities:     &runtimeapi.Capability{},
		ReadonlyRootfs:   *s.ReadOnlyRootFilesystem,
		NoNewPrivs:       !*s.AllowPrivilegeEscalation,
		RunAsUser:        &runtimeapi.Int64Value{Value: *s.RunAsUser},
		RunAsGroup:       &runtimeapi.Int64Value{Value: *s.RunAsGroup},
		MaskedPaths:      masked,
		ReadonlyPaths:    readonly,
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined},
	}
	switch a := s.AppArmorProfile; {
	case a == nil: // what the runtime has
	case a.Type == corev1.AppArmorProfileTypeUnconfined:
		out.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	default:
		t.Fatalf("AppArmor profile %s: this test does not know how to do that", a.Type)
	}
	for _, c := range s.Capabilities.Add {
		out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(c))
	}
	for _, c := range s.Capabilities.Drop {
		out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(c))
	}
	switch s.SeccompProfile.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		out.Seccomp.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	case corev1.SeccompProfileTypeUnconfined:
	default:
		t.Fatalf("seccomp profile %s: this test does not know how to do that", s.SeccompProfile.Type)
	}
	return out
}

// Log is what the container has written so far, without the runtime's time stamps.
func (p *Pod) Log() string {
	text, _ := os.ReadFile(p.log)
	var out strings.Builder
	for line := range strings.Lines(string(text)) { // 2026-11-26T09:00:00.1Z stderr F text
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	return out.String()
}

// Stop sends the signal that a kubelet sends when the pod is deleted, allows the grace period of the pod, and removes it. It returns the
// exit code.
func (p *Pod) Stop() int32 {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(p.grace)*time.Second+patience)
	defer cancel()
	client := p.node.Runtime.Client()
	if _, err := client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: p.grace}); err != nil {
		p.t.Fatalf("stop container: %v", err)
	}
	code := p.exitCode(ctx)
	p.remove(ctx)
	return code
}

// Wait waits for a container that ends by itself, removes the pod and returns the exit code.
func (p *Pod) Wait() int32 {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	code := p.exitCode(ctx)
	p.remove(ctx)
	return code
}

func (p *Pod) exitCode(ctx context.Context) int32 {
	p.t.Helper()
	for {
		status, err := p.status(ctx)
		if err != nil {
			p.t.Fatalf("container: %v; log:\n%s", err, p.Log())
		}
		if status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return status.ExitCode
		}
		select {
		case <-ctx.Done():
			p.t.Fatalf("the container goes on running; log:\n%s", p.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Pod) status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	answer, err := p.node.Runtime.Client().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
	if err != nil {
		return nil, err
	}
	if answer.Status == nil {
		return nil, errors.New("no status")
	}
	return answer.Status, nil
}

func (p *Pod) remove(ctx context.Context) {
	p.t.Helper()
	client := p.node.Runtime.Client()
	_, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandbox})
	if err == nil {
		_, err = client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
	}
	if err == nil {
		err = p.node.Runtime.RemoveGroups(p.group)
	}
	if err != nil {
		p.t.Fatalf("remove pod: %v", err)
	}
}

// Kill is SIGKILL, as from the kernel when memory has run out: nothing is put back. The pod is removed.
func (p *Pod) Kill() {
	p.t.Helper()
	pids, err := p.PIDs()
	if err != nil || len(pids) == 0 {
		p.t.Fatalf("processes of the agent: %v %v", pids, err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			p.t.Fatal(err)
		}
	}
	p.Wait()
}

// PIDs are the container's processes.
func (p *Pod) PIDs() ([]int, error) {
	return p.node.Runtime.PIDs(&containerd.RunningContainer{Group: path.Join(p.group, p.container)})
}

// Exec runs a command in the container, as `kubectl exec` does.
func (p *Pod) Exec(command ...string) (stdout string, code int32) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := p.node.Runtime.Client().ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: int64(patience.Seconds())})
	if err != nil {
		p.t.Fatalf("exec %q: %v", command, err)
	}
	return string(answer.Stdout) + string(answer.Stderr), answer.ExitCode
}
