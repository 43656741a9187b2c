// Command parquet writes recordings of qos-agent as Parquet. It is a module of its own: the library that it needs is larger than the agent,
// and must not be part of it.
//
//	cd tools/parquet && go run . --table containers -o containers.parquet /var/lib/qos-agent/trace
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/alecthomas/kong"
	"github.com/parquet-go/parquet-go"

	"github.com/qos-agent/qos-agent/internal/replay"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/tracetable"
)

type cli struct {
	Traces []string `arg:"" name:"trace" help:"Recordings, or directories of them."`
	Table  string   `enum:"containers,node,verdicts,notes,outcomes" default:"containers" help:"What to write: ${enum}."`
	Out    string   `short:"o" required:"" placeholder:"FILE" help:"File to write."`
}

func main() {
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	k := kong.Parse(&c, kong.BindTo(ctx, (*context.Context)(nil)))
	k.FatalIfErrorf(k.Run())
}

// Run writes the table.
func (c *cli) Run(ctx context.Context) error {
	files, err := trace.Files(c.Traces...)
	if err != nil {
		return err
	}
	all, err := replay.Group(files)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(c.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	err = write(ctx, f, c.Table, all)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(c.Out))
	}
	return nil
}

// rowsAtOnce is how many rows are handed to the writer together.
const rowsAtOnce = 1024

func write(ctx context.Context, f *os.File, table string, all []replay.Series) error {
	columns := tracetable.Columns(table)
	group := parquet.Group{}
	for _, c := range columns {
		group[c.Name] = node(c.Kind)
	}
	schema := parquet.NewSchema(table, group)
	// A group's columns are in the order of their names.
	index := make([]int, len(columns))
	for i, c := range columns {
		leaf, ok := schema.Lookup(c.Name)
		if !ok {
			return fmt.Errorf("column %s: not in the schema", c.Name)
		}
		index[i] = leaf.ColumnIndex
	}
	w := parquet.NewWriter(f, schema, parquet.Compression(&parquet.Zstd))
	rows := make([]parquet.Row, 0, rowsAtOnce)
	flush := func() error {
		_, err := w.WriteRows(rows)
		rows = rows[:0]
		return err
	}
	err := tracetable.Each(ctx, table, all, func(r tracetable.Row) error {
		row := make(parquet.Row, len(r))
		for i, v := range r {
			row[index[i]] = value(v, index[i])
		}
		if rows = append(rows, row); len(rows) == rowsAtOnce {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(flush(), w.Close())
}

func node(k tracetable.Kind) parquet.Node {
	var n parquet.Node
	switch k {
	case tracetable.Int:
		n = parquet.Int(64)
	case tracetable.Float:
		n = parquet.Leaf(parquet.DoubleType)
	case tracetable.Bool:
		n = parquet.Leaf(parquet.BooleanType)
	case tracetable.Time:
		n = parquet.Timestamp(parquet.Nanosecond)
	default:
		n = parquet.Encoded(parquet.String(), &parquet.RLEDictionary)
	}
	return parquet.Optional(n)
}

func value(v any, column int) parquet.Value {
	switch v := v.(type) {
	case nil:
		return parquet.NullValue().Level(0, 0, column)
	case time.Time:
		return parquet.Int64Value(v.UnixNano()).Level(0, 1, column)
	default:
		return parquet.ValueOf(v).Level(0, 1, column)
	}
}
