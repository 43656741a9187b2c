package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"reflect"
	"strings"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
)

// A record is a struct that is written as its difference from an earlier value of itself: for each of its parts a bit says
// whether it differs, and within a part for each leaf. What a part is, and what its leaves are, follows from the Go type; it
// goes into the file, so that a reader with another type finds its way by names.

// recordType is the plan of such a struct.
type recordType struct {
	name  string
	parts []part
}

// part is a field of a record; all scalar fields together are one part, the last, because they hardly ever change.
type part struct {
	name   string
	leaves []leaf
	at     int // index of the leaf At, the time of a reading, which is mostly now; -1: none
	span   int // index of the leaf Span, which mostly reaches back to the reading before; -1: none
	// foretold has the bits of both.
	foretold uint64
	// plain: they are the first two, and the reader has a place for both, as of all parts of this version.
	plain bool
	// rest is the index of the leaf with a pod's parts by cache domain, of which the last is written as what the totals leave; see turn.
	rest int
}

// leaf is a scalar, or something that is written as a whole.
type leaf struct {
	name   string
	offset uintptr
	t      *wire.Type // nil: the reader has no place for it
	scalar bool
	toggle bool          // a boolean: that it differs says all
	word   bool          // a scalar of 64 bits that the reader has a place for: most are
	d      *wire.Decoder // of a whole
}

// maxLeaves is how many bits a mask of leaves has.
const maxLeaves = 64

// newRecordType makes the plan of T without the fields named in without.
func newRecordType[T any](without ...string) (*recordType, error) {
	t, err := wire.Compile(reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	r := &recordType{name: t.Name()}
	var own part
fields:
	for _, f := range t.Fields() {
		for _, w := range without {
			if f.Name == w {
				continue fields
			}
		}
		if len(f.Type.Fields()) == 0 {
			own.add(f.Type, f.Name, f.Offset)
			continue
		}
		p := part{name: f.Name}
		p.add(f.Type, "", f.Offset)
		r.parts = append(r.parts, p)
	}
	if len(own.leaves) > 0 {
		r.parts = append(r.parts, own)
	}
	if len(r.parts) > 8-len(without) {
		return nil, fmt.Errorf("%s has %d parts: no more than %d fit in a byte", r.name, len(r.parts), 8-len(without))
	}
	for i := range r.parts {
		p := &r.parts[i]
		if len(p.leaves) > maxLeaves {
			return nil, fmt.Errorf("%s.%s has %d values: no more than %d fit", r.name, p.name, len(p.leaves), maxLeaves)
		}
		p.predict()
		p.rest = -1
		for k, l := range p.leaves {
			if reflect.TypeFor[T]() == reflect.TypeFor[signal.ContainerSample]() && p.name == "RDT" && l.name == "Domains" {
				p.rest = k
			}
		}
	}
	return r, nil
}

// turn makes the last of a pod's cache domains what the totals leave over for it less what it has, which is nearly always nothing, and back again.
func turn(r *signal.RDTSample) {
	if len(r.Domains) == 0 {
		return
	}
	last := &r.Domains[len(r.Domains)-1]
	rest := signal.RDTDomainSample{OccupancyBytes: r.OccupancyBytes, TotalBytes: r.TotalBytes, LocalBytes: r.LocalBytes}
	for _, d := range r.Domains {
		rest.OccupancyBytes, rest.TotalBytes, rest.LocalBytes = rest.OccupancyBytes-d.OccupancyBytes, rest.TotalBytes-d.TotalBytes, rest.LocalBytes-d.LocalBytes
	}
	last.OccupancyBytes, last.TotalBytes, last.LocalBytes = rest.OccupancyBytes, rest.TotalBytes, rest.LocalBytes
}

func (p *part) add(t *wire.Type, name string, offset uintptr) {
	t.Leaves(name, offset, func(name string, offset uintptr, t *wire.Type, scalar bool) {
		p.leaves = append(p.leaves, leaf{name: name, offset: offset, t: t, scalar: scalar, toggle: t.Bool()})
	})
}

// predict finds the leaves that can be foretold, by the names that all samples use. A span counts from the reading, so that must
// have been read by then.
func (p *part) predict() {
	p.at, p.span = -1, -1
	for i, l := range p.leaves {
		switch {
		case !l.scalar || l.toggle:
		case l.name == "At":
			p.at = i
		case l.name == "Span" && p.at >= 0:
			p.span = i
		}
	}
	p.foretold = 0
	for _, i := range [...]int{p.at, p.span} {
		if i >= 0 {
			p.foretold |= 1 << i
		}
	}
}

// partSchema is a part as it is described in a file.
type partSchema struct {
	Name   string   `json:"name"`
	Leaves []string `json:"leaves"` // name and schema of the type, with a space between them
}

func (r *recordType) schema() []partSchema {
	out := make([]partSchema, len(r.parts))
	for i, p := range r.parts {
		out[i].Name = p.name
		for _, l := range p.leaves {
			out[i].Leaves = append(out[i].Leaves, l.name+" "+l.t.Schema())
		}
	}
	return out
}

// differs reports whether the part of a is another than that of b.
func (p *part) differs(a, b unsafe.Pointer) bool {
	for i := range p.leaves {
		l := &p.leaves[i]
		x, y := unsafe.Add(a, l.offset), unsafe.Add(b, l.offset)
		if l.scalar && l.t.Load(x) != l.t.Load(y) || !l.scalar && !l.t.Equal(x, y) {
			return true
		}
	}
	return false
}

func (r *recordType) differs(a, b unsafe.Pointer) bool {
	for i := range r.parts {
		if r.parts[i].differs(a, b) {
			return true
		}
	}
	return false
}

// append writes the part of cur if it differs from that of base, makes base the same, and reports whether it did.
func (p *part) append(s *streams, cur, base unsafe.Pointer, now uint64) bool {
	if !p.differs(cur, base) {
		return false
	}
	var mask uint64
	var wasAt uint64
	for i := range p.leaves {
		l := &p.leaves[i]
		a, b := unsafe.Add(cur, l.offset), unsafe.Add(base, l.offset)
		if !l.scalar {
			if !l.t.Equal(a, b) {
				mask |= 1 << i
				if i == p.rest {
					r := (*signal.ContainerSample)(cur).RDT
					if len(r.Domains) > 0 {
						s.domains = append(s.domains[:0], r.Domains...)
						r.Domains = s.domains
					}
					turn(&r)
					s.b[streamRare] = l.t.Append(s.b[streamRare], unsafe.Pointer(&r.Domains))
				} else {
					s.b[streamRare] = l.t.Append(s.b[streamRare], a)
				}
				l.t.Copy(b, a)
			}
			continue
		}
		v, was := l.t.Load(a), l.t.Load(b)
		foretold := was
		switch i {
		case p.at:
			wasAt = was
			foretold = now
		case p.span:
			if wasAt != 0 {
				foretold = p.leaves[p.at].t.Load(unsafe.Add(cur, p.leaves[p.at].offset)) - wasAt
			}
		}
		if v != foretold {
			mask |= 1 << i
			if !l.toggle {
				s.signed(streamValueSize, int64(v-foretold))
			}
		}
		l.t.Store(b, v)
	}
	s.b[streamLeaves] = binary.AppendUvarint(s.b[streamLeaves], mask)
	return true
}

var errRange = errors.New("a value does not fit where it belongs")

// decode reads what append has written. p holds the value before.
func (p *part) decode(s *source, at unsafe.Pointer, now uint64) {
	mask := s.s[streamLeaves].Uvarint()
	if mask>>len(p.leaves) != 0 {
		s.s[streamLeaves].Fail(errors.New("a value that the schema does not know has changed"))
		return
	}
	var wasAt uint64
	todo := mask | p.foretold
	if p.plain {
		when, span := (*uint64)(unsafe.Add(at, p.leaves[0].offset)), (*uint64)(unsafe.Add(at, p.leaves[1].offset))
		wasAt, *when = *when, now
		if mask&1 != 0 {
			*when += uint64(s.signed(streamValueSize))
		}
		if wasAt != 0 {
			*span = *when - wasAt
		}
		if mask&2 != 0 {
			*span += uint64(s.signed(streamValueSize))
		}
		todo &^= 3
	}
	for ; todo != 0; todo &= todo - 1 {
		i := bits.TrailingZeros64(todo)
		l := &p.leaves[i]
		to := unsafe.Add(at, l.offset)
		if l.word {
			v := (*uint64)(to)
			switch {
			case i == p.at:
				wasAt, *v = *v, now
			case i == p.span && wasAt != 0:
				*v = p.leaves[p.at].t.Load(unsafe.Add(at, p.leaves[p.at].offset)) - wasAt
			}
			if mask>>i&1 != 0 {
				*v += uint64(s.signed(streamValueSize))
			}
			continue
		}
		special := p.foretold>>i&1 != 0
		if !l.scalar {
			if err := l.d.Decode(&s.s[streamRare], to); err != nil {
				return
			}
			continue
		}
		if l.toggle {
			if l.t != nil {
				l.t.Store(to, l.t.Load(to)^1)
			}
			continue
		}
		var v uint64
		if l.t != nil {
			v = l.t.Load(to)
		}
		if special {
			if i == p.at {
				wasAt = v
				v = now
			} else if wasAt != 0 {
				v = p.leaves[p.at].t.Load(unsafe.Add(at, p.leaves[p.at].offset)) - wasAt
			}
		}
		if mask>>i&1 != 0 {
			v += uint64(s.signed(streamValueSize))
		}
		if l.t != nil && !l.t.Store(to, v) {
			s.s[streamValueSize].Fail(errRange)
		}
	}
	if p.rest >= 0 && mask>>p.rest&1 != 0 {
		turn(&(*signal.ContainerSample)(at).RDT)
	}
}

// bind makes the plan of a record as a file describes it. Its leaves come in the file's order and know where they belong in ours.
func (r *recordType) bind(file []partSchema) (out *recordType, missing, dropped []string, err error) {
	out = &recordType{name: r.name}
	if len(file) > maxLeaves {
		return nil, nil, nil, fmt.Errorf("schema of %s: %d parts", r.name, len(file))
	}
	met := map[string]bool{}
	for _, ps := range file {
		p := part{name: ps.Name, rest: -1}
		if len(ps.Leaves) > maxLeaves {
			return nil, nil, nil, fmt.Errorf("schema of %s.%s: %d values", r.name, ps.Name, len(ps.Leaves))
		}
		ours := r.part(ps.Name)
		for _, text := range ps.Leaves {
			l, err := bindLeaf(ours, text)
			path := r.name + "." + ps.Name + "." + l.name
			if err != nil {
				return nil, nil, nil, fmt.Errorf("schema of %s: %w", path, err)
			}
			if l.t == nil {
				dropped = append(dropped, path)
			}
			met[path] = true
			if ours != nil && ours.rest >= 0 && ours.leaves[ours.rest].name == l.name {
				p.rest = len(p.leaves)
			}
			p.leaves = append(p.leaves, l)
		}
		p.predict()
		p.plain = p.at == 0 && p.span == 1 && p.leaves[0].word && p.leaves[1].word
		if p.at >= 0 && p.leaves[p.at].t == nil {
			return nil, nil, nil, fmt.Errorf("schema of %s.%s: this version does not know when it was read", r.name, ps.Name)
		}
		out.parts = append(out.parts, p)
	}
	for _, p := range r.parts {
		for _, l := range p.leaves {
			if path := r.name + "." + p.name + "." + l.name; !met[path] {
				missing = append(missing, path)
			}
		}
	}
	return out, missing, dropped, nil
}

func (r *recordType) part(name string) *part {
	for i := range r.parts {
		if r.parts[i].name == name {
			return &r.parts[i]
		}
	}
	return nil
}

func bindLeaf(ours *part, text string) (leaf, error) {
	name, schema, ok := strings.Cut(text, " ")
	l := leaf{name: name}
	if !ok {
		return l, errors.New("no type")
	}
	l.scalar = schema == "b" || schema == "i" || schema == "u" || schema == "f"
	l.toggle = schema == "b"
	if ours != nil {
		for _, o := range ours.leaves {
			if o.name != name {
				continue
			}
			if o.scalar != l.scalar || o.scalar && o.t.Schema() != schema {
				return l, fmt.Errorf("it is %q there and %q here", schema, o.t.Schema())
			}
			l.t, l.offset = o.t, o.offset
			l.word = o.scalar && !o.toggle && o.t.Size() == 8
		}
	}
	if !l.scalar {
		var err error
		if l.t == nil {
			l.d, err = wire.Skip(schema)
		} else {
			l.d, err = l.t.Bind(schema)
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}
