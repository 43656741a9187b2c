package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"reflect"
	"slices"
	"unsafe"
)

// Append appends the value at p to dst.
func (t *Type) Append(dst []byte, p unsafe.Pointer) []byte {
	var e encoder
	return e.append(dst, t, p)
}

// encoder knows the pointers that were met so far.
type encoder struct {
	seen map[seen]uint64
}

type seen struct {
	p unsafe.Pointer
	t *Type // a struct and its first field have the same address
}

func (e *encoder) append(dst []byte, t *Type, p unsafe.Pointer) []byte {
	switch t.kind {
	case kBool, kUint:
		return binary.AppendUvarint(dst, t.load(p))
	case kInt:
		return binary.AppendUvarint(dst, Zigzag(int64(t.load(p))))
	case kFloat:
		return binary.LittleEndian.AppendUint64(dst, math.Float64bits(*(*float64)(p)))
	case kString:
		s := *(*string)(p)
		return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
	case kStruct:
		for i := range t.fields {
			f := &t.fields[i]
			dst = e.append(dst, f.Type, unsafe.Add(p, f.Offset))
		}
		return dst
	case kArray:
		if t.elem.kind == kUint && t.elem.size == 4 { // histograms: most of a checkpoint
			for _, v := range unsafe.Slice((*uint32)(p), t.n) {
				if v < 0x80 {
					dst = append(dst, byte(v))
				} else {
					dst = binary.AppendUvarint(dst, uint64(v))
				}
			}
			return dst
		}
		for i := range t.n {
			dst = e.append(dst, t.elem, unsafe.Add(p, uintptr(i)*t.elem.size))
		}
		return dst
	case kSlice:
		h := (*header)(p)
		if h.data == nil {
			return append(dst, 0)
		}
		dst = binary.AppendUvarint(dst, uint64(h.len)+1)
		for i := range h.len {
			dst = e.append(dst, t.elem, unsafe.Add(h.data, uintptr(i)*t.elem.size))
		}
		return dst
	case kPtr:
		return e.pointer(dst, t, *(*unsafe.Pointer)(p))
	case kMap:
		return e.dict(dst, t, p)
	default: // kNil
		if !reflect.NewAt(t.rtype, p).Elem().IsNil() {
			panic("wire: a " + t.rtype.String() + " that is not nil cannot be encoded")
		}
		return append(dst, 0)
	}
}

// pointer writes 0 for nil, 1 and the value for a new one, and 2 and up for one that was met before.
func (e *encoder) pointer(dst []byte, t *Type, p unsafe.Pointer) []byte {
	if p == nil {
		return append(dst, 0)
	}
	if e.seen == nil {
		e.seen = make(map[seen]uint64)
	}
	if id, ok := e.seen[seen{p, t.elem}]; ok {
		return binary.AppendUvarint(dst, id+2)
	}
	e.seen[seen{p, t.elem}] = uint64(len(e.seen))
	return e.append(append(dst, 1), t.elem, p)
}

// dict writes a map in the order of its encoded keys, so that equal maps are equal bytes. Keys hold no pointers.
func (e *encoder) dict(dst []byte, t *Type, p unsafe.Pointer) []byte {
	m := reflect.NewAt(t.rtype, p).Elem()
	if m.IsNil() {
		return append(dst, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(m.Len())+1)
	if m.Len() == 0 {
		return dst
	}
	type entry struct {
		from, to int // of the encoded key
		value    int
	}
	entries := make([]entry, 0, m.Len())
	values := reflect.MakeSlice(reflect.SliceOf(t.elem.rtype), m.Len(), m.Len())
	k := reflect.New(t.key.rtype)
	var keys []byte
	for it := m.MapRange(); it.Next(); {
		k.Elem().SetIterKey(it)
		values.Index(len(entries)).SetIterValue(it)
		from := len(keys)
		keys = t.key.Append(keys, k.UnsafePointer())
		entries = append(entries, entry{from, len(keys), len(entries)})
	}
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(keys[a.from:a.to], keys[b.from:b.to]) })
	for _, en := range entries {
		dst = append(dst, keys[en.from:en.to]...)
		dst = e.append(dst, t.elem, unsafe.Add(values.UnsafePointer(), uintptr(en.value)*t.elem.size))
	}
	return dst
}

// Zigzag maps small numbers of either sign to small numbers.
func Zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

// Unzigzag is its inverse.
func Unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }
