// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which groups are measured: a hash table in an array that user space writes to.
//
// A hash map of the kernel takes 35 ns to look up, more than all the rest of a switch; this takes 3.
#ifndef QOS_GROUP_BPF_H
#define QOS_GROUP_BPF_H

#include "kernel.bpf.h"

#define QOS_PROBES 16 // an entry is at most so far from its home

const volatile u32 qos_group_bits = 0; // log2 of the size of the table; set before the programs are loaded

struct qos_group {
	u64 id;        // 0: empty, and the end of a search; ~0: was removed. Written last, when a group is added.
	u32 slot;      // at least QOS_SLOT_FIRST
	u32 row;       // of the matrix plus 1, if it is a victim; else 0
	u32 epoch;     // tells one tracking of a group from another
	u32 throttled; // it has been, as far as we have seen
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct qos_group);
} qos_groups SEC(".maps");

// qos_group_id is the inode number of the group's directory in the cpu controller's hierarchy. A task in an autogroup has none:
// reading through the missing pointer gives 0.
static __always_inline u64 qos_group_id(struct task_struct *p)
{
	return p->sched_task_group->css.cgroup->kn->id;
}

static __always_inline struct qos_group *qos_group_of(u64 id)
{
	u32 home = id * 0x9e3779b97f4a7c15 >> 32 >> (32 - qos_group_bits);

	if (!id)
		return 0;
	for (u32 i = 0; i < QOS_PROBES; i++) {
		u32 key = (home + i) & ((1 << qos_group_bits) - 1);
		struct qos_group *g = bpf_map_lookup_elem(&qos_groups, &key);
		if (!g || !g->id)
			return 0;
		if (g->id == id)
			return g->slot ? g : 0;
	}
	return 0;
}

#endif
