package strictyaml

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// Rule is what the struct tags of a field say about its value. For lists and maps it is about their elements.
type Rule struct {
	Want     []Choice       // any of them; empty: everything
	Pattern  *regexp.Regexp // of texts
	Example  string         // says in words what Pattern, or the field's type, wants
	Required bool
}

// Choice is one value (Low == High) or an inclusive range. For texts only Low counts.
type Choice struct{ Low, High string }

// RuleOf reads the tags of a struct field:
//
//	want:"0|1ms..60s"   values and ranges that are allowed, written as in YAML
//	pattern:"^[a-z]+$"  what a text must match
//	example:"a name"    what to tell people who got the pattern wrong, or what a type of its own does not read
//	required:"true"     the field must be there, and not empty
func RuleOf(f reflect.StructField) Rule {
	r := Rule{Example: f.Tag.Get("example"), Required: f.Tag.Get("required") == "true"}
	if w := f.Tag.Get("want"); w != "" {
		for c := range strings.SplitSeq(w, "|") {
			low, high, isRange := strings.Cut(c, "..")
			if !isRange {
				high = low
			}
			r.Want = append(r.Want, Choice{low, high})
		}
	}
	if p := f.Tag.Get("pattern"); p != "" {
		r.Pattern = regexp.MustCompile(p)
	}
	return r
}

// String says what the rule wants: "0 or 100us to 10s", "observe or enforce".
func (r Rule) String() string {
	if r.Example != "" {
		return r.Example
	}
	words := make([]string, len(r.Want))
	for i, c := range r.Want {
		words[i] = c.Low
		if c.High != c.Low {
			words[i] += " to " + c.High
		}
	}
	return or(words)
}

// Key is the name of a struct field in YAML; "" if it has none.
func Key(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func optional(f reflect.StructField) bool {
	_, flags, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return strings.Contains(flags, "omitempty")
}

// check reports what is wrong with the scalar v, which people know as shown.
func (r Rule) check(v reflect.Value, shown string) (problem, fix string) {
	switch {
	case r.Pattern != nil:
		if !r.Pattern.MatchString(v.String()) {
			return "is " + quote(v.String()), r.String()
		}
		return "", ""
	case len(r.Want) == 0 || r.allows(v):
		return "", ""
	case v.Kind() == reflect.String:
		return "is " + quote(v.String()), didYouMean(v.String(), r.choices(), r.String())
	default:
		return "is " + cut(shown), r.String()
	}
}

func (r Rule) choices() []string {
	out := make([]string, len(r.Want))
	for i, c := range r.Want {
		out[i] = c.Low
	}
	return out
}

func (r Rule) allows(v reflect.Value) bool {
	for _, c := range r.Want {
		if v.Kind() == reflect.String {
			if v.String() == c.Low {
				return true
			}
			continue
		}
		x := number(v)
		if low, high := bound(v.Type(), c.Low), bound(v.Type(), c.High); x >= low && x <= high {
			return true
		}
	}
	return false
}

// number is v for comparison. All bounds that are written in tags are exact in a float64.
func number(v reflect.Value) float64 {
	if v.CanInt() {
		return float64(v.Int())
	}
	return v.Float()
}

func bound(t reflect.Type, text string) float64 {
	p := reflect.New(t)
	if u, ok := p.Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			panic(fmt.Sprintf("strictyaml: bad bound %q for %v: %v", text, t, err)) // a mistake in a struct tag
		}
		return number(p.Elem())
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(x) {
		panic(fmt.Sprintf("strictyaml: bad bound %q for %v", text, t))
	}
	return x
}

// didYouMean puts the likely intention in front of what else would do.
func didYouMean(got string, choices []string, all string) string {
	best, least := "", 1+max(1, len(got)/3) // as many typing errors as a third of the word
	for _, c := range choices {
		if d := distance(strings.ToLower(got), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	if best == "" {
		return all
	}
	return fmt.Sprintf("perhaps %s (can be %s)", best, all)
}

// distance is the number of letters to insert, delete, replace or swap with their neighbour to turn a into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 { // no field is as long, and the cost is the product
		return math.MaxInt
	}
	var rows [3][65]int // the current row of the edit matrix, the last, and the one before
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[0][0] = i
		for j := 1; j <= len(b); j++ {
			replace := rows[1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			d := min(replace, rows[1][j]+1, rows[0][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[2][j-2]+1)
			}
			rows[0][j] = d
		}
		rows[2], rows[1] = rows[1], rows[0]
	}
	return rows[1][len(b)]
}

func or(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	}
}

// quote shows text from a file, cut to what fits a line.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return strconv.Quote(s)
}
