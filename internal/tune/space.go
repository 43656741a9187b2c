// Package tune searches policies for the best trade between online violation and offline work, on recordings, as the response model of
// package whatif sees them.
//
// The search is deliberately plain. Points of a Sobol sequence fill the space evenly and are the same in every shard (Joe and Kuo, SIAM
// J. Sci. Comput. 30, 2008); successive halving spends little on bad ones (Jamieson and Talwalkar, AISTATS 2016): all are tried on a
// quarter of each recording, the better half on half of it, the better half of these on all; then the neighbourhood of the front is
// tried with steps that shrink. Better means less violation and more work at once: fronts are peeled off one by one
// (non-dominated sorting; Deb et al., IEEE Trans. Evol. Comput. 6, 2002).
package tune

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qos-agent/qos-agent/internal/policy"
	"github.com/qos-agent/qos-agent/internal/strictyaml"
)

// Space is what may be changed.
type Space struct {
	// APIVersion says by which rules to read the file.
	APIVersion string `yaml:"apiVersion" want:"qos-agent.io/v1alpha1" required:"true"`
	// Kind is what the file is.
	Kind string `yaml:"kind" want:"TuneSpace" required:"true"`
	// Parameters that are searched.
	Parameters []Parameter `yaml:"parameters" required:"true"`
}

// Parameter is one field of the policy's spec.
type Parameter struct {
	// Path of the field below spec.
	Path string `yaml:"path" required:"true" pattern:"^[a-zA-Z]+(\\.[a-zA-Z0-9]+)*$" example:"a path below spec: cpu.cpus.cutPercent"`
	// From and To bound a number or a duration, as text.
	From string `yaml:"from"`
	// To is the other bound.
	To string `yaml:"to"`
	// Scale is linear or log.
	Scale string `yaml:"scale" want:"linear|log"`
	// Choices are values as they are written in YAML, instead of from and to.
	Choices []string `yaml:"choices,omitempty"`
}

// dimensions is how many parameters the Sobol sequence serves.
const dimensions = 16

// LoadSpace reads a space. The error is a strictyaml.ErrorList.
func LoadSpace(file string) (*Space, error) {
	var s Space
	if err := strictyaml.DecodeFile(file, &s); err != nil {
		return nil, err
	}
	var errs strictyaml.ErrorList
	fail := func(i int, field, problem, fix string) {
		errs = append(errs, strictyaml.FieldError{File: file, Path: fmt.Sprintf("parameters[%d].%s", i, field), Problem: problem, Fix: fix})
	}
	if n := len(s.Parameters); n == 0 || n > dimensions {
		errs = append(errs, strictyaml.FieldError{File: file, Path: "parameters", Problem: fmt.Sprintf("are %d", n), Fix: fmt.Sprintf("1 to %d", dimensions)})
	}
	for i := range s.Parameters {
		p := &s.Parameters[i]
		switch {
		case strings.HasPrefix(p.Path, "objectives.") && p.Path != "objectives.cpuWaitEvent", strings.HasPrefix(p.Path, "classes"), p.Path == "mode":
			fail(i, "path", "is "+p.Path, "what is promised, and to whom, is not for tuning: a policy does not get better by promising less")
		case len(p.Choices) > 0 && (p.From != "" || p.To != ""):
			fail(i, "choices", "stand beside from and to", "one or the other")
		case len(p.Choices) > 0:
		default:
			low, _, err := number(p.From)
			high, _, err2 := number(p.To)
			switch {
			case err != nil:
				fail(i, "from", fmt.Sprintf("is %q", p.From), "a number or a duration in quotes, or choices")
			case err2 != nil:
				fail(i, "to", fmt.Sprintf("is %q", p.To), "a number or a duration in quotes")
			case low >= high:
				fail(i, "to", fmt.Sprintf("is %s, from is %s", p.To, p.From), "more than from")
			case p.Scale == "log" && low <= 0:
				fail(i, "from", "is "+p.From+" on a logarithmic scale", "more than 0")
			}
		}
	}
	if len(errs) > 0 {
		return nil, errs.Tidy()
	}
	return &s, nil
}

// kind of a number.
type kind uint8

const (
	whole kind = iota
	real
	duration
)

func number(text string) (float64, kind, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return float64(n), whole, nil
	}
	if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
		return f, real, nil
	}
	d, err := time.ParseDuration(text)
	return float64(d), duration, err
}

// value is the parameter at u (0 to 1), as written in YAML.
func (p *Parameter) value(u float64) string {
	u = min(max(u, 0), 1)
	if n := len(p.Choices); n > 0 {
		return p.Choices[min(int(u*float64(n)), n-1)]
	}
	low, k, _ := number(p.From)
	high, k2, _ := number(p.To)
	var v float64
	if p.Scale == "log" {
		v = low * math.Pow(high/low, u)
	} else {
		v = low + (high-low)*u
	}
	switch max(k, k2) {
	case whole:
		return strconv.FormatInt(int64(math.Round(v)), 10)
	case duration:
		grain := time.Millisecond // nobody tells apart what is finer, and it reads well
		if v < float64(10*time.Millisecond) {
			grain = 100 * time.Microsecond
		} else if v >= float64(10*time.Second) {
			grain = time.Second
		}
		return time.Duration(v).Round(grain).String()
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// Candidate is a policy of the space.
type Candidate struct {
	At       []float64 // coordinates, 0 to 1; nil for the base policy
	Values   []string  // by parameter
	Text     string    // the policy as documents: base and what differs
	Compiled *policy.Compiled
}

// ID names the candidate's content.
func (c *Candidate) ID() string { return c.Compiled.ID() }

// Base is the policy that is to be made better.
type Base struct {
	File string
	Data []byte
}

// at makes the candidate at coordinates; an error is a point at which no policy can be.
func (b *Base) at(s *Space, at []float64) (*Candidate, error) {
	c := &Candidate{At: at}
	text := strings.TrimRight(string(b.Data), "\n") + "\n"
	if at != nil {
		for i := range s.Parameters {
			c.Values = append(c.Values, s.Parameters[i].value(at[i]))
		}
		text += "---\n" + overlay(s, c.Values)
	}
	p, err := policy.Parse(b.File, []byte(text))
	if err != nil {
		return nil, err
	}
	if at != nil {
		// The name must not tell apart what is the same otherwise.
		p.Metadata.Name = "tuned"
	}
	c.Text = text
	c.Compiled, err = policy.Compile(p)
	return c, err
}

// overlay is the document that sets the values.
func overlay(s *Space, values []string) string {
	type node struct {
		value string
		names []string
		below map[string]*node
	}
	root := &node{below: make(map[string]*node)}
	for i, p := range s.Parameters {
		n := root
		for part := range strings.SplitSeq(p.Path, ".") {
			if n.below == nil {
				n.below = make(map[string]*node)
			}
			next := n.below[part]
			if next == nil {
				next = &node{}
				n.below[part] = next
				n.names = append(n.names, part)
			}
			n = next
		}
		n.value = values[i]
	}
	var b strings.Builder
	b.WriteString("apiVersion: " + policy.APIVersion + "\nkind: " + policy.Kind + "\nmetadata: {name: tuned}\nspec:\n")
	var write func(n *node, indent string)
	write = func(n *node, indent string) {
		for _, name := range n.names {
			c := n.below[name]
			if c.value != "" {
				fmt.Fprintf(&b, "%s%s: %s\n", indent, name, c.value)
				continue
			}
			fmt.Fprintf(&b, "%s%s:\n", indent, name)
			write(c, indent+"  ")
		}
	}
	write(root, "  ")
	return b.String()
}

// Hash stands for space and base, so that results of other searches are not taken for this one's.
func Hash(b *Base, s *Space) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%+v", b.Data, s.Parameters)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// sobol gives the point of index n (from 0) in d dimensions, 0 to 1 each. Direction numbers are those of Joe and Kuo (new-joe-kuo-6).
func sobol(n uint32, d int) []float64 {
	out := make([]float64, d)
	gray := n ^ n>>1
	for j := range out {
		x := uint32(0)
		for bit := range 32 {
			if gray>>bit&1 == 1 {
				x ^= direction(j, bit)
			}
		}
		out[j] = float64(x) / (1 << 32)
	}
	return out
}

// direction is the bit'th direction number of dimension j.
func direction(j, bit int) uint32 {
	if j == 0 {
		return 1 << (31 - bit)
	}
	p := joeKuo[j-1]
	s := len(p.m)
	v := make([]uint32, max(bit+1, s))
	for i := range v {
		if i < s {
			v[i] = p.m[i] << (31 - i)
			continue
		}
		v[i] = v[i-s] ^ v[i-s]>>s
		for k := 1; k < s; k++ {
			if p.a>>(s-1-k)&1 == 1 {
				v[i] ^= v[i-k]
			}
		}
	}
	return v[bit]
}

var joeKuo = [dimensions - 1]struct {
	a uint32
	m []uint32
}{
	{0, []uint32{1}}, {1, []uint32{1, 3}}, {1, []uint32{1, 3, 1}}, {2, []uint32{1, 1, 1}}, {1, []uint32{1, 1, 3, 3}},
	{4, []uint32{1, 3, 5, 13}}, {2, []uint32{1, 1, 5, 5, 17}}, {4, []uint32{1, 1, 5, 5, 5}}, {7, []uint32{1, 1, 7, 11, 19}},
	{11, []uint32{1, 1, 5, 1, 1}}, {13, []uint32{1, 1, 1, 3, 11}}, {14, []uint32{1, 3, 5, 5, 31}}, {1, []uint32{1, 3, 3, 9, 7, 49}},
	{13, []uint32{1, 1, 1, 15, 21, 21}}, {16, []uint32{1, 3, 1, 13, 27, 49}},
}

// Front lists the indexes of points of which no other has both less violation and more work, in the order of violation.
func Front(violation, work []float64) []int {
	var out []int
	for i := range violation {
		dominated := false
		for j := range violation {
			if violation[j] <= violation[i] && work[j] >= work[i] && (violation[j] < violation[i] || work[j] > work[i] || j < i) {
				dominated = true
				break
			}
		}
		if !dominated {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b int) int {
		switch {
		case violation[a] < violation[b]:
			return -1
		case violation[a] > violation[b]:
			return 1
		}
		return a - b
	})
	return out
}
