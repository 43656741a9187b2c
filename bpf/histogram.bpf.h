// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The buckets of pkg/histogram: bucket 0 below 2^10 ns, eight for each power of two up to 2^34 ns, and the overflow.
#ifndef QOS_HISTOGRAM_BPF_H
#define QOS_HISTOGRAM_BPF_H

#include "kernel.bpf.h"

#define QOS_HIST_SUB_BITS 3
#define QOS_HIST_MIN_EXP 10
#define QOS_HIST_MAX_EXP 34
#define QOS_HIST_BUCKETS (1 + ((QOS_HIST_MAX_EXP - QOS_HIST_MIN_EXP) << QOS_HIST_SUB_BITS) + 1)

// qos_hist_index gives the bucket of a duration in nanoseconds.
static __always_inline u32 qos_hist_index(u64 ns)
{
	if (ns < 1ULL << QOS_HIST_MIN_EXP)
		return 0;
	if (ns >> QOS_HIST_MAX_EXP)
		return QOS_HIST_BUCKETS - 1;

	// BPF cannot count leading zeros. 24 bits are left to search.
	u32 exp = 0;
	u32 v = ns >> QOS_HIST_MIN_EXP;
	if (v >> 16) {
		v >>= 16;
		exp += 16;
	}
	if (v >> 8) {
		v >>= 8;
		exp += 8;
	}
	if (v >> 4) {
		v >>= 4;
		exp += 4;
	}
	if (v >> 2) {
		v >>= 2;
		exp += 2;
	}
	exp += v >> 1;

	u32 sub = (ns >> (exp + QOS_HIST_MIN_EXP - QOS_HIST_SUB_BITS)) & ((1 << QOS_HIST_SUB_BITS) - 1);
	return 1 + (exp << QOS_HIST_SUB_BITS) + sub;
}

#endif
