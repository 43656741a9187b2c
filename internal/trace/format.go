package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A file is the magic, the number of the format, and frames. All numbers are little-endian.
//
//	file:   magic[8] format:u32 crc:u32 frame* trailer?
//	frame:  sync:u32 kind:u8 flags:u8 zero:u16 length:u32 payloadCRC:u32 firstSeq:u64 firstWall:i64 lastWall:i64 steps:u32 headerCRC:u32 payload
//	trailer: offset of the index frame:u64 "QOSINDEX"
//
// Checksums are CRC-32C. A file that was not closed has no index and no trailer.
const (
	magic        = "QOSTRACE"
	trailerMagic = "QOSINDEX"
	// Format is the version that is written, oldest the first of those that are read.
	Format = 4
	oldest = 3

	preambleLen = 16
	headerLen   = 48
	trailerLen  = 16
	syncWord    = 0xf153_4f51 // "QOS" and a byte that is in no text
)

// Bounds of what a reader believes.
const (
	maxPayload    = 32 << 20  // bytes of a frame on disk
	maxRaw        = 16 << 20  // bytes of a stream or a checkpoint, decompressed
	maxMemory     = 256 << 20 // bytes that the rare things of a frame may take in memory
	maxContainers = 1 << 16
	maxEvents     = 1 << 16 // of a step
	maxPods       = 1 << 16
	maxPolicies   = 4096
)

type frameKind uint8

const (
	frameInfo   frameKind = iota + 1 // JSON: Info
	framePolicy                      // JSON: policy.Compiled.Export
	frameState                       // decide.State before the next step, compressed; a key frame follows
	frameSteps                       // steps
	frameIndex                       // the end of the file
	frameKinds
)

func (k frameKind) String() string {
	if k < frameKinds {
		return [frameKinds]string{"?", "info", "policy", "state", "steps", "index"}[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// flagKey marks a frame of steps that can be read without those before it.
const flagKey = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHeader is what precedes each payload.
type frameHeader struct {
	kind                frameKind
	flags               uint8
	length              uint32
	crc                 uint32
	seq                 uint64 // of the first step
	firstWall, lastWall int64  // ns since 1970
	steps               uint32
}

func (h *frameHeader) append(dst []byte) []byte {
	from := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, syncWord)
	dst = append(dst, byte(h.kind), h.flags, 0, 0)
	dst = le.AppendUint32(dst, h.length)
	dst = le.AppendUint32(dst, h.crc)
	dst = le.AppendUint64(dst, h.seq)
	dst = le.AppendUint64(dst, uint64(h.firstWall))
	dst = le.AppendUint64(dst, uint64(h.lastWall))
	dst = le.AppendUint32(dst, h.steps)
	return le.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli))
}

var (
	errNoFrame  = errors.New("there is no frame where one should begin")
	errChecksum = errors.New("the checksum of the content is wrong")
)

// parse reads a header from the first bytes of b, which must be long enough.
func (h *frameHeader) parse(b []byte) error {
	le := binary.LittleEndian
	b = b[:headerLen]
	if le.Uint32(b) != syncWord || le.Uint32(b[44:]) != crc32.Checksum(b[:44], castagnoli) {
		return errNoFrame
	}
	*h = frameHeader{
		kind: frameKind(b[4]), flags: b[5], length: le.Uint32(b[8:]), crc: le.Uint32(b[12:]),
		seq: le.Uint64(b[16:]), firstWall: int64(le.Uint64(b[24:])), lastWall: int64(le.Uint64(b[32:])), steps: le.Uint32(b[40:]),
	}
	if h.length > maxPayload {
		return fmt.Errorf("a frame of %d bytes: no more than %d are believed", h.length, maxPayload)
	}
	return nil
}

func preamble() []byte {
	b := append([]byte(magic), Format, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// FormatError is what is wrong with a recording, and where.
type FormatError struct {
	File   string
	Frame  int   // counted from 0; -1: before the first
	Offset int64 // of the frame, or of the place, in the file
	Err    error
}

func (e *FormatError) Error() string {
	if e.Frame < 0 {
		return fmt.Sprintf("%s: at byte %d: %v", e.File, e.Offset, e.Err)
	}
	return fmt.Sprintf("%s: frame %d at byte %d: %v", e.File, e.Frame, e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// ErrNewer says that a file is of a format that came after this program.
var ErrNewer = errors.New("recorded in a newer format")

// ErrOlder says that a file is of a format that this program no longer reads.
var ErrOlder = errors.New("recorded in an older format")

// ErrNotTrace says that a file is no recording at all.
var ErrNotTrace = errors.New("not a recording of qos-agent")

// checkPreamble returns the format of the file that begins like that.
func checkPreamble(b []byte) (format uint32, err error) {
	if len(b) < preambleLen || string(b[:8]) != magic {
		return 0, ErrNotTrace
	}
	if binary.LittleEndian.Uint32(b[12:]) != crc32.Checksum(b[:12], castagnoli) {
		return 0, fmt.Errorf("%w: the checksum of its first bytes is wrong", ErrNotTrace)
	}
	switch v := binary.LittleEndian.Uint32(b[8:]); {
	case v > Format:
		return v, fmt.Errorf("%w: %d, and this qos-agent reads %d to %d; use a newer one", ErrNewer, v, oldest, Format)
	case v < oldest:
		return v, fmt.Errorf("%w: %d, and this qos-agent reads %d to %d; use the qos-agent that recorded it", ErrOlder, v, oldest, Format)
	default:
		return v, nil
	}
}
