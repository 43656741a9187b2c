package wire

import (
	"encoding/binary"
	"errors"
	"reflect"
	"unsafe"
)

// AppendChange appends the value at p as what has changed since the value at before, which the reader still has; nil: it has none. Of a
// slice only the elements between the first and the last that differ are written: of the plan of a node with hundreds of pods, mostly
// one or two. Everything else is written whole.
func (t *Type) AppendChange(dst []byte, p, before unsafe.Pointer) []byte {
	if t.kind != kSlice {
		return t.Append(dst, p)
	}
	var was header
	if before != nil {
		was = *(*header)(before)
	}
	h := (*header)(p)
	if h.data == nil {
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(h.len)+1)
	if h.len == 0 {
		return dst
	}
	least := min(h.len, was.len)
	head := 0
	for head < least && t.elem.Equal(t.elem.element(h, head), t.elem.element(&was, head)) {
		head++
	}
	tail := 0
	for tail < least-head && t.elem.Equal(t.elem.element(h, h.len-1-tail), t.elem.element(&was, was.len-1-tail)) {
		tail++
	}
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(head)), uint64(tail))
	var e encoder
	for i := head; i < h.len-tail; i++ {
		dst = e.append(dst, t.elem, t.elem.element(h, i))
	}
	return dst
}

// element is the address of an element of type t.
func (t *Type) element(h *header, i int) unsafe.Pointer {
	return unsafe.Add(h.data, uintptr(i)*t.size)
}

// DecodeChange reads what AppendChange has written into the value at p, which is the one before.
func (d *Decoder) DecodeChange(s *Source, p unsafe.Pointer) error {
	if d.kind != kSlice {
		return d.Decode(s, p)
	}
	r := reader{Source: s}
	r.change(d, p)
	return s.err
}

var errKept = errors.New("more elements are said to be as before than there were")

func (r *reader) change(d *Decoder, p unsafe.Pointer) {
	count := r.Uvarint()
	if count <= 1 || r.err != nil { // nil, or empty
		if d.t != nil && r.err == nil {
			d.clear(p, count == 0)
		}
		return
	}
	n, head, tail := count-1, r.Uvarint(), r.Uvarint()
	if head > n || tail > n-head {
		r.Fail(errKept)
		return
	}
	fresh := n - head - tail
	if fresh > uint64(r.Left()/max(d.elem.least, 1)) {
		r.Fail(ErrShort)
		return
	}
	if d.t == nil {
		for range fresh {
			r.decode(d.elem, nil)
		}
		return
	}
	h := (*header)(p)
	if head+tail > uint64(h.len) {
		r.Fail(errKept)
		return
	}
	if int(n) != h.len && !r.resize(d, p, int(n), int(head), int(tail)) {
		return
	}
	for i := int(head); i < int(head+fresh) && r.err == nil; i++ {
		r.decode(d.elem, d.at(h.data, i))
	}
}

// clear makes the slice at p nil or empty.
func (d *Decoder) clear(p unsafe.Pointer, isNil bool) {
	v := reflect.NewAt(d.t.rtype, p).Elem()
	switch {
	case isNil:
		v.SetZero()
	case v.IsNil():
		v.Set(reflect.MakeSlice(d.t.rtype, 0, 0))
	default:
		v.SetLen(0)
	}
}

// resize gives the slice at p n elements, of which the first and the last are as they were.
func (r *reader) resize(d *Decoder, p unsafe.Pointer, n, head, tail int) bool {
	v := reflect.NewAt(d.t.rtype, p).Elem()
	was := v.Len()
	if n > v.Cap() {
		if !r.take(uintptr(n) * d.t.elem.size) {
			return false
		}
		grown := reflect.MakeSlice(d.t.rtype, was, n+n/4)
		reflect.Copy(grown, v)
		v.Set(grown)
	}
	v.SetLen(max(n, was))
	reflect.Copy(v.Slice(n-tail, n), v.Slice(was-tail, was))
	v.SetLen(n)
	v.Slice(head, n-tail).Clear() // what they point to may belong to the ones that were moved
	return true
}
