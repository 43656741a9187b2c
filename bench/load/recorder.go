package load

import "slices"

// unit is the resolution of recorded times in nanoseconds; a uint32 of them reaches to 7 minutes.
const unit = 100

// recorder holds one window. It never allocates after it was made: the loop writes into it, and the client's side sorts it in
// place when the loop has gone on to the other one.
type recorder struct {
	begin, end int64 // due times of the window's requests, ns; end is 0 while it is open
	latency    []uint32
	late       []uint32
	offered    int
	completed  int
	errors     int
	queued     int
	busyMax    int64
	inFlight   int
}

const recorderSize = 1 << 22

func newRecorder() *recorder {
	return &recorder{latency: make([]uint32, 0, recorderSize), late: make([]uint32, 0, recorderSize)}
}

func (r *recorder) reset(begin int64) {
	*r = recorder{begin: begin, latency: r.latency[:0], late: r.late[:0]}
}

func push(s *[]uint32, ns int64) {
	if len(*s) < cap(*s) {
		*s = append(*s, uint32(min(max(ns, 0)/unit, 1<<32-1)))
	}
}

// window sums the recorder up. It sorts the samples.
func (r *recorder) window() Window {
	slices.Sort(r.latency)
	slices.Sort(r.late)
	seconds := float64(r.end-r.begin) / 1e9
	w := Window{
		Seconds: seconds, Offered: r.offered, Completed: r.completed, Errors: r.errors, Unfinished: r.inFlight,
		Unrecorded: r.completed - len(r.latency), Queued: r.queued,
		P50: quantile(r.latency, 0.5), P90: quantile(r.latency, 0.9), P99: quantile(r.latency, 0.99),
		P999: quantile(r.latency, 0.999), Max: quantile(r.latency, 1),
		Self: Self{LateP50: quantile(r.late, 0.5), LateP99: quantile(r.late, 0.99), LateMax: quantile(r.late, 1), BusyMax: float64(r.busyMax) / 1e3},
	}
	if seconds > 0 {
		w.Rate = float64(r.completed) / seconds
	}
	var sum float64
	for _, v := range r.latency {
		sum += float64(v)
	}
	if len(r.latency) > 0 {
		w.Mean = sum / float64(len(r.latency)) * unit / 1e3
	}
	return w
}

// quantile of sorted samples in microseconds, by nearest rank; 0 for none.
func quantile(sorted []uint32, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(q*float64(len(sorted))+0.9999999) - 1
	return float64(sorted[min(max(rank, 0), len(sorted)-1)]) * unit / 1e3
}

// Median of values; 0 for none. It sorts a copy.
func Median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	switch n := len(s); {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}
