// Package policies holds the ready-made policies. Default is built into the agent; the others are for operators to copy.
package policies

import _ "embed"

// Default is the default policy, commented.
//
//go:embed default.yaml
var Default string
