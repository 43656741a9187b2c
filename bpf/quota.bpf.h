// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// When did a group have no CPU quota left?
//
// A task whose group, or a group above it, is throttled keeps its enqueue stamp, so its wait contains time in which it was not
// allowed to run. Whoever ran meanwhile is not to blame. There is no tracepoint for throttling, and hooks on kernel functions are
// not to be had everywhere, but every run queue of a group adds up how long it was throttled, by itself or from above, when a
// throttling ends. We look at that total whenever a task of the group comes or goes: when it has grown, a throttling has ended
// since we looked last, and its end is found from its beginning.
//
//	Linux         total, and its clock                        beginning of the last throttling
//	to 5.18       throttled_clock_task_time, rq task clock    throttled_clock_task
//	5.19 - 6.5    throttled_clock_pelt_time, rq PELT clock    throttled_clock_pelt
//	6.6 on        throttled_clock_self_time, rq clock,        throttled_clock_self, set back when it ends:
//	              only while a task was waiting               noted when a task is put off the CPU
//
// The PELT clock runs slower than time while the CPU does, so where the frequency changes the 5.19 - 6.5 figures are off by that.
//
// Until 6.17 none of a throttled group's tasks can run. From 6.18 on they run until they are about to return to user space and
// only then are put aside, one by one: there a task was kept from running by its quota only if it was marked so when it left the
// CPU, and only until the end of that one throttling.
#ifndef QOS_QUOTA_BPF_H
#define QOS_QUOTA_BPF_H

#include "group.bpf.h"
#include "switchlog.bpf.h"

#define QOS_PAST 8 // throttlings that are remembered; a power of two. With the usual period they cover 0.8 s.

struct qos_quota_key {
	u64 group;
	u64 cpu;
};

struct qos_span {
	u64 from, to; // rq clock of the CPU
};

// qos_quota is what is known of one group on one CPU.
struct qos_quota {
	u64 total; // the run queue's own, when last looked at
	u64 since; // the throttling under way began; 0: not known
	u32 n;     // throttlings that have ended
	u32 pad;
	struct qos_span past[QOS_PAST];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct qos_quota_key);
	__type(value, struct qos_quota);
} qos_quotas SEC(".maps");

// QOS_QUOTA_BY_TASK: see above, from 6.18 on.
#define QOS_QUOTA_BY_TASK exists(((struct task_struct *)0)->throttled)

// qos_throttled tells whether p, which is leaving the CPU though it could run, may not run for now.
static __always_inline int qos_throttled(struct task_struct *p)
{
	if (QOS_QUOTA_BY_TASK)
		return p->throttled;
	return p->se.cfs_rq->throttle_count;
}

static __always_inline u64 qos_quota_total(struct cfs_rq *q)
{
	if (exists(q->throttled_clock_self_time))
		return q->throttled_clock_self_time;
	if (exists(q->throttled_clock_pelt_time))
		return q->throttled_clock_pelt_time;
	return q->throttled_clock_task_time;
}

// qos_quota_age is how long ago the last throttling began, for kernels that keep its stamp when it has ended.
static __always_inline u64 qos_quota_age(struct cfs_rq *q)
{
	struct rq *rq = q->rq;
	if (exists(q->throttled_clock_pelt_time))
		return rq->clock_pelt - rq->lost_idle_time - q->throttled_clock_pelt;
	return rq->clock_task - q->throttled_clock_task;
}

// qos_quota_new begins to note the throttlings of a group on a CPU. It is a function of its own for the stack's sake.
__noinline int qos_quota_new(u64 group, u32 cpu, u64 total)
{
	struct qos_quota_key key = { .group = group, .cpu = cpu };
	struct qos_quota fresh = { .total = total };
	return bpf_map_update_elem(&qos_quotas, &key, &fresh, 0);
}

// qos_quota_look brings what we know of group g on the CPU up to date. A task of it has waited since queued, or is leaving the
// CPU now, throttled (queued == now).
static __always_inline struct qos_quota *qos_quota_look(struct qos_cpu *c, struct qos_group *g, u64 group, u32 cpu,
							struct cfs_rq *q, u64 queued, u64 now)
{
	u64 total = qos_quota_total(q);
	if (!total && queued != now)
		return 0;

	struct qos_quota_key key = { .group = group, .cpu = cpu };
	struct qos_quota *k = bpf_map_lookup_elem(&qos_quotas, &key);
	if (unlikely(!k || k->total > total)) { // the id may have been another group's
		// What went before we do not know, unless all of it fits into this wait.
		qos_quota_new(group, cpu, total <= now - queued ? 0 : total);
		k = bpf_map_lookup_elem(&qos_quotas, &key);
		if (!k) {
			c->quota_lost++;
			return 0;
		}
	}
	g->throttled = 1;

	if (k->total != total) {
		u64 ns = total - k->total, from;
		if (k->since)
			from = k->since;
		else if (exists(q->throttled_clock_self_time))
			from = queued; // the first to wait starts the kernel's clock: probably this task
		else
			from = now - qos_quota_age(q);
		u64 to = from + ns < now ? from + ns : now;
		struct qos_span *s = &k->past[k->n & (QOS_PAST - 1)];
		s->from = to - ns;
		s->to = to;
		k->n++;
		k->total = total;
		k->since = 0;
	}
	if (exists(q->throttled_clock_self) && q->throttled_clock_self)
		k->since = q->throttled_clock_self;
	return k;
}

// qos_attribute charges the wait w to whoever ran, except for what the quota took. limbo: the task was throttled when its wait
// began.
static __always_inline void qos_attribute(struct qos_cpu *c, struct qos_walk *w, struct qos_quota *k, int limbo)
{
	if (!k || (QOS_QUOTA_BY_TASK && !limbo)) {
		qos_walk_back(c, w);
		return;
	}
	u64 from = w->from, until = w->to;
	for (u32 i = 1; i <= QOS_PAST; i++) {
		struct qos_span *s = &k->past[(k->n - i) & (QOS_PAST - 1)];
		u64 lo = s->from > from ? s->from : from;
		u64 hi = s->to < until ? s->to : until;
		if (lo >= hi || (QOS_QUOTA_BY_TASK && s->from > from))
			continue;
		qos_charge(c, w, QOS_SLOT_QUOTA, hi - lo);
		w->from = hi;
		w->to = until;
		if (hi < until)
			qos_walk_back(c, w);
		until = lo;
	}
	w->from = from;
	w->to = until;
	if (from < until)
		qos_walk_back(c, w);
}

#endif
