package server

import (
	"context"
	"time"
)

// Provider is what the loop shows of itself. Every method may be called from many goroutines at once, must not wait for more
// than the current step of the loop, and returns values that nobody changes any more.
type Provider interface {
	// State copies the agent's state out. An error means that the loop did not answer before ctx was done.
	State(ctx context.Context) (*State, error)
	// Metrics copies out the values behind /metrics that are not Instruments.
	Metrics(ctx context.Context) (*Metrics, error)
	// Health never waits for the loop.
	Health() Health
}

// Health is the agent's opinion of itself.
type Health struct {
	// SinceTick is the time since the last tick ended, or since the agent started if there was none.
	SinceTick time.Duration
	// Interval is the time between ticks.
	Interval time.Duration
	// Conditions are the parts of the agent that can be in order or not, in the order in which people want to read them.
	Conditions []Condition
}

// Condition is one part of the agent.
type Condition struct {
	Name string `json:"name"` // policy, pods, ebpf, executor ...
	OK   bool   `json:"ok"`
	// Required conditions keep the agent from being ready; the others only degrade it.
	Required bool `json:"required"`
	// Detail says what is in order ("default, loaded 10:01:02"), or why it is not and what is lost by it.
	Detail string `json:"detail"`
}
