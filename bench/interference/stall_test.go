package main

import "testing"

func TestOverlap(t *testing.T) {
	one := []stallOf{{0, 10}, {20, 30}, {50, 60}}
	other := []stallOf{{5, 25}, {31, 40}, {55, 100}}
	if got := overlap([][]stallOf{one, other}); got != 5+5+5 {
		t.Errorf("%d, want the moments 5 to 10, 20 to 25, 55 to 60", got)
	}
	if got := overlap([][]stallOf{one, nil}); got != 0 {
		t.Errorf("%d, though one CPU always ran", got)
	}
}
