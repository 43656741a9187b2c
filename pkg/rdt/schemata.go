package rdt

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Domain is the value of a resource in one of its domains.
type Domain struct {
	ID    int
	Value uint64
}

// Line is one resource in a schemata file.
type Line struct {
	Resource string // "L3", "MB"
	Domains  []Domain
}

// Schemata is what a group is limited to.
type Schemata []Line

// Values of a resource by domain; nil if it is not there.
func (s Schemata) Values(resource string) []Domain {
	for i := range s {
		if s[i].Resource == resource {
			return s[i].Domains
		}
	}
	return nil
}

// isMask reports whether values of a resource are bit masks, in hexadecimal.
func isMask(resource string) bool { return strings.HasPrefix(resource, "L") }

// ParseSchemata reads a schemata file. The kernel pads lines and values with blanks. What is not a number, as in a group that is
// being pseudo-locked, is an error.
func ParseSchemata(text []byte) (Schemata, error) {
	var s Schemata
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		l, err := parseLine(string(line))
		if err != nil {
			return nil, err
		}
		if s.Values(l.Resource) != nil {
			return nil, fmt.Errorf("schemata: %s: named twice", l.Resource)
		}
		s = append(s, l)
	}
	return s, nil
}

func parseLine(line string) (Line, error) {
	name, list, ok := strings.Cut(line, ":")
	if !ok {
		return Line{}, fmt.Errorf("schemata: %q: no colon", line)
	}
	l := Line{Resource: strings.TrimSpace(name)}
	if l.Resource == "" {
		return Line{}, fmt.Errorf("schemata: %q: no resource", line)
	}
	base := 10
	if isMask(l.Resource) {
		base = 16
	}
	for part := range strings.SplitSeq(list, ";") {
		id, value, ok := strings.Cut(part, "=")
		if !ok {
			return Line{}, fmt.Errorf("schemata: %s: %q: want domain=value", l.Resource, part)
		}
		n, err := strconv.ParseUint(strings.TrimSpace(id), 10, 31)
		if err != nil {
			return Line{}, fmt.Errorf("schemata: %s: domain %q: %w", l.Resource, id, numError(err))
		}
		v, err := strconv.ParseUint(strings.TrimSpace(value), base, 64)
		if err != nil {
			return Line{}, fmt.Errorf("schemata: %s: domain %d: value %q: %w", l.Resource, n, value, numError(err))
		}
		if slices.ContainsFunc(l.Domains, func(d Domain) bool { return d.ID == int(n) }) {
			return Line{}, fmt.Errorf("schemata: %s: domain %d: named twice", l.Resource, n)
		}
		l.Domains = append(l.Domains, Domain{int(n), v})
	}
	return l, nil
}

func numError(err error) error {
	var n *strconv.NumError
	if errors.As(err, &n) {
		return n.Err
	}
	return err
}

// String is the line as the kernel takes it, without a newline: "L3:0=7ff;1=3".
func (l *Line) String() string { return l.Resource + ":" + FormatDomains(l.Resource, l.Domains) }

// FormatDomains shows values of a resource: "0=7ff;1=3".
func FormatDomains(resource string, domains []Domain) string {
	var b []byte
	base := 10
	if isMask(resource) {
		base = 16
	}
	for i, d := range domains {
		if i > 0 {
			b = append(b, ';')
		}
		b = strconv.AppendInt(b, int64(d.ID), 10)
		b = append(b, '=')
		b = strconv.AppendUint(b, d.Value, base)
	}
	return string(b)
}

// Contiguous reports whether the ones of a mask are next to each other; a mask of zero is not.
func Contiguous(mask uint64) bool {
	return mask != 0 && bits.OnesCount64(mask) == 64-bits.LeadingZeros64(mask)-bits.TrailingZeros64(mask)
}

// Schemata reads a group's limits.
func (f *FS) Schemata(group string) (Schemata, error) {
	text, err := f.tree.Read(path.Join(group, "schemata"), f.buf[:])
	if err != nil {
		return nil, fmt.Errorf("resctrl: schemata of %s: %w", cmpName(group), err)
	}
	s, err := ParseSchemata(text)
	if err != nil {
		return nil, fmt.Errorf("resctrl: group %s: %w", cmpName(group), err)
	}
	return s, nil
}

// Mismatch is a write of limits that the kernel took but that shows otherwise.
type Mismatch struct {
	Group, Resource string
	Want, Have      []Domain
}

func (e *Mismatch) Error() string {
	return fmt.Sprintf("resctrl: group %s: wrote %s:%s, shows %s", cmpName(e.Group), e.Resource, FormatDomains(e.Resource, e.Want), FormatDomains(e.Resource, e.Have))
}

// SetLimits writes the domains of lines that differ from what the group has, all in one write, and reads them back. It returns what
// the group had before and has now. Nothing is written if nothing differs. Bandwidth is written as Bandwidth.Round makes it. What then
// still differs is a *Mismatch.
func (f *FS) SetLimits(group string, lines []Line) (old, now Schemata, err error) {
	if old, err = f.Schemata(group); err != nil {
		return nil, nil, err
	}
	var text strings.Builder
	for i := range lines {
		if changed := f.changed(&lines[i], old); len(changed.Domains) > 0 {
			text.WriteString(changed.String())
			text.WriteByte('\n')
		}
	}
	if text.Len() == 0 {
		return old, old, nil
	}
	writeErr := f.write(path.Join(group, "schemata"), text.String())
	if now, err = f.Schemata(group); err != nil {
		return old, nil, errors.Join(writeErr, err)
	}
	if writeErr != nil {
		return old, now, writeErr
	}
	for i := range lines {
		if left := f.changed(&lines[i], now); len(left.Domains) > 0 {
			return old, now, &Mismatch{group, lines[i].Resource, lines[i].Domains, now.Values(lines[i].Resource)}
		}
	}
	return old, now, nil
}

// changed is what of a line differs from what is there, as it is to be written. A domain that is not there is among it: the kernel says
// no.
func (f *FS) changed(l *Line, have Schemata) Line {
	out := Line{Resource: l.Resource}
	values := have.Values(l.Resource)
	for _, d := range l.Domains {
		same := func(h Domain) bool { return h == d }
		if mb := f.Info.MB; l.Resource == "MB" && mb != nil {
			d.Value = mb.Round(d.Value)
			same = func(h Domain) bool { return h.ID == d.ID && mb.same(h.Value, d.Value) }
		}
		if !slices.ContainsFunc(values, same) {
			out.Domains = append(out.Domains, d)
		}
	}
	return out
}
