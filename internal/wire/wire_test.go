package wire

import (
	"bytes"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type inner struct {
	A int8
	B uint16
	C bool
	D float64
}

type knot struct {
	Name string
	Next *knot
	Peer *inner
}

type all struct {
	I    int64
	u    uint32
	S    string
	F    [3]inner
	L    []inner
	M    map[string][]uint8
	K    map[[2]int16]*inner
	P, Q *inner
	Knot *knot
	any  any
	Nil  []string
	None []string
}

var options = cmp.AllowUnexported(all{})

func roundTrip(t testing.TB, v *all) *all {
	t.Helper()
	plan := MustCompile[all]()
	data := plan.Append(nil, unsafe.Pointer(v))
	d, err := plan.Bind(plan.Schema())
	if err != nil {
		t.Fatal(err)
	}
	out := new(all)
	src := NewSource(data, 1<<20)
	if err := d.Decode(&src, unsafe.Pointer(out)); err != nil {
		t.Fatal(err)
	}
	if src.Left() != 0 {
		t.Fatalf("%d bytes are left", src.Left())
	}
	if again := plan.Append(nil, unsafe.Pointer(out)); !bytes.Equal(data, again) {
		t.Fatal("the same value has other bytes")
	}
	if v.Knot != nil {
		return out // it bites its own tail
	}
	if !plan.Equal(unsafe.Pointer(v), unsafe.Pointer(out)) {
		t.Error("not equal")
	}
	if plan.Hash(1, unsafe.Pointer(v)) != plan.Hash(1, unsafe.Pointer(out)) {
		t.Error("other hashes")
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	shared := &inner{A: -128, B: 65535, C: true, D: math.Inf(-1)}
	ring := &knot{Name: "ring", Peer: shared}
	ring.Next = &knot{Name: "other", Next: ring}
	v := &all{
		I: math.MinInt64, u: math.MaxUint32, S: "text", L: []inner{{A: 1}, {}}, M: map[string][]uint8{"b": {1}, "a": nil, "c": {}},
		K: map[[2]int16]*inner{{1, -2}: shared, {0, 0}: nil}, P: shared, Q: shared, Knot: ring, None: []string{},
	}
	v.F[1].D = 0.1
	out := roundTrip(t, v)
	if diff := cmp.Diff(v.M, out.M); diff != "" || out.Nil != nil || out.None == nil || out.u != v.u {
		t.Errorf("%+v: %s", out, diff)
	}
	if out.P != out.Q || out.P != out.K[[2]int16{1, -2}] || out.P != out.Knot.Peer || out.Knot.Next.Next != out.Knot {
		t.Error("pointers that were the same are not the same any more")
	}
	roundTrip(t, new(all))
}

func TestRoundTripOfAnything(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		v := &all{
			I: rapid.Int64().Draw(r, "i"), u: rapid.Uint32().Draw(r, "u"), S: rapid.String().Draw(r, "s"),
			M: rapid.MapOf(rapid.String(), rapid.SliceOf(rapid.Uint8())).Draw(r, "m"), Nil: rapid.SliceOf(rapid.String()).Draw(r, "l"),
		}
		for range rapid.IntRange(0, 5).Draw(r, "n") {
			v.L = append(v.L, inner{rapid.Int8().Draw(r, "a"), rapid.Uint16().Draw(r, "b"), rapid.Bool().Draw(r, "c"), rapid.Float64().Draw(r, "d")})
		}
		if diff := cmp.Diff(v, roundTrip(t, v), options); diff != "" {
			r.Fatal(diff)
		}
	})
}

func TestCopySharesNothing(t *testing.T) {
	plan := MustCompile[all]()
	v := &all{L: []inner{{A: 1}}, P: &inner{B: 2}, Nil: []string{"x"}}
	c := &all{L: make([]inner, 0, 8)}
	plan.Copy(unsafe.Pointer(c), unsafe.Pointer(v))
	h := plan.Hash(0, unsafe.Pointer(c))
	v.L[0].A, v.P.B, v.Nil[0] = 9, 9, "y"
	if c.L[0].A != 1 || c.P.B != 2 || c.Nil[0] != "x" || cap(c.L) != 8 {
		t.Errorf("%+v", c)
	}
	if plan.Equal(unsafe.Pointer(c), unsafe.Pointer(v)) || plan.Hash(0, unsafe.Pointer(v)) == h {
		t.Error("what differs is equal")
	}
}

type older struct {
	Gone []string
	S    string
	L    []struct {
		B uint16
		X map[string]int
	}
}

func TestAnotherVersionReadsByName(t *testing.T) {
	was := &older{Gone: []string{"a", "b"}, S: "text"}
	was.L = append(was.L, struct {
		B uint16
		X map[string]int
	}{7, map[string]int{"q": 1}})
	from, to := MustCompile[older](), MustCompile[all]()
	d, err := to.Bind(from.Schema())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{".Gone", ".L[].X"}; !slices.Equal(d.Dropped, want) {
		t.Errorf("dropped %v, want %v", d.Dropped, want)
	}
	if !slices.Contains(d.Missing, ".L[].A") || !slices.Contains(d.Missing, ".I") || slices.Contains(d.Missing, ".S") {
		t.Errorf("missing %v", d.Missing)
	}
	out := new(all)
	src := NewSource(from.Append(nil, unsafe.Pointer(was)), 1<<20)
	if err := d.Decode(&src, unsafe.Pointer(out)); err != nil || src.Left() != 0 {
		t.Fatal(err, src.Left())
	}
	if out.S != "text" || len(out.L) != 1 || out.L[0].B != 7 {
		t.Errorf("%+v", out)
	}
	if _, err := to.Bind("{S:i}"); err == nil {
		t.Error("a string that was a number: no error")
	}
}

func TestDecodeIsBounded(t *testing.T) {
	plan := MustCompile[all]()
	d, err := plan.Bind(plan.Schema())
	if err != nil {
		t.Fatal(err)
	}
	v := &all{L: make([]inner, 1000)}
	data := plan.Append(nil, unsafe.Pointer(v))
	src := NewSource(data, 100)
	if err := d.Decode(&src, unsafe.Pointer(new(all))); err == nil {
		t.Error("more memory than the budget")
	}
	for n := range len(data) {
		src := NewSource(data[:n], 1<<20)
		if err := d.Decode(&src, unsafe.Pointer(new(all))); err == nil {
			t.Fatalf("cut at %d: no error", n)
		}
	}
}

func TestUnsupportedTypes(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an interface that is not nil was encoded")
		}
	}()
	MustCompile[all]().Append(nil, unsafe.Pointer(&all{any: 1}))
}

// TestChanges lets lists of things that hold lists themselves change step by step, and reads them back from what has changed.
func TestChanges(t *testing.T) {
	type thing struct {
		Name string
		L    []int
		P    *inner
	}
	plan := MustCompile[[]thing]()
	d := plan.Decoder()
	rapid.Check(t, func(r *rapid.T) {
		var now, before, got []thing
		for n := range rapid.IntRange(1, 12).Draw(r, "steps") {
			switch at := rapid.IntRange(0, len(now)).Draw(r, "at"); rapid.IntRange(0, 4).Draw(r, "what") {
			case 0:
				now = slices.Insert(now, at, thing{Name: rapid.String().Draw(r, "name"), L: []int{n}, P: &inner{A: int8(n)}})
			case 1:
				now = slices.Delete(now, min(at, max(len(now)-1, 0)), len(now))
			case 2:
				now = slices.Delete(now, 0, at)
			case 3:
				if at < len(now) {
					now[at].L = append(now[at].L, n)
				}
			default:
				now = nil
			}
			var was unsafe.Pointer
			if n > 0 && rapid.Bool().Draw(r, "not anew") {
				was = unsafe.Pointer(&before)
			}
			src := NewSource(plan.AppendChange(nil, unsafe.Pointer(&now), was), 1<<20)
			if err := d.DecodeChange(&src, unsafe.Pointer(&got)); err != nil || src.Left() > 0 {
				r.Fatalf("%v, %d bytes left", err, src.Left())
			}
			if diff := cmp.Diff(now, got); diff != "" {
				r.Fatalf("step %d (-written +read):\n%s", n, diff)
			}
			plan.Copy(unsafe.Pointer(&before), unsafe.Pointer(&now))
		}
	})
}

func TestChangesThatCannotBe(t *testing.T) {
	plan := MustCompile[[]uint64]()
	for name, data := range map[string][]byte{
		"more than there were":  {6, 3, 0, 1, 1},
		"more than all":         {3, 2, 1},
		"more than there is":    {0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 1},
		"nothing behind it":     {3},
		"in all more than half": {5, 2, 2},
	} {
		v := []uint64{1, 2}
		src := NewSource(data, 1<<10)
		if err := plan.Decoder().DecodeChange(&src, unsafe.Pointer(&v)); err == nil {
			t.Errorf("%s: no error, %v", name, v)
		}
	}
}

// TestDecoderIsThatOfItsSchema compares the two ways to come by a decoder.
func TestDecoderIsThatOfItsSchema(t *testing.T) {
	plan := MustCompile[all]()
	v := &all{S: "x", F: [3]inner{{A: 1}}, L: []inner{{D: 2}}, M: map[string][]uint8{"a": {1}}, P: &inner{C: true}, Knot: &knot{Name: "k", Next: &knot{}}}
	v.Knot.Next.Next = v.Knot
	data := plan.Append(nil, unsafe.Pointer(v))
	out := new(all)
	src := NewSource(data, 1<<20)
	if err := plan.Decoder().Decode(&src, unsafe.Pointer(out)); err != nil {
		t.Fatal(err)
	}
	if again := plan.Append(nil, unsafe.Pointer(out)); !bytes.Equal(data, again) {
		t.Error("what was read has other bytes")
	}
}

// TestWhatIsLeftOut: a field that can be worked out again is neither written nor compared.
func TestWhatIsLeftOut(t *testing.T) {
	type known struct {
		A     int
		Cache *int `wire:"-"`
		B     int
	}
	plan := MustCompile[known]()
	n := 3
	v, w := known{A: 1, Cache: &n, B: 2}, known{A: 1, B: 2}
	if plan.Schema() != "{A:i,B:i}" {
		t.Error(plan.Schema())
	}
	if !plan.Equal(unsafe.Pointer(&v), unsafe.Pointer(&w)) || plan.Hash(0, unsafe.Pointer(&v)) != plan.Hash(0, unsafe.Pointer(&w)) {
		t.Error("what is left out makes a difference")
	}
	list := MustCompile[[]known]()
	var to []known
	list.Copy(unsafe.Pointer(&to), unsafe.Pointer(&[]known{v}))
	if to[0].A != 1 || to[0].B != 2 || to[0].Cache != nil {
		t.Errorf("a copy is %+v", to[0])
	}
}
