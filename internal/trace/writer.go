package trace

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"runtime"
	"time"
	"unsafe"

	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
	"github.com/qos-agent/qos-agent/internal/wire"
	"github.com/qos-agent/qos-agent/pkg/histogram"
)

// WriterOptions tune a Writer. The zero value is good.
type WriterOptions struct {
	FrameBytes int           // a frame is written when it has so many bytes, uncompressed; 256 KiB
	FrameEvery time.Duration // or covers so much time; 2 s
	KeyEvery   time.Duration // between two key frames; 1 min
}

// Writer writes one file. It is not safe for concurrent use.
type Writer struct {
	out   io.Writer
	o     WriterOptions
	types types
	pack  *packer
	// splits is how bytes of buckets are split, by rate.
	splits *[numRates]uint8
	err    error // the first; nothing is written after it

	offset  int64 // bytes written
	index   []IndexEntry
	payload []byte
	frame   []byte

	// The frame that is being filled.
	s         streams
	header    frameHeader
	frameFrom time.Duration // Now of its first step
	keyAt     time.Duration // Now of the last key frame
	hasKey    bool
	state     []byte // a checkpoint that belongs before the next step
	hasState  bool

	policies map[*policy.Compiled]uint64 // index, from 1
	byText   map[string]uint64

	// What the next step differs from.
	base    base
	digest  Digest
	decided decide.Decision // the kept fields ...
	valued  Digest          // ... and the digests that they had; nil: none so far
	values  [][]byte        // what has changed of them, encoded
}

// base is the step that the next one is written, or read, as the difference from.
type base struct {
	seq        uint64
	now        time.Duration
	wall       int64
	zone       string
	zoneOffset int
	ticked     time.Duration // Now of the last tick
	podsGen    uint64
	policy     uint64
	lost       signal.Lost
	node       signal.Node
	pods       []signal.Pod
	containers []signal.ContainerSample // without waits
	waits      []waitBase               // of the containers
}

// waitBase is what the next wait of a container is written, or read, by.
type waitBase struct {
	at    time.Duration // of the last sample; 0: there was none
	old   bool          // it was not new: nothing but its time
	rate  uint64        // dispatches a reading, smoothed, times rateUnit
	shape               // of the last histogram
}

// shape is how many buckets a histogram has, and the first.
type shape struct{ buckets, first int }

// IndexEntry is a place where reading may begin.
type IndexEntry struct {
	Offset int64 // of the state if there is one, else of the key frame
	Seq    uint64
	Wall   int64 // ns since 1970, of the first step
	State  bool  // a checkpoint is there
	Policy bool  // a policy, which all that follows may refer to
}

// Flags of a step. The first seven are those of ordinary ticks.
const (
	stepEvent = 1 << iota
	stepEvents
	stepNode
	stepLost
	stepValues
	stepElapsed
	stepSeq
	stepOutcomes
	stepPods
	stepRoster
	stepGen
	stepPolicy
	stepZone
	stepDropped
	stepContainers // an event with containers of its own
	stepRefused
	stepFlags
)

// Flags of a wait.
const (
	waitTimes = 1 << iota
	waitCount
	waitPreempted
	waitBuckets
	waitBlame
	waitSum
	waitOld // nothing was read: only At, as it was
	waitFlags
)

// NewWriter begins a file. Schema, layout and architecture of info are filled in.
func NewWriter(out io.Writer, info Info, o WriterOptions) (*Writer, error) {
	if o.FrameBytes == 0 {
		o.FrameBytes = 256 << 10
	}
	if o.FrameEvery == 0 {
		o.FrameEvery = 2 * time.Second
	}
	if o.KeyEvery == 0 {
		o.KeyEvery = time.Minute
	}
	w := &Writer{out: out, o: o, policies: map[*policy.Compiled]uint64{}, byText: map[string]uint64{}}
	var err error
	if w.types, err = newTypes(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	if w.pack, err = newPacker(); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	info.Schema, info.StateLayout, info.Arch = w.types.schema(), decide.StateLayout(), runtime.GOARCH
	w.values, w.splits = make([][]byte, len(w.types.decision)), splitsOf(Format)
	text, err := json.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	w.write(preamble())
	w.writeFrame(frameHeader{kind: frameInfo, firstWall: info.Started.UnixNano(), lastWall: info.Started.UnixNano()}, text)
	return w, w.err
}

// Size is how many bytes have been written. What is in the frame that is being filled is not among them.
func (w *Writer) Size() int64 { return w.offset }

// Checkpoint puts a checkpoint before the next step, which begins a key frame. state is copied.
func (w *Writer) Checkpoint(state []byte) {
	if len(state) <= maxRaw { // nobody would read a larger one
		w.state, w.hasState = append(w.state[:0], state...), true
	}
}

// Append adds a step. Nothing of it is kept. An error is for good.
func (w *Writer) Append(s *Step) error {
	if w.err != nil {
		return w.err
	}
	if s.HasState() {
		state, err := s.Checkpoint()
		if err != nil {
			return err
		}
		w.Checkpoint(state)
	}
	p, err := w.policy(s.Policy)
	if err != nil {
		return w.fail(err)
	}
	now := s.Snapshot.Now
	// Not at an event if it can be helped: its containers are those of the tick before.
	key := w.hasState || !w.hasKey || now < w.base.now || now-w.keyAt >= w.o.KeyEvery && s.Snapshot.Trigger == signal.Tick
	if key || w.header.steps == 0 || now-w.frameFrom >= w.o.FrameEvery || w.s.size() >= w.o.FrameBytes {
		if err := w.Flush(); err != nil {
			return err
		}
		w.begin(s, key)
	}
	w.header.steps++
	w.header.lastWall = s.Snapshot.Wall.UnixNano()
	if err := w.step(s, p, key); err != nil {
		return w.fail(fmt.Errorf("step %d: %w", s.Snapshot.Seq, err))
	}
	return nil
}

// begin starts a frame.
func (w *Writer) begin(s *Step, key bool) {
	wall := s.Snapshot.Wall.UnixNano()
	w.header = frameHeader{kind: frameSteps, seq: s.Snapshot.Seq, firstWall: wall, lastWall: wall}
	w.frameFrom = s.Snapshot.Now
	if !key {
		return
	}
	w.header.flags = flagKey
	w.hasKey, w.keyAt = true, s.Snapshot.Now
	w.index = append(w.index, IndexEntry{Offset: w.offset, Seq: s.Snapshot.Seq, Wall: wall, State: w.hasState})
	if w.hasState {
		w.writeFrame(frameHeader{kind: frameState, seq: s.Snapshot.Seq, firstWall: wall, lastWall: wall}, w.pack.whole(nil, w.state))
		w.hasState = false
	}
	w.base = base{}
	w.digest = w.digest[:0]
	w.pack.key()
}

// Flush writes the frame that is being filled.
func (w *Writer) Flush() error {
	if w.header.steps == 0 || w.err != nil {
		return w.err
	}
	w.payload = w.payload[:0]
	w.s.end()
	for i, b := range w.s.b {
		w.payload = w.pack.stream(w.payload, b, i)
	}
	w.writeFrame(w.header, w.payload)
	w.header = frameHeader{}
	w.s.reset()
	return w.err
}

// Close ends the file with its index. The file below stays the caller's to close.
func (w *Writer) Close() error {
	if err := w.Flush(); err != nil {
		return err
	}
	at := w.offset
	w.writeFrame(frameHeader{kind: frameIndex}, appendIndex(nil, w.index))
	w.write(append(binary.LittleEndian.AppendUint64(nil, uint64(at)), trailerMagic...))
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("trace: the writer is closed")
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = fmt.Errorf("trace: %w", err)
	}
	return w.err
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	if _, err := w.out.Write(b); err != nil {
		w.err = err
		return
	}
	w.offset += int64(len(b))
}

func (w *Writer) writeFrame(h frameHeader, payload []byte) {
	if len(payload) > maxPayload {
		_ = w.fail(fmt.Errorf("a frame of %d bytes; at most %d are allowed", len(payload), maxPayload))
		return
	}
	h.length, h.crc = uint32(len(payload)), crc32.Checksum(payload, castagnoli)
	w.frame = append(h.append(w.frame[:0]), payload...)
	w.write(w.frame) // in one piece: a write that is cut off leaves a tail that can be told from a frame
}

func appendIndex(dst []byte, index []IndexEntry) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(index)))
	for _, e := range index {
		var flags byte
		if e.State {
			flags |= 1
		}
		if e.Policy {
			flags |= 2
		}
		dst = append(binary.AppendUvarint(binary.AppendUvarint(dst, uint64(e.Offset)), e.Seq), flags)
		dst = binary.AppendVarint(dst, e.Wall)
	}
	return dst
}

// policy finds or gives the policy's number. A new one is a frame of its own.
func (w *Writer) policy(c *policy.Compiled) (uint64, error) {
	if c == nil {
		return 0, nil
	}
	if n, ok := w.policies[c]; ok {
		return n, nil
	}
	text, err := c.Export()
	if err != nil {
		return 0, err
	}
	n, ok := w.byText[string(text)]
	if !ok {
		if err := w.Flush(); err != nil {
			return 0, err
		}
		n = uint64(len(w.byText) + 1)
		w.byText[string(text)] = n
		w.index = append(w.index, IndexEntry{Offset: w.offset, Policy: true})
		w.writeFrame(frameHeader{kind: framePolicy}, text)
		w.frameFrom = math.MinInt64 / 2 // the next step begins a frame
	}
	w.policies[c] = n
	return n, nil
}

// step encodes one step.
func (w *Writer) step(s *Step, policyIndex uint64, key bool) error {
	snap, b := s.Snapshot, &w.base
	if snap.Trigger > signal.Event {
		return fmt.Errorf("trigger %d is not known", snap.Trigger)
	}
	if len(snap.Containers) > maxContainers || len(snap.Pods) > maxPods || len(snap.Events) > maxEvents {
		return fmt.Errorf("%d containers in %d pods with %d events: too many", len(snap.Containers), len(snap.Pods), len(snap.Events))
	}
	event := snap.Trigger == signal.Event
	flags := uint64(0)
	set := func(on bool, flag uint64) {
		if on {
			flags |= flag
		}
	}
	pods := key || !samePods(snap, b)
	zone, zoneOffset := snap.Wall.Zone()
	wall := snap.Wall.UnixNano()
	elapsed := time.Duration(0)
	if !event && b.ticked != 0 {
		elapsed = snap.Now - b.ticked
	}
	own := event && !s.quiet && !w.isQuiet(snap)
	roster := !event && (pods || len(snap.Containers) != len(b.containers))
	values := uint64(0)
	if s.Policy != nil {
		if len(s.Digest) != len(w.types.decision) {
			return fmt.Errorf("a digest of %d fields, want %d", len(s.Digest), len(w.types.decision))
		}
		values = w.takeValues(s)
	}
	set(event, stepEvent)
	set(len(snap.Events) > 0, stepEvents)
	set(snap.Lost != b.lost, stepLost)
	set(values != 0, stepValues)
	set(snap.Elapsed != elapsed, stepElapsed)
	set(snap.Seq != b.seq+1, stepSeq)
	set(len(s.Outcomes) > 0, stepOutcomes)
	set(pods, stepPods)
	set(roster, stepRoster)
	set(snap.PodsGen != b.podsGen, stepGen)
	set(policyIndex != b.policy, stepPolicy)
	set(zone != b.zone || zoneOffset != b.zoneOffset, stepZone)
	set(s.Dropped > 0, stepDropped)
	set(own, stepContainers)
	set(len(snap.Refused) > 0, stepRefused)

	set(w.types.node.differs(unsafe.Pointer(&snap.Node), unsafe.Pointer(&b.node)), stepNode)
	w.s.b[streamStep] = append(w.s.b[streamStep], byte(flags)|0x80, byte(flags>>7)|0x80, byte(flags>>14))

	if flags&stepSeq != 0 {
		w.s.number(streamStepSize, snap.Seq)
	}
	w.s.signed(streamStepSize, int64(snap.Now-b.now))
	w.s.signed(streamStepSize, wall-b.wall-int64(snap.Now-b.now))
	if flags&stepElapsed != 0 {
		w.s.signed(streamStepSize, int64(snap.Elapsed))
	}
	if flags&stepGen != 0 {
		w.s.signed(streamStepSize, int64(snap.PodsGen-b.podsGen))
	}
	if flags&stepNode != 0 {
		w.record(w.types.node, unsafe.Pointer(&snap.Node), unsafe.Pointer(&b.node), uint64(snap.Now))
	}
	if flags&stepLost != 0 {
		w.record(w.types.lost, unsafe.Pointer(&snap.Lost), unsafe.Pointer(&b.lost), uint64(snap.Now))
	}
	r := w.s.b[streamRare]
	if flags&stepZone != 0 {
		r = binary.AppendVarint(appendString(r, zone), int64(zoneOffset))
	}
	if flags&stepPolicy != 0 {
		r = binary.AppendUvarint(r, policyIndex)
	}
	if flags&stepDropped != 0 {
		r = binary.AppendUvarint(r, s.Dropped)
	}
	w.s.b[streamRare] = r
	old := b.pods
	if pods {
		w.podList(snap.Pods)
		b.pods = append([]signal.Pod(nil), snap.Pods...)
	}
	if flags&stepEvents != 0 {
		w.events(snap)
	}
	if flags&stepRefused != 0 {
		w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(snap.Refused)))
		for _, f := range snap.Refused {
			w.s.b[streamRare] = appendString(appendString(appendString(w.s.b[streamRare], f.Cgroup), f.Knob), f.Reason)
		}
	}
	switch {
	case own:
		w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(snap.Containers)))
		for i := range snap.Containers {
			w.s.b[streamRare] = w.wholeContainer(w.s.b[streamRare], &snap.Containers[i])
		}
	case !event:
		if roster {
			w.roster(snap, old)
		}
		if err := w.containers(snap); err != nil {
			return err
		}
	}
	if s.Policy != nil {
		w.decision(values, s)
	}
	if flags&stepOutcomes != 0 {
		w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(s.Outcomes)))
		for i := range s.Outcomes {
			w.s.b[streamRare] = w.types.outcome.Append(w.s.b[streamRare], unsafe.Pointer(&s.Outcomes[i]))
		}
	}

	b.seq, b.now, b.wall, b.zone, b.zoneOffset, b.podsGen, b.policy = snap.Seq, snap.Now, wall, zone, zoneOffset, snap.PodsGen, policyIndex
	if !event {
		b.ticked = snap.Now
	}
	return nil
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// record writes a record: a mask of parts, and the parts that differ.
func (w *Writer) record(t *recordType, cur, base unsafe.Pointer, now uint64) {
	at := len(w.s.b[streamStep])
	w.s.b[streamStep] = append(w.s.b[streamStep], 0)
	for i := range t.parts {
		if t.parts[i].append(&w.s, cur, base, now) {
			w.s.b[streamStep][at] |= 1 << i
		}
	}
}

// samePods reports whether the list of pods is that of the step before.
func samePods(snap *signal.Snapshot, b *base) bool {
	if snap.PodsGen != 0 && snap.PodsGen == b.podsGen && len(snap.Pods) == len(b.pods) {
		return true
	}
	if len(snap.Pods) != len(b.pods) {
		return false
	}
	for i := range snap.Pods {
		if !podType.Equal(unsafe.Pointer(&snap.Pods[i]), unsafe.Pointer(&b.pods[i])) {
			return false
		}
	}
	return true
}

// podList writes the pods: those of before by how far they are from where they would be if nothing had changed, new ones in full.
func (w *Writer) podList(pods []signal.Pod) {
	before := make(map[podKey]int, len(w.base.pods))
	for i := range w.base.pods {
		before[keyOf(&w.base.pods[i])] = i
	}
	w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(pods)))
	next := 0
	for i := range pods {
		p := &pods[i]
		if k, ok := before[keyOf(p)]; ok && podType.Equal(unsafe.Pointer(p), unsafe.Pointer(&w.base.pods[k])) {
			w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], wire.Zigzag(int64(k-next))+1)
			next = k + 1
			continue
		}
		w.s.b[streamRare] = w.types.pod.Append(append(w.s.b[streamRare], 0), unsafe.Pointer(p))
	}
}

type podKey struct{ uid, namespace, name string }

func keyOf(p *signal.Pod) podKey { return podKey{p.UID, p.Namespace, p.Name} }

type containerKey struct {
	podKey
	id, name string
}

func containerKeyOf(pods []signal.Pod, c *signal.ContainerSample) containerKey {
	if c.Pod < 0 || c.Pod >= len(pods) || c.Container < 0 || c.Container >= len(pods[c.Pod].Containers) {
		return containerKey{}
	}
	p := &pods[c.Pod]
	return containerKey{keyOf(p), p.Containers[c.Container].ID, p.Containers[c.Container].Name}
}

// roster writes where each container was in the step before, and rearranges the base like that.
func (w *Writer) roster(snap *signal.Snapshot, old []signal.Pod) {
	b := &w.base
	before := make(map[containerKey]int, len(b.containers))
	for i := range b.containers {
		before[containerKeyOf(old, &b.containers[i])] = i
	}
	w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(snap.Containers)))
	containers, waits := make([]signal.ContainerSample, len(snap.Containers)), make([]waitBase, len(snap.Containers))
	next := 0
	for i := range snap.Containers {
		key := containerKeyOf(snap.Pods, &snap.Containers[i])
		k, ok := before[key]
		if !ok {
			w.s.b[streamRare] = append(w.s.b[streamRare], 0)
			continue
		}
		delete(before, key) // each once
		w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], wire.Zigzag(int64(k-next))+1)
		next = k + 1
		containers[i], waits[i] = b.containers[k], b.waits[k]
	}
	b.containers, b.waits = containers, waits
}

// isQuiet reports whether an event's containers are those of the last tick without their waits, as they should be.
func (w *Writer) isQuiet(snap *signal.Snapshot) bool {
	b := &w.base
	if len(snap.Containers) != len(b.containers) {
		return false
	}
	for i := range snap.Containers {
		c := &snap.Containers[i]
		if !isZeroWait(&c.Wait) {
			return false
		}
		if w.types.container.differs(unsafe.Pointer(c), unsafe.Pointer(&b.containers[i])) {
			return false
		}
	}
	return true
}

func isZeroWait(s *signal.WaitSample) bool { return s.At == 0 && isEmptyWait(s) }

func isEmptyWait(s *signal.WaitSample) bool {
	return s.Span == 0 && s.Count == 0 && s.SumNS == 0 && s.Preempted == 0 && len(s.Buckets) == 0 && len(s.Blame) == 0
}

// containers writes a tick's containers: for each a byte that says whether its waits and which parts of it are not as foretold, and these.
func (w *Writer) containers(snap *signal.Snapshot) error {
	b, t := &w.base, w.types.container
	for i := range snap.Containers {
		c := &snap.Containers[i]
		mask := byte(0)
		for k := range t.parts {
			if t.parts[k].append(&w.s, unsafe.Pointer(c), unsafe.Pointer(&b.containers[i]), uint64(snap.Now)) {
				mask |= 2 << k
			}
		}
		waited, err := w.wait(snap, &c.Wait, &b.waits[i])
		if err != nil {
			return err
		}
		if waited {
			mask |= 1
		}
		w.s.b[streamParts] = append(w.s.b[streamParts], mask)
	}
	return nil
}

// wait writes a sample of waits, if it is not as foretold. What is foretold is that a reading is as new as the one before: nothing new, or empty, of
// now, and of the time since that; or nothing at all if there was none before.
func (w *Writer) wait(snap *signal.Snapshot, s *signal.WaitSample, b *waitBase) (bool, error) {
	if b.at != 0 && s.At == b.at && isEmptyWait(s) {
		if b.old {
			return false, nil
		}
		b.old = true
		w.s.b[streamWait] = append(w.s.b[streamWait], waitOld)
		return true, nil
	}
	at, span := b.foretold(snap.Now)
	was, stream := b.old, rateOf(b.rate)
	b.at, b.old = s.At, false
	b.smooth(s.Count)
	var flags byte
	if s.At != at || s.Span != span {
		flags |= waitTimes
	}
	sum := uint64(0)
	for _, k := range s.Buckets {
		sum += uint64(k.Count)
	}
	sum = uint64(uint32(sum)) // as the reader counts
	if s.Count != sum {
		flags |= waitCount
	}
	if s.SumNS != 0 {
		flags |= waitSum
	}
	if s.Preempted != 0 {
		flags |= waitPreempted
	}
	if len(s.Buckets) > 0 {
		flags |= waitBuckets
	}
	if len(s.Blame) > 0 {
		flags |= waitBlame
	}
	if flags == 0 && !was {
		return false, nil
	}
	w.s.b[streamWait] = append(w.s.b[streamWait], flags)
	if flags&waitTimes != 0 {
		w.s.signed(streamValueSize, int64(s.At-at))
		w.s.signed(streamValueSize, int64(s.Span-span))
	}
	if flags&waitCount != 0 {
		w.s.signed(streamValueSize, int64(s.Count-sum))
	}
	if flags&waitSum != 0 {
		w.s.signed(streamSumSize, int64(s.SumNS-expectedSum(s.Buckets)))
	}
	if flags&waitPreempted != 0 {
		w.s.b[streamPreempted] = binary.AppendUvarint(w.s.b[streamPreempted], s.Preempted)
	}
	if flags&waitBuckets != 0 {
		if err := w.buckets(s.Buckets, &b.shape, stream); err != nil {
			return false, err
		}
	}
	if flags&waitBlame != 0 {
		w.s.b[streamBlamed] = binary.AppendUvarint(w.s.b[streamBlamed], uint64(len(s.Blame)))
		who := w.s.b[streamCulprits]
		last := int64(0)
		for _, bl := range s.Blame {
			who = binary.AppendVarint(who, int64(bl.Culprit)-last)
			last = int64(bl.Culprit) + 1
			w.s.number(streamBlameSize, bl.NS)
		}
		w.s.b[streamCulprits] = who
	}
	return true, nil
}

// buckets writes a histogram: how its shape differs from that of the last one, then a byte for each bucket with the gap before it and its
// count, as far as they fit.
func (w *Writer) buckets(buckets []signal.Bucket, last *shape, stream int) error {
	now := shape{len(buckets), int(buckets[0].Index)}
	w.s.b[streamShape] = binary.AppendVarint(w.s.b[streamShape], int64(now.buckets-last.buckets))
	w.s.b[streamFirst] = binary.AppendVarint(w.s.b[streamFirst], int64(now.first-last.first))
	*last = now
	dst, split := w.s.b[streamBuckets+stream], splits[w.splits[stream]]
	next := now.first
	for _, b := range buckets {
		if int(b.Index) < next || b.Count == 0 || b.Index >= histogram.Buckets {
			return errors.New("buckets out of order, empty or beyond the last")
		}
		gap, n := uint64(int(b.Index)-next), uint64(b.Count-1)
		next = int(b.Index) + 1
		dst = append(dst, split.code(gap, n))
		if gap >= split.gap() {
			w.s.number(streamCountSize, gap-split.gap())
		}
		if n >= split.count() {
			w.s.number(streamCountSize, n-split.count())
		}
	}
	w.s.b[streamBuckets+stream] = dst
	return nil
}

func (w *Writer) events(snap *signal.Snapshot) {
	w.s.b[streamRare] = binary.AppendUvarint(w.s.b[streamRare], uint64(len(snap.Events)))
	for i := range snap.Events {
		var zero signal.WaitEvent
		w.record(w.types.event, unsafe.Pointer(&snap.Events[i]), unsafe.Pointer(&zero), uint64(snap.Now))
	}
}

func (w *Writer) wholeContainer(dst []byte, c *signal.ContainerSample) []byte {
	return wholeType.Append(dst, unsafe.Pointer(c))
}

// takeValues encodes what has changed of the kept fields of the decision, and returns which fields have another digest than before.
func (w *Writer) takeValues(s *Step) (changed uint64) {
	first := len(w.digest) == 0
	for i := range w.types.decision {
		f := &w.types.decision[i]
		if !first && s.Digest[i] == w.digest[i] {
			continue
		}
		changed |= 1 << i
		if !f.kept {
			continue
		}
		last := unsafe.Add(unsafe.Pointer(&w.decided), f.offset)
		now, before := last, last
		if w.valued == nil || s.Digest[i] != w.valued[i] { // else the step need not have it
			now = unsafe.Add(unsafe.Pointer(&s.Decision), f.offset)
		}
		if first {
			before = nil
		}
		w.values[i] = f.t.AppendChange(w.values[i][:0], now, before)
		if now != last {
			f.t.Copy(last, now)
		}
	}
	w.valued = append(w.valued[:0], s.Digest...)
	w.digest = append(w.digest[:0], s.Digest...)
	return changed
}

func (w *Writer) decision(changed uint64, s *Step) {
	if changed == 0 {
		return
	}
	w.s.b[streamStep] = binary.AppendUvarint(w.s.b[streamStep], changed)
	for i := range w.types.decision {
		if changed>>i&1 == 0 {
			continue
		}
		w.s.b[streamRare] = binary.LittleEndian.AppendUint64(w.s.b[streamRare], s.Digest[i])
		if w.types.decision[i].kept {
			w.s.b[streamRare] = append(w.s.b[streamRare], w.values[i]...)
		}
	}
}

var (
	podType   = wire.MustCompile[signal.Pod]()
	wholeType = wire.MustCompile[signal.ContainerSample]()
)
