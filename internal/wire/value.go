package wire

import (
	"math/bits"
	"reflect"
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// Equal reports whether the values at a and b are the same. Nil and empty slices and maps are the same.
func (t *Type) Equal(a, b unsafe.Pointer) bool {
	switch t.kind {
	case kBool, kInt, kUint, kFloat:
		return t.load(a) == t.load(b)
	case kString:
		return *(*string)(a) == *(*string)(b)
	case kStruct:
		for i := range t.fields {
			f := &t.fields[i]
			if !f.Type.Equal(unsafe.Add(a, f.Offset), unsafe.Add(b, f.Offset)) {
				return false
			}
		}
		return true
	case kArray:
		return t.elem.equalAll(a, b, t.n)
	case kSlice:
		ha, hb := (*header)(a), (*header)(b)
		return ha.len == hb.len && (ha.data == hb.data || t.elem.equalAll(ha.data, hb.data, ha.len))
	case kPtr:
		pa, pb := *(*unsafe.Pointer)(a), *(*unsafe.Pointer)(b)
		return pa == pb || pa != nil && pb != nil && t.elem.Equal(pa, pb)
	case kMap:
		return t.equalMaps(reflect.NewAt(t.rtype, a).Elem(), reflect.NewAt(t.rtype, b).Elem())
	default:
		return true // both nil
	}
}

func (t *Type) equalAll(a, b unsafe.Pointer, n int) bool {
	if t.dense {
		size := uintptr(n) * t.size
		return string(unsafe.Slice((*byte)(a), size)) == string(unsafe.Slice((*byte)(b), size))
	}
	for i := range n {
		if !t.Equal(unsafe.Add(a, uintptr(i)*t.size), unsafe.Add(b, uintptr(i)*t.size)) {
			return false
		}
	}
	return true
}

func (t *Type) equalMaps(a, b reflect.Value) bool {
	if a.Len() != b.Len() {
		return false
	}
	va, vb := reflect.New(t.elem.rtype), reflect.New(t.elem.rtype)
	for it := a.MapRange(); it.Next(); {
		other := b.MapIndex(it.Key())
		if !other.IsValid() {
			return false
		}
		va.Elem().SetIterValue(it)
		vb.Elem().Set(other)
		if !t.elem.Equal(va.UnsafePointer(), vb.UnsafePointer()) {
			return false
		}
	}
	return true
}

// Copy makes the value at dst a copy of the one at src that shares no slice or pointer with it, using dst's slices again where they are
// large enough. Maps and strings are shared: nobody changes them.
func (t *Type) Copy(dst, src unsafe.Pointer) {
	switch t.kind {
	case kBool, kInt, kUint, kFloat:
		t.store(dst, t.load(src))
	case kString:
		*(*string)(dst) = *(*string)(src)
	case kStruct:
		for i := range t.fields {
			f := &t.fields[i]
			f.Type.Copy(unsafe.Add(dst, f.Offset), unsafe.Add(src, f.Offset))
		}
	case kArray:
		t.elem.copyAll(dst, src, t.n)
	case kSlice:
		d, s := (*header)(dst), (*header)(src)
		if s.len > d.cap {
			d.data, d.cap = reflect.MakeSlice(t.rtype, s.len, s.len+s.len/4).UnsafePointer(), s.len+s.len/4
		}
		d.len = s.len
		t.elem.copyAll(d.data, s.data, s.len)
	case kPtr:
		to, from := (*unsafe.Pointer)(dst), *(*unsafe.Pointer)(src)
		if from == nil {
			*to = nil
			return
		}
		if *to == nil {
			*to = reflect.New(t.elem.rtype).UnsafePointer()
		}
		t.elem.Copy(*to, from)
	default:
		reflect.NewAt(t.rtype, dst).Elem().Set(reflect.NewAt(t.rtype, src).Elem())
	}
}

func (t *Type) copyAll(dst, src unsafe.Pointer, n int) {
	if t.pure {
		size := uintptr(n) * t.size
		copy(unsafe.Slice((*byte)(dst), size), unsafe.Slice((*byte)(src), size))
		return
	}
	for i := range n {
		t.Copy(unsafe.Add(dst, uintptr(i)*t.size), unsafe.Add(src, uintptr(i)*t.size))
	}
}

// run is what Hash does at one place of a struct: either bytes that lie side by side, or something that needs its own plan.
type run struct {
	offset, size uintptr
	t            *Type // nil: plain bytes
}

// appendRuns takes a type apart into runs.
func (t *Type) appendRuns(runs []run, offset uintptr) []run {
	switch {
	case t.dense:
		if n := len(runs); n > 0 && runs[n-1].t == nil && runs[n-1].offset+runs[n-1].size == offset {
			runs[n-1].size += t.size
			return runs
		}
		return append(runs, run{offset, t.size, nil})
	case t.kind == kStruct:
		for i := range t.fields {
			runs = t.fields[i].Type.appendRuns(runs, offset+t.fields[i].Offset)
		}
		return runs
	case t.kind == kArray:
		for i := range t.n {
			runs = t.elem.appendRuns(runs, offset+uintptr(i)*t.elem.size)
		}
		return runs
	}
	return append(runs, run{offset, t.size, t})
}

// Hash mixes the value at p into h. Equal values have equal hashes on every little-endian machine with 64 bits, which is all that the
// agent is built for. It is meant to notice differences, not to withstand an attacker.
func (t *Type) Hash(h uint64, p unsafe.Pointer) uint64 {
	switch t.kind {
	case kBool, kInt, kUint, kFloat:
		return mix(h, t.load(p))
	case kString:
		s := *(*string)(p)
		return hashBytes(mix(h, uint64(len(s))), unsafe.Slice(unsafe.StringData(s), len(s)))
	case kStruct, kArray:
		for i := range t.runs {
			r := &t.runs[i]
			if r.t != nil {
				h = r.t.Hash(h, unsafe.Add(p, r.offset))
				continue
			}
			h = hashBytes(h, unsafe.Slice((*byte)(unsafe.Add(p, r.offset)), r.size))
		}
		return h
	case kSlice:
		s := (*header)(p)
		h = mix(h, uint64(s.len))
		if t.elem.dense {
			return hashBytes(h, unsafe.Slice((*byte)(s.data), uintptr(s.len)*t.elem.size))
		}
		for i := range s.len {
			h = t.elem.Hash(h, unsafe.Add(s.data, uintptr(i)*t.elem.size))
		}
		return h
	case kPtr:
		to := *(*unsafe.Pointer)(p)
		if to == nil {
			return mix(h, 0)
		}
		return t.elem.Hash(mix(h, 1), to)
	case kMap:
		return hashBytes(h, t.Append(nil, p))
	default:
		return h
	}
}

// hashBytes is for runs of any length; most are short.
func hashBytes(h uint64, b []byte) uint64 {
	if len(b) >= 32 {
		return mix(h, xxhash.Sum64(b))
	}
	for len(b) >= 8 {
		h = mix(h, *(*uint64)(unsafe.Pointer(unsafe.SliceData(b))))
		b = b[8:]
	}
	if len(b) > 0 {
		var last uint64
		for i, c := range b {
			last |= uint64(c) << (8 * i)
		}
		h = mix(h, last)
	}
	return h
}

// mix is the folded multiplication of wyhash (Wang Yi).
func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^0x9e3779b97f4a7c15, v^0xe7037ed1a0b428db)
	return hi ^ lo ^ bits.RotateLeft64(h, 23)
}
