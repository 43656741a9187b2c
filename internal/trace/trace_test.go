package trace

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/qos-agent/qos-agent/internal/control"
	"github.com/qos-agent/qos-agent/internal/decide"
	"github.com/qos-agent/qos-agent/internal/knob"
	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/signal"
)

var alike = []cmp.Option{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b time.Time) bool {
	an, ao := a.Zone()
	bn, bo := b.Zone()
	return a.Equal(b) && an == bn && ao == bo
})}

// filler puts something into every field of a value that is not what another filler puts there.
type filler struct{ n uint64 }

func (f *filler) fill(v reflect.Value, name string) {
	f.n++
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(f.n%2 == 1)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		switch name {
		case "Pod", "Container", "Victim": // indexes
			v.SetInt(int64(f.n % 2))
		default:
			v.SetInt(int64(f.n % 100))
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(f.n%100 + 1)
	case reflect.Float64:
		v.SetFloat(float64(f.n) + 0.5)
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", f.n))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(f.n), 5).In(time.FixedZone("XST", int(f.n)))))
			return
		}
		for i := range v.NumField() {
			f.fill(v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i), name)
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i), name)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		f.fill(k, name)
		f.fill(e, name)
		v.SetMapIndex(k, e)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem(), name)
	default:
		panic("the test does not know how to fill " + v.Type().String())
	}
}

func filled(seed uint64, trigger signal.Trigger) *signal.Snapshot {
	s := new(signal.Snapshot)
	f := filler{seed}
	f.fill(reflect.ValueOf(s).Elem(), "")
	s.Trigger = trigger
	for i := range s.Containers {
		b := s.Containers[i].Wait.Buckets
		b[0].Index, b[1].Index = uint16(seed%20), uint16(30+seed%20)
	}
	return s
}

// change alters every leaf of v in turn, calls f with its path, and puts it back.
func change(v reflect.Value, path string, f func(path string)) {
	name := path
	for i := range path {
		if path[i] == '.' {
			name = path[i+1:]
		}
	}
	set := func(to any) {
		was := reflect.New(v.Type()).Elem()
		was.Set(v)
		v.Set(reflect.ValueOf(to).Convert(v.Type()))
		f(path)
		v.Set(was)
	}
	switch v.Kind() {
	case reflect.Bool:
		set(!v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		switch name {
		case "Pod", "Container", "Victim":
			set(1 - v.Int())
		default:
			set(v.Int() + 1)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if name == "Trigger" {
			set(1 - v.Uint())
			return
		}
		set(v.Uint() + 1)
	case reflect.Float64:
		set(v.Float() * 2)
	case reflect.String:
		set(v.String() + " changed")
	case reflect.Struct:
		if t, ok := v.Interface().(time.Time); ok {
			set(t.Add(time.Nanosecond))
			set(t.In(time.UTC))
			return
		}
		for i := range v.NumField() {
			change(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			change(v.Index(i), fmt.Sprintf("%s[%d]", path, i), f)
		}
		if strings.HasPrefix(path, ".Pods[") && name == "Containers" {
			return // samples would be of containers that are not there
		}
		if path != ".Pods" && path != ".Containers" && path != ".Events" {
			was := reflect.ValueOf(v.Interface())
			v.Set(v.Slice(0, 1))
			f(path + "[:1]")
			v.Set(was)
		}
	case reflect.Array:
		for i := range v.Len() {
			change(v.Index(i), fmt.Sprintf("%s[%d]", path, i), f)
		}
	case reflect.Map:
		was := reflect.ValueOf(v.Interface())
		v.Set(reflect.MakeMap(v.Type()))
		f(path + " (emptied)")
		v.Set(was)
	}
}

func write(t testing.TB, o WriterOptions, steps ...*Step) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, Info{Agent: "test"}, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range steps {
		if err := w.Append(s); err != nil {
			t.Fatal(err)
		}
		if i%7 == 6 {
			if err := w.Flush(); err != nil { // as a recorder does when nothing comes
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(t testing.TB, data []byte) *Reader {
	t.Helper()
	r, err := NewReader("test.qostrace", bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// all reads steps to the end, and fails if something else than that ends it.
func all(t testing.TB, r *Reader) iter.Seq[*Step] {
	return func(yield func(*Step) bool) {
		t.Helper()
		for {
			s, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !yield(s) {
				return
			}
		}
	}
}

// TestEveryFieldIsCarried changes every field of a snapshot, one at a time, and wants the change to survive. A field that is added to the
// vocabulary and that the codec lacks fails here.
func TestEveryFieldIsCarried(t *testing.T) {
	for _, trigger := range []signal.Trigger{signal.Tick, signal.Event} {
		base := filled(7, trigger)
		base.Seq = 1
		n := 0
		change(reflect.ValueOf(base).Elem(), "", func(path string) {
			n++
			changed := *base
			if strings.HasPrefix(path, ".Pods[") {
				changed.PodsGen++ // as whoever changes pods has to
			}
			steps := []*Step{{Snapshot: filled(3, signal.Tick)}, {Snapshot: base}, {Snapshot: &changed}, {Snapshot: base}}
			steps[1].Snapshot = filled(7, trigger)
			steps[1].Snapshot.Seq = 1
			steps[3].Snapshot = steps[1].Snapshot
			r := open(t, write(t, WriterOptions{}, steps...))
			for i, want := range steps {
				got, err := r.Next()
				if err != nil {
					t.Fatalf("%s, step %d: %v", path, i, err)
				}
				if diff := cmp.Diff(want.Snapshot, got.Snapshot, alike...); diff != "" {
					t.Fatalf("a change of %s is lost at step %d (-written +read):\n%s", path, i, diff)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Fatalf("%s: after the last step: %v", path, err)
			}
		})
		if n < 150 {
			t.Errorf("only %d fields were changed", n)
		}
	}
}

// walk is a node on which everything changes all the time, at random.
type walk struct {
	rng     *rand.Rand
	snap    signal.Snapshot
	policy  *policy.Compiled
	brain   *decide.State
	digest  *Digester
	next    int
	changed bool
}

func newWalk(t testing.TB, seed uint64) *walk {
	d, err := NewDigester()
	if err != nil {
		t.Fatal(err)
	}
	w := &walk{rng: rand.New(rand.NewPCG(seed, 1)), brain: decide.New(), digest: d}
	p := policy.Default()
	p.Spec.Mode = policy.Enforce
	p.Spec.Classes.Presets = []string{"qos-agent"}
	w.policy = policy.MustCompile(p)
	w.snap.Now, w.snap.Wall = time.Hour, time.Date(2026, 3, 29, 0, 59, 0, 0, time.FixedZone("CET", 3600))
	w.snap.Node.Topology.CPUs = []signal.CPU{{ID: 0}, {ID: 1, Core: 1}, {ID: 2, Core: 2}, {ID: 3, Core: 3}}
	w.snap.Node.Caps = signal.Capabilities{RunQueue: true, CPUIdle: true, CPUQuota: true, CPUSet: true, CPUBurst: true, GroupPSI: true}
	return w
}

func (w *walk) chance(percent int) bool { return w.rng.IntN(100) < percent }

// pods lets some pods come and go.
func (w *walk) pods() {
	var out []signal.Pod
	for _, p := range w.snap.Pods {
		if !w.chance(20) {
			out = append(out, p)
		}
	}
	for len(out) < 3 || w.chance(40) {
		w.next++
		class := []string{"online", "offline"}[w.next%2]
		p := signal.Pod{
			UID: fmt.Sprint("uid-", w.next), Namespace: "ns", Name: fmt.Sprintf("pod-%04d", w.next), Cgroup: fmt.Sprintf("/kubepods/pod%d", w.next),
			Labels: map[string]string{"qos-agent.io/class": class}, QoS: signal.QoSBurstable,
		}
		for k := range 1 + w.rng.IntN(2) {
			p.Containers = append(p.Containers, signal.Container{ID: fmt.Sprintf("c%d-%d", w.next, k), Name: fmt.Sprint("c", k), PID: w.rng.IntN(5), Cgroup: p.Cgroup + fmt.Sprint("/", k)})
		}
		out = append(out, p)
	}
	old := map[string]signal.ContainerSample{}
	for _, c := range w.snap.Containers {
		old[w.snap.Pods[c.Pod].Containers[c.Container].ID] = c
	}
	w.snap.Pods, w.snap.Containers = out, nil
	for i, p := range out {
		for k, c := range p.Containers {
			s := old[c.ID]
			s.Pod, s.Container = i, k
			w.snap.Containers = append(w.snap.Containers, s)
		}
	}
	w.snap.PodsGen++
}

// step is the next step, complete with a decision.
func (w *walk) step() *Step {
	s := &w.snap
	passed := 100*time.Millisecond + time.Duration(w.rng.IntN(1e6))
	s.Trigger = signal.Tick
	if len(s.Containers) > 0 && w.chance(20) {
		s.Trigger, passed = signal.Event, time.Duration(w.rng.IntN(5e7))
	}
	s.Seq++
	s.Now += passed
	s.Wall = s.Wall.Add(passed + time.Duration(w.rng.IntN(1000)))
	if w.chance(1) {
		s.Wall = s.Wall.Add(time.Hour).In(time.FixedZone("CEST", 7200))
	}
	s.Events, s.Lost = nil, signal.Lost{NoSlot: uint64(w.rng.IntN(2))}
	out := *s
	if s.Trigger == signal.Event {
		out.Elapsed = 0
		out.Containers = append([]signal.ContainerSample(nil), s.Containers...)
		for i := range out.Containers {
			out.Containers[i].Wait = signal.WaitSample{}
		}
		for range w.rng.IntN(4) {
			out.Events = append(out.Events, signal.WaitEvent{
				At: s.Now - time.Duration(w.rng.IntN(1000)), Victim: w.rng.IntN(len(s.Containers)), PID: 7, CPU: 2, WaitNS: uint64(w.rng.IntN(1e8)),
				Culprit: signal.Culprit(w.rng.IntN(len(s.Containers)+7) - 7), PartNS: uint64(w.rng.IntN(1e8)),
			})
		}
		return w.decide(&out)
	}
	if s.Seq == 1 || w.chance(5) {
		w.pods()
	}
	s.Elapsed = passed
	s.Containers = append([]signal.ContainerSample(nil), s.Containers...)
	for i := range s.Containers {
		w.measure(&s.Containers[i])
	}
	if w.chance(10) {
		s.Node.CPU = signal.NodeCPUSample{At: s.Now, Span: time.Second, BusyNS: w.rng.Uint64N(1e9), StealNS: w.rng.Uint64N(1e7)}
		s.Node.Bandwidth = []signal.DomainBandwidth{{ID: w.rng.IntN(2), At: s.Now, TotalBytes: w.rng.Uint64N(1e9)}}
	}
	out = *s
	return w.decide(&out)
}

func (w *walk) measure(c *signal.ContainerSample) {
	s := &w.snap
	c.Wait = signal.WaitSample{}
	if w.chance(95) {
		c.Wait = signal.WaitSample{At: s.Now, Span: s.Elapsed}
	}
	if w.chance(2) {
		c.Wait.Span -= 5
	}
	if c.Wait.At != 0 && w.chance(60) {
		for i := w.rng.IntN(30); i < 194; i += 1 + w.rng.IntN(40) {
			b := signal.Bucket{Index: uint16(i), Count: 1 + uint32(w.rng.IntN(20))}
			c.Wait.Buckets = append(c.Wait.Buckets, b)
			c.Wait.Count += uint64(b.Count)
		}
		c.Wait.SumNS, c.Wait.Preempted = w.rng.Uint64N(1e9), uint64(w.rng.IntN(3))
		if w.chance(5) {
			c.Wait.Count++
		}
		for k := -7; k < len(s.Containers); k += 1 + w.rng.IntN(4) {
			c.Wait.Blame = append(c.Wait.Blame, signal.Blame{Culprit: signal.Culprit(k), NS: w.rng.Uint64N(1e8)})
		}
	}
	if w.chance(20) {
		c.CPU = signal.CPUSample{At: s.Now, Span: s.Now - c.CPU.At, UsageNS: w.rng.Uint64N(1e9), QuotaUS: -1}
		if w.chance(30) {
			c.CPU.QuotaUS, c.CPU.PeriodUS, c.CPU.Periods, c.CPU.ThrottledPeriods = 50_000, 100_000, 10, uint64(w.rng.IntN(10))
		}
	}
	if w.chance(10) {
		c.Memory = signal.MemorySample{At: s.Now, Current: w.rng.Uint64(), WorkingSet: w.rng.Uint64N(1e9)}
		c.PSI.At, c.PSI.Span, c.PSI.IO.FullUS = s.Now, s.Now-c.PSI.At, w.rng.Uint64N(1e6)
	}
	if w.chance(10) {
		c.Perf = signal.PerfSample{At: s.Now, Span: time.Second, Cycles: w.rng.Uint64N(1e10), Instructions: w.rng.Uint64N(1e10), RunningPercent: 100}
		c.RDT = signal.RDTSample{At: s.Now, State: signal.RDTOK, Domains: []signal.RDTDomainSample{{ID: 3, TotalBytes: w.rng.Uint64N(1e9)}}}
	}
	if w.chance(1) {
		c.CPUs.Add(w.rng.IntN(1024))
	}
}

func (w *walk) decide(snap *signal.Snapshot) *Step {
	s := &Step{Snapshot: snap}
	if snap.Seq%100 > 95 {
		return s // no policy for a while
	}
	if w.chance(1) {
		s.State = w.brain.Checkpoint(nil)
	}
	s.Policy = w.policy
	d := w.brain.Step(snap, w.policy)
	s.Digest = w.digest.Digest(nil, &d)
	// A decision is only good until the next step.
	d.Plan = append([]knob.Want(nil), d.Plan...)
	d.Notes = append([]control.Note(nil), d.Notes...)
	d.Grant = append([]control.Grant(nil), d.Grant...)
	d.Class = append([]policy.Class(nil), d.Class...)
	d.ClassRule = append([]string(nil), d.ClassRule...)
	d.Verdicts, d.Findings, d.Spec = nil, nil, nil
	s.Decision = d
	if w.chance(3) {
		s.Outcomes = []Outcome{{Want: knob.Want{Owner: "cpu", Pod: "a/b"}, Old: "1", New: "2", Result: knob.Failed, Err: "EINVAL", Audit: w.chance(50)}}
		s.Dropped = uint64(w.rng.IntN(3))
	}
	return s
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for seed := range uint64(3) {
		w := newWalk(t, seed)
		var steps []*Step
		for range 300 {
			steps = append(steps, w.step())
		}
		data := write(t, WriterOptions{KeyEvery: 10 * time.Second}, steps...)
		r := open(t, data)
		if !r.Complete() {
			t.Error("not complete")
		}
		for i, want := range steps {
			got, err := r.Next()
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i, err)
			}
			compare(t, fmt.Sprintf("seed %d, step %d", seed, i), want, got)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("after the last step: %v", err)
		}
		t.Logf("seed %d: %d steps in %d bytes", seed, len(steps), len(data))
	}
}

func compare(t testing.TB, where string, want, got *Step) {
	t.Helper()
	if diff := cmp.Diff(want.Snapshot, got.Snapshot, alike...); diff != "" {
		t.Fatalf("%s (-written +read):\n%s", where, diff)
	}
	if (want.Policy == nil) != (got.Policy == nil) || want.Policy != nil && want.Policy.ID() != got.Policy.ID() {
		t.Fatalf("%s: another policy", where)
	}
	if state, err := got.Checkpoint(); err != nil || !bytes.Equal(want.State, state) || want.Dropped != got.Dropped {
		t.Fatalf("%s: another checkpoint or number of dropped steps", where)
	}
	for name, d := range map[string]string{
		"decision": cmp.Diff(want.Decision, got.Decision, alike...), "digest": cmp.Diff(want.Digest, got.Digest, alike...),
		"outcomes": cmp.Diff(want.Outcomes, got.Outcomes, alike...),
	} {
		if d != "" {
			t.Fatalf("%s, %s (-written +read):\n%s", where, name, d)
		}
	}
}

func TestSeek(t *testing.T) {
	w := newWalk(t, 9)
	var steps []*Step
	for range 1000 {
		steps = append(steps, w.step())
	}
	data := write(t, WriterOptions{KeyEvery: 5 * time.Second}, steps...)
	closed := open(t, data)
	cut := open(t, data[:len(data)-40]) // without an index
	if cut.Complete() || !cmp.Equal(cut.Index(), closed.Index()) {
		t.Errorf("the index made of headers is another one: %v, %v", cut.Index(), closed.Index())
	}
	for _, r := range []*Reader{closed, cut} {
		for _, i := range []int{0, 10, 500, 999} {
			if err := r.Seek(steps[i].Snapshot.Wall, false); err != nil {
				t.Fatal(err)
			}
			s, err := r.Next()
			for err == nil && s.Snapshot.Seq < steps[i].Snapshot.Seq {
				s, err = r.Next()
			}
			if err != nil {
				t.Fatal(err)
			}
			compare(t, fmt.Sprint("step ", i), steps[i], s)
		}
	}
	first, last, err := closed.Range()
	if err != nil || !first.Equal(steps[0].Snapshot.Wall) || !last.Equal(steps[999].Snapshot.Wall) {
		t.Errorf("range %v to %v (%v), want %v to %v", first, last, err, steps[0].Snapshot.Wall, steps[999].Snapshot.Wall)
	}
}

func TestTornTailLosesAFrame(t *testing.T) {
	w := newWalk(t, 4)
	var steps []*Step
	for range 200 {
		steps = append(steps, w.step())
	}
	data := write(t, WriterOptions{}, steps...)
	whole := open(t, data)
	var ends []int64   // of frames of steps
	var perFrame []int // steps in them
	for {
		if _, err := whole.Next(); err != nil {
			break
		}
		if n := len(ends); n == 0 || ends[n-1] != whole.Pos() {
			ends, perFrame = append(ends, whole.Pos()), append(perFrame, 0)
		}
		perFrame[len(perFrame)-1]++
	}
	for n := int64(len(data)) - 1; n > ends[0]; n -= 1009 {
		r := open(t, data[:n])
		read := 0
		for s := range all(t, r) {
			if want := steps[read].Snapshot; s.Snapshot.Seq != want.Seq || s.Snapshot.Now != want.Now || len(s.Snapshot.Containers) != len(want.Containers) {
				t.Fatalf("cut at %d: step %d is not what was written", n, read)
			}
			read++
		}
		// Steps of frames that are whole are all there, and no others.
		want := 0
		for i := range perFrame {
			if ends[i] <= n {
				want += perFrame[i]
			}
		}
		if read != want {
			t.Errorf("cut at %d: %d steps were read, want %d", n, read, want)
		}
		if want < len(steps) && r.Torn() == nil && !slices.Contains(ends, n) {
			t.Errorf("cut at %d: nobody says that the end is torn", n)
		}
	}
}

func TestDamageIsNamed(t *testing.T) {
	w := newWalk(t, 5)
	var steps []*Step
	for range 300 {
		steps = append(steps, w.step())
	}
	data := write(t, WriterOptions{}, steps...)
	bad := bytes.Clone(data)
	bad[len(bad)/2] ^= 4
	for name, b := range map[string][]byte{"closed": bad, "not closed": bad[:len(bad)-40]} {
		r := open(t, b)
		var err error
		for err == nil {
			_, err = r.Next()
		}
		var fe *FormatError
		if !errors.As(err, &fe) || fe.File != "test.qostrace" || fe.Frame < 2 || fe.Offset < 100 {
			t.Errorf("%s: got %v, want an error that names file, frame and offset", name, err)
		}
		t.Log(err)
	}
	for name, b := range map[string][]byte{"empty": nil, "text": []byte("apiVersion: v1\nkind: ConfigMap\n")} {
		if _, err := NewReader(name, bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNotTrace) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newer := bytes.Clone(data)
	copy(newer, preamble())
	newer[8] = Format + 1
	fixPreamble(newer)
	if _, err := NewReader("newer", bytes.NewReader(newer), int64(len(newer))); !errors.Is(err, ErrNewer) {
		t.Errorf("newer: %v", err)
	}
	older := bytes.Clone(data)
	older[8] = oldest - 1
	fixPreamble(older)
	if _, err := NewReader("older", bytes.NewReader(older), int64(len(older))); !errors.Is(err, ErrOlder) || !strings.Contains(err.Error(), "the qos-agent that recorded it") {
		t.Errorf("older: %v", err)
	}
}

// TestAnotherVersionsFile reads what a version wrote that had other names for some fields.
func TestAnotherVersionsFile(t *testing.T) {
	w := newWalk(t, 12)
	var steps []*Step
	for range 50 {
		steps = append(steps, w.step())
	}
	data := write(t, WriterOptions{}, steps...)
	for _, rename := range [][2]string{{`"UsageNS u"`, `"UsageXX u"`}, {`"pod":"{UID:s,`, `"pod":"{UIX:s,`}, {`"name":"Wake"`, `"name":"Wak2"`}} {
		if !bytes.Contains(data, []byte(rename[0])) {
			t.Fatalf("%s is not in the file", rename[0])
		}
		data = bytes.Replace(data, []byte(rename[0]), []byte(rename[1]), 1)
	}
	r := open(t, repair(data))
	if !slices.Contains(r.Missing(), "signal.ContainerSample.CPU.UsageNS") || !slices.Contains(r.Dropped(), "signal.ContainerSample.CPU.UsageXX") ||
		!slices.Contains(r.Missing(), "pod.UID") {
		t.Errorf("missing %v, dropped %v", r.Missing(), r.Dropped())
	}
	comparable := 0
	for _, ok := range r.Comparable() {
		if ok {
			comparable++
		}
	}
	if all := len(w.digest.Fields()); comparable != all-1 {
		t.Errorf("%d fields of %d can be compared, want all but one", comparable, all)
	}
	for i := range steps {
		s, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		want := *steps[i].Snapshot
		want.Pods = slices.Clone(want.Pods)
		for k := range want.Pods {
			want.Pods[k].UID = ""
		}
		want.Containers = slices.Clone(want.Containers)
		for k := range want.Containers {
			want.Containers[k].CPU.UsageNS = 0
		}
		if diff := cmp.Diff(&want, s.Snapshot, alike...); diff != "" {
			t.Fatalf("step %d (-written +read):\n%s", i, diff)
		}
	}
}
