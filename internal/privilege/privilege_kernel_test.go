package privilege_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/privilege"
)

// child makes this test's binary a process whose capabilities may be dropped.
const child = "QOS_AGENT_TEST_PRIVILEGE"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		os.Exit(drop())
	}
	os.Exit(m.Run())
}

// drop keeps two capabilities and prints what every thread has then.
func drop() int {
	block := make(chan struct{})
	for range 4 { // threads that sit in the kernel, as the loop does in epoll_wait
		go func() {
			var fds [2]int
			_ = unix.Pipe(fds[:])
			block <- struct{}{}
			_, _ = unix.Read(fds[0], make([]byte, 1))
		}()
		<-block
	}
	tried := privilege.Without(func() error { return unix.Sethostname([]byte("never")) })
	if !errors.Is(tried, unix.EPERM) {
		println("without capabilities:", tried)
		return 1
	}
	dropped, err := privilege.Keep(privilege.Nice, privilege.BPF)
	if err != nil {
		println(err.Error())
		return 1
	}
	println("dropped", strings.Join(dropped, ","))
	println("held", strings.Join(privilege.Held(), ","))
	status, _ := filepath.Glob("/proc/self/task/*/status")
	for _, name := range status {
		text, _ := os.ReadFile(name)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "CapEff:") || strings.HasPrefix(line, "CapPrm:") {
				print(line)
			}
		}
	}
	return 0
}

func TestKeep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: has capabilities to drop")
	}
	held := privilege.Held()
	if !slices.Contains(held, "sys_nice") || !slices.Contains(held, "bpf") {
		t.Fatalf("root holds %q", held)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 2+2*4 {
		t.Fatalf("too few threads:\n%s", out)
	}
	if gone := strings.Split(strings.TrimPrefix(lines[0], "dropped "), ","); len(gone) != len(held)-2 || !slices.Contains(gone, "sys_admin") {
		t.Errorf("dropped %q of %q", gone, held)
	}
	if lines[1] != "held sys_nice,bpf" {
		t.Error(lines[1])
	}
	const want = "0000008000800000" // bits 23 and 39
	for _, line := range lines[2:] {
		if !strings.HasSuffix(line, want) {
			t.Errorf("a thread has %q, want %s", line, want)
		}
	}
}
