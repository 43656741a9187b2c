package policy

import "strings"

// glob is a pattern in which * stands for any letters but a slash, and ** for any letters. A match takes at most
// len(pattern) * len(text) steps, whatever the pattern.
type glob string

func (g glob) match(s string) bool {
	if !strings.Contains(string(g), "*") {
		return string(g) == s
	}
	// Only the last star of each kind needs to be tried again: a * may take the rest of its directory, which is all that an
	// earlier one of that directory could have left to it, and a ** may take everything.
	type choice struct{ pattern, text int } // resume the pattern there, with the star taking up to text
	star, deep := choice{-1, 0}, choice{-1, 0}
	p, t := 0, 0
	for p < len(g) || t < len(s) {
		if p < len(g) && g[p] == '*' {
			end := p
			for end < len(g) && g[end] == '*' {
				end++
			}
			if end-p >= 2 {
				deep, star = choice{end, t}, choice{-1, 0}
			} else {
				star = choice{end, t}
			}
			p = end
			continue
		}
		if p < len(g) && t < len(s) && g[p] == s[t] {
			p, t = p+1, t+1
			continue
		}
		switch {
		case star.pattern >= 0 && star.text < len(s) && s[star.text] != '/':
			star.text++
			p, t = star.pattern, star.text
		case deep.pattern >= 0 && deep.text < len(s):
			deep.text++
			p, t = deep.pattern, deep.text
			star.pattern = -1
		default:
			return false
		}
	}
	return true
}
