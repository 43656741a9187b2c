// Package crash is for tests of programs that must lose nothing to kill -9: the test binary runs itself as the program, which is killed
// at every point of its life, and at random instants.
package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// envPoint is the point at which the victim kills itself; 0 for never, and then it does not end by itself.
const envPoint = "QOS_AGENT_TEST_CRASH_POINT"

// Main runs the tests, or, in a process that is to be killed, the program: hook is what it calls at each point of its life, round is
// called when it has come to the end of it, and may begin again.
func Main(m *testing.M, program func(hook func(point string), round func()) error) {
	text, victim := os.LookupEnv(envPoint)
	if !victim {
		os.Exit(m.Run())
	}
	at, err := strconv.Atoi(text)
	if err == nil {
		points := 0
		err = program(func(string) {
			if points++; points == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // a process may always kill itself
				select {}
			}
		}, func() {
			if at != 0 {
				fmt.Println("end of its life")
				os.Exit(0)
			}
		})
	}
	fmt.Println(err)
	os.Exit(1)
}

// Command is the program, to be killed at a point; 0: it does not end by itself.
func Command(point int, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(env, envPoint+"="+strconv.Itoa(point))...)
	return cmd
}

// Test is a series of crashes.
type Test struct {
	Env     []string           // of the program, "NAME=value"
	Step    int                // how many points to go on from one crash to the next
	Least   int                // how many crashes at points there must be
	Random  int                // how many crashes there are at random instants
	Within  time.Duration      // how long the program lives then at most
	Restore func(after string) // puts things right and fails the test if they are not; after says what has happened
}

// Run carries it out. After two crashes of three things are restored; else the next program takes over what was left.
func (c *Test) Run(t *testing.T) {
	t.Helper()
	killed := 0
	for point := 1; ; point += c.Step {
		out, err := Command(point, c.Env...).CombinedOutput()
		if err == nil {
			break
		}
		if !Killed(err) {
			t.Fatalf("victim at point %d: %v: %s", point, err, out)
		}
		killed++
		if point%3 != 0 {
			c.Restore(fmt.Sprintf("at point %d", point))
		}
	}
	c.Restore("and restored after all points")
	t.Logf("killed at each of %d points", killed)
	if killed < c.Least {
		t.Errorf("killed at %d points only", killed)
	}
	for i := range c.Random {
		cmd := Command(0, c.Env...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := rand.N(c.Within)
		time.Sleep(after)
		_ = cmd.Process.Kill() // it does not end by itself; Wait tells
		if err := cmd.Wait(); !Killed(err) {
			t.Fatalf("victim: %v", err)
		}
		if i%3 != 0 {
			c.Restore("after " + after.Round(time.Millisecond).String())
		}
	}
	c.Restore("and restored in the end")
}

// Killed reports whether a command ended by SIGKILL.
func Killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}
