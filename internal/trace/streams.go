package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"
	"unsafe"

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

// rateUnit is one dispatch a reading.
const rateUnit = 16

// bucketSplit is how many of the eight bits of a bucket's byte say the gap before it; the rest say its count less one. All bits set say that the
// rest of the number follows.
type bucketSplit uint8

// splits are the ways to split it that are in use: gaps and small counts alike, or, for containers that are dispatched so often that there are few
// gaps, larger counts.
var splits = [...]bucketSplit{4, 2}

const (
	splitEven = iota
	splitCounts
	numSplits = len(splits)
)

// splitsOf is how the bytes of buckets are split in a format, by the container's rate.
func splitsOf(format uint32) *[numRates]uint8 {
	var s [numRates]uint8
	if format >= 4 {
		s[numRates-1] = splitCounts
	}
	return &s
}

// gap and count are the greatest that a byte holds, which say that the rest follows.
func (s bucketSplit) gap() uint64   { return 1<<s - 1 }
func (s bucketSplit) count() uint64 { return 1<<(8-s) - 1 }

// code is the byte for a gap and a count less one.
func (s bucketSplit) code(gap, count uint64) byte {
	return byte(min(gap, s.gap())<<(8-s) | min(count, s.count()))
}

// take is the inverse of code. rest: some of it follows.
func (s bucketSplit) take(code byte) (gap, count uint64, rest bool) {
	gap, count = uint64(code)>>(8-s), uint64(code)&s.count()
	return gap, count, gap == s.gap() || count == s.count()
}

// foretold is when a new sample is read, and what it covers.
func (b *waitBase) foretold(now time.Duration) (at, span time.Duration) {
	if b.at == 0 {
		return 0, 0
	}
	return now, now - b.at
}

// smooth takes the dispatches of a reading in.
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

	domains []signal.RDTDomainSample // scratch
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
	s    [numStreams]wire.Source // streamBits is only for its error
	bits unsafe.Pointer          // with bitPadding more bytes
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
	s.bits, s.pos, s.end = unsafe.Pointer(unsafe.SliceData(b[streamBits])), 0, uint(n)*8
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

// sizeCode is what the byte with the size of a number says: how many bits of it follow, whether there is one more, which is set, above
// them, and what it is multiplied by; 0 is no size.
type sizeCode struct {
	bits, one uint8
	scale     uint16
}

var sizeCodes = func() (c [256]sizeCode) {
	for scale, by := range scales {
		for n := range sizes {
			c[scale*sizes+n] = sizeCode{uint8(max(n-1, 0)), uint8(min(n, 1)), uint16(by)}
		}
	}
	return c
}()

var errSize = errors.New("a number of an impossible size")

// number reads what streams.number has written.
func (s *source) number(stream int) uint64 {
	c := sizeCodes[s.s[stream].Byte()]
	var v uint64
	if n, pos := uint(c.bits), s.pos; n <= atOnce && n <= s.end-pos { // most are
		s.pos = pos + n
		v = s.load(pos) & (1<<(n&63) - 1)
	} else {
		v = s.raw(n)
	}
	if c.scale == 0 {
		s.s[stream].Fail(errSize)
	}
	return (v | uint64(c.one)<<(c.bits&63)) * uint64(c.scale)
}

// signed reads what streams.signed has written.
func (s *source) signed(stream int) int64 {
	c := sizeCodes[s.s[stream].Byte()]
	n, pos := uint(c.bits), s.pos
	var v, sign uint64
	switch {
	case c.one == 0:
		if c.scale == 0 {
			s.s[stream].Fail(errSize)
		}
		return 0
	case n < atOnce && n < s.end-pos: // the number and its sign
		s.pos = pos + n + 1
		v = s.load(pos)
		v, sign = v&(1<<(n&63)-1), v>>(n&63)&1
	default:
		v, sign = s.raw(n), s.raw(1)
	}
	v = (v | 1<<(n&63)) * uint64(c.scale)
	return int64(v ^ -sign + sign)
}

// atOnce is how many bits load has at least.
const atOnce = 57

// load is the bits from pos on, which must not be beyond the end: there is padding behind it.
func (s *source) load(pos uint) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(s.bits, pos>>3))[:]) >> (pos & 7)
}

// raw reads n bits, at most 63.
func (s *source) raw(n uint) uint64 {
	pos := s.pos
	if n > s.end-pos {
		s.s[streamBits].Fail(wire.ErrShort)
		return 0
	}
	s.pos = pos + n
	v := s.load(pos)
	if shift := pos & 7; n+shift > 64 {
		v |= uint64(*(*byte)(unsafe.Add(s.bits, pos>>3+8))) << (64 - shift)
	}
	return v & (1<<(n&63) - 1)
}

// expectedSum is what waits in these buckets come to if each is as long as the middle of its bucket, in whole microseconds.
func expectedSum(buckets []signal.Bucket) uint64 {
	sum := uint64(0)
	for _, b := range buckets {
		sum += uint64(b.Count) * middles[uint8(b.Index)]
	}
	return sum / 1000 * 1000
}

// middles are the middles of buckets, ns. It is longer than there are buckets, so that it need not be asked whether a byte is an index of it.
var middles = func() (m [256]uint64) {
	for i := range histogram.Buckets {
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
	packHuff1      // huff0, as one stream
	packHuff4      // huff0, as four, which is faster to read
	packHuff1Again // the same with the code that the stream had last, in this frame's key frame or since
	packHuff4Again
	packMethods
)

// packer compresses.
type packer struct {
	zstd *zstd.Encoder
	code [numStreams]code
	buf  []byte
}

// code is the Huffman code of a stream. What a stream is made of is much the same from frame to frame, so a code is made of all that was seen
// of late, is kept, and is written again only in a key frame, for a byte that it lacks, or when another would be a lot better.
type code struct {
	huff  *huff0.Scratch
	known bool        // a reader that began at the last key frame has it
	seen  [256]uint32 // how often each byte came of late
	count [256]uint32 // in the present frame
}

func newPacker() (*packer, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true))
	return &packer{zstd: z}, err
}

// key begins a frame that is read without those before it.
func (p *packer) key() {
	for i := range p.code {
		c := &p.code[i]
		c.known = false
		for k := range c.seen {
			c.seen[k] /= 2
		}
	}
}

// stream appends a stream: its length and how it is compressed, its length then, and itself.
func (p *packer) stream(dst, b []byte, index int) []byte {
	switch {
	case len(b) < 32 || index == streamBits:
		return plain(dst, b)
	case index >= streamStepSize || index == streamPreempted || index == streamShape || index == streamFirst || index == streamBlamed || index == streamWait || index == streamCulprits:
		// Nothing repeats in these, so that looking for it costs time and even bytes.
		if out, ok := p.huffman(dst, b, index); ok {
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

func (p *packer) huffman(dst, b []byte, index int) ([]byte, bool) {
	const four = 1 << 10 // bytes from which four streams are worth their six bytes
	method, compress := packHuff1, huff0.Compress1X
	if len(b) >= four {
		method, compress = packHuff4, huff0.Compress4X
	}
	if len(b) > huff0.BlockSizeMax {
		return dst, false
	}
	c := &p.code[index]
	table, ok := c.take(b)
	if !ok {
		return dst, false
	}
	c.huff.Reuse, c.huff.Out = huff0.ReusePolicyMust, p.buf[:0]
	out, _, err := compress(b, c.huff)
	p.buf, c.huff.Out = c.huff.Out, nil // one buffer is enough
	if err != nil || len(out)+len(table) >= len(b)-len(b)/32 {
		c.known = c.known && table == nil
		return dst, false
	}
	c.known = true
	if table == nil {
		return packed(dst, method+packHuff1Again-packHuff1, len(b), out), true
	}
	dst = binary.AppendUvarint(dst, uint64(len(b)*packMethods+method))
	dst = binary.AppendUvarint(dst, uint64(len(table)+len(out)))
	return append(append(dst, table...), out...), true
}

// take counts the bytes of a frame and makes a code for them if the present one will not do: then table is the code as it is to be written. It
// is not ok if there is nothing to gain.
func (c *code) take(b []byte) (table []byte, ok bool) {
	clear(c.count[:])
	for _, x := range b {
		c.count[x]++
	}
	for i, n := range c.count {
		c.seen[i] += n
	}
	if c.known {
		const worth = 80 // bytes of a code and a bit
		if n := c.huff.EstimateSize(&c.count); n >= 0 && n <= entropy(&c.count, len(b))+worth+n/32 {
			return nil, true
		}
	}
	if c.huff == nil {
		c.huff = &huff0.Scratch{}
	}
	c.known = false
	if c.huff.BuildCTable(&c.seen) != nil {
		return nil, false // there is only one byte
	}
	table, err := c.huff.AppendTable(nil)
	return table, err == nil
}

// entropy is how many bytes a perfect code would take.
func entropy(count *[256]uint32, total int) int {
	bits := 0.0
	for _, n := range count {
		if n > 0 {
			bits += float64(n) * math.Log2(float64(total)/float64(n))
		}
	}
	return int(bits / 8)
}

// unpacker decompresses.
type unpacker struct {
	zstd *zstd.Decoder
	huff [numStreams]huffman
}

// huffman is the code that a stream had last.
type huffman struct {
	table *huff0.Scratch
	code  *huff0.Decoder // nil: none since the key frame
}

func newUnpacker() (*unpacker, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecodeAllCapLimit(true))
	return &unpacker{zstd: z}, err
}

// key begins a frame that needs none before it.
func (u *unpacker) key() {
	for i := range u.huff {
		u.huff[i].code = nil
	}
}

// whole is the inverse of packer.whole, for all of b.
func (u *unpacker) whole(dst, b []byte) ([]byte, error) {
	src := wire.NewSource(b, 0)
	dst, err := u.stream(dst, &src, streamBits)
	if err == nil && src.Left() != 0 {
		err = errors.New("there is more in it than it says")
	}
	return dst, err
}

// stream reads a stream into the memory of dst.
func (u *unpacker) stream(dst []byte, src *wire.Source, index int) ([]byte, error) {
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
	out, err := u.unpack(dst[:0:raw], b, method, &u.huff[index])
	if err != nil {
		return dst, fmt.Errorf("decompress: %w", err)
	}
	if uint64(len(out)) != raw {
		return dst, fmt.Errorf("%d bytes after decompression, not %d", len(out), raw)
	}
	return dst[:raw], nil // which is where out is: there was room for it, and keeps all of its capacity
}

func (u *unpacker) unpack(dst, b []byte, method uint64, h *huffman) (_ []byte, err error) {
	if method == packZstd {
		return u.zstd.DecodeAll(b, dst)
	}
	if cap(dst) > huff0.BlockSizeMax {
		return nil, fmt.Errorf("a block of %d bytes", cap(dst))
	}
	switch method {
	case packHuff1, packHuff4:
		h.code = nil
		if h.table, b, err = huff0.ReadTable(b, h.table); err != nil {
			return nil, err
		}
		h.code = h.table.Decoder()
	case packHuff1Again, packHuff4Again:
		if h.code == nil {
			return nil, errors.New("it goes by the code of a frame that was not read")
		}
	}
	if method == packHuff4 || method == packHuff4Again {
		return h.code.Decompress4X(dst[:cap(dst)], b)
	}
	return h.code.Decompress1X(dst, b)
}
