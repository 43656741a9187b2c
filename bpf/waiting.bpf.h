// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Who is waiting right now?
//
// A wait is accounted when it ends. One that does not end for a long time is the worst there is, and nothing happens on its CPU by which
// it could be noticed: whoever runs there just goes on. So this looks at the run queues now and then, from outside and without their
// locks. What it reads may be torn or gone by the time; every pointer is read in a way that cannot fault,
// and a wait that is not there is one that user space finds nobody to blame for.
//
// The scheduler keeps a list of the groups that have something queued on a CPU. Of each that belongs to a victim, and of which no task
// runs there at the moment, some tasks are looked at: with one or two waiting, which is most of the time, that is all of them.
#ifndef QOS_WAITING_BPF_H
#define QOS_WAITING_BPF_H

#include "event.bpf.h"
#include "group.bpf.h"
#include "switchlog.bpf.h"

#define QOS_WAITING 64	// waits that are told at a time
#define QOS_LEAVES 128	// groups that are looked at of a CPU
#define QOS_CPUS 4096
#define QOS_WATCH_CPUS 64 // that the timer looks at each time, by turns: it must not hold up the CPU that it runs on

const volatile u32 qos_cpu_count = 1; // set before the programs are loaded

struct qos_waiting {
	u64 queued;    // rq clock
	u64 now, lost; // rq clock, and what the log's entries call lost
	u32 slot, cpu;
	s32 pid;
	u32 pad;
};

struct qos_waiters {
	u64 looks, look_ns; // how many there were and what they took; of the timer only, whose time is in no other account
	u64 next;	    // CPU to begin with; of the timer only
	u64 n;
	struct qos_waiting at[QOS_WAITING];
};

enum { QOS_WAITS_ASKED, QOS_WAITS_WATCHED, QOS_WAITS_N }; // whose look it was: user space's, or the timer's

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, QOS_WAITS_N);
	__type(key, u32);
	__type(value, struct qos_waiters);
} qos_waits SEC(".maps");

#define qos_read(dst, p, field) bpf_probe_read_kernel(&(dst), sizeof(dst), &(p)->field)
#define qos_outer(type, field, p) ((type *)((u64)(p) - __builtin_preserve_field_info(((type *)0)->field, 0)))

// qos_older takes the task at a node of a run queue's tree if it has waited longer than what w holds.
static __always_inline void qos_older(struct rb_node *node, struct qos_waiting *w)
{
	if (!node)
		return;
	struct sched_entity *se = qos_outer(struct sched_entity, run_node, node);
	struct cfs_rq *below = 0;
	if (qos_read(below, se, my_q) || below) // a group
		return;
	if (exists(se->sched_delayed)) {
		u8 asleep = 0;
		if (qos_read(asleep, se, sched_delayed) || asleep)
			return;
	}
	struct task_struct *p = qos_outer(struct task_struct, se, se);
	unsigned long long queued = 0;
	if (qos_read(queued, p, sched_info.last_queued) || !queued || (w->queued && queued >= w->queued))
		return;
	w->queued = queued;
	qos_read(w->pid, p, pid);
}

// qos_look_at takes the oldest wait in a group's queue on a CPU, if it is a victim's and older than bound. If it is long, who runs there
// will be wanted to know from its beginning to its end: a log of 0.1 s is then not enough.
__noinline int qos_look_at(struct qos_waiters *all, struct qos_waiting *w, u64 queue, u64 bound)
{
	struct cfs_rq *q = (struct cfs_rq *)queue;
	struct sched_entity *running = 0;
	struct task_group *tg = 0;
	struct cgroup *cgroup = 0;
	struct kernfs_node *kn = 0;
	struct rb_node *first = 0, *root = 0, *left = 0, *right = 0;
	u64 id = 0;

	// Most of the groups on the list have nobody queued: they stay on it until the kernel has forgotten their load. That is the cheapest
	// thing to see, with a hundred of them on each CPU, a hundred times a second.
	if (!all || !w || qos_read(first, q, tasks_timeline.rb_leftmost) || !first || qos_read(running, q, curr) || running)
		return 0;
	if (qos_read(tg, q, tg) || qos_read(cgroup, tg, css.cgroup) || qos_read(kn, cgroup, kn) || qos_read(id, kn, id))
		return 0;
	struct qos_group *g = qos_group_of(id);
	if (!g || !g->row)
		return 0;

	qos_read(root, q, tasks_timeline.rb_root.rb_node);
	if (root) {
		qos_read(left, root, rb_left);
		qos_read(right, root, rb_right);
	}
	w->queued = 0;
	qos_older(first, w);
	qos_older(root, w);
	qos_older(left, w);
	qos_older(right, w);
	s64 waited = w->queued ? w->now - w->queued : 0;
	if (waited > QOS_DIGEST_WAIT) {
		u32 cpu = w->cpu;
		struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
		if (c)
			c->digest_until = w->now + QOS_DIGEST_FOR;
	}
	if (waited <= (s64)bound)
		return 0;
	w->slot = g->slot;
	u64 n = all->n;
	if (n < QOS_WAITING) {
		all->at[n] = *w;
		all->n = n + 1;
	}
	return 0;
}

// qos_look_on looks at one CPU.
__noinline int qos_look_on(struct qos_waiters *all, u32 cpu, u64 bound)
{
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	if (!all || !c || !c->rq)
		return 0;
	struct rq *rq = (struct rq *)c->rq;
	unsigned int running = 0;
	u64 task_clock = 0;
	struct qos_waiting w = { .cpu = cpu };
	if (qos_read(running, rq, nr_running) || running < 2) // one runs and nobody waits
		return 0;
	if (qos_read(w.now, rq, clock) || qos_read(task_clock, rq, clock_task))
		return 0;
	w.lost = w.now - task_clock;

	struct list_head *head = (struct list_head *)__builtin_preserve_access_index(&rq->leaf_cfs_rq_list), *at = 0;
	qos_read(at, head, next);
	for (u32 i = 0; i < QOS_LEAVES && at && at != head; i++) {
		qos_look_at(all, &w, (u64)qos_outer(struct cfs_rq, leaf_cfs_rq_list, at), bound);
		if (qos_read(at, at, next))
			break;
	}
	return 0;
}

struct qos_look_args {
	u64 bound; // ns
};

// qos_look finds the waits that are longer than a bound.
SEC("syscall")
int qos_look(struct qos_look_args *ctx)
{
	u32 asked = QOS_WAITS_ASKED;
	struct qos_waiters *all = bpf_map_lookup_elem(&qos_waits, &asked);
	u64 bound = ctx->bound;

	if (!all)
		return 0;
	all->n = 0;
	for (u32 cpu = 0; cpu < QOS_CPUS && cpu < qos_cpu_count; cpu++)
		qos_look_on(all, cpu, bound);
	return 0;
}

struct qos_watch {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct qos_watch);
} qos_watches SEC(".maps");

// qos_watch_look is what the timer does, in a soft interrupt: look whether there is such a wait, and tell. Who waits and who runs meanwhile
// is asked by user space then. A timer of user space does the same, but waking a thread a hundred times a second only to
// find nothing costs many times what the look does.
static int qos_watch_look(__unused void *map, __unused u32 *key, struct qos_watch *w)
{
	u64 every = qos_bounds.watch, bound = qos_bounds.event;
	u32 watched = QOS_WAITS_WATCHED;
	struct qos_waiters *all = bpf_map_lookup_elem(&qos_waits, &watched);

	if (!all || !every || !bound)
		return 0; // and not again
	u64 at = bpf_ktime_get_ns();
	all->n = 0;
	u64 cpu = all->next;
	for (u32 i = 0; i < QOS_WATCH_CPUS && i < qos_cpu_count && !all->n; i++) {
		if (cpu >= qos_cpu_count)
			cpu = 0;
		qos_look_on(all, cpu++, bound);
	}
	all->next = cpu;
	if (all->n) {
		struct qos_waiting *first = &all->at[0];
		struct qos_event e = {
			.at = at,
			.wait = first->now - first->queued,
			.victim = first->slot,
			.pid = first->pid,
			.cpu = first->cpu,
			.kind = QOS_EVENT_GOES_ON,
		};
		qos_tell(&e); // if there is no room, user space has enough to do
	}
	all->looks++;
	all->look_ns += bpf_ktime_get_ns() - at;
	bpf_timer_start(&w->timer, every, 0);
	return 0;
}

// qos_watch_start starts the timer, or starts it again. It ends by itself when the bounds say so.
SEC("syscall")
int qos_watch_start(__unused void *ctx)
{
	u32 zero = 0;
	struct qos_watch *w = bpf_map_lookup_elem(&qos_watches, &zero);
	if (!w)
		return 1;
	bpf_timer_init(&w->timer, &qos_watches, BPF_CLOCK_MONOTONIC); // says EBUSY if that was done before
	if (bpf_timer_set_callback(&w->timer, qos_watch_look))
		return 2;
	return bpf_timer_start(&w->timer, qos_bounds.watch, 0) ? 3 : 0;
}

#endif
