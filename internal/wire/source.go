package wire

import (
	"encoding/binary"
	"errors"
)

// ErrShort says that the bytes end in the middle of a value.
var ErrShort = errors.New("the data end too early")

// Source is bytes that are read from the front. The first error sticks; readings after it are zero.
type Source struct {
	data []byte
	pos  int
	err  error
	// Budget is how many bytes of memory decoding may still take. A few bytes on the wire can be many in memory, and what is read may
	// come from anywhere.
	Budget int
}

// NewSource reads data within a budget of memory.
func NewSource(data []byte, budget int) Source { return Source{data: data, Budget: budget} }

// Err is the first error.
func (s *Source) Err() error { return s.err }

// Fail sets the error if there is none yet.
func (s *Source) Fail(err error) {
	if s.err == nil {
		s.err = err
		s.pos = len(s.data)
	}
}

// Left is how many bytes have not been read.
func (s *Source) Left() int { return len(s.data) - s.pos }

// Rest is what has not been read.
func (s *Source) Rest() []byte { return s.data[s.pos:] }

// Pos is how many bytes have been read.
func (s *Source) Pos() int { return s.pos }

// Byte reads one byte.
func (s *Source) Byte() byte {
	if s.pos >= len(s.data) {
		s.Fail(ErrShort)
		return 0
	}
	b := s.data[s.pos]
	s.pos++
	return b
}

// Uvarint reads an unsigned number.
func (s *Source) Uvarint() uint64 {
	if s.pos < len(s.data) { // this much is inlined
		if b := s.data[s.pos]; b < 0x80 { // most are
			s.pos++
			return uint64(b)
		}
	}
	return s.longUvarint()
}

func (s *Source) longUvarint() uint64 {
	if b := s.data[s.pos:]; len(b) >= 2 && b[1] < 0x80 {
		s.pos += 2
		return uint64(b[0]&0x7f) | uint64(b[1])<<7
	}
	v, n := binary.Uvarint(s.data[s.pos:])
	switch {
	case n > 0:
		s.pos += n
		return v
	case n == 0:
		s.Fail(ErrShort)
	default:
		s.Fail(errors.New("a number does not fit in 64 bits"))
	}
	return 0
}

// Varint reads a signed number.
func (s *Source) Varint() int64 { return Unzigzag(s.Uvarint()) }

// Bytes reads n bytes, which belong to the source.
func (s *Source) Bytes(n int) []byte {
	if n < 0 || n > s.Left() {
		s.Fail(ErrShort)
		return nil
	}
	b := s.data[s.pos : s.pos+n]
	s.pos += n
	return b
}

// Count reads the number of things that follow, each of at least so many bytes.
func (s *Source) Count(least int) int {
	n := s.Uvarint()
	if n > uint64(s.Left()/max(least, 1)) {
		s.Fail(ErrShort)
		return 0
	}
	return int(n)
}

// take counts memory against the budget.
func (s *Source) take(n uintptr) bool {
	if n > uintptr(max(0, s.Budget)) {
		s.Fail(errors.New("the data describe more than is sensible"))
		return false
	}
	s.Budget -= int(n)
	return true
}
