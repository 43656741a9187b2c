package replay

import (
	"context"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/trace"
	"github.com/qos-agent/qos-agent/internal/trace/tracetest"
)

// tenMinutes records ten minutes of 150 containers.
func tenMinutes(b *testing.B, o tracetest.Options) (dir string, bytes uint64) {
	dir = b.TempDir()
	rec, err := trace.NewRecorder(trace.RecorderOptions{Dir: dir, MaxBytes: 1 << 30, Wait: true})
	if err != nil {
		b.Fatal(err)
	}
	o.Containers = 150
	d := &daemon{node: tracetest.New(o), rec: rec, brain: decide.New(), policy: enforcing(nil)}
	for i := range 6000 {
		d.step(d.node.Tick())
		if i%3 == 0 {
			if s := d.node.Event(); s != nil {
				d.step(s)
			}
		}
	}
	if err := rec.Close(); err != nil {
		b.Fatal(err)
	}
	return dir, rec.Stats().Bytes
}

// BenchmarkReplay is ten minutes of 150 containers at a tick each 100 ms.
func BenchmarkReplay(b *testing.B) {
	for name, o := range map[string]tracetest.Options{"ordinary": {}, "all busy": {Idle: -1}, "hardware": {Hardware: true}} {
		dir, bytes := tenMinutes(b, o)
		s := series(b, dir)
		b.Run(name+"/read", func(b *testing.B) {
			from := cpuTime(b)
			for b.Loop() {
				for _, f := range s.Files {
					r, err := trace.Open(f)
					if err != nil {
						b.Fatal(err)
					}
					for {
						if _, err := r.Next(); err == io.EOF {
							break
						} else if err != nil {
							b.Fatal(err)
						}
					}
					_ = r.Close()
				}
			}
			report(b, from, bytes)
		})
		for mode, opt := range map[string]Options{"decide": {}, "verify": {Verify: true}} {
			b.Run(name+"/"+mode, func(b *testing.B) {
				from := cpuTime(b)
				for b.Loop() {
					if _, err := Run(context.Background(), s, opt); err != nil {
						b.Fatal(err)
					}
				}
				report(b, from, bytes)
			})
		}
	}
}

// report goes by CPU time, of which other work on the machine takes less than of the clock's.
func report(b *testing.B, cpu time.Duration, bytes uint64) {
	each := (cpuTime(b) - cpu) / time.Duration(b.N)
	b.ReportMetric(float64(10*time.Minute)/float64(each), "x-real-time")
	b.ReportMetric(float64(each)/6000, "ns/tick")
	b.ReportMetric(float64(bytes)*6/(1<<20), "MiB/hour")
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
