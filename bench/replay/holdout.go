package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/qos-agent/qos-agent/bench/lab"
	"github.com/qos-agent/qos-agent/bench/scene"
	"github.com/qos-agent/qos-agent/internal/whatif"
)

// holdOut is how far the response model is off on a real recording: it is fitted on every second block of ten seconds and predicts, for
// the blocks between, how long the service's tasks waited behind the batch work, given how much of the node that used and how the
// scheduler ranked it.
type holdOut struct {
	lab.Machine
	Recorded string  `json:"recorded"`
	Rate     float64 `json:"requests_per_second"`
	Windows  int     `json:"windows"` // of a second, that it was fitted on
	Blocks   int     `json:"blocks"`  // that it was held against
	// Relative is the sum of the absolute differences between predicted and seen wait over the sum of what was seen: 0.3 says that a
	// prediction for ten seconds is off by 30 % on average, weighted by how long the wait was.
	Relative float64 `json:"relative"`
	Bias     float64 `json:"bias"` // all that was predicted over all that was seen, less 1
	// Unfitted is the same error of the model's priors, which know nothing of this node: what fitting is worth.
	Unfitted float64 `json:"relative_without_fit"`
}

// turns are the policies of the recording: they must act differently, or nothing could be told of what acting does.
var turns = [...]string{
	"  cpu: {posture: none, ladder: []}\n",
	"  cpu: {posture: idle, ladder: []}\n",
	"  cpu: {posture: weight, ladder: []}\n",
	"  cpu: {posture: none, ladder: [quota], cooldown: 1s}\n",
}

// turn is how long each is in force: no multiple or part of a block, so that both halves see all of them.
const turn = 7 * time.Second

func turnPolicy(spec string) string {
	return "apiVersion: qos-agent.io/v1alpha1\nkind: QoSPolicy\nmetadata: {name: turn}\nspec:\n  mode: enforce\n" + spec
}

// holdOut records a real node and puts the error into r.
func (c *runCmd) holdOut(ctx context.Context, r *result) (err error) {
	switch {
	case c.HoldOut == 0:
		return nil
	case os.Getuid() != 0:
		fmt.Println("hold-out error of the model: needs root: makes control groups and runs the daemon; holdout_error is left as it was")
		return nil
	}
	s, err := scene.Open(ctx, 0.25)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			_ = s.Close() // there is an error to tell already
		}
	}()
	dir := filepath.Join(s.Dir, "trace")
	if err := s.Under(ctx, turnPolicy(turns[0]), dir, func() error {
		for i, left := 1, c.HoldOut; left > 0; i, left = i+1, left-turn {
			if err := lab.Sleep(ctx, min(left, turn)); err != nil {
				return err
			}
			if err := s.Policy(turnPolicy(turns[i%len(turns)])); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	verified, err := child(ctx, dir, "verify")
	if err != nil {
		return err
	}
	r.verified("a real daemon beside nginx and xz, policies taking turns", &verified.Verdict)
	recs, err := scene.Recordings(ctx, dir)
	if err != nil {
		return err
	}
	learn, test := whatif.Halves()
	m, err := whatif.Fit(recs, learn)
	if err != nil {
		return err
	}
	e, err := m.Validate(recs, test)
	if err != nil {
		return err
	}
	prior, err := whatif.Fit(nil, nil)
	if err != nil {
		return err
	}
	blind, err := prior.Validate(recs, test)
	if err != nil {
		return err
	}
	r.HoldOut = &holdOut{lab.ThisMachine(), c.HoldOut.String(), s.Rate, m.Windows, e.Blocks, e.Relative, e.Bias, blind.Relative}
	r.HoldOutError = &e.Relative
	fmt.Printf("hold-out error of the model: predictions of the wait behind batch work are off by %.0f %% on %d blocks of %v that it was not fitted on (bias %+.0f %%; without any fit %.0f %%)\n",
		100*e.Relative, e.Blocks, whatif.Block, 100*e.Bias, 100*blind.Relative)
	closed = true
	return s.Close()
}
