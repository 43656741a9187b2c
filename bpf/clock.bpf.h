// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// How old is the run queue's clock?
//
// A wakeup that is to preempt whoever runs lets the scheduler off reading the clock again when it switches (rq_clock_skip_update): the
// wakeup has just read it. But a task that is in the kernel is not preempted before it returns or comes to a point where it offers to
// be, unless the kernel was built or started otherwise, and that may take milliseconds. The woken task has then waited for that
// long, and the kernel's own account of waits (run_delay) has it from the last tick at best, and often as nothing at all.
//
// So where a task has displaced another, the run queue's clock is held against CLOCK_MONOTONIC. (Where the other went to sleep it need not: that
// is by far the more frequent case, reading the time is as dear as all the rest, and who stays in the kernel for long meets a point
// where it is displaced.) How far the two are apart when the run queue's is new is learned from the least
// that is seen: in two tenths of a second they drift by 100 us at the very most, usually by less than one, and after a jump of one
// of them the error is gone as soon.
#ifndef QOS_CLOCK_BPF_H
#define QOS_CLOCK_BPF_H

#include "switchlog.bpf.h"

#define QOS_GAP_WINDOW 100000000 // ns; the least of the last one to two of these counts
#define QOS_GAP_EVERY 10000000	 // ns between two looks at least, if nobody waits for the result
#define QOS_LATE_EVERY 50000	 // ns between two looks at least: what it may cost, where switches are very many
#define QOS_LATE_MAX 20000000	 // ns; two ticks at 100 Hz. What is more is not a run queue's clock that nobody has read.

// qos_late_by is how much older than mono the run queue's clock of the CPU was when it showed now, in ns.
static __always_inline u64 qos_late_by(struct qos_cpu *c, u64 mono, u64 now)
{
	u64 gap = mono - now;

	if (mono - c->gap_since >= QOS_GAP_WINDOW) {
		c->gap_before = mono - c->gap_since < 2 * QOS_GAP_WINDOW ? c->gap : gap;
		c->gap = gap;
		c->gap_since = mono;
	} else if ((s64)(gap - c->gap) < 0) {
		c->gap = gap;
	}
	u64 least = (s64)(c->gap_before - c->gap) < 0 ? c->gap_before : c->gap;
	u64 late = gap - least;
	return late < QOS_LATE_MAX ? late : 0;
}

// qos_late is how long ago the clock of the CPU's run queue was read, when it shows now.
static __always_inline u64 qos_late(struct qos_cpu *c, u64 now)
{
	c->gap_at = now;
	return qos_late_by(c, bpf_ktime_get_ns(), now);
}

#endif
