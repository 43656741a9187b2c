// Mkimage writes the agent's container image as an OCI archive, without a container engine. See package image.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/deploy/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	source := flag.String("source", "..", "the agent's `module`")
	out := flag.String("out", "../dist/qos-agent.tar", "the archive to write; bills of materials are written beside it")
	version := flag.String("version", "dev", "what `qos-agent version` shows")
	name := flag.String("name", "qos-agent:dev", "of the image, with tag")
	platforms := flag.String("platforms", "amd64,arm64", "architectures, comma-separated")
	flag.Parse()
	created := time.Unix(0, 0).UTC()
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" { // reproducible-builds.org/specs/source-date-epoch
		s, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", text)
		}
		created = time.Unix(s, 0).UTC()
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	err := image.Write(ctx, *out, image.Options{
		Source: *source, Version: *version, Name: *name, Platforms: strings.Split(*platforms, ","), Created: created,
	})
	if err == nil {
		fmt.Printf("%s: %s for %s\n", *out, *name, *platforms)
	}
	return err
}
