// Command qos-agent is the node daemon that makes it safe to run offline work beside online services, and the tools that go
// with it. `qos-agent --help` lists them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // it did not work: the text on stderr says why
	exitUsage   = 2 // it was called wrongly
)

// version is set by the linker (see Makefile).
var version = "dev"

// cli is the command line. One file a subcommand.
type cli struct {
	Run      runCmd      `cmd:"" help:"Run the node daemon."`
	Top      topCmd      `cmd:"" help:"Show pods, who hurts them and what is held, live."`
	Explain  explainCmd  `cmd:"" help:"Say of a pod what it is, how it is, who hurts it, what was done and why, and what would help."`
	Events   eventsCmd   `cmd:"" help:"Print the decision log."`
	Policy   policyCmd   `cmd:"" help:"Check policies, or print the default one."`
	Doctor   doctorCmd   `cmd:"" help:"Probe what this node can do, by doing it."`
	Replay   replayCmd   `cmd:"" help:"Make the decisions of a recording again, as they were or by another policy."`
	Trace    traceCmd    `cmd:"" help:"Look into recordings, cut, export and import them."`
	Restore  restoreCmd  `cmd:"" help:"Put back everything that a killed daemon left changed."`
	Tune     tuneCmd     `cmd:"" help:"Search for a better policy on recordings."`
	Simulate simulateCmd `cmd:"" help:"Run scenarios against a model of a node, in milliseconds."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

func main() {
	stops := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		stops = append(stops, syscall.SIGHUP) // a terminal that is closed must not leave knobs behind
	}
	ctx, stop := signal.NotifyContext(context.Background(), stops...)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// env is what every subcommand gets: where to write, and when to stop.
type env struct {
	ctx    context.Context
	stdout io.Writer
	stderr io.Writer
}

// silentError carries an exit code for a command that has already said what there is to say.
type silentError int

func (e silentError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// newParser makes the parser of the command line.
func newParser(c *cli, stdout, stderr io.Writer, more ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append([]kong.Option{
		kong.Name("qos-agent"),
		kong.Description("Colocation QoS node daemon: sees who hurts whom, acts in milliseconds, undoes everything."),
		kong.Writers(stdout, stderr),
		kong.Vars{"run_dir": "/run/qos-agent", "top_sorts": topSorts()},
	}, more...)...)
}

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	// kong leaves through Exit for --help; a panic carries that out of its parser.
	type left struct{ code int }
	defer func() {
		if r := recover(); r != nil {
			l, ok := r.(left)
			if !ok {
				panic(r)
			}
			code = l.code
		}
	}()
	var c cli
	parser, err := newParser(&c, stdout, stderr, kong.Exit(func(code int) { panic(left{code}) }))
	if err != nil {
		fmt.Fprintf(stderr, "qos-agent: %v\n", err)
		return exitFailure
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "qos-agent: %v\n", err)
		return exitUsage
	}
	err = kctx.Run(env{ctx, stdout, stderr})
	var silent silentError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return int(silent)
	default:
		fmt.Fprintf(stderr, "qos-agent: %v\n", err)
		return exitFailure
	}
}
