package tune

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/score"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

// Search is a search.
type Search struct {
	Base       *Base
	Space      *Space
	Recordings []whatif.Recording
	Points     int    // to begin with
	Rounds     int    // of refinement
	Out        string // directory for what was found out
	Shard      int    // with Shards > 0: which part of the recordings
	Shards     int
	// Refine is a file of coordinates that a merge wrote; a shard tries these instead of the Sobol points.
	Refine string
	Log    func(format string, args ...any)

	known map[evalKey]score.Score
	file  *os.File
	model *whatif.Model
	cands map[string]*Candidate // by ID
}

type evalKey struct {
	id, recording string
	budget        float64
}

// evaluation is a line of evaluations.jsonl: what the model says of a candidate on a part of a recording.
type evaluation struct {
	Search    string      `json:"search"` // Hash of base and space
	ID        string      `json:"id"`     // of the policy
	At        []float64   `json:"at"`     // null: the base policy
	Recording string      `json:"recording"`
	Budget    float64     `json:"budget"` // the part of the recording that was used
	Score     score.Score `json:"score"`
}

// Found is a candidate and what is said of it on all recordings.
type Found struct {
	*Candidate
	Score score.Score
}

// Run searches, or, as a shard, evaluates its part.
func (s *Search) Run() ([]Found, error) {
	if s.Log == nil {
		s.Log = func(string, ...any) {}
	}
	if s.Shards > 0 {
		var mine []whatif.Recording
		for i, r := range s.Recordings {
			if i%s.Shards == s.Shard {
				mine = append(mine, r)
			}
		}
		s.Log("shard %d of %d: %d of %d recordings", s.Shard, s.Shards, len(mine), len(s.Recordings))
		s.Recordings = mine
		if len(mine) == 0 {
			return nil, nil
		}
	}
	if len(s.Recordings) == 0 {
		return nil, errors.New("no recordings")
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	defer s.file.Close()
	var err error
	if s.model, err = whatif.Fit(s.Recordings, nil); err != nil {
		return nil, err
	}
	s.Log("model: %d pairs from %d windows; parameters seen rather than assumed for %.0f %% of pairs", s.model.Pairs(), s.model.Windows, s.model.Varied())
	base, err := s.Base.at(s.Space, nil)
	if err != nil {
		return nil, err
	}
	pool := []*Candidate{base}
	points, err := s.points()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{base.ID(): true}
	skipped := 0
	var why error // of the last one that was
	for _, at := range points {
		c, err := s.Base.at(s.Space, at)
		if err != nil {
			why = err
			skipped++ // fields that do not go together
			continue
		}
		if !seen[c.ID()] {
			seen[c.ID()] = true
			pool = append(pool, c)
		}
	}
	if len(pool) == 1 && why != nil {
		return nil, fmt.Errorf("none of %d points of the space is a valid policy: %w", len(points), why)
	}
	s.Log("%d candidates (%d points are no valid policies)", len(pool), skipped)
	if s.Shards > 0 {
		// What the others find is not known here, so nothing can be halved: all are tried on all.
		return s.evaluate(pool, 1)
	}
	for _, budget := range []float64{0.25, 0.5} {
		found, err := s.evaluate(pool, budget)
		if err != nil {
			return nil, err
		}
		pool = s.better(found, max(4, len(pool)/2))
		s.Log("after %.0f %% of each recording: %d candidates left", budget*100, len(pool))
	}
	found, err := s.evaluate(pool, 1)
	if err != nil {
		return nil, err
	}
	for round := range s.Rounds {
		step := 0.15 / float64(int(1)<<round)
		var near []*Candidate
		for _, f := range pick(found, 4) {
			for _, at := range neighbours(f.At, step) {
				if c, err := s.Base.at(s.Space, at); err == nil && !seen[c.ID()] {
					seen[c.ID()] = true
					near = append(near, c)
				}
			}
		}
		if len(near) == 0 {
			break
		}
		s.Log("refinement %d: %d neighbours of the front", round+1, len(near))
		more, err := s.evaluate(near, 1)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// Estimate is what the model says of one candidate on all recordings, with intervals.
func (s *Search) Estimate(f *Found) (*whatif.Outcome, error) {
	base, err := s.Base.at(s.Space, nil)
	if err != nil {
		return nil, err
	}
	res, err := whatif.RunAll(s.Recordings, s.model, []*policy.Compiled{f.Compiled}, whatif.Options{Objective: base.Compiled})
	if err != nil {
		return nil, err
	}
	return &res.Policies[0], nil
}

// points are the coordinates to begin with.
func (s *Search) points() ([][]float64, error) {
	if s.Refine != "" {
		data, err := os.ReadFile(s.Refine)
		if err != nil {
			return nil, err
		}
		var out [][]float64
		if err := json.Unmarshal(data, &out); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Refine, err)
		}
		for i, at := range out {
			if len(at) != len(s.Space.Parameters) {
				return nil, fmt.Errorf("%s: point %d has %d coordinates, the space has %d parameters", s.Refine, i, len(at), len(s.Space.Parameters))
			}
		}
		return out, nil
	}
	var out [][]float64
	for n := range s.Points {
		out = append(out, sobol(uint32(n+1), len(s.Space.Parameters)))
	}
	return out, nil
}

// neighbours are the points one step away along each axis.
func neighbours(at []float64, step float64) (out [][]float64) {
	for i := range at {
		for _, d := range []float64{-step, step} {
			n := slices.Clone(at)
			n[i] = min(max(n[i]+d, 0), 1)
			if n[i] != at[i] {
				out = append(out, n)
			}
		}
	}
	return out
}

// pick is up to n of the front that can be refined, spread over it.
func pick(found []Found, n int) (out []Found) {
	var can []Found
	for _, i := range frontOf(found) {
		if found[i].At != nil {
			can = append(can, found[i])
		}
	}
	for k := range min(n, len(can)) {
		out = append(out, can[k*(len(can)-1)/max(1, min(n, len(can))-1)])
	}
	return out
}

func frontOf(found []Found) []int {
	v, w := make([]float64, len(found)), make([]float64, len(found))
	for i := range found {
		v[i], w[i] = found[i].Score.Violation(), found[i].Score.Work()
	}
	return Front(v, w)
}

// better is the n best: fronts peeled off one by one. The base policy always stays, for comparison.
func (s *Search) better(found []Found, n int) (out []*Candidate) {
	for i := range found {
		if found[i].At == nil {
			out = append(out, found[i].Candidate)
			found = slices.Delete(slices.Clone(found), i, i+1)
			break
		}
	}
	for len(found) > 0 && len(out) < n {
		front := frontOf(found)
		for _, i := range front {
			if len(out) < n {
				out = append(out, found[i].Candidate)
			}
		}
		var rest []Found
		for i := range found {
			if !slices.Contains(front, i) {
				rest = append(rest, found[i])
			}
		}
		found = rest
	}
	return out
}

// part is a recording that ends early.
type part struct {
	whatif.Recording
	budget float64
}

var errEnough = errors.New("enough")

func (p part) Steps(give func(*whatif.Step) error) error {
	if p.budget >= 1 {
		return p.Recording.Steps(give)
	}
	var first, last time.Duration
	begun := false
	if err := p.Recording.Steps(func(s *whatif.Step) error {
		if !begun {
			begun, first = true, s.Snapshot.Now
		}
		last = s.Snapshot.Now
		return nil
	}); err != nil {
		return err
	}
	end := first + time.Duration(float64(last-first)*p.budget)
	err := p.Recording.Steps(func(s *whatif.Step) error {
		if s.Snapshot.Now > end {
			return errEnough
		}
		return give(s)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// evaluate tries candidates on a part of each recording: recordings in parallel, all candidates in one reading of each.
func (s *Search) evaluate(cands []*Candidate, budget float64) ([]Found, error) {
	const together = 32 // candidates in one reading: what is kept for each adds up
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, rec := range s.Recordings {
		var todo []*Candidate
		mu.Lock() // the recordings before this one are still being tried
		for _, c := range cands {
			if _, ok := s.known[evalKey{c.ID(), rec.Name(), budget}]; !ok {
				todo = append(todo, c)
			}
		}
		mu.Unlock()
		for chunk := range slices.Chunk(todo, together) {
			wg.Add(1)
			slots <- struct{}{}
			go func() {
				defer func() { <-slots; wg.Done() }()
				pols := make([]*policy.Compiled, len(chunk))
				for i, c := range chunk {
					pols[i] = c.Compiled
				}
				base, err := s.Base.at(s.Space, nil)
				var res *whatif.Result
				if err == nil {
					res, err = whatif.Run(part{rec, budget}, s.model, pols, whatif.Options{Draws: -1, Resamples: -1, Objective: base.Compiled})
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("%s: %w", rec.Name(), err))
					return
				}
				for i, c := range chunk {
					var sum score.Score
					for _, b := range res.Policies[i].Blocks {
						sum.Add(b)
					}
					if err := s.remember(evaluation{Hash(s.Base, s.Space), c.ID(), c.At, rec.Name(), budget, sum}); err != nil {
						failed = errors.Join(failed, err)
					}
				}
			}()
		}
	}
	wg.Wait()
	if failed != nil {
		return nil, failed
	}
	out := make([]Found, len(cands))
	for i, c := range cands {
		out[i].Candidate = c
		for _, rec := range s.Recordings {
			out[i].Score.Add(s.known[evalKey{c.ID(), rec.Name(), budget}])
		}
	}
	return out, nil
}

// open takes up what an earlier run found out.
func (s *Search) open() error {
	if err := os.MkdirAll(s.Out, 0o755); err != nil {
		return err
	}
	name := "evaluations.jsonl"
	if s.Shards > 0 {
		name = fmt.Sprintf("evaluations-%d-of-%d.jsonl", s.Shard, s.Shards)
	}
	file := filepath.Join(s.Out, name)
	s.known = make(map[evalKey]score.Score)
	evals, whole, err := readEvaluations(file, Hash(s.Base, s.Space))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range evals {
		s.known[evalKey{e.ID, e.Recording, e.Budget}] = e.Score
	}
	if len(evals) > 0 {
		s.Log("resumed: %d evaluations are known from %s", len(evals), file)
	}
	s.file, err = os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	// A line that was cut off when the last run was killed goes.
	if err := s.file.Truncate(whole); err != nil {
		return err
	}
	_, err = s.file.Seek(whole, io.SeekStart)
	return err
}

func (s *Search) remember(e evaluation) error {
	s.known[evalKey{e.ID, e.Recording, e.Budget}] = e.Score
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = s.file.Write(append(line, '\n'))
	return err
}

// readEvaluations reads the lines that belong to a search, and says how many bytes of the file are whole lines.
func readEvaluations(file, search string) (out []evaluation, whole int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return out, whole, nil // what follows the last newline was cut off
		} else if err != nil {
			return nil, 0, err
		}
		var e evaluation
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, 0, fmt.Errorf("%s:%d: %w", file, n, err)
		}
		if e.Search != search {
			return nil, 0, fmt.Errorf("%s:%d: belongs to a search with another base policy or space: give another --out, or remove it", file, n)
		}
		whole += int64(len(line))
		out = append(out, e)
	}
}

// Merge joins what shards found out. It refuses to take a part for the whole.
func Merge(dir string, b *Base, sp *Space) ([]Found, error) {
	files, err := filepath.Glob(filepath.Join(dir, "evaluations-*-of-*.jsonl"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no evaluations-*-of-*.jsonl: run the shards with this --out first", dir)
	}
	shards := make(map[int]map[int]bool)
	type sum struct {
		at    []float64
		score score.Score
		on    map[string]bool
	}
	sums := make(map[string]*sum)
	recordings := make(map[string]bool)
	for _, f := range files {
		var i, n int
		if _, err := fmt.Sscanf(filepath.Base(f), "evaluations-%d-of-%d.jsonl", &i, &n); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		if shards[n] == nil {
			shards[n] = make(map[int]bool)
		}
		shards[n][i] = true
		evals, _, err := readEvaluations(f, Hash(b, sp))
		if err != nil {
			return nil, err
		}
		for _, e := range evals {
			if e.Budget != 1 {
				continue
			}
			x := sums[e.ID]
			if x == nil {
				x = &sum{at: e.At, on: make(map[string]bool)}
				sums[e.ID] = x
			}
			if !x.on[e.Recording] {
				x.on[e.Recording] = true
				x.score.Add(e.Score)
			}
			recordings[e.Recording] = true
		}
	}
	if len(shards) != 1 {
		return nil, fmt.Errorf("%s: shards of %d different splits: remove what does not belong here", dir, len(shards))
	}
	for n, have := range shards {
		var missing []string
		for i := range n {
			if !have[i] {
				missing = append(missing, fmt.Sprint(i))
			}
		}
		if len(missing) > 0 {
			return nil, fmt.Errorf("%s: shards %s of %d are missing", dir, strings.Join(missing, ", "), n)
		}
	}
	ids := make([]string, 0, len(sums))
	for id := range sums {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var out []Found
	for _, id := range ids {
		if len(sums[id].on) < len(recordings) {
			continue // not tried everywhere
		}
		c, err := b.at(sp, sums[id].at)
		if err != nil {
			return nil, err
		}
		out = append(out, Found{c, sums[id].score})
	}
	return out, nil
}

// Next is the neighbourhood of the front, for another round of shards.
func Next(found []Found, step float64) []byte {
	var points [][]float64
	for _, f := range pick(found, 8) {
		points = append(points, f.At)
		points = append(points, neighbours(f.At, step)...)
	}
	data, _ := json.Marshal(points)
	return data
}
