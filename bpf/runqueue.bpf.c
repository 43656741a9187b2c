// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Run-queue wait by container, and who ran meanwhile.
//
// The scheduler stamps every enqueue (sched_info.last_queued, in the run queue's clock) and the stamp is still there when the
// sched_switch tracepoint fires for the task that is about to run. So there is no hook on wakeups and no entry that could go
// stale when a task exits.
#include "clock.bpf.h"
#include "event.bpf.h"
#include "histogram.bpf.h"
#include "kernel.bpf.h"
#include "quota.bpf.h"
#include "switchlog.bpf.h"
#include "waiting.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define QOS_TASKS 32768 // a power of two
#define QOS_UNSEEN_MAX 1000000000 // ns; a longer wait is not believed of a task of which nothing is known

// Set before the programs are loaded.
const volatile u32 qos_shards = 1;          // copies of a slot's counters, a power of two; CPUs share them round robin
const volatile u8 qos_shared = 1;           // some CPUs share a copy
const volatile u64 qos_walk_from = 20000;   // ns
const volatile u64 qos_event_gap = 1000000; // ns between two events of one victim

#define QOS_SHARDS_MAX 8
#define QOS_OFTEN_WEIGHT 100	   // waits that make one long wait as good as forgotten: a hundredth of them may be long
#define QOS_OFTEN_LEVEL 250	   // three long waits with less than fifty others among them, or more of both
#define QOS_OFTEN_WITHIN 50000000 // ns; two long waits that are further apart have nothing to do with each other

// qos_counters is one copy of a slot's counters. 32 bits do for the buckets: they are read several times a second and
// user space adds up the differences.
struct qos_counters {
	u64 waits;
	u64 wait_ns;
	u64 preempted;
	u32 hist[QOS_HIST_BUCKETS];
} __attribute__((aligned(64)));

enum {
	QOS_TASK_LIMBO = 1, // its group had no quota left when it left the CPU
	// From 6.12 on a task that falls asleep may stay queued for a while. If it is moved then, the scheduler stamps it on the
	// other CPU as if it had been woken, and leaves the stamp there until it runs again.
	QOS_TASK_STALE = 2,
};

// qos_task remembers a task between two dispatches, to find what it waited on other CPUs: a task that is moved while it is
// queued gets a new stamp, and what it had waited is added to its run_delay.
//
// The table is indexed by the low bits of the pid and is never cleaned: an entry is valid for a task only if it matches, and
// without an entry a task's wait is that on the CPU that it runs on at last. Task storage would need an allocation under the
// run queue's lock, which kernels before 6.4 do not survive for certain.
struct qos_task {
	u64 ident;     // pid and start time
	u64 base;      // run_delay when it was dispatched or moved last
	u64 elsewhere; // ns waited on other CPUs
	u64 charged;   // the part of it that is already in the matrix
	u64 best;      // the culprit of that with the largest part: slot << 48 | ns
	u32 epoch;
	u32 flags;
	u64 others;    // and the part of it that went to other containers
	u64 check; // two tasks may write at a time: an entry that is a mixture does not add up
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // slots * shards
	__type(key, u32);
	__type(value, struct qos_counters);
} qos_slot_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QOS_TASKS);
	__type(key, u32);
	__type(value, struct qos_task);
} qos_tasks SEC(".maps");

// With a copy for every CPU nobody else writes; an ordinary addition is a third of the cost of an atomic one.
#define qos_add(field, n)                                                                                          \
	do {                                                                                                       \
		if (qos_shared)                                                                                    \
			__sync_fetch_and_add(&(field), n);                                                         \
		else                                                                                               \
			(field) += n;                                                                              \
	} while (0)

static __always_inline struct qos_counters *qos_counters_of(u32 slot, u32 cpu)
{
	u32 key = slot * qos_shards + (cpu & (qos_shards - 1));
	return bpf_map_lookup_elem(&qos_slot_counters, &key);
}

static __always_inline u64 qos_ident(struct task_struct *p)
{
	return (u64)p->pid << 32 | (u32)p->start_time;
}

static __always_inline struct qos_task *qos_task_of(struct task_struct *p)
{
	u32 key = p->pid & (QOS_TASKS - 1);
	return bpf_map_lookup_elem(&qos_tasks, &key);
}

static __always_inline u64 qos_task_sum(struct qos_task *t)
{
	return t->ident + t->base + t->elsewhere + t->charged + t->best + t->others + ((u64)t->epoch << 32 | t->flags);
}

static __always_inline int qos_task_valid(struct qos_task *t, u64 ident, u32 epoch)
{
	return t->ident == ident && t->epoch == epoch && t->check == qos_task_sum(t);
}

static __always_inline void qos_task_start(struct qos_task *t, u64 ident, u32 epoch, u64 base, u32 flags)
{
	t->ident = ident;
	t->base = base;
	t->elsewhere = 0;
	t->charged = 0;
	t->best = 0;
	t->others = 0;
	t->epoch = epoch;
	t->flags = flags;
	t->check = ident + base + ((u64)epoch << 32 | flags);
}

static __always_inline struct qos_row *qos_row_of(u32 row)
{
	return bpf_map_lookup_elem(&qos_rows, &row);
}

static __always_inline void qos_tell_wait(struct qos_cpu *c, struct qos_walk *w, u64 at, u64 wait, u32 kind)
{
	struct qos_event e = {
		.at = at,
		.wait = wait,
		.part = w->best_ns,
		.victim = w->slot,
		.culprit = w->best,
		.pid = w->pid,
		.cpu = w->cpu,
		.kind = kind,
	};
	if (qos_tell(&e))
		c->events_lost++;
}

// qos_often takes a long wait for others, and reports whether there are too many of them: a sequential test of whether the share of
// long waits is above a hundredth (Page's CUSUM). Each long wait raises the level by a hundred, and each wait of the victim, on
// whatever CPU, lowers it by one; below the allowed share it falls, above it rises, and the faster the worse. It needs no
// work for waits that are not long.
static __always_inline int qos_often(struct qos_row *row, u32 slot, u64 now)
{
	u64 waits = 0;
	for (u32 i = 0; i < QOS_SHARDS_MAX; i++) {
		struct qos_counters *n = i < qos_shards ? qos_counters_of(slot, i) : 0;
		if (!n)
			break;
		waits += n->waits;
	}
	u64 level = row->level, since = waits - row->waits;
	level = now - row->last_long > QOS_OFTEN_WITHIN || since >= level ? 0 : level - since;
	level += QOS_OFTEN_WEIGHT;
	int often = level >= QOS_OFTEN_LEVEL;
	row->waits = waits;
	row->last_long = now;
	row->level = often ? 0 : level;
	return often;
}

// qos_blame_wait puts a victim's wait into the matrix: the part here by walking the log, the part on other CPUs as far as it is
// not there yet; and gives an event if the whole exceeds the bound, or if too many waits are long.
__noinline int qos_blame_wait(struct qos_cpu *c, struct qos_group *g, struct qos_task *was, struct qos_walk *w)
{
	if (!c || !g || !was || !w)
		return 0;
	struct qos_row *row = qos_row_of(w->row);
	if (!row)
		return 0;

	u64 here = w->to - w->from;
	u64 unseen = was->elsewhere - was->charged;
	u64 wait = here + was->elsewhere;
	u64 bound = qos_bounds.event, often = qos_bounds.often;
	int single = bound && wait > bound, longer = often && wait > often;
	if (single || longer) { // who had most of it is wanted
		w->sums = 1;
		c->walk++;
	}

	__sync_fetch_and_add(&row->walks, 1);
	__sync_fetch_and_add(&row->walked_ns, here + unseen);
	if (w->sums && was->charged)
		qos_add_part(c, w, was->best >> 48, was->best & QOS_NS_MASK);
	if (unseen)
		qos_charge(c, w, was->flags & QOS_TASK_LIMBO ? QOS_SLOT_QUOTA : QOS_SLOT_UNKNOWN, unseen);
	struct qos_quota *k = 0;
	if (g->throttled) {
		struct qos_quota_key key = { .group = w->group, .cpu = w->cpu };
		k = bpf_map_lookup_elem(&qos_quotas, &key);
	}
	w->others = was->others;
	qos_attribute(c, w, k, was->flags & QOS_TASK_LIMBO && !was->elsewhere);
	if (!w->sums)
		return 0;

	u64 at = bpf_ktime_get_ns();
	int many = longer && w->others > often && qos_often(row, w->slot, at);
	if (!single && !many)
		return 0;
	if (at - row->last_event < qos_event_gap) {
		c->events_suppressed++;
		return 0;
	}
	row->last_event = at;
	qos_tell_wait(c, w, at, wait, single ? QOS_EVENT_LONG : QOS_EVENT_OFTEN);
	return 0;
}

// qos_arrive accounts the wait of p, which is about to run on the CPU, late ns after its run queue's clock was read.
static __always_inline void qos_arrive(struct qos_cpu *c, u32 cpu, struct task_struct *p, struct qos_group *g, u64 id, u64 now,
				       u64 late, u64 lost)
{
	u64 queued = p->sched_info.last_queued;
	if (unlikely(!queued))
		return;
	u64 here = now - queued;
	if (unlikely((s64)here < 0)) {
		c->bad_stamps++;
		return;
	}

	struct qos_task *t = qos_task_of(p);
	if (unlikely(!t))
		return;
	u64 ident = qos_ident(p), delay = p->sched_info.run_delay;
	struct qos_task was = {};
	if (likely(qos_task_valid(t, ident, g->epoch))) {
		if (unlikely(t->base != delay || t->elsewhere || t->flags)) {
			was = *t;
			if (delay > t->base)
				was.elsewhere += delay - t->base;
		}
	} else if (!p->sched_info.pcount) {
		was.elsewhere = delay; // its first run ever: all that it has waited belongs to this wait
	} else if (here > QOS_UNSEEN_MAX) {
		was.flags = QOS_TASK_STALE; // it may have been, before the group was tracked
	}
	qos_task_start(t, ident, g->epoch, delay + here, 0);
	if (unlikely(was.flags & QOS_TASK_STALE)) {
		c->bad_stamps++;
		return;
	}

	u64 wait = here + late + was.elsewhere; // the kernel's account, which t->base follows, has no late
	c->late_ns += late;
	struct qos_counters *n = qos_counters_of(g->slot, cpu);
	if (unlikely(!n))
		return;
	qos_add(n->waits, 1);
	qos_add(n->wait_ns, wait);
	u32 bucket = qos_hist_index(wait);
	if (bucket < QOS_HIST_BUCKETS) // it always is, but the verifier cannot know
		qos_add(n->hist[bucket], 1);

	if (!g->row || (wait < qos_walk_from && !g->throttled))
		return;
	qos_quota_look(c, g, id, cpu, p->se.cfs_rq, queued, now);
	if (wait < qos_walk_from)
		return;
	struct qos_walk *w = qos_walk_start(c, queued, now + late, lost);
	w->group = id;
	w->pid = p->pid;
	w->cpu = cpu;
	w->row = g->row - 1;
	w->slot = g->slot;
	qos_blame_wait(c, g, &was, w);
}

// qos_depart notes that p, a task of a container, leaves the CPU though it is not going to sleep.
static __always_inline void qos_depart(struct qos_cpu *c, u32 cpu, struct task_struct *p)
{
	if (unlikely(qos_throttled(p))) {
		u64 id = qos_group_id(p);
		struct qos_group *g = qos_group_of(id);
		struct qos_task *t = qos_task_of(p);
		if (!g || !g->row || !t || !qos_task_valid(t, qos_ident(p), g->epoch))
			return;
		t->flags |= QOS_TASK_LIMBO;
		t->check = qos_task_sum(t);
		struct cfs_rq *q = p->se.cfs_rq;
		u64 now = q->rq->clock;
		qos_quota_look(c, g, id, cpu, q, now, now);
		return;
	}
	struct qos_counters *n = qos_counters_of(c->slot, cpu);
	if (n)
		qos_add(n->preempted, 1);
}

SEC("tp_btf/sched_switch")
int qos_sched_switch(u64 *ctx)
{
	int preempt = ctx[0] & 1;
	struct task_struct *prev = (struct task_struct *)ctx[1];
	struct task_struct *next = (struct task_struct *)ctx[2];

	u32 cpu = bpf_get_smp_processor_id();
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	if (unlikely(!c))
		return 0;

	int displaced = (preempt || prev->__state == TASK_RUNNING) && prev->pid;
	if (displaced && c->slot >= QOS_SLOT_FIRST)
		qos_depart(c, cpu, prev);

	struct rq *rq = next->se.cfs_rq->rq;
	u64 now = rq->clock;
	u64 lost = now - rq->clock_task, late = 0;
	u32 slot = QOS_SLOT_SYSTEM;
	c->rq = (u64)rq;

	if (!next->pid) {
		slot = QOS_SLOT_IDLE;
	} else if (next->flags & PF_KTHREAD) {
		slot = QOS_SLOT_KERNEL;
	} else {
		u64 id = qos_group_id(next);
		struct qos_group *g = qos_group_of(id);
		if (g) {
			slot = g->slot;
			if (displaced && now - c->gap_at > QOS_LATE_EVERY)
				late = qos_late(c, now);
			qos_arrive(c, cpu, next, g, id, now, late, lost);
		}
	}
	if (now - c->gap_at > QOS_GAP_EVERY)
		qos_late(c, now);
	qos_log_run(c, slot, now + late, lost);
	return 0;
}

// qos_blame_leg puts what a victim has waited on the CPU that it is now taken from into the matrix.
static __always_inline void qos_blame_leg(struct qos_cpu *c, u32 cpu, struct qos_group *g, u64 id, struct qos_task *t,
					  struct cfs_rq *q, u64 leg)
{
	struct qos_row *row = qos_row_of(g->row - 1);
	if (!row)
		return;
	struct rq *rq = q->rq;
	u64 now = rq->clock;
	struct qos_walk *w = qos_walk_start(c, now - leg, now, now - rq->clock_task);
	w->group = id;
	w->cpu = cpu;
	w->row = g->row - 1;
	w->slot = g->slot;
	w->sums = 1;
	struct qos_quota *k = qos_quota_look(c, g, id, cpu, q, now - leg, now);
	__sync_fetch_and_add(&row->walks, 1);
	__sync_fetch_and_add(&row->walked_ns, leg);
	c->walk++;
	qos_attribute(c, w, k, t->flags & QOS_TASK_LIMBO);
	t->charged += leg;
	t->others += w->others;
	t->flags &= ~QOS_TASK_LIMBO;
	if (w->best_ns > (t->best & QOS_NS_MASK))
		t->best = (u64)w->best << 48 | (w->best_ns & QOS_NS_MASK);
}

// A queued task is moved to another CPU. What it has waited so far is in its run_delay by now, and we are under the lock of the
// run queue that it leaves: this is the moment to read that CPU's log.
SEC("tp_btf/sched_migrate_task")
int qos_sched_migrate(u64 *ctx)
{
	struct task_struct *p = (struct task_struct *)ctx[0];

	if (p->on_rq != TASK_ON_RQ_MIGRATING) // it is waking up, by far the most frequent case
		return 0;
	u64 id = qos_group_id(p);
	struct qos_group *g = qos_group_of(id);
	if (!g)
		return 0;
	struct qos_task *t = qos_task_of(p);
	if (!t)
		return 0;
	u64 ident = qos_ident(p), delay = p->sched_info.run_delay;
	int valid = qos_task_valid(t, ident, g->epoch);

	if (exists(p->se.sched_delayed) && p->se.sched_delayed) {
		qos_task_start(t, ident, g->epoch, delay, QOS_TASK_STALE);
		return 0;
	}

	if (!valid) {
		if (p->sched_info.pcount)
			return 0;
		qos_task_start(t, ident, g->epoch, 0, 0);
	}
	struct cfs_rq *cfs_rq = p->se.cfs_rq;
	struct rq *rq = cfs_rq->rq;
	u32 cpu = rq->cpu;
	u64 now = rq->clock;
	u64 leg = delay - t->base;
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	if (!c || (s64)leg < 0 || leg > now)
		return 0;

	t->base = delay;
	t->elsewhere += leg;
	if (g->row && leg >= qos_walk_from && !(t->flags & QOS_TASK_STALE))
		qos_blame_leg(c, cpu, g, id, t, cfs_rq, leg);
	t->check = qos_task_sum(t);
	return 0;
}
