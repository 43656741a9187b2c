package pods

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qos-agent/qos-agent/internal/privilege"
)

// Root without capabilities, which is what the agent is in its pod, is told whose the socket is, and not that it is root's.
func TestDenied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes files of others")
	}
	top, err := os.MkdirTemp("", "cri-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := filepath.Join(top, "run")
	socket := filepath.Join(dir, "s")
	if err := errors.Join(os.Chmod(top, 0o755), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for what, tc := range map[string]struct {
		file    string
		mode    fs.FileMode
		owner   int
		refused bool
		want    string
	}{
		"directory of another user":              {dir, 0o700, 1000, true, "permission denied: " + dir + " is drwx------ of user 1000, group 1000, and the agent is user 0, group 0"},
		"socket of another user":                 {socket, 0o600, 1000, true, "permission denied: " + socket + " is Srw------- of user 1000"},
		"socket without permission for its user": {socket, 0, 0, true, "permission denied: " + socket + " is S--------- of user 0"},
		"nothing that owner and mode could tell": {socket, 0o600, 0, false, "does a security module forbid it?"},
	} {
		t.Run(what, func(t *testing.T) {
			for _, file := range []string{dir, socket} {
				if err := errors.Join(os.Chown(file, 0, 0), os.Chmod(file, 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.Chown(tc.file, tc.owner, tc.owner), os.Chmod(tc.file, tc.mode)); err != nil {
				t.Fatal(err)
			}
			var got string
			err := privilege.Without(func() error {
				got = denied(socket)
				conn, err := net.Dial("unix", socket)
				if err == nil {
					conn.Close()
				}
				return err
			})
			if errors.Is(err, fs.ErrPermission) != tc.refused {
				t.Errorf("connect: %v", err)
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q in it", got, tc.want)
			}
		})
	}
}
