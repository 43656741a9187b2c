// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The log of who ran on a CPU, and the matrix of who made whom wait.
//
// A CPU's log holds one entry for each run of a slot: consecutive dispatches of the same slot share an entry, which makes the
// log reach further back and saves a write. While somebody has been waiting there for long, digests say of what is older than the log how
// long each slot ran. Both are written and read under the lock of the CPU's run queue.
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
#define QOS_DIGEST_RUNS 64  // entries that a digest sums up; a power of two, and several digests to a log
#define QOS_DIGESTS 64	    // of a CPU, a power of two: 1.5 s more at that pace
#define QOS_DIGEST_PARTS 13 // slots of a digest; with what else is in it two cache lines
#define QOS_DIGEST_WAIT 2000000	  // ns; digests are wanted for waits beyond that, which whoever looks for waits that go on has seen,
#define QOS_DIGEST_FOR 100000000  // ns; and for so long after it has
#define QOS_NS_MASK ((1ULL << 48) - 1) // 78 hours: enough for differences

// Set before the programs are loaded.
const volatile u32 qos_slots = 1024; // slots, and so columns of the matrix

struct qos_run {
	u64 start;     // rq clock; 0: never written
	u64 slot_lost; // slot << 48 | rq clock less rq task clock at that time, which grows by what interrupts and the hypervisor took
};

// qos_digest is what QOS_DIGEST_RUNS entries of the log came to. What is not in its parts of the time from start to end belonged to slots
// for which there was no room. It is not known to be of the runs before some others unless it ends where they begin.
struct qos_digest {
	u64 start, end; // rq clock
	u64 taken;	// ns, by interrupts and the hypervisor
	u64 parts[QOS_DIGEST_PARTS]; // slot << 48 | ns, the rest is 0
};

// qos_walk is one attribution under way. It lies with the log that it walks, and under the same lock: the stack has 512 bytes for all calls
// together.
struct qos_walk {
	u64 group;     // id of the victim's
	u64 from, to;  // the wait, rq clock
	u64 now, lost; // when the walk is done, and the CPU's lost time then
	u64 reached;   // the log holds what happened since
	u64 best_ns;   // the largest sum so far and whose it is; only if sums are wanted
	u64 others;    // what went to other containers
	u32 slot;      // the victim's own
	u32 best;
	u32 cpu;
	u32 row;
	u32 pid;
	u32 sums; // whether sums are wanted
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
	u64 digest_until; // rq clock; digests are wanted until then
	struct qos_run runs[QOS_LOG];
	struct qos_digest digests[QOS_DIGESTS];
	struct qos_walk walking;
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

// qos_digest_add adds to the part of a slot (slot << 48), if there is one or room for it.
__noinline int qos_digest_add(struct qos_digest *d, u64 slot, u64 ns)
{
	if (!d)
		return 0;
	for (u32 i = 0; i < QOS_DIGEST_PARTS; i++) {
		u64 part = d->parts[i];
		if (!part || (part & ~QOS_NS_MASK) == slot) {
			d->parts[i] = slot | ((part + ns) & QOS_NS_MASK);
			break;
		}
	}
	return 0;
}

// qos_digest_runs sums up the oldest entries of a log that is full.
__noinline int qos_digest_runs(struct qos_cpu *c)
{
	if (!c)
		return 0;
	u32 first = c->head - QOS_LOG;
	struct qos_digest *d = &c->digests[first / QOS_DIGEST_RUNS & (QOS_DIGESTS - 1)];
	struct qos_run *r = &c->runs[first & (QOS_LOG - 1)];
	u64 start = r->start, lost = r->slot_lost, taken = 0;
	if (!start)
		return 0;

	*(volatile u64 *)&d->end = 0; // user space may be reading it
	for (u32 i = 0; i < QOS_DIGEST_PARTS; i++)
		d->parts[i] = 0;
	u64 from = start;
	for (u32 i = 1; i <= QOS_DIGEST_RUNS; i++) {
		struct qos_run *next = &c->runs[(first + i) & (QOS_LOG - 1)];
		u64 to = next->start, lost_then = next->slot_lost;
		u64 ns = (s64)(to - from) > 0 ? to - from : 0, gone = (lost_then - lost) & QOS_NS_MASK;
		if (gone > ns)
			gone = ns;
		taken += gone;
		qos_digest_add(d, lost & ~QOS_NS_MASK, ns - gone);
		from = to;
		lost = lost_then;
	}
	d->taken = taken;
	d->start = start;
	*(volatile u64 *)&d->end = from;
	return 0;
}

static __always_inline void qos_log_run(struct qos_cpu *c, u32 slot, u64 now, u64 lost)
{
	if (c->slot == slot && c->head)
		return;
	if (!(c->head & (QOS_DIGEST_RUNS - 1)) && unlikely(now < c->digest_until))
		qos_digest_runs(c);
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

// qos_walk_start is CPU c's, about a wait that has ended now.
static __always_inline struct qos_walk *qos_walk_start(struct qos_cpu *c, u64 from, u64 to, u64 lost)
{
	struct qos_walk *w = &c->walking;
	__builtin_memset(w, 0, sizeof(*w));
	w->from = from;
	w->to = to;
	w->now = to;
	w->lost = lost;
	return w;
}

// qos_log_first is the entry of the log with which a walk back through it ends. What is older would be in digests.
static __always_inline u32 qos_log_first(u32 head)
{
	return (head - QOS_LOG + QOS_DIGEST_RUNS - 1) & ~(QOS_DIGEST_RUNS - 1);
}

// qos_share is what part of span ns is, in 2^32ths. Either may be longer than the 4 s that 32 bits hold.
static __always_inline u64 qos_share(u64 ns, u64 span)
{
	if (!(ns >> 32))
		return (ns << 32) / span;
	return ns >> 48 ? 0 : (ns >> 16 << 32) / (span >> 16);
}

// qos_part is a share of ns, at most so much.
static __always_inline u64 qos_part(u64 ns, u64 share, u64 most)
{
	u64 high = (ns & QOS_NS_MASK) >> 32, low = (u32)ns;
	u64 part = high * share + (low * share >> 32);
	return part < most ? part : most;
}

// qos_charge_digest charges what lies of the wait in a digest.
__noinline int qos_charge_digest(struct qos_cpu *c, struct qos_walk *w, struct qos_digest *d)
{
	if (!c || !w || !d)
		return 0;
	u64 lo = d->start > w->from ? d->start : w->from;
	u64 hi = d->end < w->to ? d->end : w->to;
	if (lo >= hi)
		return 0;
	// Of a digest that the wait covers in part, every slot has that part of what it had.
	u64 rest = hi - lo, share = qos_share(rest, d->end - d->start);
	u64 part = qos_part(d->taken, share, rest);
	if (part)
		qos_charge(c, w, QOS_SLOT_IRQ, part);
	rest -= part;
	for (u32 i = 0; i < QOS_DIGEST_PARTS && d->parts[i]; i++) {
		part = qos_part(d->parts[i], share, rest);
		qos_charge(c, w, d->parts[i] >> 48, part);
		rest -= part;
	}
	if (rest)
		qos_charge(c, w, QOS_SLOT_UNKNOWN, rest);
	return 0;
}

// qos_walk_digests charges to the slots that ran before the log's reach what of the wait lies there.
__noinline int qos_walk_digests(struct qos_cpu *c, struct qos_walk *w)
{
	if (!c || !w)
		return 0;
	u64 end = w->reached;
	u32 last = qos_log_first(c->head) / QOS_DIGEST_RUNS - 1;

	for (u32 i = 0; i < QOS_DIGESTS && end > w->from; i++) {
		struct qos_digest *d = &c->digests[(last - i) & (QOS_DIGESTS - 1)];
		if (d->end != end || d->start >= end)
			break;
		qos_charge_digest(c, w, d);
		end = d->start;
	}
	u64 hi = end < w->to ? end : w->to;
	if (hi > w->from) {
		qos_charge(c, w, QOS_SLOT_UNKNOWN, hi - w->from);
		c->short_walks++;
	}
	return 0;
}

// qos_walk_log charges to the slots that ran on CPU c what the log holds of the wait, and says how far back it has reached.
__noinline int qos_walk_log(struct qos_cpu *c, struct qos_walk *w)
{
	if (!c || !w)
		return 0;
	u64 end = w->now, end_lost = w->lost;
	u32 first = qos_log_first(c->head);

	for (u32 i = 1; i <= QOS_LOG && c->head - i != first - 1; i++) {
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
		end = start;
		if (start <= w->from)
			break;
		end_lost = lost;
	}
	w->reached = end;
	return 0;
}

// qos_walk_back charges all of [w->from, w->to) to the slots that ran on CPU c. Its two halves are called one after the other, not
// one by the other: what calls put on the stack adds up, and there are 512 bytes.
static __always_inline void qos_walk_back(struct qos_cpu *c, struct qos_walk *w)
{
	qos_walk_log(c, w);
	if (w->reached > w->from)
		qos_walk_digests(c, w);
}

#endif
