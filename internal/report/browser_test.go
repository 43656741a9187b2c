package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/qos-agent/qos-agent/internal/sim"
	"github.com/qos-agent/qos-agent/test/browser"
)

// open shows a page from a file, as people do.
func open(t *testing.T, html string) *browser.Tab {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(file, []byte(html), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := browser.New(t, 1280, 900)
	tab.Open("file://" + file)
	tab.Wait("window.qosReport !== undefined && qosReport.plots().length > 0")
	return tab
}

func noFaults(t *testing.T, tab *browser.Tab) {
	t.Helper()
	if f := tab.Faults(); len(f) > 0 {
		t.Errorf("faults in the page:\n%s", strings.Join(f, "\n"))
	}
}

func TestBrowserShowsOnePod(t *testing.T) {
	tab := open(t, page(t, crowd(t, 1, 1), 30*time.Second))
	tab.Wait("qosReport.plots().length === 3") // wait, wait by cause, CPUs
	tab.Wait("document.querySelectorAll('#onlineTable tbody tr').length === 1 && document.querySelectorAll('#offlinePlots canvas').length === 1")

	// Zooming one plot zooms all; the button shows everything again.
	tab.Eval("qosReport.plots()[0].setScale('x', {min: qosReport.xs[10], max: qosReport.xs[20]}), 0", nil)
	tab.Wait("qosReport.plots().every((p) => p.scales.x.min === qosReport.xs[10] && p.scales.x.max === qosReport.xs[20])")
	tab.Eval("document.getElementById('reset').click(), 0", nil)
	tab.Wait("qosReport.plots().every((p) => p.scales.x.min === qosReport.xs[0] && p.scales.x.max === qosReport.xs[qosReport.xs.length - 1])")
	tab.Screenshot("report-1-light", true)

	// A plot that is made again in the other scheme takes its colours.
	var light, dark string
	const colour = "qosReport.plots()[0].series[1].stroke()"
	tab.Dark(false)
	tab.Wait("qosReport.plots().length === 3")
	tab.Eval(colour, &light)
	tab.Dark(true)
	tab.Wait("qosReport.plots().length === 3 && " + colour + " !== '" + light + "'")
	tab.Eval(colour, &dark)
	if light == dark {
		t.Errorf("plots are %s in both schemes", light)
	}
	tab.Screenshot("report-1-dark", true)
	noFaults(t, tab)
}

func TestBrowserShowsManyPods(t *testing.T) {
	tab := open(t, page(t, crowd(t, 50, 100), 10*time.Second))
	var made int
	tab.Eval("qosReport.plots().length", &made)
	if made == 0 || made >= 150 {
		t.Errorf("%d plots are made before anybody looked", made)
	}
	tab.Wait("document.querySelectorAll('.plot').length === 200")
	// No text runs out of the page, at the width of a laptop and of a phone.
	for _, width := range []int{1280, 420} {
		tab.Size(width, 900)
		tab.Wait("document.documentElement.scrollWidth <= window.innerWidth")
	}
	tab.Size(1280, 900)
	tab.Eval("(document.getElementById('filter').value = 'batch-07', document.getElementById('filter').dispatchEvent(new Event('input')), 0)", nil)
	tab.Wait("[...document.querySelectorAll('.plot')].filter((p) => p.style.display !== 'none').length === 10")
	tab.Eval("(document.getElementById('filter').value = '', document.getElementById('filter').dispatchEvent(new Event('input')), 0)", nil)
	tab.Eval("(window.dispatchEvent(new Event('beforeprint')), 0)", nil)
	tab.Wait("qosReport.plots().length >= 48")
	tab.Eval("(window.dispatchEvent(new Event('afterprint')), 0)", nil)
	tab.Screenshot("report-150-light", false)
	noFaults(t, tab)
}

// Where there are counters and resctrl, their time lines are drawn: cycles per instruction beside what is normal, and what offline pods may have.
func TestBrowserShowsCounters(t *testing.T) {
	sc, err := sim.Load("cache-thrasher")
	if err != nil {
		t.Fatal(err)
	}
	tab := open(t, page(t, sc, time.Duration(sc.Duration)))
	tab.Size(1280, 2400)
	tab.Wait("qosReport.plots().length === document.querySelectorAll('.plot').length")
	for _, want := range []string{"cycles per instruction", "cache and bandwidth granted", "wait by cause"} {
		tab.Wait(fmt.Sprintf("[...document.querySelectorAll('.plot')].some((p) => p.querySelector('h3').textContent.includes('%s') && p.querySelector('canvas'))", want))
	}
	const cpi = "qosReport.plots().find((p) => p.series[1].label === 'CPI')"
	tab.Wait(cpi + ".data.slice(1).every((line) => line.some((v) => v > 0.1 && v < 50))") // CPI, normal, bound
	const hardware = "qosReport.plots().find((p) => p.series[1].label === 'ways')"
	tab.Wait(hardware + ".data[1].some((v) => v > 0 && v < 100) && " + hardware + ".data[3].some((v) => v > 1)")
	var table string
	tab.Eval("document.getElementById('onlineTable').textContent", &table)
	if !strings.Contains(table, "cache ") {
		t.Errorf("the table does not say that a pod was beyond its objective on cache:\n%s", table)
	}
	tab.Screenshot("report-counters-light", true)
	tab.Dark(true)
	tab.Wait("qosReport.plots().length === document.querySelectorAll('.plot').length")
	tab.Screenshot("report-counters-dark", true)
	noFaults(t, tab)
}

// On paper plots are ink on white, also from a dark screen, and nothing is cut off.
func TestBrowserPrints(t *testing.T) {
	for _, n := range []struct {
		name            string
		online, offline int
		least           int // sheets
	}{{"1", 1, 1, 1}, {"150", 50, 100, 4}} {
		tab := open(t, page(t, crowd(t, n.online, n.offline), 10*time.Second))
		const colour = "qosReport.plots()[0].series[1].stroke()"
		var light string
		tab.Eval(colour, &light)
		tab.Dark(true)
		tab.Wait("qosReport.plots().length > 0 && " + colour + " !== '" + light + "'")
		tab.Size(718, 1000) // A4 less its margins
		plots := min(n.online, 24) + min(n.offline, 24)
		tab.Paper(func() {
			tab.Wait(fmt.Sprintf("qosReport.plots().length >= %d && qosReport.plots().every((p) => !['p99', 'used'].includes(p.series[1].label) || p.series[1].stroke() === '%s')", plots, light))
			tab.Wait("document.documentElement.scrollWidth <= window.innerWidth")
			tab.Wait(`[...document.querySelectorAll('.plot canvas')].every((c) => {
				const a = c.getBoundingClientRect(), b = c.closest('.plot').getBoundingClientRect();
				return a.width > 100 && a.right <= b.right + 1 && a.bottom <= b.bottom + 1;
			})`)
			tab.Wait("[...document.querySelectorAll('.scroll')].every((s) => s.scrollHeight <= s.clientHeight + 1)")
			tab.Wait("getComputedStyle(document.querySelector('nav')).display === 'none'")
			tab.Screenshot("report-"+n.name+"-paper", true)
		})
		tab.Size(1280, 900)
		tab.Dark(true)
		if sheets := tab.Print("report-" + n.name + "-paper"); sheets < n.least {
			t.Errorf("%s pods: %d sheets, want at least %d", n.name, sheets, n.least)
		}
		tab.Wait("!document.documentElement.classList.contains('paper') && " + colour + " !== '" + light + "'")
		noFaults(t, tab)
	}
}
