package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/tracetable"
)

type traceCutCmd struct {
	Traces []string `arg:"" name:"trace" help:"Files of one recording, or a directory of them."`
	From   string   `placeholder:"TIME" help:"First step to keep; times as in qos-agent replay."`
	To     string   `placeholder:"TIME" help:"Last step to keep."`
	Out    string   `short:"o" required:"" placeholder:"FILE" help:"File to write."`
}

func (c traceCutCmd) Run(e env) error {
	series, err := oneSeries(c.Traces)
	if err != nil {
		return err
	}
	start, err := startOf(series.Files[0])
	if err != nil {
		return err
	}
	from, err := parseTime("--from", c.From, start)
	if err != nil {
		return err
	}
	to, err := parseTime("--to", c.To, start)
	if err != nil {
		return err
	}
	var n uint64
	err = writeNew(c.Out, func(w io.Writer) error {
		n, err = replay.Cut(e.ctx, series, from, to, w)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: %d steps\n", c.Out, n)
	return nil
}

// oneSeries wants the files of one run.
func oneSeries(paths []string) (replay.Series, error) {
	files, err := trace.Files(paths...)
	if err != nil {
		return replay.Series{}, err
	}
	all, err := replay.Group(files)
	if err != nil {
		return replay.Series{}, err
	}
	if len(all) != 1 {
		var runs []string
		for _, s := range all {
			runs = append(runs, s.Run+" ("+s.Files[0]+")")
		}
		return replay.Series{}, fmt.Errorf("these are recordings of %d runs, name the files of one: %s", len(all), strings.Join(runs, ", "))
	}
	return all[0], nil
}

// writeNew lets fill write a file that must not exist yet, and removes it if that fails.
func writeNew(name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(f, 1<<20)
	err = fill(b)
	if err == nil {
		err = b.Flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

type traceExportCmd struct {
	Traces []string `arg:"" name:"trace" help:"Recordings, or directories of them."`
	CSV    bool     `name:"csv" xor:"format" required:"" help:"Write CSV with a header."`
	JSONL  bool     `name:"jsonl" xor:"format" required:"" help:"Write a JSON object a line."`
	Table  string   `enum:"containers,node,verdicts,notes,outcomes" default:"containers" help:"What to write: ${enum}. verdicts are made again by a replay."`
	Out    string   `short:"o" placeholder:"FILE" help:"File to write; default: stdout."`
}

func (c traceExportCmd) Run(e env) error {
	files, err := trace.Files(c.Traces...)
	if err != nil {
		return err
	}
	series, err := replay.Group(files)
	if err != nil {
		return err
	}
	fill := func(w io.Writer) error {
		write := tracetable.CSV
		if c.JSONL {
			write = tracetable.JSONL
		}
		return write(e.ctx, w, c.Table, series)
	}
	if c.Out != "" {
		return writeNew(c.Out, fill)
	}
	b := bufio.NewWriterSize(e.stdout, 1<<16)
	return errors.Join(fill(b), b.Flush())
}

type traceImportCmd struct {
	Format string `enum:"alibaba-2018,amtrace-2022" required:"" help:"What is read: ${enum}. docs/replay.md says what those traces lack."`
	Usage  string `required:"" placeholder:"FILE" help:"container_usage.csv (alibaba-2018), or the table of container counters (amtrace-2022)."`
	Node   string `placeholder:"FILE" help:"machine_usage.csv (alibaba-2018)."`
	Meta   string `placeholder:"FILE" help:"Table that says what each container is: container_meta.csv."`
	On     string `placeholder:"MACHINE" help:"The machine to take; default: the first in the file."`
	Out    string `short:"o" required:"" placeholder:"FILE" help:"File to write."`
}

func (c traceImportCmd) Run(e env) error {
	var sum tracetable.Imported
	err := writeNew(c.Out, func(w io.Writer) (err error) {
		sum, err = tracetable.Import(e.ctx, w, tracetable.ImportOptions{Format: c.Format, Usage: c.Usage, Node: c.Node, Meta: c.Meta, Machine: c.On})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: machine %s, %d containers, %d steps; %d rows were left out (%s)\n", c.Out, sum.Machine, sum.Containers, sum.Steps, sum.Bad, sum.BadWhy)
	return nil
}
