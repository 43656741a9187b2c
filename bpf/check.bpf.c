// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Lets the Go tests call the parts of the programs that can be called alone. Not part of the agent.
#include "clock.bpf.h"
#include "histogram.bpf.h"
#include "kernel.bpf.h"
#include "quota.bpf.h"
#include "switchlog.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

struct qos_check_hist {
	u64 ns;
	u64 bucket;
};

SEC("syscall")
int qos_check_hist_index(struct qos_check_hist *ctx)
{
	ctx->bucket = qos_hist_index(ctx->ns);
	return 0;
}

struct qos_check_wait {
	u64 from, to, now, lost; // as in qos_walk
	u64 quota;               // whether to look at the quota of group 1 on CPU 0
	u64 limbo;
	u64 best, best_ns;
};

// qos_check_attribute attributes a wait on CPU 0 to row 0.
SEC("syscall")
int qos_check_attribute(struct qos_check_wait *ctx)
{
	u32 cpu = 0;
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	struct qos_quota_key key = { .group = 1, .cpu = 0 };
	struct qos_quota *k = 0;

	if (!c)
		return 1;
	struct qos_walk *w = qos_walk_start(c, ctx->from, ctx->to, ctx->lost);
	w->now = ctx->now;
	w->sums = 1;
	if (ctx->quota)
		k = bpf_map_lookup_elem(&qos_quotas, &key);
	c->walk++;
	qos_attribute(c, w, k, ctx->limbo);
	ctx->best = w->best;
	ctx->best_ns = w->best_ns;
	return 0;
}

struct qos_check_log {
	u64 slot, now, lost;
	u64 digest_until;
};

// qos_check_run notes in the log of CPU 0 that a slot begins to run.
SEC("syscall")
int qos_check_run(struct qos_check_log *ctx)
{
	u32 cpu = 0;
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	if (!c)
		return 1;
	c->digest_until = ctx->digest_until;
	qos_log_run(c, ctx->slot, ctx->now, ctx->lost);
	return 0;
}

struct qos_check_clock {
	u64 mono, now;
	u64 late;
};

// qos_check_late holds the run queue's clock of CPU 0 against the other.
SEC("syscall")
int qos_check_late(struct qos_check_clock *ctx)
{
	u32 cpu = 0;
	struct qos_cpu *c = bpf_map_lookup_elem(&qos_cpus, &cpu);
	if (!c)
		return 1;
	ctx->late = qos_late_by(c, ctx->mono, ctx->now);
	return 0;
}
