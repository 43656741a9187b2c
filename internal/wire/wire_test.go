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
