package trace

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/qos-agent/qos-agent/internal/wire"
)

// Numbers of all sizes, signs and scales come back, in the order in which they were written.
func TestNumbers(t *testing.T) {
	number := rapid.Custom(func(t *rapid.T) uint64 {
		return rapid.Uint64().Draw(t, "v") >> rapid.IntRange(0, 63).Draw(t, "shift") * rapid.SampledFrom([]uint64{1, 1000, 4096, 1 << 63}).Draw(t, "scale")
	})
	rapid.Check(t, func(t *rapid.T) {
		values := append(rapid.SliceOf(number).Draw(t, "values"), 0, 1, math.MaxUint64, 1<<63, 1000, 4096)
		var w streams
		for i, v := range values {
			if i%2 == 0 {
				w.number(streamStepSize, v)
			} else {
				w.signed(streamValueSize, int64(v))
			}
		}
		w.end()
		var r source
		r.open(&w.b)
		for i, v := range values {
			got := uint64(0)
			if i%2 == 0 {
				got = r.number(streamStepSize)
			} else {
				got = uint64(r.signed(streamValueSize))
			}
			if got != v {
				t.Fatalf("value %d of %x: got %x", i, values, got)
			}
		}
		if r.err() != nil || r.left() != 0 {
			t.Fatalf("error %v, %d bytes left", r.err(), r.left())
		}
		if r.raw(63); r.err() == nil {
			t.Error("more bits than there are: no error")
		}
	})
}

// Every stream comes back, whichever way it is compressed.
func TestPacking(t *testing.T) {
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	defer u.zstd.Close()
	var memory []byte
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "pattern")
		b := slices.Concat(slices.Repeat(pattern, rapid.IntRange(1, 30).Draw(t, "times")), rapid.SliceOf(rapid.ByteRange(0, 20)).Draw(t, "more"))
		index := rapid.IntRange(0, numStreams-1).Draw(t, "stream")
		src := wire.NewSource(p.stream(nil, b, index), 0)
		got, err := u.stream(memory, &src, index)
		memory = got
		if err != nil || !slices.Equal(got, b) || src.Left() != 0 {
			t.Fatalf("%d bytes in %s: error %v, %d bytes, %d left", len(b), StreamName(index), err, len(got), src.Left())
		}
	})
}
