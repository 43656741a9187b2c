package control

import "time"

// level is something that is held back more or less: compare is negative if l leaves less than other.
type level[L any] interface{ compare(other L) int }

// amount is a level of ways or of bandwidth; 0 is no limit.
type amount int

func (a amount) compare(other amount) int { return cmpLimit(int64(a), int64(other)) }

// ascent remembers a pod's way back up in one resource: its last step, and a level that brought trouble back, which is left alone for a
// time that doubles. The zero value, with at set to never, has seen nothing.
type ascent[L level[L]] struct {
	at     time.Duration // of the last step up
	before L             // what was held before it
	grown  bool          // there was no cut since

	bad   L             // the level that brought trouble back
	wait  time.Duration // how long it is not to be tried again; 0: there is none
	until time.Duration
}

// step notes a step up from a level.
func (a *ascent[L]) step(now time.Duration, from L) { a.at, a.before, a.grown = now, from, true }

// recent reports whether now holds a level to which the last step up led less than within ago, so that this step is what is to be undone.
func (a *ascent[L]) recent(now, within time.Duration, held L) bool {
	return a.grown && now-a.at <= within && a.before.compare(held) < 0
}

// relapse remembers the held level as bad if it was grown into, and returns how long it will not be tried again.
func (a *ascent[L]) relapse(now time.Duration, held L, regrowEvery, hold time.Duration) time.Duration {
	if !a.grown {
		return 0
	}
	if a.wait == 0 || now >= a.until || held.compare(a.bad) < 0 {
		a.bad = held
	}
	a.wait = min(max(2*a.wait, 4*regrowEvery, hold), max(pauseMax, hold))
	a.until = now + a.wait
	return a.wait
}

// heed takes over what another's ascent has found to be bad.
func (a *ascent[L]) heed(now time.Duration, from *ascent[L]) {
	if a.wait == 0 || now >= a.until || from.bad.compare(a.bad) < 0 {
		a.bad = from.bad
	}
	a.wait, a.until = max(a.wait, from.wait), max(a.until, from.until)
}

// avoids reports whether a level is not to be tried yet.
func (a *ascent[L]) avoids(now time.Duration, to L) bool {
	return a.wait > 0 && now < a.until && to.compare(a.bad) >= 0
}

// forgive forgets a bad level that has been held, since the later of lastCut and the last step up, for as long as it was avoided, and long
// enough for slow harm to show.
func (a *ascent[L]) forgive(now time.Duration, held L, lastCut time.Duration) {
	if a.wait > 0 && held.compare(a.bad) >= 0 && now-max(lastCut, a.at) >= max(a.wait, slowHarm) {
		a.wait = 0
	}
}
