// Package containerd starts a private containerd for tests and runs real pods on it over CRI, without a network, a registry or a
// kubelet. Everything it makes (processes with their shims, mounts, control groups, files) is gone when the test ends.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience bounds every wait. It is long because the same tests run on an emulated CPU.
const patience = 60 * time.Second

const cgroupRoot = "/sys/fs/cgroup"

// Runtime is a private containerd.
type Runtime struct {
	Endpoint string // "unix:///tmp/.../containerd.sock"
	Group    string // the group that its pods are in by default, relative to a controller's mount

	t      testing.TB
	dir    string
	conn   *grpc.ClientConn
	client runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	daemon *daemon // nil while it is down
}

// Start starts a containerd that lives as long as the test. It skips the test on a machine that lacks what is needed, and
// fails it if containerd is there but does not work.
func Start(t testing.TB) *Runtime {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runs containerd")
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: not installed (apt-get install containerd runc)", name)
		}
	}
	image, err := busyboxImage()
	if err != nil {
		t.Skipf("needs a static busybox for the image of its containers: %v", err)
	}
	// Not t.TempDir: a unix socket's path must be short.
	dir, err := os.MkdirTemp("", "qos-agent-test-")
	if err != nil {
		t.Fatal(err)
	}
	r := &Runtime{
		Endpoint: "unix://" + filepath.Join(dir, "containerd.sock"),
		Group:    fmt.Sprintf("/qos-agent-test-%08x", rand.Uint32()),
		t:        t,
		dir:      dir,
	}
	t.Cleanup(r.cleanUp)
	r.conn, err = grpc.NewClient(r.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.client, r.images = runtimeapi.NewRuntimeServiceClient(r.conn), runtimeapi.NewImageServiceClient(r.conn)
	r.write("config.toml", []byte(r.config()))
	r.write("image.tar", image)
	r.Restart()
	r.Import(filepath.Join(r.dir, "image.tar"), imageName)
	return r
}

func (r *Runtime) write(name string, data []byte) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// config keeps everything below the private directory. The native snapshotter copies the image's single small layer for each
// container, and works where overlayfs does not. OOM scores may only be lowered by a privileged user of the first user
// namespace, hence restrict_oom_score_adj.
func (r *Runtime) config() string {
	return strings.NewReplacer("DIR", r.dir, "IMAGE", imageName).Replace(`version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.overlayfs", "io.containerd.nri.v1.nri"]
[grpc]
  address = "DIR/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "DIR/cni"
    conf_dir = "DIR/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "DIR/runc"
`)
}

// Import makes the image in an archive known, and returns when CRI knows it by name.
func (r *Runtime) Import(archive, name string) {
	r.t.Helper()
	out, err := exec.Command("ctr", "-a", r.socket(), "-n", "k8s.io", "images", "import", "--snapshotter", "native", archive).CombinedOutput()
	if err != nil {
		r.t.Fatalf("import image: %v\n%s", err, out)
	}
	r.wait("CRI to know the image "+name, func(ctx context.Context) error {
		answer, err := r.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err == nil && answer.GetImage() == nil {
			err = errors.New("not known")
		}
		return err
	})
}

// Client talks CRI to the runtime.
func (r *Runtime) Client() runtimeapi.RuntimeServiceClient { return r.client }

// Kill ends containerd as a crash would: at once, leaving its socket file, shims and containers behind.
func (r *Runtime) Kill() {
	r.t.Helper()
	if r.daemon == nil {
		r.t.Fatal("containerd is down already")
	}
	r.daemon.end(unix.SIGKILL)
	r.daemon = nil
}

// Restart starts containerd, killing the running one first, and returns when it answers over CRI.
func (r *Runtime) Restart() {
	r.t.Helper()
	if r.daemon != nil {
		r.Kill()
	}
	d, err := startDaemon(filepath.Join(r.dir, "config.toml"), filepath.Join(r.dir, "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.daemon = d
	r.wait("containerd", func(ctx context.Context) error {
		r.conn.ResetConnectBackoff()
		// Status and not Version: Version answers before the state has been recovered.
		_, err := r.client.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	})
}

func (r *Runtime) socket() string { return strings.TrimPrefix(r.Endpoint, "unix://") }

// wait tries until try succeeds, and fails the test if it never does.
func (r *Runtime) wait(what string, try func(context.Context) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			r.t.Fatalf("wait for %s: %v\n%s", what, err, r.log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// log is the end of containerd's log.
func (r *Runtime) log() []byte {
	text, _ := os.ReadFile(filepath.Join(r.dir, "log"))
	return text[max(0, len(text)-4096):]
}

// cleanUp asks containerd to remove its pods, and then removes by hand whatever is left, so that it works after a crash too.
func (r *Runtime) cleanUp() {
	if r.daemon != nil {
		thawBelow(r.Group)
		r.removePods()
		r.daemon.end(unix.SIGTERM)
	}
	if r.conn != nil {
		_ = r.conn.Close()
	}
	if err := killShims(r.socket()); err != nil {
		r.t.Errorf("clean up shims: %v", err)
	}
	if err := removeGroups(r.Group); err != nil {
		r.t.Errorf("clean up groups: %v", err)
	}
	if err := unmountBelow(r.dir); err != nil {
		r.t.Errorf("clean up mounts: %v", err)
	}
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Errorf("clean up files: %v", err)
	}
}

func (r *Runtime) removePods() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := r.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return // the rest of the cleaning does not depend on it
	}
	for _, s := range list.Items {
		_, _ = r.client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
		_, _ = r.client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
	}
}

// daemon is a containerd process.
type daemon struct {
	process *os.Process
	done    chan struct{}
}

// startDaemon starts containerd so that it dies with the test process, however that ends. The kernel binds that wish to the
// thread that forked, so that thread is kept until containerd has ended.
func startDaemon(config, log string) (*daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("containerd", "--config", config)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	d := &daemon{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(d.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	d.process = cmd.Process
	return d, nil
}

// end sends a signal and waits for the end, which SIGKILL brings if the signal does not.
func (d *daemon) end(s syscall.Signal) {
	_ = d.process.Signal(s)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = d.process.Kill()
		<-d.done
	}
}

// killShims ends the shims of the containerd at socket. They are children of init by now; their command line tells whose they
// are. What they hold is killed with its groups.
func killShims(socket string) error {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range procs {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(string(text), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") || !bytes.Contains(text, []byte("\x00"+socket+"\x00")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// unmountBelow unmounts everything below dir, the latest mount first.
func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			errs = append(errs, os.NewSyscallError("unmount "+f[4], unix.Unmount(f[4], unix.MNT_DETACH)))
		}
	}
	return errors.Join(errs...)
}
