// Package wire turns plain Go values into bytes and back by plans that are compiled once from their types.
//
// It is what recordings are made of: the vocabulary of the loop grows field by field, and a codec written by hand for each struct
// would fall behind it in silence. A plan covers every field, exported or not, or fails to compile. A reader brings the writer's
// schema (Type.Schema) along and binds it to its own type by field name: fields that the writer did not have stay zero, fields that
// the reader does not have are skipped.
//
// Supported are booleans, integers, floats, strings, structs, arrays, slices, maps and pointers. Pointers keep their identity:
// two that point to the same value still do after decoding. Interfaces, functions and channels are refused, except that a nil
// interface may be carried. A field with the tag `wire:"-"` is left out: it is for what follows from the other fields and is only kept
// so as not to be worked out again. Zero must mean that it is not known.
//
// Append and Decode take values that contain themselves by way of pointers; Equal, Copy and Hash do not.
//
// The functions take unsafe pointers because they walk values by offset; the caller vouches for the type.
package wire

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unsafe"
)

type kind uint8

const (
	kBool kind = iota
	kInt
	kUint
	kFloat
	kString
	kStruct
	kArray
	kSlice
	kMap
	kPtr
	kNil // an interface, function or channel: carried only while it is nil
)

// Type is the plan of a Go type.
type Type struct {
	rtype   reflect.Type
	kind    kind
	size    uintptr
	elem    *Type // of arrays, slices, pointers; values of maps
	key     *Type // of maps
	n       int   // of arrays
	fields  []Field
	partial bool  // some fields are left out
	pure    bool  // holds no pointer, string, slice or map
	dense   bool  // pure, and without padding: equal values are equal bytes
	least   int   // bytes of the shortest encoding
	runs    []run // of structs and arrays, for Hash
}

// Field is a field of a struct.
type Field struct {
	Name   string
	Offset uintptr
	Type   *Type
}

// Compile makes the plan of a type. Plans are safe for concurrent use.
func Compile(t reflect.Type) (*Type, error) {
	c := compiler{done: map[reflect.Type]*Type{}}
	out, err := c.compile(t)
	if err != nil {
		return nil, err
	}
	for _, ty := range c.order {
		ty.finish()
	}
	return out, nil
}

// MustCompile is Compile for types that are known to be supported. It panics otherwise.
func MustCompile[T any]() *Type {
	t, err := Compile(reflect.TypeFor[T]())
	if err != nil {
		panic(err)
	}
	return t
}

type compiler struct {
	done  map[reflect.Type]*Type
	order []*Type // inner types before outer ones, as far as they do not contain each other
}

func (c *compiler) compile(t reflect.Type) (*Type, error) {
	if out := c.done[t]; out != nil {
		return out, nil
	}
	out := &Type{rtype: t, size: t.Size()}
	c.done[t] = out
	var err error
	switch t.Kind() {
	case reflect.Bool:
		out.kind = kBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		out.kind = kInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		out.kind = kUint
	case reflect.Float64:
		out.kind = kFloat
	case reflect.String:
		out.kind = kString
	case reflect.Struct:
		out.kind = kStruct
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Tag.Get("wire") == "-" {
				out.partial = true
				continue
			}
			ft, err := c.compile(f.Type)
			if err != nil {
				return nil, fmt.Errorf("%s.%s: %w", t, f.Name, err)
			}
			out.fields = append(out.fields, Field{f.Name, f.Offset, ft})
		}
	case reflect.Array:
		out.kind, out.n = kArray, t.Len()
		out.elem, err = c.compile(t.Elem())
	case reflect.Slice:
		out.kind = kSlice
		out.elem, err = c.compile(t.Elem())
	case reflect.Pointer:
		out.kind = kPtr
		out.elem, err = c.compile(t.Elem())
	case reflect.Map:
		out.kind = kMap
		if out.key, err = c.compile(t.Key()); err == nil {
			out.elem, err = c.compile(t.Elem())
		}
	case reflect.Interface, reflect.Func, reflect.Chan:
		out.kind = kNil
	default:
		return nil, fmt.Errorf("%s: kind %s is not supported", t, t.Kind())
	}
	if err != nil {
		return nil, err
	}
	c.order = append(c.order, out)
	return out, nil
}

// finish works out what needs the inner types' plans.
func (t *Type) finish() {
	switch t.kind {
	case kBool, kInt, kUint:
		t.pure, t.dense, t.least = true, true, 1
	case kFloat:
		t.pure, t.dense, t.least = true, true, 8
	case kStruct:
		t.pure, t.dense = !t.partial, true
		end := uintptr(0)
		for _, f := range t.fields {
			t.pure = t.pure && f.Type.pure
			t.dense = t.dense && f.Type.dense && f.Offset == end
			end = f.Offset + f.Type.size
			t.least += f.Type.least
		}
		t.dense = t.dense && end == t.size
		t.runs = t.appendRuns(nil, 0)
	case kArray:
		t.pure, t.dense, t.least = t.elem.pure, t.elem.dense, t.n*t.elem.least
		t.runs = t.appendRuns(nil, 0)
	default:
		t.least = 1
	}
}

// Fields is the fields of a struct type.
func (t *Type) Fields() []Field { return t.fields }

// Leaves calls f for everything in a struct or an array that is no struct or array itself, with its path from there and whether it is a
// scalar: a boolean, an integer or a float.
func (t *Type) Leaves(path string, offset uintptr, f func(path string, offset uintptr, t *Type, scalar bool)) {
	switch t.kind {
	case kStruct:
		for _, field := range t.fields {
			field.Type.Leaves(strings.TrimPrefix(path+"."+field.Name, "."), offset+field.Offset, f)
		}
	case kArray:
		for i := range t.n {
			t.elem.Leaves(fmt.Sprintf("%s[%d]", path, i), offset+uintptr(i)*t.elem.size, f)
		}
	default:
		f(path, offset, t, t.kind <= kFloat)
	}
}

// Load is the bits of the scalar at p.
func (t *Type) Load(p unsafe.Pointer) uint64 { return t.load(p) }

// Store sets the scalar at p and reports whether v fits.
func (t *Type) Store(p unsafe.Pointer, v uint64) bool { return t.store(p, v) }

// Bool reports whether t is a boolean.
func (t *Type) Bool() bool { return t.kind == kBool }

// Size is how many bytes a value takes in memory, without what it points to.
func (t *Type) Size() uintptr { return t.size }

// Name is the Go name of the type.
func (t *Type) Name() string { return t.rtype.String() }

// Schema is the type as text: what a reader needs to understand what Append wrote. Two types with the same schema write the
// same bytes for the same content.
func (t *Type) Schema() string {
	var b strings.Builder
	t.schema(&b, nil)
	return b.String()
}

func (t *Type) schema(b *strings.Builder, above []*Type) {
	if i := slices.Index(above, t); i >= 0 {
		fmt.Fprintf(b, "^%d", len(above)-i) // so many levels up
		return
	}
	above = append(above, t)
	switch t.kind {
	case kBool:
		b.WriteByte('b')
	case kInt:
		b.WriteByte('i')
	case kUint:
		b.WriteByte('u')
	case kFloat:
		b.WriteByte('f')
	case kString:
		b.WriteByte('s')
	case kNil:
		b.WriteByte('n')
	case kStruct:
		b.WriteByte('{')
		for i, f := range t.fields {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(f.Name)
			b.WriteByte(':')
			f.Type.schema(b, above)
		}
		b.WriteByte('}')
	case kArray:
		fmt.Fprintf(b, "[%d]", t.n)
		t.elem.schema(b, above)
	case kSlice:
		b.WriteString("[]")
		t.elem.schema(b, above)
	case kPtr:
		b.WriteByte('*')
		t.elem.schema(b, above)
	case kMap:
		b.WriteByte('<')
		t.key.schema(b, above)
		b.WriteByte('>')
		t.elem.schema(b, above)
	}
}

// header is a slice as it lies in memory.
type header struct {
	data     unsafe.Pointer
	len, cap int
}

// load and store move the bits of a scalar.
func (t *Type) load(p unsafe.Pointer) uint64 {
	switch t.size {
	case 8:
		return *(*uint64)(p)
	case 1:
		if t.kind == kInt {
			return uint64(*(*int8)(p))
		}
		return uint64(*(*uint8)(p))
	case 4:
		if t.kind == kInt {
			return uint64(*(*int32)(p))
		}
		return uint64(*(*uint32)(p))
	default:
		if t.kind == kInt {
			return uint64(*(*int16)(p))
		}
		return uint64(*(*uint16)(p))
	}
}

// store reports whether v fits.
func (t *Type) store(p unsafe.Pointer, v uint64) bool {
	switch t.size {
	case 8:
		*(*uint64)(p) = v
		return true
	case 1:
		*(*uint8)(p) = uint8(v)
	case 4:
		*(*uint32)(p) = uint32(v)
	default:
		*(*uint16)(p) = uint16(v)
	}
	if t.kind == kBool {
		*(*uint8)(p) &= 1 // a bool that is neither breaks the program
	}
	return t.load(p) == v
}
