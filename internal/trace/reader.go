package trace

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"slices"
	"time"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// Reader reads one file, front to back or from a place found by time. It keeps one frame in memory. It is not safe for concurrent use.
type Reader struct {
	name   string
	in     io.ReaderAt
	closer io.Closer
	size   int64
	unpack *unpacker
	format uint32
	info   Info
	plan   plan
	index  []IndexEntry
	closed bool // the file has an index
	torn   error

	policies []*policy.Compiled // by index, from 1

	// Where we are.
	offset   int64 // of the next frame
	frames   int   // the number of the next frame
	header   frameHeader
	at       int64 // of the frame that is being read
	left     uint32
	s        source
	buf      []byte // of the file ...
	bufAt    int64  // ... from there on
	streams  [numStreams][]byte
	bytes    [numStreams]StreamBytes
	hasBase  bool
	state    []byte
	hasState bool
	// A checkpoint as it is in the file, and where. Few are looked at.
	packed      []byte
	packedFrame int
	packedAt    int64

	base       base
	containers []signal.ContainerSample // of the last tick, with waits
	spare      []signal.ContainerSample
	splits     *[numRates]uint8         // of buckets' bytes, by rate
	quiet      []signal.ContainerSample // the same without waits, for events
	isQuiet    bool
	own        []signal.ContainerSample // an event's own
	buckets    []signal.Bucket
	blame      []signal.Blame
	events     []signal.WaitEvent
	podBytes   []byte       // the list of pods of the last key frame, as written ...
	keyPods    []signal.Pod // ... and read
	zones      map[zone]*time.Location
	digest     Digest
	decided    decide.Decision // the kept fields
	snaps      [2]signal.Snapshot
	step       Step
}

type zone struct {
	name   string
	offset int
}

// plan is how to read what this file's writer wrote.
type plan struct {
	container, node, lost, event *recordType
	pod, outcome, whole          *wire.Decoder
	decision                     []readField
	ours                         []decisionField
	missing, dropped             []string
}

// readField is a field of a decision in the file's order.
type readField struct {
	index  int // in our order; -1: we do not know it
	offset uintptr
	d      *wire.Decoder // nil: only a digest
	known  bool
}

// Open opens a file. The error is a *FormatError, or one of the operating system.
func Open(file string) (*Reader, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = &FormatError{File: file, Frame: -1, Err: fmt.Errorf("%w: it is a directory", ErrNotTrace)}
	}
	var r *Reader
	if err == nil {
		r, err = NewReader(file, f, st.Size())
	}
	if err != nil {
		_ = f.Close() // only read from
		return nil, err
	}
	r.closer = f
	return r, nil
}

// NewReader reads size bytes of in; name is for messages.
func NewReader(name string, in io.ReaderAt, size int64) (*Reader, error) {
	u, err := newUnpacker()
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	r := &Reader{name: name, in: in, size: size, unpack: u, offset: preambleLen, zones: map[zone]*time.Location{}}
	first := make([]byte, min(preambleLen, size))
	if _, err := in.ReadAt(first, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, r.fail(-1, 0, err)
	}
	if r.format, err = checkPreamble(first); err != nil {
		return nil, r.fail(-1, 0, err)
	}
	payload, err := r.read()
	if err == io.EOF || err == nil && r.header.kind != frameInfo {
		err = r.fail(0, preambleLen, errors.New("the facts about the node are missing"))
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(payload, &r.info); err != nil {
		return nil, r.fail(0, r.at, fmt.Errorf("facts about the node: %w", err))
	}
	if r.plan, err = newPlan(&r.info.Schema); err != nil {
		return nil, r.fail(0, r.at, err)
	}
	r.digest = make(Digest, len(r.plan.ours))
	r.splits = splitsOf(r.format)
	if err := r.loadIndex(); err != nil {
		return nil, err
	}
	if err := r.loadPolicies(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close lets go of the file and the memory for decompression.
func (r *Reader) Close() error {
	r.unpack.zstd.Close()
	if r.closer != nil {
		return r.closer.Close()
	}
	return nil
}

// Name is the file's name.
func (r *Reader) Name() string { return r.name }

// Size is the file's size in bytes.
func (r *Reader) Size() int64 { return r.size }

// Pos is how many bytes have been read, for progress bars.
func (r *Reader) Pos() int64 { return r.offset }

// Info is what the file says about itself.
func (r *Reader) Info() *Info { return &r.info }

// Missing are fields that the writer did not record, since it was an older version: they are zero. Dropped are those that it recorded
// and that this version does not know.
func (r *Reader) Missing() []string { return r.plan.missing }

// Dropped: see Missing.
func (r *Reader) Dropped() []string { return r.plan.dropped }

// Complete reports whether the file was closed by its writer. If not, the writer is still at it, or was killed.
func (r *Reader) Complete() bool { return r.closed }

// Torn says what was wrong with the end of the file, if it ended in the middle of a frame. It is known when Next has returned io.EOF.
func (r *Reader) Torn() error { return r.torn }

// Index is where reading may begin.
func (r *Reader) Index() []IndexEntry { return r.index }

// Policies are all that the file refers to.
func (r *Reader) Policies() []*policy.Compiled { return r.policies }

// StreamBytes is what a stream takes in a file, and what it is before compression.
type StreamBytes struct{ Packed, Raw int64 }

// Bytes is what each stream takes in the frames of steps that have been read so far; see StreamName. Headers, policies and checkpoints
// are the rest of the file.
func (r *Reader) Bytes() []StreamBytes {
	out := slices.Clone(r.bytes[:streamBuckets+1])
	for _, b := range r.bytes[streamBuckets+1:] {
		out[streamBuckets].Packed += b.Packed
		out[streamBuckets].Raw += b.Raw
	}
	return out
}

// Range is the time of the first step and, as far as it can be told without reading everything, of the last.
func (r *Reader) Range() (first, last time.Time, err error) {
	var h frameHeader
	found := false
	for _, e := range r.index {
		if e.Policy {
			continue
		}
		if first.IsZero() {
			first = time.Unix(0, e.Wall)
		}
		h, found = frameHeader{}, true
	}
	if !found {
		return first, last, nil
	}
	for offset := r.index[len(r.index)-1].Offset; ; {
		if err := r.peek(offset, &h); err != nil {
			return first, last, nil // the torn end, or the end
		}
		if h.kind == frameSteps {
			last = time.Unix(0, h.lastWall)
		}
		offset += headerLen + int64(h.length)
	}
}

func (r *Reader) fail(frame int, offset int64, err error) error {
	return &FormatError{File: r.name, Frame: frame, Offset: offset, Err: err}
}

// peek reads the header at an offset.
func (r *Reader) peek(offset int64, h *frameHeader) error {
	var b [headerLen]byte
	if _, err := r.in.ReadAt(b[:], offset); err != nil {
		return err
	}
	return h.parse(b[:])
}

// readAhead is how much is read of the file at once.
const readAhead = 64 << 10

// fetch is n bytes of the file, which has them. They are valid until the next call.
func (r *Reader) fetch(offset, n int64) ([]byte, error) {
	if from := offset - r.bufAt; from >= 0 && from+n <= int64(len(r.buf)) {
		return r.buf[from : from+n], nil
	}
	more := max(n, min(readAhead, r.size-offset))
	r.buf, r.bufAt = slices.Grow(r.buf[:0], int(more))[:more], offset
	if _, err := r.in.ReadAt(r.buf, offset); err != nil {
		r.buf = r.buf[:0]
		return nil, err
	}
	return r.buf[:n], nil
}

// read reads the next frame. It returns io.EOF at the end of the file, be it torn or not.
func (r *Reader) read() ([]byte, error) {
	r.at = r.offset
	frame := r.frames
	if r.size-r.offset < headerLen {
		if r.size > r.offset && !r.closed {
			r.torn = r.fail(frame, r.offset, fmt.Errorf("the file ends %d bytes into a frame", r.size-r.offset))
		}
		return nil, io.EOF
	}
	b, err := r.fetch(r.offset, headerLen)
	if err != nil {
		return nil, r.fail(frame, r.offset, err)
	}
	if err := r.header.parse(b); err != nil {
		return nil, r.damaged(frame, err)
	}
	n := int64(r.header.length)
	if r.offset+headerLen+n > r.size {
		return nil, r.damaged(frame, fmt.Errorf("the file ends %d bytes into a frame of %d", r.size-r.offset, headerLen+n))
	}
	b, err = r.fetch(r.offset+headerLen, n)
	if err != nil {
		return nil, r.fail(frame, r.offset, err)
	}
	if crc32.Checksum(b, castagnoli) != r.header.crc {
		return nil, r.damaged(frame, errChecksum)
	}
	r.offset += headerLen + n
	r.frames++
	return b, nil
}

// damaged tells a torn end, after which nothing sensible follows, from damage in the middle.
func (r *Reader) damaged(frame int, err error) error {
	next := int64(-1)
	if !r.closed {
		if next = r.resync(r.offset + 4); next < 0 {
			r.torn = r.fail(frame, r.offset, err)
			r.offset = r.size
			return io.EOF
		}
		err = fmt.Errorf("%w; the next frame that can be read is at byte %d", err, next)
	}
	return r.fail(frame, r.offset, err)
}

// resync finds the next whole frame from an offset on, or -1.
func (r *Reader) resync(from int64) int64 {
	const step = 64 << 10
	mark := binary.LittleEndian.AppendUint32(nil, syncWord)
	buf := make([]byte, step+headerLen)
	for ; from < r.size; from += step {
		n, _ := r.in.ReadAt(buf, from) // a short read is the end
		for i := 0; i+headerLen <= n; {
			k := bytes.Index(buf[i:n], mark)
			if k < 0 {
				break
			}
			i += k
			var h frameHeader
			if i+headerLen <= n && h.parse(buf[i:]) == nil && r.whole(from+int64(i), &h) {
				return from + int64(i)
			}
			i++
		}
	}
	return -1
}

func (r *Reader) whole(offset int64, h *frameHeader) bool {
	if offset+headerLen+int64(h.length) > r.size {
		return false
	}
	b := make([]byte, h.length)
	_, err := r.in.ReadAt(b, offset+headerLen)
	return err == nil && crc32.Checksum(b, castagnoli) == h.crc
}

// loadIndex reads the index, or makes one of the headers of a file that was not closed.
func (r *Reader) loadIndex() error {
	var t [trailerLen]byte
	if r.size >= preambleLen+headerLen+trailerLen {
		if _, err := r.in.ReadAt(t[:], r.size-trailerLen); err != nil {
			return r.fail(-1, r.size-trailerLen, err)
		}
	}
	if string(t[8:]) != trailerMagic {
		r.scan()
		return nil
	}
	r.closed = true
	at := int64(binary.LittleEndian.Uint64(t[:]))
	var h frameHeader
	if at < preambleLen || at > r.size-headerLen-trailerLen {
		return r.fail(-1, r.size-trailerLen, errors.New("the trailer points outside of the file"))
	}
	if err := r.peek(at, &h); err != nil || h.kind != frameIndex || at+headerLen+int64(h.length)+trailerLen != r.size {
		return r.fail(-1, at, errors.New("there is no index where the trailer says"))
	}
	b := make([]byte, h.length)
	if _, err := r.in.ReadAt(b, at+headerLen); err != nil {
		return r.fail(-1, at, err)
	}
	if crc32.Checksum(b, castagnoli) != h.crc {
		return r.fail(-1, at, fmt.Errorf("index: %w", errChecksum))
	}
	s := wire.NewSource(b, maxMemory)
	n := s.Count(4)
	for range n {
		e := IndexEntry{Offset: int64(s.Uvarint()), Seq: s.Uvarint()}
		flags := s.Byte()
		e.State, e.Policy, e.Wall = flags&1 != 0, flags&2 != 0, s.Varint()
		if e.Offset < preambleLen || e.Offset >= at {
			s.Fail(errors.New("an entry points outside of the file"))
		}
		r.index = append(r.index, e)
	}
	if s.Err() != nil {
		return r.fail(-1, at, fmt.Errorf("index: %w", s.Err()))
	}
	return nil
}

// scan makes the index from headers. It ends at the first that cannot be read; Next will say why.
func (r *Reader) scan() {
	var h frameHeader
	for offset := r.offset; r.peek(offset, &h) == nil; offset += headerLen + int64(h.length) {
		switch {
		case h.kind == framePolicy:
			r.index = append(r.index, IndexEntry{Offset: offset, Policy: true})
		case h.kind == frameState:
			r.index = append(r.index, IndexEntry{Offset: offset, Seq: h.seq, Wall: h.firstWall, State: true})
		case h.kind == frameSteps && h.flags&flagKey != 0:
			if n := len(r.index); n == 0 || !r.index[n-1].State || r.index[n-1].Seq != h.seq {
				r.index = append(r.index, IndexEntry{Offset: offset, Seq: h.seq, Wall: h.firstWall})
			}
		}
	}
}

func (r *Reader) loadPolicies() error {
	was, frames := r.offset, r.frames
	for _, e := range r.index {
		if !e.Policy {
			continue
		}
		if len(r.policies) >= maxPolicies {
			return r.fail(-1, e.Offset, fmt.Errorf("more than %d policies", maxPolicies))
		}
		r.offset = e.Offset
		b, err := r.read()
		if err == nil && r.header.kind != framePolicy {
			err = r.fail(-1, e.Offset, fmt.Errorf("a frame of kind %s where the index has a policy", r.header.kind))
		}
		if err == io.EOF {
			break // the torn end
		} else if err != nil {
			return err
		}
		p, err := policy.Import(b)
		if err != nil {
			return r.fail(-1, e.Offset, err)
		}
		r.policies = append(r.policies, p)
	}
	r.offset, r.frames, r.torn = was, frames, nil
	return nil
}

// Seek makes the next step the first of the last place in the index that is not after t: at or up to a minute before t. With state it goes to
// a place with a checkpoint. Before the first of them, it goes to the first.
func (r *Reader) Seek(t time.Time, state bool) error {
	var found *IndexEntry
	for i := range r.index {
		e := &r.index[i]
		if e.Policy || state && !e.State {
			continue
		}
		if found == nil || e.Wall <= t.UnixNano() {
			found = e
		}
	}
	if found == nil {
		return r.fail(-1, 0, errors.New("there is no place in it to begin at"))
	}
	r.jump(found.Offset)
	return nil
}

func (r *Reader) jump(offset int64) {
	r.offset, r.frames = offset, -1 // frames are not counted after a jump
	r.left, r.hasBase, r.hasState, r.torn = 0, false, false, nil
}

// Next reads a step, or returns io.EOF. What it returns is valid until the next call.
func (r *Reader) Next() (*Step, error) {
	for r.left == 0 {
		b, err := r.read()
		if err != nil {
			return nil, err
		}
		switch r.header.kind {
		case frameSteps:
			if err := r.open(b); err != nil {
				return nil, r.fail(r.frames-1, r.at, err)
			}
		case frameState:
			r.packed, r.hasState = append(r.packed[:0], b...), true
			r.packedFrame, r.packedAt = r.frames-1, r.at
		case frameIndex:
			r.offset = r.size
			return nil, io.EOF
		case frameInfo, framePolicy: // known already
		default:
			return nil, r.fail(r.frames-1, r.at, fmt.Errorf("a frame of %s, which is not known", r.header.kind))
		}
	}
	r.left--
	err := r.decode()
	if err == nil {
		err = r.s.err()
	}
	if err == nil && r.left == 0 && r.s.left() != 0 {
		err = errors.New("there is more in it than its steps")
	}
	if err != nil {
		return nil, r.fail(r.frames-1, r.at, fmt.Errorf("step %d of %d: %w", r.header.steps-r.left, r.header.steps, err))
	}
	return &r.step, nil
}

// checkpoint decompresses the checkpoint that was read last.
func (r *Reader) checkpoint() (_ []byte, err error) {
	if r.state, err = r.unpack.whole(r.state, r.packed); err != nil {
		return nil, r.fail(r.packedFrame, r.packedAt, fmt.Errorf("checkpoint: %w", err))
	}
	return r.state, nil
}

// open takes a frame of steps apart.
func (r *Reader) open(b []byte) error {
	if r.header.flags&flagKey != 0 {
		r.base = base{}
		r.unpack.key()
		r.containers, r.isQuiet, r.hasBase = r.containers[:0], false, true
		for i := range r.digest {
			r.digest[i] = 0
		}
	}
	if !r.hasBase {
		return errors.New("it continues frames that were not read")
	}
	src := wire.NewSource(b, 0)
	for i := range r.streams {
		var err error
		from := src.Pos()
		if r.streams[i], err = r.unpack.stream(r.streams[i], &src, i); err != nil {
			return fmt.Errorf("%s: %w", StreamName(i), err)
		}
		r.bytes[i].Packed += int64(src.Pos() - from)
		r.bytes[i].Raw += int64(len(r.streams[i]))
	}
	if src.Left() != 0 {
		return errors.New("there is more in it than its streams")
	}
	// A step has three bytes of flags at least.
	if n := len(r.streams[streamStep]); r.header.steps == 0 || int(r.header.steps) > n {
		return fmt.Errorf("%d steps in %d bytes", r.header.steps, n)
	}
	r.s.open(&r.streams)
	r.left = r.header.steps
	return nil
}

// decode reads one step.
func (r *Reader) decode() error {
	s, b := &r.s, &r.base
	step := &r.step
	*step = Step{Outcomes: step.Outcomes[:0]}
	if r.hasState {
		step.packed, r.hasState = r, false
	}
	flags := s.s[streamStep].Uvarint()
	if flags >= stepFlags {
		return fmt.Errorf("flags %#x are not known", flags)
	}
	event := flags&stepEvent != 0
	r.snaps[0], r.snaps[1] = r.snaps[1], r.snaps[0]
	snap := &r.snaps[0]
	*snap = signal.Snapshot{}

	snap.Seq = b.seq + 1
	if flags&stepSeq != 0 {
		snap.Seq = s.number(streamStepSize)
	}
	passed := s.signed(streamStepSize)
	snap.Now = b.now + time.Duration(passed)
	wall := b.wall + passed + s.signed(streamStepSize)
	if !event && b.ticked != 0 {
		snap.Elapsed = snap.Now - b.ticked
	}
	if flags&stepElapsed != 0 {
		snap.Elapsed = time.Duration(s.signed(streamStepSize))
	}
	snap.PodsGen = b.podsGen
	if flags&stepGen != 0 {
		snap.PodsGen += uint64(s.signed(streamStepSize))
	}
	if flags&stepNode != 0 {
		r.record(r.plan.node, unsafe.Pointer(&b.node), snap.Now)
	}
	if flags&stepLost != 0 {
		r.record(r.plan.lost, unsafe.Pointer(&b.lost), snap.Now)
	}
	if flags&stepZone != 0 {
		b.zone, b.zoneOffset = r.text(), int(s.s[streamRare].Varint())
		if b.zoneOffset < -24*3600 || b.zoneOffset > 24*3600 {
			return errors.New("a time zone of more than a day")
		}
	}
	snap.Wall = time.Unix(0, wall).In(r.location(b.zone, b.zoneOffset))
	if flags&stepPolicy != 0 {
		b.policy = s.s[streamRare].Uvarint()
	}
	if b.policy > uint64(len(r.policies)) {
		return fmt.Errorf("policy %d of %d", b.policy, len(r.policies))
	}
	if b.policy > 0 {
		step.Policy = r.policies[b.policy-1]
	}
	if flags&stepDropped != 0 {
		step.Dropped = s.s[streamRare].Uvarint()
	}
	if flags&stepPods != 0 {
		if err := r.podList(); err != nil {
			return err
		}
	}
	if flags&stepEvents != 0 {
		r.readEvents(snap.Now)
		snap.Events = r.events
	}
	snap.Refused = nil
	if flags&stepRefused != 0 {
		for range s.s[streamRare].Count(3) { // each has three lengths there
			snap.Refused = append(snap.Refused, signal.Refusal{Cgroup: r.text(), Knob: r.text(), Reason: r.text()})
		}
	}
	if event {
		snap.Trigger = signal.Event
	}
	switch {
	case flags&stepContainers != 0:
		if err := r.ownContainers(); err != nil {
			return err
		}
		snap.Containers = r.own
	case event:
		snap.Containers = r.quietContainers()
	default:
		if flags&stepRoster != 0 {
			if err := r.roster(); err != nil {
				return err
			}
		}
		if err := r.readContainers(snap); err != nil {
			return err
		}
		snap.Containers = r.containers
		b.ticked = snap.Now
	}
	if step.Policy != nil {
		if flags&stepValues != 0 {
			if err := r.decision(); err != nil {
				return err
			}
		}
		step.Decision, step.Digest = r.decided, r.digest
	}
	if flags&stepOutcomes != 0 {
		if err := r.outcomes(); err != nil {
			return err
		}
	}
	b.seq, b.now, b.wall, b.podsGen = snap.Seq, snap.Now, wall, snap.PodsGen
	snap.Node, snap.Lost, snap.Pods = b.node, b.lost, b.pods
	step.Snapshot = snap
	return r.validate(snap)
}

// validate keeps indexes that lead nowhere from whoever uses the snapshot.
func (r *Reader) validate(snap *signal.Snapshot) error {
	for i := range snap.Events {
		if v := snap.Events[i].Victim; v < 0 || v >= len(snap.Containers) {
			return fmt.Errorf("event %d is about container %d of %d", i, v, len(snap.Containers))
		}
	}
	return nil
}

func (r *Reader) text() string {
	return string(r.s.s[streamRare].Bytes(r.s.s[streamRare].Count(1)))
}

func (r *Reader) location(name string, offset int) *time.Location {
	if name == "UTC" && offset == 0 {
		return time.UTC
	}
	z := zone{name, offset}
	loc := r.zones[z]
	if loc == nil {
		loc = time.FixedZone(name, offset)
		if len(r.zones) < 64 { // there are two a year
			r.zones[z] = loc
		}
	}
	return loc
}

func (r *Reader) record(t *recordType, p unsafe.Pointer, now time.Duration) {
	mask := r.s.s[streamStep].Byte()
	for i := 0; mask != 0; i, mask = i+1, mask>>1 {
		if mask&1 == 0 {
			continue
		}
		if i >= len(t.parts) {
			r.s.s[streamStep].Fail(errors.New("a part that the schema does not know has changed"))
			return
		}
		t.parts[i].decode(&r.s, p, uint64(now))
	}
}

func (r *Reader) podList() error {
	b, src := &r.base, &r.s.s[streamRare]
	// A key frame has all of them, which mostly are those of the one before.
	key := b.pods == nil
	if known := r.podBytes; key && known != nil && bytes.HasPrefix(src.Rest(), known) {
		src.Bytes(len(known))
		b.pods = r.keyPods
		return nil
	}
	rest := src.Rest()
	n := src.Count(1)
	if n > maxPods {
		return fmt.Errorf("%d pods", n)
	}
	pods := make([]signal.Pod, n) // a new list: whoever has the old one keeps it
	next := 0
	for i := range pods {
		ref := src.Uvarint()
		if ref == 0 {
			if err := r.plan.pod.Decode(src, unsafe.Pointer(&pods[i])); err != nil {
				return err
			}
			continue
		}
		k := next + int(wire.Unzigzag(ref-1))
		if k < 0 || k >= len(b.pods) {
			return fmt.Errorf("pod %d was not there before", k)
		}
		pods[i] = b.pods[k]
		next = k + 1
	}
	b.pods = pods
	if key && src.Err() == nil {
		r.podBytes, r.keyPods = append(r.podBytes[:0], rest[:len(rest)-src.Left()]...), pods
	}
	return nil
}

func (r *Reader) readEvents(now time.Duration) {
	n := r.s.s[streamRare].Uvarint()
	if n > min(maxEvents, uint64(r.s.s[streamStep].Left())) { // each has a byte there
		r.s.s[streamStep].Fail(wire.ErrShort)
		return
	}
	r.events = r.events[:0]
	for range n {
		r.events = append(r.events, signal.WaitEvent{})
		r.record(r.plan.event, unsafe.Pointer(&r.events[len(r.events)-1]), now)
	}
}

func (r *Reader) ownContainers() error {
	n := r.s.s[streamRare].Count(1)
	if n > maxContainers {
		return fmt.Errorf("%d containers", n)
	}
	r.own = make([]signal.ContainerSample, n)
	for i := range r.own {
		if err := r.plan.whole.Decode(&r.s.s[streamRare], unsafe.Pointer(&r.own[i])); err != nil {
			return err
		}
		if err := r.validContainer(&r.own[i]); err != nil {
			return err
		}
	}
	return nil
}

// validContainer keeps indexes that lead nowhere from whoever uses the snapshot.
func (r *Reader) validContainer(c *signal.ContainerSample) error {
	if c.Pod < 0 || c.Pod >= len(r.base.pods) || c.Container < 0 || c.Container >= len(r.base.pods[c.Pod].Containers) {
		return fmt.Errorf("container %d of pod %d is not there", c.Container, c.Pod)
	}
	for _, b := range c.Wait.Buckets {
		if b.Index >= histogram.Buckets {
			return errRange
		}
	}
	return nil
}

func (r *Reader) quietContainers() []signal.ContainerSample {
	if !r.isQuiet {
		r.isQuiet = true
		r.quiet = append(r.quiet[:0], r.containers...)
		for i := range r.quiet {
			r.quiet[i].Wait = signal.WaitSample{}
		}
	}
	return r.quiet
}

// roster rearranges the containers of the last tick as those of this one.
func (r *Reader) roster() error {
	n := r.s.s[streamRare].Count(1)
	if n > maxContainers {
		return fmt.Errorf("%d containers", n)
	}
	if len(r.containers) == 0 { // a key frame
		r.containers, r.spare = r.spare[:0], r.containers
	}
	out := slices.Grow(r.spare[:0], n)[:n]
	taken, waits := make([]bool, len(r.containers)), make([]waitBase, n)
	next := 0
	for i := range out {
		ref := r.s.s[streamRare].Uvarint()
		if ref == 0 {
			out[i] = signal.ContainerSample{}
			continue
		}
		k := next + int(wire.Unzigzag(ref-1))
		if k < 0 || k >= len(r.containers) || taken[k] {
			return fmt.Errorf("container %d was not there before", k)
		}
		out[i], waits[i], taken[k] = r.containers[k], r.base.waits[k], true
		next = k + 1
	}
	clear(r.containers) // what they point to belongs to the new ones
	r.containers, r.spare, r.base.waits = out, r.containers, waits
	return nil
}

// readContainers reads a tick's containers into the array that holds those of the last.
func (r *Reader) readContainers(snap *signal.Snapshot) error {
	s, parts := &r.s, r.plan.container.parts
	r.isQuiet = false
	r.buckets, r.blame = r.buckets[:0], r.blame[:0]
	now := uint64(snap.Now)
	masks := s.s[streamParts].Bytes(len(r.containers))
	if len(masks) != len(r.containers) || len(r.base.waits) != len(masks) {
		return wire.ErrShort
	}
	for i, mask := range masks {
		wb := &r.base.waits[i]
		if mask == 0 && wb.old {
			continue // all is as it was
		}
		c := &r.containers[i]
		for todo := mask >> 1; todo != 0; todo &= todo - 1 {
			k := bits.TrailingZeros8(todo)
			if k >= len(parts) {
				return errors.New("a part that the schema does not know has changed")
			}
			parts[k].decode(s, unsafe.Pointer(c), now)
			if k == len(parts)-1 {
				if err := r.validContainer(c); err != nil {
					return err
				}
			}
		}
		if mask&1 != 0 {
			if err := r.readWait(&c.Wait, wb, snap.Now); err != nil {
				return err
			}
		} else if !wb.old { // else it is already
			foretellWait(&c.Wait, wb, snap.Now)
		}
	}
	return nil
}

// foretellWait makes the sample the one that is foretold: a new one that is empty.
func foretellWait(w *signal.WaitSample, b *waitBase, now time.Duration) {
	at, span := b.foretold(now)
	b.at = at
	b.smooth(0)
	w.At, w.Span = at, span
	if w.Count|w.SumNS|w.Preempted != 0 || w.Buckets != nil || w.Blame != nil { // mostly it is empty already
		*w = signal.WaitSample{At: at, Span: span}
	}
}

// readWait reads a sample that is not as foretold. It sets every field of w, each by itself: to put it together and copy it waits for what has just
// been stored.
func (r *Reader) readWait(w *signal.WaitSample, b *waitBase, now time.Duration) error {
	s := &r.s
	flags := s.s[streamWait].Byte()
	if flags >= waitFlags {
		return fmt.Errorf("flags %#x of a wait are not known", flags)
	}
	if flags&waitOld != 0 {
		*w, b.old = signal.WaitSample{At: b.at}, true
		return nil
	}
	stream := rateOf(b.rate)
	at, span := b.foretold(now)
	if flags&waitTimes != 0 {
		at += time.Duration(s.signed(streamValueSize))
		span += time.Duration(s.signed(streamValueSize))
	}
	b.at, b.old = at, false
	w.At, w.Span = at, span
	count, sum, preempted := uint64(0), uint64(0), uint64(0)
	if flags&waitCount != 0 {
		count = uint64(s.signed(streamValueSize))
	}
	if flags&waitSum != 0 {
		sum = uint64(s.signed(streamSumSize))
	}
	if flags&waitPreempted != 0 {
		preempted = s.s[streamPreempted].Uvarint()
	}
	if flags&waitBuckets != 0 {
		buckets, all, err := r.readBuckets(&b.shape, stream)
		if err != nil {
			return err
		}
		w.Buckets = buckets
		count += all.at >> countShift
		if flags&waitSum != 0 {
			sum += all.expected / 1000 * 1000
		}
	} else {
		w.Buckets = nil
	}
	w.Count, w.SumNS, w.Preempted = count, sum, preempted
	b.smooth(count)
	if flags&waitBlame != 0 {
		blame, err := r.readBlame()
		if err != nil {
			return err
		}
		w.Blame = blame
	} else {
		w.Blame = nil
	}
	return nil
}

func (r *Reader) readBlame() ([]signal.Blame, error) {
	s := &r.s
	who := &s.s[streamCulprits]
	n := s.s[streamBlamed].Uvarint()
	if n > uint64(who.Left()) { // each has a byte
		return nil, wire.ErrShort
	}
	from := len(r.blame)
	r.blame = slices.Grow(r.blame, int(n))
	out := r.blame[from : from+int(n)]
	last := int64(0)
	for i := range out {
		c := who.Varint() + last
		last = c + 1
		if c < -1<<31 || c >= maxContainers {
			return nil, errRange
		}
		out[i] = signal.Blame{Culprit: signal.Culprit(c), NS: s.number(streamBlameSize)}
	}
	r.blame = r.blame[:from+len(out)]
	return out[:len(out):len(out)], nil
}

// readBuckets reads a histogram, and what it comes to.
func (r *Reader) readBuckets(last *shape, stream int) (out []signal.Bucket, sum expansion, err error) {
	last.buckets += int(r.s.s[streamShape].Varint())
	last.first += int(r.s.s[streamFirst].Varint())
	n := last.buckets
	codes := r.s.s[streamBuckets+stream].Bytes(n)
	if n <= 0 || len(codes) != n {
		return nil, sum, wire.ErrShort
	}
	from := len(r.buckets)
	if cap(r.buckets)-from < n {
		r.buckets = append(make([]signal.Bucket, 0, max(2*cap(r.buckets), from+n)), r.buckets...)
	}
	out = r.buckets[from : from+n : from+n]
	first := uint64(last.first)
	if first > histogram.Buckets {
		return nil, sum, errRange
	}
	split := r.splits[stream]
	sum.at = first - 1
	for done := 0; ; {
		done += sum.expand(out[done:], codes[done:], &bucketCodes[split])
		if done == n {
			break
		}
		gap, count, err := r.large(codes[done], split)
		if err != nil {
			return nil, sum, err
		}
		out[done] = sum.take((gap + 1) | (count+1)<<countShift)
		done++
	}
	if uint32(sum.at) >= histogram.Buckets { // they ascend, so that the last one says it of all
		return nil, sum, errRange
	}
	r.buckets = r.buckets[:from+n]
	return out, sum, nil
}

// expansion is what buckets have come to so far.
type expansion struct {
	at       uint64 // index of the last bucket, and from countShift on the count of all: both grow by what the code stands for
	expected uint64 // ns
}

// expand expands codes up to one of which the rest follows, and returns how many. This is the innermost loop of reading: it calls nothing, so
// that all is in registers.
func (e *expansion) expand(out []signal.Bucket, codes []byte, table *[256]uint64) int {
	at, expected := e.at, e.expected
	n := len(codes)
	out = out[:n]
	for i, code := range codes {
		add := table[code]
		if add == 0 {
			n = i
			break
		}
		at += add
		count := uint32(add >> countShift)
		out[i] = signal.Bucket{Index: uint16(at), Count: count}
		expected += uint64(count) * middles[uint8(at)]
	}
	e.at, e.expected = at, expected
	return n
}

// take makes a bucket of what its code stands for.
func (e *expansion) take(add uint64) signal.Bucket {
	e.at += add
	b := signal.Bucket{Index: uint16(e.at), Count: uint32(add >> countShift)}
	e.expected += uint64(b.Count) * middles[uint8(e.at)]
	return b
}

// bucketCodes is what a bucket's byte stands for, for each way to split it: by how much the index grows, and from countShift on the count. 0:
// the rest follows.
var bucketCodes = func() (c [numSplits][256]uint64) {
	for split := range c {
		for code := range c[split] {
			if gap, count, rest := splits[split].take(byte(code)); !rest {
				c[split][code] = (gap + 1) | (count+1)<<countShift
			}
		}
	}
	return c
}()

const countShift = 32

// large reads the rest of a gap, or of a count less one, that do not fit in a bucket's byte.
func (r *Reader) large(code byte, split uint8) (gap, count uint64, err error) {
	gap, count, _ = splits[split].take(code)
	if most := splits[split].gap(); gap == most {
		if gap += r.s.number(streamCountSize); gap < most || gap > histogram.Buckets {
			return 0, 0, errRange
		}
	}
	if most := splits[split].count(); count == most {
		if count += r.s.number(streamCountSize); count < most || count >= 1<<32-1 {
			return 0, 0, errRange
		}
	}
	return gap, count, nil
}

// decision takes in what has changed of the decision.
func (r *Reader) decision() error {
	mask := r.s.s[streamStep].Uvarint()
	for i := range r.plan.decision {
		if mask>>i&1 == 0 {
			continue
		}
		f := &r.plan.decision[i]
		d := r.s.s[streamRare].Bytes(8)
		if d == nil {
			return wire.ErrShort
		}
		if f.index >= 0 {
			r.digest[f.index] = binary.LittleEndian.Uint64(d)
		}
		if f.d == nil {
			continue
		}
		decode := f.d.DecodeChange
		if r.format < 4 {
			decode = f.d.Decode
		}
		if err := decode(&r.s.s[streamRare], unsafe.Add(unsafe.Pointer(&r.decided), f.offset)); err != nil {
			return err
		}
	}
	if mask>>len(r.plan.decision) != 0 {
		return errors.New("a field of the decision that the schema does not know")
	}
	return nil
}

func (r *Reader) outcomes() error {
	n := r.s.s[streamRare].Count(1)
	if n > maxContainers {
		return fmt.Errorf("%d outcomes", n)
	}
	for range n {
		var o Outcome
		if err := r.plan.outcome.Decode(&r.s.s[streamRare], unsafe.Pointer(&o)); err != nil {
			return err
		}
		r.step.Outcomes = append(r.step.Outcomes, o)
	}
	return nil
}
