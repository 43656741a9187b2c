package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/pkg/histogram"
)

const checkSlots = 32

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
	digest      bool // whether digests were wanted when it began
}

// span is [from, to).
type span struct{ from, to uint64 }

// charge is what qos_walk_log does, written for reading: [w.from, w.to) shared out to the runs, the last of which ends at now. runs are all
// that there ever were, whatever the log still has of them.
func charge(blame *[checkSlots]uint64, runs []run, w span, now, lost uint64) {
	covered := uint64(0)
	endOf := func(i int) (end, endLost uint64) {
		if i+1 < len(runs) {
			return runs[i+1].start, runs[i+1].lost
		}
		return now, lost
	}
	// The log ends where a digest could begin.
	first := max(0, (len(runs)-int(logEntries)+digestRuns-1)/digestRuns*digestRuns)
	for i := first; i < len(runs); i++ {
		r := runs[i]
		end, endLost := endOf(i)
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
	for g := first/digestRuns - 1; g >= max(0, first/digestRuns-int(digests)) && runs[g*digestRuns+int(logEntries)].digest; g-- {
		var order []uint64
		ns := map[uint64]uint64{}
		taken := uint64(0)
		for i := g * digestRuns; i < (g+1)*digestRuns; i++ {
			end, endLost := endOf(i)
			gone := min(endLost-runs[i].lost, end-runs[i].start)
			taken += gone
			if slot := runs[i].slot; slices.Contains(order, slot) || len(order) < digestParts {
				if !slices.Contains(order, slot) {
					order = append(order, slot)
				}
				ns[slot] += end - runs[i].start - gone
			}
		}
		start := runs[g*digestRuns].start
		end, _ := endOf((g+1)*digestRuns - 1)
		from, to := max(start, w.from), min(end, w.to)
		if from >= to {
			continue
		}
		covered += to - from
		rest := to - from
		share, _ := bits.Div64(rest>>32, rest<<32, end-start) // in 2^32ths
		take := func(slot, ns uint64) {
			high, low := bits.Mul64(ns, share)
			ns = high<<32 | low>>32
			blame[slot] += ns
			rest -= ns
		}
		take(uint64(SlotIRQ), taken)
		for _, slot := range order {
			take(slot, ns[slot])
		}
		blame[SlotUnknown] += rest
	}
	blame[SlotUnknown] += w.to - w.from - covered
}

// history is what ran on a CPU, until now, and a wait that ends now.
type history struct {
	runs      []run
	now, lost uint64
	wait      span
}

// draw has CPU 0 write its log.
func draw(t *rapid.T, objs *checkObjects) history {
	now, lost := uint64(1_000_000), uint64(5)
	var runs []run
	write := func(ran, gone, slot uint64, digest bool) {
		now += ran
		lost += gone
		ctx := checkQosCheckLog{Slot: slot, Now: now, Lost: lost}
		if digest {
			ctx.DigestUntil = now + 1
		}
		call(t, objs.QosCheckRun, &ctx)
		if len(runs) == 0 || runs[len(runs)-1].slot != slot {
			runs = append(runs, run{now, lost, slot, digest})
		}
	}
	// Long ago, which would take long to draw run by run.
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	many := rapid.IntRange(1, checkSlots-int(FirstSlot)).Draw(t, "containers")
	long := rapid.SampledFrom([]int{0, 300, 2000, 5000}).Draw(t, "runs long ago")
	seldom := rapid.SampledFrom([]uint64{0, 1000, 30}).Draw(t, "no digest one time in")
	for range long + rapid.IntRange(0, 200).Draw(t, "and some") {
		ran := 1 + rng.Uint64N(100_000)
		digest := seldom == 0 || rng.Uint64N(seldom) > 0
		write(ran, rng.Uint64N(ran)*rng.Uint64N(2), uint64(FirstSlot)+rng.Uint64N(uint64(many)), digest)
	}
	for range rapid.IntRange(0, 400).Draw(t, "runs") {
		ran, gone := rapid.Uint64Range(1, 100_000).Draw(t, "ran"), uint64(0)
		if rapid.IntRange(0, 4).Draw(t, "interrupted") == 0 {
			gone = rapid.Uint64Range(0, ran).Draw(t, "lost")
		}
		write(ran, gone, uint64(rapid.SampledFrom([]int{int(SlotKernel), int(SlotSystem), int(SlotIdle), 8, 9, 10}).Draw(t, "slot")), true)
	}
	now += rapid.Uint64Range(0, 100_000).Draw(t, "last")
	longest := rapid.SampledFrom([]uint64{20_000_000, 400_000_000}).Draw(t, "longest")
	wait := span{now - min(rapid.Uint64Range(0, longest).Draw(t, "wait"), now-1), now}
	return history{runs, now, lost, wait}
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

		h := draw(t, objs)
		runs, now, lost, wait := h.runs, h.now, h.lost, h.wait

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

// TestLookAgreesWithModel: the same of a wait that goes on, which is read from outside.
func TestLookAgreesWithModel(t *testing.T) {
	objs := newCheck(t)
	rapid.Check(t, func(t *rapid.T) {
		must(t, objs.QosCpus.Put(uint32(0), &checkQosCpu{}))
		h := draw(t, objs)
		var cpu checkQosCpu
		must(t, objs.QosCpus.Lookup(uint32(0), &cpu))

		var want, have [checkSlots]uint64
		charge(&want, h.runs, h.wait, h.now, h.lost)
		sum := uint64(0)
		for _, p := range attribute((*runqueueQosCpu)(unsafe.Pointer(&cpu)), h.wait.from, h.wait.to, h.lost, nil) {
			have[p.Slot] = p.NS
			sum += p.NS
		}
		for slot := range want {
			if diff := int64(have[slot] - want[slot]); diff < -1000 || diff > 1000 { // one reckons in integers, the other in fractions
				t.Errorf("slot %d has %d ns, want %d", slot, have[slot], want[slot])
			}
		}
		if sum != h.wait.to-h.wait.from {
			t.Errorf("shares add up to %d of %d ns", sum, h.wait.to-h.wait.from)
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
