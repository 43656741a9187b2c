package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// Decoder reads values of a type as a writer with a certain schema wrote them.
type Decoder struct {
	t    *Type // nil: the reader has no place for it
	kind kind
	n    int
	elem *Decoder
	key  *Decoder
	// fields in the writer's order
	fields []field
	least  int

	// Missing are fields that the writer did not have, and Dropped those that the reader does not have, by path. They are filled in at
	// the decoder that Bind returns only.
	Missing, Dropped []string
}

type field struct {
	offset uintptr
	d      *Decoder
}

// maxDepth bounds how deep values may be nested.
const maxDepth = 1000

// Bind makes a decoder of t for what was written with a schema.
func (t *Type) Bind(schema string) (*Decoder, error) {
	b := binder{text: schema}
	d, err := b.bind(t, nil)
	if err == nil && b.text != "" {
		err = errors.New("schema: there is something behind it")
	}
	if err != nil {
		return nil, err
	}
	d.Missing, d.Dropped = b.missing, b.dropped
	return d, nil
}

// Decoder makes a decoder of t for what was written with its own schema.
func (t *Type) Decoder() *Decoder { return t.decoder(map[*Type]*Decoder{}) }

func (t *Type) decoder(done map[*Type]*Decoder) *Decoder {
	if t == nil {
		return nil
	}
	if d := done[t]; d != nil {
		return d
	}
	d := &Decoder{t: t, kind: t.kind, n: t.n, least: t.least}
	done[t] = d
	d.elem, d.key = t.elem.decoder(done), t.key.decoder(done)
	for _, f := range t.fields {
		d.fields = append(d.fields, field{f.Offset, f.Type.decoder(done)})
	}
	return d
}

// Skip makes a decoder that reads what was written with a schema and keeps nothing of it.
func Skip(schema string) (*Decoder, error) {
	b := binder{text: schema}
	d, err := b.bind(nil, nil)
	if err == nil && b.text != "" {
		err = errors.New("schema: there is something behind it")
	}
	return d, err
}

type binder struct {
	text             string
	path             []string // where we are, for people
	depth            int
	missing, dropped []string
}

// at is the path to a field of the type that is being bound.
func (b *binder) at(field string) string { return strings.Join(b.path, "") + field }

func (b *binder) next() byte {
	if b.text == "" {
		return 0
	}
	c := b.text[0]
	b.text = b.text[1:]
	return c
}

var schemaKinds = map[byte]kind{'b': kBool, 'i': kInt, 'u': kUint, 'f': kFloat, 's': kString, 'n': kNil}

// bind reads one type from the schema; t is nil if there is no place for it.
func (b *binder) bind(t *Type, above []*Decoder) (*Decoder, error) {
	if b.depth++; b.depth > 64 {
		return nil, errors.New("schema: nested too deep")
	}
	defer func() { b.depth-- }()
	d := &Decoder{t: t, least: 1}
	above = append(above, d)
	var err error
	c := b.next()
	switch c {
	case 'b', 'i', 'u', 'f', 's', 'n':
		d.kind = schemaKinds[c]
		if c == 'f' {
			d.least = 8
		}
	case '{':
		d.kind = kStruct
		if t != nil && t.kind != kStruct {
			return nil, b.mismatch(t)
		}
		return d, b.bindFields(d, t, above)
	case '[':
		d.kind = kSlice
		if b.text != "" && b.text[0] != ']' {
			d.kind = kArray
			if d.n, err = b.number(); err != nil {
				return nil, err
			}
		}
		if b.next() != ']' {
			return nil, errors.New("schema: a ] is missing")
		}
		var elem *Type
		if t != nil {
			if t.kind != d.kind || t.kind == kArray && t.n != d.n {
				return nil, b.mismatch(t)
			}
			elem = t.elem
		}
		if d.elem, err = b.inside("[]", elem, above); err != nil {
			return nil, err
		}
		if d.kind == kArray {
			d.least = d.n * d.elem.least
			if d.least > 1<<24 {
				return nil, errors.New("schema: an array is too large")
			}
		}
		return d, nil
	case '*', '<':
		d.kind = kPtr
		var elem, key *Type
		if c == '<' {
			d.kind = kMap
		}
		if t != nil {
			if t.kind != d.kind {
				return nil, b.mismatch(t)
			}
			elem, key = t.elem, t.key
		}
		if c == '<' {
			if d.key, err = b.inside("<>", key, above); err != nil {
				return nil, err
			}
			if b.next() != '>' {
				return nil, errors.New("schema: a > is missing")
			}
		}
		d.elem, err = b.bind(elem, above)
		return d, err
	case '^':
		up, err := b.number()
		if err != nil {
			return nil, err
		}
		if up < 1 || up >= len(above) {
			return nil, errors.New("schema: a reference leads nowhere")
		}
		to := len(above) - 1 - up
		for _, between := range above[to : len(above)-1] {
			if k := between.kind; k == kPtr || k == kSlice || k == kMap {
				return above[to], nil
			}
		}
		return nil, errors.New("schema: a type contains itself")
	default:
		return nil, fmt.Errorf("schema: %q is no type", c)
	}
	if t != nil && t.kind != d.kind {
		return nil, b.mismatch(t)
	}
	return d, nil
}

// inside binds a type at a place below the present one.
func (b *binder) inside(place string, t *Type, above []*Decoder) (*Decoder, error) {
	b.path = append(b.path, place)
	d, err := b.bind(t, above)
	b.path = b.path[:len(b.path)-1]
	return d, err
}

func (b *binder) bindFields(d *Decoder, t *Type, above []*Decoder) error {
	d.least = 0
	var met []bool // by index into the type's fields
	if t != nil {
		met = make([]bool, len(t.fields))
		d.fields = make([]field, 0, len(t.fields))
	}
	for {
		if b.text == "" {
			return errors.New("schema: a } is missing")
		}
		if b.text[0] == '}' {
			b.next()
			break
		}
		if len(d.fields) > 0 && b.next() != ',' {
			return errors.New("schema: a comma is missing")
		}
		name := b.name()
		if name == "" || b.next() != ':' {
			return errors.New("schema: a field has no name")
		}
		var ft *Type
		var offset uintptr
		if t != nil {
			if i := t.field(name, len(d.fields)); i >= 0 {
				ft, offset, met[i] = t.fields[i].Type, t.fields[i].Offset, true
			} else {
				b.dropped = append(b.dropped, b.at("."+name))
			}
		}
		b.path = append(b.path, ".")
		fd, err := b.inside(name, ft, above)
		b.path = b.path[:len(b.path)-1]
		if err != nil {
			return err
		}
		d.fields = append(d.fields, field{offset, fd})
		d.least += fd.least
	}
	if d.least > 1<<24 {
		return errors.New("schema: a struct is too large")
	}
	for i := range met {
		if !met[i] {
			b.missing = append(b.missing, b.at("."+t.fields[i].Name))
		}
	}
	return nil
}

// field is the index of a field, or -1; it is probably the one at index probably.
func (t *Type) field(name string, probably int) int {
	if probably < len(t.fields) && t.fields[probably].Name == name {
		return probably
	}
	return slices.IndexFunc(t.fields, func(f Field) bool { return f.Name == name })
}

func (b *binder) name() string {
	for i := range len(b.text) {
		switch b.text[i] {
		case ':', ',', '{', '}', '[', ']', '<', '>', '*', '^':
			name := b.text[:i]
			b.text = b.text[i:]
			return name
		}
	}
	return ""
}

func (b *binder) number() (int, error) {
	i := 0
	for i < len(b.text) && b.text[i] >= '0' && b.text[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(b.text[:i])
	b.text = b.text[i:]
	if err != nil || n > 1<<16 {
		return 0, errors.New("schema: a number is missing or too large")
	}
	return n, nil
}

func (b *binder) mismatch(t *Type) error {
	return fmt.Errorf("%s was recorded as something else than a %s", b.at(""), t.rtype)
}

// Decode reads a value into the one at p. Slices there are used again if they are large enough; strings are copied. Fields that the
// writer did not have are left as they are.
func (d *Decoder) Decode(s *Source, p unsafe.Pointer) error {
	r := reader{Source: s}
	r.decode(d, p)
	return s.err
}

type reader struct {
	*Source
	met   []target
	depth int
}

type target struct {
	p unsafe.Pointer
	d *Decoder
}

// decode reads one value; p is ignored if the decoder has no type.
func (r *reader) decode(d *Decoder, p unsafe.Pointer) {
	if r.err != nil {
		return
	}
	if r.depth++; r.depth > maxDepth {
		r.Fail(errors.New("values are nested too deep"))
		return
	}
	r.decodeKind(d, p)
	r.depth--
}

func (r *reader) decodeKind(d *Decoder, p unsafe.Pointer) {
	switch d.kind {
	case kBool, kUint:
		r.scalar(d, p, r.Uvarint())
	case kInt:
		r.scalar(d, p, uint64(r.Varint()))
	case kFloat:
		if b := r.Bytes(8); b != nil && d.t != nil {
			*(*float64)(p) = math.Float64frombits(binary.LittleEndian.Uint64(b))
		}
	case kString:
		b := r.Bytes(int(min(r.Uvarint(), math.MaxInt32)))
		if d.t != nil && *(*string)(p) != string(b) && r.take(uintptr(len(b))) {
			*(*string)(p) = string(b)
		}
	case kStruct:
		for i := range d.fields {
			f := &d.fields[i]
			r.decode(f.d, unsafe.Add(p, f.offset))
		}
	case kArray:
		for i := 0; i < d.n && r.err == nil; i++ {
			r.decode(d.elem, d.at(p, i))
		}
	case kSlice:
		r.slice(d, p)
	case kPtr:
		r.pointer(d, p)
	case kMap:
		r.dict(d, p)
	default: // kNil
		if r.Byte() != 0 {
			r.Fail(errors.New("a value that cannot be recorded is there"))
		}
	}
}

// at is the address of element i; without a type there is none.
func (d *Decoder) at(p unsafe.Pointer, i int) unsafe.Pointer {
	if d.t == nil {
		return nil
	}
	return unsafe.Add(p, uintptr(i)*d.t.elem.size)
}

func (r *reader) scalar(d *Decoder, p unsafe.Pointer, v uint64) {
	if d.t != nil && !d.t.store(p, v) {
		r.Fail(fmt.Errorf("%d does not fit in a %s", int64(v), d.t.rtype))
	}
}

func (r *reader) slice(d *Decoder, p unsafe.Pointer) {
	n, isNil := r.count(d.elem.least)
	if d.t == nil {
		for i := 0; i < n && r.err == nil; i++ {
			r.decode(d.elem, nil)
		}
		return
	}
	h := (*header)(p)
	switch {
	case isNil:
		*h = header{}
		return
	case n == 0 && h.data != nil:
		h.len = 0
		return
	case n == 0:
		*h = header{data: reflect.MakeSlice(d.t.rtype, 0, 0).UnsafePointer()}
		return
	case n > h.cap:
		if !r.take(uintptr(n) * d.t.elem.size) {
			return
		}
		h.data, h.len, h.cap = reflect.MakeSlice(d.t.rtype, n, n).UnsafePointer(), n, n
	default:
		h.len = n
	}
	for i := 0; i < n && r.err == nil; i++ {
		r.decode(d.elem, d.at(h.data, i))
	}
}

// count is Count for things of which there may be none at all, or none yet.
func (r *reader) count(least int) (n int, isNil bool) {
	v := r.Uvarint()
	if v == 0 {
		return 0, true
	}
	if v-1 > uint64(r.Left()/max(least, 1)) {
		r.Fail(ErrShort)
		return 0, true
	}
	return int(v - 1), false
}

func (r *reader) pointer(d *Decoder, p unsafe.Pointer) {
	var to unsafe.Pointer
	switch id := r.Uvarint(); {
	case id == 0:
	case id == 1:
		if d.t != nil {
			if !r.take(d.t.elem.size) {
				return
			}
			to = reflect.New(d.t.elem.rtype).UnsafePointer()
		}
		r.met = append(r.met, target{to, d.elem})
		r.decode(d.elem, to)
	case id-2 >= uint64(len(r.met)):
		r.Fail(errors.New("a reference leads nowhere"))
		return
	default:
		m := r.met[id-2]
		if d.t != nil && (m.d.t != d.t.elem || m.p == nil) {
			r.Fail(errors.New("a reference leads to something of another type"))
			return
		}
		to = m.p
	}
	if d.t != nil {
		*(*unsafe.Pointer)(p) = to
	}
}

func (r *reader) dict(d *Decoder, p unsafe.Pointer) {
	n, isNil := r.count(d.key.least + d.elem.least)
	if d.t == nil {
		for i := 0; i < n && r.err == nil; i++ {
			r.decode(d.key, nil)
			r.decode(d.elem, nil)
		}
		return
	}
	m := reflect.NewAt(d.t.rtype, p).Elem()
	if isNil {
		if !m.IsNil() {
			m.SetZero()
		}
		return
	}
	if !r.take(uintptr(n) * (d.t.key.size + d.t.elem.size + 16)) {
		return
	}
	out := reflect.MakeMapWithSize(d.t.rtype, n)
	for range n {
		k, v := reflect.New(d.t.key.rtype), reflect.New(d.t.elem.rtype)
		r.decode(d.key, k.UnsafePointer())
		r.decode(d.elem, v.UnsafePointer())
		if r.err != nil {
			return
		}
		out.SetMapIndex(k.Elem(), v.Elem())
	}
	m.Set(out)
}
