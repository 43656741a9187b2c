// Package wire is what the host and the init program of a test machine tell each other: a Config that lies in the machine's
// initial file system, and a stream of Records, one JSON document a line, that comes back over its second serial port. The first
// serial port is the kernel's console; keeping the two apart means that no kernel message can ever tear a test result.
package wire

import "time"

// Paths in the guest.
const (
	ConfigPath = "/config.json"
	RecordPort = "/dev/ttyS1"
)

// Layout is how the guest's init mounts the cgroup controllers.
type Layout string

const (
	Unified Layout = "unified" // all controllers in one v2 hierarchy at /sys/fs/cgroup
	Hybrid  Layout = "hybrid"  // each controller in a v1 hierarchy of its own, an empty v2 hierarchy at /sys/fs/cgroup/unified
	Legacy  Layout = "legacy"  // as hybrid, without the v2 hierarchy
)

// Config is what the guest is to do.
type Config struct {
	Layout Layout
	Jobs   []Job
}

// Job is one program to run in the guest.
type Job struct {
	Name    string
	Path    string // of the program in the guest
	Args    []string
	Env     []string // added to the guest's environment
	Dir     string   // working directory in the guest
	Timeout time.Duration
}

// Kind says what a Record is.
type Kind string

const (
	Hello  Kind = "hello"  // the guest is up; Features is set
	Beat   Kind = "beat"   // the guest is alive
	Start  Kind = "start"  // a job begins
	Output Kind = "output" // a job wrote Data
	End    Kind = "end"    // a job is over; Exit, Timeout and Left are set
	Done   Kind = "done"   // every job is over, the guest powers off
	Fatal  Kind = "fatal"  // init itself could not go on; Data says why
)

// Record is one message of the guest.
type Record struct {
	Kind     Kind            `json:"kind"`
	Job      int             `json:"job,omitempty"` // index into Config.Jobs
	Data     []byte          `json:"data,omitempty"`
	Exit     int             `json:"exit,omitempty"`    // exit code; 128 + signal when killed by one
	Timeout  bool            `json:"timeout,omitempty"` // killed because its time was over
	Left     []string        `json:"left,omitempty"`    // processes, groups and mounts that the job left behind
	Release  string          `json:"release,omitempty"` // of the guest's kernel
	Features map[string]bool `json:"features,omitempty"`
}
