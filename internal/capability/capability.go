// Package capability finds out what the node can do by doing it: every feature that the agent would use is used once, on a group
// of its own that holds no tasks, and put back. Nothing is concluded from version numbers.
package capability

// Probe is the outcome of trying one feature.
type Probe struct {
	Name   string `json:"name"`           // stable; label of qosagent_capability
	OK     bool   `json:"ok"`             //
	Needed bool   `json:"needed"`         // the main job cannot be done without it
	Detail string `json:"detail"`         // what was found, or why it does not work
	Lost   string `json:"lost,omitempty"` // what the agent cannot do without it; only if missing
	Fix    string `json:"fix,omitempty"`  // how to get it; only if missing
}
