package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// plots writes the pictures of a result.
func plots(dir, name string, r *result, o options) error {
	if err := os.WriteFile(filepath.Join(dir, name+"-pareto.svg"), []byte(pareto(r, o)), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+"-p99.svg"), []byte(heat(r, o)), 0o644)
}

// colours that can be told apart also by those who see no difference between red and green (Okabe and Ito).
var colours = []string{"#999999", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#0072b2", "#000000", "#a0522d", "#6a5acd"}

// pareto shows what each protection gives online and leaves offline: best is at the lower right. Bars are 95 % intervals, the small
// points single pairs.
func pareto(r *result, o options) string {
	const w, h, left, right, top, bottom = 860, 520, 70, 190, 50, 60
	lo, hi := math.Log(0.5), math.Log(10.0)
	for _, s := range r.Summary {
		hi = max(hi, math.Log(s.RatioHigh*1.5))
	}
	kept := func(v float64) float64 { return left + (w-left-right)*min(1.25, v)/1.25 }
	ratio := func(v float64) float64 {
		return top + (h-top-bottom)*(1-(min(max(math.Log(v), lo), hi)-lo)/(hi-lo))
	}
	b := newSVG(w, h)
	b.text(left, 24, "start", "13", "p99 of online to p99 alone, and offline throughput kept: geometric means over all pairs, 95 % intervals")
	for _, v := range []float64{0.5, 1, 1.25, 2, 5, 10, 20, 50, 100} {
		if math.Log(v) > hi {
			break
		}
		b.line(left, ratio(v), w-right, ratio(v), "#dddddd", 1)
		b.text(left-8, ratio(v)+4, "end", "11", fmt.Sprintf("%g", v))
	}
	for v := 0.0; v <= 1.2; v += 0.2 {
		b.line(kept(v), top, kept(v), h-bottom, "#eeeeee", 1)
		b.text(kept(v), h-bottom+18, "middle", "11", fmt.Sprintf("%.0f %%", v*100))
	}
	b.text((left+w-right)/2, h-16, "middle", "12", "offline throughput kept, of that without protection")
	b.text(left, 42, "start", "11", "p99 / p99 alone (logarithmic)")
	// The target's corner.
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#009e73" opacity="0.08"/>`+"\n",
		kept(targetKept), ratio(targetRatio), kept(1.25)-kept(targetKept), ratio(0.5)-ratio(targetRatio))
	for i, p := range o.protections {
		c := colours[i%len(colours)]
		for _, q := range r.Pairs {
			if q.Protection == p.name && !q.TooNoisy && q.Ratio > 0 {
				b.circle(kept(q.Kept), ratio(q.Ratio), 2, c, 0.3)
			}
		}
	}
	for i, p := range o.protections {
		s, ok := r.Summary[p.name]
		if !ok {
			continue
		}
		c := colours[i%len(colours)]
		b.line(kept(s.KeptLow), ratio(s.Ratio), kept(s.KeptHigh), ratio(s.Ratio), c, 2)
		b.line(kept(s.Kept), ratio(s.RatioLow), kept(s.Kept), ratio(s.RatioHigh), c, 2)
		b.circle(kept(s.Kept), ratio(s.Ratio), 6, c, 1)
		y := float64(top + 10 + 20*i)
		b.circle(w-right+20, y, 6, c, 1)
		b.text(w-right+32, y+4, "start", "12", p.name)
	}
	return b.done()
}

// heat shows the ratio of every pair: a row for each service, load and kind of work, a column for each protection.
func heat(r *result, o options) string {
	type row struct{ online, load, offline string }
	var rows []row
	value := map[cellKey]pair{}
	for _, p := range r.Pairs {
		if k := (row{p.Online, p.Load, p.Offline}); len(rows) == 0 || rows[len(rows)-1] != k {
			rows = append(rows, k)
		}
		value[cellKey{p.Online, p.Load, p.Offline, p.Protection}] = p
	}
	const cw, ch, left, top = 118, 17, 190, 70
	w, h := left+cw*len(o.protections)+20, top+ch*len(rows)+20
	b := newSVG(w, h)
	b.text(10, 22, "start", "13", "p99 to p99 alone, and (in brackets) offline throughput kept")
	for i, p := range o.protections {
		b.text(float64(left+cw*i+cw/2), top-8, "middle", "10", p.name)
	}
	for i, k := range rows {
		y := top + ch*i
		b.text(left-8, float64(y+12), "end", "10", k.online+" "+k.load+" x "+k.offline)
		for j, p := range o.protections {
			v, ok := value[cellKey{k.online, k.load, k.offline, p.name}]
			if !ok {
				continue
			}
			label, fill := fmt.Sprintf("%.2f (%.0f %%)", v.Ratio, v.Kept*100), shade(v.Ratio)
			if v.TooNoisy {
				label, fill = "too noisy", "#ffffff"
			}
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="#ffffff"/>`+"\n", left+cw*j, y, cw, ch, fill)
			b.text(float64(left+cw*j+cw/2), float64(y+12), "middle", "10", label)
		}
	}
	return b.done()
}

// shade goes from green at 1 and below over white at the target's worst to orange at ten times alone and beyond.
func shade(ratio float64) string {
	x := math.Log(max(ratio, 1))
	if ratio <= targetWorst {
		f := x / math.Log(targetWorst)
		return mix([3]float64{150, 214, 190}, [3]float64{255, 255, 255}, f)
	}
	f := min(1, (x-math.Log(targetWorst))/(math.Log(10)-math.Log(targetWorst)))
	return mix([3]float64{255, 255, 255}, [3]float64{232, 130, 60}, f)
}

func mix(a, b [3]float64, f float64) string {
	var c [3]int
	for i := range c {
		c[i] = int(a[i] + (b[i]-a[i])*f)
	}
	return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2])
}

// svg is a picture in the making.
type svg struct{ strings.Builder }

func newSVG(w, h int) *svg {
	b := &svg{}
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif">`+"\n"+
		`<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n", w, h, w, h)
	return b
}

func (b *svg) line(x1, y1, x2, y2 float64, colour string, width int) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%d"/>`+"\n", x1, y1, x2, y2, colour, width)
}

func (b *svg) circle(x, y, r float64, colour string, opacity float64) {
	fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" opacity="%.2g"/>`+"\n", x, y, r, colour, opacity)
}

var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func (b *svg) text(x, y float64, anchor, size, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%s">%s</text>`+"\n", x, y, anchor, size, escape.Replace(text))
}

func (b *svg) done() string {
	b.WriteString("</svg>\n")
	return b.String()
}
