package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"

	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Steps are written into streams, one for each kind of thing, because things of a kind compress better together. A number goes into two of
// them: its size in bits, which is much the same for numbers of a kind, into one that is compressed, and the bits below its highest, which are
// noise, into streamBits as they are.
const (
	streamStep      = iota // flags and small numbers of steps; which parts of records differ
	streamParts            // which parts of a container differ
	streamLeaves           // which values of a part differ
	streamWait             // flags of waits
	streamPreempted        // of waits
	streamBlamed           // of waits: how many are to blame for them,
	streamCulprits         // and who
	streamShape            // of histograms: how many buckets,
	streamFirst            // and which is the first
	streamRare             // pods, decisions, outcomes and whatever else is written as a whole
	streamStepSize         // sizes of numbers: of steps,
	streamValueSize        // of values of records,
	streamSumSize          // of sums of waits,
	streamBlameSize        // of blame,
	streamCountSize        // of counts and gaps in histograms that do not fit in their byte
	streamBits             // bits of numbers
	streamBuckets          // of histograms, the first of numRates streams: one for each rate of dispatches, as busy histograms look different
	numStreams      = streamBuckets + numRates

	numRates = 8
)

// streamNames are for people.
var streamNames = [streamBuckets + 1]string{
	"steps", "parts", "leaves", "wait flags", "preemptions", "blamed", "culprits", "histogram shapes", "first buckets", "pods, decisions, outcomes", "step numbers", "value sizes",
	"wait sum sizes", "blame sizes", "large counts", "bits of numbers", "histogram buckets",
}

// StreamName is the name of a stream, by its index in Reader.Bytes.
func StreamName(i int) string { return streamNames[min(i, streamBuckets)] }

// rateOf is the stream of the buckets of a container that was dispatched that often.
func rateOf(rate uint64) int { return min(max(bits.Len64(rate/rateUnit)-1, 0), numRates-1) }

// rateUnit is one dispatch a tick.
const rateUnit = 16

// smooth takes the dispatches of a tick in.
func (b *waitBase) smooth(dispatches uint64) {
	b.rate += uint64((int64(min(dispatches, 1<<20)*rateUnit) - int64(b.rate)) / 4)
}

// Numbers are often whole microseconds or pages.
var scales = [...]uint64{1, 1000, 4096}

// sizes is one more than the greatest size of a number in bits.
const sizes = 65

// streams is what steps are written into.
type streams struct {
	b    [numStreams][]byte
	acc  uint64 // bits that are not in streamBits yet
	fill uint
}

func (s *streams) reset() {
	for i := range s.b {
		s.b[i] = s.b[i][:0]
	}
	s.acc, s.fill = 0, 0
}

// size is how many bytes there are.
func (s *streams) size() int {
	n := 0
	for i := range s.b {
		n += len(s.b[i])
	}
	return n
}

// end puts the last bits where they belong.
func (s *streams) end() {
	for ; s.fill > 0; s.fill -= min(s.fill, 8) {
		s.b[streamBits] = append(s.b[streamBits], byte(s.acc))
		s.acc >>= 8
	}
}

// number writes v, with its size into the given stream.
func (s *streams) number(stream int, v uint64) {
	scale := 0
	switch {
	case v == 0:
	case v%4096 == 0:
		scale = 2
	case v%1000 == 0:
		scale = 1
	}
	v /= scales[scale]
	n := bits.Len64(v)
	s.b[stream] = append(s.b[stream], byte(n+scale*sizes))
	if n > 1 {
		s.bits(v&^(1<<(n-1)), uint(n-1))
	}
}

// signed writes v.
func (s *streams) signed(stream int, v int64) {
	// The sign comes last, so that a scale is found in negative numbers as well.
	if v >= 0 {
		s.number(stream, uint64(v))
	} else {
		s.number(stream, -uint64(v))
	}
	if v != 0 {
		s.bits(uint64(v)>>63, 1)
	}
}

func (s *streams) bits(v uint64, n uint) {
	s.acc |= v << s.fill
	if s.fill+n < 64 {
		s.fill += n
		return
	}
	s.b[streamBits] = binary.LittleEndian.AppendUint64(s.b[streamBits], s.acc)
	s.acc = v >> (64 - s.fill) // 0 if it was empty
	s.fill += n - 64
}

// source is the streams of a frame on the way back.
type source struct {
	s    [numStreams]wire.Source // streamBits is not used
	bits []byte                  // with bitPadding more bytes
	pos  uint                    // in bits
	end  uint
}

// bitPadding is how many bytes beyond the end a number may be read from.
const bitPadding = 16

// open begins to read streams, of which streamBits is padded.
func (s *source) open(b *[numStreams][]byte) {
	for i := range b {
		s.s[i] = wire.NewSource(b[i], 0)
	}
	s.s[streamRare].Budget = maxMemory
	n := len(b[streamBits])
	b[streamBits] = append(b[streamBits], make([]byte, bitPadding)...)
	s.bits, s.pos, s.end = b[streamBits], 0, uint(n)*8
	s.s[streamBits] = wire.NewSource(nil, 0)
}

// err is the first error of any stream.
func (s *source) err() error {
	for i := range s.s {
		if err := s.s[i].Err(); err != nil {
			return err
		}
	}
	return nil
}

// left is how many bytes have not been read.
func (s *source) left() int {
	n := int(s.end-s.pos) / 8
	for i := range s.s {
		n += s.s[i].Left()
	}
	return n
}

var errSize = errors.New("a number of an impossible size")

// number reads what streams.number has written.
func (s *source) number(stream int) uint64 {
	size := uint(s.s[stream].Byte())
	switch {
	case size < sizes:
		return s.take(size)
	case size < 2*sizes:
		return s.take(size-sizes) * 1000
	case size < 3*sizes:
		return s.take(size-2*sizes) * 4096
	}
	s.s[stream].Fail(errSize)
	return 0
}

// take reads a number of so many bits, the highest of which is not there because it is always set.
func (s *source) take(size uint) uint64 {
	if size <= 1 {
		return uint64(size)
	}
	n := size - 1
	return s.raw(n) | 1<<n
}

func (s *source) signed(stream int) int64 {
	v := s.number(stream)
	if v != 0 && s.raw(1) != 0 {
		v = -v
	}
	return int64(v)
}

// raw reads n bits, at most 63.
func (s *source) raw(n uint) uint64 {
	if n > s.end-s.pos {
		s.s[streamBits].Fail(wire.ErrShort)
		return 0
	}
	at, shift := s.pos>>3, s.pos&7
	s.pos += n
	v := binary.LittleEndian.Uint64(s.bits[at:]) >> shift
	if n+shift > 64 {
		v |= uint64(s.bits[at+8]) << (64 - shift)
	}
	return v & (1<<n - 1)
}

// expectedSum is what waits in these buckets come to if each is as long as the middle of its bucket, in whole microseconds.
func expectedSum(buckets []signal.Bucket) uint64 {
	sum := uint64(0)
	for _, b := range buckets {
		sum += uint64(b.Count) * middles[min(int(b.Index), histogram.Overflow)]
	}
	return sum / 1000 * 1000
}

var middles = func() (m [histogram.Buckets]uint64) {
	for i := range m {
		m[i] = histogram.Lower(i)
		if i < histogram.Overflow {
			m[i] += (histogram.Upper(i) - m[i]) / 2
		}
	}
	return m
}()

// How a stream is compressed.
const (
	packNone = iota
	packZstd
	packHuff1 // huff0, as one stream
	packHuff4 // huff0, as four, which is faster to read
	packMethods
)

// packer compresses.
type packer struct {
	zstd *zstd.Encoder
	huff huff0.Scratch
	buf  []byte
}

func newPacker() (*packer, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true))
	return &packer{zstd: z, huff: huff0.Scratch{Reuse: huff0.ReusePolicyNone}}, err
}

// stream appends a stream: its length and how it is compressed, its length then, and itself.
func (p *packer) stream(dst, b []byte, index int) []byte {
	switch {
	case len(b) < 32 || index == streamBits:
		return plain(dst, b)
	case index >= streamStepSize || index == streamPreempted || index == streamShape || index == streamFirst || index == streamBlamed || index == streamWait:
		// Nothing repeats in these, so that looking for it costs time and even bytes.
		if out, ok := p.huffman(dst, b); ok {
			return out
		}
	}
	return p.whole(dst, b)
}

// whole appends something by itself.
func (p *packer) whole(dst, b []byte) []byte {
	p.buf = p.zstd.EncodeAll(b, p.buf[:0])
	if len(p.buf) >= len(b)-len(b)/32 {
		return plain(dst, b)
	}
	return packed(dst, packZstd, len(b), p.buf)
}

func plain(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))*packMethods+packNone), b...)
}

func packed(dst []byte, method, raw int, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(raw*packMethods+method))
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func (p *packer) huffman(dst, b []byte) ([]byte, bool) {
	const four = 1 << 10 // bytes from which four streams are worth their six bytes
	method, compress := packHuff1, huff0.Compress1X
	if len(b) >= four {
		method, compress = packHuff4, huff0.Compress4X
	}
	if len(b) > huff0.BlockSizeMax {
		return dst, false
	}
	out, _, err := compress(b, &p.huff)
	if err != nil {
		return dst, false // it says that it is not worth it, or all the same byte
	}
	return packed(dst, method, len(b), out), true
}

// unpacker decompresses.
type unpacker struct {
	zstd *zstd.Decoder
	huff huff0.Scratch
}

func newUnpacker() (*unpacker, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecodeAllCapLimit(true))
	return &unpacker{zstd: z}, err
}

// whole is the inverse of packer.whole, for all of b.
func (u *unpacker) whole(dst, b []byte) ([]byte, error) {
	src := wire.NewSource(b, 0)
	dst, err := u.stream(dst, &src)
	if err == nil && src.Left() != 0 {
		err = errors.New("there is more in it than it says")
	}
	return dst, err
}

// stream reads a stream into the memory of dst.
func (u *unpacker) stream(dst []byte, src *wire.Source) ([]byte, error) {
	head := src.Uvarint()
	raw, method := head/packMethods, head%packMethods
	if method == packNone {
		dst = append(dst[:0], src.Bytes(int(min(raw, maxRaw)))...)
		return dst, src.Err()
	}
	if raw > maxRaw {
		return dst, fmt.Errorf("%d bytes: no more than %d are believed", raw, maxRaw)
	}
	b := src.Bytes(int(min(src.Uvarint(), maxRaw)))
	if src.Err() != nil {
		return dst, src.Err()
	}
	if uint64(cap(dst)) < raw {
		// What is claimed is only believed as far as the compressed bytes could possibly hold it.
		if raw > 1<<20 && raw > uint64(len(b))*20_000 {
			return dst, fmt.Errorf("%d bytes out of %d", raw, len(b))
		}
		dst = make([]byte, 0, raw+raw/4)
	}
	out, err := u.unpack(dst[:0:raw], b, method)
	if err != nil {
		return dst, fmt.Errorf("decompress: %w", err)
	}
	if uint64(len(out)) != raw {
		return dst, fmt.Errorf("%d bytes after decompression, not %d", len(out), raw)
	}
	return out, nil
}

func (u *unpacker) unpack(dst, b []byte, method uint64) ([]byte, error) {
	if method == packZstd {
		return u.zstd.DecodeAll(b, dst)
	}
	if cap(dst) > huff0.BlockSizeMax {
		return nil, fmt.Errorf("a block of %d bytes", cap(dst))
	}
	_, rest, err := huff0.ReadTable(b, &u.huff)
	if err != nil {
		return nil, err
	}
	if method == packHuff4 {
		return u.huff.Decoder().Decompress4X(dst[:cap(dst)], rest)
	}
	return u.huff.Decoder().Decompress1X(dst, rest)
}
