package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

const checkSlots = 16

// newCheck loads the programs of bpf/check.bpf.c.
func newCheck(t testing.TB) *checkObjects {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs")
	}
	spec, err := loadCheck()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps[checkMapQosBlame].MaxEntries = checkSlots
	spec.Maps[checkMapQosSums].MaxEntries = checkSlots
	if err := spec.Variables[checkVarQosSlots].Set(uint32(checkSlots)); err != nil {
		t.Fatal(err)
	}
	objs := new(checkObjects)
	if err := spec.LoadAndAssign(objs, nil); err != nil {
		if missing, ok := errors.AsType[*UnsupportedError](explain(err)); ok {
			t.Skipf("needs bpf: %v", missing)
		}
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := objs.Close(); err != nil {
			t.Error(err)
		}
	})
	return objs
}

type fatal interface {
	Helper()
	Fatal(...any)
}

// call runs a program of type syscall with ctx as its argument and result.
func call(t fatal, p *ebpf.Program, ctx any) {
	t.Helper()
	var in bytes.Buffer
	if err := binary.Write(&in, binary.NativeEndian, ctx); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, in.Len())
	ret, err := p.Run(&ebpf.RunOptions{Context: in.Bytes(), ContextOut: out})
	if err != nil || ret != 0 {
		t.Fatal("run:", ret, err)
	}
	if err := binary.Read(bytes.NewReader(out), binary.NativeEndian, ctx); err != nil {
		t.Fatal(err)
	}
}

func TestHistogramAgreesWithGo(t *testing.T) {
	objs := newCheck(t)
	var values []uint64
	for i := range histogram.Buckets {
		lo := histogram.Lower(i)
		values = append(values, lo, lo+1, max(lo, 1)-1, histogram.Upper(i)-1)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		values = append(values, rng.Uint64()>>rng.IntN(64))
	}
	for _, ns := range values {
		ctx := checkQosCheckHist{Ns: ns}
		call(t, objs.QosCheckHistIndex, &ctx)
		if want := histogram.Index(ns); int(ctx.Bucket) != want {
			t.Fatalf("%d ns is in bucket %d in C and %d in Go", ns, ctx.Bucket, want)
		}
	}
}

// run is one entry of the log as it should be.
type run struct {
	start, lost uint64
	slot        uint64
}

// span is [from, to).
type span struct{ from, to uint64 }

// charge is what qos_walk_log does, written for reading: [w.from, w.to) shared out to the runs, the last of which ends at now.
func charge(blame *[checkSlots]uint64, runs []run, w span, now, lost uint64) {
	covered := uint64(0)
	for i, r := range runs {
		end, endLost := now, lost
		if i+1 < len(runs) {
			end, endLost = runs[i+1].start, runs[i+1].lost
		}
		from, to := max(r.start, w.from), min(end, w.to)
		if from >= to {
			continue
		}
		covered += to - from
		taken := endLost - r.lost
		if to-from < end-r.start {
			taken = taken * (to - from) / (end - r.start)
		}
		taken = min(taken, to-from)
		blame[SlotIRQ] += taken
		blame[r.slot] += to - from - taken
	}
	blame[SlotUnknown] += w.to - w.from - covered
}

func TestAttributionAgreesWithModel(t *testing.T) {
	objs := newCheck(t)
	byTask := taskHasThrottled(t)
	walk := uint32(0)
	rapid.Check(t, func(t *rapid.T) {
		walk += 2
		fresh := checkQosCpu{Walk: walk} // the sums of the last walk are still there
		must(t, objs.QosCpus.Put(uint32(0), &fresh))
		for slot := range uint32(checkSlots) {
			must(t, objs.QosBlame.Put(slot, uint64(0)))
		}

		// A CPU's history, and what of it the log should hold.
		now, lost := uint64(1_000_000), uint64(5)
		var runs []run
		for range rapid.IntRange(0, 400).Draw(t, "runs") {
			ran := rapid.Uint64Range(1, 100_000).Draw(t, "ran")
			now += ran
			if rapid.IntRange(0, 4).Draw(t, "interrupted") == 0 {
				lost += rapid.Uint64Range(0, ran).Draw(t, "lost")
			}
			slot := uint64(rapid.SampledFrom([]int{int(SlotKernel), int(SlotSystem), int(SlotIdle), 8, 9, 10}).Draw(t, "slot"))
			call(t, objs.QosCheckRun, &checkQosCheckLog{Slot: slot, Now: now, Lost: lost})
			if len(runs) == 0 || runs[len(runs)-1].slot != slot {
				runs = append(runs, run{now, lost, slot})
			}
		}
		if keep := len(fresh.Runs); len(runs) > keep {
			runs = runs[len(runs)-keep:]
		}
		now += rapid.Uint64Range(0, 100_000).Draw(t, "last")
		wait := span{now - min(rapid.Uint64Range(0, 20_000_000).Draw(t, "wait"), now-1), now}

		// Times without quota, oldest first, of which the kernel side remembers the last ones.
		var k checkQosQuota
		var out []span
		at := wait.from - min(wait.from, 50_000)
		for range rapid.IntRange(0, 12).Draw(t, "throttlings") {
			from := at + rapid.Uint64Range(0, 2_000_000).Draw(t, "pause")
			to := from + rapid.Uint64Range(1, 2_000_000).Draw(t, "out of quota")
			if to > now {
				break
			}
			k.Past[k.N%uint32(len(k.Past))].From, k.Past[k.N%uint32(len(k.Past))].To = from, to
			k.N++
			out = append(out, span{from, to})
			at = to
		}
		out = out[max(0, len(out)-len(k.Past)):]
		must(t, objs.QosQuotas.Put(&checkQosQuotaKey{Group: 1}, &k))
		limbo := rapid.Bool().Draw(t, "limbo")

		var want [checkSlots]uint64
		left := wait.from
		for _, o := range out {
			from, to := max(o.from, wait.from), min(o.to, wait.to)
			if from >= to || byTask && (!limbo || o.from > wait.from) {
				continue
			}
			want[SlotQuota] += to - from
			charge(&want, runs, span{left, from}, now, lost)
			left = to
		}
		charge(&want, runs, span{left, wait.to}, now, lost)

		ctx := checkQosCheckWait{From: wait.from, To: wait.to, Now: now, Lost: lost, Quota: 1}
		if limbo {
			ctx.Limbo = 1
		}
		call(t, objs.QosCheckAttribute, &ctx)
		var have [checkSlots]uint64
		var sum, most uint64
		for slot := range have {
			must(t, objs.QosBlame.Lookup(uint32(slot), &have[slot]))
			sum += have[slot]
			most = max(most, have[slot])
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Fatalf("shares (want -, have +):\n%s", diff)
		}
		if sum != wait.to-wait.from {
			t.Fatalf("shares add up to %d of %d ns", sum, wait.to-wait.from)
		}
		if ctx.BestNs != most || have[ctx.Best] != most {
			t.Fatalf("the largest share is %d ns of slot %d, want %d ns", ctx.BestNs, ctx.Best, most)
		}
	})
}

// The run queue's clock is read now and then, by a counter that runs up to 500 ppm faster or slower than the other.
func TestLateIsWhatTheClockIsOld(t *testing.T) {
	objs := newCheck(t)
	rapid.Check(t, func(t *rapid.T) {
		must(t, objs.QosCpus.Put(uint32(0), &checkQosCpu{}))
		const window, drift = 100 * time.Millisecond, 100 * time.Microsecond
		rate := 1 + rapid.Float64Range(-500e-6, 500e-6).Draw(t, "rate")
		apart := rapid.Uint64().Draw(t, "apart")
		mono := uint64(time.Hour)
		late := func(old uint64) time.Duration {
			ctx := checkQosCheckClock{Mono: mono, Now: uint64(float64(mono-old)*rate) + apart}
			call(t, objs.QosCheckLate, &ctx)
			return time.Duration(ctx.Late)
		}
		late(0)
		fresh := mono
		for range rapid.IntRange(1, 300).Draw(t, "switches") {
			mono += rapid.Uint64Range(1, uint64(5*time.Millisecond)).Draw(t, "passes")
			old := rapid.SampledFrom([]uint64{0, 0, 1000, 300_000, uint64(15 * time.Millisecond)}).Draw(t, "old")
			have := late(old)
			if have > time.Duration(old)+drift {
				t.Fatalf("the clock is %v old, %v is seen", time.Duration(old), have)
			}
			if time.Duration(mono-fresh) < window && have < time.Duration(old)-drift {
				t.Fatalf("the clock is %v old, only %v is seen; it was new %v ago", time.Duration(old), have, time.Duration(mono-fresh))
			}
			if old == 0 {
				fresh = mono
			}
		}
		// One of them jumps: that may be taken for age for a moment, and not for longer.
		apart += rapid.Uint64().Draw(t, "jump")
		for range 3 * window / time.Millisecond {
			mono += uint64(time.Millisecond)
			late(0)
		}
		if have := late(0); have > drift {
			t.Fatalf("after a jump %v are seen of a clock that is new", have)
		}
	})
}

func must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// taskHasThrottled is QOS_QUOTA_BY_TASK.
func taskHasThrottled(t *testing.T) bool {
	t.Helper()
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var task *btf.Struct
	if err := spec.TypeByName("task_struct", &task); err != nil {
		t.Fatal(err)
	}
	for _, m := range task.Members {
		if m.Name == "throttled" {
			return true
		}
	}
	return false
}
