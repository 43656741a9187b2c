package policy

import (
	"encoding/json"
	"fmt"
)

// exported is a compiled policy as it is kept in recordings.
type exported struct {
	ID     string          `json:"id"`
	Forced Mode            `json:"forcedMode,omitempty"`
	Policy json.RawMessage `json:"policy"`
}

// Export is the policy as JSON, from which Import makes one that has the same ID and does the same.
func (c *Compiled) Export() ([]byte, error) {
	text, err := json.Marshal(c.policy)
	if err != nil {
		return nil, fmt.Errorf("export policy: %w", err)
	}
	return json.Marshal(exported{c.id, c.forced, text})
}

// Import makes a policy from what Export gave, perhaps long ago: fields that did not exist then have their defaults, and the ID
// is that of then.
func Import(data []byte) (*Compiled, error) {
	var e exported
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("import policy: %w", err)
	}
	p := Default()
	if err := json.Unmarshal(e.Policy, &p); err != nil {
		return nil, fmt.Errorf("import policy %s: %w", e.ID, err)
	}
	c, err := Compile(&p)
	if err != nil {
		return nil, fmt.Errorf("import policy %s: %w", e.ID, err)
	}
	if e.Forced != "" {
		if e.Forced != Observe && e.Forced != Enforce {
			return nil, fmt.Errorf("import policy %s: mode %q is not known", e.ID, e.Forced)
		}
		c = c.WithMode(e.Forced)
	}
	c.id = e.ID
	return c, nil
}
