// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The log of who ran on a CPU, and the matrix of who made whom wait.
//
// A CPU's log holds one entry for each run of a slot: consecutive dispatches of the same slot share an entry, which makes the
// log reach further back and saves a write. It is written and read under the lock of the CPU's run queue.
#ifndef QOS_SWITCHLOG_BPF_H
#define QOS_SWITCHLOG_BPF_H

#include "kernel.bpf.h"

// Slots that are not containers; pkg/ebpf has the same.
enum {
	QOS_SLOT_UNKNOWN = 0,
	QOS_SLOT_KERNEL = 1,
	QOS_SLOT_IRQ = 2,
	QOS_SLOT_SYSTEM = 3,
	QOS_SLOT_IDLE = 4,
	QOS_SLOT_QUOTA = 5,
	QOS_SLOT_FIRST = 8,
};

#define QOS_LOG 256 // entries of a CPU's log; a power of two. At 2,500 changes a second, which is a lot, they cover 0.1 s.
#define QOS_NS_MASK ((1ULL << 48) - 1) // 78 hours: enough for differences

// Set before the programs are loaded.
const volatile u32 qos_slots = 1024; // slots, and so columns of the matrix

struct qos_run {
	u64 start;     // rq clock; 0: never written
	u64 slot_lost; // slot << 48 | rq clock less rq task clock at that time, which grows by what interrupts and the hypervisor took
};

// qos_cpu is one CPU's log and counters; what is used at each switch lies in one cache line.
struct qos_cpu {
	u32 head; // entries ever written
	u32 slot; // of the task that is running
	u32 walk; // counts walks, to tell the sums of one from those of another
	u32 pad;
	u64 rq; // address of the CPU's run queue; 0: not seen yet
	// See clock.bpf.h.
	u64 gap, gap_before; // CLOCK_MONOTONIC less rq clock: the least of this window and of the one before
	u64 gap_since;	     // CLOCK_MONOTONIC at the window's beginning
	u64 gap_at;	     // rq clock of the last look
	u64 late_ns;	     // part of all waits
	u64 events_lost;
	u64 events_suppressed;
	u64 short_walks;
	u64 bad_stamps;
	u64 quota_lost;
	struct qos_run runs[QOS_LOG];
} __attribute__((aligned(64)));

// qos_row is what is known of one victim besides its row of the matrix.
struct qos_row {
	u64 walks;      // waits, or parts of waits, attributed
	u64 walked_ns;  // their sum, which is the sum of the row
	u64 last_event; // CLOCK_MONOTONIC
	// See qos_often. Several CPUs may write at a time: what that loses is one long wait of several.
	u64 last_long; // CLOCK_MONOTONIC of the last long wait for others
	u64 waits;     // of the victim in all, then
	u64 level;
};

// qos_sum adds up the parts of one wait by slot.
struct qos_sum {
	u64 walk;
	u64 ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // CPUs
	__type(key, u32);
	__type(value, struct qos_cpu);
} qos_cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // victims
	__type(key, u32);
	__type(value, struct qos_row);
} qos_rows SEC(".maps");

// The matrix: nanoseconds at [row of the victim * qos_slots + slot of the culprit].
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // victims * slots
	__type(key, u32);
	__type(value, u64);
} qos_blame SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); // CPUs * slots
	__type(key, u32);
	__type(value, struct qos_sum);
} qos_sums SEC(".maps");

// qos_walk is one attribution under way.
struct qos_walk {
	u64 group;     // id of the victim's
	u64 from, to;  // the wait, rq clock
	u64 now, lost; // when the walk is done, and the CPU's lost time then
	u64 best_ns;   // the largest sum so far and whose it is; only if sums are wanted
	u64 others;    // what went to other containers
	u32 slot;      // the victim's own
	u32 best;
	u32 cpu;
	u32 row;
	u32 pid;
	u32 sums; // whether sums are wanted
};

static __always_inline void qos_log_run(struct qos_cpu *c, u32 slot, u64 now, u64 lost)
{
	if (c->slot == slot && c->head)
		return;
	struct qos_run *r = &c->runs[c->head & (QOS_LOG - 1)];
	r->start = now;
	r->slot_lost = (u64)slot << 48 | (lost & QOS_NS_MASK);
	c->head++;
	c->slot = slot;
}

// qos_add_part adds ns to the part of the wait that a slot has had, and keeps track of the largest.
static __always_inline void qos_add_part(struct qos_cpu *c, struct qos_walk *w, u32 slot, u64 ns)
{
	u32 key = w->cpu * qos_slots + slot;
	struct qos_sum *s = bpf_map_lookup_elem(&qos_sums, &key);
	if (!s)
		return;
	if (s->walk != c->walk) {
		s->walk = c->walk;
		s->ns = 0;
	}
	s->ns += ns;
	if (s->ns > w->best_ns) {
		w->best_ns = s->ns;
		w->best = slot;
	}
}

// qos_charge adds ns to victim x culprit. Rows are shared by all CPUs. (This and other functions here are not static: that makes
// the verifier look at them once and not at every call.)
__noinline int qos_charge(struct qos_cpu *c, struct qos_walk *w, u32 slot, u64 ns)
{
	if (!c || !w)
		return 0;
	u32 key = w->row * qos_slots + slot;
	u64 *cell = bpf_map_lookup_elem(&qos_blame, &key);
	if (cell)
		__sync_fetch_and_add(cell, ns);
	if (slot >= QOS_SLOT_FIRST && slot != w->slot)
		w->others += ns;
	if (w->sums)
		qos_add_part(c, w, slot, ns);
	return 0;
}

// qos_walk_log charges all of [w->from, w->to) to the slots that ran on CPU c.
__noinline int qos_walk_log(struct qos_cpu *c, struct qos_walk *w)
{
	if (!c || !w)
		return 0;
	u64 end = w->now, end_lost = w->lost;

	for (u32 i = 1; i <= QOS_LOG; i++) {
		struct qos_run *r = &c->runs[(c->head - i) & (QOS_LOG - 1)];
		u64 start = r->start, lost = r->slot_lost;
		if (!start)
			break;

		u64 lo = start > w->from ? start : w->from;
		u64 hi = end < w->to ? end : w->to;
		if (lo < hi) {
			u64 ns = hi - lo, taken = (end_lost - lost) & QOS_NS_MASK;
			// Of a run that the wait covers in part, it has its part of the lost time.
			if (taken && ns < end - start && !((taken | ns) >> 32))
				taken = taken * ns / (end - start);
			if (taken > ns)
				taken = ns;
			if (taken)
				qos_charge(c, w, QOS_SLOT_IRQ, taken);
			qos_charge(c, w, lost >> 48, ns - taken);
		}
		if (start <= w->from)
			return 0;
		end = start;
		end_lost = lost;
	}

	u64 hi = end < w->to ? end : w->to;
	if (hi > w->from) {
		qos_charge(c, w, QOS_SLOT_UNKNOWN, hi - w->from);
		c->short_walks++;
	}
	return 0;
}

#endif
