package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// Main reads the command line into cli and runs it: its Run method, or that of the subcommand, with a context that an interrupt ends. A bench
// that is interrupted clears up and ends with 130.
func Main(name string, cli any, options ...kong.Option) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	kctx := kong.Parse(cli, append(options, kong.BindTo(ctx, (*context.Context)(nil)))...)
	err := kctx.Run()
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, name+": interrupted; everything is cleaned up")
		os.Exit(130)
	}
	kctx.FatalIfErrorf(err)
}
